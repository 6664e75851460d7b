//! `export`: one session as a file to read, or as data.
//!
//! From the server, or from the disk where none runs. Must not know how events look.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::backup::unusable;
use super::{Context, Picked, id, pick, segment, several_mean, string};
use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::exit::{Exit, Failure, Outcome, Stop};
use crate::cli::target::Target;
use crate::cli::transcript::{self, Transcript};
use crate::limits::PAGE_BYTES_MAX;
use crate::run::id::{Millis, Position, RunId, Seq, SessionId};
use crate::server::view;
use crate::store::{PageLimit, ReadError, Readers, RunFilter, SessionFilter};

/// `reattach export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The session
    pub session: String,
    /// What to write [default: md, or json with --json or a FILE that ends in .json]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub format: Option<ExportFormat>,
    /// Where to write it; `-` is stdout
    #[arg(short = 'o', long = "out", value_name = "FILE", default_value = "-")]
    pub out: PathBuf,
    /// Replace FILE if it is there
    #[arg(short, long)]
    pub force: bool,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What an export looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A transcript to read, in Markdown.
    Md,
    /// The session, its runs and its events exactly as they are stored.
    Json,
}

/// `reattach export`.
///
/// # Errors
/// What the server or the way to it says, or the disk.
pub fn export(args: &ExportArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let to_stdout = args.out == Path::new("-");
    let named_json = args.out.extension().is_some_and(|extension| extension == "json");
    let format = args.format.unwrap_or(match args.output.json || named_json {
        true => ExportFormat::Json,
        false => ExportFormat::Md,
    });
    if !to_stdout && !args.force && args.out.symlink_metadata().is_ok() {
        return Err(Failure::new(
            Exit::Conflict,
            "EXISTS",
            format!("{} exists already", args.out.display()),
            "another name, or the same command with --force",
        )
        .into());
    }
    let source = Source::of(&context)?;
    let session = source.session(&context, &args.session)?;
    if to_stdout {
        let mut out = BufWriter::with_capacity(64 << 10, io::stdout());
        write(&source, &context, &session, format, &mut out)?;
        out.flush()?;
        return Ok(Exit::Ok);
    }
    let events = to_file(args, |out| write(&source, &context, &session, format, out))?;
    let text = format!("{}: {events} events\n", args.out.display());
    let format = if format == ExportFormat::Md { "md" } else { "json" };
    let json = json!({
        "file": args.out, "format": format, "sessionId": session["id"], "events": events,
    });
    context.screen.document(&json, &text)?;
    Ok(Exit::Ok)
}

/// Writes beside the file, then puts it in its place.
fn to_file(
    args: &ExportArgs,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<u64, Stop>,
) -> Result<u64, Stop> {
    let mut part = args.out.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |error: io::Error| {
        Failure::new(
            Exit::Failure,
            "FILE",
            format!("cannot write {}: {error}", args.out.display()),
            "another place, with --out FILE",
        )
    };
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&part);
    let mut out = BufWriter::with_capacity(64 << 10, file.map_err(failed)?);
    let written = write(&mut out).and_then(|events| {
        out.flush().map_err(failed)?;
        out.get_ref().sync_all().map_err(failed)?;
        fs::rename(&part, &args.out).map_err(failed)?;
        Ok(events)
    });
    if written.is_err() {
        // What there is of it is of no use to anybody.
        drop(fs::remove_file(&part));
    }
    written
}

fn write(
    source: &Source,
    context: &Context,
    session: &Value,
    format: ExportFormat,
    out: &mut impl Write,
) -> Result<u64, Stop> {
    match format {
        ExportFormat::Md => write_md(source, context, session, out),
        ExportFormat::Json => write_json(source, context, session, out),
    }
}

