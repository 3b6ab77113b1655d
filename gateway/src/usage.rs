//! Metering: what tenants and their plugins use, as metrics and as the catalog's daily accounts.
//!
//! Numbers gather in memory and are added to the accounts every ten seconds and when the node stops, so that a node
//! that is killed loses the last ten seconds. What was sent and not answered is sent again with its id, and never
//! counted twice: where that cannot be certain any more, it is left out, and told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::{CONNECTIONS_PEAK, CatalogError, Gathered, USAGE_DELTAS_MAX, UsageDelta, day_of};
use crate::commit::{CommitId, now_ms};
use crate::engine::{COMMIT_ID_KEPT_MS, EngineError};
use crate::gateway::Gateway;
use crate::telemetry::labels;
use crate::tenant::TenantId;

/// How often the accounts are kept.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long that may take when the node stops.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

/// For how long something that may have been counted is sent again: while commit ids are surely remembered.
const DOUBT_MAX: Duration = Duration::from_millis(COMMIT_ID_KEPT_MS / 2);

/// Numbers that wait for an engine that is away. Beyond that new ones are left out, and told.
const UNSENT_MAX: usize = 200_000;

/// Under which plugin's name the accounts have what is the tenant's as a whole.
pub const GATEWAY: &str = "gateway";

/// Keeps the accounts until the node stops.
pub async fn run(gateway: Arc<Gateway>) {
    let mut ledger = Ledger::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = gateway.tasks.stopping().cancelled() => {
                ledger.collect(&gateway);
                if tokio::time::timeout(LAST_TIMEOUT, ledger.send(&gateway)).await.is_err() {
                    tracing::warn!(numbers = ledger.unsent.len(), "the last numbers did not get into the accounts");
                }
                return;
            }
        }
        ledger.collect(&gateway);
        ledger.send(&gateway).await;
    }
}

