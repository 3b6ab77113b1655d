//! The JSON protocol at `/ws`, for clients that speak no Socket.IO.
//!
//! A text message holds one or several objects, one a line:
//! `{"id":7,"event":"join_room","data":{…}}`, or `"args":[…]` where there is not exactly one
//! argument. What has an `id` is answered with it. Bytes come to these clients as base64 and do
//! not come from them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::arguments::{self, ArgumentsError};
use super::{AckId, Input, Message, NameError, check_event_name, push_json_string, push_number};
use crate::close::Close;
use crate::event::{Payload, Refusal};

/// How many objects one message may hold.
pub const OBJECTS_MAX: usize = 64;

/// Why a message cannot be taken at all. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Bytes are not spoken here.
    #[error("binary messages are not part of the JSON protocol")]
    Binary,
    /// More than [`OBJECTS_MAX`].
    #[error("a message has at most {OBJECTS_MAX} objects, this one has {0}")]
    TooManyObjects(usize),
}

impl MessageError {
    /// How the connection ends for it.
    pub fn close(self) -> Close {
        Close::ProtocolError
    }
}

/// What is wrong with one object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectProblem {
    /// Not JSON; the text says where, and nothing of what stood there.
    #[error("a line is not valid JSON: {0}")]
    NotJson(String),
    /// JSON, but not an object.
    #[error("a line must be a JSON object")]
    NotAnObject,
    /// `id`, `event`, `data` or `args` stands there twice.
    #[error("a field is given twice")]
    DoubleField,
    /// `id` is not a whole number of 64 bits.
    #[error("`id` must be a whole number from 0 to {}", u64::MAX)]
    BadId,
    /// `event` is missing or no string.
    #[error("`event` must be a string")]
    NoEventName,
    /// Not one of the names that events may have.
    #[error(transparent)]
    EventName(#[from] NameError),
    /// `data` and `args` together.
    #[error("an object has `data` or `args`, not both")]
    DataAndArgs,
    /// The arguments are wrong in themselves.
    #[error(transparent)]
    Arguments(#[from] ArgumentsError),
}

/// One object that cannot be taken; those beside it can. It is answered with [`error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ObjectError {
    /// The object's id, if that could be read.
    pub id: Option<AckId>,
    /// What is wrong.
    pub problem: ObjectProblem,
}

impl ObjectError {
    /// What the client is told: code `bad_request`.
    pub fn refusal(&self) -> Refusal {
        Refusal::new("bad_request", self.problem.to_string())
    }
}

/// Reads a message of a client that speaks in `namespace`: its objects in order, each an
/// [`Input::Event`] or what is wrong with it.
pub fn decode<'a>(
    message: &'a Message,
    namespace: &'a Arc<str>,
) -> Result<impl Iterator<Item = Result<Input, ObjectError>> + 'a, MessageError> {
    let text = match message {
        Message::Text(text) => text,
        Message::Binary(_) => return Err(MessageError::Binary),
    };
    let lines = || text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty());
    let objects = lines().count();
    if objects > OBJECTS_MAX {
        return Err(MessageError::TooManyObjects(objects));
    }
    Ok(lines().map(move |line| object(line, namespace)))
}

/// An object's fields, unread.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    /// `null` is an argument like any other.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
}

fn present<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

fn object(line: &str, namespace: &Arc<str>) -> Result<Input, ObjectError> {
    let without_id = |problem| ObjectError { id: None, problem };
    if !line.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok() {
        return Err(without_id(ObjectProblem::NotAnObject));
    }
    let fields: Fields<'_> = serde_json::from_str(line).map_err(|error| {
        // Only a syntax error's text is free of what the client sent; of an object all that
        // can be wrong otherwise is a double field.
        let double = error.is_data() && line.starts_with('{');
        without_id(if double { ObjectProblem::DoubleField } else { ObjectProblem::NotJson(error.to_string()) })
    })?;
    let id = match fields.id.map(|id| id.get().parse()) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => return Err(without_id(ObjectProblem::BadId)),
    };
    event_input(&fields, namespace, id).map_err(|problem| ObjectError { id, problem })
}

