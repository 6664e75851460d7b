//! The server's log on stderr: for people on a terminal, one JSON object a line elsewhere.
//!
//! Only our own lines: what the libraries below us say with the `log` crate may hold what clients
//! sent, and goes nowhere. Must not know what is logged.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::run::id::Millis;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human on a terminal, else JSON.
    #[default]
    Auto,
    /// A line of text, with colours on a terminal.
    Human,
    /// An object a line.
    Json,
}

/// Logs from now on, as `REATTACH_LOG` says how much.
pub fn start(format: LogFormat) {
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(io::stderr)
        .with_ansi(terminal && !json)
        // It would say on stderr that stderr cannot be written, and panic because of that: a
        // server whose terminal was closed serves on.
        .log_internal_errors(false);
    // Not `init`, which would also take the lines of the `log` crate.
    let started = match json {
        true => {
            let subscriber = builder.fmt_fields(Json).event_format(Json).finish();
            tracing::subscriber::set_global_default(subscriber)
        }
        false => tracing::subscriber::set_global_default(builder.finish()),
    };
    if let Err(error) = started {
        writeln!(io::stderr(), "reattach: logs are not shown: {error}").ok();
    }
}

fn filter() -> EnvFilter {
    let info = || EnvFilter::new("info");
    let Some(wanted) = std::env::var_os("REATTACH_LOG").filter(|wanted| !wanted.is_empty()) else {
        return info();
    };
    let wanted = wanted.to_string_lossy();
    EnvFilter::try_new(&wanted).unwrap_or_else(|error| {
        let why = format!("reattach: REATTACH_LOG cannot be used ({error}); it counts as `info`");
        writeln!(io::stderr(), "{why}").ok();
        info()
    })
}

/// One JSON object a line: `ts`, `level`, `target`, `msg`, and the fields of the event and of the
/// spans around it.
#[derive(Clone, Copy, Debug)]
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        line.insert("ts".into(), Millis::now().to_string().into());
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        line.insert("level".into(), level.into());
        line.insert("target".into(), event.metadata().target().into());
        let spans = context.event_scope().into_iter().flat_map(|scope| scope.from_root());
        for span in spans {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>();
            let fields = fields.and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
            line.extend(fields.into_iter().flatten());
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

impl<'writer> FormatFields<'writer> for Json {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut map = Map::new();
        fields.record(&mut Fields(&mut map));
        write!(writer, "{}", Value::Object(map))
    }
}

/// Puts fields into an object, under the names that the documentation gives them.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "message" => "msg",
            "run" => "run_id",
            "session" => "session_id",
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_an_object_with_the_fields_of_its_spans() {
        let sink = Sink::default();
        let to = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(Json)
            .event_format(Json)
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _request = tracing::error_span!("request", request_id = "r\"1").entered();
            tracing::warn!(run = %7, count = 2, ok = true, "said\nso");
        });
        let text = String::from_utf8(sink.0.lock().clone()).expect("UTF-8");
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        let expected = serde_json::json!({
            "ts": line["ts"], "level": "warn", "target": module_path!(), "request_id": "r\"1",
            "msg": "said\nso", "run_id": "7", "count": 2, "ok": true,
        });
        assert_eq!(line, expected);
        assert!(line["ts"].as_str().is_some_and(|ts| ts.ends_with('Z')), "{line}");
    }
}
