//! How the demo agent is steered: by flags, by the prompt's `options.demo`, by the prompt's words.
//!
//! The prompt's words win over its options, and those over the flags. Must not know the script.

use clap::Parser;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Content of one flood event, if not said otherwise.
const FLOOD_BYTES_DEFAULT: usize = 200;
/// Above any line that a gateway takes; it only keeps a typing error from eating the memory.
const FLOOD_BYTES_MAX: usize = 64 << 20;

/// The demo agent: plays a scripted turn over stdin and stdout, in the `jsonl` dialect.
#[derive(Parser, Clone, Debug, Default)]
#[command(name = "reattach demo-agent", disable_version_flag = true)]
pub(super) struct Flags {
    /// Picks among the script's variants; the same seed plays the same turn.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How fast: 1 is lifelike, 2 twice as fast, 0 without any delay.
    #[arg(long, value_name = "X", value_parser = speed_from_text)]
    speed: Option<f64>,
    /// Say N text events as fast as possible, and nothing else.
    #[arg(long, value_name = "N")]
    flood: Option<u64>,
    /// Bytes of text in each event of a flood (200).
    #[arg(long, value_name = "BYTES", value_parser = flood_bytes_from_text)]
    flood_bytes: Option<usize>,
    /// Exit in the middle of the turn, with text on stderr and code 3.
    #[arg(long)]
    crash: bool,
    /// Say the process id, then ignore everything until killed.
    #[arg(long)]
    hang: bool,
    /// Say that the turn failed instead of saying event N.
    #[arg(long, value_name = "N")]
    fail_at: Option<u64>,
}

/// What a prompt may change.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Changes {
    seed: Option<u64>,
    speed: Option<f64>,
    flood: Option<u64>,
    flood_bytes: Option<usize>,
    crash: Option<bool>,
    hang: Option<bool>,
    fail_at: Option<u64>,
}

/// What counts in the end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    /// Picks among the script's variants.
    pub(super) seed: u64,
    /// How fast; 0 without any delay.
    pub(super) speed: f64,
    /// How many events to flood; 0 for none.
    pub(super) flood: u64,
    /// Bytes of text in each of them.
    pub(super) flood_bytes: usize,
    /// Exit in the middle.
    pub(super) crash: bool,
    /// Ignore everything.
    pub(super) hang: bool,
    /// The number of the event in whose place the turn fails.
    pub(super) fail_at: Option<u64>,
}

impl Settings {
    /// Puts the three sources together. The error says what is wrong with `options.demo`.
    pub(super) fn new(
        flags: &Flags,
        options: &Map<String, Value>,
        content: &str,
    ) -> Result<Self, String> {
        let options = match options.get("demo") {
            None | Some(Value::Null) => Changes::default(),
            Some(value) => checked(
                Changes::deserialize(value).map_err(|error| format!("options.demo: {error}"))?,
            )
            .map_err(|error| format!("options.demo: {error}"))?,
        };
        let words = words(content).unwrap_or_default();
        Ok(Self {
            seed: words.seed.or(options.seed).or(flags.seed).unwrap_or(0),
            speed: words.speed.or(options.speed).or(flags.speed).unwrap_or(1.0),
            flood: words.flood.or(options.flood).or(flags.flood).unwrap_or(0),
            flood_bytes: words
                .flood_bytes
                .or(options.flood_bytes)
                .or(flags.flood_bytes)
                .unwrap_or(FLOOD_BYTES_DEFAULT),
            crash: words.crash.or(options.crash).unwrap_or(flags.crash),
            hang: words.hang.or(options.hang).unwrap_or(flags.hang),
            fail_at: words.fail_at.or(options.fail_at).or(flags.fail_at),
        })
    }
}

