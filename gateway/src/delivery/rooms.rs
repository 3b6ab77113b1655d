//! Who of this node is in which room, and the one task per tenant that hands its entries out.
//!
//! The task owns everything; others hold [`Rooms`], its handle. Memberships change at their
//! place in the log and nowhere else, so that a joiner gets exactly what comes after its join.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::outbox::Outbox;
use super::presence::{Announcement, Announcer};
use crate::client::{ConnectionId, TokenMark};
use crate::close::Close;
use crate::commit::{Cursor, Effect, Entry, Grant, Position, Publication, Revoked, Who};
use crate::drain::Tasks;
use crate::engine::{Feed, Follower, Health, Registration};
use crate::event::Payload;
use crate::quota::RoomsHere;
use crate::room::Room;
use crate::telemetry::labels;
use crate::tenant::TenantId;
use crate::traffic::Traffic;

/// How many entries are handed out before anything is written: what came together is written together.
const ENTRIES_PER_BATCH: usize = 64;

/// Commands that wait, beside one per connection for its leaving.
const COMMANDS_MAX: usize = 1_024;

/// How long a connection waits to be made known.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the engine is away before clients are told: shorter outages are nothing but late answers.
const DEGRADED_AFTER: Duration = Duration::from_secs(1);

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
        let People { presence_events, traffic, here } = people;
        let (commands, mailbox) = mpsc::channel(COMMANDS_MAX + connections_max);
        let (applied_sender, applied) = watch::channel(follower.position);
        let (resets_sender, resets) = watch::channel(0);
        let stopping = tasks.stopping().clone();
        let outage = Outage { health, told: None };
        let state = State { announcer: Announcer::new(presence_events), traffic, here, ..State::default() };
        let task = Task { tenant, state, applied: applied_sender, resets: resets_sender, outage };
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

struct Task {
    tenant: TenantId,
    state: State,
    applied: watch::Sender<Position>,
    resets: watch::Sender<u64>,
    outage: Outage,
}

/// What the clients know of the engine.
struct Outage {
    health: watch::Receiver<Health>,
    /// Since when it is away, if they were told so.
    told: Option<Instant>,
}

