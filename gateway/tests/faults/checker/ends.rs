//! How connections end, how soon it all goes on, and what it takes (I8, I9).

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verdict;
use super::places::Member;
use crate::history::{At, ClientNo, Event, History, Record};

/// How long after the end of the last blow publications are refused or not delivered at most, in milliseconds.
const RECOVERY_MAX_MS: u64 = 10_000;

/// What a gateway with hundreds of clients may take, in bytes: several times what it takes in peace.
pub(crate) const RSS_MAX: u64 = 512 << 20;

pub(super) fn check(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
    if history.rss_max > RSS_MAX {
        verdict.violation("I8", || format!("a gateway had {} bytes, {RSS_MAX} are allowed", history.rss_max));
    }
    closes(history, verdict);
    recovery(history, members, verdict);
    told_needlessly(history, members, verdict);
    for record in &history.records {
        let Record::Event(Event::Nack { t, c, what, code }) = record else { continue };
        if *t > history.healed_at + RECOVERY_MAX_MS {
            let after = t - history.healed_at;
            verdict
                .violation("I9", || format!("c{c}: {what} was refused ({code}) {after} ms after everything was back"));
        }
    }
}

/// Who came in when its node was about to notice a loss is sent away once more, this soon after, in milliseconds:
/// as if it had been refused.
const JUST_IN_MS: u64 = 1_000;

fn closes(history: &History, verdict: &mut Verdict) {
    let mut on: HashMap<ClientNo, At> = HashMap::new();
    for record in &history.records {
        match record {
            Record::Event(Event::Member { t, c, on: true, .. } | Event::On { t, c, .. }) => {
                on.insert(*c, *t);
            }
            // Who was not in yet was refused, not closed.
            Record::Event(Event::Off { t, c, code, own }) => {
                let Some(since) = on.remove(c) else { continue };
                let just_in = t.saturating_sub(since) <= JUST_IN_MS;
                let sent_away = history.allowed.loss && code == "4003" && just_in;
                if !own && !sent_away && !history.allowed.closes.contains(&code.as_str()) {
                    verdict.violation("I9", || format!("c{c} was closed with {code}"));
                }
            }
            _ => {}
        }
    }
}

/// The time until, on every node, a client of every tenant has received something that was sent afterwards.
fn recovery(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
    let mut node_of: HashMap<ClientNo, usize> = HashMap::new();
    let mut sent: HashMap<String, At> = HashMap::new();
    let mut first: BTreeMap<(String, usize), At> = BTreeMap::new();
    for record in &history.records {
        match record {
            Record::Event(Event::Member { c, node, .. } | Event::On { c, node, .. }) => {
                node_of.insert(*c, *node);
            }
            Record::Event(Event::Sent { t, c, first, last, .. }) if *t >= history.healed_at => {
                let Some(member) = members.get(c) else { continue };
                sent.extend((*first..=*last).map(|n| (format!("{}/c{c}:{n}", member.tenant), *t)));
            }
            Record::Got(got) if sent.contains_key(&got.key) => {
                let (Some(member), Some(node)) = (members.get(&got.client), node_of.get(&got.client)) else { continue };
                first.entry((member.tenant.clone(), *node)).or_insert(got.at);
            }
            _ => {}
        }
    }
    let tenants: HashSet<_> = members.values().map(|member| member.tenant.clone()).collect();
    let mut slowest = 0;
    for tenant in tenants {
        for node in 0..history.nodes {
            match first.get(&(tenant.clone(), node)) {
                Some(at) => slowest = slowest.max(at.saturating_sub(history.healed_at)),
                None => verdict.violation("I9", || format!("{tenant}: node {node} never delivered again")),
            }
        }
    }
    verdict.counts.recovery_ms = Some(slowest);
    if slowest > RECOVERY_MAX_MS {
        verdict.violation("I9", || format!("it took {slowest} ms until all nodes delivered again"));
    }
}

/// Where nothing was lost nobody is told so.
fn told_needlessly(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
    if history.allowed.loss {
        return;
    }
    for record in &history.records {
        let (client, what) = match record {
            Record::Event(Event::Reset { c, .. }) => (c, "was told of a loss"),
            Record::Event(Event::On { c, recovered: Some(false), .. }) => (c, "was not recovered"),
            _ => continue,
        };
        // Socket.IO clients recover only where the tenant has it so: where none does, none is expected to.
        let expected = members.get(client).is_some_and(|member| member.json) || verdict.counts.socketio_recovers;
        if expected {
            verdict.violation("I9", || format!("c{client} {what}, although nothing was lost"));
        }
    }
    if verdict.counts.acked_lost > 0 {
        let lost = verdict.counts.acked_lost;
        verdict.violation("I3", || format!("{lost} acknowledged publications were lost, where none may be"));
    }
}
