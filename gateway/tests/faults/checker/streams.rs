//! Each client's stream: in order, whole, once, or with a word about the loss (I1, I2).

use std::collections::{HashMap, HashSet};

use super::Verdict;
use super::places::{Member, Places, Truth};
use crate::history::{ClientNo, Event, Fate, Got, History, Log, Pos, Record, WHOLE};

/// A room that a client is in: what it is owed.
#[derive(Debug, Default)]
struct Stay {
    /// From here on everything; `None`: not known yet.
    from: Option<Pos>,
    got: HashSet<Pos>,
    /// Its joining was asked for and never answered: it may lie behind what comes of other rooms.
    unanswered: bool,
}

/// What a client has been through.
struct Stream<'a> {
    client: ClientNo,
    member: &'a Member,
    places: &'a Places,
    log: &'a Log,
    rooms: HashMap<String, Stay>,
    /// Rooms whose joining or leaving was asked for and not answered.
    unclear: HashSet<String>,
    /// The latest position, and what was there.
    last: Option<Pos>,
    /// Was it told of a loss since then?
    told: bool,
    /// While it is away: where it was when its connection ended. What comes before the word on whether it was
    /// recovered belongs to the old session if it was, and to the new one if not.
    away: Option<Option<Pos>>,
    /// A loss that it must have been told of, if it turns out to be recovered.
    passed: Option<String>,
    /// What came meanwhile of rooms that it is not in, as far as it knows.
    strays: Vec<(String, Pos)>,
    /// May the log have lost memberships?
    loss: bool,
}

pub(super) fn check(history: &History, members: &HashMap<ClientNo, Member>, truth: &Truth, verdict: &mut Verdict) {
    let (no_places, no_log) = (Places::default(), Log::default());
    let mut streams: HashMap<ClientNo, Stream<'_>> = HashMap::new();
    for (client, member) in members {
        let places = truth.tenants.get(&member.tenant).unwrap_or(&no_places);
        let log = history.logs.get(&member.tenant).unwrap_or(&no_log);
        let (rooms, unclear) = (HashMap::new(), HashSet::new());
        let stream = Stream {
            client: *client,
            member,
            places,
            log,
            rooms,
            unclear,
            last: None,
            told: false,
            away: None,
            passed: None,
            strays: Vec::new(),
            loss: history.allowed.loss && !log.survivors.is_empty(),
        };
        streams.insert(*client, stream);
    }
    for record in &history.records {
        let client = match record {
            Record::Got(got) => Some(got.client),
            Record::Event(event) => client_of(event),
        };
        let Some(stream) = client.and_then(|client| streams.get_mut(&client)) else { continue };
        match record {
            Record::Got(got) => stream.got(got, verdict),
            Record::Event(event) => stream.on(event, verdict),
        }
    }
}

fn client_of(event: &Event) -> Option<ClientNo> {
    match event {
        Event::Member { c, .. }
        | Event::On { c, .. }
        | Event::Off { c, .. }
        | Event::Joining { c, .. }
        | Event::Joined { c, .. }
        | Event::Leaving { c, .. }
        | Event::Left { c, .. }
        | Event::Reset { c, .. }
        | Event::Bad { c, .. }
        | Event::End { c, .. } => Some(*c),
        _ => None,
    }
}

