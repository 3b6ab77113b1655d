//! Bytes ↔ events, without I/O.
//!
//! Two languages, one meaning: [`socketio`] over [`engineio`] at `/socket.io/`, [`json`] at `/ws`.
//! Both decode to [`Input`] and keep the arguments of events as the text they came in; no
//! JSON tree is built for an event on its way through.

use std::sync::Arc;

use bytes::Bytes;

use crate::event::Payload;
pub use crate::event::{NameError, arguments, check_event_name};

pub mod engineio;
pub mod json;
pub mod socketio;

/// The longest namespace, in bytes, its `/` included and its query not.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// Names a question that wants an answer; chosen by who asks, unique to its connection and namespace.
pub type AckId = u64;

/// One whole WebSocket message, already bounded and put together by the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
}

/// What a client's message means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Socket.IO CONNECT of a namespace.
    Connect {
        /// Which.
        namespace: Arc<str>,
        /// The `auth` payload: the text of a JSON object. Holds tokens; not to be logged.
        auth: Option<String>,
    },
    /// Socket.IO DISCONNECT of a namespace.
    Disconnect {
        /// Which.
        namespace: Arc<str>,
    },
    /// Something for the tenant's components to decide.
    Event {
        /// Where it was said.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The arguments without the name; each placeholder names an attachment.
        data: Payload,
        /// The client wants an answer under this id.
        ack: Option<AckId>,
    },
    /// An answer to something that was asked of the client.
    Ack {
        /// Where it was asked.
        namespace: Arc<str>,
        /// What it answers.
        id: AckId,
        /// The answer.
        data: Payload,
    },
    /// Engine.IO ping from the client; answered by [`engineio::pong`] of the same text, which is
    /// `probe` while a transport is tried.
    Ping(String),
    /// Engine.IO pong.
    Pong,
    /// Engine.IO upgrade: the transport that was tried takes over.
    Upgrade,
    /// Engine.IO close: the client leaves.
    Close,
}

/// Why a text is not a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// It does not start with `/`.
    #[error("a namespace must start with `/`")]
    NoSlash,
    /// Longer than [`NAMESPACE_BYTES_MAX`].
    #[error("a namespace has at most {NAMESPACE_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// `#` parts a namespace from a room name; `,` ends a namespace in a Socket.IO packet.
    #[error("a namespace must not contain `#`, `,` or control characters")]
    Character,
}

/// Reads a namespace as a client writes it: a query after `?` is dropped.
pub fn parse_namespace(text: &str) -> Result<&str, NamespaceError> {
    let namespace = text.split_once('?').map_or(text, |(namespace, _query)| namespace);
    if !namespace.starts_with('/') {
        return Err(NamespaceError::NoSlash);
    }
    if namespace.len() > NAMESPACE_BYTES_MAX {
        return Err(NamespaceError::TooLong(namespace.len()));
    }
    if namespace.chars().any(|c| matches!(c, '#' | ',') || c.is_control()) {
        return Err(NamespaceError::Character);
    }
    Ok(namespace)
}

/// Appends `text` as a JSON string.
fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\') {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            control => {
                out.push_str(if control < 0x10 { "\\u000" } else { "\\u001" });
                out.push(char::from(b"0123456789abcdef"[usize::from(control & 0xf)]));
            }
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Appends a number in decimal.
fn push_number(out: &mut String, number: u64) {
    use std::fmt::Write as _;
    // Writing to a string cannot fail.
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn namespaces_lose_their_query_and_cannot_be_mistaken_for_rooms() {
        for (text, expected) in [
            ("/", Ok("/")),
            ("/?token=x", Ok("/")),
            ("/events?a=1?b=2", Ok("/events")),
            ("", Err(NamespaceError::NoSlash)),
            ("events", Err(NamespaceError::NoSlash)),
            ("/events#lobby", Err(NamespaceError::Character)),
            ("/a,b", Err(NamespaceError::Character)),
            ("/a\u{7f}", Err(NamespaceError::Character)),
        ] {
            assert_eq!(parse_namespace(text), expected, "{text:?}");
        }
        let long = format!("/{}", "n".repeat(NAMESPACE_BYTES_MAX));
        assert_eq!(parse_namespace(&long), Err(NamespaceError::TooLong(129)));
        assert_eq!(parse_namespace(&format!("{}?{long}", &long[..128])), Ok(&long[..128]));
    }

    proptest! {
        #[test]
        fn any_text_written_as_a_json_string_reads_back(text in any::<String>(), control in "[\\x00-\\x1f\"\\\\]{0,8}") {
            for text in [format!("{text}{control}"), format!("{control}{text}")] {
                let mut out = String::new();
                push_json_string(&mut out, &text);
                prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
            }
        }
    }
}
