//! What guards, residents and time may do to a visitor. No host: a visitor and what was
//! asked in, the visitor as it is afterwards out.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The longest id of a flat, a society or a visitor, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// The longest name of a visitor, in characters.
pub const NAME_CHARS_MAX: usize = 200;
/// The longest purpose of a visit, in characters.
pub const PURPOSE_CHARS_MAX: usize = 500;
/// Visitors in one list, at most.
pub const LIST_MAX: usize = 100;
/// Flats of one resident whose visitors are listed, at most.
pub const LISTED_FLATS_MAX: usize = 64;
/// How long a resolved visitor can still be listed, in milliseconds: 7 days.
pub const RESOLVED_TTL_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// How long a visitor waits when `timeout_ms` is not set, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 120_000;
/// The longest `timeout_ms`, in milliseconds: 7 days.
pub const TIMEOUT_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Larger than any time in milliseconds until the year 2286; subtracting from it turns the
/// order of the keys around, so that the newest come first.
const TIME_MS_MAX: u64 = 9_999_999_999_999;

const TIMER_PREFIX: &str = "visitor_timeout/";

/// Why the caller does not get what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `forbidden`, `not_found`, `already_resolved` or `invalid`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refused {
    /// What was sent cannot be understood.
    pub fn invalid(message: impl Into<String>) -> Refused {
        Refused { code: "invalid", message: message.into() }
    }

    /// There is no such visitor, or not any more.
    pub fn not_found(id: &str) -> Refused {
        Refused { code: "not_found", message: format!("there is no visitor {id:?}") }
    }

    fn forbidden(message: &str) -> Refused {
        Refused { code: "forbidden", message: message.into() }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Stands at the gate of a society.
    Guard {
        /// The token's subject.
        subject: String,
        /// Its society.
        society_id: String,
    },
    /// Lives in flats.
    Resident {
        /// The token's subject.
        subject: String,
        /// Its flats; those that are no ids are left out.
        flats: Vec<String>,
    },
    /// The tenant's own back end, over HTTP: trusted.
    Backend,
    /// Anybody else.
    Stranger,
}

impl Caller {
    /// Who the bearer of these claims is.
    pub fn from_claims(subject: &str, claims: &str) -> Caller {
        let claims: Map<String, Value> = serde_json::from_str(claims).unwrap_or_default();
        let subject = subject.to_owned();
        match claims.get("role").and_then(Value::as_str) {
            Some("guard") => match claims.get("society_id").and_then(id_text) {
                Some(society_id) => Caller::Guard { subject, society_id },
                None => Caller::Stranger,
            },
            Some("resident") => {
                let flats = claims.get("flats").and_then(Value::as_array).into_iter().flatten();
                Caller::Resident { subject, flats: flats.filter_map(id_text).collect() }
            }
            _ => Caller::Stranger,
        }
    }
}

/// Where a visitor stands. Everything but `Pending` is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nobody has answered yet.
    Pending,
    /// A resident let the visitor in.
    Approved,
    /// A resident did not.
    Denied,
    /// Nobody answered in time.
    TimedOut,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 4] = [Status::Pending, Status::Approved, Status::Denied, Status::TimedOut];

    /// The word for it, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Approved => "approved",
            Status::Denied => "denied",
            Status::TimedOut => "timed_out",
        }
    }
}

/// A visitor, as stored and as listed. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub struct Visitor {
    pub visitor_id: String,
    pub society_id: String,
    pub flat_id: String,
    pub visitor_name: String,
    pub purpose: Option<String>,
    pub status: Status,
    pub requested_by: String,
    pub created_at: u64,
    pub expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<u64>,
}

/// What members of rooms are told.
#[derive(Debug, PartialEq)]
pub struct Announcement {
    /// The name of the event.
    pub event: &'static str,
    /// Where to.
    pub rooms: Vec<String>,
    /// Its first and only argument.
    pub data: Value,
}

