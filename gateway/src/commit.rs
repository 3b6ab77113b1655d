//! Seam between decision and delivery: what an input does, applied whole or not at all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::client::{ConnectionId, TokenMark, random_id};
use crate::event::{Payload, Refusal};
use crate::quota::Stored;
use crate::room::Room;

/// Milliseconds; points in time count from the Unix epoch.
pub type Millis = u64;

/// The present, by this machine's clock.
pub fn now_ms() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds from a point in time until now; 0 when it lies ahead.
pub fn seconds_since(then: Millis) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a lag is far below 2^52 milliseconds")]
    let milliseconds = now_ms().saturating_sub(then) as f64;
    milliseconds / 1_000.0
}

/// A place in a tenant's log. `epoch` grows whenever the log starts anew, `seq` counts
/// from 1 within it without holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Milliseconds since the Unix epoch when this stretch of the log began.
    pub epoch: u64,
    /// The number of the entry in its epoch; 0 is before the first.
    pub seq: u64,
}

impl Position {
    /// The place right after this one, in the same epoch.
    pub fn next(self) -> Position {
        Position { seq: self.seq + 1, ..self }
    }

    /// Reads `<epoch>-<seq>`.
    pub fn parse(text: &str) -> Option<Position> {
        let (epoch, seq) = text.split_once('-')?;
        Some(Position { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// How far a client has come: an entry, or one of its publications when it holds several.
/// A client that has only some of them has not seen the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The entry.
    pub position: Position,
    /// The publication's number within the entry, from 0; `None`: the last one, the entry is whole.
    pub part: Option<usize>,
}

impl Cursor {
    /// Reads `<epoch>-<seq>` or `<epoch>-<seq>.<part>`.
    pub fn parse(text: &str) -> Option<Cursor> {
        let (position, part) = match text.split_once('.') {
            Some((position, part)) => (position, Some(part.parse().ok()?)),
            None => (text, None),
        };
        Some(Cursor { position: Position::parse(position)?, part })
    }
}

impl Cursor {
    /// The last entry that was seen whole.
    pub fn whole(self) -> Position {
        let Cursor { position, part } = self;
        Position { seq: position.seq.saturating_sub(u64::from(part.is_some())), ..position }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Some(part) => write!(f, "{}.{part}", self.position),
            None => write!(f, "{}", self.position),
        }
    }
}

/// Names a commit: the same id sent twice is done once (within the engine's window).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitId(Arc<str>);

impl CommitId {
    /// A new one.
    pub fn random() -> CommitId {
        CommitId(random_id().into())
    }

    /// The id as text: URL-safe characters only.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CommitId {
    fn from(id: &str) -> Self {
        CommitId(id.into())
    }
}

/// A key of a tenant's state as the engine stores it: `{plugin}/{key}`, or `/{key}` for
/// what all plugins of the tenant share. Built by the plugin host only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateKey(Arc<str>);

impl StateKey {
    /// `key` as `plugin` says it.
    pub fn of(plugin: &str, key: &str) -> StateKey {
        StateKey(if key.starts_with('/') { key.into() } else { format!("{plugin}/{key}").into() })
    }

    /// A key as an engine stored it.
    pub fn stored(key: &str) -> StateKey {
        StateKey(key.into())
    }

    /// The stored form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it a plugin's doing? The gateway's own keys begin with `_`, as no plugin's name does.
    pub fn is_of_plugins(&self) -> bool {
        !self.as_str().starts_with('_')
    }

    /// What the key with a value of so many bytes counts, in bytes.
    pub fn stored_bytes(&self, value_bytes: usize) -> u64 {
        (self.as_str().len() + value_bytes) as u64
    }
}

/// What an engine says about the state of a key when it is read; only equality means
/// anything. Absent keys have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub Arc<str>);

/// A value with the version it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Bytes,
    /// For the read set.
    pub version: Version,
}

/// What happens to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Set it; the time to live counts from the commit.
    Put {
        /// The new value.
        value: Bytes,
        /// Milliseconds until it is gone; `None`: stays until deleted.
        ttl_ms: Option<Millis>,
    },
    /// Remove it.
    Delete,
    /// Add to a decimal counter; absent counts as 0, a time to live goes on. A value or a sum that
    /// is no decimal number of 64 bits fails the commit with
    /// [`EngineError::NotACounter`](crate::engine::EngineError::NotACounter).
    Add(i64),
}

