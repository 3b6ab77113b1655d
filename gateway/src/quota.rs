//! What a tenant keeps in all, and how much of it may be kept.
//!
//! A call is bounded by `call_limits`; what many calls leave behind is bounded here. Engines keep the totals and refuse
//! a commit that would go beyond, as a whole and at the moment at which it would be applied, so that many nodes cannot
//! go beyond together. A commit that leaves no more than was there before is never refused: who is over a limit, because
//! it was lowered, can always clean up.
//!
//! What counts is what a tenant's plugins do: their keys with their values, and their timers. What the gateway keeps
//! for itself (session records, presence, revocations, requests done once, the timers that tell of ended sessions) does
//! not.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashSet;
use parking_lot::Mutex;

use crate::event::Refusal;
use crate::room::Room;

/// What a client hears whose join would be one too many.
const ROOM_LIMIT: &str = "room_limit";

/// What the plugins of a tenant keep, or may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Stored {
    /// Bytes of keys (as stored, with the plugin's name) and of values.
    pub state_bytes: u64,
    /// Keys.
    pub state_keys: u64,
    /// Timers that have neither fired nor been given up.
    pub timers: u64,
}

/// One of the totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredKind {
    /// [`Stored::state_bytes`].
    StateBytes,
    /// [`Stored::state_keys`].
    StateKeys,
    /// [`Stored::timers`].
    Timers,
}

impl StoredKind {
    /// Each of them.
    pub const ALL: [StoredKind; 3] = [StoredKind::StateBytes, StoredKind::StateKeys, StoredKind::Timers];

    /// Its name, in settings below `limits.`, in answers and as a metric's label.
    pub fn word(self) -> &'static str {
        match self {
            StoredKind::StateBytes => "state_bytes",
            StoredKind::StateKeys => "state_keys",
            StoredKind::Timers => "timers",
        }
    }

    /// What a client whose input was refused for it is told.
    pub fn code(self) -> &'static str {
        match self {
            StoredKind::StateBytes | StoredKind::StateKeys => "state_quota",
            StoredKind::Timers => "timer_quota",
        }
    }
}

impl Stored {
    /// One of the totals.
    pub fn of(&self, kind: StoredKind) -> u64 {
        match kind {
            StoredKind::StateBytes => self.state_bytes,
            StoredKind::StateKeys => self.state_keys,
            StoredKind::Timers => self.timers,
        }
    }

    /// These totals after a change.
    pub fn after(self, growth: Growth) -> Stored {
        Stored {
            state_bytes: self.state_bytes.saturating_add_signed(growth.state_bytes),
            state_keys: self.state_keys.saturating_add_signed(growth.state_keys),
            timers: self.timers.saturating_add_signed(growth.timers),
        }
    }

    /// May these totals change so, where `most` may be kept?
    ///
    /// # Errors
    /// What grows and would be more than may be kept.
    pub fn may_grow(self, growth: Growth, most: &Stored) -> Result<(), OverQuota> {
        let after = self.after(growth);
        let beyond = |kind: &StoredKind| after.of(*kind) > self.of(*kind) && after.of(*kind) > most.of(*kind);
        match StoredKind::ALL.into_iter().find(beyond) {
            Some(kind) => Err(OverQuota { kind, value: after.of(kind), limit: most.of(kind) }),
            None => Ok(()),
        }
    }
}

/// How a commit changes the totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are those of `Stored`")]
pub struct Growth {
    pub state_bytes: i64,
    pub state_keys: i64,
    pub timers: i64,
}

impl Growth {
    /// A key's size goes from one to another, in bytes; `None`: it is not there.
    pub fn resize(&mut self, from: Option<u64>, to: Option<u64>) {
        let signed = |bytes: Option<u64>| i64::try_from(bytes.unwrap_or(0)).unwrap_or(i64::MAX);
        self.state_bytes = self.state_bytes.saturating_add(signed(to).saturating_sub(signed(from)));
        self.state_keys += i64::from(to.is_some()) - i64::from(from.is_some());
    }
}

/// A commit would leave more than the tenant may keep. Nothing of it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// Of what.
    pub kind: StoredKind,
    /// How much there would be.
    pub value: u64,
    /// How much there may be.
    pub limit: u64,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OverQuota { kind, value, limit } = self;
        let what = match kind {
            StoredKind::StateBytes => "bytes of state",
            StoredKind::StateKeys => "keys of state",
            StoredKind::Timers => "pending timers",
        };
        write!(f, "the tenant's plugins would keep {value} {what} in all: limits.{} = {limit}", kind.word())
    }
}

