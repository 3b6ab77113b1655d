//! What members and the tenant's back end may do to a task, and who is told. No host: a task
//! and what was asked in, the task as it is afterwards out.
//!
//! A task is whatever its clients say of it, kept field by field; the plugin itself sets
//! [`OWN_FIELDS`] only. Ids are understood as `taskId` and as `task_id`, and so on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The longest id of a task, a project or a user, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The largest task, as JSON, in bytes.
pub const TASK_BYTES_MAX: usize = 16 << 10;
/// The longest comment, in characters.
pub const COMMENT_CHARS_MAX: usize = 4_000;

/// What clients cannot set: the plugin does.
pub const OWN_FIELDS: [&str; 7] = ["id", "taskId", "task_id", "createdBy", "createdAt", "updatedBy", "updatedAt"];

const TASK: [&str; 3] = ["taskId", "task_id", "id"];
const PROJECT: [&str; 2] = ["projectId", "project_id"];
const ASSIGNEE: [&str; 4] = ["assigneeId", "assignee_id", "userId", "user_id"];
/// The field of a task that says whose it is.
const ASSIGNEE_FIELD: &str = "assigneeId";

/// Why the caller does not get what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `forbidden`, `not_found` or `invalid`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refused {
    /// What was sent cannot be understood.
    pub fn invalid(message: impl Into<String>) -> Refused {
        Refused { code: "invalid", message: message.into() }
    }

    fn forbidden(message: &str) -> Refused {
        Refused { code: "forbidden", message: message.into() }
    }

    fn not_found(id: &str) -> Refused {
        Refused { code: "not_found", message: format!("there is no task {id:?}") }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The bearer of a token.
    Member {
        /// The token's subject.
        subject: String,
        /// The projects that it lists.
        projects: Vec<String>,
        /// The tasks that it lists beside those of its projects.
        tasks: Vec<String>,
    },
    /// The tenant's own back end, over HTTP: trusted.
    Backend,
}

impl Caller {
    /// Who the bearer of these claims is.
    pub fn from_claims(subject: &str, claims: &str) -> Caller {
        let claims: Map<String, Value> = serde_json::from_str(claims).unwrap_or_default();
        let list = |claim: &str| {
            let items = claims.get(claim).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(id_text).collect()
        };
        Caller::Member { subject: subject.into(), projects: list("projects"), tasks: list("tasks") }
    }

    /// Under whose name it acts.
    pub fn subject(&self) -> &str {
        match self {
            Caller::Member { subject, .. } => subject,
            Caller::Backend => "backend",
        }
    }

    fn is_in_project(&self, project: &str) -> bool {
        match self {
            Caller::Member { projects, .. } => projects.iter().any(|own| own == project),
            Caller::Backend => true,
        }
    }

    fn lists_task(&self, id: &str) -> bool {
        matches!(self, Caller::Member { tasks, .. } if tasks.iter().any(|own| own == id))
    }

    /// The stored task, for whom it is; a task that lives in the tenant's own database is the
    /// back end's to name, with its project.
    ///
    /// # Errors
    /// `not_found`, or `forbidden` for members of other projects.
    pub fn may_change(&self, id: &str, stored: Option<Task>, data: &Value) -> Result<Task, Refused> {
        match stored {
            Some(task) if self.is_in_project(&task.project_id) || self.lists_task(id) => Ok(task),
            Some(_) => Err(Refused::forbidden("the token lists neither this task nor its project")),
            None if *self == Caller::Backend && named(data, &PROJECT).is_some() => {
                Ok(Task { id: id.into(), project_id: project(data)?, fields: Map::new() })
            }
            None => Err(Refused::not_found(id)),
        }
    }
}

/// Who does something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The subject.
    pub by: String,
    /// In milliseconds since the Unix epoch.
    pub now: u64,
}

/// A task, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Unique within the tenant.
    pub id: String,
    /// Where it belongs; it stays there.
    pub project_id: String,
    /// What is said of it, without its id.
    pub fields: Map<String, Value>,
}

/// What the members of a room are told.
#[derive(Debug, PartialEq)]
pub struct Announcement {
    /// Where to, in the namespace of the event.
    pub room: String,
    /// The name of the event.
    pub event: &'static str,
    /// Its first and only argument.
    pub data: Value,
}

