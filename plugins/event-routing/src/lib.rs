//! Event routing from the tenant's settings: names and prefixes → handlers, features that can
//! be switched off, and what is relayed, broadcast, ignored or refused. The rules are in
//! [`table`]; this file speaks to the gateway. Its answers rest on an event's namespace and
//! name alone, so the gateway asks once for each.

pub mod table;

mod bindings {
    wit_bindgen::generate!({ world: "router", path: "../../wit" });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::{describe, routing};
use bindings::postern::plugin::types::{Client, Refusal};
use bindings::postern::plugin::{config, log};
use table::{Refused, Table};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!(r#"{{"name":"event-routing","version":"{version}","events":[],"routes_by_name":true}}"#)
    }
}

impl routing::Guest for Plugin {
    fn route(_who: Option<Client>, _namespace: String, event: String) -> Result<Vec<String>, Refusal> {
        let table = Table::read(config::get("routes").as_deref(), config::get("features").as_deref());
        match table {
            Ok(table) => Ok(table.route(&event)?),
            Err(wrong) => {
                log::log(log::Level::Error, &wrong);
                Err(Refused { code: "misconfigured".into(), message: "the tenant's routes are unreadable".into() }
                    .into())
            }
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        Refusal { code: refused.code, message: refused.message }
    }
}
