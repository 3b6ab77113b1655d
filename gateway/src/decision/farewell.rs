//! Telling handlers that a session is over: a durable timer of the gateway's own, set when the
//! connection goes and cancelled when the client comes back in time.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pipeline::Pipeline;
use crate::client::{Client, ConnectionId, Identity};
use crate::commit::{Millis, TimerChange, TimerKey};
use crate::engine::DueTimer;

/// What the names of these timers start with; components cannot name theirs so.
const PREFIX: &str = "/disconnected/";

/// What a handler is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Farewell {
    pub(super) connection: ConnectionId,
    subject: Arc<str>,
    claims: Arc<str>,
    namespace: Arc<str>,
    /// The word of the ending.
    pub reason: String,
}

impl Farewell {
    /// Of a client whose connection is gone.
    pub fn new(client: &Client, reason: &str) -> Farewell {
        Farewell {
            connection: client.connection.clone(),
            subject: client.identity.subject.clone(),
            claims: client.identity.claims.clone(),
            namespace: client.namespace.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Of a timer, if it is one of these.
    pub(super) fn of(timer: &DueTimer) -> Option<Farewell> {
        timer.key.name.strip_prefix(PREFIX)?;
        serde_json::from_str(&timer.data).ok()
    }

    /// The name of the session, which its timer's name says.
    pub(super) fn session(timer: &DueTimer) -> &str {
        timer.key.name.strip_prefix(PREFIX).unwrap_or_default()
    }

    pub(super) fn client(&self) -> Client {
        let identity =
            Identity { subject: self.subject.clone(), claims: self.claims.clone(), expires_at_s: None, key: None };
        Client { connection: self.connection.clone(), identity, namespace: self.namespace.clone() }
    }

    /// Sets the timers: one for each handler that wants to know.
    pub fn timers(&self, pipeline: &Pipeline, session: &str, after_ms: Millis) -> Vec<(TimerKey, TimerChange)> {
        // Texts always have a JSON form.
        let data: Arc<str> = serde_json::to_string(self).unwrap_or_default().into();
        keys(pipeline, session).map(|key| (key, TimerChange::Set { after_ms, data: data.clone() })).collect()
    }
}

/// Cancels the timers of a session that is not over.
pub(super) fn cancelled(pipeline: &Pipeline, session: &str) -> Vec<(TimerKey, TimerChange)> {
    keys(pipeline, session).map(|key| (key, TimerChange::Cancel)).collect()
}

fn keys(pipeline: &Pipeline, session: &str) -> impl Iterator<Item = TimerKey> {
    let name: Arc<str> = format!("{PREFIX}{session}").into();
    let handlers = pipeline.handlers.iter().filter(|(handler, _)| handler.exports.connection_events);
    handlers.map(move |(handler, _)| TimerKey { plugin: handler.name.clone(), name: name.clone() })
}
