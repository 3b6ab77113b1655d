//! What is decided about.

use crate::client::Client;
use crate::commit::{CommitId, Effect, Millis, SessionRecord, now_ms};
use crate::engine::DueTimer;
use crate::event::{Event, Payload};
use crate::room::Room;

/// Everything that can happen to a tenant, as a transaction.
pub enum Input<'a> {
    /// A client wants in.
    Connect {
        /// Who.
        who: &'a Client,
        /// Its record, without rooms yet.
        session: SessionRecord,
        /// The session that comes back with it, if one does.
        returning: Option<Returning<'a>>,
    },
    /// A client wants to join rooms, in one step: those that are refused do not hinder the others.
    Join {
        /// Who.
        who: &'a Client,
        /// The rooms, each with what the client sent along.
        wanted: &'a [(Room, Option<Payload>)],
        /// Its record as it was before.
        session: SessionRecord,
        /// The session that comes back with it, if one does.
        resumed: Option<&'a SessionRecord>,
        /// What the client said, for handlers that take part: what they read is as it was at the place of the join.
        request: Option<&'a Event>,
    },
    /// A client asks what the gateway answers; handlers that take part may answer instead.
    Request(&'a Event),
    /// A client or a back end says something.
    Event {
        /// What.
        event: &'a Event,
        /// May the sender publish straight to this room?
        may_publish: &'a (dyn Fn(&Room) -> bool + Send + Sync),
    },
    /// The tenant's own back end has something done, without a plugin.
    Effects(&'a [Effect]),
    /// A timer's time has come.
    Timer(&'a DueTimer),
    /// A connection is open.
    Connected {
        /// Whose.
        who: &'a Client,
        /// How it came, one JSON object.
        handshake: &'a str,
    },
}

/// A session that comes back: its earlier connection is gone, and its end is not told any more.
pub struct Returning<'a> {
    /// Its record.
    pub record: &'a SessionRecord,
    /// The rooms that it was in last; each is authorized again.
    pub rooms: &'a [Room],
}

/// An input's name, and when the gateway accepted it: what its components are told.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Becomes the commit's id. No other input of the tenant may have it.
    pub id: CommitId,
    /// In milliseconds since the Unix epoch.
    pub at: Millis,
}

impl Accepted {
    /// Now. Another id each time, also for what was sent again: the engine knows ids for longer than requests are known
    /// by name, and would take what is to be done anew for done.
    pub(super) fn now() -> Accepted {
        Accepted { id: CommitId::random(), at: now_ms() }
    }
}

impl Input<'_> {
    /// Whose it is; a timer is nobody's.
    pub(super) fn subject(&self) -> Option<&str> {
        match self {
            Input::Connect { who, .. } | Input::Join { who, .. } | Input::Connected { who, .. } => {
                Some(&who.identity.subject)
            }
            Input::Event { event, .. } | Input::Request(event) => {
                event.sender.as_ref().map(|sender| &*sender.identity.subject)
            }
            Input::Timer(_) | Input::Effects(_) => None,
        }
    }

    /// About what it holds in memory while it waits.
    pub(super) fn bytes(&self) -> usize {
        const OVERHEAD: usize = 1_024;
        OVERHEAD
            + match self {
                Input::Event { event, .. } | Input::Request(event) => event.data.bytes(),
                Input::Join { wanted, .. } => wanted.iter().flat_map(|(_, data)| data).map(Payload::bytes).sum(),
                Input::Effects(effects) => effects.iter().map(Effect::bytes).sum(),
                Input::Connect { .. } | Input::Timer(_) | Input::Connected { .. } => 0,
            }
    }
}
