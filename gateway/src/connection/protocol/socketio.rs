//! Socket.IO v5: packets in Engine.IO messages.
//!
//! `<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]`, then one binary message per
//! attachment. The [`Decoder`] reads what clients send; the functions write what they get.

use std::sync::Arc;

use bytes::Bytes;

use super::arguments::{self, ATTACHMENTS_MAX, ArgumentsError};
use super::engineio::{self, PacketError};
use super::{
    AckId, Input, Message, NameError, NamespaceError, check_event_name, parse_namespace, push_json_string, push_number,
};
use crate::close::Close;
use crate::event::Payload;
use crate::room::ROOT_NAMESPACE;

/// The most digits an ack id may have; all ids of 64 bits fit.
pub const ACK_ID_DIGITS_MAX: usize = 20;

/// Why a message is not one that a client may send at this point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Wrong below Socket.IO already.
    #[error(transparent)]
    Engine(#[from] PacketError),
    /// No type, no packet.
    #[error("a Socket.IO packet must not be empty")]
    Empty,
    /// The first character is not one of a packet that clients send.
    #[error("a Socket.IO packet of a client is of type 0, 1, 2, 3, 5 or 6")]
    UnknownType,
    /// A binary packet that does not say how many attachments it has.
    #[error("a binary packet must name its number of attachments, followed by `-`")]
    NoAttachmentCount,
    /// More than [`ATTACHMENTS_MAX`].
    #[error("a packet has at most {ATTACHMENTS_MAX} attachments, this one announces {0}")]
    TooManyAttachments(usize),
    /// Longer than [`ACK_ID_DIGITS_MAX`].
    #[error("an ack id has at most {ACK_ID_DIGITS_MAX} digits, this one has {0}")]
    LongAckId(usize),
    /// 20 digits that are more than 64 bits.
    #[error("an ack id is at most {}", u64::MAX)]
    LargeAckId,
    /// An ack that does not say of what.
    #[error("an ack must have an id")]
    NoAckId,
    /// CONNECT or DISCONNECT with an ack id.
    #[error("only events and acks have an ack id")]
    UnexpectedAckId,
    /// CONNECT with a payload that is no JSON object.
    #[error("the payload of CONNECT must be a JSON object")]
    BadAuth,
    /// DISCONNECT with a payload.
    #[error("DISCONNECT has no payload")]
    UnexpectedPayload,
    /// Not one of the names that namespaces may have.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// An event whose first element is missing or no string.
    #[error("the first element of an event must be its name, a string")]
    NoEventName,
    /// Not one of the names that events may have.
    #[error(transparent)]
    EventName(#[from] NameError),
    /// The arguments are wrong in themselves or do not fit the attachments.
    #[error(transparent)]
    Arguments(#[from] ArgumentsError),
    /// Text and attachments together are more than is allowed.
    #[error("a message has at most {limit} bytes, this one has {bytes} or more (setting `message_bytes`)")]
    TooLarge {
        /// What it has so far.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// Another packet began before all attachments had come.
    #[error("a packet came while {0} attachments of the one before were missing")]
    MissingAttachments(usize),
    /// Nothing waits for an attachment.
    #[error("a binary message came that no packet announced")]
    UnexpectedAttachment,
}

impl DecodeError {
    /// How the connection ends for it.
    pub fn close(&self) -> Close {
        match self {
            DecodeError::TooLarge { .. } => Close::MessageTooLarge,
            _ => Close::ProtocolError,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connect,
    Disconnect,
    Event,
    Ack,
}

/// A packet's text before its JSON is looked at.
struct Header<'a> {
    kind: Kind,
    attachments: usize,
    namespace: &'a str,
    id: Option<AckId>,
    body: &'a str,
}

/// An event or ack whose attachments are still to come.
#[derive(Debug)]
struct Partial {
    input: Input,
    attachments: Vec<Bytes>,
    announced: usize,
    bytes: usize,
}

/// Reads what one client sends, message by message.
///
/// After an error the stream cannot be trusted any more: end the connection as
/// [`DecodeError::close`] says.
#[derive(Debug)]
pub struct Decoder {
    limit_bytes: usize,
    /// The namespace of the packet before: nearly always that of the next one.
    namespace: Arc<str>,
    partial: Option<Box<Partial>>,
}

impl Decoder {
    /// A decoder for packets of at most `limit_bytes`, attachments included.
    pub fn new(limit_bytes: usize) -> Decoder {
        Decoder { limit_bytes, namespace: ROOT_NAMESPACE.into(), partial: None }
    }

    /// Sets another limit, once it is known whose client this is.
    pub fn set_limit(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes;
    }

    /// Takes the next message; `None` when it means nothing by itself.
    pub fn decode(&mut self, message: Message) -> Result<Option<Input>, DecodeError> {
        let decoded = match message {
            Message::Text(text) => self.text(text),
            Message::Binary(bytes) => self.attachment(bytes),
        };
        if decoded.is_err() {
            self.partial = None;
        }
        decoded
    }

    fn text(&mut self, text: String) -> Result<Option<Input>, DecodeError> {
        let packet = match engineio::decode(&text)? {
            engineio::Packet::Message(packet) => packet,
            // Clients answer pings whenever they come, also between attachments.
            engineio::Packet::Ping(probe) => return Ok(Some(Input::Ping(probe.to_owned()))),
            engineio::Packet::Pong => return Ok(Some(Input::Pong)),
            engineio::Packet::Upgrade => return Ok(Some(Input::Upgrade)),
            engineio::Packet::Close => return Ok(Some(Input::Close)),
            engineio::Packet::Noop => return Ok(None),
        };
        if let Some(partial) = &self.partial {
            return Err(DecodeError::MissingAttachments(partial.announced - partial.attachments.len()));
        }
        let bytes = text.len();
        self.check_size(bytes)?;

        let header = header(packet)?;
        let announced = header.attachments;
        let namespace = self.namespace(header.namespace)?;
        let input = match header.kind {
            Kind::Connect => connect(namespace, &header)?,
            Kind::Disconnect if header.id.is_some() => return Err(DecodeError::UnexpectedAckId),
            Kind::Disconnect if !header.body.is_empty() => return Err(DecodeError::UnexpectedPayload),
            Kind::Disconnect => Input::Disconnect { namespace },
            Kind::Ack => ack_input(namespace, &header)?,
            Kind::Event => {
                let (ack, body_at) = (header.id, bytes - header.body.len());
                event_input(namespace, ack, text, body_at, announced)?
            }
        };
        if announced == 0 {
            return Ok(Some(input));
        }
        let attachments = Vec::with_capacity(announced);
        self.partial = Some(Box::new(Partial { input, attachments, announced, bytes }));
        Ok(None)
    }

    fn attachment(&mut self, attachment: Bytes) -> Result<Option<Input>, DecodeError> {
        let mut partial = self.partial.take().ok_or(DecodeError::UnexpectedAttachment)?;
        partial.bytes = partial.bytes.saturating_add(attachment.len());
        self.check_size(partial.bytes)?;
        partial.attachments.push(attachment);
        if partial.attachments.len() < partial.announced {
            self.partial = Some(partial);
            return Ok(None);
        }
        let Partial { mut input, attachments, .. } = *partial;
        if let Input::Event { data, .. } | Input::Ack { data, .. } = &mut input {
            data.attachments = attachments;
        }
        Ok(Some(input))
    }

    fn check_size(&self, bytes: usize) -> Result<(), DecodeError> {
        let limit = self.limit_bytes;
        if bytes > limit { Err(DecodeError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    fn namespace(&mut self, text: &str) -> Result<Arc<str>, NamespaceError> {
        if text != &*self.namespace {
            let namespace = parse_namespace(text)?;
            if namespace != &*self.namespace {
                self.namespace = namespace.into();
            }
        }
        Ok(Arc::clone(&self.namespace))
    }
}

fn header(packet: &str) -> Result<Header<'_>, DecodeError> {
    let (kind, binary) = match packet.as_bytes().first() {
        Some(b'0') => (Kind::Connect, false),
        Some(b'1') => (Kind::Disconnect, false),
        Some(b'2') => (Kind::Event, false),
        Some(b'3') => (Kind::Ack, false),
        Some(b'5') => (Kind::Event, true),
        Some(b'6') => (Kind::Ack, true),
        Some(_) => return Err(DecodeError::UnknownType),
        None => return Err(DecodeError::Empty),
    };
    let mut rest = &packet[1..];
    let mut attachments = 0;
    if binary {
        let (digits, after) = split_digits(rest);
        rest = after.strip_prefix('-').ok_or(DecodeError::NoAttachmentCount)?;
        attachments = match digits.parse() {
            Ok(count) => count,
            Err(_) if digits.is_empty() => return Err(DecodeError::NoAttachmentCount),
            Err(_) => usize::MAX,
        };
        if attachments > ATTACHMENTS_MAX {
            return Err(DecodeError::TooManyAttachments(attachments));
        }
    }
    let mut namespace = ROOT_NAMESPACE;
    if rest.starts_with('/') {
        (namespace, rest) = rest.split_once(',').unwrap_or((rest, ""));
    }
    let (digits, body) = split_digits(rest);
    Ok(Header { kind, attachments, namespace, id: ack_id(digits)?, body })
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len()))
}

fn ack_id(digits: &str) -> Result<Option<AckId>, DecodeError> {
    match digits.len() {
        0 => Ok(None),
        1..=ACK_ID_DIGITS_MAX => digits.parse().map(Some).map_err(|_| DecodeError::LargeAckId),
        long => Err(DecodeError::LongAckId(long)),
    }
}

fn connect(namespace: Arc<str>, header: &Header<'_>) -> Result<Input, DecodeError> {
    if header.id.is_some() {
        return Err(DecodeError::UnexpectedAckId);
    }
    if header.body.is_empty() {
        return Ok(Input::Connect { namespace, auth: None });
    }
    let auth = header.body.trim_ascii();
    // An array around it makes the checks for arguments the checks for this.
    let wrapped = format!("[{auth}]");
    let alone = arguments::elements(&wrapped).is_ok_and(|elements| !elements.more);
    if !alone || !auth.starts_with('{') {
        return Err(DecodeError::BadAuth);
    }
    arguments::check_valid(&wrapped, 0)?;
    Ok(Input::Connect { namespace, auth: Some(auth.to_owned()) })
}

fn ack_input(namespace: Arc<str>, header: &Header<'_>) -> Result<Input, DecodeError> {
    let id = header.id.ok_or(DecodeError::NoAckId)?;
    let args = header.body.trim_ascii();
    arguments::check(args, header.attachments)?;
    Ok(Input::Ack { namespace, id, data: Payload { args: args.into(), attachments: Vec::new() } })
}

/// Parts `["name",…]`, which begins at `body_at` of `text`, into the name and `[…]`.
fn event_input(
    namespace: Arc<str>,
    ack: Option<AckId>,
    mut text: String,
    body_at: usize,
    attachments: usize,
) -> Result<Input, DecodeError> {
    let body = &text[body_at..];
    let elements = arguments::elements(body)?;
    let quoted = elements.first.ok_or(DecodeError::NoEventName)?;
    let name = event_name(quoted)?;
    let args = if elements.more {
        // Spaces, a bracket, spaces, the name, spaces, a comma: the comma becomes the bracket.
        let name_at = body_at + body.len() - arguments::inside_start(body).len();
        let comma_at = text.len() - text[name_at + quoted.len()..].trim_ascii_start().len();
        text.replace_range(comma_at..=comma_at, "[");
        let args = text[comma_at..].trim_ascii_end();
        arguments::check_valid(args, attachments)?;
        Arc::from(args)
    } else {
        arguments::check_valid("[]", attachments)?;
        Arc::from("[]")
    };
    Ok(Input::Event { namespace, name, data: Payload { args, attachments: Vec::new() }, ack })
}

fn event_name(quoted: &str) -> Result<Arc<str>, DecodeError> {
    let plain = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or(DecodeError::NoEventName)?;
    if !plain.contains('\\') {
        check_event_name(plain)?;
        return Ok(plain.into());
    }
    let name: String = serde_json::from_str(quoted).map_err(|_| DecodeError::NoEventName)?;
    check_event_name(&name)?;
    Ok(name.into())
}

/// A packet on its way to clients: its text, then one binary message per attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The text message.
    pub text: String,
    /// The binary messages.
    pub attachments: Vec<Bytes>,
}

impl Packet {
    /// The messages, in the order in which they must follow each other.
    pub fn into_messages(self) -> impl Iterator<Item = Message> {
        std::iter::once(Message::Text(self.text)).chain(self.attachments.into_iter().map(Message::Binary))
    }
}

/// An event.
///
/// `offset` is appended as the last argument and is what the client presents when it comes back (connection
/// state recovery). The JavaScript client that was given a `pid` takes *any* string in last place for
/// it, so leave it out only where no `pid` was given or the last argument is no string.
pub fn event(namespace: &str, name: &str, data: &Payload, offset: Option<&str>) -> Packet {
    let args = arguments::inside(&data.args);
    let capacity = namespace.len() + name.len() + args.len() + offset.map_or(0, str::len) + 32;
    let mut text = begin(b'2', namespace, data, capacity);
    text.push('[');
    push_json_string(&mut text, name);
    if !args.trim_ascii().is_empty() {
        text.push(',');
        text.push_str(args);
    }
    if let Some(offset) = offset {
        text.push(',');
        push_json_string(&mut text, offset);
    }
    text.push(']');
    Packet { text, attachments: data.attachments.clone() }
}

/// The answer to an event that came with an ack id.
pub fn ack(namespace: &str, id: AckId, data: &Payload) -> Packet {
    let mut text = begin(b'3', namespace, data, namespace.len() + data.args.len() + 48);
    push_number(&mut text, id);
    text.push_str(data.args.trim_ascii());
    Packet { text, attachments: data.attachments.clone() }
}

/// The answer to a CONNECT that succeeds. `sid` is the connection's id; `pid`, the session's
/// secret name, tells the client that it may recover.
pub fn connected(namespace: &str, sid: &str, pid: Option<&str>) -> String {
    let mut text = begin(b'0', namespace, &Payload::empty(), namespace.len() + 96);
    text.push_str("{\"sid\":");
    push_json_string(&mut text, sid);
    if let Some(pid) = pid {
        text.push_str(",\"pid\":");
        push_json_string(&mut text, pid);
    }
    text.push('}');
    text
}

/// The answer to a CONNECT that fails. `data` is valid JSON; clients find it as `error.data`.
pub fn connect_error(namespace: &str, message: &str, data: Option<&str>) -> String {
    let mut text = begin(b'4', namespace, &Payload::empty(), namespace.len() + message.len() + 64);
    text.push_str("{\"message\":");
    push_json_string(&mut text, message);
    if let Some(data) = data {
        text.push_str(",\"data\":");
        text.push_str(data);
    }
    text.push('}');
    text
}

/// Ends a namespace from the server's side.
pub fn disconnect(namespace: &str) -> String {
    begin(b'1', namespace, &Payload::empty(), namespace.len() + 4)
}

/// Everything before the ack id. Events and acks with attachments have types of their own, 3 above the plain ones.
fn begin(packet_type: u8, namespace: &str, data: &Payload, capacity: usize) -> String {
    let mut text = String::with_capacity(capacity);
    text.push('4');
    if data.attachments.is_empty() {
        text.push(char::from(packet_type));
    } else {
        text.push(char::from(packet_type + 3));
        push_number(&mut text, data.attachments.len() as u64);
        text.push('-');
    }
    if namespace != ROOT_NAMESPACE {
        text.push_str(namespace);
        text.push(',');
    }
    text
}

#[cfg(test)]
mod tests;
