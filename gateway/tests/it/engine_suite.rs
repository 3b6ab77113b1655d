//! What every engine promises, as tests. `engine_suite!(embedded, Fixture)` runs them all against
//! one engine; the promises themselves are in the text of `postern::engine`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postern::commit::{
    Commit, CommitId, Effect, Entry, Millis, Position, Publication, StateKey, TimerChange, TimerKey, Versioned, Write,
};
use postern::engine::{Engine, Feed, Follower, Outcome};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::TenantId;

pub(crate) mod forgetting;
pub(crate) mod log;
pub(crate) mod people;
pub(crate) mod shared_limits;
pub(crate) mod state;
pub(crate) mod timers;
pub(crate) mod totals;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a test waits to see that nothing comes.
const QUIET: Duration = Duration::from_millis(60);

/// One engine with data of its own: two fixtures share nothing, not even timers.
#[async_trait]
pub(crate) trait Fixture: Send + Sync + Sized + 'static {
    /// An engine with its usual limits.
    async fn start() -> Self;

    /// An engine whose logs keep about this many entries (at least as many, at most
    /// 200 more).
    async fn with_log(entries: usize) -> Self;

    /// The engine under test.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Another node's engine on the same data; the same engine where there can be one only.
    async fn another(&self) -> Arc<dyn Engine>;

    /// Lets this much time pass by the engine's clock.
    async fn pass(&self, ms: Millis);

    /// How long this fixture's engine leases timers.
    fn lease_ms(&self) -> Millis;

    /// Takes the log away as the worst that may happen does (a restart, a flushed Redis). The
    /// caller holds no engine while this runs.
    async fn lose_log(&mut self);
}

