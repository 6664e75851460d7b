//! Reading single values: durations, addresses, hosts, URLs, paths.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use ipnet::IpNet;

/// No duration is longer: a hundred years, which leaves room for sums.
pub(super) const DURATION_MS_MAX: i64 = 100 * 365 * 86_400_000;

/// Milliseconds of "300s", "10m", "1h30m". Empty and "0" are 0.
pub(super) fn duration_ms(text: &str) -> Result<i64, String> {
    let help = || format!("must be a duration such as \"300s\", \"10m\" or \"1h\", not \"{text}\"");
    let mut rest = text.trim();
    if rest.is_empty() || rest == "0" {
        return Ok(0);
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at(letters);
        let number: i64 = number.parse().map_err(|_| help())?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(help()),
        };
        total = number
            .checked_mul(unit)
            .and_then(|ms| total.checked_add(ms))
            .filter(|ms| *ms <= DURATION_MS_MAX)
            .ok_or_else(|| "is longer than a hundred years".to_owned())?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// An address with a port.
pub(super) fn bind(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "must be an IP address and a port, such as \"127.0.0.1:7878\" or \"[::1]:7878\", not \
             \"{text}\""
        )
    })
}

/// A host as requests name it: no scheme, no path.
pub(super) fn host(text: &str) -> Result<String, String> {
    let plain = !text.is_empty()
        && !text.contains("://")
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\\".contains(&b));
    if plain {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("must hold host names such as \"box.example.org\", not \"{text}\""))
    }
}

/// The name of a header; empty is none.
pub(super) fn header(text: &str) -> Result<Option<HeaderName>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = HeaderName::from_bytes(text.as_bytes());
    // Browsers set these themselves.
    let free = |name: &HeaderName| ![AUTHORIZATION, COOKIE, HOST, ORIGIN].contains(name);
    name.ok().filter(free).map(Some).ok_or_else(|| {
        format!("must be the name of a header such as \"Remote-User\", not \"{text}\"")
    })
}

/// An address, or a network as `ADDRESS/BITS`.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| {
        format!("must hold addresses or networks such as \"10.0.0.2/32\", not \"{text}\"")
    })?;
    if network.prefix_len() == 0 {
        return Err(format!("must not hold \"{text}\", which is everybody"));
    }
    Ok(network.trunc())
}

/// What browsers see: empty, or an http or https URL of a host and perhaps a path.
pub(super) fn public_url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let help =
        || format!("must be a URL such as \"https://agents.example.org/sub/path\", not \"{text}\"");
    let uri: http::Uri = text.parse().map_err(|_| help())?;
    let authority = uri.authority().ok_or_else(help)?;
    let good = matches!(uri.scheme_str(), Some("http" | "https"))
        && !authority.host().is_empty()
        && !authority.as_str().contains('@')
        && uri.query().is_none()
        && !text.contains('#');
    if good { Ok(text.trim_end_matches('/').to_owned()) } else { Err(help()) }
}

/// Replaces a leading `~`, and wants the result to be absolute.
pub(super) fn expand_roots(roots: &mut [PathBuf], home: Option<&Path>) -> Result<(), String> {
    if roots.is_empty() {
        return Err("is empty, so that no session could live anywhere: name a directory".into());
    }
    for root in roots {
        let expanded = expand(root, home)?;
        if !expanded.is_absolute() {
            return Err(format!(
                "must hold absolute paths, or ones that begin with \"~/\", not {:?}",
                root.display()
            ));
        }
        *root = expanded;
    }
    Ok(())
}

/// A path whose first part is `~` below the home directory.
pub(super) fn expand(path: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    match path.strip_prefix("~") {
        Ok(rest) => match home {
            // Joining an empty path would add a slash.
            Some(home) if rest.as_os_str().is_empty() => Ok(home.to_owned()),
            Some(home) => Ok(home.join(rest)),
            None => Err("begins with \"~\", but HOME is not set: write the whole path".into()),
        },
        Err(_) => Ok(path.to_owned()),
    }
}

/// How many letters must be changed, added or left out to make `b` of `a`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            let changed = diagonal + usize::from(x != *y);
            row[j + 1] = changed.min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

/// The candidate that differs least; of equals the first.
pub(super) fn nearest(wrong: &str, known: impl Iterator<Item = String>) -> String {
    // A key of a thousand letters is as far from all of them; it need not cost a second.
    let wrong: String = wrong.chars().take(200).collect();
    known.min_by_key(|known| distance(&wrong, known)).unwrap_or_default()
}
