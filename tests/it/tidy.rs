//! The rules of the code base, checked: who may use whom, how long a file may be, no sleeping in
//! tests, no paths of the machine it was written on.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the bottom up: each uses only itself and those before it.
const MODULES: [&str; 14] = [
    "sync", "limits", "metrics", "run", "protocol", "provider", "keeper", "store", "registry",
    "oracle", "notify", "server", "web", "cli",
];

/// Files above this, the tests at their end not counted, are to be split.
const LINES_MAX: usize = 600;
/// Files that may be longer, and how long: the vocabulary of events is one list, read like a
/// table; the others wait to be split and may not grow.
const LONGER: [(&str, usize); 3] =
    [("src/run/event.rs", 700), ("src/cli/watch.rs", 640), ("src/oracle/machine/mod.rs", 740)];

struct Source {
    /// Relative to the project, with forward slashes.
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below the project's folder `from` that end in one of `endings`.
fn files(from: &str, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(from)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, "target" | ".git") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                // Seeds of fuzzers need not be UTF-8.
                let bytes = fs::read(&path).expect("a readable file");
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let path = path.strip_prefix(root()).expect("found below it");
                found.push(Source { path: path.display().to_string(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "nothing found below {from}");
    found
}

/// The code of a line: what stands before a comment. Good enough for paths, which stand in no
/// string of ours.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The names that follow `prefix` in the code, each with its line's number; of a group,
/// `crate::{a, b::c}`, every member.
fn names_after(text: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut code_only = String::with_capacity(text.len());
    for line in text.lines() {
        code_only.push_str(code(line));
        code_only.push('\n');
    }
    let mut found = Vec::new();
    for (at, _) in code_only.match_indices(prefix) {
        let word_before = code_only[..at].chars().next_back();
        if word_before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code_only[..at].lines().count().max(1);
        let rest = &code_only[at + prefix.len()..];
        let members = match rest.strip_prefix('{') {
            Some(group) => group_members(group),
            None => vec![rest],
        };
        for member in members {
            let name: String = member
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if !name.is_empty() {
                found.push((line, name));
            }
        }
    }
    found
}

/// The top-level members of a group whose `{` was just passed.
fn group_members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members
}

fn rank(module: &str) -> Option<usize> {
    MODULES.iter().position(|known| *known == module)
}

/// The module of a file below `src`; `None` for the crate's root files.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let name = inside.split('/').next()?.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then_some(name)
}

fn direction_errors(source: &Source) -> Vec<String> {
    let Some(module) = module_of(&source.path) else { return Vec::new() };
    let Some(own) = rank(module) else {
        return vec![format!("{}: `{module}` is not in the table of modules", source.path)];
    };
    let mut errors = Vec::new();
    // A file's tests, at its end, may use what all tools share.
    let code = source.text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    let code = code.split("\n#[cfg(all(test").next().unwrap_or_default();
    for (line, used) in names_after(code, "crate::") {
        match rank(&used) {
            Some(rank) if rank <= own => {}
            Some(_) => errors.push(format!("{}:{line}: {module} uses {used}", source.path)),
            // Macros and the crate's root items.
            None => {}
        }
    }
    errors
}

#[test]
fn modules_use_only_those_above_them() {
    let errors: Vec<String> = files("src", &[".rs"]).iter().flat_map(direction_errors).collect();
    assert!(errors.is_empty(), "against the table of architecture.md:\n{}", errors.join("\n"));
}

#[test]
fn the_direction_check_finds_what_it_should() {
    let check = |text: &str| {
        let source = Source { path: "src/store/writer.rs".into(), text: text.into() };
        direction_errors(&source).len()
    };
    assert_eq!(check("use crate::run::id::RunId; // crate::server is fine here\n"), 0);
    assert_eq!(check("use crate::server::http;\n"), 1);
    assert_eq!(check("use crate::{\n    run::{id, event},\n    registry::Feed,\n};\n"), 1);
    assert_eq!(check("fn f() -> crate::cli::Flags {}\n"), 1);
    assert_eq!(check("use mycrate::server;\n"), 0);
}

