//! Engine.IO v4: the packets under Socket.IO, over WebSocket and in HTTP long-polling bodies.
//!
//! Over WebSocket a text message is one packet, its type the first digit, and a binary
//! message is one binary packet. A polling body is packets with U+001E between them, binary ones as
//! `b` and base64.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, general_purpose};
use serde::Serialize;

use super::{Message, push_json_string};

/// The version of the protocol, as clients say it in the query parameter `EIO`.
pub const PROTOCOL_VERSION: &str = "4";

/// The longest text a ping may carry, in bytes; `probe` has 5.
pub const PING_BYTES_MAX: usize = 32;

/// What parts the packets of a polling body. In valid JSON it stands nowhere unescaped.
const SEPARATOR: char = '\u{1e}';

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    general_purpose::PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text packet that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The client leaves.
    Close,
    /// Wants a pong with the same text; from clients only while a transport is tried, as `probe`.
    Ping(&'a str),
    /// The answer to our ping.
    Pong,
    /// A Socket.IO packet.
    Message(&'a str),
    /// The transport that was tried takes over.
    Upgrade,
    /// Nothing.
    Noop,
}

/// Why something is not a packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// No type, no packet.
    #[error("an Engine.IO packet must not be empty")]
    Empty,
    /// The first character is not 1 to 6.
    #[error("an Engine.IO packet of a client starts with a digit from 1 to 6")]
    UnknownType,
    /// A ping with more text than [`PING_BYTES_MAX`].
    #[error("a ping has at most {PING_BYTES_MAX} bytes of text, this one has {0}")]
    LongPing(usize),
    /// `b` and then something that is not base64.
    #[error("a binary packet in a polling body is not valid base64")]
    NotBase64,
}

/// Reads a text packet.
pub fn decode(text: &str) -> Result<Packet<'_>, PacketError> {
    let Some(packet_type) = text.chars().next() else { return Err(PacketError::Empty) };
    let rest = &text[packet_type.len_utf8()..];
    match packet_type {
        '1' => Ok(Packet::Close),
        '2' if rest.len() > PING_BYTES_MAX => Err(PacketError::LongPing(rest.len())),
        '2' => Ok(Packet::Ping(rest)),
        '3' => Ok(Packet::Pong),
        '4' => Ok(Packet::Message(rest)),
        '5' => Ok(Packet::Upgrade),
        '6' => Ok(Packet::Noop),
        _ => Err(PacketError::UnknownType),
    }
}

/// Reads the messages of a polling body, one by one; the body is bounded by who read it.
pub fn decode_polling(body: &str) -> impl Iterator<Item = Result<Message, PacketError>> {
    body.split(SEPARATOR).map(|packet| match packet.strip_prefix('b') {
        Some(base64) => {
            BASE64.decode(base64).map(|bytes| Message::Binary(bytes.into())).map_err(|_| PacketError::NotBase64)
        }
        None if packet.is_empty() => Err(PacketError::Empty),
        None => Ok(Message::Text(packet.to_owned())),
    })
}

/// Appends a message to a polling body; an empty body is what none have been appended to.
pub fn push_polling(body: &mut String, message: &Message) {
    if !body.is_empty() {
        body.push(SEPARATOR);
    }
    match message {
        Message::Text(packet) => body.push_str(packet),
        Message::Binary(bytes) => {
            body.push('b');
            BASE64.encode_string(bytes, body);
        }
    }
}

/// The packet with which a session begins. Times in milliseconds; `max_payload` in bytes is what one
/// message or polling body may have; `upgrades` names the transports that may take over.
pub fn handshake(
    sid: &str,
    ping_interval_ms: u64,
    ping_timeout_ms: u64,
    max_payload: usize,
    upgrades: &[&str],
) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Open<'a> {
        sid: &'a str,
        upgrades: &'a [&'a str],
        ping_interval: u64,
        ping_timeout: u64,
        max_payload: usize,
    }
    let open = Open { sid, upgrades, ping_interval: ping_interval_ms, ping_timeout: ping_timeout_ms, max_payload };
    // Texts and numbers always have a JSON form.
    format!("0{}", serde_json::to_string(&open).unwrap_or_default())
}

/// The packet that ends a session.
pub const CLOSE: &str = "1";

/// The packet that asks whether the client is still there.
pub const PING: &str = "2";

/// The packet that a poll which is to return at once is answered with.
pub const NOOP: &str = "6";

/// The answer to a ping: `3probe` for `2probe`.
pub fn pong(text: &str) -> String {
    format!("3{text}")
}

/// Why an HTTP request is no part of a session: Engine.IO's own list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestError {
    /// `transport` is neither `polling` nor `websocket`.
    UnknownTransport,
    /// There is no session of this `sid`, or not any more.
    UnknownSession,
    /// A session begins with a GET.
    BadHandshakeMethod,
    /// Anything else that is wrong with the request.
    BadRequest,
    /// The request is understood and refused, for example for its origin.
    Forbidden,
    /// `EIO` is not 4.
    UnsupportedVersion,
}

