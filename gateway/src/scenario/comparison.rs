//! What was expected, held against what happened.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::record::{Ended, Happened};
use super::{ANY, Aspect, Expectation};

/// Something came otherwise than expected.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// In which step, from 1; 0: before the first.
    pub step: usize,
    /// Where it is written that it was to be otherwise.
    pub line: usize,
    /// What was done.
    pub what: String,
    /// What was looked at: a key of `expect`, or `ended`.
    pub aspect: &'static str,
    /// As it was to be.
    pub expected: Value,
    /// As it is.
    pub happened: Value,
}

/// Holds a step against what is expected of it. `state` has the values of all keys that expectations name, as texts
/// where they are that.
pub(super) fn differences(
    happened: &Happened,
    expected: &[Expectation],
    state: &BTreeMap<String, Option<Vec<u8>>>,
) -> Vec<Difference> {
    let difference = |aspect, line, expected, is| Difference {
        step: happened.step,
        line,
        what: happened.what.clone(),
        aspect,
        expected,
        happened: is,
    };
    let mut differences = Vec::new();
    let deals_with = |aspect: Aspect| expected.iter().any(|one| one.aspect == aspect);
    // A refusal or failure that nobody expects is never what was meant.
    let surprise = match &happened.ended {
        Ended::Refused { code, message } if !deals_with(Aspect::Refused) => {
            Some(json!({ "refused": { "code": code, "message": message } }))
        }
        Ended::Failed { word, message } if !deals_with(Aspect::Failed) => {
            Some(json!({ "failed": word, "message": message }))
        }
        _ => None,
    };
    differences.extend(surprise.map(|is| difference("ended", happened.line, "ok".into(), is)));
    for Expectation { aspect, line, value } in expected {
        if let Err(is) = look(*aspect, value, happened, state) {
            differences.push(difference(aspect.word(), *line, value.clone(), is));
        }
    }
    differences
}

/// What it is instead, if it is not as expected.
fn look(
    aspect: Aspect,
    expected: &Value,
    happened: &Happened,
    state: &BTreeMap<String, Option<Vec<u8>>>,
) -> Result<(), Value> {
    let all = |is: &[Value], fits: fn(&Value, &Value) -> bool| {
        let expected = expected.as_array().map(Vec::as_slice).unwrap_or_default();
        let fit = expected.len() == is.len() && expected.iter().zip(is).all(|(expected, is)| fits(expected, is));
        if fit { Ok(()) } else { Err(is.into()) }
    };
    let one = |is: Value, fits: fn(&Value, &Value) -> bool| if fits(expected, &is) { Ok(()) } else { Err(is) };
    match aspect {
        Aspect::Reply => one(happened.reply.clone().unwrap_or_default(), fits),
        Aspect::Published => all(&happened.published, fits_publication),
        Aspect::Joined => all(&happened.joined, fits_named),
        Aspect::Left => all(&happened.left, fits_named),
        Aspect::Disconnected => all(&happened.disconnected, fits_named),
        Aspect::Fired => one(json!(happened.fired), fits),
        Aspect::Timers => one(json!(happened.timers), fits),
        Aspect::Runs => one(happened.runs.into(), fits),
        Aspect::Refused => match &happened.ended {
            Ended::Refused { code, message } => one(json!({ "code": code, "message": message }), fits_named),
            ended => Err(json!(ended)),
        },
        Aspect::Failed => match &happened.ended {
            Ended::Failed { word, message } if !fits(expected, &word.as_str().into()) => {
                Err(json!({ "failed": word, "message": message }))
            }
            Ended::Failed { .. } => Ok(()),
            ended => Err(json!(ended)),
        },
        Aspect::Logged => {
            let texts = expected.as_array().into_iter().flatten().filter_map(Value::as_str);
            let logged = |text: &str| text == ANY || happened.logged.iter().any(|line| line.contains(text));
            if texts.into_iter().all(logged) { Ok(()) } else { Err(json!(happened.logged)) }
        }
        Aspect::State => state_fits(expected, state),
        Aspect::StateAbsent => {
            let keys = expected.as_array().into_iter().flatten().filter_map(Value::as_str);
            let there = keys.filter_map(|key| Some((key.to_owned(), shown(state.get(key)?.as_deref()?))));
            let there: Map<_, _> = there.collect();
            if there.is_empty() { Ok(()) } else { Err(there.into()) }
        }
    }
}