impl Visitor {
    /// A visitor that waits, registered by a guard or the back end.
    ///
    /// # Errors
    /// `forbidden` for anybody else, `invalid` when something is missing or malformed.
    pub fn create(caller: &Caller, data: &Value, id: String, now: u64, timeout_ms: u64) -> Result<Visitor, Refused> {
        let (requested_by, society_id) = match caller {
            Caller::Guard { subject, society_id } => (subject.clone(), society_id.clone()),
            Caller::Backend => ("backend".into(), id_field(data, "society_id")?),
            Caller::Resident { .. } | Caller::Stranger => {
                return Err(Refused::forbidden("visitors are registered by a guard whose token names a society"));
            }
        };
        Ok(Visitor {
            visitor_id: id,
            society_id,
            flat_id: id_field(data, "flat_id")?,
            visitor_name: text_field(data, "visitor_name", NAME_CHARS_MAX)?
                .ok_or_else(|| Refused::invalid("`visitor_name` is missing"))?,
            purpose: text_field(data, "purpose", PURPOSE_CHARS_MAX)?,
            status: Status::Pending,
            requested_by,
            created_at: now,
            expires_at: now.saturating_add(timeout_ms),
            decided_by: None,
            decided_at: None,
        })
    }

    /// The visitor after a resident of the flat, or the back end, has decided.
    ///
    /// # Errors
    /// `forbidden`, `invalid`, or `already_resolved` when there is an outcome already.
    pub fn answer(self, caller: &Caller, data: &Value, now: u64) -> Result<Visitor, Refused> {
        let decided_by = match caller {
            Caller::Resident { subject, flats } if flats.contains(&self.flat_id) => subject.clone(),
            Caller::Backend => "backend".into(),
            _ => return Err(Refused::forbidden("visitors are answered by a resident of the flat")),
        };
        let status = match data.get("decision").and_then(Value::as_str) {
            Some("approve") => Status::Approved,
            Some("deny") => Status::Denied,
            _ => return Err(Refused::invalid("`decision` must be \"approve\" or \"deny\"")),
        };
        if self.status != Status::Pending {
            let message = format!("visitor {:?} is {} already", self.visitor_id, self.status.word());
            return Err(Refused { code: "already_resolved", message });
        }
        Ok(Visitor { status, decided_by: Some(decided_by), decided_at: Some(now), ..self })
    }

    /// The visitor after nobody has answered in time; `None` when somebody has.
    pub fn expire(self, now: u64) -> Option<Visitor> {
        (self.status == Status::Pending).then_some(Visitor { status: Status::TimedOut, decided_at: Some(now), ..self })
    }

    /// What the rooms are told about the visitor as it is now.
    pub fn announcement(&self) -> Announcement {
        let Visitor { visitor_id, flat_id, visitor_name, status, .. } = self;
        let flat = format!("flat:{flat_id}");
        let both = || vec![format!("society:{}", self.society_id), flat.clone()];
        let decided = |decision: &str| {
            json!({
                "visitor_id": visitor_id, "flat_id": flat_id, "visitor_name": visitor_name, "decision": decision,
                "decided_by": self.decided_by, "decided_at": self.decided_at,
            })
        };
        match status {
            Status::Pending => Announcement {
                event: "visitor_request",
                data: json!({
                    "visitor_id": visitor_id, "flat_id": flat_id, "visitor_name": visitor_name,
                    "purpose": self.purpose, "status": status, "requested_by": self.requested_by,
                    "expires_at": self.expires_at,
                }),
                rooms: vec![flat],
            },
            Status::Approved => Announcement { event: "request_approved", rooms: both(), data: decided("approve") },
            Status::Denied => Announcement { event: "request_denied", rooms: both(), data: decided("deny") },
            Status::TimedOut => Announcement {
                event: "visitor_timeout",
                rooms: both(),
                data: json!({
                    "visitor_id": visitor_id, "flat_id": flat_id, "visitor_name": visitor_name, "status": status,
                    "timed_out_at": self.decided_at,
                }),
            },
        }
    }

    /// The keys under which a visitor of this status is found: by society and by flat, the
    /// newest first.
    pub fn index_keys(&self, status: Status) -> [String; 2] {
        let place = format!("{:013}-{}", TIME_MS_MAX.saturating_sub(self.created_at), self.visitor_id);
        [format!("society/{}", self.society_id), format!("flat/{}", self.flat_id)]
            .map(|scope| format!("{}{place}", index_prefix(&scope, status)))
    }
}

/// The id of the visitor that an input creates: the same for every attempt at the input.
pub fn visitor_id(invocation_id: &str) -> String {
    let id = format!("v_{invocation_id}");
    if is_id(&id) {
        return id;
    }
    // An id from outside (an idempotency key over HTTP) may have any form: FNV-1a, 128 bits.
    let hash = invocation_id.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("v_{hash:032x}")
}

