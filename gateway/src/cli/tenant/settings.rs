//! Settings as the command line gives them: `limits.connections=500`, or a file.

use std::path::PathBuf;

use clap::Args;
use hyper::Method;
use serde_json::{Map, Value};

use super::{path, read};
use crate::cli::Failure;
use crate::cli::output::{cell, note};
use crate::cli::plugin::done;
use crate::cli::remote::{Remote, RemoteArgs, plain};
use crate::config::Environment;

/// Settings on the command line.
#[derive(Debug, Clone, Args)]
pub struct Given {
    /// A setting by its full key.
    #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
    pub settings: Vec<(String, Value)>,
    /// A file with settings: TOML, or JSON if its name ends so.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What to change.
#[derive(Debug, Clone, Args)]
pub struct SetArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// What it is to be.
    #[command(flatten)]
    pub given: Given,
    /// A setting to take back to its default; may be given several times.
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

impl Given {
    /// The file with what was said besides put over it.
    pub(super) fn document(&self) -> Result<Value, Failure> {
        let mut document = Map::new();
        if let Some(file) = &self.file {
            let text = read(file)?;
            let is_json = file.extension().is_some_and(|extension| extension == "json");
            let parsed = if is_json {
                serde_json::from_str(&text).map_err(|error| error.to_string())
            } else {
                toml::from_str(&text).map_err(|error| error.to_string())
            };
            document = parsed.map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
        }
        for (key, value) in &self.settings {
            put(&mut document, key, value.clone());
        }
        Ok(Value::Object(document))
    }
}

/// `postern tenant set`.
pub(super) fn set(args: &SetArgs, env: &dyn Environment) -> Result<(), Failure> {
    let Value::Object(mut patch) = args.given.document()? else { return Ok(()) };
    for key in &args.unset {
        put(&mut patch, key, Value::Null);
    }
    if patch.is_empty() {
        return Err(Failure::Usage("nothing to change: give KEY=VALUE, --unset KEY or --file FILE".into()));
    }
    let remote = Remote::new(&args.remote, env)?;
    let answer =
        remote.send(Method::PATCH, &format!("{}/settings", path(&args.tenant)), Some(&Value::Object(patch)))?;
    done(&remote, &answer, &format!("{} is changed on all nodes", args.tenant));
    if !remote.json {
        for stopped in answer["stopped"].as_array().into_iter().flatten() {
            note(&plain(&format!("not called any more: {}", cell(stopped))));
        }
    }
    Ok(())
}

/// Puts a value under a key whose parts are separated by dots.
pub(in crate::cli) fn put(document: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            document.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = document.entry(first).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Each setting by its full key, as it is changed; tables in arrays as JSON.
pub(super) fn flat(key: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flat(&key, value, rows);
            }
        }
        Value::Object(_) => {}
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(index, item)| rows.push((format!("{key}[{index}]"), item.to_string())));
        }
        value => rows.push((key.to_owned(), cell(value))),
    }
}

/// A setting on the command line.
pub(in crate::cli) fn assignment(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.split('.').any(str::is_empty) => {
            Ok((key.into(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
        }
        _ => Err("a setting has the form KEY=VALUE, such as limits.connections=500".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_with_dots_reach_into_tables_and_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("acme.toml");
        std::fs::write(&file, "history_on_join = 5\n[limits]\nconnections = 7\nmessage_bytes = 9\n").unwrap();
        let settings = ["limits.connections=500", "relay=[\"a\"]", "auth.subject_claim=id"];
        let settings = settings.map(|text| assignment(text).unwrap()).to_vec();
        let document = Given { settings, file: Some(file) }.document().unwrap();
        let expected = json!({
            "history_on_join": 5,
            "limits": { "connections": 500, "message_bytes": 9 },
            "relay": ["a"],
            "auth": { "subject_claim": "id" },
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn settings_are_shown_by_the_keys_with_which_they_are_changed() {
        let settings = json!({ "limits": { "connections": 5 }, "relay": ["a", "b"], "auth": { "keys": [{ "id": "k" }] }, "presence": {} });
        let mut rows = Vec::new();
        flat("", &settings, &mut rows);
        let rows: Vec<_> = rows.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(rows, [("auth.keys[0]", "{\"id\":\"k\"}"), ("limits.connections", "5"), ("relay", "a b")]);
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for wrong in ["limits", "=1", ".a=1", "a..b=1", "a.=1"] {
            assert!(assignment(wrong).is_err(), "{wrong}");
        }
    }
}
