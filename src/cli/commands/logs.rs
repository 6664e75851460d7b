//! `logs`: a session's log as it is stored.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Context, string};
use crate::cli::args::LogsArgs;
use crate::cli::exit::{Exit, Failure, Outcome, Stop};
use crate::cli::follow::{Begin, Follow, Mark, position};
use crate::cli::text::{self, Paint};
use crate::cli::watch::{CtrlC, Options, Until, Watch};

/// One page of events. The items stay as they came: `--json` prints exactly what is stored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    items: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
    #[serde(default)]
    gap: Option<Value>,
}

/// `reattach logs`.
///
/// # Errors
/// What the server or the way to it says.
pub fn logs(args: LogsArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let session = string(&context.session(&args.session)?, "id")?;
    let since = args.since.map(|since| Mark { run: since.run, seq: since.seq });
    let begin = match args.tail {
        Some(count) => later(&context, &session, since, count)?,
        None => since,
    };
    let last = print(&mut context, &session, begin)?;
    context.screen.flush()?;
    if !args.follow {
        context.screen.end()?;
        return Ok(Exit::Ok);
    }
    let options = Options {
        until: Until::Detached,
        ctrl_c: CtrlC::Detach,
        no_input: false,
        deadline: None,
        quiet: false,
    };
    let follow = Follow::new(session, last.map_or(Begin::Start, Begin::After));
    Watch::new(&context.rest, &mut context.screen, follow, options)?.run()
}

/// Prints what is stored after a position; returns the position of the last event.
fn print(context: &mut Context, session: &str, begin: Option<Mark>) -> Result<Option<Mark>, Stop> {
    let path = format!("/sessions/{session}/events");
    let mut last = begin;
    let mut after = last.as_ref().map(|mark| format!("{}:{}", mark.run, mark.seq));
    loop {
        let mut query = vec![("limit", PAGE)];
        query.push(match &after {
            Some(after) => ("after", after.as_str()),
            None => ("from", "start"),
        });
        let page: Page = context.rest.get(&path, &query)?;
        if let Some(gap) = page.gap.filter(Value::is_object) {
            let place = |at: &Value| match position(at) {
                Some(mark) => format!("{}:{}", text::clean(&mark.run, Paint::Plain), mark.seq),
                None => "the beginning".to_owned(),
            };
            let line =
                format!("-- no longer kept: {} to {} --", place(&gap["from"]), place(&gap["to"]));
            context.screen.say(&line)?;
        }
        for item in &page.items {
            let event: Value = serde_json::from_str(item.get()).unwrap_or(Value::Null);
            last = position(&event).or(last);
            context.screen.event(item.get(), &event)?;
        }
        match page.next_cursor {
            Some(next) if !page.items.is_empty() && after.as_ref() != Some(&next) => {
                after = Some(next);
            }
            _ => return Ok(last),
        }
    }
}

/// Events asked for at once.
const PAGE: &str = "500";

/// The position after which `count` events are left, or `since` if that is later.
fn later(
    context: &Context,
    session: &str,
    since: Option<Mark>,
    count: usize,
) -> Result<Option<Mark>, Failure> {
    let mut runs = context.list(&format!("/sessions/{session}/runs"), &[], usize::MAX)?;
    // By their start, whatever the order of the list; ids of runs sort by it as well.
    runs.sort_by_key(|run| {
        let word = |name: &str| run[name].as_str().unwrap_or_default().to_owned();
        (word("startedAt"), word("id"))
    });
    let marks: Vec<Mark> = runs
        .iter()
        .map(|run| Mark {
            run: run["id"].as_str().unwrap_or_default().to_owned(),
            seq: run["lastSeq"].as_u64().unwrap_or(0),
        })
        .collect();
    Ok(tail(&marks, since, u64::try_from(count).unwrap_or(u64::MAX)))
}

/// Each run has its `run_started` and `seq` events; `runs` are in order.
fn tail(runs: &[Mark], since: Option<Mark>, count: u64) -> Option<Mark> {
    let mut left = count;
    for (at, run) in runs.iter().enumerate().rev() {
        if since.as_ref().is_some_and(|since| since.run == run.run) {
            let seq = run.seq.saturating_sub(left);
            return since.map(|since| Mark { seq: since.seq.max(seq), ..since });
        }
        if left <= run.seq {
            return Some(Mark { run: run.run.clone(), seq: run.seq - left });
        }
        left -= run.seq + 1;
        if left == 0 {
            // From this run's head on, which is after the end of the run before.
            return at.checked_sub(1).map(|before| runs[before].clone());
        }
    }
    since
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark(run: usize, seq: u64) -> Mark {
        Mark { run: format!("r{run}"), seq }
    }

    #[test]
    fn the_last_events_may_lie_in_several_runs() {
        let runs = [mark(1, 3), mark(2, 0), mark(3, 2)];
        for (count, begin) in [
            (0, Some(mark(3, 2))),
            (1, Some(mark(3, 1))),
            (2, Some(mark(3, 0))),
            (3, Some(mark(2, 0))),
            (4, Some(mark(1, 3))),
            (5, Some(mark(1, 2))),
            (7, Some(mark(1, 0))),
            (8, None),
            (99, None),
        ] {
            assert_eq!(tail(&runs, None, count), begin, "{count}");
        }
        assert_eq!(tail(&runs, Some(mark(3, 1)), 2), Some(mark(3, 1)), "since is later");
        assert_eq!(tail(&runs, Some(mark(1, 1)), 99), Some(mark(1, 1)));
        assert_eq!(tail(&[], None, 5), None);
    }

    proptest! {
        #[test]
        fn exactly_that_many_are_left(
            lens in proptest::collection::vec(0_u64..5, 0..6),
            count in 0_u64..30,
        ) {
            let runs: Vec<Mark> = lens.iter().enumerate().map(|(at, len)| mark(at, *len)).collect();
            let log: Vec<Mark> = runs.iter()
                .flat_map(|run| (0..=run.seq).map(|seq| Mark { run: run.run.clone(), seq }))
                .collect();
            let left = match tail(&runs, None, count) {
                None => log.len(),
                Some(begin) => {
                    let at = log.iter().position(|mark| *mark == begin).expect("a position");
                    log.len() - at - 1
                }
            };
            prop_assert_eq!(left as u64, count.min(log.len() as u64));
        }
    }
}
