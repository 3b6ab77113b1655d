//! Totals: what a tenant's plugins keep in all, and that nothing goes beyond what they may.

use postern::commit::FiredTimer;
use postern::quota::{OverQuota, Stored, StoredKind};

use super::*;

/// No limit that these tests reach.
const PLENTY: Stored = Stored { state_bytes: 1 << 30, state_keys: 1_000_000, timers: 1_000_000 };

fn stored(state_bytes: u64, state_keys: u64, timers: u64) -> Stored {
    Stored { state_bytes, state_keys, timers }
}

/// The same commit by a plugin whose tenant may keep so much.
fn within(most: Stored, commit: Commit) -> Commit {
    Commit { most: Some(most), ..commit }
}

fn over(kind: StoredKind, value: u64, limit: u64) -> Outcome {
    Outcome::OverQuota(OverQuota { kind, value, limit })
}

fn delete(name: &str) -> Commit {
    write(name, Write::Delete)
}

impl Tenant {
    async fn stored(&self) -> Stored {
        self.engine.stored(&self.id).await.unwrap()
    }

    async fn comes_to(&self, expected: Stored) {
        eventually(&format!("the totals come to {expected:?}"), || async { self.stored().await == expected }).await;
    }
}

pub(crate) async fn what_plugins_keep_is_counted_and_what_the_gateway_keeps_is_not<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    assert_eq!(acme.stored().await, Stored::default());
    // A key counts as it is stored: `visits/a`, 8 bytes.
    acme.apply(write("a", value("12345"))).await;
    assert_eq!(acme.stored().await, stored(13, 1, 0));
    acme.apply(write("a", value("1"))).await;
    assert_eq!(acme.stored().await, stored(9, 1, 0));
    acme.apply(Commit { writes: vec![(key("n"), Write::Add(99)), (key("/shared"), value(""))], ..nothing() }).await;
    assert_eq!(acme.stored().await, stored(9 + 10 + 7, 3, 0));
    acme.apply(write("n", Write::Add(1))).await;
    assert_eq!(acme.stored().await, stored(27, 3, 0), "99 became 100");

    let own = StateKey::of("_once", "x");
    let disconnected = TimerKey { plugin: "visits".into(), name: "/disconnected/s".into() };
    let set = TimerChange::Set { after_ms: 60_000, data: "{}".into() };
    let of_the_gateway =
        Commit { writes: vec![(own, value("much"))], timers: vec![(disconnected.clone(), set)], ..nothing() };
    acme.apply(within(stored(0, 0, 0), of_the_gateway)).await;
    acme.apply(Commit { timers: vec![(disconnected, TimerChange::Cancel)], ..nothing() }).await;
    assert_eq!(acme.stored().await, stored(27, 3, 0));

    for name in ["a", "n", "/shared", "never-there"] {
        acme.apply(delete(name)).await;
    }
    assert_eq!(acme.stored().await, Stored::default());
}

pub(crate) async fn a_commit_that_would_leave_too_much_is_not_applied<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    let most = stored(30, 2, 1);
    acme.apply(within(most, write("a", value("1234567")))).await;
    acme.apply(within(most, write("b", value("1234567")))).await;
    // Exactly as much as may be; each of the next is one too many of something.
    let big = Commit { writes: vec![(key("b"), value("12345678"))], ..say("lobby", "big") };
    assert_eq!(acme.commit(within(most, big)).await, over(StoredKind::StateBytes, 31, 30));
    let many = ["a", "b", "c"].map(|name| (key(name), value("")));
    let many = Commit { writes: many.into(), ..say("lobby", "many") };
    assert_eq!(acme.commit(within(most, many)).await, over(StoredKind::StateKeys, 3, 2));
    let both = |name: &str| (timer(name), TimerChange::Set { after_ms: 60_000, data: "1".into() });
    let timers = Commit { timers: vec![both("x"), both("y")], ..write("a", Write::Delete) };
    assert_eq!(acme.commit(within(most, timers)).await, over(StoredKind::Timers, 2, 1));
    let counted = within(stored(30, 2, 1), write("a", Write::Add(1)));
    acme.apply(write("a", value("9"))).await;
    acme.apply(within(stored(24, 2, 1), write("b", value("1234567")))).await;
    assert_eq!(acme.commit(within(stored(24, 2, 1), counted)).await, over(StoredKind::StateBytes, 25, 24));

    assert_quiet(&mut follower).await;
    assert_eq!((acme.text("a").await.as_deref(), acme.text("c").await), (Some("9"), None));
    assert_eq!(acme.stored().await, stored(24, 2, 0));
    let again = Commit { most: Some(PLENTY), ..write("c", value("now")) };
    acme.apply(again).await;
    assert_eq!(acme.text("c").await.as_deref(), Some("now"));
}