#[test]
fn no_dialect_knows_another() {
    let mut dialects: Vec<String> = Vec::new();
    let sources = files("src/provider", &[".rs"]);
    let dialect = |path: &str| {
        let inside = path.strip_prefix("src/provider/").expect("found below it");
        inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
    };
    for source in &sources {
        let name = dialect(&source.path);
        if !matches!(name.as_str(), "mod" | "jsonrpc") && !dialects.contains(&name) {
            dialects.push(name);
        }
    }
    let mut errors = Vec::new();
    for source in &sources {
        let own = dialect(&source.path);
        // `mod` chooses the dialect; `demo` is `jsonl` spoken by this binary.
        if own == "mod" {
            continue;
        }
        let mut used = names_after(&source.text, "crate::provider::");
        if source.path.matches('/').count() == 2 {
            used.extend(names_after(&source.text, "super::"));
        }
        for (line, name) in used {
            if name != own && dialects.contains(&name) {
                errors.push(format!("{}:{line}: {own} uses {name}", source.path));
            }
        }
    }
    assert!(errors.is_empty(), "dialects know only what they share:\n{}", errors.join("\n"));
}

#[test]
fn each_foreign_thing_has_one_place() {
    // What may stand only below a folder, or in one file.
    let places = [
        ("rusqlite", vec!["src/store"]),
        ("WebSocket<", vec!["src/server/connection", "src/server/tests", "src/cli"]),
        ("clap::", vec!["src/cli"]),
        ("httparse", vec!["src/server", "src/cli"]),
    ];
    let mut errors = Vec::new();
    for source in files("src", &[".rs"]) {
        for (thing, allowed) in &places {
            let used = source.text.lines().position(|line| code(line).contains(thing));
            if let Some(line) = used
                && !allowed.iter().any(|place| source.path.starts_with(place))
            {
                errors.push(format!("{}:{}: {thing}", source.path, line + 1));
            }
        }
    }
    assert!(errors.is_empty(), "out of its place:\n{}", errors.join("\n"));
}

#[test]
fn files_are_short_enough_to_read() {
    let mut errors = Vec::new();
    for source in files("src", &[".rs"]) {
        let tests = ["\n#[cfg(test)]", "\n#[cfg(all(test"];
        let end = tests.iter().filter_map(|tests| source.text.find(tests)).min();
        let lines = source.text[..end.unwrap_or(source.text.len())].lines().count();
        let longer = LONGER.iter().find(|(path, _)| *path == source.path);
        if lines > longer.map_or(LINES_MAX, |(_, max)| *max) {
            errors.push(format!("{}: {lines} lines", source.path));
        }
    }
    assert!(errors.is_empty(), "more than {LINES_MAX} lines:\n{}", errors.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is() {
    let mut errors = Vec::new();
    for source in files("src", &[".rs"]).into_iter().chain(files("tests", &[".rs"])) {
        // The test module of a file beside it belongs to that file.
        let of_another = source.path.starts_with("src/") && source.path.contains("tests");
        if !of_another && !source.text.starts_with("//! ") {
            errors.push(source.path);
        }
    }
    assert!(errors.is_empty(), "no `//!` in the first line:\n{}", errors.join("\n"));
}

#[test]
fn tests_wait_for_conditions_in_one_helper_only() {
    // Put together here, so that this file does not hold the word.
    let word = ["sleep", "("].concat();
    let mut errors = Vec::new();
    let mut helpers = 0;
    for source in files("tests", &[".rs"]) {
        for (at, line) in source.text.lines().enumerate() {
            if !code(line).contains(&word) {
                continue;
            }
            if source.path == "tests/it/support/mod.rs" {
                helpers += 1;
            } else {
                errors.push(format!("{}:{}", source.path, at + 1));
            }
        }
    }
    for source in files("src", &[".rs"]) {
        let tests = source.text.find("#[cfg(test)]").or_else(|| source.text.find("\nmod tests"));
        let Some(tests) = tests else { continue };
        if source.text[tests..].lines().any(|line| code(line).contains(&word)) {
            errors.push(source.path);
        }
    }
    assert!(errors.is_empty(), "tests wait with `support::eventually`:\n{}", errors.join("\n"));
    assert_eq!(helpers, 1, "`eventually` is the one that does");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let mut needles = vec![format!("{}/", root().display())];
    if let Some(home) = std::env::var_os("HOME").and_then(|home| home.into_string().ok())
        && home.len() > 1
    {
        needles.push(format!("{home}/"));
    }
    let mut errors = Vec::new();
    for source in files(".", &[".rs", ".md", ".toml", ".json", ".html", ".js", ".css", ".yml"]) {
        for (at, line) in source.text.lines().enumerate() {
            if needles.iter().any(|needle| line.contains(needle)) {
                errors.push(format!("{}:{}", source.path, at + 1));
            }
        }
    }
    assert!(errors.is_empty(), "paths of this machine:\n{}", errors.join("\n"));
}
