//! Seam between connection and decision: what clients say.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::client::Client;

pub mod arguments;
pub mod request;

/// The longest event name, in bytes.
pub const EVENT_NAME_BYTES_MAX: usize = 128;

/// Names that Socket.IO clients raise themselves: an event so named would look like the
/// connection's own, and their parser drops the connection when it meets one on the wire.
pub const RESERVED_EVENT_NAMES: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Events that only the gateway says: whoever publishes without a handler may not.
pub const GATEWAY_EVENTS: [&str; 12] = [
    "authenticated",
    "connected",
    "degraded",
    "error",
    "presence:join",
    "presence:leave",
    "presence:update",
    "reset",
    "restored",
    "server:shutdown",
    "token_expiring",
    "token_refreshed",
];

/// What an event carries: as in Socket.IO, arguments with bytes beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// A JSON array of the arguments, valid JSON.
    /// `{"_placeholder":true,"num":N}` in it stands for attachment N.
    pub args: Arc<str>,
    /// The attachments, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Bytes>,
}

impl Payload {
    /// A payload without arguments.
    pub fn empty() -> Payload {
        Payload { args: "[]".into(), attachments: Vec::new() }
    }

    /// A payload of one argument, given as JSON.
    pub fn one(argument: &serde_json::Value) -> Payload {
        Payload { args: format!("[{argument}]").into(), attachments: Vec::new() }
    }

    /// The first argument, when there is one and it is JSON.
    pub fn first(&self) -> Option<serde_json::Value> {
        let args: Vec<&serde_json::value::RawValue> = serde_json::from_str(&self.args).ok()?;
        serde_json::from_str(args.first()?.get()).ok()
    }

    /// Arguments and attachments together, in bytes.
    pub fn bytes(&self) -> usize {
        self.args.len() + self.attachments.iter().map(Bytes::len).sum::<usize>()
    }
}

/// Why a text cannot name an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than [`EVENT_NAME_BYTES_MAX`].
    #[error("an event name has at most {EVENT_NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// One of [`RESERVED_EVENT_NAMES`].
    #[error("the event name `{0}` is reserved")]
    Reserved(&'static str),
}

/// Checks that events may have this name: in both protocols, because their clients meet in the same rooms.
pub fn check_event_name(name: &str) -> Result<(), NameError> {
    if name.len() > EVENT_NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    match RESERVED_EVENT_NAMES.iter().find(|reserved| **reserved == name) {
        Some(reserved) => Err(NameError::Reserved(reserved)),
        None => Ok(()),
    }
}

/// One event on its way to a decision.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name.
    pub name: Arc<str>,
    /// The namespace it was said in.
    pub namespace: Arc<str>,
    /// What it carries.
    pub data: Payload,
    /// Who said it; `None` when it came from the tenant's own back end.
    pub sender: Option<Client>,
}

/// A refusal or failure as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Short machine-readable word, for example `forbidden`.
    pub code: String,
    /// For people: names the limit, the value and the setting where there is one.
    pub message: String,
    /// When it is worth trying again, in milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What was behind it in a component's own words, for the tenant's records. It is never sent to clients.
    #[serde(skip)]
    pub cause: Option<Box<str>>,
}

impl Refusal {
    /// A refusal without advice on when to come back.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { code: code.into(), message: message.into(), retry_after_ms: None, cause: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_and_long_event_names_are_refused() {
        for reserved in RESERVED_EVENT_NAMES {
            assert_eq!(check_event_name(reserved), Err(NameError::Reserved(reserved)));
        }
        assert_eq!(check_event_name(&"é".repeat(64)), Ok(()));
        assert_eq!(check_event_name(&"x".repeat(129)), Err(NameError::TooLong(129)));
        assert_eq!(
            NameError::TooLong(129).to_string(),
            "an event name has at most 128 bytes, this one has 129",
            "the message names the limit and the value"
        );
    }
}
