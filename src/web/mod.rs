//! The page, embedded: a table of files.
//!
//! The page is plain HTML, CSS and JavaScript modules, without a framework or a build step. It is
//! a client like any other. Must not know the server's insides.

use sha2::{Digest as _, Sha256};

/// One file of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub bytes: &'static [u8],
    /// The value of `ETag`, quoted: strong, since it is made of the bytes.
    pub etag: String,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// By path below the base path, without a query.
const FILES: [(&str, &str, &[u8]); 12] = [
    ("/", HTML, include_bytes!("index.html")),
    ("/icon.svg", IMAGE, include_bytes!("icon.svg")),
    ("/app.js", SCRIPT, include_bytes!("app.js")),
    ("/follow.js", SCRIPT, include_bytes!("follow.js")),
    ("/card.js", SCRIPT, include_bytes!("card.js")),
    ("/markdown.js", SCRIPT, include_bytes!("markdown.js")),
    ("/parts.js", SCRIPT, include_bytes!("parts.js")),
    ("/queue.js", SCRIPT, include_bytes!("queue.js")),
    ("/rest.js", SCRIPT, include_bytes!("rest.js")),
    ("/socket.js", SCRIPT, include_bytes!("socket.js")),
    ("/style.css", STYLE, include_bytes!("style.css")),
    ("/view.js", SCRIPT, include_bytes!("view.js")),
];

/// The file at a path such as `/` or `/app.js`. None of them is a secret.
#[must_use]
pub fn asset(path: &str) -> Option<Asset> {
    let (_, content_type, bytes) = FILES.iter().find(|(at, ..)| *at == path)?;
    let mut etag = String::from("\"");
    for byte in &Sha256::digest(bytes)[..16] {
        etag.push_str(&format!("{byte:02x}"));
    }
    etag.push('"');
    Some(Asset { content_type, bytes, etag })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> &'static str {
        let asset = asset(path).expect(path);
        std::str::from_utf8(asset.bytes).expect("UTF-8")
    }

    #[test]
    fn only_the_pages_files_are_there() {
        for (path, ..) in FILES {
            assert!(asset(path).is_some(), "{path}");
        }
        for path in ["", "/index.html", "/app.js/", "//app.js", "/../Cargo.toml", "/api/v1/x"] {
            assert_eq!(asset(path), None, "{path}");
        }
    }

    #[test]
    fn each_file_has_a_tag_of_its_own() {
        let mut tags: Vec<String> =
            FILES.iter().map(|(path, ..)| asset(path).expect(path).etag).collect();
        assert!(tags.iter().all(|tag| tag.len() == 34 && tag.starts_with('"')), "{tags:?}");
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), FILES.len());
    }

    /// `Content-Security-Policy: default-src 'self'` forbids what is written into the page.
    #[test]
    fn the_page_needs_no_exception_from_its_policy() {
        let page = text("/");
        for inline in
            ["<style", "style=", " onclick", " onload", "javascript:", "http://", "https://"]
        {
            assert!(!page.contains(inline), "{inline}");
        }
        for script in page.split("<script").skip(1) {
            assert!(script.contains(" src=\"") && script.contains("></script>"), "{script}");
        }
        for (path, ..) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            for made in ["eval(", "new Function", ".style.", "setAttribute('style'"] {
                assert!(!text(path).contains(made), "{path}: {made}");
            }
        }
    }

    /// What an agent says is text and never markup.
    #[test]
    fn no_script_makes_markup() {
        for (path, ..) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            for markup in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "createContextualFragment",
                "srcdoc",
            ] {
                assert!(!text(path).contains(markup), "{path}: {markup}");
            }
        }
    }

    /// Under a sub-path `/x` would be another server's.
    #[test]
    fn all_addresses_are_relative() {
        for (path, ..) in FILES {
            for absolute in
                ["src=\"/", "href=\"/", "from '/", "'/api", "`/api", "url(/", "url(http"]
            {
                assert!(!text(path).contains(absolute), "{path}: {absolute}");
            }
        }
    }

    #[test]
    fn every_element_that_the_script_asks_for_is_there() {
        let page = text("/");
        for asked in text("/app.js").split("$('").skip(1) {
            let id = asked.split('\'').next().expect("an id");
            assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
        }
    }

    #[test]
    fn modules_name_files_that_are_there() {
        for (path, ..) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            for import in text(path).split("from './").skip(1) {
                let name = import.split('\'').next().expect("a name");
                assert!(asset(&format!("/{name}")).is_some(), "{path}: {name}");
            }
        }
    }
}
