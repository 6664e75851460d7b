//! Paths and queries: percent-encoding off, numbers checked. Must not know routes.

use crate::limits;
use crate::server::api::Problem;

/// The parameters of a query, each named once.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what follows the `?`.
    ///
    /// # Errors
    /// If it is badly encoded, or names a parameter twice.
    pub fn read(text: &str) -> Result<Self, Problem> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        let pairs: Vec<(String, String)> = pairs.collect::<Result<_, Problem>>()?;
        let mut names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return Err(Problem::bad_request("Give each parameter of the query once."));
        }
        Ok(Self(pairs))
    }

    /// A parameter; an empty one counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// How many items a page may have.
    ///
    /// # Errors
    /// If it is no number from 1.
    pub fn limit(&self) -> Result<usize, Problem> {
        let Some(text) = self.get("limit") else {
            return Ok(limits::PAGE_DEFAULT);
        };
        match text.parse::<usize>() {
            Ok(limit) if limit > 0 => Ok(limit.min(limits::PAGE_MAX)),
            _ => Err(Problem::field("limit must be a whole number from 1.")),
        }
    }

    /// `true` or `false`, if it is there.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(Problem::field(&format!("{name} must be true or false."))),
        }
    }
}

/// Takes the percent-encoding off.
///
/// # Errors
/// If it is no percent-encoded UTF-8.
pub fn decode(text: &str) -> Result<String, Problem> {
    let bad = || Problem::bad_request("The path or query is badly percent-encoded.");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|two| std::str::from_utf8(two).ok()).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_once() {
        assert_eq!(decode("a%3Ab%2525").expect("decoded"), "a:b%25");
        assert_eq!(decode("%e4%b8%96").expect("decoded"), "\u{4e16}");
        for bad in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_found_and_checked() {
        let query = Query::read("q=a+b%26c&limit=5&archived=true&empty=&flag").expect("read");
        assert_eq!(query.get("q"), Some("a b&c"));
        assert_eq!(query.limit().expect("a limit"), 5);
        assert_eq!(query.boolean("archived").expect("a flag"), Some(true));
        assert_eq!((query.get("empty"), query.get("flag"), query.get("none")), (None, None, None));
        for bad in ["limit=0", "limit=-1", "limit=abc", "limit=1.5"] {
            assert!(Query::read(bad).expect("read").limit().is_err(), "{bad}");
        }
        // Which of the two would count?
        assert!(Query::read("limit=1&q=x&limit=2").is_err());
        assert_eq!(Query::read("limit=99999").expect("read").limit().expect("a limit"), 1000);
    }
}
