//! `[steps.expect]`: what is to come of a step, brought into the form in which it is told afterwards.

use serde_json::{Map, Value, json};

use super::super::source::{Given, Report, Section};
use super::{arguments, duration, json_text};
use crate::decision::plugin::FailureKind;
use crate::scenario::{ANY, Aspect, Expectation, IMPOSSIBLE};

/// Runs of one step that can be expected.
const RUNS_MAX: u64 = 10_000;

/// Failures that are not a call's: the codes that a client is told, and a step that could not be done.
const OTHER_FAILURES: [&str; 4] = ["engine_unavailable", "plugin_failed", "plugin_unavailable", IMPOSSIBLE];

/// Reads what is written; reports what is wrong with it.
type Reader = fn(&Given<'_>, &mut Report) -> Option<Value>;

pub(super) fn expectations(mut given: Section<'_>, report: &mut Report) -> Vec<Expectation> {
    let mut found = Vec::new();
    let readers: [(Aspect, Reader); 12] = [
        (Aspect::Reply, |given, report| given.json(report)),
        (Aspect::Published, |given, report| list(given, publication, report)),
        (Aspect::Joined, |given, report| list(given, membership, report)),
        (Aspect::Left, |given, report| list(given, membership, report)),
        (Aspect::Disconnected, |given, report| list(given, |item, report| refusal(item, "user", report), report)),
        (Aspect::Refused, |given, report| refusal(given, "code", report)),
        (Aspect::Failed, failure),
        (Aspect::Fired, |given, report| list(given, text, report)),
        (Aspect::State, |given, report| table(given, |value, report| value.json(report), report)),
        (Aspect::StateAbsent, |given, report| list(given, text, report)),
        (Aspect::Timers, |given, report| table(given, |value, report| Some(duration(value, report)?.into()), report)),
        (Aspect::Logged, |given, report| list(given, text, report)),
    ];
    for (aspect, read) in readers {
        let Some(written) = given.get(aspect.word()) else { continue };
        let line = written.at.line.unwrap_or_default();
        found.extend(read(&written, report).map(|value| Expectation { aspect, line, value }));
    }
    if let Some(written) = given.get("runs") {
        let line = written.at.line.unwrap_or_default();
        let runs: Option<u32> = written.integer(0..=RUNS_MAX, report);
        found.extend(runs.map(|runs| Expectation { aspect: Aspect::Runs, line, value: runs.into() }));
    }
    for (key, wants) in [("reply_json", true), ("no_reply", false)] {
        let Some(written) = given.get(key) else { continue };
        let line = written.at.line.unwrap_or_default();
        if found.iter().any(|one| one.aspect == Aspect::Reply) {
            report.mistake(written.at.clone(), "one of `reply`, `reply_json` and `no_reply`, not several");
        }
        let value = if wants { json_text(&written, report) } else { none(&written, report) };
        found.extend(value.map(|value| Expectation { aspect: Aspect::Reply, line, value }));
    }
    given.finish(report);
    found
}

/// `true`: there is nothing.
fn none(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    if given.boolean(report)? {
        return Some(Value::Null);
    }
    given.wrong("must be true", report);
    None
}

fn text(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    given.string(report).map(Value::String)
}

/// The word of a failure.
fn failure(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    let word = given.string(report)?;
    let words: Vec<_> = FailureKind::ALL.iter().map(|kind| kind.word()).chain(OTHER_FAILURES).collect();
    if word == ANY || words.contains(&&*word) {
        return Some(word.into());
    }
    given.wrong(format_args!("must be one of {}", words.join(", ")), report);
    None
}

fn list(given: &Given<'_>, read: Reader, report: &mut Report) -> Option<Value> {
    let mistakes = report.mistakes.len();
    let items: Vec<_> = given.items(report).iter().filter_map(|item| read(item, report)).collect();
    (report.mistakes.len() == mistakes).then_some(Value::Array(items))
}

fn table(given: &Given<'_>, read: Reader, report: &mut Report) -> Option<Value> {
    let section = given.section(report)?;
    let members = section.iter().filter_map(|(name, value)| Some((name.to_owned(), read(&value, report)?)));
    Some(Value::Object(members.collect()))
}

/// What a table has under these keys, which hold texts.
fn texts(section: &mut Section<'_>, keys: &[&'static str], report: &mut Report) -> Map<String, Value> {
    let of = |key: &&'static str| Some(((*key).to_owned(), section.string(key, report)?.into()));
    keys.iter().filter_map(of).collect()
}

fn flags(section: &mut Section<'_>, keys: &[&'static str], report: &mut Report) -> Map<String, Value> {
    let of = |key: &&'static str| Some(((*key).to_owned(), section.get(key)?.boolean(report)?.into()));
    keys.iter().filter_map(of).collect()
}

fn publication(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    let mut section = given.section(report)?;
    let mut value = texts(&mut section, &["room", "event", "except"], report);
    value.extend(flags(&mut section, &["ephemeral"], report));
    if let Some(Value::Array(mut args)) = arguments(&mut section, report).map(|args| args.value) {
        // As it is told: one argument is `data`.
        if args.len() == 1 {
            value.insert("data".into(), args.remove(0));
        } else {
            value.insert("args".into(), args.into());
        }
    }
    section.finish(report);
    Some(value.into())
}

fn membership(given: &Given<'_>, report: &mut Report) -> Option<Value> {
    let mut section = given.section(report)?;
    let mut value = texts(&mut section, &["user", "room"], report);
    value.extend(flags(&mut section, &["publish", "presence", "history"], report));
    section.finish(report);
    Some(value.into())
}

/// A text alone stands for what is named most often.
fn refusal(given: &Given<'_>, alone: &'static str, report: &mut Report) -> Option<Value> {
    if let Some(text) = given.string(&mut Report::default()) {
        return Some(json!({ alone: text }));
    }
    let mut section = given.section(report)?;
    let keys: &[&'static str] = if alone == "code" { &["code", "message"] } else { &["user", "code", "message"] };
    let value = texts(&mut section, keys, report);
    section.finish(report);
    Some(value.into())
}
