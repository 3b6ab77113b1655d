//! Rates of users and API keys that hold over all nodes, without a round trip for each message.
//!
//! The bucket is the engine's, one for all nodes. A node takes tokens out of it by the handful, an eighth of a minute's
//! worth at a time and at least one, and lets messages through on what it has in its hand. When the bucket is empty the
//! node knows how long, and refuses by itself until then. So for a rate of R a minute, H = max(1, ⌊R ÷ 8⌋) and N nodes:
//!
//! * In any t seconds at most R + R·t ÷ 60 + N·H get through over all nodes; since the first message of a user who was
//!   quiet for a minute at most R + R·t ÷ 60.
//! * On the other side up to H − 1 tokens for each other node at which the user spoke in the last minute may lie in its
//!   hand, and are missed where the user speaks now. A hand is let fall after a minute.
//! * There is at most one question for H messages that follow each other within a minute.
//!
//! Whoever goes from node to node finds the same bucket there. Each node keeps a bucket of its own besides, of the same
//! rate, that holds whatever the engine says: while the engine is away it holds alone, so that at most N times as much
//! gets through.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::engine::{Engine, Tokens};
use crate::event::Refusal;
use crate::limits::{Bucket, rate_limited};
use crate::tenant::{PerMinute, TenantId};

/// Rates kept at most; beyond, those of users that were quiet for a minute are dropped, and if that does not help, all:
/// then what the engine's buckets say holds until they are known here again.
const RATES_MAX: usize = 100_000;

/// Which part of a minute's worth a node takes into its hand.
const HAND_SHARE: u32 = 8;

/// How long tokens may lie in a node's hand. In that time a bucket is full again.
const HAND_KEPT: Duration = Duration::from_secs(60);

/// How long a message waits for the engine to grant tokens.
const ASK_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the engine is not asked for a bucket after it did not answer.
const ALONE: Duration = Duration::from_secs(1);

/// How many tokens a node takes at once.
fn handful(per_minute: NonZeroU32) -> NonZeroU32 {
    NonZeroU32::new(per_minute.get() / HAND_SHARE).unwrap_or(NonZeroU32::MIN)
}

/// What a node knows of one shared bucket.
#[derive(Debug)]
struct Rate {
    /// What this node lets through at most, whatever the others do.
    own: Bucket,
    hand: u32,
    hand_until: Instant,
    /// The shared one is empty until then.
    empty_until: Instant,
    /// The engine is not asked until then.
    alone_until: Instant,
}

impl Rate {
    fn new(per_minute: NonZeroU32, now: Instant) -> Rate {
        let own = Bucket::new(Some(per_minute), now);
        Rate { own, hand: 0, hand_until: now, empty_until: now, alone_until: now }
    }

    /// Takes one without asking; `None`: the engine is to be asked.
    fn take(&mut self, per_minute: NonZeroU32, now: Instant) -> Option<Result<(), Duration>> {
        if self.own.per_minute() != per_minute.get() {
            // The tenant has changed it since: how long the shared one is empty is another question now.
            self.own.set_rate(Some(per_minute), now);
            self.hand = self.hand.min(handful(per_minute).get());
            self.empty_until = now;
        }
        if let Err(wait) = self.own.take(now) {
            return Some(Err(wait));
        }
        if now >= self.hand_until {
            self.hand = 0;
        }
        if self.hand > 0 {
            self.hand -= 1;
            return Some(Ok(()));
        }
        if now < self.empty_until {
            self.own.put_back();
            return Some(Err(self.empty_until - now));
        }
        (now < self.alone_until).then_some(Ok(()))
    }

    /// One of the tokens is used at once.
    fn granted(&mut self, tokens: u32, per_minute: NonZeroU32, now: Instant) {
        let held = if now < self.hand_until { self.hand } else { 0 };
        // Several connections of a user may have asked at once: no hand holds more than a handful.
        self.hand = held.saturating_add(tokens.saturating_sub(1)).min(handful(per_minute).get());
        self.hand_until = now + HAND_KEPT;
    }

    fn is_idle(&mut self, now: Instant) -> bool {
        (self.hand == 0 || now >= self.hand_until) && now >= self.empty_until && self.own.is_full(now)
    }
}

/// What a tenant's rates are asked of.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// Where the buckets are.
    pub engine: &'a dyn Engine,
    /// Whose.
    pub tenant: &'a TenantId,
}