impl Stream<'_> {
    fn name(&self) -> String {
        format!("{}/c{} ({})", self.member.tenant, self.client, if self.member.json { "json" } else { "socket.io" })
    }

    fn got(&mut self, got: &Got, verdict: &mut Verdict) {
        if got.key.split_once('/').is_some_and(|(tenant, _)| tenant != self.member.tenant) {
            return; // told as I5
        }
        let Some(pos) = got.pos.or_else(|| self.places.place(&got.room, &got.key)) else {
            // Lost and published again: without a position it could be either.
            if let Some(stay) = self.rooms.get_mut(&got.room) {
                stay.got.extend(self.places.all(&got.room, &got.key));
            }
            return;
        };
        match self.last {
            Some(last) if pos == last => {
                verdict.violation("I2", || format!("{} received {pos} ({}) twice", self.name(), got.key));
                return;
            }
            Some(last) if pos < last => {
                verdict.violation("I1", || format!("{} received {pos} ({}) after {last}", self.name(), got.key));
                if let Some(stay) = self.rooms.get_mut(&got.room) {
                    stay.got.insert(pos);
                }
                return;
            }
            Some(last) if pos.epoch > last.epoch && !self.told && self.log.fate(last) == Fate::Lost => {
                let text = format!("{} saw {last}, which was lost, and was not told before {pos}", self.name());
                if self.away.is_some() {
                    self.passed.get_or_insert(text);
                } else {
                    verdict.violation("I2", || text);
                }
            }
            _ => {}
        }
        self.last = Some(pos);
        self.told = false;
        for (room, stay) in &mut self.rooms {
            // Whatever comes after the answer to a join lies behind the join.
            if !stay.unanswered || *room == got.room {
                stay.from = Some(stay.from.map_or(pos, |from| from.min(pos)));
            }
        }
        if let Some(stay) = self.rooms.get_mut(&got.room) {
            stay.got.insert(pos);
        } else if self.away.is_some() {
            self.strays.push((got.room.clone(), pos));
        } else if self.unclear.contains(&got.room) {
            // The join was applied before it was answered: from here on the room is owed.
            if !self.left_unclear(&got.room) {
                let stay = Stay { from: Some(pos), got: HashSet::from([pos]), unanswered: true };
                self.rooms.insert(got.room.clone(), stay);
            }
        } else {
            verdict.violation("I2", || format!("{} received {pos} in {}, where it is not", self.name(), got.room));
        }
    }

    /// Is it a leave, not a join, that is not answered yet?
    fn left_unclear(&self, room: &str) -> bool {
        self.unclear.contains(&format!("-{room}"))
    }

    fn on(&mut self, event: &Event, verdict: &mut Verdict) {
        match event {
            Event::Member { t, rooms, .. } | Event::Joined { t, rooms, .. } => self.joined(*t, rooms),
            Event::Off { .. } => self.away = Some(self.last),
            Event::On { t, recovered: Some(true), rooms, refused, .. } => {
                let left_at = self.away.take().unwrap_or(self.last);
                // Some may be of before a leave that is not answered, or that was lost.
                for (room, pos) in std::mem::take(&mut self.strays) {
                    let known =
                        self.unclear.contains(&room) || rooms.as_ref().is_some_and(|rooms| rooms.contains(&room));
                    if !known {
                        verdict
                            .violation("I2", || format!("{} received {pos} in {room}, where it is not", self.name()));
                    }
                }
                if let Some(text) = self.passed.take() {
                    verdict.violation("I2", || text);
                }
                let unanswered: Vec<_> = self.unclear.iter().filter(|room| !self.left_unclear(room)).cloned().collect();
                self.unclear.retain(|room| rooms.is_none() && !room.starts_with('-'));
                if let Some(rooms) = rooms {
                    let refused = refused.as_deref().unwrap_or_default();
                    let gone: Vec<_> = self.rooms.keys().filter(|room| !rooms.contains(room)).cloned().collect();
                    for room in gone {
                        self.close(&room, if self.loss { left_at } else { self.last }, verdict);
                        // A join that the log lost: the client is told by what it is in.
                        if !refused.contains(&room) && !self.loss {
                            verdict.violation("I2", || format!("{} recovered without {room}", self.name()));
                        }
                    }
                    self.joined(*t, rooms);
                    for room in unanswered {
                        if let Some(stay) = self.rooms.get_mut(&room) {
                            stay.unanswered = true;
                        }
                    }
                }
            }
            Event::On { .. } => {
                let until = self.away.take().unwrap_or(self.last);
                self.close_all(until, verdict);
                self.passed = None;
                self.strays.clear();
                // It begins anew. Where an old master goes on beside the new one, that may be further back.
                self.last = None;
                self.unclear.clear();
                self.told = true;
            }
            Event::Joining { rooms, .. } => {
                for room in rooms {
                    self.unclear.remove(&format!("-{room}"));
                    self.unclear.insert(room.clone());
                }
            }
            Event::Leaving { rooms, .. } => {
                for room in rooms {
                    self.close(room, self.last, verdict);
                    self.unclear.insert(room.clone());
                    self.unclear.insert(format!("-{room}"));
                }
            }
            Event::Left { rooms, .. } => {
                for room in rooms {
                    self.unclear.remove(room);
                    self.unclear.remove(&format!("-{room}"));
                }
            }
            Event::Reset { pos, .. } => self.reset(pos.as_deref().and_then(Pos::parse), verdict),
            Event::Bad { what, data, .. } => verdict.violation("I1", || format!("{}: {what}: {data}", self.name())),
            Event::End { on, .. } => {
                let end = Pos { epoch: u64::MAX, seq: u64::MAX, part: WHOLE };
                self.close_all(if *on { Some(end) } else { self.last }, verdict);
            }
            _ => {}
        }
    }

    fn joined(&mut self, at: u64, rooms: &[String]) {
        for room in rooms {
            self.unclear.remove(room);
            let from = self.places.sent_after(at);
            let stay = self.rooms.entry(room.clone()).or_default();
            stay.from = stay.from.or(from);
        }
    }

    /// The loss is admitted: what is owed begins anew behind `pos`.
    fn reset(&mut self, pos: Option<Pos>, verdict: &mut Verdict) {
        let rooms: Vec<_> = self.rooms.keys().cloned().collect();
        self.close_all(self.last, verdict);
        let mut from = pos.map(|pos| Pos { seq: pos.seq + 1, part: 0, ..pos });
        if let (Some(to), Some(last)) = (pos, self.last)
            && to < last
            && self.log.fate(last) == Fate::Kept
        {
            verdict.violation("I1", || format!("{} was set back to {to}, although it has {last}", self.name()));
            from = Some(Pos { seq: last.seq + 1, part: 0, ..last });
        }
        for room in rooms {
            self.rooms.insert(room, Stay { from, ..Stay::default() });
        }
        self.told = true;
    }

    fn close_all(&mut self, until: Option<Pos>, verdict: &mut Verdict) {
        let rooms: Vec<_> = self.rooms.keys().cloned().collect();
        for room in rooms {
            self.close(&room, until, verdict);
        }
    }

    /// The stay in a room is over: was everything there?
    fn close(&mut self, room: &str, until: Option<Pos>, verdict: &mut Verdict) {
        let Some(Stay { from: Some(from), got, .. }) = self.rooms.remove(room) else { return };
        let (Some(until), Some(published)) = (until, self.places.rooms.get(room)) else { return };
        if from > until {
            return;
        }
        for (pos, key) in published.range(from..=until) {
            if !got.contains(pos) && self.log.fate(*pos) == Fate::Kept {
                let seen = self.last.map_or("nothing".into(), |last| last.to_string());
                verdict.violation("I2", || {
                    format!("{} missed {pos} ({key}) in {room}; its last was {seen}, owed from {from}", self.name())
                });
            }
        }
    }
}