/// The number of events.
fn write_md(
    source: &Source,
    context: &Context,
    session: &Value,
    out: &mut impl Write,
) -> Result<u64, Stop> {
    let mut transcript = Transcript::default();
    let mut events = 0;
    out.write_all(transcript::head(session).as_bytes())?;
    source.pages(context, session, &mut |page| {
        if let Some(gap) = &page.gap {
            out.write_all(transcript::gap(gap).as_bytes())?;
        }
        for item in &page.items {
            let mut event: Value = serde_json::from_str(item.get()).unwrap_or(Value::Null);
            if event["truncated"].is_object() {
                event = source.whole(context, &event)?.unwrap_or(event);
            }
            events += u64::from(event["seq"] != 0);
            out.write_all(transcript.event(&event).as_bytes())?;
        }
        Ok(())
    })?;
    out.write_all(transcript.end().as_bytes())?;
    Ok(events)
}

/// The number of events.
fn write_json(
    source: &Source,
    context: &Context,
    session: &Value,
    out: &mut impl Write,
) -> Result<u64, Stop> {
    let begin = json!({
        "format": "reattach-session", "formatVersion": 1, "version": env!("CARGO_PKG_VERSION"),
        "exportedAt": Millis::now().to_string(), "session": session,
        "runs": source.runs(context, session)?,
    });
    let begin = begin.to_string();
    out.write_all(begin.strip_suffix('}').unwrap_or(&begin).as_bytes())?;
    out.write_all(b",\"events\":[")?;
    let (mut events, mut between) = (0, "\n");
    let (mut cut, mut gaps): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    source.pages(context, session, &mut |page| {
        gaps.extend(page.gap.clone());
        for item in &page.items {
            out.write_all(between.as_bytes())?;
            out.write_all(item.get().as_bytes())?;
            between = ",\n";
            let place: Place = serde_json::from_str(item.get()).unwrap_or_default();
            events += u64::from(place.seq != 0);
            if place.truncated.is_some() {
                cut.push(json!({"runId": place.run_id, "seq": place.seq}));
            }
        }
        Ok(())
    })?;
    out.write_all(b"],\"whole\":[")?;
    between = "\n";
    for place in &cut {
        if let Some(whole) = source.whole(context, place)? {
            write!(out, "{between}{whole}")?;
            between = ",\n";
        }
    }
    writeln!(out, "],\"gaps\":{}}}", Value::Array(gaps))?;
    Ok(events)
}

/// Where an event stands, and whether it was cut.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Place {
    run_id: String,
    seq: u64,
    truncated: Option<Value>,
}

/// A page of the log, its events as they are stored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    items: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
    #[serde(default)]
    gap: Option<Value>,
}

/// Where a session is read from.
enum Source {
    /// The server.
    Server,
    /// The data directory, where no server runs.
    Disk(Box<Readers>),
}

impl Source {
    fn of(context: &Context) -> Result<Self, Failure> {
        let Target::DataDir(dir) = context.rest.target() else { return Ok(Self::Server) };
        match context.rest.get::<Value>("/sessions", &[("limit", "1")]) {
            Err(failure) if failure.exit == Exit::Unreachable => {
                // No database either: what the server's absence says is more to the point.
                if !dir.join(crate::store::DATABASE).is_file() {
                    return Err(failure);
                }
                let readers = Readers::offline(dir).map_err(|error| unusable(&error, dir))?;
                Ok(Self::Disk(Box::new(readers)))
            }
            Err(failure) => Err(failure),
            Ok(_) => Ok(Self::Server),
        }
    }

