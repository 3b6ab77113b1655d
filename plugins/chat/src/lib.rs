//! Channels where people talk: messages are said, edited, deleted and reacted to, and kept.
//! Every message of a channel has the next number in it, which is read and written with it,
//! so that the order of the numbers is the order in which everybody hears of them. Who joins
//! gets the latest as of the place of its join; pages behind that name their end, and whatever
//! is said meanwhile moves nothing on them. The rules are in [`messages`]; this file speaks to
//! the gateway.

pub mod messages;

mod bindings {
    wit_bindgen::generate!({ world: "handler", path: "../../wit" });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::{describe, events};
use bindings::postern::plugin::types::{Failure, HostError, Payload, Refusal};
use bindings::postern::plugin::{config, invocation, rooms, state};
use messages::page::{self, Page};
use messages::{Caller, Channel, Message, MessageId, Refused, Retention, Told};
use serde_json::{Value, json};

/// The component.
pub struct Plugin;

/// `join_channel` and `history` are the gateway's to decide: this plugin is asked once they are allowed.
const EVENTS: [&str; 7] =
    ["join_channel", "history", "send_message", "edit_message", "delete_message", "add_reaction", "remove_reaction"];

impl describe::Guest for Plugin {
    fn info() -> String {
        json!({ "name": "chat", "version": env!("CARGO_PKG_VERSION"), "events": EVENTS }).to_string()
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        let caller = match &event.sender {
            Some(client) => Caller::from_claims(&client.subject, &client.claims, &client.connection),
            None => Caller::backend(),
        };
        let data = messages::first_argument(&event.data.args)?;
        match event.name.as_str() {
            "join_channel" => latest(&Channel::named(&event.namespace, &data)?),
            "history" => history(&event.namespace, &data),
            "send_message" => send(&caller, &event.namespace, &data),
            "edit_message" => change(&caller, &event.namespace, &data, Message::edit),
            "delete_message" => change(&caller, &event.namespace, &data, Message::delete),
            "add_reaction" => change(&caller, &event.namespace, &data, Message::react),
            "remove_reaction" => change(&caller, &event.namespace, &data, Message::take_back),
            other => Err(Refused::invalid(format!("there is no event {other:?} here")).into()),
        }
    }
}

/// What somebody who joins the channel sees.
fn latest(channel: &Channel) -> Result<(), Failure> {
    let end = last(channel)? + 1;
    reply(&page(channel, &page::Asked { before: end, offset: 0, limit: page::LIMIT_DEFAULT })?.shown(channel))
}

fn history(namespace: &str, data: &Value) -> Result<(), Failure> {
    // Other rooms have the history that the gateway keeps.
    let Some(channel) = Channel::of_room(namespace, data) else { return Ok(()) };
    let asked = page::Asked::read(&channel, data, last(&channel)?)?;
    reply(&page(&channel, &asked)?.shown(&channel))
}

fn page(channel: &Channel, asked: &page::Asked) -> Result<Page, Failure> {
    let numbers = asked.numbers();
    let keys: Vec<String> = numbers.clone().map(|number| channel.message_key(number)).collect();
    let found = if keys.is_empty() { Vec::new() } else { state::get_many(&keys)? };
    let mut stored = Vec::with_capacity(found.len());
    for bytes in found {
        stored.push(bytes.map(|bytes| Ok::<_, Failure>((bytes.len(), read(&bytes)?))).transpose()?);
    }
    Ok(Page::of(asked, stored))
}

fn send(caller: &Caller, namespace: &str, data: &Value) -> Result<(), Failure> {
    let channel = Channel::named(namespace, data)?;
    let retention = retention()?;
    let message = Message::new(caller, &channel, last(&channel)? + 1, data, invocation::now())?;
    state::put(&channel.last_key(), message.number.to_string().as_bytes(), None)?;
    store(&channel, &message, &retention)?;
    for number in retention.beyond(message.number) {
        state::delete(&channel.message_key(number))?;
    }
    let except = caller.connection().filter(|_| !messages::wants_echo(data));
    tell(&channel, &message.said(), except)?;
    let sent = message.sent(data);
    if let Some(connection) = caller.connection() {
        let sender = messages::room_in(namespace, &format!("connection:{connection}"));
        rooms::publish(&sender, "message_sent", &payload(&sent))?;
    }
    reply(&sent)
}

type Change = fn(&mut Message, &Caller, &Value, u64) -> Result<Option<Told>, Refused>;

/// Does something to a message that there is, and tells its channel if that changed anything.
fn change(caller: &Caller, namespace: &str, data: &Value, change: Change) -> Result<(), Failure> {
    let id = MessageId::named(namespace, data)?;
    caller.may_speak_in(&id.channel)?;
    let mut message: Message = match state::get(&id.channel.message_key(id.number))? {
        Some(bytes) => read(&bytes)?,
        None => return Err(Refused::not_found(&id).into()),
    };
    if let Some(told) = change(&mut message, caller, data, invocation::now())? {
        store(&id.channel, &message, &retention()?)?;
        tell(&id.channel, &told, None)?;
    }
    reply(&message.answer())
}

fn tell(channel: &Channel, told: &Told, except: Option<&str>) -> Result<(), Failure> {
    let (room, data) = (channel.room(), payload(&told.data));
    match except {
        Some(connection) => rooms::publish_except(&room, told.event, &data, connection)?,
        None => rooms::publish(&room, told.event, &data)?,
    }
    Ok(())
}

/// The number of the channel's latest message; 0 before the first.
fn last(channel: &Channel) -> Result<u64, Failure> {
    let Some(bytes) = state::get(&channel.last_key())? else { return Ok(0) };
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Failure::Fatal("a channel's latest number is unreadable".into()))
}

fn retention() -> Result<Retention, Failure> {
    let setting = |name: &str| config::get(name);
    Retention::read(setting("messages_max").as_deref(), setting("retention_ms").as_deref()).map_err(Failure::Fatal)
}

fn store(channel: &Channel, message: &Message, retention: &Retention) -> Result<(), Failure> {
    let value = serde_json::to_vec(message).map_err(|error| Failure::Fatal(error.to_string()))?;
    Ok(state::put(&channel.message_key(message.number), &value, retention.left_ms(message, invocation::now()))?)
}

fn read(bytes: &[u8]) -> Result<Message, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Fatal(format!("a stored message is unreadable: {error}")))
}

fn reply(data: &Value) -> Result<(), Failure> {
    Ok(rooms::reply(&payload(data))?)
}

fn payload(argument: &Value) -> Payload {
    Payload { args: format!("[{argument}]"), attachments: Vec::new() }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        Failure::Refused(Refusal { code: refused.code.into(), message: refused.message })
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Failure {
        match error {
            HostError::Unavailable => Failure::Retry("the state cannot be reached now".into()),
            other => Failure::Fatal(other.to_string()),
        }
    }
}
