//! Which connections of this node are in which rooms, and what the entries of the log do to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use super::{Census, Command, DIALECTS_MAX, Local, People, Place};
use crate::client::ConnectionId;
use crate::close::Close;
use crate::commit::{Cursor, Effect, Entry, Grant, Position, Publication, Revoked, Who};
use crate::delivery::outbox::Outbox;
use crate::delivery::presence::{Announcement, Announcer};
use crate::engine::Registration;
use crate::event::Payload;
use crate::quota::RoomsHere;
use crate::room::Room;
use crate::traffic::Traffic;

/// See the [module's text](self).
pub(super) struct Members {
    connections: HashMap<ConnectionId, Member>,
    rooms: HashMap<Room, HashMap<ConnectionId, Arc<Local>>>,
    pub(super) announcer: Announcer,
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

impl Members {
    /// Nobody yet.
    pub(super) fn of(people: People) -> Members {
        let People { presence_events, traffic, here } = people;
        Members {
            connections: HashMap::new(),
            rooms: HashMap::new(),
            announcer: Announcer::new(presence_events),
            touched: Vec::new(),
            traffic,
            here,
        }
    }

    pub(super) fn on_command(&mut self, command: Command, after: Position) {
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

    pub(super) fn census(&self, position: Position) -> Census {
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
    pub(super) fn announce(&mut self, announcement: &Announcement, after: Position) {
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
    pub(super) fn on_entry(&mut self, entry: &Entry, after: Position) {
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

    pub(super) fn publish(&mut self, publication: &Publication, place: Place) {
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

    pub(super) fn tell_all(&mut self, event: &str, data: &Payload, at: Position) {
        for Member { local, .. } in self.connections.values().filter(|member| member.has_arrived()) {
            local.outbox.push((local.dialect.notice)(&local.namespace, event, data, at));
            local.outbox.flush();
        }
    }

    pub(super) fn reset(&mut self, position: Position) {
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

    pub(super) fn flush(&mut self) {
        for outbox in self.touched.drain(..) {
            outbox.flush();
        }
    }
}
