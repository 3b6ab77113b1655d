//! What this node says of itself in the catalog, again and again: see [`Catalog::say`](crate::catalog::Catalog::say).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::{CatalogError, NODE_SAID_MS};
use crate::gateway::Gateway;
use crate::tenant::TenantId;

/// How often: a third of the time for which it counts.
const SAY_EVERY: Duration = Duration::from_millis(NODE_SAID_MS / 3);

/// How long saying rests that did not succeed.
const ERROR_REST: Duration = Duration::from_secs(5);

type Saying = Pin<Box<dyn Future<Output = Result<(), CatalogError>> + Send>>;

/// See the [module's text](self).
pub(super) struct Statement {
    gateway: Arc<Gateway>,
    at: Instant,
    saying: Option<Saying>,
}

impl Statement {
    pub(super) fn new(gateway: Arc<Gateway>) -> Statement {
        Statement { gateway, at: Instant::now(), saying: None }
    }

    /// Before anything is served that the catalog does not know.
    pub(super) async fn first(&mut self) -> Result<(), CatalogError> {
        self.gateway.catalog.say(&self.gateway.server_id, Vec::new()).await?;
        self.at = Instant::now() + SAY_EVERY;
        Ok(())
    }

    /// Something has changed.
    pub(super) fn hurry(&mut self) {
        self.at = Instant::now();
    }

    /// Says it where it is time; `lost`: the tenants that are served though their records are lost.
    pub(super) fn on_tick(&mut self, now: Instant, lost: impl FnOnce() -> Vec<TenantId>) {
        if now < self.at || self.saying.is_some() {
            return;
        }
        self.at = now + SAY_EVERY;
        let (gateway, lost) = (self.gateway.clone(), lost());
        self.saying = Some(Box::pin(async move { gateway.catalog.say(&gateway.server_id, lost).await }));
    }

    /// Goes on until it was said; for ever while nothing is.
    pub(super) async fn next(&mut self) {
        let Some(saying) = &mut self.saying else { return std::future::pending().await };
        let said = saying.await;
        self.saying = None;
        if let Err(error) = said {
            tracing::debug!(%error, "other nodes cannot be told which tenants this one serves by itself");
            self.at = Instant::now() + ERROR_REST;
        }
    }
}
