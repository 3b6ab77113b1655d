//! A tenant's components in order, and which of them see an event.

use std::sync::Arc;

use super::plugin::{CallError, Plugin, Transaction};
use crate::event::{Event, Refusal};
use crate::tenant::{Pattern, Role};

/// What a router answers to have an event published unchanged.
const RELAY: &str = "relay";

/// A tenant's loaded components.
#[derive(Debug, Clone, Default)]
pub struct Pipeline {
    /// Who may connect and join; without one nobody may.
    pub authorizer: Option<Arc<Plugin>>,
    /// Who sees an event; without one the handlers' patterns say.
    pub router: Option<Arc<Plugin>>,
    /// With the patterns they handle, in the order of the tenant's settings.
    pub handlers: Vec<(Arc<Plugin>, Vec<Pattern>)>,
    /// Patterns that are published without a handler.
    pub relay: Vec<Pattern>,
    /// Patterns that are published to everyone in the sender's namespace.
    pub broadcast: Vec<Pattern>,
}

/// Where an event goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// To these, in order.
    Handlers(Vec<Arc<Plugin>>),
    /// To the rooms it names, unchanged.
    Relay,
    /// To everyone in its namespace, unchanged.
    Broadcast,
    /// Nowhere, and that is fine.
    Ignore,
}

impl Pipeline {
    /// Adds a loaded component in its role.
    pub fn add(&mut self, role: Role, plugin: Arc<Plugin>, events: Option<Vec<Pattern>>) {
        match role {
            Role::Authorizer => self.authorizer = Some(plugin),
            Role::Router => self.router = Some(plugin),
            Role::Handler => {
                let patterns = events.unwrap_or_else(|| plugin.description.events.clone());
                self.handlers.push((plugin, patterns));
            }
        }
    }

    /// The handler of a name.
    pub fn handler(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.handlers.iter().map(|(plugin, _)| plugin).find(|plugin| &*plugin.name == name)
    }

    /// Where does this event go?
    pub async fn route(&self, transaction: &mut Transaction, event: &Event) -> Result<Route, CallError> {
        if let Some(router) = &self.router {
            let names = router.route(transaction, event.sender.as_ref(), &event.namespace, &event.name).await?;
            return self.named(router, &names);
        }
        if self.relay.iter().any(|pattern| pattern.matches(&event.name)) {
            return Ok(Route::Relay);
        }
        if self.broadcast.iter().any(|pattern| pattern.matches(&event.name)) {
            return Ok(Route::Broadcast);
        }
        let handlers: Vec<_> = self
            .handlers
            .iter()
            .filter(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(&event.name)))
            .map(|(plugin, _)| plugin.clone())
            .collect();
        if handlers.is_empty() {
            let text = format!("nothing handles the event {:?}", event.name);
            return Err(CallError::Refused(Refusal::new("unknown_event", text)));
        }
        Ok(Route::Handlers(handlers))
    }

    fn named(&self, router: &Plugin, names: &[String]) -> Result<Route, CallError> {
        if names.iter().any(|name| name == RELAY) {
            return Ok(Route::Relay);
        }
        let mut handlers = Vec::with_capacity(names.len());
        for name in names {
            let Some(handler) = self.handler(name) else {
                let known: Vec<_> = self.handlers.iter().map(|(plugin, _)| &*plugin.name).collect();
                let text = format!("router {} named {name:?}; the tenant's handlers are {known:?}", router.name);
                return Err(CallError::Fatal(text));
            };
            handlers.push(handler.clone());
        }
        Ok(if handlers.is_empty() { Route::Ignore } else { Route::Handlers(handlers) })
    }
}
