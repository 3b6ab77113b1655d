//! The nodes among each other: who lives, who is counted as gone, and which partitions are whose.
//!
//! Each engine is an *incarnation* with a lease that it renews by Redis's clock. One whose lease ended is moved to
//! the dead, for good, by any other; from then on it registers no connection (the partitions fence it), and what it
//! had registered is taken out one by one. A node that was only slow notices, and goes on as a new incarnation.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::follow::unexpected;
use super::frame::ahead;
use super::keys::{self, PARTITIONS};
use super::router::{Route, Router};
use super::script;
use crate::client::random_id;
use crate::commit::{Millis, now_ms};
use crate::engine::{EngineError, NodeStat};
use crate::tenant::TenantId;

/// How long the dead are remembered, in milliseconds (a day): a node that was stopped for longer comes back as if
/// it was new.
pub(super) const DEAD_KEPT_MS: Millis = 24 * 3_600_000;

/// How a node that lives shows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    /// How often.
    pub(super) beat: Duration,
    /// For how long it counts.
    pub(super) lease: Duration,
}

/// This node among the others.
pub(super) struct Nodes {
    pub(super) router: Arc<Router>,
    /// To where the nodes are kept.
    route: Route,
    rhythm: Rhythm,
    incarnation: Mutex<Arc<str>>,
    stat: Mutex<NodeStat>,
    seen: Mutex<Seen>,
    /// Something makes a beat urgent.
    wake: Notify,
    /// Held while a beat is on its way: none comes after the last word.
    shown: AsyncMutex<Shown>,
    /// Are the leases on the server that has a tenant's registry too?
    leases_at_hand: bool,
}

/// What this node has said of itself.
#[derive(Debug, Default)]
struct Shown {
    /// It serves nobody any more.
    retired: bool,
    /// When it began to say that it lives, the last time that it was heard.
    at: Option<Instant>,
}

/// The tenants of a node that retired whose connections still keep their places.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept(Vec<String>);

impl Kept {
    /// Reads `<tenant>=<until>;…`.
    fn of(text: &str, now: Millis) -> Kept {
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        let still = pairs.filter(|(_, until)| until.parse::<Millis>().is_ok_and(|until| until > now));
        Kept(still.map(|(tenant, _)| tenant.to_owned()).collect())
    }

    pub(super) fn has(&self, tenant: &TenantId) -> bool {
        self.0.iter().any(|kept| kept == tenant.as_str())
    }
}

/// What the last beat answered.
#[derive(Debug, Default)]
struct Seen {
    /// Those that live and serve.
    others: Vec<NodeStat>,
    /// The dead whose connections are not all taken out.
    unfinished: Vec<String>,
    /// The partitions that are this node's to look after.
    partitions: Vec<usize>,
}

/// Another incarnation.
struct Other {
    incarnation: String,
    left_ms: i64,
    /// `None`: it serves nobody any more.
    stat: Option<NodeStat>,
}

enum Beat {
    /// This incarnation is dead.
    Fenced,
    Heard {
        others: Vec<Other>,
        unfinished: Vec<String>,
        generation: Arc<str>,
    },
}

/// Since when this node has been in touch without a break.
struct Contact {
    generation: Arc<str>,
    since: Instant,
    last: Instant,
}

impl Contact {
    /// Whoever was away itself, or finds a server with another history, cannot say who else is.
    fn after(before: Option<Contact>, generation: Arc<str>, rhythm: Rhythm) -> Contact {
        let now = Instant::now();
        match before {
            Some(before) if before.generation == generation && now - before.last < rhythm.lease / 2 => {
                Contact { last: now, ..before }
            }
            _ => Contact { generation, since: now, last: now },
        }
    }
}

impl Nodes {
    pub(super) fn new(router: Arc<Router>, rhythm: Rhythm, leases_at_hand: bool) -> Nodes {
        let seen = Seen { partitions: (0..PARTITIONS).collect(), ..Seen::default() };
        Nodes {
            route: router.to_key(keys::NODES),
            router,
            rhythm,
            incarnation: Mutex::new(random_id().into()),
            stat: Mutex::default(),
            seen: Mutex::new(seen),
            wake: Notify::new(),
            shown: AsyncMutex::default(),
            leases_at_hand,
        }
    }

