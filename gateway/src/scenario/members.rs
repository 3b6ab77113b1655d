//! Who takes part in a scenario, and in which rooms they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::client::{Client, ConnectionId, Identity};
use crate::commit::{Effect, Grant, Millis, SessionRecord, Who};
use crate::room::{ROOT_NAMESPACE, Room};

/// A user in a namespace.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) session: Arc<str>,
    /// Those of the gateway not among them.
    pub(super) rooms: BTreeMap<Room, Grant>,
}

impl Connection {
    pub(super) fn record(&self, ttl_ms: Millis) -> SessionRecord {
        let Client { connection, identity, namespace } = &self.client;
        SessionRecord {
            session: self.session.clone(),
            connection: connection.clone(),
            subject: identity.subject.clone(),
            namespace: namespace.clone(),
            claims: identity.claims.clone(),
            rooms: self.rooms.clone(),
            ttl_ms,
            heard: None,
        }
    }

    fn is_in(&self, room: &Room) -> bool {
        let Client { connection, identity, namespace } = &self.client;
        let own = [
            Room::everyone(namespace),
            Room::user(namespace, &identity.subject),
            Room::connection(namespace, connection),
        ];
        self.rooms.contains_key(room) || own.contains(room)
    }
}

/// All who are connected.
#[derive(Debug, Default)]
pub(super) struct Members {
    connected: Vec<Connection>,
    /// How often who has come, and who it was: by the connection's id.
    known: HashMap<ConnectionId, Arc<str>>,
}

impl Members {
    pub(super) fn find(&self, user: &str, namespace: &str) -> Option<&Connection> {
        let is = |one: &&Connection| *one.client.identity.subject == *user && *one.client.namespace == *namespace;
        self.connected.iter().find(is)
    }

    /// One that is about to come. Its id can be foreseen: the user's name, in other namespaces with that behind it, and
    /// from the second time on with a number.
    pub(super) fn new_connection(&mut self, user: &str, namespace: &Arc<str>, claims: &Value) -> Connection {
        let place = if &**namespace == ROOT_NAMESPACE { "" } else { namespace };
        let ids =
            (1..).map(|time: u32| if time == 1 { format!("{user}{place}") } else { format!("{user}{place}-{time}") });
        let mut ids = ids.map(|id| ConnectionId::from(&*id)).filter(|id| !self.known.contains_key(id));
        let id = ids.next().unwrap_or_else(ConnectionId::random);
        self.known.insert(id.clone(), user.into());
        let mut claims = claims.clone();
        if let Some(claims) = claims.as_object_mut() {
            claims.entry("sub").or_insert_with(|| user.into());
        }
        let claims: Arc<str> = claims.to_string().into();
        let identity = Identity { subject: user.into(), claims, expires_at_s: None, key: None };
        let session = format!("session-of-{id}").into();
        Connection {
            client: Client { connection: id, identity, namespace: namespace.clone() },
            session,
            rooms: BTreeMap::new(),
        }
    }

    pub(super) fn come(&mut self, connection: Connection) {
        self.connected.push(connection);
    }

    /// Does what the delivery does with the effects of a commit.
    pub(super) fn apply(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Join { who, room, grant } => {
                    for one in self.of_mut(who, room) {
                        one.rooms.insert(room.clone(), *grant);
                    }
                }
                Effect::Leave { who, room } => {
                    for one in self.of_mut(who, room) {
                        one.rooms.remove(room);
                    }
                }
                Effect::Gone { id } => self.connected.retain(|one| one.client.connection != *id),
                Effect::Arrive { .. } | Effect::Publish(_) | Effect::Disconnect { .. } | Effect::Revoke(_) => {}
            }
        }
    }

    fn of_mut(&mut self, who: &Who, room: &Room) -> impl Iterator<Item = &mut Connection> {
        let is = move |one: &&mut Connection| match who {
            Who::Connection(id) => one.client.connection == *id,
            Who::User(subject) => one.client.identity.subject == *subject && *one.client.namespace == *room.namespace(),
        };
        self.connected.iter_mut().filter(is)
    }

    /// The connections that a `user:` or `connection:` room stands for.
    pub(super) fn of_room(&self, room: &Room) -> Vec<Connection> {
        self.connected.iter().filter(|one| one.is_in(room)).cloned().collect()
    }

    pub(super) fn is_empty(&self, room: &Room) -> bool {
        !self.connected.iter().any(|one| one.is_in(room))
    }

    /// A user's name; of nobody in the scenario as the component has it.
    pub(super) fn name_of(&self, who: &Who) -> String {
        match who {
            Who::User(subject) => subject.to_string(),
            Who::Connection(id) => self.known.get(id).map_or_else(|| format!("connection:{id}"), ToString::to_string),
        }
    }
}
