//! Reads table.txt, whose head says how it is written.

/// One request, and what is to become of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    /// Of its answers: one, or several if it is several requests.
    pub(super) statuses: Vec<u16>,
    pub(super) keeps: Keeps,
    /// `error.code` of the last answer; empty for none.
    pub(super) code: String,
    pub(super) request: Vec<u8>,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    Open,
    Close,
    WebSocket,
}

/// What the table's words stand for.
pub(super) struct Words<'a> {
    pub(super) token: &'a str,
    pub(super) session: &'a str,
}

/// All rows.
pub(super) fn rows(words: &Words<'_>) -> Vec<Row> {
    let mut lines = include_str!("table.txt").lines();
    let mut rows = Vec::new();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        let name = name.unwrap_or_else(|| panic!("a row begins with [its name], not {line:?}"));
        let head = lines.next().unwrap_or_default();
        let parts: Vec<&str> = head.split(' ').collect();
        let [statuses, keeps, code] = parts[..] else { panic!("[{name}] has no answer: {head:?}") };
        let statuses = statuses.split(',').map(|one| one.parse().expect("a status")).collect();
        let keeps = match keeps {
            "open" => Keeps::Open,
            "close" => Keeps::Close,
            "ws" => Keeps::WebSocket,
            other => panic!("[{name}] keeps {other:?}"),
        };
        let text: String = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let request = bytes(&text, words);
        assert!(!request.is_empty(), "[{name}] sends nothing");
        let (name, code) = (name.to_owned(), if code == "-" { "" } else { code }.to_owned());
        rows.push(Row { name, statuses, keeps, code, request });
    }
    rows
}

/// A request as the table writes it.
fn bytes(text: &str, words: &Words<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '\\' => escaped(&rest[1..], &mut bytes),
            '$' => word(&rest[1..], words, &mut bytes),
            other => {
                assert!(other.is_ascii(), "other bytes are escaped: {text}");
                bytes.push(other as u8);
                &rest[1..]
            }
        };
    }
    bytes
}

fn escaped<'a>(rest: &'a str, bytes: &mut Vec<u8>) -> &'a str {
    let simple = match rest.as_bytes()[0] {
        b'r' => b'\r',
        b'n' => b'\n',
        b't' => b'\t',
        b'0' => 0,
        b'\\' => b'\\',
        b'x' => {
            bytes.push(u8::from_str_radix(&rest[1..3], 16).expect("two digits"));
            return &rest[3..];
        }
        other => panic!("no escape: {}", other as char),
    };
    bytes.push(simple);
    &rest[1..]
}

/// A word in capitals; a `$` that begins none is itself.
fn word<'a>(rest: &'a str, words: &Words<'_>, bytes: &mut Vec<u8>) -> &'a str {
    let length = rest.find(|c: char| !c.is_ascii_uppercase()).unwrap_or(rest.len());
    let (name, after) = rest.split_at(length);
    let arguments = || {
        let (inside, after) = after[1..].split_once(')').expect("a closing bracket");
        let (count, text) = inside.split_once(',').unwrap_or((inside, ""));
        (count.parse::<usize>().expect("a count"), text, after)
    };
    match name {
        "BEARER" => bytes.extend(format!("Authorization: Bearer {}", words.token).bytes()),
        "SESSION" => bytes.extend(words.session.bytes()),
        "REPEAT" => {
            let (count, text, after) = arguments();
            bytes.extend(text.repeat(count).bytes());
            return after;
        }
        "HEADERS" => {
            let (count, _, after) = arguments();
            (0..count).for_each(|n| bytes.extend(format!("X{n}: y\r\n").bytes()));
            return after;
        }
        "" => bytes.push(b'$'),
        other => panic!("no word: ${other}"),
    }
    after
}