impl OverQuota {
    /// As whoever caused the commit is told.
    pub fn refusal(&self, message: String) -> Refusal {
        Refusal::new(self.kind.code(), message)
    }

    /// Was it refused for what a tenant keeps in all? Asking again does not help then, cleaning up does.
    pub fn is_why(refusal: &Refusal) -> bool {
        StoredKind::ALL.iter().any(|kind| refusal.code == kind.code()) || refusal.code == ROOM_LIMIT
    }
}

/// The rooms of a tenant that have members on this node, those that the gateway itself gives left out.
#[derive(Debug, Default)]
pub struct RoomsHere {
    max: AtomicUsize,
    rooms: Mutex<HashSet<Room>>,
}

impl RoomsHere {
    /// With at most so many.
    pub fn new(max: usize) -> RoomsHere {
        RoomsHere { max: AtomicUsize::new(max), ..RoomsHere::default() }
    }

    /// Another limit, from now on. Rooms that are there stay.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// A room has its first member here.
    pub fn add(&self, room: &Room) {
        if !room.is_reserved() {
            self.rooms.lock().insert(room.clone());
        }
    }

    /// A room has no member here any more.
    pub fn remove(&self, room: &Room) {
        if !room.is_reserved() {
            self.rooms.lock().remove(room);
        }
    }

    /// May these be joined? Joins that are on their way do not count yet: as many as there are at one moment may go
    /// beyond.
    ///
    /// # Errors
    /// `room_limit`, which names the setting.
    pub fn may_join<'a>(&self, wanted: impl Iterator<Item = &'a Room>) -> Result<(), Refusal> {
        let max = self.max.load(Ordering::Relaxed);
        let rooms = self.rooms.lock();
        let mut new = HashSet::new();
        new.extend(wanted.filter(|room| !room.is_reserved() && !rooms.contains(*room)));
        if new.is_empty() || rooms.len() + new.len() <= max {
            return Ok(());
        }
        let text = format!(
            "the tenant's clients on this node are in {} rooms, {} more asked for, at most {max} (setting limits.rooms)",
            rooms.len(),
            new.len()
        );
        Err(Refusal::new(ROOM_LIMIT, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Stored = Stored { state_bytes: 100, state_keys: 10, timers: 1 };

    #[test]
    fn what_grows_beyond_its_limit_is_refused_and_names_limit_value_and_setting() {
        let now = Stored { state_bytes: 90, state_keys: 2, timers: 1 };
        let growth = Growth { state_bytes: 10, state_keys: 8, timers: 0 };
        assert_eq!(now.may_grow(growth, &MOST), Ok(()));
        let over = now.may_grow(Growth { state_bytes: 11, ..growth }, &MOST).unwrap_err();
        assert_eq!(
            over.to_string(),
            "the tenant's plugins would keep 101 bytes of state in all: limits.state_bytes = 100"
        );
        assert_eq!(over.refusal(String::new()).code, "state_quota");
        let over = now.may_grow(Growth { timers: 1, ..growth }, &MOST).unwrap_err();
        assert_eq!(
            (over.kind, over.value, over.refusal(String::new()).code.as_str()),
            (StoredKind::Timers, 2, "timer_quota")
        );
    }

    #[test]
    fn whoever_is_over_a_limit_may_clean_up_but_not_grow() {
        let over = Stored { state_bytes: 500, state_keys: 50, timers: 9 };
        for less in [Growth::default(), Growth { state_bytes: -1, state_keys: -1, timers: -1 }] {
            assert_eq!(over.may_grow(less, &MOST), Ok(()));
        }
        let swapped = Growth { state_bytes: -400, state_keys: 1, timers: 0 };
        assert_eq!(over.may_grow(swapped, &MOST).unwrap_err().kind, StoredKind::StateKeys);
    }

    #[test]
    fn a_room_that_is_here_can_be_joined_whatever_the_limit() {
        let room = |name: &str| Room::parse(name).unwrap();
        let here = RoomsHere::new(2);
        let (a, b, c) = (room("a"), room("b"), room("c"));
        here.add(&a);
        here.add(&room("everyone"));
        assert!(here.may_join([&a, &b, &b].into_iter()).is_ok());
        here.add(&b);
        let refusal = here.may_join([&a, &c].into_iter()).unwrap_err();
        assert!(refusal.code == "room_limit" && refusal.message.contains("limits.rooms"), "{refusal:?}");
        assert!(here.may_join([&a, &b, &room("user:bob")].into_iter()).is_ok());
        here.set_max(3);
        assert!(here.may_join([&c].into_iter()).is_ok());
        here.set_max(1);
        here.remove(&a);
        here.remove(&b);
        assert!(here.may_join([&c].into_iter()).is_ok());
    }
}