impl RequestError {
    /// All of them, by code.
    pub const ALL: [RequestError; 6] = [
        RequestError::UnknownTransport,
        RequestError::UnknownSession,
        RequestError::BadHandshakeMethod,
        RequestError::BadRequest,
        RequestError::Forbidden,
        RequestError::UnsupportedVersion,
    ];

    /// Engine.IO's code and message.
    fn code_and_message(self) -> (u8, &'static str) {
        match self {
            RequestError::UnknownTransport => (0, "Transport unknown"),
            RequestError::UnknownSession => (1, "Session ID unknown"),
            RequestError::BadHandshakeMethod => (2, "Bad handshake method"),
            RequestError::BadRequest => (3, "Bad request"),
            RequestError::Forbidden => (4, "Forbidden"),
            RequestError::UnsupportedVersion => (5, "Unsupported protocol version"),
        }
    }

    /// Engine.IO's code, 0 to 5.
    pub fn code(self) -> u8 {
        self.code_and_message().0
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        if self == RequestError::Forbidden { 403 } else { 400 }
    }

    /// The body of the answer, `application/json`.
    pub fn body(self) -> String {
        let (code, message) = self.code_and_message();
        let mut body = format!("{{\"code\":{code},\"message\":");
        push_json_string(&mut body, message);
        body.push('}');
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    /// Examples of the Engine.IO protocol document, and its edges.
    #[test]
    fn packets_are_told_apart_by_their_first_digit() {
        for (text, expected) in [
            ("1", Ok(Packet::Close)),
            ("2", Ok(Packet::Ping(""))),
            ("2probe", Ok(Packet::Ping("probe"))),
            ("3", Ok(Packet::Pong)),
            ("3probe", Ok(Packet::Pong)),
            ("4hello", Ok(Packet::Message("hello"))),
            ("4", Ok(Packet::Message(""))),
            ("4€", Ok(Packet::Message("€"))),
            ("5", Ok(Packet::Upgrade)),
            ("6", Ok(Packet::Noop)),
            ("", Err(PacketError::Empty)),
            ("0{}", Err(PacketError::UnknownType)),
            ("7", Err(PacketError::UnknownType)),
            ("abc", Err(PacketError::UnknownType)),
            ("€", Err(PacketError::UnknownType)),
        ] {
            assert_eq!(decode(text), expected, "{text:?}");
        }
        assert_eq!(decode(&format!("2{}", "x".repeat(33))), Err(PacketError::LongPing(33)));
    }

    #[test]
    fn the_handshake_is_what_clients_expect() {
        assert_eq!(
            handshake("lv_VI97HAXpY6yYWAAAC", 25_000, 20_000, 1_000_000, &["websocket"]),
            r#"0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
        );
        assert!(handshake("x", 1, 1, 1, &[]).contains(r#""upgrades":[],"#));
    }

    #[test]
    fn a_polling_body_of_the_protocol_document_reads_as_its_packets() {
        let text = |text: &str| Ok(Message::Text(text.into()));
        let body = "4hello\u{1e}2\u{1e}4world\u{1e}bAQIDBA==\u{1e}bAQIDBA";
        let bytes = || Ok(Message::Binary(Bytes::from_static(&[1, 2, 3, 4])));
        assert_eq!(
            decode_polling(body).collect::<Vec<_>>(),
            [text("4hello"), text("2"), text("4world"), bytes(), bytes()]
        );
        for (body, error) in
            [("", PacketError::Empty), ("4a\u{1e}", PacketError::Empty), ("b*", PacketError::NotBase64)]
        {
            assert_eq!(decode_polling(body).last(), Some(Err(error)), "{body:?}");
        }
    }

    #[test]
    fn each_request_error_has_its_place_in_engine_ios_list() {
        for (code, error) in RequestError::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(error.code()), code);
        }
        assert_eq!(RequestError::UnknownSession.body(), r#"{"code":1,"message":"Session ID unknown"}"#);
        assert_eq!(RequestError::Forbidden.status(), 403);
    }

    proptest! {
        #[test]
        fn messages_survive_a_polling_body(
            messages in prop::collection::vec(
                prop_oneof![
                    "[0-6][^\u{1e}]{0,20}".prop_map(Message::Text),
                    prop::collection::vec(any::<u8>(), 0..20).prop_map(|b| Message::Binary(b.into())),
                ],
                1..8,
            )
        ) {
            let mut body = String::new();
            for message in &messages {
                push_polling(&mut body, message);
            }
            prop_assert_eq!(decode_polling(&body).collect::<Result<Vec<_>, _>>().unwrap(), messages);
        }

        #[test]
        fn no_text_makes_the_decoders_panic(text in any::<String>()) {
            let _ = decode(&text);
            decode_polling(&text).for_each(drop);
        }
    }
}
