//! A look through the whole catalog, in steps beside everything else: an engine that does not answer holds up nothing but
//! the look.

use std::collections::HashSet;
use std::pin::Pin;
use std::time::Duration;

use crate::catalog::{Catalog, CatalogError, Feeder, PAGE_MAX, TenantPage};
use crate::engine::EngineError;
use crate::tenant::TenantId;

/// How long one step may take; then the look is begun again.
const STEP_MAX: Duration = Duration::from_secs(15);

/// What a step found.
pub(super) enum Found {
    /// The catalog is followed.
    Followed(Feeder),
    /// So many changes there have been.
    Changes(u64),
    /// Some of the tenants.
    Page(TenantPage),
}

type Step = Pin<Box<dyn Future<Output = Result<Found, CatalogError>> + Send>>;

/// One look, with what it has found so far.
pub(super) struct Look {
    step: Option<Step>,
    /// Also if nothing has changed since the last one.
    pub(super) anyway: bool,
    /// How many changes there had been when it began.
    pub(super) changes: u64,
    /// Fewer than there were: records are gone with the engine's data.
    pub(super) lost: bool,
    /// The tenants that there are.
    pub(super) there: HashSet<TenantId>,
}

impl Look {
    /// Begins one; first by following the catalog's log, if nobody does.
    pub(super) fn begin(catalog: &Catalog, is_followed: bool, anyway: bool) -> Look {
        let mut look = Look { step: None, anyway, changes: 0, lost: false, there: HashSet::new() };
        if is_followed {
            look.count(catalog);
        } else {
            let catalog = catalog.clone();
            look.step = Some(bounded(async move { catalog.follow().await.map(Found::Followed) }));
        }
        look
    }

    /// Asks how many changes there have been, next.
    pub(super) fn count(&mut self, catalog: &Catalog) {
        let catalog = catalog.clone();
        self.step = Some(bounded(async move { catalog.changes().await.map(Found::Changes) }));
    }

    /// Reads the tenants whose names come after `after`, next.
    pub(super) fn page(&mut self, catalog: &Catalog, after: Option<String>) {
        let catalog = catalog.clone();
        self.step = Some(bounded(async move { catalog.tenants(after.as_deref(), PAGE_MAX).await.map(Found::Page) }));
    }

    /// Is nothing left to be asked?
    pub(super) fn is_over(&self) -> bool {
        self.step.is_none()
    }

    /// What the present step finds; never, where there is none. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Found, CatalogError> {
        let Some(step) = &mut self.step else { return std::future::pending().await };
        let found = step.await;
        self.step = None;
        found
    }
}

fn bounded(step: impl Future<Output = Result<Found, CatalogError>> + Send + 'static) -> Step {
    let late = || EngineError::Unavailable(format!("no answer within {} ms", STEP_MAX.as_millis()));
    Box::pin(async move {
        let answer = tokio::time::timeout(STEP_MAX, step).await;
        answer.unwrap_or_else(|_| Err(late().into()))
    })
}
