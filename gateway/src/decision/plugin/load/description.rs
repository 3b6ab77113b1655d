//! What a component says about itself, checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::Description;
use super::super::failure::{MESSAGE_BYTES_MAX, tame};
use super::LoadError;
use crate::event::EVENT_NAME_BYTES_MAX;
use crate::tenant::Pattern;

/// The longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// The most event patterns in a description.
const PATTERNS_MAX: usize = 256;

/// `describe.info` as written. Components may say more than this gateway knows.
#[derive(Deserialize)]
struct Info {
    name: String,
    version: String,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    routes_by_name: bool,
    #[serde(flatten)]
    _more: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Reads an answer of `describe.info`.
pub(super) fn description(info: &str) -> Result<Description, LoadError> {
    let bad = |text: String| LoadError::Description(tame(&text, MESSAGE_BYTES_MAX));
    if info.len() > DESCRIPTION_BYTES_MAX {
        return Err(bad(format!("it has {} bytes; at most {DESCRIPTION_BYTES_MAX}", info.len())));
    }
    let info: Info = serde_json::from_str(info).map_err(|error| bad(error.to_string()))?;
    if info.events.len() > PATTERNS_MAX {
        return Err(bad(format!("it has {} event patterns; at most {PATTERNS_MAX}", info.events.len())));
    }
    if let Some(pattern) = info.events.iter().find(|pattern| !is_pattern(pattern)) {
        return Err(bad(format!(
            "{pattern:?} is no event pattern: 1 to {EVENT_NAME_BYTES_MAX} bytes, `*` only at the end"
        )));
    }
    Ok(Description {
        name: tame(&info.name, 128),
        version: tame(&info.version, 128),
        events: info.events.into_iter().map(Pattern).collect(),
        routes_by_name: info.routes_by_name,
    })
}

fn is_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    (1..=EVENT_NAME_BYTES_MAX).contains(&pattern.len()) && !name.contains('*') && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_bounded_and_may_say_more_than_is_known() {
        let it = description(r#"{"name":"n","version":"1","events":["a*","b"],"future":{"x":1}}"#).unwrap();
        assert_eq!(it.events, [Pattern("a*".into()), Pattern("b".into())]);
        assert!(!it.routes_by_name);
        for bad in ["[]", r#"{"name":"n"}"#, r#"{"name":"n","version":"1","events":["a*b"]}"#] {
            assert!(matches!(description(bad), Err(LoadError::Description(_))), "{bad}");
        }
    }
}
