//! A tenant's components in order, and which of them see an event.

use std::borrow::Cow;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::plugin::{CallError, Hook, Plugin, Transaction};
use crate::commit::CommitId;
use crate::event::{Event, Refusal};
use crate::tenant::{Pattern, Role};

/// What a router answers to have an event published unchanged to the rooms that it names.
const RELAY: &str = "relay";

/// What a router answers to have an event published unchanged to everyone in its namespace.
const BROADCAST: &str = "broadcast";

/// What is told of an event that nothing handles.
pub const UNKNOWN_EVENT: &str = "unknown_event";

/// When it is worth trying again where a component cannot run, in milliseconds.
const UNAVAILABLE_RETRY_MS: u64 = 5_000;

/// How many shares of the users there are.
const SHARES: u64 = 10_000;

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
    /// Other versions that some of the users have instead.
    pub canaries: Vec<Canary>,
    /// Components that should be here and cannot run.
    pub unavailable: Vec<Unavailable>,
}

/// A version for some of the users.
#[derive(Debug, Clone)]
pub struct Canary {
    /// What they have instead of the plugin of the same name.
    pub plugin: Arc<Plugin>,
    /// What it handles.
    pub patterns: Vec<Pattern>,
    /// For how many users, in 10,000ths.
    pub share: u32,
}

/// A component that should be here and cannot run: what it is there for is refused.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// Which.
    pub name: Arc<str>,
    /// What it is there for.
    pub role: Role,
    /// What it handles, if it is a handler.
    pub patterns: Vec<Pattern>,
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

    /// Lets some of the users have another version of a plugin that was added.
    pub fn try_with(&mut self, plugin: Arc<Plugin>, events: Option<Vec<Pattern>>, share: u32) {
        let patterns = events.unwrap_or_else(|| plugin.description.events.clone());
        self.canaries.push(Canary { plugin, patterns, share });
    }

    /// The pipeline of a user: with the canaries that are for this one. Always the same for the same user, as long as
    /// the shares are. Inputs that are nobody's have the active versions.
    pub fn of_user(&self, subject: Option<&str>) -> Cow<'_, Pipeline> {
        let Some(subject) = subject.filter(|_| !self.canaries.is_empty()) else { return Cow::Borrowed(self) };
        let chosen = self.canaries.iter().filter(|canary| is_chosen(&canary.plugin, subject, canary.share));
        let mut own = Cow::Borrowed(self);
        for Canary { plugin, patterns, .. } in chosen {
            let own = own.to_mut();
            match plugin.role {
                Role::Authorizer => own.authorizer = Some(plugin.clone()),
                Role::Router => own.router = Some(plugin.clone()),
                Role::Handler => {
                    if let Some(place) = own.handlers.iter_mut().find(|(active, _)| active.name == plugin.name) {
                        *place = (plugin.clone(), patterns.clone());
                    }
                }
            }
        }
        own
    }

    /// What stands in the way of a role, or of an event's handler.
    pub fn missing(&self, role: Role, event: Option<&str>) -> Option<Refusal> {
        let concerns = |one: &&Unavailable| {
            let sees = |event: &str| one.patterns.iter().any(|pattern| pattern.matches(event));
            one.role == role && event.is_none_or(sees)
        };
        let Unavailable { name, .. } = self.unavailable.iter().find(concerns)?;
        Some(cannot_run(name))
    }

    /// The handler of a name.
    pub fn handler(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.handlers.iter().map(|(plugin, _)| plugin).find(|plugin| &*plugin.name == name)
    }

    /// The handlers that take part in one of the gateway's own requests, because they name it: a pattern that merely
    /// matches it does not count.
    pub fn taking_part(&self, request: &str) -> Result<Vec<Arc<Plugin>>, CallError> {
        let names = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.0 == request);
        if let Some(one) = self.unavailable.iter().find(|one| one.role == Role::Handler && names(&one.patterns)) {
            return Err(CallError::Refused(cannot_run(&one.name)));
        }
        Ok(self.handlers.iter().filter(|(_, patterns)| names(patterns)).map(|(plugin, _)| plugin.clone()).collect())
    }

    /// Where does this event go?
    pub async fn route(&self, transaction: &mut Transaction, event: &Event) -> Result<Route, CallError> {
        if let Some(refusal) = self.missing(Role::Router, None) {
            return Err(CallError::Refused(refusal));
        }
        if let Some(router) = &self.router {
            let names = router.route(transaction, event.sender.as_ref(), &event.namespace, &event.name).await?;
            return self.named(router, &names, &transaction.invocation().id);
        }
        if self.relay.iter().any(|pattern| pattern.matches(&event.name)) {
            return Ok(Route::Relay);
        }
        if self.broadcast.iter().any(|pattern| pattern.matches(&event.name)) {
            return Ok(Route::Broadcast);
        }
        // All of an event's handlers see it, or none does.
        if let Some(refusal) = self.missing(Role::Handler, Some(&event.name)) {
            return Err(CallError::Refused(refusal));
        }
        let handlers: Vec<_> = self
            .handlers
            .iter()
            .filter(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(&event.name)))
            .map(|(plugin, _)| plugin.clone())
            .collect();
        if handlers.is_empty() {
            let text = format!("nothing handles the event {:?}", event.name);
            return Err(CallError::Refused(Refusal::new(UNKNOWN_EVENT, text)));
        }
        Ok(Route::Handlers(handlers))
    }

    fn named(&self, router: &Plugin, names: &[String], input: &CommitId) -> Result<Route, CallError> {
        if names.iter().any(|name| name == RELAY) {
            return Ok(Route::Relay);
        }
        if names.iter().any(|name| name == BROADCAST) {
            return Ok(Route::Broadcast);
        }
        let mut handlers = Vec::with_capacity(names.len());
        for name in names {
            if self.unavailable.iter().any(|one| one.role == Role::Handler && *one.name == **name) {
                return Err(CallError::Refused(cannot_run(name)));
            }
            let Some(handler) = self.handler(name) else {
                let known: Vec<_> = self.handlers.iter().map(|(plugin, _)| &*plugin.name).collect();
                let text = format!("router {} named {name:?}; the tenant's handlers are {known:?}", router.name);
                return Err(CallError::Failed(router.answered_wrongly(Hook::Route, text, input)));
            };
            handlers.push(handler.clone());
        }
        Ok(if handlers.is_empty() { Route::Ignore } else { Route::Handlers(handlers) })
    }
}