/// What happens to one timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimerChange {
    /// Set it, replacing one of the same plugin and name.
    Set {
        /// Milliseconds from the commit.
        after_ms: Millis,
        /// JSON text, given back when it fires.
        data: Arc<str>,
    },
    /// Remove it.
    Cancel,
}

/// Names a timer within a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TimerKey {
    /// The plugin that set it and that it fires at.
    pub plugin: Arc<str>,
    /// The plugin's name for it.
    pub name: Arc<str>,
}

impl TimerKey {
    /// Is it a plugin's doing? The names of the gateway's own timers begin with `/`.
    pub fn is_of_plugins(&self) -> bool {
        !self.name.starts_with('/')
    }
}

/// What a member may do without a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grant {
    /// Publish straight to the room.
    pub publish: bool,
    /// See who is there.
    pub presence: bool,
    /// Read what was published before.
    pub history: bool,
}

/// Whose membership changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Who {
    /// One connection, on whatever node.
    Connection(ConnectionId),
    /// All connections that a subject has in the room's namespace when the entry is applied.
    User(Arc<str>),
}

/// A message to a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Where to.
    pub room: Room,
    /// Its name.
    pub event: Arc<str>,
    /// What it carries.
    pub data: Payload,
    /// A connection that does not get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<ConnectionId>,
}

/// What the nodes of a tenant must see, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// A connection is there from here on, in its own rooms: `connection:{id}`,
    /// `user:{subject}` and `everyone` of its namespace.
    Arrive {
        /// The connection.
        id: ConnectionId,
        /// Who it is.
        subject: Arc<str>,
        /// Where it speaks.
        namespace: Arc<str>,
    },
    /// Deliver to the members of a room.
    Publish(Publication),
    /// `who` is in the room from here on.
    Join {
        /// Whose membership.
        who: Who,
        /// Which room.
        room: Room,
        /// What it may do there.
        grant: Grant,
    },
    /// `who` is not in the room any more.
    Leave {
        /// Whose membership.
        who: Who,
        /// Which room.
        room: Room,
    },
    /// The connection is gone from all its rooms. In one entry with another's `Arrive`: it has come back as that one;
    /// what that one joins before stands here it was in, what it joins after is new.
    Gone {
        /// The connection.
        id: ConnectionId,
    },
    /// End the connections of a `connection:` or `user:` room.
    Disconnect {
        /// Whose.
        room: Room,
        /// What they are told.
        why: Refusal,
    },
    /// End the connections that hold such a token, in all namespaces (`unauthorized`).
    Revoke(Revoked),
}

/// Tokens that are good no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Revoked {
    /// Those of a subject.
    Subject {
        /// Whose.
        subject: Arc<str>,
        /// Only those issued (`iat`) before this second since the Unix epoch, or that do not say when.
        issued_before_s: Option<u64>,
    },
    /// One.
    Token {
        /// Stands for its `jti` (see [`TokenMark`]).
        digest: Arc<str>,
    },
}

impl Revoked {
    /// What whoever holds such a token is told.
    pub fn refusal() -> Refusal {
        Refusal::new("unauthorized", "the token was revoked")
    }

    /// Is a token of this subject one of them?
    pub fn covers(&self, of: &str, token: &TokenMark) -> bool {
        match self {
            Revoked::Subject { subject, issued_before_s } => {
                let newer = issued_before_s.zip(token.issued_at_s).is_some_and(|(before, issued)| issued >= before);
                &**subject == of && !newer
            }
            Revoked::Token { digest } => token.digest.as_ref() == Some(digest),
        }
    }
}

impl Effect {
    /// About what it holds in memory.
    pub fn bytes(&self) -> usize {
        const OVERHEAD: usize = 512;
        match self {
            Effect::Publish(publication) => OVERHEAD + publication.data.bytes(),
            _ => OVERHEAD,
        }
    }

