//! What people and the tenant's back end may do to a channel's messages. No host: a message
//! and what was asked in, the message as it is afterwards and what the channel is told out.

pub mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The longest id of a channel or a user, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// The longest text of a message, in characters.
pub const TEXT_CHARS_MAX: usize = 4_000;
/// What a message may carry beside its text, as JSON, in bytes.
pub const EXTRAS_BYTES_MAX: usize = 8 << 10;
/// The longest reaction, in bytes: an emoji of several code points, or a short word.
pub const EMOJI_BYTES_MAX: usize = 64;
/// Different reactions to one message, at most.
pub const EMOJIS_MAX: usize = 32;
/// Reactions to one message by all users together, at most.
pub const REACTIONS_MAX: usize = 200;
/// Messages of a channel that are kept when `messages_max` is not set.
pub const MESSAGES_MAX_DEFAULT: u64 = 10_000;
/// What `messages_max` may be.
pub const MESSAGES_MAX: std::ops::RangeInclusive<u64> = 1..=10_000_000;
/// The longest `retention_ms`, in milliseconds: ten years.
pub const RETENTION_MS_MAX: u64 = 3_650 * 24 * 3_600 * 1_000;
/// How many old messages one new one takes out, at most.
const TAKEN_OUT_MAX: u64 = 16;

/// What a client may say of a message beside its text; kept and shown as it came.
const EXTRAS: [&str; 4] = ["replyTo", "attachments", "mentions", "metadata"];
/// The name that a client has for what it sends: given back to it alone.
const CLIENTS_OWN_IDS: [&str; 4] = ["tempId", "clientId", "clientMessageId", "nonce"];

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

    /// There is no such message, or not any more.
    pub fn not_found(id: &MessageId) -> Refused {
        Refused { code: "not_found", message: format!("there is no message {:?}", id.text()) }
    }

    fn forbidden(message: impl Into<String>) -> Refused {
        Refused { code: "forbidden", message: message.into() }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    subject: String,
    /// The channels that its token lists; `None`: the tenant's own back end, which is trusted.
    channels: Option<Vec<String>>,
    moderates: bool,
    connection: Option<String>,
}

impl Caller {
    /// Who the bearer of these claims is.
    pub fn from_claims(subject: &str, claims: &str, connection: &str) -> Caller {
        let claims: Map<String, Value> = serde_json::from_str(claims).unwrap_or_default();
        let channels = claims.get("channels").and_then(Value::as_array).into_iter().flatten();
        Caller {
            subject: subject.into(),
            channels: Some(channels.filter_map(id_text).collect()),
            moderates: matches!(claims.get("role").and_then(Value::as_str), Some("admin" | "moderator")),
            connection: Some(connection.into()),
        }
    }

    /// The tenant's own back end, over HTTP.
    pub fn backend() -> Caller {
        Caller { subject: "backend".into(), channels: None, moderates: true, connection: None }
    }

    /// Its connection, if it has one.
    pub fn connection(&self) -> Option<&str> {
        self.connection.as_deref()
    }

    /// May it say something there?
    ///
    /// # Errors
    /// `forbidden` when the token does not list the channel.
    pub fn may_speak_in(&self, channel: &Channel) -> Result<(), Refused> {
        match &self.channels {
            Some(channels) if !channels.contains(&channel.id) => {
                Err(Refused::forbidden(format!("the token does not list channel {:?}", channel.id)))
            }
            _ => Ok(()),
        }
    }

    /// Under whose name it speaks: the back end may speak for anybody.
    fn author(&self, data: &Value) -> String {
        let named = ["userId", "user_id"].iter().find_map(|field| id_text(data.get(*field)?));
        named.filter(|_| self.channels.is_none()).unwrap_or_else(|| self.subject.clone())
    }

    /// Its own message, or one that it moderates.
    fn owns(&self, message: &Message) -> Result<(), Refused> {
        if self.moderates || (message.user_id == self.subject && self.channels.is_some()) {
            return Ok(());
        }
        Err(Refused::forbidden("this is another user's message"))
    }
}