fn shown(bytes: &[u8]) -> Value {
    super::record::stored(bytes)
}

/// A text fits a value that is that text, everything fits a value that is JSON for it.
fn state_fits(expected: &Value, state: &BTreeMap<String, Option<Vec<u8>>>) -> Result<(), Value> {
    let value = |key: &String| state.get(key).and_then(Option::as_deref);
    let named = expected.as_object();
    let fit = named.into_iter().flatten().all(|(key, expected)| {
        value(key).is_some_and(|bytes| {
            expected.as_str().is_some_and(|text| text.as_bytes() == bytes) || fits(expected, &shown(bytes))
        })
    });
    if fit {
        return Ok(());
    }
    let is = named.into_iter().flatten().map(|(key, _)| (key.clone(), value(key).map(shown).unwrap_or_default()));
    Err(Value::Object(is.collect()))
}

/// Is it just this, but for what may be anything?
fn fits(expected: &Value, is: &Value) -> bool {
    match (expected, is) {
        (Value::String(any), _) if any == ANY => true,
        (Value::Array(expected), Value::Array(is)) => {
            expected.len() == is.len() && expected.iter().zip(is).all(|(expected, is)| fits(expected, is))
        }
        (Value::Object(expected), Value::Object(is)) => {
            let fits_in = |(key, expected): (&String, &Value)| is.get(key).is_some_and(|is| fits(expected, is));
            expected.len() == is.len() && expected.iter().all(fits_in)
        }
        _ => expected == is,
    }
}

/// Is what is named just this?
pub fn fits_named(expected: &Value, is: &Value) -> bool {
    let named = expected.as_object().into_iter().flatten();
    named.into_iter().all(|(key, expected)| fits(expected, is.get(key).unwrap_or(&Value::Null)))
}

/// Likewise, and what is not said to be ephemeral is not.
fn fits_publication(expected: &Value, is: &Value) -> bool {
    let ephemeral = |value: &Value| value.get("ephemeral").and_then(Value::as_bool).unwrap_or(false);
    let mut named = expected.clone();
    if let Some(named) = named.as_object_mut() {
        named.remove("ephemeral");
    }
    ephemeral(expected) == ephemeral(is) && fits_named(&named, is)
}

/// Puts what was kept where `${name}` stands: as it is where nothing else stands, otherwise within the text. What was
/// not kept stays as it is written.
pub(super) fn filled(value: &Value, kept: &BTreeMap<String, Value>) -> Value {
    match value {
        Value::String(text) => match whole_name(text).and_then(|name| kept.get(name)) {
            Some(value) => value.clone(),
            None => filled_text(text, kept).into(),
        },
        Value::Array(items) => items.iter().map(|item| filled(item, kept)).collect(),
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| (filled_text(key, kept), filled(value, kept)));
            Value::Object(members.collect())
        }
        _ => value.clone(),
    }
}

/// The same within a text.
pub(super) fn filled_text(text: &str, kept: &BTreeMap<String, Value>) -> String {
    kept.iter().fold(text.to_owned(), |text, (name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.replace(&format!("${{{name}}}"), &value)
    })
}

fn whole_name(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|name| !name.contains('}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_if_it_is_the_same_but_for_what_may_be_anything() {
        for (expected, is, same) in [
            (json!({"a": 1}), json!({"a": 1}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"a": "${any}"}), json!({"a": [1]}), true),
            (json!({"a": "${any}"}), json!({}), false),
            (json!([1, 2]), json!([1]), false),
            (json!(1), json!("1"), false),
        ] {
            assert_eq!(fits(&expected, &is), same, "{expected} {is}");
        }
        assert!(fits_named(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!fits_publication(&json!({"room": "a"}), &json!({"room": "a", "ephemeral": true})));
        assert!(fits_publication(&json!({"room": "a", "ephemeral": true}), &json!({"room": "a", "ephemeral": true})));
    }

    #[test]
    fn what_was_kept_is_put_in_place_with_its_type() {
        let kept = BTreeMap::from([("id".to_owned(), json!("v1")), ("n".to_owned(), json!(7))]);
        let filled = filled(&json!({"visitor": "${id}", "n": "${n}", "key/${id}": ["x-${n}", "${other}"]}), &kept);
        assert_eq!(filled, json!({"visitor": "v1", "n": 7, "key/v1": ["x-7", "${other}"]}));
    }
}
