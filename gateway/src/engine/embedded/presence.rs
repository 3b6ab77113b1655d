//! Who is where, for one tenant, as the entries of its log say.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::client::ConnectionId;
use crate::commit::{Effect, PresenceChange, Who};
use crate::engine::{Member, Registration};
use crate::room::Room;

/// The registry. It holds what is connected, so the limit on connections is its limit.
#[derive(Debug, Default)]
pub(super) struct Presence {
    connections: HashMap<ConnectionId, Connection>,
    rooms: HashMap<Room, BTreeSet<Member>>,
    /// What has changed since it was last asked for.
    changes: Vec<PresenceChange>,
}

#[derive(Debug)]
struct Connection {
    subject: Arc<str>,
    rooms: HashSet<Room>,
}

impl Presence {
    /// Follows one effect.
    pub(super) fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Arrive { id, subject, namespace } => self.arrive(id, subject, namespace),
            Effect::Join { who, room, .. } => {
                for id in self.resolve(who, room) {
                    self.join(&id, room);
                }
            }
            Effect::Leave { who, room } => {
                for id in self.resolve(who, room) {
                    self.leave(&id, room);
                }
            }
            Effect::Gone { id } => self.gone(id),
            Effect::Publish(_) | Effect::Disconnect { .. } | Effect::Revoke(_) => {}
        }
    }

    /// Which users came and went since this was last asked: see [`Entry::presence`](crate::commit::Entry::presence).
    pub(super) fn take_changes(&mut self) -> Vec<PresenceChange> {
        std::mem::take(&mut self.changes)
    }

    /// Is the connection there?
    pub(super) fn has(&self, id: &ConnectionId) -> bool {
        self.connections.contains_key(id)
    }

    /// A connection with its rooms, without its session.
    pub(super) fn connection(&self, id: &ConnectionId) -> Option<Registration> {
        let Connection { subject, rooms } = self.connections.get(id)?;
        let own = rooms.iter().find(|room| room.as_connection() == Some(id.as_str()))?;
        Some(Registration {
            connection: id.clone(),
            subject: subject.clone(),
            namespace: own.namespace().into(),
            session: "".into(),
            rooms: rooms.iter().filter(|room| *room != own).cloned().collect(),
        })
    }

    /// All connections.
    pub(super) fn connections(&self) -> Vec<ConnectionId> {
        self.connections.keys().cloned().collect()
    }

    /// See [`Engine::register`](crate::engine::Engine::register).
    pub(super) fn register(&mut self, there: &[Registration], gone: &[ConnectionId], exact: bool) {
        for id in gone {
            self.gone(id);
        }
        for Registration { connection: id, subject, namespace, rooms, .. } in there {
            self.arrive(id, subject, namespace);
            for room in rooms {
                self.join(id, room);
            }
            let own = Room::connection(namespace, id);
            let known = self.connections.get(id).map(|connection| connection.rooms.clone()).unwrap_or_default();
            for room in known.iter().filter(|room| exact && **room != own && !rooms.contains(room)) {
                self.leave(id, room);
            }
        }
        self.changes.clear();
    }

    /// A user came or went; coming back after going is no change.
    fn turn(&mut self, room: &Room, subject: &Arc<str>, joined: bool) {
        if room.is_reserved() {
            return;
        }
        match self.changes.iter().position(|change| change.room == *room && change.subject == *subject) {
            Some(index) => drop(self.changes.remove(index)),
            None => self.changes.push(PresenceChange { room: room.clone(), subject: Arc::clone(subject), joined }),
        }
    }

    /// Is one of the user's connections in the room besides this one?
    fn is_there_otherwise(&self, room: &Room, subject: &Arc<str>, id: &ConnectionId) -> bool {
        let Some(members) = self.rooms.get(room) else { return false };
        let first = Member { subject: Arc::clone(subject), connection: ConnectionId::from("") };
        let mut theirs = members.range((Bound::Included(first), Bound::Unbounded));
        let mut theirs = theirs.by_ref().take_while(|member| member.subject == *subject);
        theirs.any(|member| member.connection != *id)
    }

    /// Who is in a room, in order.
    pub(super) fn members(&self, room: &Room, limit: usize) -> Vec<Member> {
        self.rooms.get(room).into_iter().flatten().take(limit).cloned().collect()
    }

    /// How many connections are in a room.
    pub(super) fn count(&self, room: &Room) -> usize {
        self.rooms.get(room).map_or(0, BTreeSet::len)
    }

    fn arrive(&mut self, id: &ConnectionId, subject: &Arc<str>, namespace: &str) {
        // A client that comes back within its session arrives once more and keeps its rooms.
        if self.connections.get(id).is_some_and(|known| known.subject != *subject) {
            self.gone(id);
        }
        let fresh = || Connection { subject: Arc::clone(subject), rooms: HashSet::new() };
        self.connections.entry_ref(id).or_insert_with(fresh);
        for room in [Room::connection(namespace, id), Room::user(namespace, subject), Room::everyone(namespace)] {
            self.join(id, &room);
        }
    }

    fn resolve(&self, who: &Who, room: &Room) -> Vec<ConnectionId> {
        match who {
            Who::Connection(id) => vec![id.clone()],
            Who::User(subject) => {
                let theirs = self.rooms.get(&Room::user(room.namespace(), subject));
                theirs.into_iter().flatten().map(|member| member.connection.clone()).collect()
            }
        }
    }

    fn join(&mut self, id: &ConnectionId, room: &Room) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.rooms.insert(room.clone()) {
            let subject = Arc::clone(&connection.subject);
            let member = Member { subject: Arc::clone(&subject), connection: id.clone() };
            self.rooms.entry_ref(room).or_default().insert(member);
            if !self.is_there_otherwise(room, &subject, id) {
                self.turn(room, &subject, true);
            }
        }
    }

    fn leave(&mut self, id: &ConnectionId, room: &Room) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if connection.rooms.remove(room) {
            let subject = Arc::clone(&connection.subject);
            self.remove_member(id, subject, room);
        }
    }

    fn gone(&mut self, id: &ConnectionId) {
        let Some(connection) = self.connections.remove(id) else { return };
        for room in &connection.rooms {
            self.remove_member(id, Arc::clone(&connection.subject), room);
        }
    }

    fn remove_member(&mut self, id: &ConnectionId, subject: Arc<str>, room: &Room) {
        let Some(members) = self.rooms.get_mut(room) else { return };
        members.remove(&Member { subject: Arc::clone(&subject), connection: id.clone() });
        if members.is_empty() {
            self.rooms.remove(room);
        }
        if !self.is_there_otherwise(room, &subject, id) {
            self.turn(room, &subject, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_gone_leaves_nothing_behind() {
        let mut presence = Presence::default();
        let room = Room::parse("flat:a1").unwrap();
        let (id, subject, namespace) = (ConnectionId::from("c1"), "bob".into(), "/".into());
        let arrive = Effect::Arrive { id: id.clone(), subject, namespace };
        presence.apply(&arrive);
        let join = Effect::Join { who: Who::Connection(id.clone()), room: room.clone(), grant: Default::default() };
        presence.apply(&join);
        presence.apply(&arrive);
        assert_eq!(presence.count(&room), 1, "arriving again changes nothing");
        presence.apply(&Effect::Gone { id });
        assert!(presence.connections.is_empty() && presence.rooms.is_empty());
    }
}
