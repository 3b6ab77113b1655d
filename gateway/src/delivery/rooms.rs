//! Who of this node is in which room, and the one task per tenant that hands its entries out.
//!
//! The task owns everything; others hold [`Rooms`], its handle. Memberships change at their
//! place in the log and nowhere else, so that a joiner gets exactly what comes after its join.

mod members;
mod task;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::task::Task;
use super::outbox::Outbox;
use crate::client::{ConnectionId, TokenMark};
use crate::commit::{Cursor, Grant, Position, Publication, Revoked};
use crate::drain::Tasks;
use crate::engine::{Follower, Health, Registration};
use crate::event::Payload;
use crate::quota::RoomsHere;
use crate::room::Room;
use crate::tenant::TenantId;
use crate::traffic::Traffic;

/// Commands that wait, beside one per connection for its leaving.
const COMMANDS_MAX: usize = 1_024;

/// How long a connection waits to be made known.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How a protocol writes what is delivered. Two connections with the same `slot` share the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Which of the node's dialects, from 0; below [`DIALECTS_MAX`].
    pub slot: usize,
    /// Complete frames of one publication.
    pub event: fn(&Publication, Place) -> Bytes,
    /// Complete frames that tell why a connection in this namespace will be ended, and how far it has come.
    pub farewell: fn(namespace: &str, why: &crate::event::Refusal, reached: Option<Cursor>) -> Bytes,
    /// Complete frames that say that entries were lost, and the position that follows.
    pub reset: fn(namespace: &str, Position) -> Bytes,
    /// Complete frames of an event of the gateway's own, said at this position.
    pub notice: fn(namespace: &str, event: &str, data: &Payload, Position) -> Bytes,
}

/// Where a publication is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the log, here.
    Logged(Cursor),
    /// Not in the log; handed out after everything up to this position.
    Passing(Position),
}

/// How many dialects there are at most.
pub const DIALECTS_MAX: usize = 4;

/// What a connection may do in the rooms it is in, as the log says. Shared with its session.
pub type Grants = Mutex<HashMap<Room, Grant>>;

/// A connection of this node.
#[derive(Debug)]
pub struct Local {
    /// Its id.
    pub id: ConnectionId,
    /// The secret name of its session.
    pub session: Arc<str>,
    /// Who it is.
    pub subject: Arc<str>,
    /// Where it speaks.
    pub namespace: Arc<str>,
    /// Where its bytes go.
    pub outbox: Arc<Outbox>,
    /// How they are written.
    pub dialect: Dialect,
    /// What it may do.
    pub grants: Grants,
    /// What it is known by if its token is revoked.
    pub tokens: Mutex<Tokens>,
    /// Has its arrival come back in the log?
    pub arrived: AtomicBool,
    /// Tells its session that what it may do has changed.
    pub changed: Arc<Notify>,
    /// Does its own session take it out? Otherwise whoever says in the log that it is gone ends it.
    pub leaving: AtomicBool,
    /// Has somebody else said in the log that it is gone?
    pub gone: AtomicBool,
    /// Was its session's record lost, maybe? Then its session writes it again.
    pub unrecorded: AtomicBool,
}

enum Command {
    Attach { local: Arc<Local>, done: oneshot::Sender<()> },
    Detach { id: ConnectionId },
    Census { answer: oneshot::Sender<Census> },
    Record,
    Changed { presence_events: Arc<[String]> },
    Revoke { revoked: Vec<Revoked> },
}

/// The tokens that a connection holds.
#[derive(Debug, Default)]
pub struct Tokens {
    /// The one that admitted it, or a fresh one since.
    pub now: TokenMark,
    /// One that is to take its place, while it is looked at.
    pub next: Option<TokenMark>,
}

impl Tokens {
    fn any_is(&self, revoked: &Revoked, subject: &str) -> bool {
        revoked.covers(subject, &self.now) || self.next.as_ref().is_some_and(|next| revoked.covers(subject, next))
    }
}

/// What delivery needs of its tenant.
#[derive(Debug)]
pub struct People {
    /// Members of rooms of these types are told who comes and goes.
    pub presence_events: Arc<[String]>,
    /// Where deliveries are counted.
    pub traffic: Arc<Traffic>,
    /// The rooms that have members here: kept as memberships change.
    pub here: Arc<RoomsHere>,
}

/// The connections of a tenant on this node.
#[derive(Debug)]
pub struct Census {
    /// Up to where the log was handed out.
    pub position: Position,
    /// Those that have arrived, with their rooms.
    pub there: Vec<Registration>,
    /// All that are known here, arrived or not.
    pub attached: HashSet<ConnectionId>,
}