    fn session(&self, context: &Context, named: &str) -> Result<Value, Failure> {
        let Self::Disk(readers) = self else { return context.session(named) };
        let named = named.trim();
        for archived in [false, true] {
            let filter = SessionFilter { archived: Some(archived), ..SessionFilter::default() };
            let mut sessions = Vec::new();
            let mut cursor = None;
            loop {
                let page =
                    readers.sessions(&filter, 1000, cursor.as_deref()).map_err(unreadable)?;
                sessions.extend(page.items.iter().map(view::session));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            match pick(&sessions, named) {
                Picked::One(session) => return Ok(session.clone()),
                Picked::Several(several) => return Err(several_mean(named, &several)),
                Picked::None => {}
            }
        }
        Err(Failure::new(
            Exit::NotFound,
            "SESSION_NOT_FOUND",
            format!("no session is called `{named}`"),
            "reattach serve, then `reattach sessions`",
        ))
    }

    /// All runs, the oldest first.
    fn runs(&self, context: &Context, session: &Value) -> Result<Vec<Value>, Failure> {
        let mut runs = match self {
            Self::Server => {
                context.list(&format!("/sessions/{}/runs", id(session)), &[], usize::MAX)?
            }
            Self::Disk(readers) => {
                let filter = RunFilter { session: Some(session_id(session)?), status: None };
                let mut runs = Vec::new();
                let mut cursor = None;
                loop {
                    let page =
                        readers.runs(&filter, 1000, cursor.as_deref()).map_err(unreadable)?;
                    runs.extend(page.items.iter().map(view::run));
                    cursor = page.next;
                    if cursor.is_none() {
                        break runs;
                    }
                }
            }
        };
        // Ids of runs sort by their start.
        runs.sort_by_key(id);
        Ok(runs)
    }

    /// The whole log, page by page.
    fn pages(
        &self,
        context: &Context,
        session: &Value,
        take: &mut dyn FnMut(&Page) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        match self {
            Self::Server => {
                let path = format!("/sessions/{}/events", id(session));
                let mut after: Option<String> = None;
                loop {
                    let begin = match &after {
                        Some(after) => ("after", after.as_str()),
                        None => ("from", "start"),
                    };
                    let page: Page = context.rest.get(&path, &[("limit", "500"), begin])?;
                    let next = page.next_cursor.clone();
                    take(&Page { gap: page.gap.filter(Value::is_object), ..page })?;
                    match next {
                        Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                        _ => return Ok(()),
                    }
                }
            }
            Self::Disk(readers) => disk_pages(readers, session_id(session)?, take),
        }
    }

    /// The whole of an event that was cut.
    fn whole(&self, context: &Context, event: &Value) -> Result<Option<Value>, Failure> {
        let run = string(event, "runId")?;
        let seq = event["seq"].as_u64().unwrap_or(0);
        match self {
            Self::Server => {
                let path = format!("/runs/{}/events/{seq}", segment(&run));
                match context.rest.get(&path, &[]) {
                    Ok(whole) => Ok(Some(whole)),
                    // Retention took it meanwhile.
                    Err(failure) if failure.exit == Exit::NotFound => Ok(None),
                    Err(failure) => Err(failure),
                }
            }
            Self::Disk(readers) => {
                let Ok(run) = run.parse::<RunId>() else { return Ok(None) };
                let whole = readers.event_whole(run, Seq(seq)).map_err(unreadable)?;
                Ok(whole.and_then(|whole| serde_json::from_slice(&whole).ok()))
            }
        }
    }
}

fn disk_pages(
    readers: &Readers,
    session: SessionId,
    take: &mut dyn FnMut(&Page) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let limit = PageLimit { events: 500, bytes: PAGE_BYTES_MAX, compact: false };
    let end = readers.end_of(session).map_err(unreadable)?;
    let mut cursor = Position::START;
    loop {
        let page = readers.events_page(session, cursor, end, limit).map_err(unreadable)?;
        let gap = page.gap.map(|gone| {
            json!({
                "from": {"runId": gone.from.run, "seq": gone.from.seq},
                "to": {"runId": gone.to.run, "seq": gone.to.seq},
            })
        });
        let items = page.items.iter().map(|item| RawValue::from_string(item.text.to_string()));
        let items = items.collect::<Result<Vec<_>, _>>().map_err(|error| {
            let why = format!("an event cannot be read: {error}");
            Failure::new(Exit::Data, "DAMAGED", why, "reattach verify")
        })?;
        take(&Page { items, next_cursor: None, gap })?;
        match page.items.last() {
            Some(last) if page.next.is_some() => cursor = last.at,
            _ => return Ok(()),
        }
    }
}

fn session_id(session: &Value) -> Result<SessionId, Failure> {
    let id = string(session, "id")?;
    id.parse().map_err(|_| {
        Failure::new(
            Exit::Failure,
            "NOT_REATTACH",
            format!("{id} is no session's id"),
            "reattach verify",
        )
    })
}

fn unreadable(error: ReadError) -> Failure {
    Failure::new(Exit::Data, "DAMAGED", error.to_string(), "reattach verify")
}
