//! Rooms: everything that can be addressed, `user:{subject}`, `connection:{id}` and
//! `everyone` included.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::client::ConnectionId;

/// The longest room name, in bytes, its namespace included.
pub const ROOM_NAME_BYTES_MAX: usize = 200;

/// The namespace of clients that choose none.
pub const ROOT_NAMESPACE: &str = "/";

/// A room by its full name: `flat:a1` in the namespace `/`, `/events#lobby` in `/events`.
///
/// Names are unique within a tenant; no function takes a room without its tenant.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Room(Arc<str>);

/// Why a text is not a room name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoomNameError {
    /// No name at all.
    #[error("a room name must not be empty")]
    Empty,
    /// Longer than [`ROOM_NAME_BYTES_MAX`].
    #[error("a room name has at most {ROOM_NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A control character.
    #[error("a room name must not contain control characters")]
    Control,
    /// Nothing before or behind the first `:`, as where an id was forgotten.
    #[error("a room name is `type:id`, or a name alone: neither the type nor the id may be empty")]
    Part,
    /// `/namespace` without `#name`.
    #[error("a room name that starts with `/` must have the form `/namespace#name`")]
    Namespace,
}

impl Room {
    /// Reads a full name.
    pub fn parse(name: &str) -> Result<Room, RoomNameError> {
        if name.is_empty() {
            return Err(RoomNameError::Empty);
        }
        if name.len() > ROOM_NAME_BYTES_MAX {
            return Err(RoomNameError::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(RoomNameError::Control);
        }
        if name.starts_with('/') {
            match name.split_once('#') {
                Some((namespace, rest)) if namespace.len() > 1 && !rest.is_empty() => {}
                _ => return Err(RoomNameError::Namespace),
            }
        }
        let room = Room(name.into());
        match room.name().split_once(':') {
            Some(("", _) | (_, "")) => Err(RoomNameError::Part),
            _ => Ok(room),
        }
    }

    /// Reads a name as a client in `namespace` says it. A full name of the client's own
    /// namespace is accepted too; one of another namespace is not (`None`).
    pub fn parse_in(namespace: &str, name: &str) -> Result<Option<Room>, RoomNameError> {
        if name.starts_with('/') {
            let room = Room::parse(name)?;
            return Ok((room.namespace() == namespace).then_some(room));
        }
        if namespace == ROOT_NAMESPACE {
            return Room::parse(name).map(Some);
        }
        if name.is_empty() {
            return Err(RoomNameError::Empty);
        }
        Room::parse(&format!("{namespace}#{name}")).map(Some)
    }

    fn given(namespace: &str, name: &str) -> Room {
        if namespace == ROOT_NAMESPACE { Room(name.into()) } else { Room(format!("{namespace}#{name}").into()) }
    }

    /// The room of one connection, in its own namespace.
    pub fn connection(namespace: &str, id: &ConnectionId) -> Room {
        Room::given(namespace, &format!("connection:{id}"))
    }

    /// The room of all connections of a subject in a namespace.
    pub fn user(namespace: &str, subject: &str) -> Room {
        Room::given(namespace, &format!("user:{subject}"))
    }

    /// The room of every connection of a tenant in a namespace.
    pub fn everyone(namespace: &str) -> Room {
        Room::given(namespace, "everyone")
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace the room belongs to.
    pub fn namespace(&self) -> &str {
        match self.0.strip_prefix('/') {
            Some(_) => self.0.split_once('#').map_or(&*self.0, |(namespace, _)| namespace),
            None => ROOT_NAMESPACE,
        }
    }

    /// The name as clients of its namespace say it: without the namespace.
    pub fn name(&self) -> &str {
        if self.0.starts_with('/') { self.0.split_once('#').map_or("", |(_, name)| name) } else { &self.0 }
    }

    /// `flat` of `flat:a1`; the whole name when it has no type.
    pub fn room_type(&self) -> &str {
        self.name().split_once(':').map_or(self.name(), |(room_type, _)| room_type)
    }

    /// Is this one of the rooms that only the gateway joins?
    pub fn is_reserved(&self) -> bool {
        let name = self.name();
        name == "everyone" || matches!(name.split_once(':'), Some(("user" | "connection" | "everyone", _)))
    }

    /// The connection id, if this is the room of one connection.
    pub fn as_connection(&self) -> Option<&str> {
        self.name().strip_prefix("connection:")
    }

    /// The subject, if this is the room of a user.
    pub fn as_user(&self) -> Option<&str> {
        self.name().strip_prefix("user:")
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_knows_its_namespace_name_and_type() {
        for (full, namespace, name, room_type) in [
            ("flat:a1", "/", "flat:a1", "flat"),
            ("/events#lobby", "/events", "lobby", "lobby"),
            ("/events#task:7", "/events", "task:7", "task"),
            ("a:b:c#d", "/", "a:b:c#d", "a"),
        ] {
            let room = Room::parse(full).unwrap();
            assert_eq!((room.namespace(), room.name(), room.room_type()), (namespace, name, room_type));
        }
    }

    #[test]
    fn names_that_are_no_rooms_are_refused_with_the_reason() {
        assert_eq!(Room::parse(""), Err(RoomNameError::Empty));
        assert_eq!(Room::parse("/events"), Err(RoomNameError::Namespace));
        assert_eq!(Room::parse("/#x"), Err(RoomNameError::Namespace));
        assert_eq!(Room::parse("/events#"), Err(RoomNameError::Namespace));
        for name in [":", "flat:", ":a1", "/events#:a1", "/events#flat:"] {
            assert_eq!(Room::parse(name), Err(RoomNameError::Part), "{name}");
        }
        assert_eq!(Room::parse("a\nb"), Err(RoomNameError::Control));
        assert_eq!(Room::parse(&"x".repeat(201)), Err(RoomNameError::TooLong(201)));
    }

    #[test]
    fn a_client_names_rooms_of_its_own_namespace_only() {
        assert_eq!(Room::parse_in("/", "flat:a1"), Ok(Some(Room::parse("flat:a1").unwrap())));
        assert_eq!(Room::parse_in("/events", "lobby"), Ok(Some(Room::parse("/events#lobby").unwrap())));
        assert_eq!(Room::parse_in("/events", "/events#lobby"), Ok(Some(Room::parse("/events#lobby").unwrap())));
        assert_eq!(Room::parse_in("/", "/events#lobby"), Ok(None));
        assert_eq!(Room::parse_in("/chat", "/events#lobby"), Ok(None));
        assert_eq!(Room::parse_in("/chat", ""), Err(RoomNameError::Empty));
    }

    #[test]
    fn the_gateways_own_rooms_are_reserved_in_every_namespace() {
        for name in ["everyone", "user:bob", "connection:x", "/events#everyone", "/events#user:bob", "everyone:x"] {
            assert!(Room::parse(name).unwrap().is_reserved(), "{name}");
        }
        for name in ["users:bob", "everyone2", "flat:user:bob", "/events#lobby"] {
            assert!(!Room::parse(name).unwrap().is_reserved(), "{name}");
        }
    }
}
