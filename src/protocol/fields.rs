//! Reading the fields of a JSON object that somebody else wrote, with errors that say what to do.
//!
//! An optional field that is absent and one that is `null` mean the same. Must not know which
//! message it reads.

use serde_json::{Map, Value};

use crate::limits;

/// A field that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    /// Which, as its path in the message.
    pub field: &'static str,
    /// What it has to be: completes "`field` must be ...".
    pub must_be: &'static str,
}

impl std::fmt::Display for BadField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} must be {}.", self.field, self.must_be)
    }
}

impl std::error::Error for BadField {}

/// A JSON object that gives each of its fields away once.
#[derive(Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The object, or `None` if the value is something else.
    #[must_use]
    pub fn of(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self(map)),
            _ => None,
        }
    }

    /// The field whatever it is; `None` if it is absent or `null`.
    pub fn any(&mut self, field: &'static str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there, `null` or not.
    #[must_use]
    pub fn has(&self, field: &'static str) -> bool {
        self.0.contains_key(field)
    }

    /// A string of any length.
    ///
    /// # Errors
    /// If it is there and no string.
    pub fn string(&mut self, field: &'static str) -> Result<Option<String>, BadField> {
        match self.any(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(BadField { field, must_be: "a string" }),
        }
    }

    /// A string with something other than white space in it.
    ///
    /// # Errors
    /// If it is missing, no string, or blank.
    pub fn text(&mut self, field: &'static str) -> Result<String, BadField> {
        match self.any(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
            _ => Err(BadField { field, must_be: "a string that is not blank" }),
        }
    }

    /// An id: see `id`.
    ///
    /// # Errors
    /// If it is missing, no string, blank or too long.
    pub fn id(&mut self, field: &'static str) -> Result<String, BadField> {
        id(field, &self.text(field)?)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// If it is missing or anything else.
    pub fn boolean(&mut self, field: &'static str) -> Result<bool, BadField> {
        self.optional_boolean(field)?.ok_or(BadField { field, must_be: "true or false" })
    }

    /// `true` or `false`, if it is there.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn optional_boolean(&mut self, field: &'static str) -> Result<Option<bool>, BadField> {
        match self.any(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(BadField { field, must_be: "true or false" }),
        }
    }

    /// An object, if it is there. Here `null` is not the same as absent.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn object(&mut self, field: &'static str) -> Result<Option<Map<String, Value>>, BadField> {
        match self.0.remove(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(BadField { field, must_be: "an object" }),
        }
    }

    /// An array with something in it.
    ///
    /// # Errors
    /// If it is missing, empty or anything else.
    pub fn items(&mut self, field: &'static str) -> Result<Vec<Value>, BadField> {
        match self.any(field) {
            Some(Value::Array(items)) if !items.is_empty() => Ok(items),
            _ => Err(BadField { field, must_be: "an array that is not empty" }),
        }
    }
}

/// An id as somebody named it: trimmed, then 1 to `limits::ID_BYTES_MAX` bytes long.
///
/// # Errors
/// If it is blank or too long.
pub fn id(field: &'static str, named: &str) -> Result<String, BadField> {
    let trimmed = named.trim();
    if (1..=limits::ID_BYTES_MAX).contains(&trimmed.len()) {
        return Ok(trimmed.to_owned());
    }
    Err(BadField { field, must_be: "an id, 1 to 512 bytes long" })
}