fn event_input(fields: &Fields<'_>, namespace: &Arc<str>, ack: Option<AckId>) -> Result<Input, ObjectProblem> {
    let name = match fields.event {
        Some(event) => serde_json::from_str::<Name<'_>>(event.get()).map_err(|_| ObjectProblem::NoEventName)?.0,
        None => return Err(ObjectProblem::NoEventName),
    };
    check_event_name(&name)?;
    let args: Arc<str> = match (fields.data, fields.args) {
        (Some(_), Some(_)) => return Err(ObjectProblem::DataAndArgs),
        (Some(data), None) => {
            let args = format!("[{}]", data.get());
            arguments::check_valid(&args, 0)?;
            args.into()
        }
        (None, Some(args)) => {
            arguments::check(args.get(), 0)?;
            args.get().into()
        }
        (None, None) => "[]".into(),
    };
    let data = Payload { args, attachments: Vec::new() };
    Ok(Input::Event { namespace: Arc::clone(namespace), name: name.as_ref().into(), data, ack })
}

/// A string that is copied only if it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

/// The answer to the object with this id: `{"id":7,"data":…}`.
pub fn answer(id: AckId, data: &Payload) -> String {
    let mut out = String::with_capacity(data.args.len() + 48);
    out.push_str("{\"id\":");
    push_number(&mut out, id);
    push_payload(&mut out, data);
    out.push('}');
    out
}

/// The refusal of the object with this id, or, without one, the event `error`.
pub fn error(id: Option<AckId>, refusal: &Refusal) -> String {
    let mut out = String::with_capacity(refusal.code.len() + refusal.message.len() + 96);
    match id {
        Some(id) => {
            out.push_str("{\"id\":");
            push_number(&mut out, id);
            out.push_str(",\"error\":{\"code\":");
        }
        None => out.push_str("{\"event\":\"error\",\"data\":{\"code\":"),
    }
    push_json_string(&mut out, &refusal.code);
    out.push_str(",\"message\":");
    push_json_string(&mut out, &refusal.message);
    if let Some(retry_after_ms) = refusal.retry_after_ms {
        out.push_str(",\"retry_after_ms\":");
        push_number(&mut out, retry_after_ms);
    }
    out.push_str("}}");
    out
}

/// An event that reaches the client through `room`; `pos` is the position to resume after.
/// Attachments follow as base64 in `attachments`, their placeholders stay.
pub fn event(room: &str, name: &str, data: &Payload, pos: Option<&str>) -> String {
    let mut out = String::with_capacity(room.len() + name.len() + data.args.len() + 96);
    out.push_str("{\"event\":");
    push_json_string(&mut out, name);
    out.push_str(",\"room\":");
    push_json_string(&mut out, room);
    push_payload(&mut out, data);
    if let Some(pos) = pos {
        out.push_str(",\"pos\":");
        push_json_string(&mut out, pos);
    }
    out.push('}');
    out
}

/// The first thing a client hears: `connection`, `session`, `subject` and so on in `data`.
pub fn connected(data: &Value) -> String {
    notice("connected", data)
}

/// Something the gateway itself says, to this client only: an event without a room.
pub fn notice(name: &str, data: &Value) -> String {
    let mut out = String::from("{\"event\":");
    push_json_string(&mut out, name);
    out.push_str(",\"data\":");
    out.push_str(&data.to_string());
    out.push('}');
    out
}

/// As [`notice`], with all of a payload's arguments.
pub fn notice_payload(name: &str, data: &Payload) -> String {
    let mut out = String::from("{\"event\":");
    push_json_string(&mut out, name);
    push_payload(&mut out, data);
    out.push('}');
    out
}

/// One argument as `data`, none or several as `args`; always on one line.
fn push_payload(out: &mut String, data: &Payload) {
    match arguments::elements(&data.args) {
        Ok(arguments::Elements { first: Some(only), more: false }) => {
            out.push_str(",\"data\":");
            push_line(out, only);
        }
        _ => {
            out.push_str(",\"args\":");
            push_line(out, &data.args);
        }
    }
    if data.attachments.is_empty() {
        return;
    }
    out.push_str(",\"attachments\":[");
    for (number, attachment) in data.attachments.iter().enumerate() {
        out.push_str(if number == 0 { "\"" } else { ",\"" });
        STANDARD.encode_string(attachment, out);
        out.push('"');
    }
    out.push(']');
}

