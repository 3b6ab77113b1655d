//! The tenant's routes. No host: two settings and an event's name in, handlers' names out.
//!
//! `routes` is an object of patterns, as JSON text: an event's name, or a beginning followed by `*`. The
//! longest pattern that matches counts, a whole name before any beginning. What a pattern
//! stands for is a name, a list of names, or `{ to, feature, refuse }`. Names are those of the
//! tenant's handlers, or the gateway's own `relay` and `broadcast`; an empty list ignores the
//! event. `features` says what is switched on: `{"typing": false}`. A feature that it does not
//! name is on.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Why an event goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `unknown_event`, `feature_disabled`, or the word of the setting.
    pub code: String,
    /// For people.
    pub message: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    to: Option<Names>,
    feature: Option<String>,
    refuse: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Target {
    Names(Names),
    Rule(Rule),
}

/// Routes and switches, as the settings say them.
#[derive(Debug, Clone)]
pub struct Table {
    routes: BTreeMap<String, Target>,
    features: BTreeMap<String, bool>,
}

impl Table {
    /// Reads the settings `routes` and `features`, JSON objects as the gateway gives them.
    ///
    /// # Errors
    /// What is wrong with them, for the log.
    pub fn read(routes: Option<&str>, features: Option<&str>) -> Result<Table, String> {
        let routes = routes.ok_or("the setting `routes` is missing")?;
        let routes: BTreeMap<String, Target> = serde_json::from_str(routes)
            .map_err(|error| format!("`routes`: a name, a list of names, or {{to, feature, refuse}} each: {error}"))?;
        for (pattern, target) in &routes {
            if let Target::Rule(Rule { to, refuse, .. }) = target
                && to.is_some() == refuse.is_some()
            {
                return Err(format!("`routes`: {pattern:?} has either `to` or `refuse`"));
            }
        }
        let features = serde_json::from_str(features.unwrap_or("{}"))
            .map_err(|error| format!("`features`: true or false each: {error}"))?;
        Ok(Table { routes, features })
    }

    /// The handlers that see the event, in order.
    ///
    /// # Errors
    /// Why nobody does.
    pub fn route(&self, event: &str) -> Result<Vec<String>, Refused> {
        let Some(target) = self.target(event) else {
            let message = format!("nothing handles the event {event:?}");
            return Err(Refused { code: "unknown_event".into(), message });
        };
        match target {
            Target::Names(names) => Ok(names.list()),
            Target::Rule(Rule { to, feature, refuse }) => {
                if let Some(feature) = feature.as_ref().filter(|feature| self.is_off(feature)) {
                    let message = format!("the feature {feature:?} is switched off");
                    return Err(Refused { code: "feature_disabled".into(), message });
                }
                if let Some(code) = refuse {
                    let message = format!("the event {event:?} is not taken here");
                    return Err(Refused { code: code.clone(), message });
                }
                Ok(to.as_ref().map(Names::list).unwrap_or_default())
            }
        }
    }

    fn target(&self, event: &str) -> Option<&Target> {
        if let Some(target) = self.routes.get(event).filter(|_| !event.ends_with('*')) {
            return Some(target);
        }
        let matching = self.routes.iter().filter_map(|(pattern, target)| {
            let beginning = pattern.strip_suffix('*')?;
            event.starts_with(beginning).then_some((beginning.len(), target))
        });
        matching.max_by_key(|(length, _)| *length).map(|(_, target)| target)
    }

    fn is_off(&self, feature: &str) -> bool {
        self.features.get(feature) == Some(&false)
    }
}

impl Names {
    fn list(&self) -> Vec<String> {
        match self {
            Names::One(name) => vec![name.clone()],
            Names::Many(names) => names.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
