//! What people are shown of settings: everything but the secrets. One rule for the admin API and the audit log.

use serde_json::{Map, Value};

/// What stands where a secret is not shown.
pub const NOT_SHOWN: &str = "(secret)";

/// What stands where a value is not shown, whatever it is.
pub const SET: &str = "(set)";

/// Values under keys that contain one of these words are not shown.
const SECRET_WORDS: [&str; 9] =
    ["secret", "token", "password", "passphrase", "credential", "private", "api_key", "jwk", "pem"];

/// Keys that contain such a word, and whose values are shown: lists of what has secrets of its own, and addresses.
const NO_SECRETS: [&str; 3] = ["api_keys", "jwks_url", "jwks_urls"];

/// The same value for people to see: what stands under a name that sounds like a secret is replaced, however deep it
/// is, and of addresses what may let somebody in: the user's name, the password and the query.
pub fn without_secrets(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let shown = |(name, value): (&String, &Value)| {
                let text = matches!(value, Value::String(_) | Value::Object(_) | Value::Array(_));
                (name.clone(), if text && sounds_secret(name) { NOT_SHOWN.into() } else { without_secrets(value) })
            };
            Value::Object(members.iter().map(shown).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_secrets).collect()),
        // Settings of plugins that are tables or arrays are kept as JSON in a text.
        Value::String(text) if text.starts_with(['{', '[']) => match serde_json::from_str::<Value>(text) {
            Ok(inner) if without_secrets(&inner) == inner => value.clone(),
            Ok(inner) => without_secrets(&inner).to_string().into(),
            Err(_) => value.clone(),
        },
        Value::String(text) => public_address(text).map_or_else(|| value.clone(), Value::from),
        other => other.clone(),
    }
}

/// The same of a value that stands in the place of `before`: a secret that is another than there says so.
pub fn without_secrets_since(before: &Value, after: &Value) -> Value {
    let mut shown = without_secrets(after);
    mark_changed(before, after, &mut shown);
    shown
}

fn mark_changed(before: &Value, after: &Value, shown: &mut Value) {
    match (after, shown) {
        (Value::Object(after), Value::Object(shown)) => {
            for (name, value) in after {
                let Some((was, shown)) = before.get(name).zip(shown.get_mut(name)) else { continue };
                if *shown == NOT_SHOWN && was != value {
                    *shown = format!("{NOT_SHOWN} (changed)").into();
                } else {
                    mark_changed(was, value, shown);
                }
            }
        }
        // Elements with an id are the same wherever they stand.
        (Value::Array(after), Value::Array(shown)) => {
            let were = before.as_array().map(Vec::as_slice).unwrap_or_default();
            for (index, (value, shown)) in after.iter().zip(shown).enumerate() {
                let id = value.get("id");
                let was = if id.is_some() { were.iter().find(|was| was.get("id") == id) } else { were.get(index) };
                if let Some(was) = was {
                    mark_changed(was, value, shown);
                }
            }
        }
        _ => {}
    }
}

/// A plugin's own settings for whoever may not see them: which there are. Their names are free, so that no word tells
/// which of them are secrets; a digest of a short value would be as good as the value.
pub fn only_names(settings: &Value) -> Value {
    match settings {
        Value::Object(members) => members.keys().map(|name| (name.clone(), SET.into())).collect::<Map<_, _>>().into(),
        Value::Null => Value::Null,
        _ => SET.into(),
    }
}

fn sounds_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    // The name of a variable or of a file is no secret.
    let named = lower.ends_with("_env") || lower.ends_with("_file") || NO_SECRETS.contains(&lower.as_str());
    !named && SECRET_WORDS.iter().any(|word| lower.contains(word))
}

/// An address without user, password, query and fragment; `None`: it is none, or has none of these.
fn public_address(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (rest.get(..at)?, true),
        None => (rest, false),
    };
    let (authority, path) = rest.find(['/', '\\']).map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@');
    if host.is_none() && !query {
        return None;
    }
    let user = if host.is_some() { format!("{NOT_SHOWN}@") } else { String::new() };
    let host = host.map_or(authority, |(_, host)| host);
    let query = if query { format!("?{NOT_SHOWN}") } else { String::new() };
    Some(format!("{scheme}://{user}{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let settings = json!({
            "backend_token": "b", "api_keys": [{"id": "a", "secret": "s"}, {"id": "b", "secret_sha256": "5e"}],
            "auth": {"keys": [{"id": "k", "secret": "s"}, {"pem": "p"}, {"jwk": "{}"}]},
            "limits": {"user_events_per_minute": {"secret": 1}},
        });
        let shown = without_secrets(&settings);
        assert_eq!(shown["auth"]["keys"][0], json!({"id": "k", "secret": NOT_SHOWN}));
        assert_eq!((&shown["auth"]["keys"][1]["pem"], &shown["backend_token"]), (&json!(NOT_SHOWN), &json!(NOT_SHOWN)));
        assert_eq!(shown["api_keys"][0], json!({"id": "a", "secret": NOT_SHOWN}));
        assert_eq!(shown["api_keys"][1], json!({"id": "b", "secret_sha256": NOT_SHOWN}), "short secrets are guessed");
        assert_eq!(shown["limits"], settings["limits"]);
    }

    #[test]
    fn a_secret_that_is_another_than_before_says_so() {
        let before = json!({ "auth": { "keys": [{ "id": "a", "secret": "1" }, { "id": "b", "secret": "2" }] }, "backend_token": "t" });
        let after = json!({ "auth": { "keys": [{ "id": "b", "secret": "3" }, { "id": "a", "secret": "1" }, { "id": "c", "pem": "p" }] }, "backend_token": "t" });
        let shown = without_secrets_since(&before, &after);
        let keys = json!([{ "id": "b", "secret": "(secret) (changed)" }, { "id": "a", "secret": NOT_SHOWN }, { "id": "c", "pem": NOT_SHOWN }]);
        assert_eq!(shown, json!({ "auth": { "keys": keys }, "backend_token": NOT_SHOWN }));
    }

    #[test]
    fn names_of_variables_are_told_and_keys_however_written_are_not() {
        let value = json!({ "backend_token": "x", "backend_token_env": "V", "jwk": { "k": "x" }, "pem": "x", "api_Secret": ["x"], "db_passphrase": "x", "stripe_credential": "x", "api-key": "x" });
        let shown = without_secrets(&value);
        assert_eq!(shown["backend_token_env"], "V");
        for name in ["backend_token", "jwk", "pem", "api_Secret", "db_passphrase", "stripe_credential", "api-key"] {
            assert_eq!(shown[name], NOT_SHOWN, "{name}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_lets_somebody_in() {
        for (address, shown) in [
            ("https://u:p@h/x", "https://(secret)@h/x"),
            ("https://u:p@q@h:1", "https://(secret)@h:1"),
            ("https://id.example/keys?code=hunter2", "https://id.example/keys?(secret)"),
            ("https://h#hunter2", "https://h?(secret)"),
            ("https://id.example/keys", "https://id.example/keys"),
            ("chat:*?", "chat:*?"),
        ] {
            assert_eq!(without_secrets(&json!({ "jwks_url": [address] }))["jwks_url"][0], shown, "{address}");
        }
    }

    #[test]
    fn of_a_plugins_own_settings_only_the_names_are_told() {
        let settings = json!({ "x": "hunter2", "webhook_url": "https://u:p@h/x" });
        assert_eq!(only_names(&settings), json!({ "x": SET, "webhook_url": SET }));
        assert_eq!((only_names(&Value::Null), only_names(&json!("x"))), (Value::Null, json!(SET)));
    }
}
