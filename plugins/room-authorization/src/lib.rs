//! Room authorization from the claims of the token: two vocabularies at once, that of a
//! housing society (`role`, `society_id`, `flats`) and that of a team hub (`projects`,
//! `teams`, `channels`, `tasks`). The rules are in [`rules`]; this file speaks to the gateway.

pub mod rules;

mod bindings {
    wit_bindgen::generate!({ world: "authorizer", path: "../../wit" });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::authorization::{Admission, Membership};
use bindings::exports::postern::plugin::{authorization, describe};
use bindings::postern::plugin::types::{Client, Grant, Payload, Refusal};
use rules::{Claims, Rights};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        format!(r#"{{"name":"room-authorization","version":"{}","events":[]}}"#, env!("CARGO_PKG_VERSION"))
    }
}

impl authorization::Guest for Plugin {
    fn connect(who: Client) -> Result<Vec<Membership>, Refusal> {
        let rooms = Claims::read(&who.claims).rooms_at_connect(&who.namespace);
        Ok(rooms.into_iter().map(|(room, rights)| Membership { room, grant: rights.into() }).collect())
    }

    fn join(who: Client, room: String, params: Option<Payload>) -> Result<Admission, Refusal> {
        let first = params.as_ref().and_then(|params| rules::first_argument(&params.args));
        match Claims::read(&who.claims).may_join(&room, first.as_ref()) {
            Ok(rights) => Ok(Admission { grant: rights.into(), cache_for: 0 }),
            Err(why) => Err(Refusal { code: "forbidden".into(), message: why.into() }),
        }
    }
}

impl From<Rights> for Grant {
    fn from(rights: Rights) -> Grant {
        Grant { publish: rights == Rights::ReadAndPublish, presence: true, history: true }
    }
}
