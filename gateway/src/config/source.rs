//! What is written, each value with its place, so that every mistake can say where it is.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::tenant::PerMinute;

/// How much of a wrong value a mistake shows, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// Files that settings name or are in are refused beyond this size, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A file's path, `environment` or `command line`.
    pub source: Arc<str>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
    /// The full key (`limits.connections`), variable or flag; empty: the file as a whole.
    pub key: String,
}

/// One thing that is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What; ends neither in a full stop nor in a new line.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { source, line, key } = &self.place;
        f.write_str(source)?;
        if let Some(line) = line {
            write!(f, ":{line}")?;
        }
        if !key.is_empty() {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// All that is wrong, in the order in which it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mistake| writeln!(f, "{mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// What has come up while reading.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Report {
    pub(super) fn mistake(&mut self, place: Place, problem: impl Into<String>) {
        self.mistakes.push(Mistake { place, problem: problem.into() });
    }

    pub(super) fn warn(&mut self, place: &Place, text: impl fmt::Display) {
        let Place { source, key, .. } = place;
        self.warnings.push(if key.is_empty() {
            format!("{source}: {text}")
        } else {
            format!("{source}: {key}: {text}")
        });
    }
}

/// A file that is TOML.
pub(super) struct Document<'a> {
    source: Arc<str>,
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// Reads the text; reports all errors of syntax, and then there is no document.
    pub(super) fn parse(source: &str, text: &'a str, report: &mut Report) -> Option<Document<'a>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| line_of(text, span.start));
            report.mistake(Place { source: source.into(), line, key: String::new() }, error.message());
        }
        errors.is_empty().then(|| Document { source: source.into(), text, table })
    }

    pub(super) fn root(&self) -> Section<'_> {
        let at = Place { source: Arc::clone(&self.source), line: None, key: String::new() };
        Section { text: self.text, table: self.table.get_ref(), at, known: Vec::new() }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// A table of a file. Every key asked for is known; [`finish`](Section::finish) reports the others.
pub(super) struct Section<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    pub(super) at: Place,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// What is written under this key.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Given<'a>> {
        self.known.push(key);
        self.iter().find(|(name, _)| *name == key).map(|(_, given)| given)
    }

    /// All keys with what is written there; for tables whose keys are names. Nothing is left unknown.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, Given<'a>)> + use<'a> {
        let (text, at) = (self.text, self.at.clone());
        self.table.iter().map(move |(name, value)| {
            let key =
                if at.key.is_empty() { name.get_ref().to_string() } else { format!("{}.{}", at.key, name.get_ref()) };
            let at = Place { source: Arc::clone(&at.source), line: Some(line_of(text, name.span().start)), key };
            (&**name.get_ref(), Given { at, text, value: Value::Toml(value.get_ref()), secret: false })
        })
    }

    /// The table under this key.
    pub(super) fn section(&mut self, key: &'static str, report: &mut Report) -> Option<Section<'a>> {
        self.get(key)?.section(report)
    }

    /// The tables under `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str, report: &mut Report) -> Vec<Section<'a>> {
        let Some(given) = self.get(key) else { return Vec::new() };
        given.items(report).into_iter().filter_map(|item| item.section(report)).collect()
    }

    /// The text under this key.
    pub(super) fn string(&mut self, key: &'static str, report: &mut Report) -> Option<String> {
        self.get(key)?.string(report)
    }

    /// The texts in the array under this key, each with its place.
    pub(super) fn strings(&mut self, key: &'static str, report: &mut Report) -> Vec<(Given<'a>, String)> {
        let items = self.get(key).map(|given| given.items(report)).unwrap_or_default();
        items.into_iter().filter_map(|item| item.string(report).map(|text| (item, text))).collect()
    }

    /// Puts the integer under this key, if there is one, into its place.
    pub(super) fn integer<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        into: &mut T,
        report: &mut Report,
    ) {
        if let Some(number) = self.get(key).and_then(|given| given.integer(range, report)) {
            *into = number;
        }
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(mut self, report: &mut Report) {
        self.known.sort_unstable();
        self.known.dedup();
        for (name, given) in self.iter().filter(|(name, _)| !self.known.contains(name)) {
            report.mistake(given.at, format!("there is no setting `{name}` here; there are {}", self.known.join(", ")));
        }
    }
}

#[derive(Clone)]
enum Value<'a> {
    Toml(&'a DeValue<'a>),
    /// From the environment or the command line.
    Text(String),
}

/// A value and where it is written. Its readers report what is wrong and answer `None`.
#[derive(Clone)]
pub(super) struct Given<'a> {
    pub(super) at: Place,
    text: &'a str,
    value: Value<'a>,
    secret: bool,
}

