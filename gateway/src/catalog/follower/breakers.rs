//! Versions that keep failing, rolled back by themselves where the plugin says so.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::catalog::CatalogError;
use crate::decision::plugin::{BreakerChange, BreakerState};
use crate::gateway::Gateway;

/// Roll backs that are on their way at the same time; more breakers that open are left to others, and to people.
const FALLING_MAX: usize = 64;

type Falling = Pin<Box<dyn Future<Output = (BreakerChange, Result<Option<u64>, CatalogError>)> + Send>>;

/// See the [module's text](self).
pub(super) struct Breakers {
    gateway: Arc<Gateway>,
    changes: broadcast::Receiver<BreakerChange>,
    falling: FuturesUnordered<Falling>,
}

impl Breakers {
    pub(super) fn new(gateway: Arc<Gateway>) -> Breakers {
        Breakers { changes: gateway.host.breaker_changes(), gateway, falling: FuturesUnordered::new() }
    }

    /// Goes on until something was done.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            change = self.changes.recv() => match change {
                Ok(change) => self.changed(change),
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "changes of breakers were missed"),
                // The host has ended.
                Err(RecvError::Closed) => std::future::pending().await,
            },
            Some((change, done)) = self.falling.next() => match done {
                Ok(None) => {}
                Ok(Some(version)) => {
                    let (tenant, plugin, hook) = (&change.tenant, &*change.plugin, change.hook.name());
                    metrics::counter!("auto_rollbacks_total").increment(1);
                    tracing::error!(%tenant, plugin, hook, version, "a version kept failing: rolled back by itself");
                }
                Err(error) => {
                    let (tenant, plugin) = (&change.tenant, &*change.plugin);
                    tracing::warn!(%tenant, plugin, %error, "a version that keeps failing cannot be rolled back");
                }
            },
        }
    }

    fn changed(&mut self, change: BreakerChange) {
        let tenant = &change.tenant;
        if change.state != BreakerState::Open
            || self.falling.len() >= FALLING_MAX
            || self.gateway.catalog.file_of(tenant).is_some()
        {
            return;
        }
        let catalog = self.gateway.catalog.clone();
        self.falling.push(Box::pin(async move {
            let (hook, calls, failures) = (change.hook.name(), change.calls, change.failures);
            let why = format!("its breaker opened: {failures} of {calls} calls of {hook} failed");
            let done = catalog.fall_back(&change.tenant, &change.plugin, &change.digest, &why).await;
            (change, done)
        }));
    }
}