impl Task {
    /// A new task of a project. The back end may give it the id that its database has.
    ///
    /// # Errors
    /// `forbidden` for who is not in the project, `invalid` when something is missing or too large.
    pub fn create(caller: &Caller, data: &Value, id: String, at: &Moment) -> Result<Task, Refused> {
        let project_id = project(data)?;
        if !caller.is_in_project(&project_id) {
            return Err(Refused::forbidden("the token does not list this project"));
        }
        let id = match named(data, &TASK) {
            Some(_) if *caller == Caller::Backend => named_task(data)?,
            _ => id,
        };
        let mut task = Task { id, project_id, fields: Map::new() };
        task.fields.insert("createdBy".into(), json!(at.by));
        task.fields.insert("createdAt".into(), json!(at.now));
        task.edit(data, at)
    }

    /// With other fields: those that are named, given in `changes`, in `task` or beside the id; `null` removes one.
    ///
    /// # Errors
    /// `invalid` when it would go to another project or grow too large.
    pub fn edit(&self, data: &Value, at: &Moment) -> Result<Task, Refused> {
        if named(data, &PROJECT).is_some() && project(data)? != self.project_id {
            return Err(Refused::invalid(format!("the task stays in project {:?}", self.project_id)));
        }
        let changes = ["changes", "updates", "task"].iter().find_map(|key| data.get(*key)?.as_object());
        let mut task = self.clone();
        for (field, value) in changes.or(data.as_object()).into_iter().flatten() {
            if OWN_FIELDS.contains(&field.as_str()) || PROJECT.contains(&field.as_str()) {
                continue;
            }
            if field == ASSIGNEE_FIELD || field == "assignee_id" {
                task.set_assignee(value)?;
            } else if value.is_null() {
                task.fields.remove(field);
            } else {
                task.fields.insert(field.clone(), value.clone());
            }
        }
        task.touched(at)
    }

    /// With another assignee, or with none (`null`).
    ///
    /// # Errors
    /// `invalid` when none is named.
    pub fn assign(&self, data: &Value, at: &Moment) -> Result<Task, Refused> {
        let assignee = ASSIGNEE.iter().find_map(|field| data.get(*field));
        let assignee = assignee.ok_or_else(|| Refused::invalid("`assigneeId` is missing; `null` means nobody"))?;
        let mut task = self.clone();
        task.set_assignee(assignee)?;
        task.touched(at)
    }

    fn set_assignee(&mut self, assignee: &Value) -> Result<(), Refused> {
        if assignee.is_null() {
            self.fields.remove(ASSIGNEE_FIELD);
            return Ok(());
        }
        let id = id_text(assignee).ok_or_else(|| id_error(ASSIGNEE_FIELD))?;
        self.fields.insert(ASSIGNEE_FIELD.into(), id.into());
        Ok(())
    }

    fn touched(mut self, at: &Moment) -> Result<Task, Refused> {
        self.fields.insert("updatedBy".into(), json!(at.by));
        self.fields.insert("updatedAt".into(), json!(at.now));
        let bytes = self.shown().to_string().len();
        if bytes > TASK_BYTES_MAX {
            return Err(Refused::invalid(format!("a task has at most {TASK_BYTES_MAX} bytes, this one has {bytes}")));
        }
        Ok(self)
    }

    /// Whose it is.
    pub fn assignee(&self) -> Option<&str> {
        self.fields.get(ASSIGNEE_FIELD)?.as_str()
    }

    /// As clients see it.
    pub fn shown(&self) -> Value {
        let mut shown = self.fields.clone();
        shown.insert("id".into(), json!(self.id));
        shown.insert("projectId".into(), json!(self.project_id));
        Value::Object(shown)
    }

    /// What whoever changed it is answered.
    pub fn answer(&self) -> Value {
        json!({ "taskId": self.id, "task": self.shown() })
    }

    /// Who is told that it is so now: the project, and a new assignee by name.
    pub fn changed(&self, action: &str, assignee_before: Option<&str>, at: &Moment) -> Vec<Announcement> {
        let task = self.shown();
        let update = json!({ "action": action, "task": task, "userId": at.by, "at": at.now });
        let room = format!("project:{}", self.project_id);
        let mut told = vec![Announcement { room, event: "task:update", data: update }];
        let new = self.assignee().filter(|assignee| Some(*assignee) != assignee_before);
        if let Some(assignee) = new {
            let assigned = json!({ "task": task, "assigneeId": assignee, "assignedBy": at.by, "at": at.now });
            told.push(Announcement { room: format!("user:{assignee}"), event: "task:assigned", data: assigned });
            if assignee != at.by {
                told.push(self.notification(assignee, "task_assigned", at));
            }
        }
        told
    }

