//! What is where: the publications that there were, each with its place in the log (I1, I3, I4, I5).

use std::collections::{BTreeMap, HashMap};

use super::Verdict;
use crate::history::{At, ClientNo, Event, Fate, History, Pos, Record, WHOLE};

/// Who takes part.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) tenant: String,
    /// Is it told positions and whether it recovered? Socket.IO clients only where the tenant has it so.
    pub(super) json: bool,
}

pub(super) fn members(history: &History) -> HashMap<ClientNo, Member> {
    let member = |record: &Record| match record {
        Record::Event(Event::Member { c, tenant, kind, .. }) => {
            Some((*c, Member { tenant: tenant.clone(), json: kind == "json" }))
        }
        _ => None,
    };
    history.records.iter().filter_map(member).collect()
}

/// The publications of one tenant.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// What is in which room where.
    pub(super) rooms: HashMap<String, BTreeMap<Pos, String>>,
    /// Where each publication is; more than one place only when the first was lost.
    pub(super) of: HashMap<(String, String), Vec<Pos>>,
    /// When what was sent, by time, with the least position of it and all that was sent later.
    later: Vec<(At, Pos)>,
}

impl Places {
    fn put(&mut self, tenant: &str, room: &str, pos: Pos, key: &str, verdict: &mut Verdict) {
        let there = self.rooms.entry(room.to_owned()).or_default();
        match there.get(&pos) {
            None => {
                there.insert(pos, key.to_owned());
                let places = self.of.entry((room.to_owned(), key.to_owned())).or_default();
                places.push(pos);
                places.sort_unstable();
            }
            Some(known) if known == key => {}
            Some(known) => {
                verdict.violation("I1", || format!("{tenant} {room} {pos} is {known} to one and {key} to another"));
            }
        }
    }

    /// Where a publication is, if there is one place only.
    pub(super) fn place(&self, room: &str, key: &str) -> Option<Pos> {
        match self.all(room, key) {
            [only] => Some(*only),
            _ => None,
        }
    }

    /// All the places of a publication.
    pub(super) fn all(&self, room: &str, key: &str) -> &[Pos] {
        self.of.get(&(room.to_owned(), key.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// The least position of what the swarm sent after a moment: all of it is behind what it had done before.
    pub(super) fn sent_after(&self, at: At) -> Option<Pos> {
        let index = self.later.partition_point(|(sent, _)| *sent <= at);
        self.later.get(index).map(|(_, pos)| *pos)
    }
}

/// The publications of all tenants.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) tenants: HashMap<String, Places>,
}

impl Truth {
    /// From the log, from what clients received, and from what was acknowledged.
    pub(super) fn of(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) -> Truth {
        let mut truth = Truth::default();
        for (tenant, log) in &history.logs {
            for text in &log.rewritten {
                verdict.violation("I1", || format!("{tenant}: {text}"));
            }
            let places = truth.tenants.entry(tenant.clone()).or_default();
            for ((epoch, seq), published) in &log.entries {
                for one in published {
                    let pos = Pos { epoch: *epoch, seq: *seq, part: one.part };
                    places.put(tenant, &one.room, pos, &one.key, verdict);
                }
            }
        }
        truth.received(history, members, verdict);
        truth.acknowledged(history, members, verdict);
        truth.once(history, verdict);
        truth.sent(history, members);
        truth
    }

    fn received(&mut self, history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
        for record in &history.records {
            let Record::Got(got) = record else { continue };
            let Some(member) = members.get(&got.client) else { continue };
            let foreign = got.key.split_once('/').is_some_and(|(tenant, _)| tenant != member.tenant);
            if foreign {
                let (tenant, key) = (&member.tenant, &got.key);
                verdict.violation("I5", || format!("a client of {tenant} received {key} in {}", got.room));
            } else if let Some(pos) = got.pos {
                if history.logs.get(&member.tenant).is_some_and(|log| log.fate(pos) == Fate::Missing) {
                    verdict.violation("I1", || {
                        format!("c{} received {} at {pos}, where the log has nothing", got.client, got.key)
                    });
                }
                let places = self.tenants.entry(member.tenant.clone()).or_default();
                places.put(&member.tenant, &got.room, pos, &got.key, verdict);
            }
        }
    }

    fn acknowledged(&mut self, history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
        let mut rooms_of: HashMap<(ClientNo, u64), &[String]> = HashMap::new();
        for record in &history.records {
            match record {
                Record::Event(Event::Sent { c, first, rooms, .. }) => {
                    rooms_of.insert((*c, *first), rooms);
                }
                Record::Event(Event::Acked { c, first, last, pos }) => {
                    let (Some(member), Some(pos)) = (members.get(c), Pos::parse(pos)) else { continue };
                    let tenant = &member.tenant;
                    let log = history.logs.get(tenant);
                    match log.map_or(Fate::Kept, |log| log.fate(pos)) {
                        Fate::Kept => {}
                        Fate::Lost => verdict.counts.acked_lost += (last - first + 1) as usize,
                        Fate::Missing => verdict.violation("I3", || {
                            format!("{tenant}/c{c}:{first} was acknowledged at {pos}, where the log has nothing")
                        }),
                    }
                    let places = self.tenants.entry(tenant.clone()).or_default();
                    let rooms = rooms_of.remove(&(*c, *first)).unwrap_or_default();
                    for (index, room) in rooms.iter().enumerate() {
                        let part = if index + 1 == rooms.len() { WHOLE } else { index };
                        let key = format!("{tenant}/c{c}:{}", first + index as u64);
                        places.put(tenant, room, Pos { part, ..pos }, &key, verdict);
                    }
                }
                _ => {}
            }
        }
    }

    /// Each publication has one place; another only after the log has lost the first.
    fn once(&self, history: &History, verdict: &mut Verdict) {
        for (tenant, places) in &self.tenants {
            let Some(log) = history.logs.get(tenant) else { continue };
            for ((room, key), at) in &places.of {
                let kept: Vec<_> = at.iter().filter(|pos| log.fate(**pos) == Fate::Kept).collect();
                if kept.len() > 1 {
                    let (one, two) = (kept[0], kept[1]);
                    verdict.violation("I4", || format!("{key} is in {tenant} {room} at {one} and at {two}"));
                }
            }
        }
    }

    fn sent(&mut self, history: &History, members: &HashMap<ClientNo, Member>) {
        for record in &history.records {
            let Record::Event(Event::Sent { t, c, first, rooms, .. }) = record else { continue };
            let Some(member) = members.get(c) else { continue };
            let places = self.tenants.entry(member.tenant.clone()).or_default();
            let key = format!("{}/c{c}:{first}", member.tenant);
            let at = rooms.first().and_then(|room| places.of.get(&(room.clone(), key)));
            // What was lost says nothing: an old master may go on for a while beside the new one.
            let kept = |pos: &&Pos| history.logs.get(&member.tenant).is_none_or(|log| log.fate(**pos) == Fate::Kept);
            if let Some(pos) = at.and_then(|at| at.iter().find(kept)) {
                places.later.push((*t, Pos { part: 0, ..*pos }));
            }
        }
        for places in self.tenants.values_mut() {
            places.later.sort_unstable();
            let mut least = None;
            for (_, pos) in places.later.iter_mut().rev() {
                let now = least.map_or(*pos, |least: Pos| least.min(*pos));
                *pos = now;
                least = Some(now);
            }
        }
    }
}
