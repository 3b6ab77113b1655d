//! Who is typing, and what people say of themselves: `typing:start` and `typing:stop` become
//! `user:typing` and `user:stopped-typing`, `status:change` becomes `presence:update`. Typing
//! ends by itself: a timer ends it when nothing more comes, whatever became of the typist; a
//! status ends with its owner's last session. The rules are in [`signals`]; this file speaks
//! to the gateway.

pub mod signals;

mod bindings {
    wit_bindgen::generate!({ world: "full-handler", path: "../../wit" });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::timer_events::Timer;
use bindings::exports::postern::plugin::{connection_events, describe, events, timer_events};
use bindings::postern::plugin::types::{Client, Failure, HostError, Payload, Refusal};
use bindings::postern::plugin::{config, invocation, presence, rooms, state, timers};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use signals::{Person, Refused, Status, Typing};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!(r#"{{"name":"typing-status","version":"{version}","events":["typing:*","status:*"]}}"#)
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        let Some(client) = &event.sender else {
            return Err(Refused::invalid("only a client types and has a status").into());
        };
        let person = Person::from_claims(&client.subject, &client.claims, &client.namespace);
        let data = |alone: &str| signals::first_argument(&event.data.args, alone);
        match event.name.as_str() {
            "typing:start" => start(&person, &client.connection, &data("room")?),
            "typing:stop" => stop(&person, &client.connection, &data("room")?),
            "status:change" => change(&person, &data("status")?),
            other => Err(Refused::invalid(format!("there is no event {other:?} here")).into()),
        }
    }
}

impl timer_events::Guest for Plugin {
    fn fire(timer: Timer) -> Result<(), Failure> {
        let typing: Typing = read(timer.data.as_bytes())?;
        // Whoever has stopped meanwhile was seen to stop.
        match state::get(&typing.state_key())? {
            Some(_) => end(&typing, None),
            None => Ok(()),
        }
    }
}

impl connection_events::Guest for Plugin {
    fn connected(_: Client, _: String) -> Result<(), Failure> {
        Ok(())
    }

    fn disconnected(who: Client, _reason: String) -> Result<(), Failure> {
        if presence::is_online(&who.subject)? {
            return Ok(());
        }
        // Typing has ended by its timer, unless the tenant's recovery window is shorter than that.
        for key in state::list_keys(&signals::typing_prefix(&who.subject), None, signals::TYPING_MAX)?.keys {
            if let Some(typing) = load::<Typing>(&key)? {
                timers::cancel(&typing.timer_name())?;
                end(&typing, None)?;
            }
        }
        let key = signals::status_key(&who.subject);
        let Some(status) = load::<Status>(&key)? else { return Ok(()) };
        state::delete(&key)?;
        tell(&status.gone(invocation::now()))
    }
}

/// Everybody hears of every key stroke that the client tells; what is stored is renewed now and then only.
fn start(person: &Person, connection: &str, data: &Value) -> Result<(), Failure> {
    let timeout_ms = signals::timeout_ms(config::get("typing_timeout_ms").as_deref()).map_err(Failure::Fatal)?;
    let now = invocation::now();
    let typing = Typing::start(person, data, now)?;
    if load::<Typing>(&typing.state_key())?.is_none_or(|known| known.is_due(now, timeout_ms)) {
        state::put(&typing.state_key(), &written(&typing)?, Some(timeout_ms.saturating_mul(10)))?;
        let data = String::from_utf8(written(&typing)?).map_err(|error| Failure::Fatal(error.to_string()))?;
        timers::set(&typing.timer_name(), timeout_ms, &data)?;
    }
    rooms::publish_ephemeral(&typing.room, "user:typing", &payload(&typing.shown()), Some(connection))?;
    reply(&json!({ "room": typing.room, "expiresInMs": timeout_ms }))
}

fn stop(person: &Person, connection: &str, data: &Value) -> Result<(), Failure> {
    let typing = Typing::start(person, data, invocation::now())?;
    timers::cancel(&typing.timer_name())?;
    end(&typing, Some(connection))?;
    reply(&json!({ "room": typing.room }))
}

fn end(typing: &Typing, except: Option<&str>) -> Result<(), Failure> {
    state::delete(&typing.state_key())?;
    Ok(rooms::publish_ephemeral(&typing.room, "user:stopped-typing", &payload(&typing.shown()), except)?)
}

fn change(person: &Person, data: &Value) -> Result<(), Failure> {
    let status = Status::of(person, data, invocation::now())?;
    state::put(&signals::status_key(&person.subject), &written(&status)?, None)?;
    tell(&status)?;
    reply(&json!({ "status": status.status, "rooms": status.rooms }))
}

fn tell(status: &Status) -> Result<(), Failure> {
    for room in &status.rooms {
        rooms::publish(room, "presence:update", &payload(&status.shown()))?;
    }
    Ok(())
}

fn load<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Failure> {
    state::get(key)?.map(|bytes| read(&bytes)).transpose()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Fatal(format!("what was stored is unreadable: {error}")))
}

fn written<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::Fatal(error.to_string()))
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