/// Runs every test of the suite against one engine.
macro_rules! engine_suite {
    ($engine:ident, $fixture:ty) => {
        mod $engine {
            crate::engine_suite::cases! { $fixture, log:
                a_commit_arrives_whole_at_its_position,
                concurrent_commits_get_positions_without_holes,
                every_follower_on_every_node_sees_the_same_order,
                a_follower_misses_nothing_that_is_committed_while_it_starts,
                a_commit_without_effects_answers_the_top_and_is_not_in_the_log,
                the_same_id_twice_is_done_once,
                the_same_id_at_once_is_done_once,
                an_abandoned_commit_sent_again_is_done_once,
                a_range_starts_after_its_position_and_keeps_its_limit,
                a_range_from_another_epoch_or_beyond_the_top_is_gone,
                a_range_that_was_trimmed_is_gone,
                history_is_the_latest_of_one_room_oldest_first,
                something_ephemeral_reaches_the_followers_and_not_the_log,
                a_sleeping_follower_gets_everything_the_log_still_holds,
                a_follower_that_sleeps_through_a_trimmed_log_is_told,
                a_follower_that_leaves_holds_nobody_up,
                a_log_that_begins_anew_has_a_larger_epoch_and_says_that_the_old_is_gone,
            }
            crate::engine_suite::cases! { $fixture, state:
                what_was_put_is_read_until_it_is_deleted,
                every_write_has_a_version_of_its_own,
                a_commit_whose_reads_still_hold_is_applied,
                a_changed_read_is_a_conflict,
                a_key_that_came_to_be_is_a_conflict,
                a_deleted_read_is_a_conflict,
                an_expired_read_is_a_conflict,
                a_conflict_changes_nothing,
                reads_alone_are_validated_too,
                a_resent_commit_is_not_refused_for_what_it_changed_itself,
                of_many_commits_that_read_the_same_one_is_applied,
                additions_commute,
                an_addition_to_something_else_than_a_counter_changes_nothing,
                an_addition_keeps_the_time_to_live,
                a_key_is_gone_when_its_time_to_live_has_passed,
                a_new_value_forgets_the_old_time_to_live,
                keys_are_listed_in_order_page_by_page,
                tenants_are_apart,
            }
            crate::engine_suite::cases! { $fixture, forgetting:
                what_a_tenant_has_left_is_forgotten_and_of_nobody_else,
                nothing_is_forgotten_when_the_guard_has_changed,
                however_many_are_registered_all_are_forgotten_in_time,
            }
            crate::engine_suite::cases! { $fixture, timers:
                timers_fire_when_they_are_due_earliest_first,
                a_claimed_timer_is_leased,
                a_timer_given_back_comes_again_when_asked,
                a_replaced_timer_fires_once_with_the_new_data,
                a_cancelled_timer_is_gone,
                two_claimers_never_get_the_same_timer,
                a_fired_timer_is_settled_exactly_once,
                a_settled_timer_can_be_set_again_by_its_own_commit,
                timers_of_tenants_and_plugins_are_apart,
                a_timer_that_is_postponed_has_not_been_tried,
                a_timer_that_is_given_up_is_kept_among_the_dead,
            }
            crate::engine_suite::cases! { $fixture, totals:
                what_plugins_keep_is_counted_and_what_the_gateway_keeps_is_not,
                a_commit_that_would_leave_too_much_is_not_applied,
                whoever_is_over_a_limit_can_clean_up,
                what_has_expired_stands_in_nobodys_way,
                a_value_with_a_time_to_live_is_counted_once_however_often_it_is_written,
                timers_count_until_they_have_fired_or_were_given_up,
                of_commits_on_many_nodes_together_none_goes_beyond,
                totals_of_tenants_are_apart,
            }
            crate::engine_suite::cases! { $fixture, people:
                an_arrived_connection_is_in_its_own_rooms_until_it_is_gone,
                a_user_joins_with_all_connections_of_the_rooms_namespace,
                joins_of_unknown_connections_count_nobody,
                members_are_in_order_and_limited,
                a_user_comes_with_the_first_connection_and_goes_with_the_last,
                whoever_goes_and_comes_within_one_commit_has_not_moved,
                nobody_is_named_for_the_gateways_own_rooms,
                what_a_node_registers_after_a_loss_is_there_again,
                what_a_node_says_is_gone_is_gone_from_the_registry,
                a_node_that_reports_is_one_of_the_nodes,
                rooms_of_tenants_are_apart,
                a_session_record_lives_as_long_as_its_last_write_said,
                a_connection_that_is_gone_does_not_write_the_session_of_its_successor,
                a_commit_whose_session_has_no_connection_is_not_applied_until_it_is_there,
                a_session_goes_on_when_its_connection_is_registered_again_after_a_loss,
                sessions_of_tenants_are_apart,
                an_artifact_is_found_by_its_digest,
                an_artifact_is_deleted_only_when_nobody_stored_or_kept_it_for_long,
                a_running_engine_says_that_it_is_ready,
            }
            crate::engine_suite::cases! { $fixture, shared_limits:
                of_clients_that_come_in_at_once_as_many_get_in_as_may,
                a_seat_that_is_taken_twice_is_one_and_given_back_twice_too,
                a_tenant_has_so_many_seats_whoever_has_them,
                who_takes_a_seat_is_told_how_many_the_tenant_has_on_all_nodes,
                a_connection_that_comes_back_has_the_seat_of_the_earlier_one,
                seats_that_a_node_says_it_has_are_there_whatever_the_limit,
                a_bucket_grants_a_minutes_worth_however_many_ask_at_once,
                a_bucket_is_refilled_evenly,
                an_empty_bucket_says_how_long_until_there_is_a_token,
            }
        }
    };
}
pub(crate) use engine_suite;

macro_rules! cases {
    ($fixture:ty, $part:ident: $($case:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::engine_suite::$part::$case::<$fixture>().await;
            }
        )+
    };
}
pub(crate) use cases;

// What the tests are written in.

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn globex() -> TenantId {
    TenantId::parse("globex").unwrap()
}

fn room(name: &str) -> Room {
    Room::parse(name).unwrap()
}

fn key(name: &str) -> StateKey {
    StateKey::of("visits", name)
}

fn timer(name: &str) -> TimerKey {
    TimerKey { plugin: "visits".into(), name: name.into() }
}

fn nothing() -> Commit {
    Commit::new(CommitId::random())
}

fn publication(to: &str, text: &str) -> Publication {
    let data = Payload::one(&serde_json::Value::from(text));
    Publication { room: room(to), event: "said".into(), data, except: None }
}

fn say(to: &str, text: &str) -> Commit {
    Commit::publish(publication(to, text))
}

