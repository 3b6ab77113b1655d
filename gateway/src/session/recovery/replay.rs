//! What of the log a session has missed: what was published to its rooms while it was in them.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::client::ConnectionId;
use crate::commit::{Cursor, Effect, Entry, Position, Publication, SessionRecord, Who};
use crate::room::Room;

/// How the log is read for one session that comes back.
pub(super) struct Replay<'a> {
    session: Thread<'a>,
    since: Cursor,
    /// Up to where each room is read: beyond, the new connection has it live.
    until: HashMap<Room, Position>,
}

/// A session in the log: one connection after the other.
pub(super) struct Thread<'a> {
    record: &'a SessionRecord,
    entries: &'a [Arc<Entry>],
    /// The latest first.
    connections: Vec<ConnectionId>,
    /// The entries in which it came back, each with the connection that it had before.
    returns: HashMap<Position, ConnectionId>,
}

impl<'a> Thread<'a> {
    /// Follows the session backwards from its latest connection.
    pub(super) fn new(record: &'a SessionRecord, entries: &'a [Arc<Entry>]) -> Thread<'a> {
        let mut thread =
            Thread { record, entries, connections: vec![record.connection.clone()], returns: HashMap::new() };
        for entry in entries.iter().rev() {
            let latest = thread.connections.last().unwrap_or(&record.connection);
            if let Some(before) = returned(entry, latest) {
                thread.returns.insert(entry.position, before.clone());
                thread.connections.push(before.clone());
            }
        }
        thread
    }

    /// The rooms that it is in at the end: the record's, changed by what others did to it since it was last written.
    pub(super) fn rooms(&self) -> BTreeSet<Room> {
        let mut rooms: BTreeSet<Room> = self.record.rooms.keys().cloned().collect();
        let last = self.returns.keys().max();
        for entry in self.entries.iter().filter(|entry| last.is_none_or(|last| entry.position > *last)) {
            for effect in &entry.effects {
                match effect {
                    Effect::Join { who, room, .. } if self.means(who) && self.may_be_in(room) => {
                        rooms.insert(room.clone());
                    }
                    Effect::Leave { who, room } if self.means(who) => {
                        rooms.remove(room);
                    }
                    _ => {}
                }
            }
        }
        rooms
    }

    fn may_be_in(&self, room: &Room) -> bool {
        !room.is_reserved() && room.namespace() == &*self.record.namespace
    }

    fn means(&self, who: &Who) -> bool {
        match who {
            Who::Connection(id) => self.connections.contains(id),
            Who::User(subject) => *subject == self.record.subject,
        }
    }
}

/// The connection as which a session was gone when it came back as `id` in this entry.
fn returned<'a>(entry: &'a Entry, id: &ConnectionId) -> Option<&'a ConnectionId> {
    let arrival =
        entry.effects.iter().position(|effect| matches!(effect, Effect::Arrive { id: new, .. } if new == id))?;
    entry.effects[arrival..].iter().find_map(|effect| match effect {
        Effect::Gone { id: before } if before != id => Some(before),
        _ => None,
    })
}

