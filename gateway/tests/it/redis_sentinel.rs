//! The Redis engine on a master that Sentinels name.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use postern::commit::{Millis, Position};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{Engine, Feed, Follower, Range};
use tokio::time::{Instant, sleep, timeout};

use crate::engine_suite::Fixture;
use crate::redis_engine::{acme, apply, apply_whatever_happens, next, next_position, next_reset, say};
use crate::support::redis_sentinel::Sentinels;

/// How long it may take until a node works with the new master.
const MOVED_MAX: Duration = Duration::from_secs(8);

/// A part of the suite that meets every way to the server: the engine above it is the same.
mod suite {
    crate::engine_suite::cases! { super::BehindSentinel, log:
        a_commit_arrives_whole_at_its_position,
        every_follower_on_every_node_sees_the_same_order,
        a_range_starts_after_its_position_and_keeps_its_limit,
        something_ephemeral_reaches_the_followers_and_not_the_log,
        a_log_that_begins_anew_has_a_larger_epoch_and_says_that_the_old_is_gone,
    }
    crate::engine_suite::cases! { super::BehindSentinel, state:
        keys_are_listed_in_order_page_by_page,
    }
    crate::engine_suite::cases! { super::BehindSentinel, timers:
        timers_fire_when_they_are_due_earliest_first,
    }
    crate::engine_suite::cases! { super::BehindSentinel, people:
        an_arrived_connection_is_in_its_own_rooms_until_it_is_gone,
        an_artifact_is_found_by_its_digest,
    }
}

/// A watched master with one node's engine on it.
pub(crate) struct BehindSentinel {
    sentinels: Sentinels,
    engine: Arc<RedisEngine>,
    options: Options,
}

impl BehindSentinel {
    async fn with(options: Options, count: usize) -> BehindSentinel {
        let sentinels = Sentinels::start(count);
        let engine = connect(&sentinels.url(), options.clone()).await.unwrap();
        BehindSentinel { sentinels, engine, options }
    }
}

#[async_trait]
impl Fixture for BehindSentinel {
    async fn start() -> Self {
        BehindSentinel::with(Options { timer_lease_ms: 400, ..Options::default() }, 1).await
    }

    async fn with_log(entries: usize) -> Self {
        BehindSentinel::with(Options { log_entries_max: entries, ..Options::default() }, 1).await
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    async fn another(&self) -> Arc<dyn Engine> {
        connect(&self.sentinels.url(), self.options.clone()).await.unwrap()
    }

    async fn pass(&self, ms: Millis) {
        sleep(Duration::from_millis(ms + 5)).await;
    }

    fn lease_ms(&self) -> Millis {
        self.options.timer_lease_ms
    }

    async fn lose_log(&mut self) {
        self.sentinels.servers[0].command(&["FLUSHALL"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_that_lost_the_end_of_a_log_says_so_and_goes_on() {
    let BehindSentinel { mut sentinels, engine, .. } = BehindSentinel::with(Options::default(), 3).await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let kept = apply(&engine, say("kept")).await;
    let [master, _] = &mut sentinels.servers;
    master.wait_for_replica();
    // From here on the replica gets nothing.
    master.command(&["ACL", "SETUSER", "default", "-psync", "-sync"]);
    master.command(&["CLIENT", "KILL", "TYPE", "replica"]);
    let lost = apply(&engine, say("lost")).await;
    assert_eq!([next_position(&mut follower).await, next_position(&mut follower).await], [kept, lost]);
    master.kill();

    let (new, _) = apply_whatever_happens(&engine, say("new")).await;
    assert!(new.epoch > lost.epoch && new.seq == 1, "{lost} {new}");
    assert_eq!(next_reset(&mut follower).await, kept);
    assert_eq!(next_position(&mut follower).await, new);
    assert!(matches!(engine.range(&acme(), lost, 10).await.unwrap(), Range::Gone));
    assert!(matches!(engine.range(&acme(), kept, 10).await.unwrap(), Range::Entries(rest) if rest.len() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_is_followed() {
    let BehindSentinel { sentinels, engine, .. } = BehindSentinel::with(Options::default(), 3).await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let before = apply(&engine, say("before")).await;
    assert_eq!(next_position(&mut follower).await, before);
    sentinels.servers[0].wait_for_replica();
    sentinels.fail_over();
    let moved = moved(&engine, before).await;
    next_up_to(&mut follower, moved).await;
    let next = apply(&engine, say("next")).await;
    assert_eq!(next_position(&mut follower).await, next);
}

/// What a node sees that was not told of a fail-over and whose old master was never stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_the_sentinels_do_not_name_any_more_is_left_although_it_answers() {
    let BehindSentinel { sentinels, engine, .. } = BehindSentinel::with(Options::default(), 1).await;
    let mut follower = engine.follow(&acme()).await.unwrap();
    let before = apply(&engine, say("before")).await;
    assert_eq!(next_position(&mut follower).await, before);
    sentinels.servers[0].wait_for_replica();
    sentinels.servers[1].command(&["REPLICAOF", "NO", "ONE"]);
    sentinels.name_the_second();
    let moved = moved(&engine, before).await;
    // The subscriptions moved along.
    next_up_to(&mut follower, moved).await;
    let next = apply(&engine, say("next")).await;
    assert_eq!(timeout(Duration::from_secs(10), next_position(&mut follower)).await, Ok(next));
}

/// The first position that the new master gave; what the old one takes until it is left is lost.
async fn moved(engine: &RedisEngine, before: Position) -> Position {
    let since = Instant::now();
    loop {
        let (position, _) = apply_whatever_happens(engine, say("where?")).await;
        assert!(since.elapsed() < MOVED_MAX, "still at the old master after {:?}", since.elapsed());
        if position.epoch > before.epoch {
            return position;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Takes what comes, entries that the old master had and the reset for them, up to that position.
async fn next_up_to(follower: &mut Follower, wanted: Position) {
    while !matches!(next(follower).await, Feed::Entry(entry) if entry.position == wanted) {}
}
