//! `docs/openapi.json` and `docs/frames.schema.json`, held against what really goes over the wire.
//!
//! The helpers of these tests hand everything here: each frame that comes, each frame that was
//! answered with something other than an error, each body of a request that was granted, each
//! answer. Must not know the library's types.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::{Draft, Registry, Validator};
use serde_json::{Value, json};

/// Where the documents stand for each other. Nothing is fetched.
const BASE: &str = "https://reattach.invalid/";

pub(crate) static FRAMES: LazyLock<Value> =
    LazyLock::new(|| parse(include_str!("../../../docs/frames.schema.json")));
pub(crate) static OPENAPI: LazyLock<Value> =
    LazyLock::new(|| parse(include_str!("../../../docs/openapi.json")));

static REGISTRY: LazyLock<Registry<'static>> = LazyLock::new(|| {
    let registry = Registry::new().draft(Draft::Draft202012);
    let registry = registry.add(format!("{BASE}frames.schema.json"), &*FRAMES).expect("a URI");
    let registry = registry.add(format!("{BASE}openapi.json"), &*OPENAPI).expect("a URI");
    registry.prepare().expect("references lead somewhere")
});

/// Validators by their place, made once. There are as many as places in two documents.
static VALIDATORS: Mutex<Option<HashMap<String, &'static Validator>>> = Mutex::new(None);

/// Names of providers that were configured as `jsonl`: what such an agent says passes through, so
/// its events of known kinds need not have our fields.
static JSONL: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Frames of one kind that each connection has checked; then every `EVERY`th. A flood is of few
/// shapes, and its tests are about pressure.
const FIRST: u64 = 200;
const EVERY: u64 = 64;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("the documents are JSON")
}

/// A provider of this name is, or was, configured as `jsonl`.
pub(crate) fn passes_through(provider: &str) {
    JSONL.lock().unwrap_or_else(PoisonError::into_inner).insert(provider.to_owned());
}

/// Which frames of a connection are checked.
#[derive(Debug, Default)]
pub(crate) struct Sampler(HashMap<String, u64>);

impl Sampler {
    /// Checks the frame, if it is its turn.
    #[track_caller]
    pub(crate) fn see(&mut self, frame: &Value) {
        let kind = frame["kind"].as_str().unwrap_or_default();
        let count = match self.0.get_mut(kind) {
            Some(count) => count,
            None => self.0.entry(kind.to_owned()).or_default(),
        };
        *count += 1;
        if *count <= FIRST || *count % EVERY == 0 {
            expect_none(server_frame(frame), frame);
        }
    }
}

/// Checks a client's frame that the gateway did as it said.
#[track_caller]
pub(crate) fn accepted(frame: &Value) {
    let kind = frame["type"].as_str().unwrap_or_default();
    expect_none(fault(&def(&format!("client.{kind}")), frame), frame);
}

/// Checks one exchange over HTTP: the answer, and the body that it grants.
#[track_caller]
pub(crate) fn exchange(method: &str, path: &str, body: Option<&Value>, status: u16, answer: &str) {
    let what = format!("{method} {path}: {status} {answer}");
    if let Err(fault) = checked_exchange(method, path, body, status, answer) {
        panic!("not as docs/openapi.json says: {fault}\n  {what:.2000}");
    }
}

#[track_caller]
fn expect_none(fault: Option<String>, frame: &Value) {
    if let Some(fault) = fault {
        panic!("not as docs/frames.schema.json says: {fault}\n  {:.2000}", frame.to_string());
    }
}

/// What is wrong with a frame of the server.
pub(crate) fn server_frame(frame: &Value) -> Option<String> {
    let kind = frame["kind"].as_str().unwrap_or_default();
    if frame.get("id").is_none() {
        return fault(&def(&format!("gateway.{kind}")), frame);
    }
    if frame.get("truncated").is_some() {
        return fault(&def("event.cut"), frame);
    }
    let provider = frame["provider"].as_str().unwrap_or_default();
    let passes = || JSONL.lock().unwrap_or_else(PoisonError::into_inner).contains(provider);
    let known = FRAMES["$defs"].get(format!("event.{kind}")).is_some();
    let fault_of_kind = match known {
        true => fault(&def(&format!("event.{kind}")), frame)?,
        false => format!("no event.{kind}"),
    };
    // The schema itself keeps what only the gateway may say out of what passes through.
    match passes() {
        true => {
            fault(&def("event.passthrough"), frame).map(|other| format!("{fault_of_kind}; {other}"))
        }
        false => Some(fault_of_kind),
    }
}

/// The place of a definition of frames.
pub(crate) fn def(name: &str) -> String {
    format!("frames.schema.json#/$defs/{name}")
}