/// Appends JSON whose line breaks become spaces: outside strings they mean nothing, inside strings there are
/// none, and here they would end the object.
fn push_line(out: &mut String, json: &str) {
    for (number, line) in json.split(['\n', '\r']).enumerate() {
        if number > 0 {
            out.push(' ');
        }
        out.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;

    fn decode_all(text: &str) -> Vec<Result<Input, ObjectError>> {
        decode(&Message::Text(text.into()), &"/".into()).unwrap().collect()
    }

    fn said(name: &str, args: &str, ack: Option<AckId>) -> Result<Input, ObjectError> {
        let data = Payload { args: args.into(), attachments: Vec::new() };
        Ok(Input::Event { namespace: "/".into(), name: name.into(), data, ack })
    }

    #[test]
    fn an_object_is_an_event_with_its_arguments_as_they_were_written() {
        for (text, name, args, ack) in [
            (r#"{"id":7,"event":"join_room","data":{"a": 1.0}}"#, "join_room", r#"[{"a": 1.0}]"#, Some(7)),
            (r#"{"event":"e","args":[1, "x",null]}"#, "e", r#"[1, "x",null]"#, None),
            (r#"{"event":"e","args":[]}"#, "e", "[]", None),
            (r#"{"event":"e"}"#, "e", "[]", None),
            (r#"{"event":"e","data":null}"#, "e", "[null]", None),
            (r#"{"event":"e","data":[1]}"#, "e", "[[1]]", None),
            (r#"{"id":18446744073709551615,"event":"e"}"#, "e", "[]", Some(u64::MAX)),
            (r#"{"id":null,"args":null,"event":"a\"\u00e9","more":{"x":[{}]}}"#, "a\"é", "[]", None),
        ] {
            assert_eq!(decode_all(text), [said(name, args, ack)], "{text}");
        }
    }

    #[test]
    fn several_objects_travel_in_one_message_and_a_bad_one_leaves_the_others_alone() {
        let text = "{\"event\":\"a\"}\r\n\n{\"id\":3,\"event\":5}\n{\"event\":\"b\"}\n";
        let bad = ObjectError { id: Some(3), problem: ObjectProblem::NoEventName };
        assert_eq!(decode_all(text), [said("a", "[]", None), Err(bad), said("b", "[]", None)]);
    }

    #[test]
    fn what_is_wrong_with_an_object_is_said_with_its_id() {
        use ObjectProblem::*;
        for (text, id, problem) in [
            ("[]", None, NotAnObject),
            ("\"hunter2\"", None, NotAnObject),
            (r#"[1,"e"]"#, None, NotAnObject),
            (r#"{"id":1,"id":2,"event":"e"}"#, None, DoubleField),
            (r#"{"id":"7","event":"e"}"#, None, BadId),
            (r#"{"id":-1,"event":"e"}"#, None, BadId),
            (r#"{"id":1.5,"event":"e"}"#, None, BadId),
            (r#"{"id":18446744073709551616,"event":"e"}"#, None, BadId),
            (r#"{"id":7}"#, Some(7), NoEventName),
            (r#"{"id":7,"event":{}}"#, Some(7), NoEventName),
            (r#"{"id":7,"event":"disconnect"}"#, Some(7), EventName(NameError::Reserved("disconnect"))),
            (r#"{"id":7,"event":"e","data":1,"args":[]}"#, Some(7), DataAndArgs),
            (r#"{"id":7,"event":"e","args":{}}"#, Some(7), Arguments(ArgumentsError::NotAnArray)),
            (
                r#"{"id":7,"event":"e","data":{"_placeholder":true,"num":0}}"#,
                Some(7),
                Arguments(ArgumentsError::DanglingPlaceholder(0)),
            ),
        ] {
            assert_eq!(decode_all(text), [Err(ObjectError { id, problem })], "{text}");
        }
        for text in ["{", "hunter2", "{\"event\":\"hunter2\"", "{\"event\":\"e\"}{}", "[1", "{\"event\":hunter2}"] {
            let all = decode_all(text);
            assert!(
                matches!(&all[..], [Err(ObjectError { id: None, problem: ObjectProblem::NotJson(at) })] if !at.contains("hunter2")),
                "{text}: {all:?}"
            );
        }
        let nested = format!("{{\"event\":\"e\",\"data\":{}{}}}", "[".repeat(127), "]".repeat(127));
        let problem = Arguments(ArgumentsError::TooDeep);
        assert_eq!(decode_all(&nested), [Err(ObjectError { id: None, problem })]);
    }

    #[test]
    fn a_message_that_cannot_be_taken_at_all_is_refused_before_any_object() {
        let decode = |message| decode(&message, &"/".into()).map(Iterator::count);
        assert_eq!(decode(Message::Text("{\"event\":\"e\"}\n".repeat(64))), Ok(64));
        assert_eq!(decode(Message::Text("{}\n".repeat(65))), Err(MessageError::TooManyObjects(65)));
        assert_eq!(decode(Message::Binary(Bytes::from_static(b"{}"))), Err(MessageError::Binary));
        assert_eq!(decode(Message::Text(String::new())), Ok(0));
    }

    #[test]
    fn what_clients_are_sent_is_as_documented() {
        let payload = |args: &str| Payload { args: args.into(), attachments: Vec::new() };
        let bytes = Payload {
            args: r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#.into(),
            attachments: vec![Bytes::from_static(&[1, 2, 3, 4]), Bytes::new()],
        };
        let mut refusal = Refusal::new("rate_limited", "a \"b\"");
        let plain = error(Some(7), &refusal);
        refusal.retry_after_ms = Some(250);
        for (written, expected) in [
            (answer(7, &payload(r#" [ {"a": 1} ] "#)), r#"{"id":7,"data":{"a": 1}}"#),
            (answer(7, &payload("[]")), r#"{"id":7,"args":[]}"#),
            (answer(7, &payload("[1,2]")), r#"{"id":7,"args":[1,2]}"#),
            (plain, r#"{"id":7,"error":{"code":"rate_limited","message":"a \"b\""}}"#),
            (
                error(None, &refusal),
                r#"{"event":"error","data":{"code":"rate_limited","message":"a \"b\"","retry_after_ms":250}}"#,
            ),
            (
                event("flat:a1", "visitor_request", &payload("[{\"n\":\r\n1}]"), Some("1-2")),
                r#"{"event":"visitor_request","room":"flat:a1","data":{"n":  1},"pos":"1-2"}"#,
            ),
            (
                event("everyone", "e", &bytes, None),
                r#"{"event":"e","room":"everyone","args":[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}],"attachments":["AQIDBA==",""]}"#,
            ),
            (connected(&json!({"connection": "c"})), r#"{"event":"connected","data":{"connection":"c"}}"#),
            (notice("reset", &json!(null)), r#"{"event":"reset","data":null}"#),
        ] {
            assert_eq!(written, expected);
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_event_reads_back_as_it_was_written(
            name in "\\PC{0,20}[\"\\\\\n]?",
            args in prop::collection::vec(value(), 0..4),
            pretty in any::<bool>(),
        ) {
            let args = if pretty { serde_json::to_string_pretty(&args) } else { serde_json::to_string(&args) }.unwrap();
            let payload = Payload { args: args.as_str().into(), attachments: Vec::new() };
            let written = event("flat:a1", &name, &payload, Some("1-2"));
            prop_assert!(!written.contains('\n'));
            let all = decode_all(&written);
            let [Ok(Input::Event { name: read, data, ack: None, .. })] = &all[..] else {
                return Err(TestCaseError::fail(format!("{all:?}")));
            };
            prop_assert_eq!(&**read, name);
            let read: Vec<Value> = serde_json::from_str(&data.args).unwrap();
            prop_assert_eq!(read, serde_json::from_str::<Vec<Value>>(&args).unwrap());
        }

        #[test]
        fn no_message_makes_the_decoder_panic(
            text in any::<String>(),
            jsonish in "(\\{\"(id|event|data|args)\":[\\[\\]{}\"\\\\:,a0-9\n]{0,12}[,}\n]?){1,3}",
            bytes in any::<Vec<u8>>(),
        ) {
            for message in [Message::Text(text), Message::Text(jsonish), Message::Binary(bytes.into())] {
                if let Ok(objects) = decode(&message, &"/".into()) {
                    objects.for_each(drop);
                }
            }
        }
    }
}