/// A channel of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// What clients call it.
    pub id: String,
    namespace: String,
}

impl Channel {
    /// The one that `channelId` names.
    ///
    /// # Errors
    /// `invalid` when it names none.
    pub fn named(namespace: &str, data: &Value) -> Result<Channel, Refused> {
        let id = ["channelId", "channel_id"].iter().find_map(|field| id_text(data.get(*field)?));
        let what = format!("`channelId` must be a number, or 1 to {ID_BYTES_MAX} bytes without control characters");
        Ok(Channel { id: id.ok_or_else(|| Refused::invalid(what))?, namespace: namespace.into() })
    }

    /// The one whose room `room` names, as the gateway reads it; `None` when it is no channel's.
    pub fn of_room(namespace: &str, data: &Value) -> Option<Channel> {
        let room = data.get("room")?.as_str()?;
        let name = if room.starts_with('/') { room.split_once('#')?.1 } else { room };
        let id = name.strip_prefix("channel:").filter(|id| is_id(id))?;
        Some(Channel { id: id.into(), namespace: namespace.into() })
    }

    /// Its room's full name.
    pub fn room(&self) -> String {
        room_in(&self.namespace, &format!("channel:{}", self.id))
    }

    /// The key that holds the number of its latest message.
    pub fn last_key(&self) -> String {
        format!("last/{}", self.room())
    }

    /// The key that holds a message.
    pub fn message_key(&self, number: u64) -> String {
        format!("message/{}/{number:012}", self.room())
    }
}

/// Where a message is: `{channel}.{number}`, which clients take as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageId {
    /// Its channel.
    pub channel: Channel,
    /// Its number there, from 1.
    pub number: u64,
}

impl MessageId {
    /// The one that `messageId` names.
    ///
    /// # Errors
    /// `invalid` when it names none.
    pub fn named(namespace: &str, data: &Value) -> Result<MessageId, Refused> {
        let text = ["messageId", "message_id"].iter().find_map(|field| data.get(*field)?.as_str());
        let id = text.and_then(|text| MessageId::parse(namespace, text));
        id.ok_or_else(|| Refused::invalid("`messageId` must be the id of a message, as it came"))
    }

    /// Reads what [`text`](MessageId::text) says.
    pub fn parse(namespace: &str, text: &str) -> Option<MessageId> {
        let (id, number) = text.rsplit_once('.').filter(|(id, _)| is_id(id))?;
        let number = number.parse().ok().filter(|number| *number > 0)?;
        Some(MessageId { channel: Channel { id: id.into(), namespace: namespace.into() }, number })
    }

    /// As clients know it.
    pub fn text(&self) -> String {
        format!("{}.{}", self.channel.id, self.number)
    }
}

/// What the members of a channel are told.
#[derive(Debug, PartialEq)]
pub struct Told {
    /// The name of the event.
    pub event: &'static str,
    /// Its first and only argument.
    pub data: Value,
}

/// A message, as stored and as shown. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the protocol")]
pub struct Message {
    pub message_id: String,
    pub channel_id: String,
    /// Its place in the channel, from 1, without holes.
    #[serde(rename = "seq")]
    pub number: u64,
    pub user_id: String,
    pub text: String,
    pub created_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_at: Option<u64>,
    /// A deleted message keeps its place, without what was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<u64>,
    /// Who reacted, by reaction.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reactions: BTreeMap<String, BTreeSet<String>>,
    #[serde(flatten)]
    pub extras: Map<String, Value>,
}