/// The handle of a tenant's delivery on this node.
#[derive(Debug, Clone)]
pub struct Rooms {
    commands: mpsc::Sender<Command>,
    applied: watch::Receiver<Position>,
    resets: watch::Receiver<u64>,
}

/// The delivery task has ended, or is too busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's delivery on this node has ended or does not answer")]
pub struct Ended;

/// Keeps a connection attached; dropping it detaches, whatever way the session ends.
#[derive(Debug)]
pub struct Attached {
    id: ConnectionId,
    leave: Option<mpsc::OwnedPermit<Command>>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The place in the queue was reserved on arrival, so leaving cannot fail for want of one.
        if let Some(leave) = self.leave.take() {
            leave.send(Command::Detach { id: self.id.clone() });
        }
    }
}

impl Rooms {
    /// Starts the delivery of a tenant on this node, for at most `connections_max` connections, which are told
    /// when the engine is away and when it is back. Members of rooms of `presence_events`' types are told who comes
    /// and goes.
    pub fn start(
        tenant: TenantId,
        follower: Follower,
        health: watch::Receiver<Health>,
        connections_max: usize,
        people: People,
        tasks: &Tasks,
    ) -> Rooms {
        let (commands, mailbox) = mpsc::channel(COMMANDS_MAX + connections_max);
        let (applied_sender, applied) = watch::channel(follower.position);
        let (resets_sender, resets) = watch::channel(0);
        let stopping = tasks.stopping().clone();
        let task = Task::new(tenant, people, health, applied_sender, resets_sender);
        tasks.spawn(async move {
            // Stopping drops the task between two batches at the earliest: nothing is half handed out.
            tokio::select! { () = task.run(mailbox, follower.feed) => {}, () = stopping.cancelled() => {} }
        });
        Rooms { commands, applied, resets }
    }

    /// Counts the times that entries were lost.
    pub fn resets(&self) -> watch::Receiver<u64> {
        self.resets.clone()
    }

    /// Who of this node is in which rooms.
    ///
    /// # Errors
    /// The delivery has ended.
    pub async fn census(&self) -> Result<Census, Ended> {
        let (answer, counted) = oneshot::channel();
        self.commands.send(Command::Census { answer }).await.map_err(|_| Ended)?;
        counted.await.map_err(|_| Ended)
    }

    /// Has every session of this node write its record again: the engine may have lost some.
    ///
    /// # Errors
    /// The delivery has ended.
    pub async fn record_again(&self) -> Result<(), Ended> {
        self.commands.send(Command::Record).await.map_err(|_| Ended)
    }

    /// The tenant's settings or keys are others: every session of this node looks at them.
    ///
    /// # Errors
    /// The delivery has ended.
    pub async fn changed(&self, presence_events: Arc<[String]>) -> Result<(), Ended> {
        self.commands.send(Command::Changed { presence_events }).await.map_err(|_| Ended)
    }

    /// Ends every connection of this node that holds one of these tokens, as the log's own entries do.
    ///
    /// # Errors
    /// The delivery has ended.
    pub async fn revoke(&self, revoked: Vec<Revoked>) -> Result<(), Ended> {
        self.commands.send(Command::Revoke { revoked }).await.map_err(|_| Ended)
    }

    /// Makes a connection known, before its `Arrive` is committed.
    ///
    /// # Errors
    /// The delivery has ended, or did not answer within [`ATTACH_TIMEOUT`].
    pub async fn attach(&self, local: Arc<Local>) -> Result<Attached, Ended> {
        tokio::time::timeout(ATTACH_TIMEOUT, self.attach_in_time(local)).await.unwrap_or(Err(Ended))
    }

    async fn attach_in_time(&self, local: Arc<Local>) -> Result<Attached, Ended> {
        let leave = self.commands.clone().reserve_owned().await.map_err(|_| Ended)?;
        let (done, attached) = oneshot::channel();
        let id = local.id.clone();
        self.commands.send(Command::Attach { local, done }).await.map_err(|_| Ended)?;
        let guard = Attached { id, leave: Some(leave) };
        attached.await.map_err(|_| Ended)?;
        Ok(guard)
    }

    /// Waits until this node has handed out everything up to `position`.
    pub async fn applied(&self, position: Position) -> Result<(), Ended> {
        self.applied.clone().wait_for(|applied| *applied >= position).await.map(|_| ()).map_err(|_| Ended)
    }

    /// Up to where this node has handed out.
    pub fn position(&self) -> Position {
        *self.applied.borrow()
    }
}