/// Rates by whatever they are of.
#[derive(Debug)]
struct Rates<K>(Mutex<HashMap<K, Rate>>);

impl<K> Default for Rates<K> {
    fn default() -> Rates<K> {
        Rates(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Rates<K> {
    /// Takes a token, or says how long until there may be one. `name` is the shared bucket's.
    async fn take(
        &self,
        shared: Shared<'_>,
        key: &K,
        per_minute: NonZeroU32,
        name: impl Fn(&K) -> String,
    ) -> Result<(), Duration> {
        if let Some(taken) = self.with(key, per_minute, |rate, now| rate.take(per_minute, now)) {
            return taken;
        }
        let (bucket, wanted) = (name(key), handful(per_minute));
        let asked = shared.engine.take_tokens(shared.tenant, &bucket, per_minute, wanted);
        let answer = timeout(ASK_TIMEOUT, asked).await;
        self.with(key, per_minute, |rate, now| match answer {
            Ok(Ok(Tokens::Granted(tokens))) => {
                rate.granted(tokens, per_minute, now);
                Ok(())
            }
            Ok(Ok(Tokens::Wait(wait))) => {
                rate.own.put_back();
                rate.empty_until = now + wait;
                Err(wait)
            }
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("limits_alone_total", "limit" => "rate").increment(1);
                rate.alone_until = now + ALONE;
                Ok(())
            }
        })
    }

    fn with<T>(&self, key: &K, per_minute: NonZeroU32, work: impl FnOnce(&mut Rate, Instant) -> T) -> T {
        let now = Instant::now();
        let mut rates = self.0.lock();
        if rates.len() >= RATES_MAX {
            rates.retain(|_, rate| !rate.is_idle(now));
        }
        if rates.len() >= RATES_MAX {
            rates.clear();
        }
        work(rates.entry(key.clone()).or_insert_with(|| Rate::new(per_minute, now)), now)
    }
}

/// Events by name and user, over all nodes: see the [module's text](self).
#[derive(Debug, Default)]
pub struct UserRates(Rates<(Arc<str>, Arc<str>)>);

impl UserRates {
    /// Takes a token of `subject` for `event`.
    ///
    /// # Errors
    /// The refusal that the client is told when there is none.
    pub async fn take(
        &self,
        shared: Shared<'_>,
        subject: &Arc<str>,
        event: &Arc<str>,
        per_minute: NonZeroU32,
    ) -> Result<(), Refusal> {
        let name = |(subject, event): &(Arc<str>, Arc<str>)| format!("event\0{event}\0{subject}");
        let taken = self.0.take(shared, &(subject.clone(), event.clone()), per_minute, name).await;
        taken.map_err(|wait| {
            let setting = format!("limits.user_events_per_minute.{event}");
            rate_limited(&format!("events {event:?} of one user"), &setting, per_minute.get(), wait)
        })
    }
}

/// Requests by API key, over all nodes: see the [module's text](self).
#[derive(Debug, Default)]
pub struct KeyRates(Rates<Arc<str>>);

impl KeyRates {
    /// Takes a token of a key; one without a rate has no end of them.
    ///
    /// # Errors
    /// The refusal that the caller is told when there is none.
    pub async fn take(&self, shared: Shared<'_>, key: &Arc<str>, per_minute: PerMinute) -> Result<(), Refusal> {
        let Some(per_minute) = per_minute else { return Ok(()) };
        let taken = self.0.take(shared, key, per_minute, |key| format!("key\0{key}")).await;
        taken.map_err(|wait| {
            let what = format!("requests with the key {key:?}");
            rate_limited(&what, "limits.api_requests_per_minute", per_minute.get(), wait)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::{EmbeddedEngine, Options};

    /// An engine whose clock is the test's.
    fn engine() -> Arc<EmbeddedEngine> {
        let start = Instant::now();
        let clock = Arc::new(move || 1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap());
        EmbeddedEngine::in_memory(Options { clock, ..Options::default() }).unwrap()
    }

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn rate(per_minute: u32) -> NonZeroU32 {
        NonZeroU32::new(per_minute).unwrap()
    }

    /// How many of a user's messages get through in a virtual minute and a half, tried at each of the nodes each 5 ms.
    async fn let_through(nodes: &[UserRates], per_minute: u32) -> (u32, Duration) {
        let (engine, tenant, start) = (engine(), acme(), Instant::now());
        let shared = Shared { engine: &*engine, tenant: &tenant };
        let mut through = 0;
        while start.elapsed() < Duration::from_secs(90) {
            for node in nodes {
                let taken = node.take(shared, &"bob".into(), &"send".into(), rate(per_minute)).await;
                through += u32::from(taken.is_ok());
            }
            tokio::time::advance(Duration::from_millis(5)).await;
        }
        (through, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_on_several_nodes_gets_no_more_through_than_on_one() {
        for per_minute in [1, 7, 60, 1_000] {
            for count in [1, 2, 5] {
                let nodes: Vec<_> = (0..count).map(|_| UserRates::default()).collect();
                let (through, took) = let_through(&nodes, per_minute).await;
                let all = f64::from(per_minute) * (1.0 + took.as_secs_f64() / 60.0);
                let in_hands = f64::from(count) * f64::from(handful(rate(per_minute)).get());
                let through = f64::from(through);
                assert!(through <= all, "{through} of {all} at {per_minute} a minute on {count} nodes");
                assert!(
                    through >= all - in_hands - 1.0,
                    "{through} of {all} at {per_minute} a minute on {count} nodes"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_to_another_node_finds_the_same_bucket() {
        let (engine, tenant) = (engine(), acme());
        let shared = Shared { engine: &*engine, tenant: &tenant };
        let mut through = 0;
        for _ in 0..20 {
            // A node that has never seen the user.
            let node = UserRates::default();
            while node.take(shared, &"bob".into(), &"send".into(), rate(64)).await.is_ok() {
                through += 1;
            }
        }
        assert_eq!(through, 64);
        let refusal = UserRates::default().take(shared, &"bob".into(), &"send".into(), rate(64)).await.unwrap_err();
        assert_eq!(refusal.code, "rate_limit");
        assert!(refusal.message.contains("limits.user_events_per_minute.send"), "{}", refusal.message);
        assert!((900..=1_000).contains(&refusal.retry_after_ms.unwrap()), "{refusal:?}");
        tokio::time::advance(Duration::from_millis(1_000)).await;
        assert!(UserRates::default().take(shared, &"bob".into(), &"send".into(), rate(64)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_in_a_hand_is_let_fall_after_a_minute() {
        let (engine, tenant) = (engine(), acme());
        let shared = Shared { engine: &*engine, tenant: &tenant };
        let (one, other) = (UserRates::default(), UserRates::default());
        assert!(one.take(shared, &"bob".into(), &"send".into(), rate(80)).await.is_ok());
        tokio::time::advance(HAND_KEPT).await;
        while other.take(shared, &"bob".into(), &"send".into(), rate(80)).await.is_ok() {}
        assert!(one.take(shared, &"bob".into(), &"send".into(), rate(80)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn each_user_event_and_key_has_a_bucket_of_its_own() {
        let (engine, tenant) = (engine(), acme());
        let shared = Shared { engine: &*engine, tenant: &tenant };
        let (users, keys) = (UserRates::default(), KeyRates::default());
        for (subject, event) in [("bob", "send"), ("eve", "send"), ("bob", "like")] {
            assert!(users.take(shared, &subject.into(), &event.into(), rate(1)).await.is_ok());
            assert!(users.take(shared, &subject.into(), &event.into(), rate(1)).await.is_err());
        }
        assert!(keys.take(shared, &"bob".into(), Some(rate(1))).await.is_ok());
        let refusal = KeyRates::default().take(shared, &"bob".into(), Some(rate(1))).await.unwrap_err();
        assert!(refusal.message.contains("limits.api_requests_per_minute"), "{}", refusal.message);
        assert!(keys.take(shared, &"eve".into(), None).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_holds_from_then_on() {
        let (engine, tenant) = (engine(), acme());
        let shared = Shared { engine: &*engine, tenant: &tenant };
        let users = UserRates::default();
        assert!(users.take(shared, &"bob".into(), &"send".into(), rate(1)).await.is_ok());
        assert!(users.take(shared, &"bob".into(), &"send".into(), rate(1)).await.is_err());
        tokio::time::advance(Duration::from_secs(6)).await;
        let wait = users.take(shared, &"bob".into(), &"send".into(), rate(60)).await.unwrap_err().retry_after_ms;
        assert_eq!(wait, Some(900), "a tenth of a token had flowed, and one flows each second now");
        tokio::time::advance(Duration::from_millis(900)).await;
        assert!(users.take(shared, &"bob".into(), &"send".into(), rate(60)).await.is_ok());
    }
}