    /// Under which this node registers connections now.
    pub(super) fn incarnation(&self) -> Arc<str> {
        self.incarnation.lock().clone()
    }

    /// The key of the leases, for scripts that register connections; `None`: another server may have it.
    pub(super) fn leases(&self) -> Option<&'static str> {
        self.leases_at_hand.then_some(keys::NODES)
    }

    pub(super) fn report(&self, stat: NodeStat) {
        let mut known = self.stat.lock();
        if known.server != stat.server {
            self.wake.notify_one();
        }
        *known = stat;
    }

    /// Those that live, this one first.
    pub(super) fn all(&self) -> Vec<NodeStat> {
        let mut all = vec![self.stat.lock().clone()];
        all.extend(self.seen.lock().others.iter().cloned());
        all
    }

    /// Those that live, this one first, as Redis has them now.
    pub(super) async fn ask(&self) -> Result<Vec<NodeStat>, EngineError> {
        let mut shown = self.shown.lock().await;
        if !shown.retired
            && let Beat::Heard { others, unfinished, .. } = self.beat(&mut shown).await?
        {
            self.saw(&others, unfinished);
        }
        Ok(self.all())
    }

    /// The dead that left connections behind, as far as is known.
    pub(super) fn unfinished(&self) -> Vec<String> {
        self.seen.lock().unfinished.clone()
    }

    /// Nothing is left of a dead incarnation.
    pub(super) async fn finished(&self, incarnation: &str) -> Result<(), EngineError> {
        let link = self.route.link().await?;
        let mut commands = ::redis::pipe();
        commands.cmd("HDEL").arg(keys::KEPT).arg(incarnation).ignore();
        commands.cmd("SREM").arg(keys::UNFINISHED).arg(incarnation).ignore();
        commands.exec_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
        self.seen.lock().unfinished.retain(|other| other != incarnation);
        Ok(())
    }

    /// The partitions that are this node's to look after.
    pub(super) fn partitions(&self) -> Vec<usize> {
        self.seen.lock().partitions.clone()
    }

    /// An incarnation was found to be dead: if it is still this node's, the node goes on as another.
    pub(super) fn lost(&self, dead: &str) {
        let mut incarnation = self.incarnation.lock();
        if **incarnation != *dead {
            return;
        }
        *incarnation = random_id().into();
        drop(incarnation);
        metrics::counter!("lease_lost_total").increment(1);
        warn!("the other nodes have counted this one as gone: its connections end and come back");
        self.wake.notify_one();
    }

    /// Ends this node's lease when the first of its connections' places do.
    pub(super) async fn retire(&self, after_ms: &[(TenantId, Millis)]) -> Result<(), EngineError> {
        let mut shown = self.shown.lock().await;
        shown.retired = true;
        let incarnation = self.incarnation();
        let link = self.route.link().await?;
        let after: Vec<_> = after_ms.iter().map(|(tenant, after)| (tenant, ahead(*after).to_string())).collect();
        let mut arguments: Vec<&[u8]> = vec![incarnation.as_bytes()];
        arguments.extend(after.iter().flat_map(|(tenant, after)| [tenant.as_str().as_bytes(), after.as_bytes()]));
        let names = [keys::NODES, keys::STAT, keys::KEPT];
        let answer = script::RETIRE.run(&mut link.connection(), &names, &arguments).await;
        answer.map_err(|e| link.write_error(&e))?;
        if after_ms.iter().all(|(_, after)| *after == 0) {
            self.bury(&incarnation).await?;
        }
        Ok(())
    }

    /// Of a dead incarnation: until when the connections of tenants keep their places, by Redis's clock, if it retired.
    pub(super) async fn kept(&self, incarnation: &str) -> Result<Option<Kept>, EngineError> {
        let mut command = ::redis::cmd("HGET");
        command.arg(keys::KEPT).arg(incarnation);
        let kept: Option<String> = self.route.ask(&command).await?;
        let here = now_ms().saturating_add_signed(self.route.master()?.commands.ahead_ms());
        Ok(kept.map(|kept| Kept::of(&kept, here)))
    }

    /// Beats until it is dropped, or until the node retires.
    pub(super) async fn run(self: Arc<Self>) {
        let mut health = self.route.health();
        let mut contact = None;
        loop {
            let beat = {
                let mut shown = self.shown.lock().await;
                if shown.retired {
                    return;
                }
                self.beat(&mut shown).await
            };
            match beat {
                Ok(Beat::Fenced) => continue,
                Ok(Beat::Heard { others, unfinished, generation }) => {
                    let now = Contact::after(contact.take(), generation, self.rhythm);
                    if now.since.elapsed() >= self.rhythm.lease {
                        self.bury_expired(&others).await;
                    }
                    contact = Some(now);
                    self.saw(&others, unfinished);
                }
                Err(error) => {
                    contact = None;
                    debug!(%error, "this node could not say that it lives");
                }
            }
            tokio::select! {
                () = sleep(self.rhythm.beat) => {}
                () = self.wake.notified() => {}
                // At once on a server that is back: it may have forgotten everybody.
                changed = health.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says at once that this node lives: Redis may have forgotten it, and takes no connection of a node without a
    /// lease. Whoever asks while another does so waits for that.
    pub(super) async fn show(&self) -> Result<(), EngineError> {
        let asked = Instant::now();
        let mut shown = self.shown.lock().await;
        if shown.retired {
            return Err(EngineError::Unavailable("this node has retired".into()));
        }
        if shown.at.is_some_and(|at| at > asked) {
            return Ok(());
        }
        self.beat(&mut shown).await.map(drop)
    }

    async fn beat(&self, shown: &mut Shown) -> Result<Beat, EngineError> {
        let began = Instant::now();
        let incarnation = self.incarnation();
        let stat = serde_json::to_string(&*self.stat.lock()).unwrap_or_default();
        let lease = self.rhythm.lease.as_millis().to_string();
        let link = self.route.link().await?;
        let names = [keys::NODES, keys::STAT, keys::DEAD, keys::UNFINISHED];
        let arguments = [incarnation.as_bytes(), lease.as_bytes(), stat.as_bytes()];
        let answer = script::LEASE.run(&mut link.connection(), &names, &arguments).await;
        let beat = heard(answer.map_err(|e| link.write_error(&e))?, &link.generation)?;
        match beat {
            Beat::Fenced => self.lost(&incarnation),
            Beat::Heard { .. } => shown.at = Some(began),
        }
        Ok(beat)
    }

    async fn bury_expired(&self, others: &[Other]) {
        for other in others.iter().filter(|other| other.left_ms <= 0) {
            match self.bury(&other.incarnation).await {
                Ok(true) => {
                    info!(server = other.stat.as_ref().map_or("", |stat| &stat.server), "a node is counted as gone");
                    self.wake.notify_one();
                }
                Ok(false) => {}
                Err(error) => debug!(%error, "a node whose lease is over could not be counted as gone"),
            }
        }
    }

    /// Moves an incarnation to the dead if its lease is over. Was it this call?
    async fn bury(&self, incarnation: &str) -> Result<bool, EngineError> {
        let link = self.route.link().await?;
        let names = [keys::NODES, keys::STAT, keys::DEAD, keys::UNFINISHED];
        let kept = DEAD_KEPT_MS.to_string();
        let arguments = [incarnation.as_bytes(), kept.as_bytes()];
        match script::BURY.run(&mut link.connection(), &names, &arguments).await.map_err(|e| link.write_error(&e))? {
            Value::Int(did) => Ok(did == 1),
            other => Err(unexpected(&other)),
        }
    }

    fn saw(&self, others: &[Other], unfinished: Vec<String>) {
        let live: Vec<&Other> = others.iter().filter(|other| other.left_ms > 0 && other.stat.is_some()).collect();
        let incarnation = self.incarnation();
        let names: Vec<&str> = live.iter().map(|other| &*other.incarnation).collect();
        let mine = |partition: &usize| {
            let own = weight(&incarnation, *partition);
            names.iter().all(|other| (weight(other, *partition), *other) < (own, &*incarnation))
        };
        let partitions = (0..PARTITIONS).filter(mine).collect();
        let others: Vec<_> = live.iter().filter_map(|other| other.stat.clone()).collect();
        #[expect(clippy::cast_precision_loss, reason = "nodes are far fewer than 2^52")]
        metrics::gauge!("nodes").set((others.len() + 1) as f64);
        *self.seen.lock() = Seen { others, unfinished, partitions };
    }
}

/// Rendezvous hashing: the partition is looked after by the node that weighs most for it, and only its own move when
/// one comes or goes.
fn weight(incarnation: &str, partition: usize) -> u64 {
    xxh3_64(format!("{incarnation}/{partition}").as_bytes())
}

fn heard(answer: Value, generation: &Arc<str>) -> Result<Beat, EngineError> {
    let corrupt = |e: ::redis::ParsingError| EngineError::Corrupt(format!("a beat's answer: {e}"));
    let Value::Array(parts) = answer else { return Err(unexpected(&answer)) };
    let mut parts = parts.into_iter();
    let word: String = ::redis::from_redis_value(parts.next().unwrap_or_default()).map_err(corrupt)?;
    if word == "fenced" {
        return Ok(Beat::Fenced);
    }
    let others: Vec<(String, i64, String)> =
        ::redis::from_redis_value(parts.next().unwrap_or_default()).map_err(corrupt)?;
    let unfinished = ::redis::from_redis_value(parts.next().unwrap_or_default()).map_err(corrupt)?;
    let other = |(incarnation, left_ms, stat): (String, i64, String)| Other {
        incarnation,
        left_ms,
        stat: serde_json::from_str(&stat).ok(),
    };
    Ok(Beat::Heard { others: others.into_iter().map(other).collect(), unfinished, generation: generation.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_one_owner_and_keeps_it_when_another_node_goes() {
        let nodes = ["a", "b", "c"];
        let owner = |nodes: &[&'static str], partition| {
            nodes.iter().copied().max_by_key(|node| (weight(node, partition), *node)).unwrap()
        };
        let mut counts = std::collections::BTreeMap::new();
        for partition in 0..PARTITIONS {
            let with = owner(&nodes, partition);
            *counts.entry(with).or_insert(0) += 1;
            if with != "c" {
                assert_eq!(owner(&["a", "b"], partition), with);
            }
        }
        assert!(counts.values().all(|count| *count > PARTITIONS / 6), "{counts:?}");
    }

    #[test]
    fn places_are_kept_for_as_long_as_each_tenant_says() {
        let tenant = |name| TenantId::parse(name).unwrap();
        let kept = Kept::of("acme=1000;globex=2000;;rubbish;broken=x", 1_000);
        assert!(kept.has(&tenant("globex")));
        assert!(!kept.has(&tenant("acme")) && !kept.has(&tenant("broken")) && !kept.has(&tenant("other")));
        assert_eq!(Kept::of("", 0), Kept(Vec::new()));
    }

    #[test]
    fn contact_begins_anew_after_a_break_and_with_another_history() {
        let rhythm = Rhythm { beat: Duration::from_secs(3), lease: Duration::from_secs(12) };
        let long_ago = Instant::now() - Duration::from_secs(60);
        let contact = |last_ms, generation: &str| {
            let last = Instant::now() - Duration::from_millis(last_ms);
            Contact { generation: generation.into(), since: long_ago, last }
        };
        assert_eq!(Contact::after(Some(contact(3_000, "g")), "g".into(), rhythm).since, long_ago);
        assert!(Contact::after(Some(contact(7_000, "g")), "g".into(), rhythm).since > long_ago);
        assert!(Contact::after(Some(contact(3_000, "g")), "h".into(), rhythm).since > long_ago);
        assert!(Contact::after(None, "g".into(), rhythm).since > long_ago);
    }
}
