//! Text from agents, made fit for a terminal: colours of ours, no escapes of theirs.
//!
//! Pure. An agent can print anything, and a terminal obeys escapes: they can change its title,
//! write the clipboard or forge what was on screen. So nothing of an agent's reaches a terminal
//! but text, and colours where colours are wanted. Must not know what an event is.

use std::fmt::Write as _;

/// Whether to write colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Text only.
    Plain,
    /// With colours.
    Colour,
}

impl Paint {
    /// Bold.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.sgr("1", text)
    }

    /// Less bright.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.sgr("2", text)
    }

    /// Red.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.sgr("31", text)
    }

    /// Green.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.sgr("32", text)
    }

    /// Yellow.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.sgr("33", text)
    }

    /// Cyan.
    #[must_use]
    pub fn cyan(self, text: &str) -> String {
        self.sgr("36", text)
    }

    /// What ends the colours that a line may have left on.
    #[must_use]
    pub fn reset_after(self, line: &str) -> &'static str {
        if self == Self::Colour && line.contains('\u{1b}') { "\u{1b}[0m" } else { "" }
    }

    /// Each line is painted by itself, so that lines can be indented or cut afterwards.
    fn sgr(self, code: &str, text: &str) -> String {
        if self == Self::Plain || text.is_empty() {
            return text.to_owned();
        }
        let mut painted = String::with_capacity(text.len() + 16);
        for line in text.split_inclusive('\n') {
            let (body, end) = match line.strip_suffix('\n') {
                Some(body) => (body, "\n"),
                None => (line, ""),
            };
            if body.is_empty() {
                painted.push_str(end);
            } else {
                write!(painted, "\u{1b}[{code}m{body}\u{1b}[0m{end}").ok();
            }
        }
        painted
    }
}

/// The text without what a terminal would obey. With `Paint::Colour` the agent's own colours
/// (SGR sequences) stay; all else of C0 (but newline and tab), C1, escapes and the characters that
/// reorder text are dropped, and a carriage return starts the line anew as a terminal would.
#[must_use]
pub fn clean(text: &str, paint: Paint) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '\u{1b}' {
            let (len, is_sgr) = escape(rest);
            if is_sgr && paint == Paint::Colour {
                clean.push_str(&rest[..len]);
            }
            rest = &rest[len..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' | '\t' => clean.push(c),
            // A progress bar draws itself over and over; what was drawn last stays.
            '\r' if !rest.starts_with('\n') && !rest.is_empty() => {
                let line = clean.rfind('\n').map_or(0, |at| at + 1);
                clean.truncate(line);
            }
            c if c.is_control() || reorders(c) => {}
            c => clean.push(c),
        }
    }
    clean
}

/// The characters that make text look as if it stood in another order.
const fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How long the escape sequence at the beginning of `text` is, and whether it only sets colours.
fn escape(text: &str) -> (usize, bool) {
    let bytes = text.as_bytes();
    match bytes.get(1) {
        Some(b'[') => {
            let end = bytes[2..].iter().position(|b| !matches!(b, 0x20..=0x3f));
            match end.map(|at| at + 2) {
                Some(at) if matches!(bytes[at], 0x40..=0x7e) => {
                    let colours =
                        bytes[2..at].iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
                    (at + 1, colours && bytes[at] == b'm')
                }
                // Not a sequence: what follows is text.
                Some(at) => (at, false),
                None => (bytes.len(), false),
            }
        }
        // Strings (titles, clipboard, device control) last until BEL or ESC \.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let end = bytes[2..].iter().position(|b| matches!(b, 0x07 | 0x1b));
            match end.map(|at| at + 2) {
                Some(at) if bytes[at] == 0x1b && bytes.get(at + 1) == Some(&b'\\') => {
                    (at + 2, false)
                }
                Some(at) if bytes[at] == 0x1b => (at, false),
                Some(at) => (at + 1, false),
                None => (bytes.len(), false),
            }
        }
        Some(b) if b.is_ascii() && !b.is_ascii_control() => (2, false),
        _ => (1, false),
    }
}

/// A unified diff, with its lines in their colours.
#[must_use]
pub fn diff(diff: &str, paint: Paint) -> String {
    let lines = clean(diff, Paint::Plain);
    let lines: Vec<String> = lines
        .lines()
        .map(|line| {
            let painted = match line.as_bytes() {
                [b'+', b'+', b'+', b' ', ..] | [b'-', b'-', b'-', b' ', ..] => paint.bold(line),
                [b'@', b'@', ..] => paint.cyan(line),
                [b'+', ..] => paint.green(line),
                [b'-', ..] => paint.red(line),
                _ => line.to_owned(),
            };
            format!("    {painted}")
        })
        .collect();
    lines.join("\n")
}

