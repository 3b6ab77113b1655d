//! Who comes and who goes, as events for the members of a room: one by one while it is calm, together when it is not.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use serde_json::json;
use tokio::time::Instant;

use crate::commit::{PresenceChange, Publication};
use crate::event::Payload;
use crate::room::Room;

/// How often the members of one room are told together at most.
const UPDATE_EVERY: Duration = Duration::from_millis(500);

/// Changes of one room within [`UPDATE_EVERY`] that are told one by one; what follows is told together.
const SINGLE_MAX: u32 = 8;

/// In a room with more members on this node, all changes are told together.
const SINGLE_MEMBERS_MAX: usize = 50;

/// Users that one update names at most; more make it come earlier.
const UPDATE_USERS_MAX: usize = 1_000;

/// What is to be told in a room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) publication: Publication,
    /// A user who is not told.
    pub(super) except: Option<Arc<str>>,
}

/// What is told of whom, for one tenant on one node.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    /// The types of the rooms whose members are told.
    room_types: Arc<[String]>,
    /// Of rooms in which something was told a moment ago.
    windows: HashMap<Room, Window>,
    /// When the first window with something in it ends, or earlier.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Window {
    ends: Instant,
    told: u32,
    waiting: Vec<(Arc<str>, bool)>,
}

impl Announcer {
    pub(super) fn new(room_types: Arc<[String]>) -> Announcer {
        Announcer { room_types, ..Announcer::default() }
    }

    /// Members of rooms of these types are told from now on.
    pub(super) fn set_types(&mut self, room_types: Arc<[String]>) {
        self.room_types = room_types;
    }

    /// Takes a change, in the order of the log; what is to be told now, if anything. `members`: those of the room
    /// on this node.
    pub(super) fn note(&mut self, change: &PresenceChange, members: usize, now: Instant) -> Option<Announcement> {
        let PresenceChange { room, subject, joined } = change;
        if !self.room_types.iter().any(|wanted| wanted == room.room_type()) {
            return None;
        }
        if members == 0 {
            self.windows.remove(room);
            return None;
        }
        let fresh = || Window { ends: now + UPDATE_EVERY, told: 0, waiting: Vec::new() };
        let window = self.windows.entry_ref(room).or_insert_with(fresh);
        if window.ends <= now && window.waiting.is_empty() {
            *window = fresh();
        }
        if members <= SINGLE_MEMBERS_MAX && window.waiting.is_empty() && window.told < SINGLE_MAX {
            window.told += 1;
            self.due.get_or_insert(window.ends);
            return Some(single(room, subject, *joined));
        }
        // Who came and went meanwhile was never there.
        match window.waiting.iter().position(|(other, _)| other == subject) {
            Some(index) => drop(window.waiting.remove(index)),
            None => window.waiting.push((subject.clone(), *joined)),
        }
        let ends = window.ends;
        self.due = Some(self.due.map_or(ends, |due| due.min(ends)));
        (window.waiting.len() >= UPDATE_USERS_MAX).then(|| together(room, &mut window.waiting))
    }

    /// When [`due`](Announcer::due) is to be asked.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due
    }

    /// What has waited long enough; forgets the rooms that are calm.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Announcement> {
        let mut updates = Vec::new();
        self.windows.retain(|room, window| {
            if window.ends > now {
                return true;
            }
            if window.waiting.is_empty() {
                return false;
            }
            updates.push(together(room, &mut window.waiting));
            *window = Window { ends: now + UPDATE_EVERY, told: SINGLE_MAX, waiting: Vec::new() };
            true
        });
        self.due = self.windows.values().map(|window| window.ends).min();
        updates
    }

    /// Entries were lost: members ask anew.
    pub(super) fn forget(&mut self) {
        self.windows.clear();
        self.due = None;
    }
}

