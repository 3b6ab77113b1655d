//! Answers which version it is: the gateway's tests make versions of it by writing another number into the component.

pub mod number;

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package postern:version;
            world version {
                include postern:plugin/authorizer@0.1.0;
                include postern:plugin/full-handler@0.1.0;
            }
        ",
        path: "../../../../wit",
        generate_all,
    });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::authorization::{Admission, Membership};
use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::timer_events::Timer;
use bindings::exports::postern::plugin::{authorization, connection_events, describe, events, timer_events};
use bindings::postern::plugin::types::{Client, Failure, Grant, HostError, Payload, Refusal};
use bindings::postern::plugin::{rooms, state};
use serde_json::json;

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        json!({ "name": "test-version", "version": number::version(), "events": ["version", "count", "trap", "read"] })
            .to_string()
    }
}

impl authorization::Guest for Plugin {
    fn connect(_who: Client) -> Result<Vec<Membership>, Refusal> {
        Ok(Vec::new())
    }

    /// Everybody may join, and one room says which version of the authorizer let them in.
    fn join(_who: Client, room: String, _params: Option<Payload>) -> Result<Admission, Refusal> {
        if room == "who:asks" {
            return Err(Refusal { code: "version".into(), message: number::version().into() });
        }
        Ok(Admission { grant: Grant { publish: true, presence: true, history: true }, cache_for: 0 })
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        if event.name == "trap" && number::version() == event.data.args.trim_matches(['[', ']', '"']) {
            panic!("as ordered");
        }
        if event.name == "count" {
            // So that tests see how often it was handled, beside how often it was answered.
            state::add(&format!("handled-{}", number::version()), 1)?;
        }
        if event.name == "read" {
            // So that tests can have a call wait for the engine.
            state::get("read")?;
        }
        let arguments = format!("[\"{}\"]", number::version());
        Ok(rooms::reply(&Payload { args: arguments, attachments: Vec::new() })?)
    }
}

impl timer_events::Guest for Plugin {
    fn fire(_timer: Timer) -> Result<(), Failure> {
        Ok(())
    }
}

impl connection_events::Guest for Plugin {
    fn connected(_who: Client, _handshake: String) -> Result<(), Failure> {
        Ok(())
    }

    fn disconnected(_who: Client, _reason: String) -> Result<(), Failure> {
        Ok(())
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Failure {
        Failure::Fatal(format!("{error:?}"))
    }
}