    fn notification(&self, whom: &str, kind: &str, at: &Moment) -> Announcement {
        let data = json!({
            "type": kind, "taskId": self.id, "projectId": self.project_id, "title": self.fields.get("title"),
            "from": at.by, "at": at.now,
        });
        Announcement { room: format!("user:{whom}"), event: "notification", data }
    }
}

/// What somebody says of a task. It is passed on, and kept in the history of the task's room only.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub struct Comment {
    pub id: String,
    pub task_id: String,
    pub text: String,
    pub author_id: String,
    pub created_at: u64,
}

impl Comment {
    /// A new one.
    ///
    /// # Errors
    /// `invalid` without a text, or with one too long.
    pub fn new(task: &Task, data: &Value, id: String, at: &Moment) -> Result<Comment, Refused> {
        let text = ["text", "comment", "content"].iter().find_map(|field| data.get(*field)?.as_str());
        let text = text.map(str::trim).unwrap_or_default();
        if text.is_empty() || text.chars().count() > COMMENT_CHARS_MAX {
            return Err(Refused::invalid(format!("`text` must be 1 to {COMMENT_CHARS_MAX} characters")));
        }
        let (task_id, author_id) = (task.id.clone(), at.by.clone());
        Ok(Comment { id, task_id, text: text.into(), author_id, created_at: at.now })
    }

    /// Who is told: who watches the task, and by name whoever made it and whose it is.
    pub fn added(&self, task: &Task) -> Vec<Announcement> {
        let data = json!({ "taskId": self.task_id, "comment": self });
        let mut told = vec![Announcement { room: format!("task:{}", self.task_id), event: "comment:added", data }];
        let at = Moment { by: self.author_id.clone(), now: self.created_at };
        let creator = task.fields.get("createdBy").and_then(Value::as_str).filter(|creator| *creator != "backend");
        let mut concerned: Vec<&str> = creator.into_iter().chain(task.assignee()).collect();
        concerned.dedup();
        concerned.retain(|whom| *whom != self.author_id);
        told.extend(concerned.into_iter().map(|whom| task.notification(whom, "comment_added", &at)));
        told
    }
}

/// The id of what an input creates: the same for every attempt at the input.
pub fn unique_id(prefix: &str, invocation_id: &str) -> String {
    let id = format!("{prefix}_{invocation_id}");
    if is_id(&id) {
        return id;
    }
    // An id from outside (an idempotency key over HTTP) may have any form: FNV-1a, 128 bits.
    let hash = invocation_id.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{prefix}_{hash:032x}")
}

/// The key that holds a task.
pub fn state_key(id: &str) -> String {
    format!("task/{id}")
}

/// The full name of a room of a namespace.
pub fn room_in(namespace: &str, name: &str) -> String {
    if namespace == "/" { name.into() } else { format!("{namespace}#{name}") }
}

/// The task that the caller names.
///
/// # Errors
/// `invalid` when it names none.
pub fn named_task(data: &Value) -> Result<String, Refused> {
    named(data, &TASK).and_then(id_text).ok_or_else(|| id_error(TASK[0]))
}

fn project(data: &Value) -> Result<String, Refused> {
    named(data, &PROJECT).and_then(id_text).ok_or_else(|| id_error(PROJECT[0]))
}

/// The first of these fields that there is, in the argument or in its `task`.
fn named<'a>(data: &'a Value, fields: &[&str]) -> Option<&'a Value> {
    let within = |object: Option<&'a Value>| fields.iter().find_map(|field| object?.get(*field));
    within(Some(data)).or_else(|| within(data.get("task")))
}

/// The first argument of an event; an event without arguments has an empty object.
///
/// # Errors
/// `invalid` when it is not an object.
pub fn first_argument(args: &str) -> Result<Value, Refused> {
    let args: Vec<Value> = serde_json::from_str(args).unwrap_or_default();
    match args.into_iter().next() {
        None => Ok(json!({})),
        Some(object @ Value::Object(_)) => Ok(object),
        Some(_) => Err(Refused::invalid("the first argument must be an object")),
    }
}

fn id_error(field: &str) -> Refused {
    Refused::invalid(format!("`{field}` must be a number, or 1 to {ID_BYTES_MAX} bytes without control characters"))
}

/// Ids are texts or whole numbers: tokens in use have both.
fn id_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        _ => return None,
    };
    is_id(&text).then_some(text)
}

fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
