//! What happened in one run: what the clients saw, what the log held, what was done to the world.

use std::collections::BTreeMap;
use std::path::Path;

use postern::commit::Cursor;
use serde::Deserialize;

/// A client of the swarm.
pub(crate) type ClientNo = u32;

/// Milliseconds since the Unix epoch, by this machine's clock: all records have the same.
pub(crate) type At = u64;

/// A place in a tenant's log. The last (or only) publication of an entry counts as the whole of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pos {
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) part: usize,
}

/// The part of a position that names a whole entry.
pub(crate) const WHOLE: usize = usize::MAX;

impl Pos {
    pub(crate) fn parse(text: &str) -> Option<Pos> {
        let Cursor { position, part } = Cursor::parse(text)?;
        Some(Pos { epoch: position.epoch, seq: position.seq, part: part.unwrap_or(WHOLE) })
    }
}

impl std::fmt::Display for Pos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            WHOLE => write!(f, "{}-{}", self.epoch, self.seq),
            part => write!(f, "{}-{}.{part}", self.epoch, self.seq),
        }
    }
}

/// A publication that a client received.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) at: At,
    pub(crate) client: ClientNo,
    pub(crate) room: String,
    /// Socket.IO clients without connection state recovery are not told.
    pub(crate) pos: Option<Pos>,
    /// Which publication: `{tenant}/{publisher}:{n}`, or `v:{visitor}:{event}`.
    pub(crate) key: String,
}

/// One line of the swarm's history, but for publications received. `t` is when, `c` which client.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "k", rename_all = "lowercase")]
pub(crate) enum Event {
    /// Who takes part, and how it stands when the history begins.
    Member {
        t: At,
        c: ClientNo,
        tenant: String,
        kind: String,
        node: usize,
        on: bool,
        rooms: Vec<String>,
    },
    /// Connected. `recovered`: took up its session, or could not; `None`: it had none.
    On {
        t: At,
        c: ClientNo,
        node: usize,
        recovered: Option<bool>,
        /// The rooms that were taken up, where the client is told.
        rooms: Option<Vec<String>>,
        refused: Option<Vec<String>>,
    },
    /// Not connected any more; `own`: its own doing.
    Off {
        #[serde(default)]
        t: At,
        c: ClientNo,
        code: String,
        own: bool,
    },
    /// Could not connect.
    Refused {},
    Joining {
        c: ClientNo,
        rooms: Vec<String>,
    },
    Joined {
        t: At,
        c: ClientNo,
        rooms: Vec<String>,
    },
    Leaving {
        c: ClientNo,
        rooms: Vec<String>,
    },
    Left {
        c: ClientNo,
        rooms: Vec<String>,
    },
    /// The gateway said that publications are lost; what follows starts after `pos`.
    Reset {
        c: ClientNo,
        pos: Option<String>,
    },
    /// Publications `first` to `last` of the client were sent, one to each of `rooms`, in one commit.
    Sent {
        t: At,
        c: ClientNo,
        first: u64,
        last: u64,
        rooms: Vec<String>,
    },
    Acked {
        c: ClientNo,
        first: u64,
        last: u64,
        pos: String,
    },
    /// A request was refused, or not answered.
    Nack {
        t: At,
        c: ClientNo,
        what: String,
        code: String,
    },
    /// A visitor was registered.
    Visitor {
        tenant: String,
        id: String,
        expires_at: At,
    },
    /// A resident's answer was taken, or refused.
    Answered {
        c: ClientNo,
        id: String,
        ok: bool,
    },
    /// An event of presence.
    Presence {
        c: ClientNo,
        event: String,
        data: serde_json::Value,
    },
    /// A word about the engine: `degraded`, `restored`.
    Notice {},
    /// The client saw something that cannot be right whatever happened.
    Bad {
        c: ClientNo,
        what: String,
        data: serde_json::Value,
    },
    /// No more publications but one last to each room.
    Settling {},
    /// How it stands when the history ends.
    End {
        c: ClientNo,
        on: bool,
    },
}

/// One thing that the swarm saw.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Got(Got),
    Event(Event),
}

/// What became of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is in the log, or was until its time was over.
    Kept,
    /// The log began anew without it.
    Lost,
    /// The log goes on in this epoch, without it.
    Missing,
}

/// One publication of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) room: String,
    pub(crate) key: String,
    pub(crate) part: usize,
}

/// One tenant's log, read again and again while the run lasted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    /// Every entry that was ever read, by epoch and number.
    pub(crate) entries: BTreeMap<(u64, u64), Vec<Published>>,
    /// Of each epoch that has ended the last entry that outlived it; `None`: nothing did.
    pub(crate) survivors: BTreeMap<u64, Option<u64>>,
    /// The epoch that the log is in at the end.
    pub(crate) newest: u64,
    /// Positions that held one thing and then another: never right.
    pub(crate) rewritten: Vec<String>,
}

impl Log {
    pub(crate) fn fate(&self, pos: Pos) -> Fate {
        match self.survivors.get(&pos.epoch) {
            Some(Some(last)) if pos.seq <= *last => Fate::Kept,
            Some(_) => Fate::Lost,
            None if self.entries.contains_key(&(pos.epoch, pos.seq)) => Fate::Kept,
            // An epoch that began and ended between two looks at the log.
            None if pos.epoch < self.newest => Fate::Lost,
            None => Fate::Missing,
        }
    }
}

/// How the memberships of a room stood at the end.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RoomPresence {
    pub(crate) tenant: String,
    pub(crate) room: String,
    /// Connections of the swarm in it.
    pub(crate) count: usize,
    /// Their users, in order, each once.
    pub(crate) users: Vec<String>,
    /// What the gateway says.
    pub(crate) told: Option<Told>,
    /// What the key view says; filled in by the world.
    #[serde(default)]
    pub(crate) view: Option<Vec<String>>,
}

/// The gateway's answer to `presence`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Told {
    pub(crate) count: usize,
    pub(crate) users: Vec<String>,
}

/// What a fault may cause without anything being wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowed {
    /// May the log lose what was acknowledged? Otherwise no client is told of a loss, or not recovered.
    pub(crate) loss: bool,
    /// With which codes connections may end that the clients did not end themselves.
    pub(crate) closes: &'static [&'static str],
    /// How late a timer may be, in milliseconds; `None`: as late as it was.
    pub(crate) lateness_max_ms: Option<u64>,
}

/// One run.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) records: Vec<Record>,
    pub(crate) logs: BTreeMap<String, Log>,
    pub(crate) allowed: Allowed,
    /// When the last blow was over: the server back, the gateways running.
    pub(crate) healed_at: At,
    /// Gateways.
    pub(crate) nodes: usize,
    /// Memberships as they stood at the end; `None`: not looked at, with the reason.
    pub(crate) presence: Option<Vec<RoomPresence>>,
    /// Are members that nobody is any more counted, not called wrong? Their time is not over.
    pub(crate) leftovers_counted: bool,
    /// The most memory that a gateway had, in bytes, by its own word.
    pub(crate) rss_max: u64,
}

/// Reads the swarm's file.
pub(crate) fn read(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).expect("the swarm wrote a history");
    text.lines().map(|line| record(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn record(line: &str) -> serde_json::Result<Record> {
    if !line.starts_with('[') {
        return serde_json::from_str(line).map(Record::Event);
    }
    let (_, at, client, room, pos, key): (String, At, ClientNo, String, String, String) = serde_json::from_str(line)?;
    Ok(Record::Got(Got { at, client, room, pos: Pos::parse(&pos), key }))
}