/// The key that holds a visitor.
pub fn state_key(id: &str) -> String {
    format!("visitor/{id}")
}

/// The name of the timer that ends the waiting.
pub fn timer_name(id: &str) -> String {
    format!("{TIMER_PREFIX}{id}")
}

/// The visitor that a timer is for.
pub fn timer_visitor(name: &str) -> Option<&str> {
    name.strip_prefix(TIMER_PREFIX)
}

/// The visitor that the caller names.
///
/// # Errors
/// `invalid` when it names none.
pub fn named_visitor(data: &Value) -> Result<&str, Refused> {
    let id = data.get("visitor_id").and_then(Value::as_str).filter(|id| is_id(id));
    id.ok_or_else(|| id_error("visitor_id"))
}

/// The statuses that a list is asked for: the one that `status` names, or all.
///
/// # Errors
/// `invalid` when it names none that there is.
pub fn wanted_statuses(data: &Value) -> Result<Vec<Status>, Refused> {
    match data.get("status") {
        None | Some(Value::Null) => Ok(Status::ALL.to_vec()),
        Some(asked) => match Status::ALL.into_iter().find(|status| asked.as_str() == Some(status.word())) {
            Some(status) => Ok(vec![status]),
            None => Err(Refused::invalid("`status` must be pending, approved, denied or timed_out")),
        },
    }
}

/// Whose visitors the caller may see: a guard those of its society, a resident those of its
/// flats, the back end those of the society or the flat it names.
///
/// # Errors
/// `forbidden` for anybody else, `invalid` when the back end names nothing.
pub fn scopes(caller: &Caller, data: &Value) -> Result<Vec<String>, Refused> {
    match caller {
        Caller::Guard { society_id, .. } => Ok(vec![format!("society/{society_id}")]),
        Caller::Resident { flats, .. } => {
            Ok(flats.iter().take(LISTED_FLATS_MAX).map(|flat| format!("flat/{flat}")).collect())
        }
        Caller::Backend if data.get("flat_id").is_some() => Ok(vec![format!("flat/{}", id_field(data, "flat_id")?)]),
        Caller::Backend => Ok(vec![format!("society/{}", id_field(data, "society_id")?)]),
        Caller::Stranger => Err(Refused::forbidden("visitors are listed for guards and residents")),
    }
}

/// The beginning of the index keys of a scope and status.
pub fn index_prefix(scope: &str, status: Status) -> String {
    format!("{scope}/{}/", status.word())
}

/// The ids of the newest visitors among index keys, each once, at most [`LIST_MAX`].
pub fn newest(index_keys: Vec<String>) -> Vec<String> {
    let mut places: Vec<&str> =
        index_keys.iter().filter_map(|key| key.rsplit_once('/').map(|(_, place)| place)).collect();
    places.sort_unstable();
    places.dedup();
    let ids = places.into_iter().filter_map(|place| place.split_once('-').map(|(_, id)| id.to_owned()));
    ids.take(LIST_MAX).collect()
}

/// What the setting `timeout_ms` means.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn timeout_ms(setting: Option<&str>) -> Result<u64, String> {
    let Some(text) = setting else { return Ok(TIMEOUT_MS_DEFAULT) };
    match text.parse() {
        Ok(timeout_ms) if (1..=TIMEOUT_MS_MAX).contains(&timeout_ms) => Ok(timeout_ms),
        _ => Err(format!("the setting `timeout_ms` is a whole number from 1 to {TIMEOUT_MS_MAX}, not {text:?}")),
    }
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

fn id_field(data: &Value, field: &str) -> Result<String, Refused> {
    data.get(field).and_then(id_text).ok_or_else(|| id_error(field))
}

fn id_error(field: &str) -> Refused {
    Refused::invalid(format!("`{field}` must be 1 to {ID_BYTES_MAX} of A-Z, a-z, 0-9, `_`, `.` and `-`"))
}

fn text_field(data: &Value, field: &str, chars_max: usize) -> Result<Option<String>, Refused> {
    let text = match data.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().map(str::trim).unwrap_or_default(),
    };
    if text.is_empty() || text.chars().count() > chars_max || text.chars().any(char::is_control) {
        return Err(Refused::invalid(format!("`{field}` must be 1 to {chars_max} characters, none of them control")));
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
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests;