impl<'a> Replay<'a> {
    /// For a session that comes back: `joined` rooms are live only from their joining on, `held` ones
    /// since the new connection came into them, and the gateway's own since it arrived.
    pub(super) fn new(
        session: Thread<'a>,
        since: Cursor,
        joined: Vec<Room>,
        held: Vec<(Room, Position)>,
        arrived: Position,
    ) -> Replay<'a> {
        let end = Position { epoch: u64::MAX, seq: u64::MAX };
        let (namespace, subject) = (&session.record.namespace, &session.record.subject);
        let mut own = vec![Room::user(namespace, subject), Room::everyone(namespace)];
        own.extend(session.connections.iter().map(|id| Room::connection(namespace, id)));
        let joined = joined.into_iter().map(|room| (room, end));
        let live = held.into_iter().chain(own.into_iter().map(|room| (room, arrived)));
        let until = joined.chain(live).collect();
        Replay { session, since, until }
    }

    /// The publications that were missed, in order, each with the position to resume after. The client chooses
    /// `since`, so what was published before the session was in a room is left out.
    pub(super) fn publications(&self) -> Vec<(&'a Publication, Cursor)> {
        let mut timeline = Timeline::default();
        for entry in self.session.entries {
            let all = entry.effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count();
            let before = self.session.returns.get(&entry.position);
            // In an entry with a return: what is joined until the earlier connection goes, it was in.
            let mut returning = before.is_some();
            let mut kept = Vec::new();
            let mut number = 0;
            for effect in &entry.effects {
                match effect {
                    Effect::Publish(publication) => {
                        let part = (number + 1 < all).then_some(number);
                        if self.is_missed(entry, publication, number) {
                            timeline.publication(publication, Cursor { position: entry.position, part });
                        }
                        number += 1;
                    }
                    Effect::Join { who, room, .. } if self.session.means(who) => {
                        timeline.change(room, returning, true);
                        kept.push(room);
                    }
                    Effect::Leave { who, room } if self.session.means(who) => timeline.change(room, true, false),
                    Effect::Arrive { id, .. } if before.is_none() && self.session.connections.last() == Some(id) => {
                        for room in self.until.keys().filter(|room| room.is_reserved()) {
                            timeline.change(room, false, true);
                        }
                    }
                    Effect::Gone { id } if before == Some(id) => {
                        returning = false;
                        timeline.forget(|room| !room.is_reserved() && !kept.contains(&room));
                    }
                    _ => {}
                }
            }
        }
        timeline.finish()
    }

    fn is_missed(&self, entry: &Entry, publication: &Publication, number: usize) -> bool {
        let seen = entry.position == self.since.position && self.since.part.is_none_or(|part| number <= part);
        let own = publication.except.as_ref().is_some_and(|id| self.session.connections.contains(id));
        let read = self.until.get(&publication.room).is_some_and(|until| entry.position <= *until);
        read && !seen && !own
    }
}

/// What a session was sent, as the memberships are learnt: whether it was in a room before the log first speaks
/// of that is known only there. Where the log never does, it was, for it is in it now.
#[derive(Default)]
struct Timeline<'a> {
    count: usize,
    sent: Vec<Sent<'a>>,
    unsure: HashMap<Room, Vec<Sent<'a>>>,
    inside: HashMap<Room, bool>,
}

type Sent<'a> = (usize, &'a Publication, Cursor);

impl<'a> Timeline<'a> {
    fn publication(&mut self, publication: &'a Publication, cursor: Cursor) {
        let sent = (self.count, publication, cursor);
        self.count += 1;
        match self.inside.get(&publication.room) {
            Some(true) => self.sent.push(sent),
            Some(false) => {}
            None => self.unsure.entry_ref(&publication.room).or_default().push(sent),
        }
    }

    /// The log says that the session is in the room from here on, or not; and whether it was before.
    fn change(&mut self, room: &Room, was_inside: bool, is_inside: bool) {
        let unsure = self.unsure.remove(room).unwrap_or_default();
        if was_inside {
            self.sent.extend(unsure);
        }
        self.inside.insert(room.clone(), is_inside);
    }

    /// What was known of these rooms does not hold any more.
    fn forget(&mut self, rooms: impl Fn(&Room) -> bool) {
        self.inside.retain(|room, inside| !(*inside && rooms(room)));
    }

