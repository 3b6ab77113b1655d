//! `rooms`: everything that a handler can do to other clients.

use super::{Call, Rejection, check_name};
use crate::client::ConnectionId;
use crate::commit::{Effect, Grant, Who};
use crate::decision::plugin::failure::{MESSAGE_BYTES_MAX, REFUSAL_CODE_BYTES_MAX, tame};
use crate::decision::plugin::transaction::publication;
use crate::event::{EVENT_NAME_BYTES_MAX, Payload, Refusal, arguments, check_event_name};
use crate::room::Room;

/// The longest connection id, in bytes.
const CONNECTION_BYTES_MAX: usize = 64;

/// A payload as a component hands it over.
pub(in super::super) struct RawPayload {
    pub(in super::super) args: String,
    pub(in super::super) attachments: Vec<Vec<u8>>,
}

/// How a publication is sent.
pub(in super::super) enum Mode<'a> {
    ToAll,
    Except(&'a str),
    Ephemeral(Option<&'a str>),
}

fn room(name: &str) -> Result<Room, Rejection> {
    Room::parse(name).map_err(|error| Rejection::Invalid(error.to_string()))
}

fn event_name(name: &str) -> Result<(), Rejection> {
    check_name("an event's name", name, EVENT_NAME_BYTES_MAX)?;
    check_event_name(name).map_err(|error| Rejection::Invalid(error.to_string()))
}

/// Counts and checks a payload.
fn payload(call: &mut Call, raw: RawPayload) -> Result<Payload, Rejection> {
    let bytes = raw.args.len() + raw.attachments.iter().map(Vec::len).sum::<usize>();
    call.work.hand_over(bytes)?;
    arguments::check(&raw.args, raw.attachments.len()).map_err(|error| Rejection::Invalid(error.to_string()))?;
    // Line breaks between values are valid JSON, but separate messages on the wire.
    let args = if raw.args.contains(['\n', '\r']) { raw.args.replace(['\n', '\r'], " ") } else { raw.args };
    Ok(Payload { args: args.into(), attachments: raw.attachments.into_iter().map(Into::into).collect() })
}

pub(in super::super) fn reply(call: &mut Call, data: RawPayload) -> Result<(), Rejection> {
    call.may_write()?;
    let data = payload(call, data)?;
    call.work.reply(data);
    Ok(())
}

pub(in super::super) fn publish(
    call: &mut Call,
    to: &str,
    event: &str,
    data: RawPayload,
    mode: Mode<'_>,
) -> Result<(), Rejection> {
    call.may_write()?;
    let room = room(to)?;
    event_name(event)?;
    let (except, ephemeral) = match mode {
        Mode::ToAll => (None, false),
        Mode::Except(connection) => (Some(connection), false),
        Mode::Ephemeral(except) => (except, true),
    };
    if let Some(connection) = except {
        check_name("a connection's id", connection, CONNECTION_BYTES_MAX)?;
    }
    let data = payload(call, data)?;
    call.work.hand_over(to.len() + event.len())?;
    call.work.publish(publication(room, event, data, except.map(ConnectionId::from)), ephemeral)
}

/// Whose membership changes: `connection:{id}` or `user:{subject}`.
fn who(name: &str) -> Result<Who, Rejection> {
    let room = room(name)?;
    match (room.as_connection(), room.as_user()) {
        (Some(id), _) if !id.is_empty() => Ok(Who::Connection(id.into())),
        (_, Some(subject)) if !subject.is_empty() => Ok(Who::User(subject.into())),
        _ => Err(Rejection::Invalid("who is a `connection:{id}` or a `user:{subject}`".into())),
    }
}

/// A room whose members components may change.
fn open_room(name: &str) -> Result<Room, Rejection> {
    let room = room(name)?;
    if room.is_reserved() { Err(Rejection::Denied) } else { Ok(room) }
}

pub(in super::super) fn join(call: &mut Call, whose: &str, target: &str, grant: Grant) -> Result<(), Rejection> {
    call.may_write()?;
    let (who, room) = (who(whose)?, open_room(target)?);
    call.work.hand_over(whose.len() + target.len())?;
    call.work.membership(Effect::Join { who, room, grant })
}

pub(in super::super) fn leave(call: &mut Call, whose: &str, target: &str) -> Result<(), Rejection> {
    call.may_write()?;
    let (who, room) = (who(whose)?, open_room(target)?);
    call.work.hand_over(whose.len() + target.len())?;
    call.work.membership(Effect::Leave { who, room })
}

pub(in super::super) fn disconnect(call: &mut Call, whose: &str, why: Refusal) -> Result<(), Rejection> {
    call.may_write()?;
    who(whose)?;
    let room = room(whose)?;
    call.work.hand_over(whose.len() + why.code.len() + why.message.len())?;
    call.work.membership(Effect::Disconnect { room, why })
}

/// A refusal as a component words it: bounded, and safe to show.
pub(in super::super) fn refusal(code: &str, message: &str) -> Refusal {
    let code = tame(code, REFUSAL_CODE_BYTES_MAX);
    Refusal::new(if code.is_empty() { "refused".into() } else { code }, tame(message, MESSAGE_BYTES_MAX))
}