/// Text on one line of at most `chars` characters.
#[must_use]
pub fn one_line(text: &str, chars: usize) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > chars * 4 {
            break;
        }
    }
    match line.char_indices().nth(chars) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

/// A duration as people say it.
#[must_use]
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        3_600_000..86_400_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

/// How long ago something was, in the largest unit.
#[must_use]
pub fn age(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{} s", ms / 1000),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..86_400_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// How many of something: `1 value`, `2 values`.
#[must_use]
pub fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// A number of bytes in the largest unit, in powers of 1000.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{}.{} KB", bytes / 1000, bytes % 1000 / 100),
        1_000_000..1_000_000_000 => {
            format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
        }
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes % 1_000_000_000 / 100_000_000),
    }
}

/// Rows as columns that line up; the last one is as long as it is.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            write!(line, "{cell:<width$}  ").ok();
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_agent_cannot_speak_to_the_terminal() {
        for (said, plain) in [
            ("\u{1b}]0;title\u{7}text", "text"),
            ("\u{1b}]52;c;aGk=\u{1b}\\text", "text"),
            ("a\u{1b}[2Jb\u{1b}[1;1Hc", "abc"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{9b}31mx", "31mx"),
            ("a\u{8}\u{8}b\u{7}", "ab"),
            ("user\u{202e}txt.exe", "usertxt.exe"),
            ("\u{1b}Pdevice\u{1b}\\x", "x"),
            ("\u{1b}[", ""),
            ("\u{1b}", ""),
            ("\u{1b}c", ""),
            ("\u{1b}ä", "ä"),
            ("10%\r20%\r30%", "30%"),
            ("line\r\nnext", "line\nnext"),
            ("tab\tstays\n", "tab\tstays\n"),
        ] {
            assert_eq!(clean(said, Paint::Plain), plain, "{said:?}");
        }
    }

    #[test]
    fn colours_stay_where_colours_are_wanted() {
        let said = "\u{1b}[1;31mred\u{1b}[0m\u{1b}[2J";
        assert_eq!(clean(said, Paint::Colour), "\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(clean(said, Paint::Plain), "red");
    }

    #[test]
    fn lines_are_cut_at_characters() {
        assert_eq!(one_line("  a \n b  ", 10), "a b");
        assert_eq!(one_line("äöüß", 3), "äöü...");
    }

    #[test]
    fn durations_read_well() {
        let all = [0, 999, 1000, 2149, 61_000, 7_261_000, 90_000_000].map(duration);
        assert_eq!(all, ["0 ms", "999 ms", "1.0 s", "2.1 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn sizes_read_well() {
        let all = [0, 999, 1000, 65_540, 4_194_304, 67_108_864, 2_147_483_648].map(bytes);
        assert_eq!(all, ["0 B", "999 B", "1.0 KB", "65.5 KB", "4.1 MB", "67.1 MB", "2.1 GB"]);
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".into(), "long".into()], vec!["bcd".into(), "x".into()]];
        assert_eq!(table(&["ID", "N"], &rows), "ID   N\na    long\nbcd  x\n");
    }

    #[test]
    fn diffs_have_colours() {
        let shown = diff("--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\n z", Paint::Colour);
        assert!(shown.contains("\u{1b}[31m-x\u{1b}[0m"), "{shown:?}");
        assert!(shown.contains("\u{1b}[32m+y\u{1b}[0m"), "{shown:?}");
        assert!(shown.contains("\u{1b}[1m--- a\u{1b}[0m"), "{shown:?}");
        assert!(!diff("-x\n+y", Paint::Plain).contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn nothing_but_colours_gets_through(said in "[\\x00-\\x1f\\x1b\\[\\]m0-9;a-zä\u{9b}\u{202e}]{0,40}") {
            let plain = clean(&said, Paint::Plain);
            prop_assert!(
                plain.chars().all(|c| matches!(c, '\n' | '\t') || !c.is_control()),
                "{:?}", plain
            );
            let coloured = clean(&said, Paint::Colour);
            for part in coloured.split('\u{1b}').skip(1) {
                let end = part.find('m');
                prop_assert!(part.starts_with('[') && end.is_some(), "{:?}", coloured);
                prop_assert!(
                    part[1..end.unwrap_or(1)].chars().all(|c| c.is_ascii_digit() || ";:".contains(c)),
                    "{:?}", coloured
                );
            }
        }
    }
}