    fn finish(mut self) -> Vec<(&'a Publication, Cursor)> {
        self.sent.extend(self.unsure.into_values().flatten());
        self.sent.sort_unstable_by_key(|(order, ..)| *order);
        self.sent.into_iter().map(|(_, publication, cursor)| (publication, cursor)).collect()
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
            heard: None,
        }
    }

    fn replayed(entries: &[Arc<Entry>], since: Cursor, arrived: u64) -> Vec<String> {
        replayed_of(&record(), entries, since, arrived)
    }

    fn replayed_of(record: &SessionRecord, entries: &[Arc<Entry>], since: Cursor, arrived: u64) -> Vec<String> {
        let thread = Thread::new(record, entries);
        let replay = Replay::new(thread, since, vec![room("a:1")], vec![(room("b:2"), at(arrived))], at(arrived));
        let missed = replay.publications();
        missed.iter().map(|(publication, cursor)| format!("{}@{cursor}", publication.event)).collect()
    }

    fn arrive(id: &str) -> Effect {
        Effect::Arrive { id: id.into(), subject: "bob".into(), namespace: "/".into() }
    }

    fn gone(id: &str) -> Effect {
        Effect::Gone { id: id.into() }
    }

    /// A session that came back as "newer" once already, and is lost again.
    fn came_back() -> SessionRecord {
        SessionRecord { connection: "newer".into(), ..record() }
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
    fn a_room_that_the_new_connection_came_into_later_is_replayed_up_to_there() {
        let entries = log(vec![
            vec![arrive("new")],
            vec![say("b:2", "1"), say("everyone", "live")],
            vec![join("new", "b:2")],
            vec![say("b:2", "live")],
        ]);
        let record = record();
        let thread = Thread::new(&record, &entries);
        let replay = Replay::new(thread, START, Vec::new(), vec![(room("b:2"), at(3))], at(1));
        let missed: Vec<_> = replay.publications().iter().map(|(publication, _)| publication.event.clone()).collect();
        assert_eq!(missed, [Arc::from("1")]);
    }

    #[test]
    fn an_entry_that_was_seen_in_part_is_continued() {
        let entries = log(vec![vec![say("a:1", "0"), say("a:1", "1"), say("a:1", "2")], vec![say("a:1", "3")]]);
        let seen = |part| Cursor { position: at(1), part };
        assert_eq!(replayed(&entries, seen(Some(0)), 9), ["1@1-1.1", "2@1-1", "3@1-2"]);
        assert_eq!(replayed(&entries, seen(None), 9), ["3@1-2"]);
    }

    #[test]
    fn what_the_connection_before_was_sent_counts_for_a_client_that_is_lost_again_while_it_catches_up() {
        let entries = log(vec![
            vec![say("a:1", "1"), say("user:bob", "2")],
            vec![gone("old")],
            vec![say("a:1", "3"), say("connection:old", "4")],
            vec![arrive("newer"), join("newer", "a:1"), gone("old")],
            vec![say("a:1", "5"), say("connection:newer", "6")],
        ]);
        assert_eq!(
            replayed_of(&came_back(), &entries, START, 9),
            ["1@1-1.0", "2@1-1", "3@1-3.0", "4@1-3", "5@1-5.0", "6@1-5"]
        );
    }

    #[test]
    fn a_room_that_was_new_when_it_came_back_is_replayed_from_there_only() {
        let entries = log(vec![
            vec![say("a:1", "before")],
            vec![arrive("newer"), gone("old"), join("newer", "a:1")],
            vec![say("a:1", "1")],
        ]);
        assert_eq!(replayed_of(&came_back(), &entries, START, 9), ["1@1-3"]);
    }

    #[test]
    fn the_rooms_of_a_session_are_the_records_changed_by_what_the_log_says_since() {
        let user = |name: &str| Effect::Leave { who: Who::User("bob".into()), room: room(name) };
        let entries = log(vec![
            vec![join("newer", "too:old")],
            vec![arrive("newer"), join("newer", "a:1"), join("newer", "left:1"), gone("old")],
            vec![join("newer", "given:1"), join("else", "no:1"), join("newer", "/other#no")],
            vec![user("left:1")],
        ]);
        let rooms = [room("a:1"), room("left:1")].map(|room| (room, Grant::default()));
        let record = SessionRecord { rooms: BTreeMap::from(rooms), ..came_back() };
        let now: Vec<_> = Thread::new(&record, &entries).rooms().iter().map(ToString::to_string).collect();
        assert_eq!(now, ["a:1", "given:1"]);
    }
}
