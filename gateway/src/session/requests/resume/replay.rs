//! What of the log a session has missed: what was published to its rooms while it was in them.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::client::ConnectionId;
use crate::commit::{Cursor, Effect, Entry, Position, Publication, SessionRecord, Who};
use crate::room::Room;

/// How the log is read for one session that comes back.
pub(super) struct Replay {
    connection: ConnectionId,
    subject: Arc<str>,
    since: Cursor,
    /// Up to where each room is read: beyond, the new connection has it live.
    until: HashMap<Room, Position>,
}

impl Replay {
    /// For the session of `record`: `joined` rooms are live only from their joining on, `held` ones and the
    /// gateway's own since the new connection arrived.
    pub(super) fn new(
        record: &SessionRecord,
        since: Cursor,
        joined: Vec<Room>,
        held: Vec<Room>,
        arrived: Position,
    ) -> Replay {
        let end = Position { epoch: u64::MAX, seq: u64::MAX };
        let own = [
            Room::connection(&record.namespace, &record.connection),
            Room::user(&record.namespace, &record.subject),
            Room::everyone(&record.namespace),
        ];
        let joined = joined.into_iter().map(|room| (room, end));
        let live = held.into_iter().chain(own).map(|room| (room, arrived));
        Replay {
            connection: record.connection.clone(),
            subject: record.subject.clone(),
            since,
            until: joined.chain(live).collect(),
        }
    }