impl<'a> Given<'a> {
    /// A value that is in no file.
    pub(super) fn text(source: &str, key: String, value: String) -> Given<'a> {
        Given {
            at: Place { source: source.into(), line: None, key },
            text: "",
            value: Value::Text(value),
            secret: false,
        }
    }

    /// The same, but no mistake shows the value.
    pub(super) fn secret(self) -> Given<'a> {
        Given { secret: true, ..self }
    }

    /// Reports that the value is not what it must be: `must be …`.
    pub(super) fn wrong(&self, must: impl fmt::Display, report: &mut Report) {
        report.mistake(self.at.clone(), format!("{must}, not {}", self.shown()));
    }

    fn shown(&self) -> String {
        let whole = match &self.value {
            _ if self.secret => return "this (not shown)".into(),
            Value::Text(text) => format!("{text:?}"),
            Value::Toml(DeValue::String(text)) => format!("{text:?}"),
            Value::Toml(DeValue::Integer(number)) => number.to_string(),
            Value::Toml(DeValue::Float(number)) => number.to_string(),
            Value::Toml(DeValue::Boolean(truth)) => truth.to_string(),
            Value::Toml(DeValue::Datetime(time)) => time.to_string(),
            Value::Toml(DeValue::Array(_)) => "an array".into(),
            Value::Toml(DeValue::Table(_)) => "a table".into(),
        };
        match whole.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &whole[..end]),
            None => whole,
        }
    }

    /// The text of a text, `None` for anything else.
    fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Toml(value) => value.as_str(),
        }
    }

    pub(super) fn string(&self, report: &mut Report) -> Option<String> {
        let text = self.as_str().map(Into::into);
        if text.is_none() {
            self.wrong("must be a text in quotes", report);
        }
        text
    }

    pub(super) fn path(&self, base: Option<&Path>, report: &mut Report) -> Option<PathBuf> {
        let path = self.string(report)?;
        if path.is_empty() {
            self.wrong("must be a path", report);
            return None;
        }
        Some(match base {
            Some(base) => base.join(path),
            None => path.into(),
        })
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        let truth = match &self.value {
            Value::Toml(value) => value.as_bool(),
            Value::Text(text) => match text.as_str() {
                "true" | "1" | "yes" => Some(true),
                "false" | "0" | "no" => Some(false),
                _ => None,
            },
        };
        if truth.is_none() {
            self.wrong("must be true or false", report);
        }
        truth
    }

    fn as_integer(&self) -> Option<u64> {
        match &self.value {
            Value::Toml(DeValue::Integer(number)) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            Value::Toml(_) => None,
            Value::Text(text) => text.parse().ok(),
        }
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>, report: &mut Report) -> Option<T> {
        let number =
            self.as_integer().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.wrong(format_args!("must be an integer from {} to {}", range.start(), range.end()), report);
        }
        number
    }

    pub(super) fn millis(&self, range: RangeInclusive<u64>, report: &mut Report) -> Option<Duration> {
        self.integer(range, report).map(Duration::from_millis)
    }

    pub(super) fn rate(&self, report: &mut Report) -> Option<PerMinute> {
        if self.as_str() == Some("unlimited") {
            return Some(None);
        }
        let number = self.as_integer().and_then(|number| NonZeroU32::new(u32::try_from(number).ok()?));
        if number.is_none() {
            self.wrong(format_args!("must be an integer from 1 to {} or the word \"unlimited\"", u32::MAX), report);
        }
        number.map(Some)
    }

    /// What `config.get` answers: a text as it is, everything else as JSON.
    pub(super) fn setting(&self, report: &mut Report) -> Option<String> {
        let text = match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Toml(DeValue::String(text)) => Some(text.to_string()),
            // As it is written, with all its digits, where that is JSON.
            Value::Toml(DeValue::Float(number))
                if serde_json::from_str::<serde_json::Number>(number.as_str()).is_ok() =>
            {
                Some(number.as_str().into())
            }
            Value::Toml(value) => json(value).map(|json| json.to_string()),
        };
        if text.is_none() {
            self.wrong("must be something that JSON has, here and within: no date, no inf, no nan, 64 bits", report);
        }
        text
    }

    /// The same as JSON.
    pub(super) fn json(&self, report: &mut Report) -> Option<serde_json::Value> {
        let value = match &self.value {
            Value::Text(text) => Some(text.as_str().into()),
            Value::Toml(value) => json(value),
        };
        if value.is_none() {
            self.wrong("must be something that JSON has, here and within: no date, no inf, no nan, 64 bits", report);
        }
        value
    }

    pub(super) fn items(&self, report: &mut Report) -> Vec<Given<'a>> {
        let Value::Toml(DeValue::Array(array)) = &self.value else {
            self.wrong("must be an array", report);
            return Vec::new();
        };
        let item = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
            let line = Some(line_of(self.text, value.span().start));
            let at = Place { source: Arc::clone(&self.at.source), line, key: format!("{}[{index}]", self.at.key) };
            Given { at, text: self.text, value: Value::Toml(value.get_ref()), secret: self.secret }
        };
        array.iter().enumerate().map(item).collect()
    }

    pub(super) fn section(&self, report: &mut Report) -> Option<Section<'a>> {
        let Value::Toml(DeValue::Table(table)) = &self.value else {
            self.wrong("must be a table", report);
            return None;
        };
        Some(Section { text: self.text, table, at: self.at.clone(), known: Vec::new() })
    }
}

/// The same in JSON, if it has that.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok()?.into(),
        DeValue::Float(number) => serde_json::Number::from_f64(number.as_str().parse().ok()?)?.into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect::<Option<Vec<_>>>()?.into(),
        DeValue::Table(table) => {
            let members = table.iter().map(|(name, value)| Some((name.get_ref().to_string(), json(value.get_ref())?)));
            members.collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
    })
}

/// Reads a file of bounded size; the error says why not.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{} has {size} bytes, at most {FILE_BYTES_MAX} are read", path.display()));
    }
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Reads a file of text; reports why not.
pub(super) fn read_text(path: &Path, report: &mut Report) -> Option<String> {
    let read = read_file(path).and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is not UTF-8".into()));
    let place = || Place { source: path.display().to_string().into(), line: None, key: String::new() };
    read.map_err(|problem| report.mistake(place(), problem)).ok()
}