fn single(room: &Room, subject: &Arc<str>, joined: bool) -> Announcement {
    let event = if joined { "presence:join" } else { "presence:leave" };
    let data = Payload::one(&json!({ "room": room.name(), "user": &**subject }));
    let publication = Publication { room: room.clone(), event: event.into(), data, except: None };
    Announcement { publication, except: joined.then(|| subject.clone()) }
}

fn together(room: &Room, waiting: &mut Vec<(Arc<str>, bool)>) -> Announcement {
    let (joined, left): (Vec<_>, Vec<_>) = std::mem::take(waiting).into_iter().partition(|(_, joined)| *joined);
    let names = |users: &[(Arc<str>, bool)]| users.iter().map(|(user, _)| user.to_string()).collect::<Vec<_>>();
    let data = json!({ "room": room.name(), "joined": names(&joined), "left": names(&left) });
    let data = Payload::one(&data);
    let publication = Publication { room: room.clone(), event: "presence:update".into(), data, except: None };
    Announcement { publication, except: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(room: &str, subject: &str, joined: bool) -> PresenceChange {
        PresenceChange { room: Room::parse(room).unwrap(), subject: subject.into(), joined }
    }

    fn announcer() -> Announcer {
        Announcer::new(vec!["flat".to_owned()].into())
    }

    fn told(announcement: &Announcement) -> String {
        format!("{} {}", announcement.publication.event, announcement.publication.data.args)
    }

    #[test]
    fn rooms_of_types_that_were_not_asked_for_are_silent() {
        let (mut announcer, now) = (announcer(), Instant::now());
        assert_eq!(announcer.note(&change("task:1", "bob", true), 3, now), None);
        assert_eq!(announcer.note(&change("flat:1", "bob", true), 0, now), None, "nobody is there to be told");
        let join = announcer.note(&change("flat:1", "bob", true), 3, now).unwrap();
        assert_eq!(told(&join), r#"presence:join [{"room":"flat:1","user":"bob"}]"#);
        assert_eq!(join.except.as_deref(), Some("bob"), "nobody is told of its own coming");
    }

    #[test]
    fn a_burst_is_told_together_and_later_calm_is_told_one_by_one_again() {
        let (mut announcer, start) = (announcer(), Instant::now());
        for n in 0..SINGLE_MAX {
            assert!(announcer.note(&change("flat:1", &n.to_string(), true), 3, start).is_some());
        }
        for (subject, joined) in [("x", true), ("y", true), ("x", false), ("0", false)] {
            assert_eq!(announcer.note(&change("flat:1", subject, joined), 3, start), None);
        }
        assert!(announcer.due(start).is_empty());
        let end = announcer.next_due().unwrap();
        let updates = announcer.due(end);
        assert_eq!(updates.len(), 1);
        let update = r#"presence:update [{"joined":["y"],"left":["0"],"room":"flat:1"}]"#;
        assert_eq!(told(&updates[0]), update, "who came and went meanwhile is not named");
        assert_eq!(announcer.note(&change("flat:1", "z", true), 3, end), None, "at most one update in the time");
        let end = announcer.next_due().unwrap();
        assert_eq!(announcer.due(end).len(), 1);
        assert!(announcer.due(end + UPDATE_EVERY).is_empty());
        assert_eq!(announcer.next_due(), None);
        assert!(announcer.windows.is_empty(), "calm rooms are forgotten");
        assert!(announcer.note(&change("flat:1", "z", false), 3, end + UPDATE_EVERY).is_some());
    }

    #[test]
    fn a_big_room_is_always_told_together_and_no_update_names_without_end() {
        let (mut announcer, now) = (announcer(), Instant::now());
        let mut early = 0;
        for n in 0..UPDATE_USERS_MAX + 1 {
            let told = announcer.note(&change("flat:1", &n.to_string(), true), SINGLE_MEMBERS_MAX + 1, now);
            early += usize::from(told.is_some());
        }
        assert_eq!(early, 1);
        let end = announcer.next_due().unwrap();
        assert_eq!(announcer.due(end).len(), 1);
    }
}
