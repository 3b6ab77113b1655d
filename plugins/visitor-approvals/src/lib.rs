//! Visitor approvals: a guard registers a visitor for a flat, a resident of the flat
//! approves or denies, a timer ends the waiting. Exactly one outcome per visitor: each of
//! the three reads `visitor/{id}`, so of several at once one commits and the others run
//! again and find the visitor resolved. The rules are in [`visitors`]; this file speaks to
//! the gateway.

pub mod visitors;

mod bindings {
    wit_bindgen::generate!({ world: "timed-handler", path: "../../wit" });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::timer_events::Timer;
use bindings::exports::postern::plugin::{describe, events, timer_events};
use bindings::postern::plugin::types::{Failure, HostError, Payload, Refusal};
use bindings::postern::plugin::{config, invocation, rooms, state, timers};
use serde_json::{Value, json};
use visitors::{Caller, Refused, Status, Visitor};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!(r#"{{"name":"visitor-approvals","version":"{version}","events":["visitor_*"]}}"#)
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        let caller = match &event.sender {
            Some(client) => Caller::from_claims(&client.subject, &client.claims),
            None => Caller::Backend,
        };
        let data = visitors::first_argument(&event.data.args)?;
        match event.name.as_str() {
            "visitor_create" => create(&caller, &data),
            "visitor_respond" => respond(&caller, &data),
            "visitor_list" => list(&caller, &data),
            other => Err(Refused::invalid(format!("there is no event {other:?} here")).into()),
        }
    }
}

impl timer_events::Guest for Plugin {
    fn fire(timer: Timer) -> Result<(), Failure> {
        let Some(id) = visitors::timer_visitor(&timer.name) else {
            return Err(Failure::Fatal(format!("a timer {:?} was never set", timer.name)));
        };
        // A visitor that is gone or resolved meanwhile has its outcome already.
        match load(id)?.and_then(|visitor| visitor.expire(invocation::now())) {
            Some(timed_out) => {
                store(&timed_out)?;
                announce(&timed_out)
            }
            None => Ok(()),
        }
    }
}

fn create(caller: &Caller, data: &Value) -> Result<(), Failure> {
    let timeout_ms = visitors::timeout_ms(config::get("timeout_ms").as_deref()).map_err(Failure::Fatal)?;
    let id = visitors::visitor_id(&invocation::id());
    let visitor = Visitor::create(caller, data, id, invocation::now(), timeout_ms)?;
    let visitor = match load(&visitor.visitor_id)? {
        // The same input once more, after its commit was forgotten: it keeps its outcome.
        Some(known) => known,
        None => {
            store(&visitor)?;
            timers::set(&visitors::timer_name(&visitor.visitor_id), timeout_ms, "{}")?;
            announce(&visitor)?;
            visitor
        }
    };
    reply(&json!({
        "visitor_id": visitor.visitor_id, "status": visitor.status, "expires_at": visitor.expires_at,
    }))
}

fn respond(caller: &Caller, data: &Value) -> Result<(), Failure> {
    let id = visitors::named_visitor(data)?;
    let Some(visitor) = load(id)? else {
        return Err(Refused::not_found(id).into());
    };
    let answered = visitor.answer(caller, data, invocation::now())?;
    store(&answered)?;
    timers::cancel(&visitors::timer_name(id))?;
    announce(&answered)?;
    reply(&json!({ "visitor_id": answered.visitor_id, "status": answered.status }))
}

fn list(caller: &Caller, data: &Value) -> Result<(), Failure> {
    let wanted = visitors::wanted_statuses(data)?;
    let mut index = Vec::new();
    for scope in visitors::scopes(caller, data)? {
        for status in &wanted {
            let prefix = visitors::index_prefix(&scope, *status);
            index.extend(first_keys(&prefix)?);
        }
    }
    let keys: Vec<String> = visitors::newest(index).iter().map(|id| visitors::state_key(id)).collect();
    let mut found = Vec::with_capacity(keys.len());
    for bytes in state::get_many(&keys)?.into_iter().flatten() {
        let visitor = read(&bytes)?;
        // The index is not part of the read set: what is listed is what the visitor itself says.
        if wanted.contains(&visitor.status) {
            found.push(visitor);
        }
    }
    reply(&json!({ "visitors": found }))
}

/// The first [`visitors::LIST_MAX`] keys, in as many pages as the gateway makes of them.
fn first_keys(prefix: &str) -> Result<Vec<String>, Failure> {
    let mut page = state::list_keys(prefix, None, visitors::LIST_MAX as u32)?;
    let mut keys = page.keys;
    while let Some(after) = page.next.filter(|_| keys.len() < visitors::LIST_MAX) {
        page = state::list_keys(prefix, Some(&after), (visitors::LIST_MAX - keys.len()) as u32)?;
        keys.append(&mut page.keys);
    }
    Ok(keys)
}

fn load(id: &str) -> Result<Option<Visitor>, Failure> {
    state::get(&visitors::state_key(id))?.map(|bytes| read(&bytes)).transpose()
}

fn read(bytes: &[u8]) -> Result<Visitor, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::Fatal(format!("a stored visitor is unreadable: {error}")))
}

fn store(visitor: &Visitor) -> Result<(), Failure> {
    let ttl = (visitor.status != Status::Pending).then_some(visitors::RESOLVED_TTL_MS);
    let value = serde_json::to_vec(visitor).map_err(|error| Failure::Fatal(error.to_string()))?;
    state::put(&visitors::state_key(&visitor.visitor_id), &value, ttl)?;
    if visitor.status != Status::Pending {
        for key in visitor.index_keys(Status::Pending) {
            state::delete(&key)?;
        }
    }
    for key in visitor.index_keys(visitor.status) {
        state::put(&key, b"", ttl)?;
    }
    Ok(())
}

fn announce(visitor: &Visitor) -> Result<(), Failure> {
    let announcement = visitor.announcement();
    let payload = payload(&announcement.data);
    for room in &announcement.rooms {
        rooms::publish(room, announcement.event, &payload)?;
    }
    Ok(())
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
