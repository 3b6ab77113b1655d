//! A client's protocol, as the session speaks it: messages to inputs, answers to frames.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use crate::client::random_id;
use crate::close::Close;
use crate::commit::{Cursor, Position, Publication};
use crate::config::Config;
use crate::connection::protocol::{AckId, Input, Message, engineio, json as plain, socketio};
use crate::connection::socket::{binary_frame, close_frame, ping_frame, text_frame};
use crate::connection::upgrade::Protocol;
use crate::delivery::rooms::{Dialect, Place};
use crate::event::{Payload, Refusal};

/// What a client speaks, with what decoding has to remember.
pub(super) enum Language {
    /// The JSON protocol at `/ws`.
    Json,
    /// Socket.IO v5 over Engine.IO v4.
    SocketIo {
        decoder: Box<socketio::Decoder>,
        /// Are clients given a `pid`, and an offset with every event? The tenant's setting, once that is known.
        recovery: bool,
    },
}

/// What one message says: inputs, or what is wrong with one of them.
pub(super) type Said = Result<Input, (Option<AckId>, Refusal)>;

impl Language {
    pub(super) fn new(protocol: Protocol, message_bytes_max: usize) -> Language {
        match protocol {
            Protocol::Json => Language::Json,
            Protocol::SocketIo => {
                Language::SocketIo { decoder: Box::new(socketio::Decoder::new(message_bytes_max)), recovery: false }
            }
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self {
            Language::Json => Protocol::Json,
            Language::SocketIo { .. } => Protocol::SocketIo,
        }
    }

    /// The tenant is known, and whether its Socket.IO clients are given offsets.
    pub(super) fn set_recovery(&mut self, wanted: bool) {
        if let Language::SocketIo { recovery, .. } = self {
            *recovery = wanted;
        }
    }

    /// Does every event say how far the client has come?
    pub(super) fn has_offsets(&self) -> bool {
        matches!(self, Language::SocketIo { recovery: true, .. })
    }

    pub(super) fn set_message_bytes_max(&mut self, bytes: usize) {
        if let Language::SocketIo { decoder, .. } = self {
            decoder.set_limit(bytes);
        }
    }

    /// Bytes → inputs. An error ends the connection.
    pub(super) fn decode(
        &mut self,
        message: Message,
        namespace: &std::sync::Arc<str>,
    ) -> Result<Vec<Said>, (Close, String)> {
        match self {
            Language::Json => plain::decode(&message, namespace)
                .map(|inputs| inputs.map(|input| input.map_err(|error| (error.id, error.refusal()))).collect())
                .map_err(|error| (error.close(), error.to_string())),
            Language::SocketIo { decoder, .. } => decoder
                .decode(message)
                .map(|input| input.into_iter().map(Ok).collect())
                .map_err(|error| (error.close(), error.to_string())),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Language::Json => {
                Dialect { slot: 0, event: json_event, farewell: json_farewell, reset: json_reset, notice: json_notice }
            }
            Language::SocketIo { recovery: false, .. } => Dialect {
                slot: 1,
                event: socketio_event,
                farewell: socketio_farewell,
                reset: socketio_reset,
                notice: socketio_notice,
            },
            Language::SocketIo { recovery: true, .. } => Dialect {
                slot: 2,
                event: offset_event,
                farewell: offset_farewell,
                reset: offset_reset,
                notice: offset_notice,
            },
        }
    }

    /// An event to this client only.
    pub(super) fn event(&self, namespace: &str, name: &str, data: &Payload, reached: Option<Cursor>) -> Bytes {
        match self {
            Language::Json => text_frame(&plain::notice_payload(name, data)),
            Language::SocketIo { .. } => packet(offset(namespace, name, data, reached)),
        }
    }

    pub(super) fn answer(&self, namespace: &str, ack: AckId, data: &Payload) -> Bytes {
        match self {
            Language::Json => text_frame(&plain::answer(ack, data)),
            Language::SocketIo { .. } => packet(socketio::ack(namespace, ack, data)),
        }
    }

    /// The event `error`.
    pub(super) fn error(&self, namespace: &str, refusal: &Refusal, reached: Option<Cursor>) -> Bytes {
        match self {
            Language::Json => text_frame(&plain::error(None, refusal)),
            Language::SocketIo { .. } => packet(offset(namespace, "error", &error_payload(refusal), reached)),
        }
    }

    /// A refusal as the acknowledgement that was asked for.
    pub(super) fn refused(&self, namespace: &str, ack: AckId, refusal: &Refusal) -> Bytes {
        match self {
            Language::Json => text_frame(&plain::error(Some(ack), refusal)),
            Language::SocketIo { .. } => {
                packet(socketio::ack(namespace, ack, &Payload::one(&json!({ "error": refusal }))))
            }
        }
    }

    pub(super) fn connected(&self, connection: &str, session: &str, namespace: &str, welcome: &Value) -> Bytes {
        match self {
            Language::Json => text_frame(&plain::connected(welcome)),
            // Clients that are given a `pid` expect an offset behind every event.
            Language::SocketIo { recovery, .. } => {
                text_frame(&socketio::connected(namespace, connection, recovery.then_some(session)))
            }
        }
    }

    pub(super) fn ping(&self) -> Bytes {
        match self {
            Language::Json => ping_frame(),
            Language::SocketIo { .. } => text_frame(engineio::PING),
        }
    }

    /// The last frames. Socket.IO clients do not look at close codes: those that are not to come back by
    /// themselves are disconnected from each namespace first.
    pub(super) fn farewell(&self, close: Close, namespaces: &[&str]) -> Bytes {
        let mut last = BytesMut::new();
        if matches!(self, Language::SocketIo { .. }) && !close.reconnect() {
            for namespace in namespaces {
                last.extend_from_slice(&text_frame(&socketio::disconnect(namespace)));
            }
        }
        // 1006 says that there was no close frame (RFC 6455 §7.4.1).
        if close != Close::ConnectionLost {
            last.extend_from_slice(&close_frame(close.code(), close.word()));
        }
        last.freeze()
    }
}

/// A packet's frames, one behind the other.
fn packet(packet: socketio::Packet) -> Bytes {
    if packet.attachments.is_empty() {
        return text_frame(&packet.text);
    }
    let mut frames = BytesMut::new();
    for message in packet.into_messages() {
        match message {
            Message::Text(text) => frames.extend_from_slice(&text_frame(&text)),
            Message::Binary(bytes) => frames.extend_from_slice(&binary_frame(&bytes)),
        }
    }
    frames.freeze()
}

/// Engine.IO's greeting.
pub(super) fn handshake(config: &Config, message_bytes_max: usize) -> Bytes {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (interval, timeout) = (ms(config.ping_interval), ms(config.ping_timeout));
    text_frame(&engineio::handshake(&random_id(), interval, timeout, message_bytes_max, &[]))
}

pub(super) fn connect_error(namespace: &str, refusal: &Refusal) -> Bytes {
    let data = json!({ "code": refusal.code, "retry_after_ms": refusal.retry_after_ms });
    text_frame(&socketio::connect_error(namespace, &refusal.message, Some(&data.to_string())))
}

pub(super) fn engine_pong(text: &str) -> Bytes {
    text_frame(&engineio::pong(text))
}

fn error_payload(refusal: &Refusal) -> Payload {
    Payload::one(&json!(refusal))
}

/// An event with the offset that the client is to come back with; without one where there is none.
fn offset(namespace: &str, name: &str, data: &Payload, reached: Option<Cursor>) -> socketio::Packet {
    let reached = reached.map(|cursor| cursor.to_string());
    socketio::event(namespace, name, data, reached.as_deref())
}

fn json_event(publication: &Publication, place: Place) -> Bytes {
    let pos = match place {
        Place::Logged(cursor) => Some(cursor.to_string()),
        Place::Passing(_) => None,
    };
    text_frame(&plain::event(publication.room.name(), &publication.event, &publication.data, pos.as_deref()))
}

fn json_farewell(_namespace: &str, why: &Refusal, _reached: Option<Cursor>) -> Bytes {
    text_frame(&plain::error(None, why))
}

fn json_reset(_namespace: &str, position: Position) -> Bytes {
    text_frame(&plain::notice("reset", &json!({ "pos": position.to_string() })))
}

fn json_notice(_namespace: &str, event: &str, data: &Payload, _at: Position) -> Bytes {
    text_frame(&plain::notice_payload(event, data))
}

fn socketio_notice(namespace: &str, event: &str, data: &Payload, _at: Position) -> Bytes {
    packet(socketio::event(namespace, event, data, None))
}

fn socketio_event(publication: &Publication, _place: Place) -> Bytes {
    packet(socketio::event(publication.room.namespace(), &publication.event, &publication.data, None))
}

fn socketio_farewell(namespace: &str, why: &Refusal, _reached: Option<Cursor>) -> Bytes {
    packet(socketio::event(namespace, "error", &error_payload(why), None))
}

fn socketio_reset(namespace: &str, position: Position) -> Bytes {
    let data = Payload::one(&json!({ "pos": position.to_string() }));
    packet(socketio::event(namespace, "reset", &data, None))
}

fn offset_event(publication: &Publication, place: Place) -> Bytes {
    let cursor = match place {
        Place::Logged(cursor) => cursor,
        Place::Passing(position) => Cursor { position, part: None },
    };
    packet(offset(publication.room.namespace(), &publication.event, &publication.data, Some(cursor)))
}

fn offset_farewell(namespace: &str, why: &Refusal, reached: Option<Cursor>) -> Bytes {
    packet(offset(namespace, "error", &error_payload(why), reached))
}

fn offset_reset(namespace: &str, position: Position) -> Bytes {
    let data = Payload::one(&json!({ "pos": position.to_string() }));
    packet(offset(namespace, "reset", &data, Some(Cursor { position, part: None })))
}

fn offset_notice(namespace: &str, event: &str, data: &Payload, at: Position) -> Bytes {
    packet(offset(namespace, event, data, Some(Cursor { position: at, part: None })))
}
