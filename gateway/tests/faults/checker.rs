//! Does a run keep the invariants? Pure: a history in, what is wrong with it out.
//!
//! | | invariant |
//! |---|---|
//! | I1 | every client's publications come in the order of the log; two clients agree on what is at a position |
//! | I2 | a client that was not told of a loss got everything of its rooms, once |
//! | I3 | what was acknowledged is in the log, unless the log began anew (counted) |
//! | I4 | no publication is in the log twice |
//! | I5 | nothing of another tenant is delivered |
//! | I6 | who is in a room is who is connected; joins and leaves of a user alternate |
//! | I7 | every visitor has one outcome; no timer is lost |
//! | I8 | memory stays bounded |
//! | I9 | recovery within 10 s; no client is closed because of Redis, but for those that come in as a loss is noticed |
//! | I10 | the key view equals presence |

mod ends;
mod outcomes;
mod places;
mod presence;
mod streams;

use std::collections::{BTreeMap, HashMap};

use crate::history::{ClientNo, Event, History, Record};

/// Violations of one invariant that are described; the others are only counted.
const DESCRIBED_MAX: usize = 5;

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    violations: BTreeMap<&'static str, (usize, Vec<String>)>,
    pub(crate) counts: Counts,
    /// Invariants that could not be looked at, with the reason.
    pub(crate) unchecked: Vec<String>,
    /// How late the time-out of each visitor was, in milliseconds.
    lateness: BTreeMap<(String, String), u64>,
}

/// What is reported beside violations.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) published: usize,
    pub(crate) acked: usize,
    pub(crate) nacked: usize,
    pub(crate) deliveries: usize,
    /// Acknowledged publications that the log lost when it began anew.
    pub(crate) acked_lost: usize,
    /// Times that a client was told that publications are lost.
    pub(crate) resets: usize,
    pub(crate) recovered: usize,
    pub(crate) unrecovered: usize,
    pub(crate) refused: usize,
    /// Epochs that the logs have been through.
    pub(crate) epochs: usize,
    pub(crate) visitors: usize,
    /// Visitors whose registration or outcome the log lost.
    pub(crate) visitors_lost: usize,
    pub(crate) lateness_max_ms: u64,
    /// Memberships of connections that are gone, where their time is not over.
    pub(crate) leftovers: usize,
    /// Joins or leaves of a user that were told twice in a row after a loss.
    pub(crate) presence_repeats: usize,
    pub(crate) recovery_ms: Option<u64>,
    pub(crate) rss_max: u64,
    /// Did any Socket.IO client recover?
    pub(crate) socketio_recovers: bool,
}

impl Verdict {
    fn violation(&mut self, invariant: &'static str, text: impl FnOnce() -> String) {
        let (count, described) = self.violations.entry(invariant).or_default();
        *count += 1;
        if described.len() < DESCRIBED_MAX {
            described.push(text());
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.violations.values().map(|(count, _)| count).sum()
    }

    /// Invariant, how often, and the first few in words.
    pub(crate) fn violations(&self) -> impl Iterator<Item = (&'static str, usize, &[String])> {
        self.violations.iter().map(|(invariant, (count, described))| (*invariant, *count, described.as_slice()))
    }
}

/// Looks at everything.
pub(crate) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let members = places::members(history);
    count(history, &members, &mut verdict.counts);
    if !verdict.counts.socketio_recovers {
        verdict.unchecked.push("I2 across connections for Socket.IO: none of its clients recovered".into());
    }
    let truth = places::Truth::of(history, &members, &mut verdict);
    streams::check(history, &members, &truth, &mut verdict);
    outcomes::check(history, &members, &truth, &mut verdict);
    presence::check(history, &members, &mut verdict);
    ends::check(history, &members, &mut verdict);
    verdict
}

fn count(history: &History, members: &HashMap<ClientNo, places::Member>, counts: &mut Counts) {
    for record in &history.records {
        match record {
            Record::Got(_) => counts.deliveries += 1,
            Record::Event(Event::Sent { first, last, .. }) => counts.published += (last - first + 1) as usize,
            Record::Event(Event::Acked { first, last, .. }) => counts.acked += (last - first + 1) as usize,
            Record::Event(Event::Nack { .. }) => counts.nacked += 1,
            Record::Event(Event::Reset { .. }) => counts.resets += 1,
            Record::Event(Event::Refused { .. }) => counts.refused += 1,
            Record::Event(Event::On { c, recovered: Some(true), .. }) => {
                counts.recovered += 1;
                counts.socketio_recovers |= members.get(c).is_some_and(|member| !member.json);
            }
            Record::Event(Event::On { recovered: Some(false), .. }) => counts.unrecovered += 1,
            Record::Event(_) => {}
        }
    }
    counts.epochs = history.logs.values().map(|log| log.survivors.len() + 1).sum();
    counts.rss_max = history.rss_max;
}
