use super::*;

const ROUTES: &str = r#"{
    "task:*": "task-updates", "task:archive": ["task-updates", "archive"], "t*": "rest",
    "typing:*": {"to": "typing-status", "feature": "typing"}, "cursor:*": "relay", "test-event": "broadcast",
    "ping": [], "admin:*": {"refuse": "forbidden"}
}"#;

fn route(event: &str, features: &str) -> Result<Vec<String>, String> {
    Table::read(Some(ROUTES), Some(features)).unwrap().route(event).map_err(|refused| refused.code)
}

#[test]
fn the_longest_pattern_counts_and_a_whole_name_before_any_beginning() {
    assert_eq!(route("task:create", "{}").unwrap(), ["task-updates"]);
    assert_eq!(route("task:archive", "{}").unwrap(), ["task-updates", "archive"]);
    assert_eq!(route("tick", "{}").unwrap(), ["rest"]);
    assert_eq!(route("task:*", "{}").unwrap(), ["task-updates"], "a client's star is no pattern");
}

#[test]
fn events_are_relayed_broadcast_ignored_or_refused_as_the_settings_say() {
    assert_eq!(route("cursor:move", "{}").unwrap(), ["relay"]);
    assert_eq!(route("test-event", "{}").unwrap(), ["broadcast"]);
    assert_eq!(route("ping", "{}").unwrap(), [""; 0]);
    assert_eq!(route("admin:wipe", "{}"), Err("forbidden".into()));
    assert_eq!(route("unheard-of", "{}"), Err("unknown_event".into()));
}

#[test]
fn a_feature_is_on_until_it_is_switched_off() {
    for (features, expected) in [
        ("{}", Ok(vec!["typing-status".to_owned()])),
        (r#"{"typing":true}"#, Ok(vec!["typing-status".to_owned()])),
        (r#"{"typing":false,"other":true}"#, Err("feature_disabled".into())),
    ] {
        assert_eq!(route("typing:start", features), expected, "{features}");
    }
}

#[test]
fn settings_that_cannot_be_meant_are_told() {
    for routes in
        ["[]", r#"{"a":7}"#, r#"{"a":{"too":"x"}}"#, r#"{"a":{"feature":"x"}}"#, r#"{"a":{"to":"x","refuse":"y"}}"#]
    {
        assert!(Table::read(Some(routes), None).is_err(), "{routes}");
    }
    assert!(Table::read(None, None).is_err());
    assert!(Table::read(Some("{}"), Some(r#"{"typing":"no"}"#)).is_err());
}