pub(crate) async fn whoever_is_over_a_limit_can_clean_up<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value("1234567890"))).await;
    acme.apply(write("b", value("1234567890"))).await;
    acme.apply(set_timer("x", 60_000, "1")).await;
    acme.apply(set_timer("y", 60_000, "1")).await;
    let lowered = stored(10, 1, 1);
    acme.apply(within(lowered, write("a", value("123456789")))).await;
    acme.apply(within(lowered, write("a", value("987654321")))).await;
    acme.apply(within(lowered, set_timer("x", 60_000, "2"))).await;
    assert_eq!(acme.commit(within(lowered, set_timer("z", 1, "1"))).await, over(StoredKind::Timers, 3, 1));
    assert_eq!(
        acme.commit(within(lowered, write("a", value("1234567890")))).await,
        over(StoredKind::StateBytes, 36, 10)
    );
    let cancel = Commit { timers: vec![(timer("x"), TimerChange::Cancel)], ..delete("b") };
    acme.apply(within(lowered, cancel)).await;
    acme.apply(within(lowered, delete("a"))).await;
    assert_eq!(acme.stored().await, stored(0, 0, 1));
    acme.apply(within(lowered, write("c", value("12")))).await;
}

pub(crate) async fn what_has_expired_stands_in_nobodys_way<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let most = stored(1_000, 40, 0);
    let names: Vec<String> = (10..50).map(|n| format!("k{n}")).collect();
    for chunk in names.chunks(20) {
        let writes = chunk.iter().map(|name| (key(name), value_for("x", 1_000))).collect();
        acme.apply(within(most, Commit { writes, ..nothing() })).await;
    }
    assert_eq!(acme.commit(within(most, write("new", value("")))).await, over(StoredKind::StateKeys, 41, 40));
    fixture.pass(1_100).await;
    let writes = names.iter().map(|name| (key(name), value("y"))).collect();
    acme.apply(within(most, Commit { writes, ..nothing() })).await;
    for name in &names {
        acme.apply(within(most, delete(name))).await;
    }
    assert_eq!(acme.stored().await, Stored::default());

    // One value that is asked for by nobody any more is not counted for ever either.
    acme.apply(within(most, write("gone", value_for("x", 50)))).await;
    fixture.pass(100).await;
    acme.comes_to(Stored::default()).await;
}

pub(crate) async fn a_value_with_a_time_to_live_is_counted_once_however_often_it_is_written<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value_for("1", 100))).await;
    acme.apply(write("a", value_for("22", 60_000))).await;
    fixture.pass(200).await;
    acme.apply(write("b", value("1"))).await;
    assert_eq!(acme.stored().await, stored(10 + 9, 2, 0), "the first time to live does not count any more");
    // With a time to live, without, and gone: in every order.
    acme.apply(write("a", value("333"))).await;
    acme.apply(delete("a")).await;
    acme.apply(write("a", value_for("1", 100))).await;
    acme.apply(delete("a")).await;
    acme.apply(write("a", value("1"))).await;
    fixture.pass(200).await;
    acme.apply(write("b", value("2"))).await;
    assert_eq!(acme.stored().await, stored(18, 2, 0));
    acme.apply(write("a", value_for("1", 50))).await;
    fixture.pass(100).await;
    // Gone, whether or not it was taken out of the totals yet, it is counted anew.
    acme.apply(write("a", value("7777"))).await;
    assert_eq!(acme.stored().await, stored(12 + 9, 2, 0));
    acme.apply(Commit { writes: vec![(key("a"), Write::Delete), (key("b"), Write::Delete)], ..nothing() }).await;
    assert_eq!(acme.stored().await, Stored::default());
}