impl Message {
    /// A new one, with its number.
    ///
    /// # Errors
    /// `forbidden` for who may not speak there, `invalid` without a text or with too much.
    pub fn new(caller: &Caller, channel: &Channel, number: u64, data: &Value, now: u64) -> Result<Message, Refused> {
        caller.may_speak_in(channel)?;
        let mut extras = Map::new();
        for field in EXTRAS {
            if let Some(value) = data.get(field).filter(|value| !value.is_null()) {
                extras.insert(field.into(), value.clone());
            }
        }
        let bytes = Value::Object(extras.clone()).to_string().len();
        if bytes > EXTRAS_BYTES_MAX {
            let what = EXTRAS.join(", ");
            return Err(Refused::invalid(format!("{what} have {bytes} bytes together, at most {EXTRAS_BYTES_MAX}")));
        }
        Ok(Message {
            message_id: MessageId { channel: channel.clone(), number }.text(),
            channel_id: channel.id.clone(),
            number,
            user_id: caller.author(data),
            text: said(data)?,
            created_at: now,
            edited_at: None,
            deleted_at: None,
            reactions: BTreeMap::new(),
            extras,
        })
    }

    /// What the channel hears of a new one.
    pub fn said(&self) -> Told {
        Told { event: "new_message", data: json!(self) }
    }

    /// What its sender hears, with the name that it has for it.
    pub fn sent(&self, data: &Value) -> Value {
        let mut sent = json!({
            "messageId": self.message_id, "channelId": self.channel_id, "seq": self.number, "createdAt": self.created_at,
        });
        for field in CLIENTS_OWN_IDS {
            if let Some(own) = data.get(field).and_then(id_text) {
                sent[field] = own.into();
            }
        }
        sent
    }

    /// What whoever changed it is answered.
    pub fn answer(&self) -> Value {
        json!({ "messageId": self.message_id, "channelId": self.channel_id, "message": self })
    }

    /// Says something else, by its author or a moderator.
    ///
    /// # Errors
    /// `forbidden` for anybody else, `not_found` when it was deleted, `invalid` without a text.
    pub fn edit(&mut self, caller: &Caller, data: &Value, now: u64) -> Result<Option<Told>, Refused> {
        self.is_there()?;
        caller.owns(self)?;
        let text = said(data)?;
        if text == self.text {
            return Ok(None);
        }
        self.text = text;
        self.edited_at = Some(now);
        let data = json!({
            "messageId": self.message_id, "channelId": self.channel_id, "text": self.text, "editedAt": now,
            "message": self,
        });
        Ok(Some(Told { event: "message_edited", data }))
    }

    /// Takes back what it says, by its author or a moderator. Its place stays.
    ///
    /// # Errors
    /// `forbidden` for anybody else.
    pub fn delete(&mut self, caller: &Caller, _: &Value, now: u64) -> Result<Option<Told>, Refused> {
        caller.owns(self)?;
        if self.deleted_at.is_some() {
            return Ok(None);
        }
        self.text.clear();
        self.extras.clear();
        self.reactions.clear();
        self.deleted_at = Some(now);
        let data = json!({
            "messageId": self.message_id, "channelId": self.channel_id, "deletedAt": now, "deletedBy": caller.subject,
        });
        Ok(Some(Told { event: "message_deleted", data }))
    }

    /// Adds a reaction, once per user.
    ///
    /// # Errors
    /// `not_found` when it was deleted, `invalid` when it is no reaction, or there are too many.
    pub fn react(&mut self, caller: &Caller, data: &Value, _: u64) -> Result<Option<Told>, Refused> {
        self.is_there()?;
        let (emoji, user) = (emoji(data)?, caller.author(data));
        let all: usize = self.reactions.values().map(BTreeSet::len).sum();
        let users = self.reactions.get(&emoji);
        if users.is_some_and(|users| users.contains(&user)) {
            return Ok(None);
        }
        if all >= REACTIONS_MAX || (users.is_none() && self.reactions.len() >= EMOJIS_MAX) {
            let most = format!("a message has at most {REACTIONS_MAX} reactions, {EMOJIS_MAX} of them different");
            return Err(Refused::invalid(most));
        }
        self.reactions.entry(emoji.clone()).or_default().insert(user.clone());
        Ok(Some(Told { event: "reaction_added", data: self.reaction(&emoji, &user) }))
    }

