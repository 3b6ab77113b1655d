//! A stretch of a tenant's log in memory, bounded by count, bytes and age.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::Range;
use crate::commit::{Effect, Entry, Millis, Position, PresenceChange};
use crate::room::Room;

/// What an entry, and each of its effects, is counted with beside the bytes it carries.
const OVERHEAD_BYTES: usize = 200;

/// How much of a log is kept. Whatever is reached first trims it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries_max: usize,
    pub(super) bytes_max: usize,
    pub(super) age_max_ms: Millis,
}

/// The latest entries of one epoch, without holes, with an index by room.
#[derive(Debug)]
pub(super) struct Log {
    limits: Limits,
    top: Position,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// The numbers of the entries with a publication to the room.
    rooms: HashMap<Room, VecDeque<u64>>,
}

impl Log {
    pub(super) fn new(epoch: u64, limits: Limits) -> Log {
        Log::after(Position { epoch, seq: 0 }, limits)
    }

    /// A stretch that begins behind a position.
    pub(super) fn after(top: Position, limits: Limits) -> Log {
        Log { limits, top, entries: VecDeque::new(), bytes: 0, rooms: HashMap::new() }
    }

    /// About what the entries take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The place of the latest entry; before the first one, `seq` is 0.
    pub(super) fn top(&self) -> Position {
        self.top
    }

    /// The place before the oldest entry that is kept; the top when none is.
    pub(super) fn floor(&self) -> Position {
        Position { seq: self.top.seq - self.entries.len() as u64, ..self.top }
    }

    /// Appends an entry and trims what is too much then; never the new entry itself.
    pub(super) fn push(&mut self, at: Millis, effects: Vec<Effect>, presence: Vec<PresenceChange>) {
        self.append(Arc::new(Entry { position: self.top.next(), at, effects, presence }));
    }

