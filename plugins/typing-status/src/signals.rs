//! Where somebody may be seen typing, and who hears of a status. No host: claims and what was
//! said in, rooms and what they are told out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The longest id in a room's name, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The longest word or note of a status, in characters.
pub const STATUS_CHARS_MAX: usize = 140;
/// Rooms that hear of a status, at most.
pub const STATUS_ROOMS_MAX: usize = 64;
/// Rooms in which one user's typing is ended together, at most.
pub const TYPING_MAX: u32 = 16;
/// How long typing is seen when nothing more comes and `typing_timeout_ms` is not set, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 6_000;
/// What `typing_timeout_ms` may be, in milliseconds.
pub const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 200..=60_000;

/// The types of rooms where people type, with the fields that name one and the claim that lists them.
/// Of several fields the first counts: a task is named beside its project.
const PLACES: [(&str, [&str; 2], &str); 4] = [
    ("channel", ["channelId", "channel_id"], "channels"),
    ("task", ["taskId", "task_id"], "tasks"),
    ("project", ["projectId", "project_id"], "projects"),
    ("team", ["teamId", "team_id"], "teams"),
];

/// Why the caller does not get what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `forbidden` or `invalid`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refused {
    /// What was sent cannot be understood.
    pub fn invalid(message: impl Into<String>) -> Refused {
        Refused { code: "invalid", message: message.into() }
    }
}

/// The bearer of a token, in a namespace.
pub struct Person {
    /// The token's subject.
    pub subject: String,
    claims: Map<String, Value>,
    namespace: String,
}

impl Person {
    /// What is missing in the claims, or of another type, is not claimed.
    pub fn from_claims(subject: &str, claims: &str, namespace: &str) -> Person {
        let claims = serde_json::from_str(claims).unwrap_or_default();
        Person { subject: subject.into(), claims, namespace: namespace.into() }
    }

    fn list(&self, claim: &str) -> impl Iterator<Item = String> {
        self.claims.get(claim).and_then(Value::as_array).into_iter().flatten().filter_map(id_text)
    }

    fn lists(&self, claim: &str, id: &str) -> bool {
        self.list(claim).any(|own| own == id)
    }

    fn room(&self, room_type: &str, id: &str) -> String {
        let name = format!("{room_type}:{id}");
        if self.namespace == "/" { name } else { format!("{}#{name}", self.namespace) }
    }

    /// The room that is named, if it is one of the bearer's. As for joining, a task belongs to the
    /// project that is named beside it.
    fn place(&self, data: &Value) -> Result<(String, Map<String, Value>), Refused> {
        let mut naming = Map::new();
        let (mut room_type, mut id) = (None, None);
        for (name, fields, _) in PLACES {
            if let Some(field) = fields.into_iter().find(|field| data.get(*field).is_some()) {
                naming.insert(field.into(), data[field].clone());
                room_type = room_type.or(Some(name));
                id = id.or(Some(id_text(&data[field])));
            }
        }
        if room_type.is_none() {
            let named = data.get("room").and_then(Value::as_str);
            let typed = data.get("room_type").and_then(Value::as_str).zip(data.get("room_id").and_then(id_text));
            let (its_type, its_id) = match named.and_then(|room| room.split_once(':')) {
                Some((its_type, its_id)) => (its_type, Some(its_id.to_owned())),
                None => typed.as_ref().map_or(("", None), |(its_type, its_id)| (*its_type, Some(its_id.clone()))),
            };
            room_type = PLACES.iter().map(|(name, ..)| *name).find(|name| *name == its_type);
            id = Some(its_id.filter(|id| is_id(id)));
        }
        let (Some(room_type), Some(Some(id))) = (room_type, id) else {
            return Err(Refused::invalid("name a channel, task, project or team: `channelId`, …, or `room`"));
        };
        let project = PLACES[2].1.iter().find_map(|field| id_text(data.get(*field)?));
        let through_project = room_type == "task" && project.is_some_and(|project| self.lists("projects", &project));
        let claim = PLACES.iter().find(|(name, ..)| *name == room_type).map_or("", |(_, _, claim)| claim);
        if through_project || self.lists(claim, &id) {
            return Ok((self.room(room_type, &id), naming));
        }
        Err(Refused { code: "forbidden", message: format!("the token does not list {room_type} {id:?}") })
    }
}

/// Somebody types somewhere, as stored and as the timer's data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Typing {
    /// The full name of the room that sees it.
    pub room: String,
    subject: String,
    /// As the client named the room: the others know it by the same fields.
    naming: Map<String, Value>,
    since: u64,
}

impl Typing {
    /// Of somebody who types (or stops) where `data` says, at a time in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// `invalid` when no room is named, `forbidden` when it is not one of theirs.
    pub fn start(person: &Person, data: &Value, now: u64) -> Result<Typing, Refused> {
        let (room, naming) = person.place(data)?;
        Ok(Typing { room, subject: person.subject.clone(), naming, since: now })
    }

