//! Whoever wants a tenant's key sets fresh: the clock, and tokens that name a key that is not there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{REST_AFTER_FAILURE, Seen, Unidentified, fetch};
use crate::client::Identity;
use crate::close::jitter;
use crate::commit::now_ms;
use crate::decision::token::{KeySetKeys, read_key_set};
use crate::gateway::{Gateway, LiveTenant};
use crate::telemetry::labels;
use crate::tenant::KeySetSource;

/// How often files are looked at, and URLs that are due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Sets that are fetched at the same time because they are due.
const FETCHES_AT_ONCE: usize = 16;

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Keeps the key sets of all tenants fresh until the node stops.
pub async fn run(gateway: Arc<Gateway>) {
    let permits = Arc::new(Semaphore::new(FETCHES_AT_ONCE));
    loop {
        for tenant in gateway.tenants() {
            let settings = tenant.settings();
            let sources: Vec<_> = settings.auth.key_sets.iter().map(|set| set.source.clone()).collect();
            tenant.key_sets.forget_others(&sources);
            for source in sources.into_iter().filter(|_| !settings.disabled) {
                match &source {
                    KeySetSource::File(path) => {
                        let Some(seen) = tenant.key_sets.take_due(&source) else { continue };
                        look_at_file(&tenant, &source, path, seen).await;
                    }
                    KeySetSource::Url { .. } => {
                        // The place first: without one it stays due, and is among the next.
                        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                        if tenant.key_sets.take_due(&source).is_none() {
                            continue;
                        }
                        let tenant = tenant.clone();
                        gateway.tasks.spawn(async move {
                            fetch_one(&tenant, &source).await;
                            drop(permit);
                        });
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = gateway.tasks.stopping().cancelled() => return,
        }
    }
}

/// Reads a file again if it is another one than before.
async fn look_at_file(tenant: &LiveTenant, source: &KeySetSource, path: &Path, seen: Seen) {
    let path = path.to_owned();
    let before = seen.stamp;
    let look = move || -> Result<_, String> {
        let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
        let stamp = (metadata.modified().map_err(|error| error.to_string())?, metadata.len());
        if before == Some(stamp) {
            return Ok((stamp, None));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(format!("has {} bytes, at most {FILE_BYTES_MAX} are read", metadata.len()));
        }
        Ok((stamp, Some(std::fs::read(&path).map_err(|error| error.to_string())?)))
    };
    // A file may be on a disk that is far away.
    let looked = tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| Err(error.to_string()));
    let now = Instant::now();
    let looked = looked.and_then(|(stamp, bytes)| match bytes {
        Some(bytes) => read_key_set(&bytes, false).map(|set| (stamp, Some(set))),
        None => Ok((stamp, None)),
    });
    match looked {
        Ok((stamp, set)) => {
            if let Some(set) = set {
                take(tenant, source, set).await;
            }
            let had = Some(now);
            tenant.key_sets.keep(source, Seen { due: now + LOOK_EVERY, had, stamp: Some(stamp), failing: false });
        }
        Err(why) => {
            failed(tenant, source, &seen, &why);
            tenant.key_sets.keep(source, Seen { due: now + LOOK_EVERY, failing: true, ..seen });
        }
    }
}

/// Fetches a set; whatever comes of it is told and counted.
async fn fetch_one(tenant: &LiveTenant, source: &KeySetSource) {
    let KeySetSource::Url { url, public_only } = source else { return };
    let seen = tenant.key_sets.seen(source);
    let fetched = fetch::get(url, *public_only).await.and_then(|bytes| read_key_set(&bytes, true));
    let refresh = tenant.settings().auth.key_set_refresh;
    let now = Instant::now();
    match fetched {
        // A set without a single key is more likely a mistake than a wish.
        Ok(set) if set.keys.is_empty() => {
            failed(tenant, source, &seen, "holds no key that can be used");
            tenant.key_sets.keep(source, Seen { due: now + rest(refresh), failing: true, ..seen });
        }
        Ok(set) => {
            metrics::counter!("key_set_fetches_total", "tenant" => labels::of_tenant(tenant.id.as_str()), "result" => "fetched")
                .increment(1);
            take(tenant, source, set).await;
            // Nodes that started together do not all ask together for ever.
            let due = now + refresh.mul_f64(0.9) + jitter(refresh.mul_f64(0.1));
            tenant.key_sets.keep(source, Seen { due, had: Some(now), stamp: None, failing: false });
        }
        Err(why) => {
            failed(tenant, source, &seen, &why);
            tenant.key_sets.keep(source, Seen { due: now + rest(refresh), failing: true, ..seen });
        }
    }
    tenant.key_sets.fetches.fetch_add(1, Ordering::AcqRel);
}

fn rest(refresh: Duration) -> Duration {
    refresh.min(REST_AFTER_FAILURE + jitter(REST_AFTER_FAILURE))
}

fn failed(tenant: &LiveTenant, source: &KeySetSource, seen: &Seen, why: &str) {
    metrics::counter!("key_set_fetches_total", "tenant" => labels::of_tenant(tenant.id.as_str()), "result" => "failed")
        .increment(1);
    if !seen.failing {
        let age_s = seen.had.map(|had| had.elapsed().as_secs());
        tracing::warn!(tenant = %tenant.id, %source, why, ?age_s, "a key set cannot be had: the keys of before stay");
    }
}

/// The set's keys are the tenant's from here on.
async fn take(tenant: &LiveTenant, source: &KeySetSource, set: KeySetKeys) {
    let KeySetKeys { keys, left_out } = set;
    match tenant.put_key_set(source, keys).await {
        Ok(true) => {
            let count = tenant.settings().auth.all_keys().count();
            tracing::info!(tenant = %tenant.id, %source, keys = count, left_out = left_out.len(), "a key set has changed");
            for (index, error) in left_out {
                tracing::debug!(tenant = %tenant.id, %source, index, %error, "a key of a set is left out");
            }
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(tenant = %tenant.id, %source, %error, "a key set cannot be used: the keys of before stay")
        }
    }
}

impl LiveTenant {
    /// Who is the bearer of this token? One that names an unknown key has the sets behind URLs fetched first, a few
    /// times a minute.
    ///
    /// # Errors
    /// The token does not hold, or its key may be in a set that was never there yet.
    pub async fn identify(&self, token: &str) -> Result<Identity, Unidentified> {
        let fetches = self.key_sets.fetches.load(Ordering::Acquire);
        let verifier = self.verifier();
        let refused = match verifier.verify(token, now_ms() / 1_000) {
            Ok(identity) => return Ok(identity),
            Err(error) => error,
        };
        let sets = &self.settings().auth.key_sets;
        let urls: Vec<_> =
            sets.iter().map(|set| &set.source).filter(|s| matches!(s, KeySetSource::Url { .. })).collect();
        if urls.is_empty() || !verifier.lacks_key_of(token) {
            return Err(refused.into());
        }
        self.fetch_for_token(&urls, fetches).await;
        match self.verifier().verify(token, now_ms() / 1_000) {
            Ok(identity) => Ok(identity),
            Err(_) if urls.iter().any(|source| self.key_sets.was_never_had(source)) => Err(Unidentified::KeysAway),
            Err(error) => Err(error.into()),
        }
    }

    /// One at a time fetches; those that waited meanwhile take what it found.
    async fn fetch_for_token(&self, urls: &[&KeySetSource], fetches: u64) {
        let _turn = self.key_sets.turn.lock().await;
        if self.key_sets.fetches.load(Ordering::Acquire) != fetches {
            return;
        }
        if self.key_sets.for_tokens.lock().take(Instant::now()).is_err() {
            metrics::counter!("key_set_fetches_total", "tenant" => labels::of_tenant(self.id.as_str()), "result" => "limited")
                .increment(1);
            return;
        }
        for source in urls {
            fetch_one(self, source).await;
        }
    }
}
