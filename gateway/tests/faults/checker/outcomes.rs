//! Visitors: one outcome each, and no timer is lost (I7).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Verdict;
use super::places::{Member, Truth};
use crate::history::{ClientNo, Event, Fate, History, Log, Pos, Record};

/// What is known of one visitor.
#[derive(Debug, Default)]
struct Visitor<'a> {
    /// The entries in which it was asked for.
    requests: BTreeSet<Pos>,
    /// The entries with an outcome, and the outcome.
    outcomes: BTreeSet<(Pos, &'a str)>,
    /// Was its registration acknowledged; when does its waiting end?
    expires_at: Option<u64>,
    answers_taken: usize,
}

pub(super) fn check(history: &History, members: &HashMap<ClientNo, Member>, truth: &Truth, verdict: &mut Verdict) {
    let mut visitors: BTreeMap<(&str, &str), Visitor<'_>> = BTreeMap::new();
    for (tenant, places) in &truth.tenants {
        for ((_, key), at) in &places.of {
            let Some((id, event)) = key.strip_prefix("v:").and_then(|rest| rest.rsplit_once(':')) else { continue };
            let visitor = visitors.entry((tenant, id)).or_default();
            let entries = at.iter().map(|pos| Pos { part: 0, ..*pos });
            if event == "visitor_request" {
                visitor.requests.extend(entries);
            } else {
                visitor.outcomes.extend(entries.map(|pos| (pos, event)));
            }
        }
    }
    for record in &history.records {
        match record {
            Record::Event(Event::Visitor { tenant, id, expires_at, .. }) => {
                visitors.entry((tenant, id)).or_default().expires_at = Some(*expires_at);
            }
            Record::Event(Event::Answered { c, id, ok: true }) => {
                if let Some(member) = members.get(c) {
                    visitors.entry((&member.tenant, id)).or_default().answers_taken += 1;
                }
            }
            Record::Got(got) => {
                let timed_out = got.key.strip_prefix("v:").and_then(|rest| rest.strip_suffix(":visitor_timeout"));
                let (Some(id), Some(member)) = (timed_out, members.get(&got.client)) else { continue };
                let expires_at = visitors.get(&(&*member.tenant, id)).and_then(|visitor| visitor.expires_at);
                // Only what came while the client was there: a replay says when the client came back.
                if let Some(expires_at) = expires_at {
                    let lateness = got.at.saturating_sub(expires_at);
                    let least = verdict.lateness.entry((member.tenant.clone(), id.to_owned())).or_insert(lateness);
                    *least = lateness.min(*least);
                }
            }
            Record::Event(_) => {}
        }
    }
    verdict.counts.visitors = visitors.len();
    verdict.counts.lateness_max_ms = verdict.lateness.values().copied().max().unwrap_or(0);
    if let Some(max) = history.allowed.lateness_max_ms {
        let late = verdict.lateness.iter().filter(|(_, ms)| **ms > max);
        let late: Vec<_> =
            late.map(|((tenant, id), ms)| format!("{tenant} {id}: the time-out came {ms} ms late")).collect();
        for text in late {
            verdict.violation("I7", || text);
        }
    }
    let no_log = Log::default();
    for ((tenant, id), visitor) in &visitors {
        judge(tenant, id, visitor, history.logs.get(*tenant).unwrap_or(&no_log), verdict);
    }
}

fn judge(tenant: &str, id: &str, visitor: &Visitor<'_>, log: &Log, verdict: &mut Verdict) {
    let kept = |pos: &Pos| log.fate(*pos) == Fate::Kept;
    let outcomes: Vec<_> = visitor.outcomes.iter().filter(|(pos, _)| kept(pos)).collect();
    let lost = visitor.outcomes.len() > outcomes.len() || visitor.requests.iter().any(|pos| !kept(pos));
    match outcomes.as_slice() {
        [_] if visitor.answers_taken > 1 && !lost => {
            let taken = visitor.answers_taken;
            verdict.violation("I7", || format!("{tenant}: {taken} answers about visitor {id} were taken"));
        }
        [_] => {}
        [] if lost => verdict.counts.visitors_lost += 1,
        [] if visitor.requests.is_empty() && visitor.expires_at.is_some() => {
            // Acknowledged, but nothing of it is anywhere.
            if log.survivors.is_empty() {
                verdict.violation("I3", || format!("{tenant}: visitor {id} was registered, the log has nothing of it"));
            } else {
                verdict.counts.visitors_lost += 1;
            }
        }
        [] => verdict.violation("I7", || {
            let at = visitor.requests.first().map_or("nowhere".into(), Pos::to_string);
            format!("{tenant}: visitor {id}, asked for at {at}, has no outcome")
        }),
        more => verdict.violation("I7", || {
            let all: Vec<_> = more.iter().map(|(pos, event)| format!("{event} at {pos}")).collect();
            format!("{tenant}: visitor {id} has {} outcomes: {}", more.len(), all.join(", "))
        }),
    }
}