fn value(bytes: &str) -> Write {
    Write::Put { value: Bytes::copy_from_slice(bytes.as_bytes()), ttl_ms: None }
}

fn value_for(bytes: &str, ttl_ms: Millis) -> Write {
    Write::Put { value: Bytes::copy_from_slice(bytes.as_bytes()), ttl_ms: Some(ttl_ms) }
}

fn write(name: &str, write: Write) -> Commit {
    Commit { writes: vec![(key(name), write)], ..nothing() }
}

fn set_timer(name: &str, after_ms: Millis, data: &str) -> Commit {
    Commit { timers: vec![(timer(name), TimerChange::Set { after_ms, data: data.into() })], ..nothing() }
}

/// Reading, committing and following in one word each, for one tenant of one engine.
struct Tenant {
    engine: Arc<dyn Engine>,
    id: TenantId,
}

impl Tenant {
    fn of(engine: Arc<dyn Engine>, id: TenantId) -> Tenant {
        Tenant { engine, id }
    }

    async fn commit(&self, commit: Commit) -> Outcome {
        self.engine.commit(&self.id, Arc::new(commit)).await.unwrap()
    }

    /// Commits what must succeed.
    async fn apply(&self, commit: Commit) -> Position {
        match self.commit(commit).await {
            Outcome::Committed(position) => position,
            other => panic!("not committed: {other:?}"),
        }
    }

    async fn read(&self, name: &str) -> Option<Versioned> {
        self.engine.read(&self.id, &[key(name)]).await.unwrap().remove(0)
    }

    async fn text(&self, name: &str) -> Option<String> {
        self.read(name).await.map(|read| String::from_utf8(read.value.to_vec()).unwrap())
    }

    /// The read set of one key as it is now.
    async fn reads(&self, name: &str) -> Vec<(StateKey, Option<postern::commit::Version>)> {
        vec![(key(name), self.read(name).await.map(|read| read.version))]
    }

    async fn follow(&self) -> Follower {
        self.engine.follow(&self.id).await.unwrap()
    }

    async fn count(&self, name: &str) -> usize {
        self.engine.count(&self.id, &room(name)).await.unwrap()
    }

    async fn due(&self) -> Vec<postern::engine::DueTimer> {
        let due = self.engine.claim_timers(100).await.unwrap();
        due.into_iter().filter(|timer| timer.tenant == self.id).collect()
    }
}

fn texts(entries: &[Arc<Entry>]) -> Vec<String> {
    let text = |effect: &Effect| match effect {
        Effect::Publish(publication) => Some(publication.data.first()?.as_str()?.to_owned()),
        _ => None,
    };
    entries.iter().flat_map(|entry| entry.effects.iter().filter_map(text)).collect()
}

/// What the feed carries next.
async fn next(follower: &mut Follower) -> Feed {
    let next = tokio::time::timeout(PATIENCE, follower.feed.recv()).await;
    next.expect("nothing came").expect("the feed ended")
}

/// The next entry, which must be the one right after what came before.
async fn next_entry(follower: &mut Follower) -> Arc<Entry> {
    loop {
        match next(follower).await {
            Feed::Entry(entry) => {
                assert!(follows(follower.position, entry.position), "{} → {}", follower.position, entry.position);
                follower.position = entry.position;
                return entry;
            }
            Feed::Ephemeral(_) => {}
            Feed::Reset(position) => panic!("reset to {position}"),
        }
    }
}

async fn next_entries(follower: &mut Follower, count: usize) -> Vec<Arc<Entry>> {
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(next_entry(follower).await);
    }
    entries
}

/// Nothing more is in the feed.
async fn assert_quiet(follower: &mut Follower) {
    if let Ok(Some(feed)) = tokio::time::timeout(QUIET, follower.feed.recv()).await {
        panic!("nothing was to come, but {feed:?} did");
    }
}

fn follows(before: Position, after: Position) -> bool {
    after == before.next() || (after.epoch > before.epoch && after.seq == 1)
}

/// Some facts are known to all nodes a moment later only.
async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs `task` `count` times at once and answers what they answered.
async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    count: usize,
    task: impl Fn(usize) -> F,
) -> Vec<T> {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..count {
        tasks.spawn(task(n));
    }
    tasks.join_all().await
}
