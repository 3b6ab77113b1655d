//! What came of a scenario.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::comparison::Difference;
use super::members::Members;
use crate::commit::{Effect, Millis, Publication, Who};
use crate::event::Payload;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Well.
    #[default]
    Ok,
    /// Somebody said no; nothing has happened.
    Refused {
        /// For machines.
        code: String,
        /// For people.
        message: String,
    },
    /// Something broke; nothing has happened.
    Failed {
        /// What, in the word of the metric `plugin_calls_total`; where no call failed, the code that a client is told.
        word: String,
        /// For people.
        message: String,
    },
}

/// What happened in a step.
#[derive(Debug, Clone, Serialize, Default)]
pub struct Happened {
    /// Which, from 1; 0: somebody comes in before the first.
    pub step: usize,
    /// Where it is in the file; of 0 the first step is.
    pub line: usize,
    /// What was done, for people.
    pub what: String,
    /// When it was over, in milliseconds since the Unix epoch.
    pub at_ms: Millis,
    /// How it ended.
    pub ended: Ended,
    /// What the sender was answered.
    pub reply: Option<Value>,
    /// Publications: `room`, `event`, `data` (or `args`, where there is not one argument); `except`, the connection that
    /// does not get it; `ephemeral`; `nobody`: in the room is none of the scenario's users.
    pub published: Vec<Value>,
    /// Memberships: `user`, `room` and the grants.
    pub joined: Vec<Value>,
    /// Memberships that ended: `user` and `room`.
    pub left: Vec<Value>,
    /// Connections that were ended: `user`, `code` and `message`.
    pub disconnected: Vec<Value>,
    /// Timers that fired, by name; `(disconnected)` is the gateway's own.
    pub fired: Vec<String>,
    /// What is stored now under the keys that were written; `null`: nothing.
    pub state: BTreeMap<String, Value>,
    /// The timers of the tested plugin that wait, with the milliseconds until they are due.
    pub timers: BTreeMap<String, Millis>,
    /// Lines that plugins logged, and what the gateway says of failed calls: `level: text`.
    pub logged: Vec<String>,
    /// How often its inputs ran, all attempts.
    pub runs: u32,
}

impl Happened {
    /// Notes what a commit did; `members` are as they are after it.
    pub(super) fn note(&mut self, effects: &[Effect], members: &Members) {
        for effect in effects {
            match effect {
                Effect::Publish(publication) => self.note_publication(publication, false, members),
                Effect::Join { who, room, grant } => self.joined.push(json!({
                    "user": members.name_of(who),
                    "room": room.as_str(),
                    "publish": grant.publish,
                    "presence": grant.presence,
                    "history": grant.history,
                })),
                Effect::Leave { who, room } => {
                    self.left.push(json!({ "user": members.name_of(who), "room": room.as_str() }));
                }
                Effect::Disconnect { room, why } => {
                    let connection = room.as_connection().map(|id| Who::Connection(id.into()));
                    let who = connection.or_else(|| room.as_user().map(|subject| Who::User(subject.into())));
                    let user = who.map(|who| members.name_of(&who));
                    self.disconnected.push(json!({ "user": user, "code": why.code, "message": why.message }));
                }
                Effect::Arrive { .. } | Effect::Gone { .. } | Effect::Revoke(_) => {}
            }
        }
    }

    pub(super) fn note_publication(&mut self, publication: &Publication, ephemeral: bool, members: &Members) {
        let Publication { room, event, data, except } = publication;
        let mut value = json!({ "room": room.as_str(), "event": &**event });
        let (key, args) = arguments(data);
        value[key] = args;
        if let Some(except) = except {
            value["except"] = except.as_str().into();
        }
        if !data.attachments.is_empty() {
            value["attachments"] = data.attachments.len().into();
        }
        if ephemeral {
            value["ephemeral"] = true.into();
        }
        if members.is_empty(room) {
            value["nobody"] = true.into();
        }
        self.published.push(value);
    }
}

/// One argument as `data`, any other number as `args`.
fn arguments(data: &Payload) -> (&'static str, Value) {
    match serde_json::from_str(&data.args) {
        Ok(Value::Array(mut args)) if args.len() == 1 => ("data", args.remove(0)),
        Ok(args) => ("args", args),
        Err(_) => ("args", (&*data.args).into()),
    }
}

/// What a payload answers: its argument, or all of them.
pub(super) fn answer(data: &Payload) -> Value {
    arguments(data).1
}

/// A stored value as people and scenarios have it: as JSON if it is that, as text, or as how many bytes it is.
pub(super) fn stored(bytes: &[u8]) -> Value {
    match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
        (Ok(value), _) => value,
        (Err(_), Ok(text)) => text.into(),
        (Err(_), Err(_)) => json!({ "bytes": bytes.len() }),
    }
}

/// What the machine needed; another each time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Computing time of all calls of the tested plugin, in microseconds.
    pub cpu_us: u64,
    /// The most memory that one of its instances had, in bytes.
    pub memory_peak_bytes: usize,
}

/// What came of a scenario. The same each time but for what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Played {
    /// Its name.
    pub scenario: String,
    /// Its file.
    pub file: Arc<str>,
    /// The plugin that was tested.
    pub plugin: String,
    /// Came everything as expected?
    pub passed: bool,
    /// What happened, step by step; after the first step that did not end as expected nothing more.
    pub steps: Vec<Happened>,
    /// What did not come as expected.
    pub differences: Vec<Difference>,
    /// How much memory an instance may have, in bytes.
    pub memory_bytes_max: usize,
    /// What the machine needed.
    pub measured: Measured,
}