    /// Does it change who is in which rooms?
    pub fn moves(&self) -> bool {
        match self {
            Effect::Arrive { .. } | Effect::Join { .. } | Effect::Leave { .. } | Effect::Gone { .. } => true,
            Effect::Publish(_) | Effect::Disconnect { .. } | Effect::Revoke(_) => false,
        }
    }
}

/// What lets a client come back: written by connect, join and leave, never at disconnect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The secret name of the session (`pid` in Socket.IO).
    pub session: Arc<str>,
    /// Its connection.
    pub connection: ConnectionId,
    /// Who it is.
    pub subject: Arc<str>,
    /// The namespace it speaks in.
    pub namespace: Arc<str>,
    /// The claims of its token, one JSON object: for telling handlers that the session is over.
    #[serde(default)]
    pub claims: Arc<str>,
    /// Its rooms (the gateway's own not listed) with what was granted.
    pub rooms: BTreeMap<Room, Grant>,
    /// How long it is kept after the last write, in milliseconds; 0 ends it.
    pub ttl_ms: Millis,
    /// Up to here the client has received everything, as far as it is known without its saying so: clients that
    /// hear nothing for long have no later position of their own.
    #[serde(default)]
    pub heard: Option<Position>,
}

/// A timer that was claimed and whose handler's commit settles it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiredTimer {
    /// Which.
    pub key: TimerKey,
    /// What the claim gave; a timer replaced or cancelled since has another.
    pub token: Arc<str>,
}

/// All that one input does. Applied atomically, if nothing it read has changed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The same id twice is done once.
    pub id: CommitId,
    /// What the decision rests on: the version of each key read, `None` for absent.
    pub reads: Vec<(StateKey, Option<Version>)>,
    /// State changes, at most one a key.
    pub writes: Vec<(StateKey, Write)>,
    /// Timer changes, at most one a timer.
    pub timers: Vec<(TimerKey, TimerChange)>,
    /// What the nodes must see.
    pub effects: Vec<Effect>,
    /// The session record to write, if this changes one.
    pub session: Option<SessionRecord>,
    /// The timer whose firing this is: removed with the commit; if it is not there any
    /// more, nothing is applied.
    pub fired: Option<FiredTimer>,
    /// What the tenant's plugins may keep in all; if there would be more of something, nothing is applied. `None`: the
    /// gateway's own doing, which is not refused for it.
    pub most: Option<Stored>,
}

impl Commit {
    /// A commit that does nothing yet.
    pub fn new(id: CommitId) -> Commit {
        Commit {
            id,
            reads: Vec::new(),
            writes: Vec::new(),
            timers: Vec::new(),
            effects: Vec::new(),
            session: None,
            fired: None,
            most: None,
        }
    }

    /// A commit of one publication.
    pub fn publish(publication: Publication) -> Commit {
        Commit { effects: vec![Effect::Publish(publication)], ..Commit::new(CommitId::random()) }
    }

    /// About what it holds in memory.
    pub fn bytes(&self) -> usize {
        const OVERHEAD: usize = 512;
        OVERHEAD + self.effects.iter().map(Effect::bytes).sum::<usize>()
    }

    /// Must it be on disk before anybody hears of it?
    pub fn is_durable(&self) -> bool {
        !self.writes.is_empty() || !self.timers.is_empty() || self.fired.is_some()
    }
}

/// One commit as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place. Not part of the encoded form: the log knows it.
    #[serde(skip, default = "nowhere")]
    pub position: Position,
    /// When it was committed, by the engine's clock.
    pub at: Millis,
    /// What the nodes do.
    pub effects: Vec<Effect>,
    /// Which users came into which rooms with that, and which went: those with the first and the last of their
    /// connections there. Of one room in their order; a user who goes and comes within the entry is not listed.
    /// The gateway's own rooms are not either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<PresenceChange>,
}

/// A user is in a room from here on, or not any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PresenceChange {
    /// Where.
    pub room: Room,
    /// Who.
    pub subject: Arc<str>,
    /// Came, with the first connection; otherwise gone, with the last one.
    pub joined: bool,
}

fn nowhere() -> Position {
    Position { epoch: 0, seq: 0 }
}
