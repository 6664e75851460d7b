//! The documentation of the configuration, against the table of keys.

use std::fs;
use std::path::Path;

use reattach::cli::config::KEYS;

#[test]
fn the_documentation_names_every_key_with_its_variable_and_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = fs::read_to_string(path).expect("the page is there");
    for key in KEYS {
        let row = text
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", key.path())))
            .unwrap_or_else(|| panic!("no row for {}", key.path()));
        assert!(row.contains(&format!("| `{}` |", key.env())), "{} has no variable", key.path());
        assert!(row.contains(&format!("| `{}` |", key.default)), "{}: default", key.path());
    }
    let rows = text.lines().filter(|line| line.contains("| `REATTACH_")).count();
    let others = text.lines().filter(|line| line.starts_with("| `REATTACH_")).count();
    assert_eq!(rows - others, KEYS.len(), "a row for a key that is none");
}