pub(crate) async fn timers_count_until_they_have_fired_or_were_given_up<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let most = stored(0, 0, 2);
    acme.apply(within(most, set_timer("a", 10, "1"))).await;
    acme.apply(within(most, set_timer("b", 10, "1"))).await;
    acme.apply(within(most, set_timer("b", 20, "2"))).await;
    assert_eq!(acme.stored().await, stored(0, 0, 2));
    fixture.pass(40).await;
    let due = acme.due().await;
    assert_eq!((due.len(), acme.stored().await.timers), (2, 2), "claimed is not settled");
    let fired = |due: &postern::engine::DueTimer| Some(FiredTimer { key: due.key.clone(), token: due.token.clone() });

    // Each timer that fires may set one, and not two.
    let two = [("c", 60_000), ("d", 60_000)];
    let set = |(name, after_ms): (&str, Millis)| (timer(name), TimerChange::Set { after_ms, data: "1".into() });
    let breed = Commit { timers: two.map(set).into(), fired: fired(&due[0]), ..nothing() };
    assert_eq!(acme.commit(within(most, breed)).await, over(StoredKind::Timers, 3, 2));
    let again = Commit { timers: vec![set((&*due[0].key.name, 60_000))], fired: fired(&due[0]), ..nothing() };
    acme.apply(within(most, again)).await;
    assert_eq!(acme.stored().await.timers, 2);
    assert!(acme.engine.bury_timer(&due[1], "as ordered").await.unwrap());
    assert!(!acme.engine.bury_timer(&due[1], "as ordered").await.unwrap());
    assert_eq!(acme.stored().await.timers, 1);
    acme.apply(Commit { timers: vec![(due[0].key.clone(), TimerChange::Cancel)], ..nothing() }).await;
    assert_eq!(acme.stored().await, Stored::default());
}

pub(crate) async fn of_commits_on_many_nodes_together_none_goes_beyond<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    let most = stored(1 << 20, 50, 20);
    let outcomes = at_once(120, |n| {
        let engine = if n % 2 == 0 { one.clone() } else { other.clone() };
        let set = (timer(&format!("t{n}")), TimerChange::Set { after_ms: 60_000, data: "1".into() });
        let timers = if n % 3 == 0 { vec![set] } else { Vec::new() };
        let commit = Commit { timers, most: Some(most), ..write(&format!("k{n}"), value("x")) };
        async move { engine.commit(&acme(), Arc::new(commit)).await.unwrap() }
    })
    .await;
    let acme = Tenant::of(one, acme());
    let applied = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Committed(_))).count() as u64;
    let now = acme.stored().await;
    assert_eq!((now.state_keys, applied), (50, 50));
    assert!(now.timers <= 20, "{now:?}");
    let page = acme.engine.list_keys(&acme.id, "visits/", None, 100).await.unwrap();
    let bytes: usize = page.keys.iter().map(|key| key.as_str().len() + 1).sum();
    assert_eq!((page.keys.len(), bytes as u64), (50, now.state_bytes), "what is counted is what is there");
}

pub(crate) async fn totals_of_tenants_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    acme.apply(write("a", value("1234"))).await;
    acme.apply(set_timer("t", 60_000, "1")).await;
    assert_eq!(globex.stored().await, Stored::default());
    globex.apply(within(stored(9, 1, 1), write("a", value("1")))).await;
    globex.apply(within(stored(9, 1, 1), set_timer("t", 60_000, "1"))).await;
    globex.apply(delete("a")).await;
    assert_eq!((acme.stored().await, globex.stored().await), (stored(12, 1, 1), stored(0, 0, 1)));
}