    /// Is it time to say again how long it lasts? A typist is not to be written down at every key stroke.
    pub fn is_due(&self, now: u64, timeout_ms: u64) -> bool {
        now >= self.since.saturating_add(timeout_ms / 2)
    }

    /// What the room is told.
    pub fn shown(&self) -> Value {
        let mut shown = self.naming.clone();
        shown.insert("room".into(), self.room.rsplit('#').next().into());
        shown.insert("userId".into(), self.subject.as_str().into());
        Value::Object(shown)
    }

    /// The key that says that it goes on.
    pub fn state_key(&self) -> String {
        format!("{}{}", typing_prefix(&self.subject), self.mark())
    }

    /// The timer that ends it. Timers' names are short: rooms and subjects need not be.
    pub fn timer_name(&self) -> String {
        format!("typing/{}", self.mark())
    }

    /// FNV-1a, 128 bits.
    fn mark(&self) -> String {
        let bytes = self.subject.bytes().chain([0]).chain(self.room.bytes());
        let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
        format!("{hash:032x}")
    }
}

/// The beginning of the keys of all that somebody types; one subject's never begins as another's.
pub fn typing_prefix(subject: &str) -> String {
    format!("typing/{}/", subject.replace('%', "%25").replace('/', "%2F"))
}

/// The key that holds somebody's status.
pub fn status_key(subject: &str) -> String {
    format!("status/{subject}")
}

/// What somebody says of itself, and where, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// A word of the tenant's choice: `online`, `away`, …
    pub status: String,
    /// A note beside it.
    pub message: Option<String>,
    /// The full names of the rooms that hear of it.
    pub rooms: Vec<String>,
    subject: String,
    at: u64,
}

impl Status {
    /// For the room that is named; otherwise for the teams of the token, or its projects when it has no teams.
    ///
    /// # Errors
    /// `invalid` without a status, or with one too long; `forbidden` when the room is not one of theirs.
    pub fn of(person: &Person, data: &Value, now: u64) -> Result<Status, Refused> {
        let status = text(data, "status")?.ok_or_else(|| Refused::invalid("`status` is missing"))?;
        let names_a_room = PLACES.iter().flat_map(|(_, fields, _)| fields).chain(&["room", "room_type"]);
        let rooms = if names_a_room.into_iter().any(|field| data.get(*field).is_some()) {
            vec![person.place(data)?.0]
        } else {
            let all = |claim, room_type| -> Vec<String> {
                person.list(claim).take(STATUS_ROOMS_MAX).map(|id| person.room(room_type, &id)).collect()
            };
            Some(all("teams", "team")).filter(|teams| !teams.is_empty()).unwrap_or_else(|| all("projects", "project"))
        };
        Ok(Status { status, message: text(data, "message")?, rooms, subject: person.subject.clone(), at: now })
    }

    /// The last status of somebody who is gone.
    #[must_use]
    pub fn gone(self, now: u64) -> Status {
        Status { status: "offline".into(), message: None, at: now, ..self }
    }

    /// What the rooms are told.
    pub fn shown(&self) -> Value {
        json!({ "userId": self.subject, "status": self.status, "message": self.message, "at": self.at })
    }
}

/// What the setting `typing_timeout_ms` means.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn timeout_ms(setting: Option<&str>) -> Result<u64, String> {
    let Some(text) = setting else { return Ok(TIMEOUT_MS_DEFAULT) };
    let (from, to) = (TIMEOUT_MS.start(), TIMEOUT_MS.end());
    text.parse()
        .ok()
        .filter(|timeout_ms| TIMEOUT_MS.contains(timeout_ms))
        .ok_or_else(|| format!("the setting `typing_timeout_ms` is a whole number from {from} to {to}, not {text:?}"))
}

/// The first argument of an event; an event without arguments has an empty object, a text alone is its `field`.
///
/// # Errors
/// `invalid` when it is something else.
pub fn first_argument(args: &str, field: &str) -> Result<Value, Refused> {
    let args: Vec<Value> = serde_json::from_str(args).unwrap_or_default();
    match args.into_iter().next() {
        None => Ok(json!({})),
        Some(object @ Value::Object(_)) => Ok(object),
        Some(Value::String(word)) => Ok(json!({ field: word })),
        Some(_) => Err(Refused::invalid("the first argument must be an object")),
    }
}

fn text(data: &Value, field: &str) -> Result<Option<String>, Refused> {
    let text = match data.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().map(str::trim).unwrap_or_default(),
    };
    if text.is_empty() || text.chars().count() > STATUS_CHARS_MAX || text.chars().any(char::is_control) {
        let what = format!("`{field}` must be 1 to {STATUS_CHARS_MAX} characters, none of them control");
        return Err(Refused::invalid(what));
    }
    Ok(Some(text.to_owned()))
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
