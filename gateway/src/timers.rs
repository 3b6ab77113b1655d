//! Durable timers: claimed with a lease, fired at the plugin that set them, settled by the
//! handler's own commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::commit::{Millis, seconds_since};
use crate::decision::Input;
use crate::decision::verdict::{ATTEMPTS_MAX, LATER_REST_MS, Verdict};
use crate::engine::{DueTimer, Health};
use crate::gateway::Gateway;
use crate::telemetry::labels;

/// How often due timers are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long looking rests when the engine does not answer.
const ERROR_REST: Duration = Duration::from_secs(1);
/// Timers claimed at once.
const CLAIM_MAX: usize = 64;
/// Timers that fire at the same time on this node.
const FIRING_MAX: usize = 128;
/// How long postponing rests that the engine could not take.
const POSTPONE_REST: Duration = Duration::from_millis(200);
/// How long a timer rests whose tenant is not served here.
const ELSEWHERE_REST_MS: Millis = 60_000;
/// How long a timer rests whose tenant has [`FIRING_MAX`](crate::gateway::LiveTenant::FIRING_MAX) of them firing.
const BUSY_REST_MS: Millis = 200;

/// Fires timers until the node stops.
pub async fn run(gateway: Arc<Gateway>) {
    let firing = Arc::new(Semaphore::new(FIRING_MAX));
    loop {
        let rest = match gateway.engine.claim_timers(CLAIM_MAX).await {
            Ok(due) => {
                let full = due.len() == CLAIM_MAX;
                for timer in due {
                    let Ok(place) = firing.clone().acquire_owned().await else { return };
                    let firing = gateway.clone();
                    gateway.tasks.spawn(async move {
                        fire(&firing, timer).await;
                        drop(place);
                    });
                }
                if full { Duration::ZERO } else { POLL_INTERVAL }
            }
            Err(error) => {
                tracing::warn!(%error, "timers cannot be claimed");
                ERROR_REST
            }
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = gateway.tasks.draining().cancelled() => return,
        }
    }
}

async fn fire(gateway: &Gateway, timer: DueTimer) {
    metrics::histogram!("timer_lateness_seconds").record(seconds_since(timer.due));
    if timer.attempt > 1 {
        metrics::counter!("timer_redelivered_total").increment(1);
    }
    let served = gateway.tenant(timer.tenant.as_str()).filter(|tenant| !tenant.settings().disabled);
    let Some(tenant) = served else {
        // The tenant may be served again, or by another node: the timer stays.
        return postpone(gateway, &timer, ELSEWHERE_REST_MS).await;
    };
    if timer.attempt > ATTEMPTS_MAX {
        // No attempt came to an end, not even to a failure: whoever fires it does not survive it.
        return bury(gateway, &timer, "every attempt to fire it was cut off").await;
    }
    let Some(_place) = tenant.firing.take() else {
        return postpone(gateway, &timer, BUSY_REST_MS).await;
    };
    let result = tenant.decisions.run(&tenant.pipeline.load_full(), Input::Timer(&timer)).await;
    let outcome = match Verdict::of(timer.attempt, &result) {
        Verdict::Settled => "ok",
        Verdict::Gone => "gone",
        Verdict::Untried => {
            uncount(gateway, &timer).await;
            "later"
        }
        Verdict::Later { rest_ms } => {
            postpone(gateway, &timer, rest_ms).await;
            "later"
        }
        Verdict::Again { rest_ms, why } => {
            tracing::warn!(tenant = %timer.tenant, plugin = &*timer.key.plugin, why, rest_ms, "a timer's handler failed: tried again");
            give_back(gateway, &timer, rest_ms).await;
            "retried"
        }
        Verdict::GivenUp { why } => {
            bury(gateway, &timer, &why).await;
            "given_up"
        }
    };
    metrics::counter!("timers_fired_total", "outcome" => outcome).increment(1);
}

async fn give_back(gateway: &Gateway, timer: &DueTimer, after_ms: Millis) {
    if let Err(error) = gateway.engine.release_timer(timer, after_ms).await {
        // Its lease ends by itself.
        tracing::debug!(%error, "a timer could not be given back");
    }
}

async fn postpone(gateway: &Gateway, timer: &DueTimer, after_ms: Millis) {
    if let Err(error) = gateway.engine.postpone_timer(timer, after_ms).await {
        // Its lease ends by itself.
        tracing::debug!(%error, "a timer could not be postponed");
    }
}

/// Postpones a timer that the engine's absence cut short, as soon as the engine is back: the attempt must not count.
/// Its places stay taken meanwhile, for nothing else can fire either.
async fn uncount(gateway: &Gateway, timer: &DueTimer) {
    let mut health = gateway.engine.health(&timer.tenant);
    let back = async {
        // An engine that has ended refuses, and draining ends the waiting.
        while let Err(error) = gateway.engine.postpone_timer(timer, LATER_REST_MS).await {
            tracing::debug!(%error, "a timer could not be postponed yet");
            tokio::time::sleep(POSTPONE_REST).await;
            let _ = health.wait_for(|health| *health == Health::Up).await;
        }
    };
    // What is left then comes again when its lease ends.
    tokio::select! { () = back => {}, () = gateway.tasks.draining().cancelled() => {} }
}

/// Gives a timer up; it is kept among the dead.
async fn bury(gateway: &Gateway, timer: &DueTimer, why: &str) {
    match gateway.engine.bury_timer(timer, why).await {
        Ok(true) => {
            metrics::counter!("timers_dead_total", "tenant" => labels::of_tenant(timer.tenant.as_str())).increment(1);
            tracing::error!(tenant = %timer.tenant, plugin = &*timer.key.plugin, attempts = timer.attempt, why, "a timer is given up");
        }
        Ok(false) => {}
        // Its lease ends, and it is given up then.
        Err(error) => tracing::debug!(%error, "a timer that is given up could not be removed"),
    }
}