    /// The publications that were missed, in order, each with the position to resume after. The client chooses
    /// `since`, so what was published before the session was in a room is left out.
    pub(super) fn publications<'a>(
        &self,
        entries: &'a [Arc<Entry>],
    ) -> impl Iterator<Item = (&'a Publication, Cursor)> {
        let mut absent = self.absent_at_first(entries);
        let mut found = Vec::new();
        for entry in entries {
            let all = entry.effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count();
            let mut number = 0;
            for effect in &entry.effects {
                match effect {
                    Effect::Publish(publication) => {
                        let part = (number + 1 < all).then_some(number);
                        if self.is_missed(entry, publication, number) && !absent.contains(&publication.room) {
                            found.push((publication, Cursor { position: entry.position, part }));
                        }
                        number += 1;
                    }
                    Effect::Join { who, room, .. } if self.means(who) => absent.retain(|other| other != room),
                    Effect::Leave { who, room } if self.means(who) => absent.push(room.clone()),
                    Effect::Arrive { id, .. } if *id == self.connection => absent.retain(|room| !room.is_reserved()),
                    _ => {}
                }
            }
        }
        found.into_iter()
    }

    fn is_missed(&self, entry: &Entry, publication: &Publication, number: usize) -> bool {
        let seen = entry.position == self.since.position && self.since.part.is_none_or(|part| number <= part);
        let own = publication.except.as_ref() == Some(&self.connection);
        let read = self.until.get(&publication.room).is_some_and(|until| entry.position <= *until);
        read && !seen && !own
    }

    fn means(&self, who: &Who) -> bool {
        match who {
            Who::Connection(id) => *id == self.connection,
            Who::User(subject) => *subject == self.subject,
        }
    }

    /// The rooms that the session came to only later: the first thing the log says of them is that it joins.
    fn absent_at_first(&self, entries: &[Arc<Entry>]) -> Vec<Room> {
        let mut first: HashMap<&Room, bool> = HashMap::new();
        let mut absent = Vec::new();
        for effect in entries.iter().flat_map(|entry| &entry.effects) {
            match effect {
                Effect::Join { who, room, .. } if self.means(who) => {
                    first.entry(room).or_insert(true);
                }
                Effect::Leave { who, room } if self.means(who) => {
                    first.entry(room).or_insert(false);
                }
                Effect::Arrive { id, .. } if *id == self.connection => {
                    absent.extend(self.until.keys().filter(|room| room.is_reserved()).cloned());
                }
                _ => {}
            }
        }
        absent.extend(first.into_iter().filter(|(_, joins)| *joins).map(|(room, _)| room.clone()));
        absent
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commit::Grant;
    use crate::event::Payload;

    fn at(seq: u64) -> Position {
        Position { epoch: 1, seq }
    }

    fn room(name: &str) -> Room {
        Room::parse(name).unwrap()
    }

    fn say(room_name: &str, event: &str) -> Effect {
        Effect::Publish(Publication {
            room: room(room_name),
            event: event.into(),
            data: Payload::empty(),
            except: None,
        })
    }

    fn join(id: &str, name: &str) -> Effect {
        Effect::Join { who: Who::Connection(id.into()), room: room(name), grant: Grant::default() }
    }

    fn log(entries: Vec<Vec<Effect>>) -> Vec<Arc<Entry>> {
        let entry =
            |(index, effects)| Arc::new(Entry { position: at(index as u64 + 1), at: 0, effects, presence: Vec::new() });
        entries.into_iter().enumerate().map(entry).collect()
    }

    fn record() -> SessionRecord {
        SessionRecord {
            session: "s".into(),
            connection: "old".into(),
            subject: "bob".into(),
            namespace: "/".into(),
            claims: "{}".into(),
            rooms: BTreeMap::new(),
            ttl_ms: 1,
        }
    }

    fn replayed(entries: &[Arc<Entry>], since: Cursor, arrived: u64) -> Vec<String> {
        let replay = Replay::new(&record(), since, vec![room("a:1")], vec![room("b:2")], at(arrived));
        replay.publications(entries).map(|(publication, cursor)| format!("{}@{cursor}", publication.event)).collect()
    }

    const START: Cursor = Cursor { position: Position { epoch: 1, seq: 0 }, part: None };

    #[test]
    fn what_was_published_to_the_sessions_rooms_is_replayed_in_order() {
        let entries = log(vec![
            vec![say("a:1", "1")],
            vec![say("other:1", "no")],
            vec![say("user:bob", "2"), say("user:eve", "no"), say("everyone", "3")],
        ]);
        assert_eq!(replayed(&entries, START, 9), ["1@1-1", "2@1-3.0", "3@1-3"]);
    }

    #[test]
    fn a_client_that_asks_for_more_than_it_was_there_for_does_not_get_it() {
        let entries = log(vec![
            vec![say("a:1", "before"), say("everyone", "before")],
            vec![Effect::Arrive { id: "old".into(), subject: "bob".into(), namespace: "/".into() }],
            vec![say("a:1", "before"), say("everyone", "1")],
            vec![join("old", "a:1")],
            vec![say("a:1", "2")],
            vec![Effect::Leave { who: Who::Connection("old".into()), room: room("a:1") }],
            vec![say("a:1", "away")],
            vec![join("old", "a:1"), say("a:1", "3")],
        ]);
        assert_eq!(replayed(&entries, START, 9), ["1@1-3", "2@1-5", "3@1-8"]);
    }

    #[test]
    fn what_the_new_connection_has_live_is_not_replayed() {
        let entries = log(vec![
            vec![say("b:2", "1"), say("everyone", "2")],
            vec![Effect::Arrive { id: "new".into(), subject: "bob".into(), namespace: "/".into() }],
            vec![say("b:2", "live"), say("everyone", "live"), say("a:1", "3")],
            vec![join("new", "a:1")],
        ]);
        assert_eq!(replayed(&entries, START, 2), ["1@1-1.0", "2@1-1", "3@1-3"]);
    }

    #[test]
    fn an_entry_that_was_seen_in_part_is_continued() {
        let entries = log(vec![vec![say("a:1", "0"), say("a:1", "1"), say("a:1", "2")], vec![say("a:1", "3")]]);
        let seen = |part| Cursor { position: at(1), part };
        assert_eq!(replayed(&entries, seen(Some(0)), 9), ["1@1-1.1", "2@1-1", "3@1-2"]);
        assert_eq!(replayed(&entries, seen(None), 9), ["3@1-2"]);
    }
}
