//! Versions on their way, on this node: loaded beside what runs, reported, and made active when all nodes have them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::ERROR_REST;
use super::shelf::{Key, Passing};
use super::tenant::OnItsWay;
use crate::catalog::{CatalogError, Settled};
use crate::gateway::Gateway;
use crate::tenant::TenantId;

/// Whose, which plugin's.
type Place = (TenantId, Arc<str>);

type Working = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    /// The node has said how it is with it.
    Reported(Place, String),
    /// Somebody looked whether it ends.
    Looked(Place, String, Result<Settled, CatalogError>),
}

/// One on its way.
struct Pending {
    id: String,
    /// What was prepared.
    key: Option<Key>,
    /// When this node heard of it; clocks of other nodes may be wrong.
    heard: Instant,
    /// How long after that it goes on without those that are not ready.
    patience: Duration,
    /// Is somebody looking whether it ends?
    looking: bool,
    /// When to look again.
    look_at: Option<Instant>,
}

/// See the [module's text](self).
pub(super) struct Rollouts {
    gateway: Arc<Gateway>,
    pending: HashMap<Place, Pending>,
    working: FuturesUnordered<Working>,
}

impl Rollouts {
    pub(super) fn new(gateway: Arc<Gateway>) -> Rollouts {
        Rollouts { gateway, pending: HashMap::new(), working: FuturesUnordered::new() }
    }

    /// These are a tenant's now; others of it are over.
    pub(super) fn follow(&mut self, tenant: &TenantId, all: Vec<OnItsWay>) {
        let ids: Vec<_> = all.iter().map(|one| one.rollout.id.clone()).collect();
        self.pending.retain(|(of, _), pending| of != tenant || ids.contains(&pending.id));
        for one in all {
            let place = (tenant.clone(), one.plugin.name.clone());
            let key = one.version.as_ref().map(|version| Key::of(&one.tenant, &one.plugin, version));
            if let Some(pending) = self.pending.get_mut(&place).filter(|pending| pending.id == one.rollout.id) {
                // With other settings it is another component: what was prepared for those before is let go of.
                if pending.key != key {
                    pending.key = key;
                    let patience = pending.patience.saturating_sub(pending.heard.elapsed());
                    self.working.push(Box::pin(prepare(self.gateway.clone(), place, one, patience)));
                }
                continue;
            }
            let patience = Duration::from_millis(one.rollout.deadline_ms.saturating_sub(one.rollout.started_ms));
            let (id, heard) = (one.rollout.id.clone(), Instant::now());
            self.pending.insert(place.clone(), Pending { id, key, heard, patience, looking: false, look_at: None });
            self.working.push(Box::pin(prepare(self.gateway.clone(), place, one, patience)));
        }
    }

    pub(super) fn forget(&mut self, tenant: &TenantId) {
        self.pending.retain(|(of, _), _| of != tenant);
    }

    /// A node has said how it is with a plugin's roll-out.
    pub(super) fn reported(&mut self, tenant: &TenantId, plugin: &Arc<str>) {
        if let Some(pending) = self.pending.get_mut(&(tenant.clone(), plugin.clone())) {
            pending.look_at = Some(Instant::now());
        }
        self.on_tick(Instant::now());
    }

    /// Looks at those whose time has come.
    pub(super) fn on_tick(&mut self, now: Instant) {
        for (place, pending) in &mut self.pending {
            let over = now >= pending.heard + pending.patience;
            let due = pending.look_at.map_or(over, |at| at <= now);
            if pending.looking || !due {
                continue;
            }
            pending.looking = true;
            pending.look_at = None;
            let (gateway, place, id) = (self.gateway.clone(), place.clone(), pending.id.clone());
            self.working.push(Box::pin(async move {
                let settled = gateway.catalog.settle(&place.0, &place.1, &id, over).await;
                Done::Looked(place, id, settled)
            }));
        }
    }

    /// Goes on until something was done; for ever while there is nothing to do.
    pub(super) async fn next(&mut self) {
        let Some(done) = self.working.next().await else { return std::future::pending().await };
        let now = Instant::now();
        match done {
            Done::Reported((tenant, plugin), id) => {
                let place = (tenant, plugin);
                if let Some(pending) = self.pending.get_mut(&place).filter(|pending| pending.id == id) {
                    pending.look_at = Some(now);
                }
                self.on_tick(now);
            }
            Done::Looked(place, id, settled) => {
                let Some(pending) = self.pending.get_mut(&place).filter(|pending| pending.id == id) else { return };
                pending.looking = false;
                match settled {
                    Ok(Settled::Over) => {
                        self.pending.remove(&place);
                    }
                    // Those that are told of later are looked at when they are.
                    Ok(Settled::Waiting) => {
                        let over = now >= pending.heard + pending.patience;
                        let next = if over {
                            now + ERROR_REST
                        } else {
                            (now + ERROR_REST).min(pending.heard + pending.patience)
                        };
                        pending.look_at = Some(pending.look_at.map_or(next, |at| at.min(next)));
                    }
                    Err(error) => {
                        tracing::warn!(tenant = %place.0, plugin = &*place.1, %error, "a roll-out cannot be looked at now");
                        pending.look_at = Some(now + ERROR_REST);
                    }
                }
            }
        }
    }
}

/// Loads a version and says how that went; again while the engine is away, as long as the roll-out may take.
async fn prepare(gateway: Arc<Gateway>, place: Place, one: OnItsWay, patience: Duration) -> Done {
    let id = one.rollout.id.clone();
    let until = Instant::now() + patience;
    let mut failures = 0;
    let loaded = loop {
        let Some(version) = &one.version else { break Err("the version is not there any more".to_owned()) };
        match one.shelf.load(&gateway, &one.tenant, &one.plugin, version).await {
            Ok(_) => break Ok(()),
            Err(error) if error.passing.again(failures) && Instant::now() < until => {
                tokio::time::sleep(ERROR_REST.saturating_mul(1 << failures.min(3))).await;
                failures += u32::from(error.passing == Passing::Perhaps);
            }
            Err(error) => break Err(error.why),
        }
    };
    match &loaded {
        Ok(()) => {
            tracing::info!(tenant = %place.0, plugin = &*place.1, version = one.rollout.version, "a version is ready")
        }
        Err(why) => {
            tracing::error!(tenant = %place.0, plugin = &*place.1, version = one.rollout.version, why, "a version cannot be loaded");
        }
    }
    metrics::counter!("rollout_loads_total", "outcome" => if loaded.is_ok() { "ready" } else { "failed" }).increment(1);
    loop {
        let said = gateway.catalog.report_ready(&place.0, &place.1, &id, &gateway.server_id, loaded.clone()).await;
        match said {
            Err(error) if Instant::now() < until => {
                tracing::warn!(tenant = %place.0, plugin = &*place.1, %error, "the others cannot be told of a roll-out yet");
                tokio::time::sleep(ERROR_REST).await;
            }
            _ => return Done::Reported(place, id),
        }
    }
}