    /// Takes a reaction back; one that is not there is none.
    ///
    /// # Errors
    /// `invalid` when it is no reaction.
    pub fn take_back(&mut self, caller: &Caller, data: &Value, _: u64) -> Result<Option<Told>, Refused> {
        let (emoji, user) = (emoji(data)?, caller.author(data));
        let Some(users) = self.reactions.get_mut(&emoji).filter(|users| users.contains(&user)) else {
            return Ok(None);
        };
        users.remove(&user);
        if users.is_empty() {
            self.reactions.remove(&emoji);
        }
        Ok(Some(Told { event: "reaction_removed", data: self.reaction(&emoji, &user) }))
    }

    fn reaction(&self, emoji: &str, user: &str) -> Value {
        let count = self.reactions.get(emoji).map_or(0, BTreeSet::len);
        json!({
            "messageId": self.message_id, "channelId": self.channel_id, "emoji": emoji, "userId": user, "count": count,
        })
    }

    fn is_there(&self) -> Result<(), Refused> {
        match self.deleted_at {
            Some(_) => {
                Err(Refused { code: "not_found", message: format!("message {:?} was deleted", self.message_id) })
            }
            None => Ok(()),
        }
    }
}

/// How long messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    messages_max: u64,
    age_ms: Option<u64>,
}

impl Retention {
    /// What the settings `messages_max` (of a channel) and `retention_ms` mean; without the latter age does not count.
    ///
    /// # Errors
    /// What is wrong with them, for the log.
    pub fn read(messages_max: Option<&str>, retention_ms: Option<&str>) -> Result<Retention, String> {
        let number = |name: &str, text: &str, range: &std::ops::RangeInclusive<u64>| {
            text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
                format!(
                    "the setting `{name}` is a whole number from {} to {}, not {text:?}",
                    range.start(),
                    range.end()
                )
            })
        };
        let messages_max = match messages_max {
            Some(text) => number("messages_max", text, &MESSAGES_MAX)?,
            None => MESSAGES_MAX_DEFAULT,
        };
        let age_ms = retention_ms.map(|text| number("retention_ms", text, &(1..=RETENTION_MS_MAX))).transpose()?;
        Ok(Retention { messages_max, age_ms })
    }

    /// How long a message still stays, in milliseconds; `None`: until there are too many.
    pub fn left_ms(&self, message: &Message, now: u64) -> Option<u64> {
        Some(message.created_at.saturating_add(self.age_ms?).saturating_sub(now).max(1))
    }

    /// The numbers that go when a message comes: one, or a few more where the setting was larger before.
    pub fn beyond(&self, newest: u64) -> Range<u64> {
        let end = newest.saturating_sub(self.messages_max) + 1;
        end.saturating_sub(TAKEN_OUT_MAX).max(1)..end
    }
}

/// Does the sender want its own message, too?
pub fn wants_echo(data: &Value) -> bool {
    data.get("echo").and_then(Value::as_bool).unwrap_or(false)
}

/// The full name of a room of a namespace.
pub fn room_in(namespace: &str, name: &str) -> String {
    if namespace == "/" { name.into() } else { format!("{namespace}#{name}") }
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

fn said(data: &Value) -> Result<String, Refused> {
    let text = ["text", "content", "message"].iter().find_map(|field| data.get(*field)?.as_str()).unwrap_or_default();
    if text.trim().is_empty() || text.chars().count() > TEXT_CHARS_MAX {
        return Err(Refused::invalid(format!("`text` must be 1 to {TEXT_CHARS_MAX} characters")));
    }
    Ok(text.to_owned())
}

fn emoji(data: &Value) -> Result<String, Refused> {
    let emoji = ["emoji", "reaction"].iter().find_map(|field| data.get(*field)?.as_str()).unwrap_or_default();
    if emoji.is_empty() || emoji.len() > EMOJI_BYTES_MAX || emoji.chars().any(char::is_control) {
        return Err(Refused::invalid(format!("`emoji` must be 1 to {EMOJI_BYTES_MAX} bytes")));
    }
    Ok(emoji.to_owned())
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
