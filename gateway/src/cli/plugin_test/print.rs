//! What came of a scenario, for people.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::output::line;
use super::super::remote::plain;
use crate::scenario::{ANY, Difference, Ended, Happened, Played, duration, fits_named};

/// Prints a scenario: a line, and what was expected otherwise; with `all` everything that happened.
pub(super) fn played(played: &Played, all: bool) {
    if all {
        for step in &played.steps {
            happened(played, step);
        }
    }
    let Played { scenario, plugin, steps, measured, memory_bytes_max, .. } = played;
    let count = steps.iter().filter(|step| step.step > 0).count();
    let steps = if count == 1 { "step" } else { "steps" };
    let (cpu, peak, max) =
        (tenths(measured.cpu_us, 1_000), measured.memory_peak_bytes as u64, *memory_bytes_max as u64);
    let word = if played.passed { "ok    " } else { "FAILED" };
    let used = format!("{cpu} ms of computing, {} of {} MiB", tenths(peak, 1 << 20), tenths(max, 1 << 20));
    line(&plain(&format!("{word} {plugin}: {scenario}: {count} {steps}, {used}")));
    for one in &played.differences {
        difference(played, one);
        // What failed unexpectedly says why only there.
        let step = played.steps.iter().find(|step| step.step == one.step);
        if one.aspect == "ended" && !all {
            step.iter().flat_map(|step| &step.logged).for_each(|text| told("logged", text));
        }
    }
}

/// A number in larger units, with one digit after the point.
fn tenths(number: u64, unit: u64) -> String {
    let tenths = (number.saturating_mul(10) + unit / 2) / unit;
    match tenths % 10 {
        0 => (tenths / 10).to_string(),
        rest => format!("{}.{rest}", tenths / 10),
    }
}

fn difference(played: &Played, one: &Difference) {
    let Difference { step, line: at, what, aspect, expected, happened } = one;
    let place = if *step == 0 { String::new() } else { format!("step {step}: ") };
    line(&plain(&format!("{}:{at}: {place}{what}: {aspect}", played.file)));
    let is_list = expected.is_array();
    let (expected, happened) = (items(&in_words(aspect, expected)), items(&in_words(aspect, happened)));
    // What is as expected is shown once; of a list's elements what is not named may be anything.
    let same =
        |expected: &Value, is: &Value| expected == is || (is_list && expected.is_object() && fits_named(expected, is));
    for index in 0..expected.len().max(happened.len()) {
        match (expected.get(index), happened.get(index)) {
            (Some(expected), Some(is)) if same(expected, is) => marked(' ', is),
            (expected, is) => {
                expected.iter().for_each(|value| marked('-', value));
                is.iter().for_each(|value| marked('+', value));
            }
        }
    }
}

/// Times of timers as people say them.
fn in_words(aspect: &str, value: &Value) -> Value {
    match value {
        Value::Object(timers) if aspect == "timers" => {
            let words = |ms: &Value| ms.as_u64().map_or_else(|| ms.clone(), |ms| duration(ms).into());
            timers.iter().map(|(name, ms)| (name.clone(), words(ms))).collect()
        }
        value => value.clone(),
    }
}

/// The elements of a list, the members of a table; anything else is one.
fn items(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(items) if items.is_empty() => vec!["(nothing)".into()],
        Value::Array(items) => items.clone(),
        Value::Null => vec!["(nothing)".into()],
        other => vec![other.clone()],
    }
}

fn marked(mark: char, value: &Value) {
    let text = match value {
        Value::String(text) if text == ANY || text.starts_with('(') => text.clone(),
        value => value.to_string(),
    };
    line(&plain(&format!("  {mark} {text}")));
}

/// All of a step.
fn happened(played: &Played, step: &Happened) {
    let place = if step.step == 0 { String::new() } else { format!("step {}: ", step.step) };
    line(&plain(&format!("{}:{}: {place}{}", played.file, step.line, step.what)));
    match &step.ended {
        Ended::Ok => {}
        Ended::Refused { code, message } => told("refused", &format!("{code}: {message}")),
        Ended::Failed { word, message } => told("failed", &format!("{word}: {message}")),
    }
    if let Some(reply) = &step.reply {
        told("reply", &reply.to_string());
    }
    step.fired.iter().for_each(|name| told("fired", name));
    for one in &step.published {
        told("published", &publication(one));
    }
    for (key, all) in [("joined", &step.joined), ("left", &step.left)] {
        all.iter().for_each(|one| told(key, &format!("{}: {}", text(&one["user"]), text(&one["room"]))));
    }
    for one in &step.disconnected {
        told("ended", &format!("{}: {}: {}", text(&one["user"]), text(&one["code"]), text(&one["message"])));
    }
    for (key, value) in &step.state {
        let value = if value.is_null() { "(deleted)".to_owned() } else { value.to_string() };
        told("state", &format!("{key} = {value}"));
    }
    timers(&step.timers);
    step.logged.iter().for_each(|text| told("logged", text));
    if step.runs > 1 {
        told("runs", &step.runs.to_string());
    }
}

fn timers(timers: &BTreeMap<String, u64>) {
    for (name, ms) in timers {
        told("timer", &format!("{name} in {}", duration(*ms)));
    }
}

fn publication(one: &Value) -> String {
    let data = one.get("data").or(one.get("args")).map(ToString::to_string).unwrap_or_default();
    let mut told = format!("{} to {}: {data}", text(&one["event"]), text(&one["room"]));
    if let Some(except) = one.get("except") {
        told += &format!(", but not to connection:{}", text(except));
    }
    if one.get("ephemeral").is_some() {
        told += " (ephemeral)";
    }
    if one.get("nobody").is_some() {
        told += " (nobody is in it)";
    }
    told
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn told(what: &str, text: &str) {
    line(&plain(&format!("  {what:<9} {text}")));
}
