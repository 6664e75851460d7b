//! A strict reader of OpenMetrics text, version 1.0: it panics at whatever the specification does
//! not allow, and gives the samples.

use std::collections::{BTreeMap, BTreeSet};

/// What a scrape said.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    /// By name: type and samples.
    pub(super) families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
pub(super) struct Family {
    pub(super) kind: String,
    help: String,
    unit: Option<String>,
    /// In the order of the text: name, labels in order, value.
    pub(super) samples: Vec<(String, Vec<(String, String)>, f64)>,
}

impl Scrape {
    /// Reads a whole text.
    #[track_caller]
    pub(super) fn read(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        assert!(!body.contains("# EOF"), "one end");
        assert!(!body.contains('\r') && !body.contains("\n\n"), "no other line ends, no blanks");
        let mut scrape = Self::default();
        let mut current: Option<String> = None;
        for line in body.lines() {
            match line.strip_prefix("# ") {
                Some(rest) => scrape.describe(rest, &mut current),
                None => scrape.sample(line, current.as_deref().expect("a sample has a family")),
            }
        }
        for (name, family) in &scrape.families {
            family.check(name);
        }
        scrape
    }

    fn describe(&mut self, rest: &str, current: &mut Option<String>) {
        let mut words = rest.splitn(3, ' ');
        let (what, name) = (words.next().expect("a word"), words.next().expect("a name"));
        let value = words.next().unwrap_or_default().to_owned();
        assert!(is_name(name), "{rest}");
        if current.as_deref() != Some(name) {
            assert!(!self.families.contains_key(name), "{name} is told in one piece");
            self.families.insert(name.to_owned(), Family::default());
            *current = Some(name.to_owned());
        }
        let family = self.families.get_mut(name).expect("there");
        assert!(family.samples.is_empty(), "{rest}: what describes comes first");
        match what {
            "HELP" => {
                assert!(family.help.is_empty() && !value.is_empty(), "{rest}");
                family.help = value;
            }
            "TYPE" => {
                assert!(family.kind.is_empty(), "{rest}");
                let kinds = ["counter", "gauge", "histogram", "info"];
                assert!(kinds.contains(&value.as_str()), "{rest}");
                family.kind = value;
            }
            "UNIT" => {
                assert!(family.unit.is_none() && name.ends_with(&format!("_{value}")), "{rest}");
                family.unit = Some(value);
            }
            _ => panic!("{rest}"),
        }
    }

    fn sample(&mut self, line: &str, family: &str) {
        let at = line.find(['{', ' ']).expect("a name ends");
        let (name, rest) = line.split_at(at);
        assert!(is_name(name), "{line}");
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest, line),
            None => (Vec::new(), rest),
        };
        let value = rest.strip_prefix(' ').expect("a blank before the value");
        let value: f64 = if value == "+Inf" { f64::INFINITY } else { value.parse().expect(line) };
        let family = self.families.get_mut(family).expect("described");
        family.samples.push((name.to_owned(), labels, value));
    }

    /// The value of a sample whose labels are these; `None` if there is none.
    pub(super) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: BTreeSet<_> = labels.iter().copied().collect();
        let all = self.families.values().flat_map(|family| &family.samples);
        let mut found = all.filter(|(sample, given, _)| {
            sample == name
                && given.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<BTreeSet<_>>()
                    == wanted
        });
        found.next().map(|(_, _, value)| *value)
    }

    /// The sum of all samples of a name that have these labels among theirs.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = self.families.values().flat_map(|family| &family.samples);
        let fits = |given: &[(String, String)]| {
            labels.iter().all(|(k, v)| given.iter().any(|(name, value)| name == k && value == v))
        };
        all.filter(|(sample, given, _)| sample == name && fits(given)).map(|(.., v)| v).sum()
    }

    /// The values of a label of a metric.
    pub(super) fn values_of(&self, label: &str) -> BTreeSet<String> {
        let all = self.families.values().flat_map(|family| &family.samples);
        let labels = all.flat_map(|(_, labels, _)| labels);
        labels.filter(|(name, _)| name == label).map(|(_, value)| value.clone()).collect()
    }
}

impl Family {
    fn check(&self, name: &str) {
        assert!(!self.kind.is_empty() && !self.help.is_empty(), "{name} has a type and a help");
        assert!(!self.samples.is_empty(), "{name} has samples");
        assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}: a sample's suffix");
        let mut seen = BTreeSet::new();
        for (sample, labels, value) in &self.samples {
            let suffix = sample.strip_prefix(name).expect("a sample is of its family");
            let allowed: &[&str] = match self.kind.as_str() {
                "counter" => &["_total", "_created"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_count", "_sum", "_created"],
                _ => &["_info"],
            };
            assert!(allowed.contains(&suffix), "{sample} in a {}", self.kind);
            assert!(seen.insert((sample, labels)), "{sample} {labels:?} is told twice");
            assert!(!value.is_nan(), "{sample}");
            assert!(self.kind == "gauge" || *value >= 0.0, "{sample} {value}");
            assert!(self.kind != "info" || *value == 1.0, "{sample} {value}");
        }
        if self.kind == "histogram" {
            self.check_buckets(name);
        }
    }

    fn check_buckets(&self, name: &str) {
        let mut series: BTreeMap<Vec<(String, String)>, Vec<(f64, f64)>> = BTreeMap::new();
        for (sample, labels, value) in &self.samples {
            if sample.ends_with("_bucket") {
                let mut labels = labels.clone();
                let at = labels.iter().position(|(name, _)| name == "le").expect("a bucket's end");
                let (_, le) = labels.remove(at);
                let le = if le == "+Inf" { f64::INFINITY } else { le.parse().expect("a number") };
                series.entry(labels).or_default().push((le, *value));
            }
        }
        for (labels, buckets) in series {
            let rising =
                buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            assert!(rising, "{name} {labels:?}: {buckets:?}");
            let last = buckets.last().expect("buckets");
            assert!(last.0.is_infinite(), "{name} {labels:?} ends with +Inf");
            let of = |suffix: &str| {
                let name = format!("{name}{suffix}");
                self.samples.iter().find(|(s, l, _)| *s == name && *l == labels).expect("there").2
            };
            assert_eq!(of("_count"), last.1, "{name} {labels:?}");
            assert!(of("_sum") >= 0.0);
        }
    }
}

/// Labels up to the brace that ends them, and what follows it.
fn labels<'a>(mut rest: &'a str, line: &str) -> (Vec<(String, String)>, &'a str) {
    let mut labels: Vec<(String, String)> = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect(line);
        assert!(is_name(name) && !name.contains(':') && !name.starts_with("__"), "{line}");
        assert!(labels.iter().all(|(known, _)| known != name), "{line}: {name} twice");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect(line) {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next().expect(line).1 {
                    'n' => value.push('\n'),
                    other @ ('"' | '\\') => value.push(other),
                    other => panic!("{line}: \\{other}"),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, rest.strip_prefix('}').expect(line)),
        }
    }
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(word)
}