impl Outage {
    /// Waits until there is something to tell: since when it is away, or `None` when it is back. May be dropped
    /// half-way.
    async fn news(&mut self) -> Option<Instant> {
        loop {
            let down = match *self.health.borrow_and_update() {
                Health::Up => None,
                Health::Down { since, .. } => Some(since),
            };
            match (down, self.told) {
                (None, Some(_)) => return None,
                (Some(since), None) if since.elapsed() >= DEGRADED_AFTER => return Some(since),
                _ => {}
            }
            let tell_at = down.filter(|_| self.told.is_none()).map(|since| since + DEGRADED_AFTER);
            let changed = async {
                // Without an engine there are no news any more.
                if self.health.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match tell_at {
                Some(at) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }
}

impl Task {
    async fn run(mut self, mut mailbox: mpsc::Receiver<Command>, mut feed: mpsc::Receiver<Feed>) {
        let mut batch = Vec::with_capacity(ENTRIES_PER_BATCH);
        loop {
            let announce_at = self.state.announcer.next_due();
            tokio::select! {
                // Commands first: a connection is attached before anything is committed for it.
                biased;
                command = mailbox.recv() => match command {
                    Some(Command::Census { answer }) => {
                        // Whoever asked may not wait any more.
                        let _ = answer.send(self.state.census(*self.applied.borrow()));
                    }
                    Some(command) => {
                        let after = *self.applied.borrow();
                        self.state.on_command(command, after);
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(announce_at.unwrap_or_else(Instant::now)), if announce_at.is_some() => {
                    let after = *self.applied.borrow();
                    for announcement in self.state.announcer.due(Instant::now()) {
                        self.state.announce(&announcement, after);
                    }
                    self.state.flush();
                }
                away = self.outage.news() => self.on_outage(away),
                count = feed.recv_many(&mut batch, ENTRIES_PER_BATCH) => {
                    if count == 0 {
                        tracing::warn!(tenant = %self.tenant, "the engine ended the feed");
                        return;
                    }
                    for item in batch.drain(..) {
                        self.on_feed(item);
                    }
                    self.state.flush();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn on_outage(&mut self, away: Option<Instant>) {
        let before = std::mem::replace(&mut self.outage.told, away);
        let after = *self.applied.borrow();
        match (away, before) {
            (Some(_), _) => {
                let data = serde_json::json!({ "code": "engine_unavailable" });
                self.state.tell_all("degraded", &Payload::one(&data), after);
            }
            (None, Some(since)) => {
                let after_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.state.tell_all("restored", &Payload::one(&serde_json::json!({ "after_ms": after_ms })), after);
            }
            (None, None) => {}
        }
    }

    fn on_feed(&mut self, item: Feed) {
        match item {
            Feed::Entry(entry) => {
                metrics::histogram!("delivery_lag_seconds").record(crate::commit::seconds_since(entry.at));
                let after = *self.applied.borrow();
                self.state.on_entry(&entry, after);
                self.applied.send_replace(entry.position);
            }
            Feed::Ephemeral(publication) => {
                let after = *self.applied.borrow();
                self.state.publish(&publication, Place::Passing(after));
            }
            Feed::Reset(position) => {
                metrics::counter!("delivery_resets_total", "tenant" => labels::of_tenant(self.tenant.as_str()))
                    .increment(1);
                // First, so that no word behind the reset carries a position that was lost.
                self.applied.send_replace(position);
                self.state.reset(position);
                self.resets.send_modify(|resets| *resets += 1);
            }
        }
    }
}

#[derive(Default)]
struct State {
    connections: HashMap<ConnectionId, Member>,
    rooms: HashMap<Room, HashMap<ConnectionId, Arc<Local>>>,
    announcer: Announcer,
    /// Outboxes with something to flush at the end of the batch.
    touched: Vec<Arc<Outbox>>,
    traffic: Arc<Traffic>,
    here: Arc<RoomsHere>,
}

struct Member {
    local: Arc<Local>,
    rooms: HashSet<Room>,
}

impl Member {
    /// Whoever has not, hears nothing of what was before.
    fn has_arrived(&self) -> bool {
        self.local.arrived.load(Ordering::Acquire)
    }
}

impl State {
    fn on_command(&mut self, command: Command, after: Position) {
        match command {
            Command::Attach { local, done } => {
                let member = Member { local: local.clone(), rooms: HashSet::new() };
                self.connections.insert(local.id.clone(), member);
                // A session that does not wait any more drops its guard, which detaches.
                let _ = done.send(());
            }
            Command::Detach { id } => self.remove(&id),
            Command::Census { .. } => {}
            Command::Revoke { revoked } => self.revoke(&revoked, after),
            Command::Changed { presence_events } => {
                self.announcer.set_types(presence_events);
                self.connections.values().for_each(|member| member.local.changed.notify_one());
            }
            Command::Record => {
                for Member { local, .. } in self.connections.values() {
                    local.unrecorded.store(true, Ordering::Release);
                    local.changed.notify_one();
                }
            }
        }
    }

    fn census(&self, position: Position) -> Census {
        let registration = |member: &Member| Registration {
            connection: member.local.id.clone(),
            subject: member.local.subject.clone(),
            namespace: member.local.namespace.clone(),
            session: member.local.session.clone(),
            rooms: member.rooms.iter().cloned().collect(),
        };
        let arrived = self.connections.values().filter(|member| !member.rooms.is_empty());
        let attached = self.connections.keys().cloned().collect();
        Census { position, there: arrived.map(registration).collect(), attached }
    }

    /// Tells the members that may know who is there; everything up to `after` is handed out.
    fn announce(&mut self, announcement: &Announcement, after: Position) {
        let Announcement { publication, except } = announcement;
        let Some(members) = self.rooms.get(&publication.room) else { return };
        let mut encoded: [Option<Bytes>; DIALECTS_MAX] = [const { None }; DIALECTS_MAX];
        for local in members.values().filter(|local| except.as_ref() != Some(&local.subject)) {
            if !local.grants.lock().get(&publication.room).is_some_and(|grant| grant.presence) {
                continue;
            }
            let frames = encoded[local.dialect.slot]
                .get_or_insert_with(|| (local.dialect.event)(publication, Place::Passing(after)));
            if local.outbox.push(frames.clone()) {
                self.touched.push(local.outbox.clone());
            }
        }
    }

    /// Applies an entry; everything up to `after` is handed out.
    fn on_entry(&mut self, entry: &Entry, after: Position) {
        let last = entry.effects.iter().rposition(|effect| matches!(effect, Effect::Publish(_)));
        let mut published = 0;
        for (index, effect) in entry.effects.iter().enumerate() {
            match effect {
                Effect::Arrive { id, .. } => self.arrive(id),
                Effect::Join { who, room, grant } => self.join(who, room, *grant),
                Effect::Leave { who, room } => self.leave(who, room),
                Effect::Gone { id } => self.gone(id),
                Effect::Disconnect { room, why } => self.disconnect(room, why, after),
                Effect::Revoke(revoked) => self.revoke(std::slice::from_ref(revoked), after),
                Effect::Publish(publication) => {
                    let part = (Some(index) != last).then_some(published);
                    published += 1;
                    self.publish(publication, Place::Logged(Cursor { position: entry.position, part }));
                }
            }
        }
        for change in &entry.presence {
            let members = self.rooms.get(&change.room).map_or(0, HashMap::len);
            if let Some(announcement) = self.announcer.note(change, members, Instant::now()) {
                self.announce(&announcement, entry.position);
            }
        }
    }

    fn arrive(&mut self, id: &ConnectionId) {
        let Some(local) = self.connections.get(id).map(|member| member.local.clone()) else { return };
        local.arrived.store(true, Ordering::Release);
        let namespace = &local.namespace;
        for room in [Room::connection(namespace, id), Room::user(namespace, &local.subject), Room::everyone(namespace)]
        {
            self.enter(id, &room);
        }
    }

    fn enter(&mut self, id: &ConnectionId, room: &Room) {
        if let Some(member) = self.connections.get_mut(id) {
            member.rooms.insert(room.clone());
            let here = &self.here;
            let members = self.rooms.entry(room.clone()).or_insert_with(|| {
                here.add(room);
                HashMap::new()
            });
            members.insert(id.clone(), member.local.clone());
        }
    }

    /// The local connections that `who` means for a room of this namespace.
    fn resolve(&self, who: &Who, namespace: &str) -> Vec<ConnectionId> {
        match who {
            Who::Connection(id) => self
                .connections
                .get(id)
                .filter(|m| &*m.local.namespace == namespace)
                .map(|_| id.clone())
                .into_iter()
                .collect(),
            Who::User(subject) => self
                .rooms
                .get(&Room::user(namespace, subject))
                .map(|members| members.keys().cloned().collect())
                .unwrap_or_default(),
        }
    }

    fn join(&mut self, who: &Who, room: &Room, grant: Grant) {
        for id in self.resolve(who, room.namespace()) {
            self.enter(&id, room);
            if let Some(member) = self.connections.get(&id) {
                member.local.grants.lock().insert(room.clone(), grant);
                member.local.changed.notify_one();
            }
        }
    }

    fn leave(&mut self, who: &Who, room: &Room) {
        for id in self.resolve(who, room.namespace()) {
            if let Some(member) = self.connections.get_mut(&id) {
                member.rooms.remove(room);
                member.local.grants.lock().remove(room);
                member.local.changed.notify_one();
            }
            self.exit(&id, room);
        }
    }

    fn exit(&mut self, id: &ConnectionId, room: &Room) {
        if let Some(members) = self.rooms.get_mut(room) {
            members.remove(id);
            if members.is_empty() {
                self.rooms.remove(room);
                self.here.remove(room);
            }
        }
    }

    /// The log says that a connection is gone. One that is still here and does not leave by itself has come back
    /// elsewhere, or was given up: it must not go on as if it were in its rooms.
    fn gone(&mut self, id: &ConnectionId) {
        if let Some(Member { local, .. }) = self.connections.get(id)
            && !local.leaving.load(Ordering::Acquire)
        {
            local.gone.store(true, Ordering::Release);
            local.outbox.end(Close::Fenced);
        }
        self.remove(id);
    }

    fn remove(&mut self, id: &ConnectionId) {
        if let Some(member) = self.connections.remove(id) {
            for room in &member.rooms {
                self.exit(id, room);
            }
        }
    }

    fn disconnect(&mut self, room: &Room, why: &crate::event::Refusal, after: Position) {
        for local in self.rooms.get(room).into_iter().flat_map(|members| members.values()) {
            let farewell = |reached| (local.dialect.farewell)(&local.namespace, why, reached);
            local.outbox.push_between(|| Some(after), farewell);
            local.outbox.flush();
            local.outbox.end(Close::Disconnected);
        }
    }

    /// Ends those that hold such tokens. Whoever has not arrived yet is refused by its own commit.
    fn revoke(&mut self, revoked: &[Revoked], after: Position) {
        for Member { local, .. } in self.connections.values().filter(|member| member.has_arrived()) {
            if !revoked.iter().any(|revoked| local.tokens.lock().any_is(revoked, &local.subject)) {
                continue;
            }
            metrics::counter!("revoked_connections_total").increment(1);
            let farewell = |reached| (local.dialect.farewell)(&local.namespace, &Revoked::refusal(), reached);
            local.outbox.push_between(|| Some(after), farewell);
            local.outbox.flush();
            local.outbox.end(Close::Unauthorized);
        }
    }

    fn publish(&mut self, publication: &Publication, place: Place) {
        let Some(members) = self.rooms.get(&publication.room) else { return };
        // Looked up once: every member's name would be a look at memory that is not at hand.
        let except = publication.except.as_ref().and_then(|id| self.connections.get(id));
        let except = except.map(|member| Arc::as_ptr(&member.local));
        let mut encoded: [Option<Bytes>; DIALECTS_MAX] = [const { None }; DIALECTS_MAX];
        let mut delivered = 0_u64;
        for local in members.values() {
            if except == Some(Arc::as_ptr(local)) {
                continue;
            }
            let frames = encoded[local.dialect.slot].get_or_insert_with(|| (local.dialect.event)(publication, place));
            delivered += 1;
            let first = match place {
                Place::Logged(cursor) => local.outbox.push_at(frames.clone(), cursor),
                Place::Passing(_) => local.outbox.push(frames.clone()),
            };
            if first {
                self.touched.push(local.outbox.clone());
            }
        }
        metrics::counter!("ws_deliveries_total").increment(delivered);
        self.traffic.deliveries.fetch_add(delivered, Ordering::Relaxed);
    }

    fn tell_all(&mut self, event: &str, data: &Payload, at: Position) {
        for Member { local, .. } in self.connections.values().filter(|member| member.has_arrived()) {
            local.outbox.push((local.dialect.notice)(&local.namespace, event, data, at));
            local.outbox.flush();
        }
    }

    fn reset(&mut self, position: Position) {
        self.announcer.forget();
        let cursor = Cursor { position, part: None };
        for Member { local, .. } in self.connections.values().filter(|member| member.has_arrived()) {
            if local.outbox.is_holding() {
                // It is being given what it missed, maybe beyond this position: it comes back with what it has.
                local.outbox.discard_held();
                local.outbox.end(Close::EngineUnavailable);
                continue;
            }
            local.outbox.push_at((local.dialect.reset)(&local.namespace, position), cursor);
            local.outbox.flush();
        }
    }

    fn flush(&mut self) {
        for outbox in self.touched.drain(..) {
            outbox.flush();
        }
    }
}
