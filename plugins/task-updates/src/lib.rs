//! The tasks of a team hub: members of a project create, edit, delete, assign and comment
//! them, and the project, the task's watchers and the people concerned are told. Two edits
//! at once rest on the same key, so that none is lost. The rules are in [`tasks`]; this file
//! speaks to the gateway.

pub mod tasks;

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
use bindings::postern::plugin::{invocation, rooms, state};
use serde_json::{Value, json};
use tasks::{Announcement, Caller, Comment, Moment, Refused, Task};

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        let version = env!("CARGO_PKG_VERSION");
        format!(r#"{{"name":"task-updates","version":"{version}","events":["task:*","comment:add"]}}"#)
    }
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        let caller = match &event.sender {
            Some(client) => Caller::from_claims(&client.subject, &client.claims),
            None => Caller::Backend,
        };
        let data = tasks::first_argument(&event.data.args)?;
        let at = Moment { by: caller.subject().to_owned(), now: invocation::now() };
        let (answer, announcements) = match event.name.as_str() {
            "task:create" => create(&caller, &data, &at)?,
            "task:edit" => edit(&caller, &data, &at)?,
            "task:assign" => assign(&caller, &data, &at)?,
            "task:delete" => delete(&caller, &data, &at)?,
            "comment:add" => comment(&caller, &data, &at)?,
            other => return Err(Refused::invalid(format!("there is no event {other:?} here")).into()),
        };
        for Announcement { room, event: name, data } in &announcements {
            rooms::publish(&tasks::room_in(&event.namespace, room), name, &payload(data))?;
        }
        Ok(rooms::reply(&payload(&answer))?)
    }
}

type Done = (Value, Vec<Announcement>);

fn create(caller: &Caller, data: &Value, at: &Moment) -> Result<Done, Failure> {
    let task = Task::create(caller, data, tasks::unique_id("t", &invocation::id()), at)?;
    // The same input once more, after its commit was forgotten, or an id that the back end gave before.
    let task = match load(&task.id)? {
        Some(known) => return Ok((known.answer(), Vec::new())),
        None => task,
    };
    store(&task)?;
    Ok((task.answer(), task.changed("create", None, at)))
}

fn edit(caller: &Caller, data: &Value, at: &Moment) -> Result<Done, Failure> {
    let before = named(caller, data)?;
    let after = before.edit(data, at)?;
    store(&after)?;
    Ok((after.answer(), after.changed("update", before.assignee(), at)))
}

fn assign(caller: &Caller, data: &Value, at: &Moment) -> Result<Done, Failure> {
    let before = named(caller, data)?;
    let after = before.assign(data, at)?;
    store(&after)?;
    Ok((after.answer(), after.changed("assign", before.assignee(), at)))
}

fn delete(caller: &Caller, data: &Value, at: &Moment) -> Result<Done, Failure> {
    let task = named(caller, data)?;
    state::delete(&tasks::state_key(&task.id))?;
    Ok((json!({ "taskId": task.id }), task.changed("delete", task.assignee(), at)))
}

fn comment(caller: &Caller, data: &Value, at: &Moment) -> Result<Done, Failure> {
    let task = named(caller, data)?;
    let comment = Comment::new(&task, data, tasks::unique_id("c", &invocation::id()), at)?;
    Ok((json!({ "comment": comment }), comment.added(&task)))
}

/// The task that the caller names and may change.
fn named(caller: &Caller, data: &Value) -> Result<Task, Failure> {
    let id = tasks::named_task(data)?;
    Ok(caller.may_change(&id, load(&id)?, data)?)
}

fn load(id: &str) -> Result<Option<Task>, Failure> {
    let Some(bytes) = state::get(&tasks::state_key(id))? else { return Ok(None) };
    let task = serde_json::from_slice(&bytes);
    task.map(Some).map_err(|error| Failure::Fatal(format!("a stored task is unreadable: {error}")))
}

fn store(task: &Task) -> Result<(), Failure> {
    let value = serde_json::to_vec(task).map_err(|error| Failure::Fatal(error.to_string()))?;
    Ok(state::put(&tasks::state_key(&task.id), &value, None)?)
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