/// A prompt that consists of settings alone, `flood 1000 speed 0` say; `None` for any other, so
/// that a sentence with the word "crash" in it is only a sentence.
fn words(content: &str) -> Option<Changes> {
    let mut changes = Changes::default();
    let mut words = content.split_whitespace();
    while let Some(word) = words.next() {
        match word.to_ascii_lowercase().as_str() {
            "seed" => changes.seed = Some(words.next()?.parse().ok()?),
            "speed" => changes.speed = Some(words.next()?.parse().ok()?),
            "flood" => changes.flood = Some(words.next()?.parse().ok()?),
            "flood-bytes" => changes.flood_bytes = Some(words.next()?.parse().ok()?),
            "fail-at" => changes.fail_at = Some(words.next()?.parse().ok()?),
            "crash" => changes.crash = Some(true),
            "hang" => changes.hang = Some(true),
            _ => return None,
        }
    }
    checked(changes).ok()
}

fn checked(changes: Changes) -> Result<Changes, String> {
    if let Some(speed) = changes.speed {
        check_speed(speed)?;
    }
    if let Some(bytes) = changes.flood_bytes {
        check_flood_bytes(bytes)?;
    }
    Ok(changes)
}

fn check_speed(speed: f64) -> Result<f64, String> {
    if speed.is_finite() && speed >= 0.0 {
        Ok(speed)
    } else {
        Err("`speed` must be 0 or more".to_owned())
    }
}

fn check_flood_bytes(bytes: usize) -> Result<usize, String> {
    if bytes <= FLOOD_BYTES_MAX {
        Ok(bytes)
    } else {
        Err(format!("`floodBytes` must be at most {FLOOD_BYTES_MAX}"))
    }
}

fn speed_from_text(text: &str) -> Result<f64, String> {
    check_speed(text.parse().map_err(|_| "not a number".to_owned())?)
}

fn flood_bytes_from_text(text: &str) -> Result<usize, String> {
    check_flood_bytes(text.parse().map_err(|_| "not a whole number".to_owned())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(args: &[&str], options: &Value, content: &str) -> Result<Settings, String> {
        let flags = Flags::try_parse_from(std::iter::once(&"x").chain(args)).unwrap();
        Settings::new(&flags, options.as_object().unwrap(), content)
    }

    #[test]
    fn words_win_over_options_and_options_over_flags() {
        let args = ["--seed", "1", "--speed", "2", "--flood", "3"];
        let options = json!({"demo": {"seed": 10, "speed": 0}});
        let settings = settings(&args, &options, "seed 100").unwrap();
        assert_eq!((settings.seed, settings.flood), (100, 3));
        assert!(settings.speed.abs() < f64::EPSILON);
    }

    #[test]
    fn only_a_prompt_of_settings_alone_is_one() {
        let of = |content: &str| settings(&[], &json!({}), content).unwrap();
        assert!(of("crash").crash);
        assert!(of("Flood 50000 flood-bytes 16384 HANG").hang);
        assert_eq!(of("flood 50000 flood-bytes 16384").flood_bytes, 16384);
        assert_eq!(of("fail-at 4").fail_at, Some(4));
        for content in ["why did it crash", "flood", "flood many", "hang on", "speed -1", ""] {
            assert_eq!(of(content), of("hello"), "{content:?}");
        }
    }

    #[test]
    fn options_that_it_does_not_know_are_an_error() {
        for demo in [
            json!({"fload": 5}),
            json!({"flood": "many"}),
            json!({"speed": -1}),
            json!({"floodBytes": 1_000_000_000_u64}),
            json!(5),
        ] {
            let error = settings(&[], &json!({"demo": demo}), "hi").unwrap_err();
            assert!(error.starts_with("options.demo: "), "{error}");
        }
        assert!(settings(&[], &json!({"demo": null, "model": 1}), "hi").is_ok());
    }

    #[test]
    fn bad_flags_are_refused() {
        for args in [["--speed", "-1"], ["--speed", "NaN"], ["--flood", "x"]] {
            assert!(Flags::try_parse_from(std::iter::once("x").chain(args)).is_err(), "{args:?}");
        }
    }
}
