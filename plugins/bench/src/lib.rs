//! Admits everybody and answers what it is sent: what is left to measure is the gateway.

pub mod answers;

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package postern:bench;
            world bench {
                include postern:plugin/authorizer@0.1.0;
                include postern:plugin/handler@0.1.0;
            }
        ",
        path: "../../wit",
        generate_all,
    });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::authorization::{Admission, Membership};
use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::{authorization, describe, events};
use bindings::postern::plugin::rooms;
use bindings::postern::plugin::types::{Client, Failure, Grant, Payload, Refusal};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        answers::INFO.into()
    }
}

impl authorization::Guest for Plugin {
    fn connect(_who: Client) -> Result<Vec<Membership>, Refusal> {
        Ok(Vec::new())
    }

    fn join(_who: Client, _room: String, _params: Option<Payload>) -> Result<Admission, Refusal> {
        Ok(Admission { grant: Grant { publish: true, presence: true, history: true }, cache_for: 0 })
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        if !answers::is_echoed(&event.name) {
            return Err(Failure::Fatal(format!("no event {:?} here, only `echo`", event.name)));
        }
        rooms::reply(&event.data).map_err(|error| Failure::Fatal(error.to_string()))
    }
}
