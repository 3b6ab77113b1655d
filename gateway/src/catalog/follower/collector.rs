//! Components that nobody needs any more, deleted now and then by one of the nodes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::{COMPONENTS_KEPT_MS, CatalogError};
use crate::close::jitter;
use crate::gateway::Gateway;

/// How often, about.
const COLLECT_EVERY: Duration = Duration::from_secs(900);

type Round = Pin<Box<dyn Future<Output = Result<u64, CatalogError>> + Send>>;

/// See the [module's text](self).
pub(super) struct Collector {
    gateway: Arc<Gateway>,
    at: Instant,
    round: Option<Round>,
}

impl Collector {
    pub(super) fn new(gateway: Arc<Gateway>) -> Collector {
        Collector { gateway, at: Instant::now() + COLLECT_EVERY / 2 + jitter(COLLECT_EVERY), round: None }
    }

    /// Begins a round where it is time and this node's turn.
    pub(super) fn on_tick(&mut self, now: Instant) {
        if now < self.at || self.round.is_some() {
            return;
        }
        self.at = now + COLLECT_EVERY / 2 + jitter(COLLECT_EVERY);
        if self.is_first() {
            let catalog = self.gateway.catalog.clone();
            self.round = Some(Box::pin(async move { catalog.collect_components(COMPONENTS_KEPT_MS).await }));
        }
    }

    /// Is this node the first by name of those that live? Where nodes do not agree on that, two do the same.
    fn is_first(&self) -> bool {
        let nodes = self.gateway.engine.nodes();
        nodes.iter().all(|node| node.server.is_empty() || *node.server >= *self.gateway.server_id)
    }

    /// Goes on until a round has ended; for ever while there is none.
    pub(super) async fn next(&mut self) {
        let Some(round) = &mut self.round else { return std::future::pending().await };
        let deleted = round.await;
        self.round = None;
        match deleted {
            Ok(0) => {}
            Ok(deleted) => {
                metrics::counter!("components_collected_total").increment(deleted);
                tracing::info!(deleted, "components that no version names any more were deleted");
            }
            Err(error) => tracing::warn!(%error, "components that no version names cannot be deleted now"),
        }
    }
}