    /// As [`push`](Log::push), for the entry whose position is the next one.
    pub(super) fn append(&mut self, entry: Arc<Entry>) {
        self.top = entry.position;
        for room in published_rooms(&entry.effects) {
            self.rooms.entry_ref(room).or_default().push_back(self.top.seq);
        }
        self.bytes += bytes_of(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > 1
            && (self.entries.len() > self.limits.entries_max || self.bytes > self.limits.bytes_max)
        {
            self.drop_oldest();
        }
    }

    /// Drops everything; what comes goes on behind the top.
    pub(super) fn clear(&mut self) {
        *self = Log::after(self.top.next(), self.limits);
    }

    /// Drops what is too old.
    pub(super) fn trim(&mut self, now: Millis) {
        while self.entries.front().is_some_and(|entry| entry.at + self.limits.age_max_ms < now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.bytes -= bytes_of(&entry);
        for room in published_rooms(&entry.effects) {
            if let Some(seqs) = self.rooms.get_mut(room) {
                seqs.pop_front();
                if seqs.is_empty() {
                    self.rooms.remove(room);
                }
            }
        }
    }

    /// The entry with this number, if it is kept.
    pub(super) fn get(&self, seq: u64) -> Option<&Arc<Entry>> {
        let index = seq.checked_sub(self.floor().seq + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// See [`Engine::range`](super::Engine::range).
    pub(super) fn range(&self, after: Position, limit: usize) -> Range {
        let floor = self.floor();
        if after.epoch != floor.epoch || after.seq < floor.seq || after.seq > self.top.seq {
            return Range::Gone;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most the number of entries in memory")]
        let skip = (after.seq - floor.seq) as usize;
        Range::Entries(self.entries.iter().skip(skip).take(limit).cloned().collect())
    }

    /// See [`Engine::history`](super::Engine::history).
    pub(super) fn history(&self, room: &Room, before: Option<Position>, limit: usize) -> Vec<Arc<Entry>> {
        let Some(seqs) = self.rooms.get(room) else { return Vec::new() };
        let wanted = match before {
            None => seqs.len(),
            Some(before) => seqs.partition_point(|seq| Position { seq: *seq, ..self.top } < before),
        };
        let first = wanted.saturating_sub(limit);
        seqs.range(first..wanted).filter_map(|seq| self.get(*seq)).cloned().collect()
    }
}

/// The rooms that are published to, each once.
fn published_rooms(effects: &[Effect]) -> impl Iterator<Item = &Room> {
    let mut seen = HashSet::new();
    let rooms = effects.iter().filter_map(|effect| match effect {
        Effect::Publish(publication) => Some(&publication.room),
        _ => None,
    });
    // Most entries publish once, and a set that stays empty costs nothing.
    let several = effects.len() > 1;
    rooms.filter(move |room| !several || seen.insert(*room))
}

/// About what it takes in memory.
fn bytes_of(entry: &Entry) -> usize {
    let carried = |effect: &Effect| match effect {
        Effect::Publish(publication) => {
            publication.data.bytes() + publication.event.len() + publication.room.as_str().len()
        }
        Effect::Arrive { subject, namespace, .. } => subject.len() + namespace.len(),
        Effect::Join { room, .. } | Effect::Leave { room, .. } | Effect::Disconnect { room, .. } => room.as_str().len(),
        Effect::Gone { .. } | Effect::Revoke(_) => 0,
    };
    let named = |change: &PresenceChange| change.room.as_str().len() + change.subject.len();
    OVERHEAD_BYTES
        + entry.presence.iter().map(named).sum::<usize>()
        + entry.effects.iter().map(|effect| OVERHEAD_BYTES + carried(effect)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Publication;
    use crate::event::Payload;

    const LIMITS: Limits = Limits { entries_max: 10, bytes_max: 1 << 20, age_max_ms: 1_000 };

    fn say(to: &str, bytes: usize) -> Effect {
        let data = Payload { args: "x".repeat(bytes).into(), attachments: Vec::new() };
        Effect::Publish(Publication { room: Room::parse(to).unwrap(), event: "said".into(), data, except: None })
    }

    fn seqs(range: Range) -> Option<Vec<u64>> {
        match range {
            Range::Entries(entries) => Some(entries.iter().map(|entry| entry.position.seq).collect()),
            Range::Gone => None,
        }
    }

    fn at(seq: u64) -> Position {
        Position { epoch: 7, seq }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut log = Log::new(7, LIMITS);
        assert_eq!(seqs(log.range(at(0), 9)), Some(vec![]));
        (0..25).for_each(|_| log.push(1, vec![say("a", 1)], Vec::new()));
        assert_eq!((log.floor(), log.top()), (at(15), at(25)));
        assert_eq!(seqs(log.range(at(15), 2)), Some(vec![16, 17]));
        assert_eq!(seqs(log.range(at(14), 2)), None);
        assert_eq!(seqs(log.range(at(25), 2)), Some(vec![]));
        assert_eq!(seqs(log.range(at(26), 2)), None);
        assert_eq!(seqs(log.range(Position { epoch: 6, seq: 20 }, 2)), None);
        assert_eq!(log.get(15), None);
        assert_eq!(log.get(16).unwrap().position, at(16));
        assert_eq!(log.get(26), None);
    }

    #[test]
    fn the_oldest_go_when_they_take_too_much_memory() {
        let mut log = Log::new(7, Limits { bytes_max: 5_000, ..LIMITS });
        (0..9).for_each(|_| log.push(1, vec![say("a", 1_000)], Vec::new()));
        assert_eq!(log.floor(), at(6), "three of 1,406 bytes each fit");
        log.push(1, vec![say("a", 9_000)], Vec::new());
        assert_eq!((log.floor(), log.top()), (at(9), at(10)), "the newest stays, however large");
    }

    #[test]
    fn the_oldest_go_when_they_are_too_old() {
        let mut log = Log::new(7, LIMITS);
        (1..=5).for_each(|n| log.push(n * 500, vec![say("a", 1)], Vec::new()));
        log.trim(2_500);
        assert_eq!(log.floor(), at(2));
        log.trim(10_000);
        assert_eq!((log.floor(), log.top()), (at(5), at(5)));
        assert_eq!((log.bytes, log.rooms.len()), (0, 0), "nothing is left behind");
        assert_eq!(seqs(log.range(at(5), 9)), Some(vec![]));
        assert_eq!(seqs(log.range(at(4), 9)), None);
        log.push(10_000, vec![say("a", 1)], Vec::new());
        assert_eq!(seqs(log.range(at(5), 9)), Some(vec![6]));
    }

    #[test]
    fn history_names_an_entry_once_and_forgets_what_was_trimmed() {
        let mut log = Log::new(7, LIMITS);
        (0..8).for_each(|_| log.push(1, vec![say("a", 1), say("b", 1), say("a", 1)], Vec::new()));
        (0..4).for_each(|_| log.push(1, vec![say("b", 1)], Vec::new()));
        let seqs = |room: &str, before, limit| {
            let entries = log.history(&Room::parse(room).unwrap(), before, limit);
            entries.iter().map(|entry| entry.position.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs("a", None, 100), [3, 4, 5, 6, 7, 8]);
        assert_eq!(seqs("b", None, 3), [10, 11, 12]);
        assert_eq!(seqs("a", Some(at(6)), 2), [4, 5]);
        assert_eq!(seqs("a", Some(Position { epoch: 8, seq: 0 }), 2), [7, 8], "a later epoch is after everything");
        assert_eq!(seqs("a", Some(Position { epoch: 6, seq: 99 }), 2), [0; 0], "an older one is before");
    }
}