fn cannot_run(plugin: &str) -> Refusal {
    let text = format!("the plugin {plugin} cannot run on this node at the moment");
    Refusal { retry_after_ms: Some(UNAVAILABLE_RETRY_MS), ..Refusal::new("plugin_unavailable", text) }
}

/// Is a user among those that have a canary? Each plugin has others, and nobody changes sides while the share grows but
/// to the canary.
fn is_chosen(plugin: &Plugin, subject: &str, share: u32) -> bool {
    share_of(plugin.tenant.as_str(), &plugin.name, subject) < u64::from(share)
}

/// A user's place among the [`SHARES`].
fn share_of(tenant: &str, plugin: &str, subject: &str) -> u64 {
    xxh3_64(format!("{tenant}\0{plugin}\0{subject}").as_bytes()) % SHARES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_spread_evenly_over_the_shares_and_keep_their_place() {
        let users: Vec<_> = (0..20_000).map(|n| share_of("acme", "echo", &format!("user-{n}"))).collect();
        for (share, about) in [(100, 200), (1_000, 2_000), (5_000, 10_000)] {
            let chosen = users.iter().filter(|place| **place < share).count();
            assert!(chosen.abs_diff(about) < about / 4, "{chosen} of 20,000 for a share of {share}");
        }
        assert!(users.iter().all(|place| *place < SHARES));
        assert_eq!(share_of("acme", "echo", "bob"), share_of("acme", "echo", "bob"));
        let others: Vec<_> = (0..20_000).map(|n| share_of("acme", "chat", &format!("user-{n}"))).collect();
        assert_ne!(users, others, "the same users try everything");
    }
}