/// The day, whose, and what.
type Line = (String, TenantId, String, &'static str);

#[derive(Default)]
struct Ledger {
    unsent: BTreeMap<Line, u64>,
    in_doubt: Option<Batch>,
    /// The most connections of each tenant at once so far this day, as far as this node knows.
    peaks: HashMap<TenantId, u32>,
    day: String,
}

/// Sent together, under one id.
struct Batch {
    id: CommitId,
    lines: Vec<(Line, u64)>,
    since: Instant,
    /// It was sent once and may have been counted.
    doubtful: bool,
}

impl Ledger {
    fn collect(&mut self, gateway: &Gateway) {
        let day = day_of(now_ms());
        if self.day != day {
            self.peaks.clear();
            self.day.clone_from(&day);
        }
        for usage in gateway.host.take_usage() {
            let (tenant, plugin) = labels::of_plugin(usage.tenant.as_str(), &usage.plugin);
            for (what, number) in usage.used {
                metrics::counter!(
                    "plugin_usage_total", "tenant" => tenant.clone(), "plugin" => plugin.clone(), "what" => what
                )
                .increment(number);
                self.note((day.clone(), usage.tenant.clone(), usage.plugin.as_ref().into(), what), number);
            }
        }
        let tenants = gateway.tenants();
        for tenant in &tenants {
            let label = labels::of_tenant(tenant.id.as_str());
            for (what, number) in tenant.decisions.traffic.take() {
                if number > 0 {
                    metrics::counter!("tenant_usage_total", "tenant" => label.clone(), "what" => what)
                        .increment(number);
                    self.note((day.clone(), tenant.id.clone(), GATEWAY.into(), what), number);
                }
            }
            // While the engine is away only this node's are known.
            let now = tenant.connections.take_peak().max(tenant.seats.take_peak());
            if now > self.peaks.get(&tenant.id).copied().unwrap_or(0) {
                self.peaks.insert(tenant.id.clone(), now);
                self.note((day.clone(), tenant.id.clone(), GATEWAY.into(), CONNECTIONS_PEAK), now.into());
            }
        }
    }

    fn note(&mut self, line: Line, number: u64) {
        if self.unsent.len() >= UNSENT_MAX && !self.unsent.contains_key(&line) {
            metrics::counter!("usage_lost_total").increment(1);
            return;
        }
        let gathered = gathered(line.3);
        let all = self.unsent.entry(line).or_default();
        *all = match gathered {
            Gathered::Sum => all.saturating_add(number),
            Gathered::Most => number.max(*all),
        };
    }

    /// Sends until nothing is left or the engine does not take more.
    async fn send(&mut self, gateway: &Gateway) {
        loop {
            let batch = match self.in_doubt.take() {
                Some(batch) => batch,
                None => match self.next() {
                    Some(batch) => batch,
                    None => return,
                },
            };
            let deltas: Vec<_> = batch.lines.iter().map(|(line, number)| delta(line, *number)).collect();
            let day = batch.lines.first().map(|((day, ..), _)| day.clone()).unwrap_or_default();
            // Cut off, it counts as one whose outcome is unknown.
            let id = batch.id.clone();
            let was_doubtful = batch.doubtful;
            self.in_doubt = Some(Batch { doubtful: true, ..batch });
            let sent = gateway.catalog.add_usage(&id, &day, &deltas).await;
            let Some(mut batch) = self.in_doubt.take() else { return };
            batch.doubtful = was_doubtful;
            match sent {
                Ok(()) => {}
                Err(error) => return self.failed(batch, &error),
            }
        }
    }

    /// The next numbers of one day.
    fn next(&mut self) -> Option<Batch> {
        let day = self.unsent.keys().next()?.0.clone();
        let keys: Vec<_> =
            self.unsent.keys().take_while(|line| line.0 == day).take(USAGE_DELTAS_MAX).cloned().collect();
        let lines = keys.into_iter().filter_map(|line| self.unsent.remove_entry(&line)).collect();
        Some(Batch { id: CommitId::random(), lines, since: Instant::now(), doubtful: false })
    }

    fn failed(&mut self, mut batch: Batch, error: &CatalogError) {
        batch.doubtful |= matches!(error, CatalogError::Engine(EngineError::Ambiguous(_)));
        let lost = match error {
            // It may have been counted. The same id again tells, while it is remembered.
            CatalogError::Engine(EngineError::Ambiguous(_)) if batch.since.elapsed() < DOUBT_MAX => {
                self.in_doubt = Some(batch);
                return tracing::debug!(%error, "the accounts: an outcome is unknown");
            }
            CatalogError::Engine(EngineError::Unavailable(_)) if batch.since.elapsed() < DOUBT_MAX => {
                // Earlier it may have been unknown: it keeps its id.
                self.in_doubt = Some(batch);
                return tracing::debug!(%error, "the accounts wait for the engine");
            }
            // Rather left out than counted twice.
            CatalogError::Engine(EngineError::Unavailable(_)) if !batch.doubtful => {
                for (line, number) in batch.lines {
                    self.note(line, number);
                }
                return;
            }
            _ => batch.lines.len() as u64,
        };
        metrics::counter!("usage_lost_total").increment(lost);
        tracing::warn!(%error, numbers = lost, "numbers were left out of the accounts");
    }
}

fn gathered(what: &str) -> Gathered {
    if what == CONNECTIONS_PEAK { Gathered::Most } else { Gathered::Sum }
}

fn delta((_, tenant, plugin, what): &Line, number: u64) -> UsageDelta {
    UsageDelta {
        tenant: tenant.clone(),
        plugin: plugin.clone(),
        what: (*what).to_owned(),
        number: i64::try_from(number).unwrap_or(i64::MAX),
        gathered: gathered(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        ("2026-01-01".into(), TenantId::catalog(), GATEWAY.into(), "events")
    }

    fn failed_after(errors: &[fn(String) -> EngineError]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.note(line(), 3);
        let long_ago = Instant::now() - DOUBT_MAX;
        for error in errors {
            let mut batch = ledger.in_doubt.take().or_else(|| ledger.next()).unwrap();
            if std::ptr::eq(error, errors.last().unwrap()) {
                batch.since = long_ago;
            }
            ledger.failed(batch, &CatalogError::Engine(error("away".into())));
        }
        ledger
    }

    #[test]
    fn numbers_that_were_never_sent_are_kept_for_later() {
        let ledger = failed_after(&[EngineError::Unavailable, EngineError::Unavailable]);
        assert_eq!(ledger.unsent.get(&line()), Some(&3));
    }

    #[test]
    fn numbers_that_may_have_been_counted_are_not_counted_again_under_another_name() {
        let ledger = failed_after(&[EngineError::Ambiguous, EngineError::Unavailable]);
        assert!(ledger.unsent.is_empty() && ledger.in_doubt.is_none());
    }
}