/// What is wrong with a value, by the schema at this place.
pub(crate) fn fault(place: &str, value: &Value) -> Option<String> {
    let validator = match validator(place) {
        Ok(validator) => validator,
        Err(error) => return Some(error),
    };
    if validator.is_valid(value) {
        return None;
    }
    let mut text = format!("by {place}:");
    for error in validator.iter_errors(value).take(4) {
        write!(text, "\n  at \"{}\": {error:.600}", error.instance_path()).expect("a string");
    }
    Some(text)
}

fn validator(place: &str) -> Result<&'static Validator, String> {
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let validators = validators.get_or_insert_default();
    if let Some(found) = validators.get(place) {
        return Ok(found);
    }
    let options = jsonschema::options().with_draft(Draft::Draft202012).with_registry(&REGISTRY);
    let schema = json!({ "$ref": format!("{BASE}{place}") });
    let made = options.build(&schema).map_err(|error| format!("no schema {place}: {error}"))?;
    let made: &'static Validator = Box::leak(Box::new(made));
    validators.insert(place.to_owned(), made);
    Ok(made)
}

fn checked_exchange(
    method: &str,
    path: &str,
    body: Option<&Value>,
    status: u16,
    answer: &str,
) -> Result<(), String> {
    let path = path.split('?').next().unwrap_or_default();
    let method = match method {
        "HEAD" => "get".to_owned(),
        other => other.to_lowercase(),
    };
    let found = template(path);
    let operation = found.as_ref().and_then(|(name, item)| Some((name, item.get(&method)?)));
    let Some((name, operation)) = operation else {
        // Files of the page, or nothing that is documented: then it must be an error.
        let ours = path.starts_with("/api/") || found.is_some();
        return match (ours, status) {
            (false, _) => Ok(()),
            (true, 400..) => is_error(answer),
            (true, _) => Err("it is granted, and not documented".into()),
        };
    };
    let operation_at = format!("openapi.json#/paths/{}/{method}", escaped(name));
    let responses = &operation["responses"];
    let range = format!("{}XX", status / 100);
    let key = [status.to_string(), range].into_iter().find(|key| responses.get(key).is_some());
    let key = key.ok_or("this status is not documented")?;
    let response = &responses[&key];
    let (response, at) = match response["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.strip_prefix('#').ok_or("a response of this document")?;
            let response = OPENAPI.pointer(pointer).ok_or("a $ref that leads nowhere")?;
            (response, format!("openapi.json{reference}"))
        }
        None => (response, format!("{operation_at}/responses/{key}")),
    };
    if response["content"]["application/json"].is_object() && !answer.is_empty() {
        if let Ok(answer) = serde_json::from_str(answer) {
            let place = format!("{at}/content/application~1json/schema");
            fault(&place, &answer).map_or(Ok(()), Err)?;
        } else if response["content"].as_object().is_some_and(|types| types.len() == 1) {
            return Err("the answer is no JSON".into());
        }
    } else if response["content"].is_null() && !answer.is_empty() {
        return Err("a body where none is documented".into());
    }
    let Some(body) = body.filter(|_| status < 300) else { return Ok(()) };
    match operation["requestBody"]["content"]["application/json"].is_object() {
        true => {
            let place = format!("{operation_at}/requestBody/content/application~1json/schema");
            fault(&place, body).map_or(Ok(()), Err)
        }
        false => Ok(()),
    }
}

fn is_error(answer: &str) -> Result<(), String> {
    // An answer to HEAD.
    if answer.is_empty() {
        return Ok(());
    }
    let answer = serde_json::from_str(answer).map_err(|error| format!("no JSON: {error}"))?;
    fault("openapi.json#/components/schemas/Error", &answer).map_or(Ok(()), Err)
}

/// The path of the document that describes this one: that with the fewest parameters.
fn template(path: &str) -> Option<(&'static String, &'static Value)> {
    templates(path).min_by_key(|(name, _)| name.matches('{').count())
}

/// The methods that are documented for a path.
pub(crate) fn methods_at(path: &str) -> impl Iterator<Item = &'static String> {
    templates(path).flat_map(|(_, item)| item.as_object().expect("methods").keys())
}

fn templates(path: &str) -> impl Iterator<Item = (&'static String, &'static Value)> {
    let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
    let paths = OPENAPI["paths"].as_object().expect("paths");
    paths.iter().filter(move |(name, _)| {
        let names: Vec<&str> = name.split('/').collect();
        names.len() == segments.len()
            && names.iter().zip(&segments).all(|(name, one)| name.starts_with('{') || name == one)
    })
}

/// A key as a step of a JSON pointer in a URI.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D")
}
