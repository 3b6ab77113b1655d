//! Timers: due order, leases, and that each is settled exactly once.

use postern::commit::FiredTimer;
use postern::engine::DueTimer;

use super::*;

/// The commit of a handler that a timer fired at.
fn settle(due: &DueTimer) -> Commit {
    Commit { fired: Some(FiredTimer { key: due.key.clone(), token: due.token.clone() }), ..nothing() }
}

fn names(due: &[DueTimer]) -> Vec<&str> {
    due.iter().map(|timer| &*timer.key.name).collect()
}

pub(crate) async fn timers_fire_when_they_are_due_earliest_first<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let changes = [("late", 150), ("soon", 50), ("much-later", 60_000), ("between", 100)];
    let set = |(name, after_ms)| (timer(name), TimerChange::Set { after_ms, data: r#"{"flat":"a1"}"#.into() });
    acme.apply(Commit { timers: changes.into_iter().map(set).collect(), ..nothing() }).await;

    assert_eq!(acme.due().await, []);
    fixture.pass(200).await;
    let first = acme.engine.claim_timers(2).await.unwrap();
    assert_eq!(names(&first), ["soon", "between"]);
    assert_eq!(first[1].due - first[0].due, 50);
    assert_eq!((&*first[0].data, first[0].attempt), (r#"{"flat":"a1"}"#, 1));
    assert_eq!((&first[0].tenant, &*first[0].key.plugin), (&acme.id, "visits"));
    let rest = fixture.another().await.claim_timers(10).await.unwrap();
    assert_eq!(names(&rest), ["late"], "those that are claimed are not claimed again, on any node");
}

pub(crate) async fn a_claimed_timer_is_leased<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(set_timer("t", 10, "1")).await;
    fixture.pass(20).await;
    let first = acme.due().await;
    fixture.pass(fixture.lease_ms() / 2).await;
    assert_eq!(acme.due().await, []);
    fixture.pass(fixture.lease_ms() / 2 + 20).await;
    let second = acme.due().await;
    assert_eq!((first[0].attempt, second[0].attempt), (1, 2));
    assert_eq!((&first[0].key, first[0].due, &first[0].data), (&second[0].key, second[0].due, &second[0].data));

    // The first claimer was slow, not dead: whoever commits first settles it, the other is told.
    acme.apply(settle(&first[0])).await;
    assert_eq!(acme.commit(settle(&second[0])).await, Outcome::TimerGone);
    fixture.pass(fixture.lease_ms() + 20).await;
    assert_eq!(acme.due().await, []);
}

pub(crate) async fn a_timer_given_back_comes_again_when_asked<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(set_timer("t", 10, "1")).await;
    fixture.pass(20).await;
    let claimed = acme.due().await;
    acme.engine.release_timer(&claimed[0], 100).await.unwrap();
    assert_eq!(acme.due().await, []);
    fixture.pass(150).await;
    let again = acme.due().await;
    assert_eq!((names(&again), again[0].attempt), (vec!["t"], 2));
    acme.engine.release_timer(&again[0], 0).await.unwrap();
    let third = acme.due().await;
    assert_eq!(third[0].attempt, 3);
    acme.apply(settle(&third[0])).await;
    acme.engine.release_timer(&third[0], 0).await.unwrap();
    fixture.pass(20).await;
    assert_eq!(acme.due().await, [], "what is settled does not come back by being released");
}

pub(crate) async fn a_replaced_timer_fires_once_with_the_new_data<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(set_timer("t", 10, "\"old\"")).await;
    fixture.pass(20).await;
    let old = acme.due().await;
    acme.apply(set_timer("t", 30, "\"new\"")).await;

    let mut follower = acme.follow().await;
    let late = Commit { effects: say("flat:a1", "timeout").effects, ..settle(&old[0]) };
    assert_eq!(acme.commit(late).await, Outcome::TimerGone);
    assert_quiet(&mut follower).await;

    fixture.pass(60).await;
    let new = acme.due().await;
    assert_eq!((names(&new), &*new[0].data, new[0].attempt), (vec!["t"], "\"new\"", 1));
    acme.apply(settle(&new[0])).await;
    fixture.pass(fixture.lease_ms() + 20).await;
    assert_eq!(acme.due().await, []);
}

pub(crate) async fn a_cancelled_timer_is_gone<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let cancel = |name: &str| Commit { timers: vec![(timer(name), TimerChange::Cancel)], ..nothing() };
    acme.apply(set_timer("early", 10, "1")).await;
    acme.apply(set_timer("fired", 10, "1")).await;
    acme.apply(cancel("early")).await;
    acme.apply(cancel("never-set")).await;
    fixture.pass(20).await;
    let due = acme.due().await;
    assert_eq!(names(&due), ["fired"]);
    acme.apply(cancel("fired")).await;
    assert_eq!(acme.commit(settle(&due[0])).await, Outcome::TimerGone);
    let forged = DueTimer { token: "not one of ours".into(), ..due[0].clone() };
    assert_eq!(acme.commit(settle(&forged)).await, Outcome::TimerGone);
    fixture.pass(fixture.lease_ms() + 20).await;
    assert_eq!(acme.due().await, []);
}

pub(crate) async fn two_claimers_never_get_the_same_timer<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let set = |n: usize| (timer(&format!("t{n:03}")), TimerChange::Set { after_ms: 0, data: "1".into() });
    Tenant::of(nodes[0].clone(), acme()).apply(Commit { timers: (0..60).map(set).collect(), ..nothing() }).await;
    fixture.pass(20).await;
    let claimed = at_once(6, |n| {
        let node = nodes[n % 2].clone();
        async move {
            let mut mine = Vec::new();
            for _ in 0..6 {
                mine.extend(node.claim_timers(7).await.unwrap());
            }
            mine
        }
    })
    .await;
    let mut all: Vec<_> = claimed.iter().flatten().map(|due| due.key.clone()).collect();
    all.sort();
    assert_eq!(all.len(), 60);
    all.dedup();
    assert_eq!(all.len(), 60);
}

/// Two nodes that believe they own the same timer: one outcome.
pub(crate) async fn a_fired_timer_is_settled_exactly_once<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    acme.apply(set_timer("t", 10, "1")).await;
    fixture.pass(20).await;
    let due = acme.due().await.remove(0);

    let outcomes = at_once(6, |n| {
        let acme = Tenant::of(nodes[n % 2].clone(), self::acme());
        let timeout = say("flat:a1", &format!("timeout {n}"));
        let commit =
            Commit { effects: timeout.effects, writes: vec![(key("timeouts"), Write::Add(1))], ..settle(&due) };
        async move { (acme.commit(commit.clone()).await, acme.commit(commit).await) }
    })
    .await;
    let entry = next_entry(&mut follower).await;
    let won: Vec<_> = outcomes.iter().filter(|(first, _)| *first == Outcome::Committed(entry.position)).collect();
    assert_eq!(won.len(), 1, "{outcomes:?}");
    assert_eq!(won[0].1, Outcome::Committed(entry.position), "sent again it answers as before");
    assert_eq!(outcomes.iter().filter(|both| **both == (Outcome::TimerGone, Outcome::TimerGone)).count(), 5);
    assert_eq!(acme.text("timeouts").await.as_deref(), Some("1"));
    assert_quiet(&mut follower).await;
}

pub(crate) async fn a_settled_timer_can_be_set_again_by_its_own_commit<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(set_timer("tick", 10, "1")).await;
    for round in 2..5 {
        fixture.pass(20).await;
        let due = acme.due().await;
        assert_eq!((names(&due), due[0].attempt), (vec!["tick"], 1));
        let again = set_timer("tick", 10, &round.to_string());
        acme.apply(Commit { timers: again.timers, ..settle(&due[0]) }).await;
        assert_eq!(acme.commit(settle(&due[0])).await, Outcome::TimerGone);
    }
    fixture.pass(20).await;
    assert_eq!(&*acme.due().await[0].data, "4");
}

pub(crate) async fn timers_of_tenants_and_plugins_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    let chat = TimerKey { plugin: "chat".into(), name: "t".into() };
    acme.apply(set_timer("t", 10, "\"acme's\"")).await;
    acme.apply(Commit {
        timers: vec![(chat, TimerChange::Set { after_ms: 10, data: "\"chat's\"".into() })],
        ..nothing()
    })
    .await;
    globex.apply(set_timer("t", 10, "\"globex's\"")).await;
    globex.apply(Commit { timers: vec![(timer("t"), TimerChange::Cancel)], ..nothing() }).await;
    fixture.pass(20).await;
    let mut due = fixture.engine().claim_timers(10).await.unwrap();
    due.sort_by(|a, b| a.data.cmp(&b.data));
    assert_eq!(due.iter().map(|timer| &*timer.data).collect::<Vec<_>>(), ["\"acme's\"", "\"chat's\""]);
    assert_eq!(globex.commit(settle(&due[0])).await, Outcome::TimerGone, "another tenant's token opens nothing");
    acme.apply(settle(&due[0])).await;
}

pub(crate) async fn a_timer_that_is_postponed_has_not_been_tried<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(set_timer("t", 10, "1")).await;
    fixture.pass(20).await;
    for _ in 0..3 {
        let claimed = acme.due().await;
        assert_eq!((names(&claimed), claimed[0].attempt), (vec!["t"], 1));
        acme.engine.postpone_timer(&claimed[0], 100).await.unwrap();
        assert_eq!(acme.due().await, []);
        fixture.pass(150).await;
    }
    let claimed = acme.due().await;
    acme.apply(settle(&claimed[0])).await;
    acme.engine.postpone_timer(&claimed[0], 0).await.unwrap();
    fixture.pass(20).await;
    assert_eq!(acme.due().await, [], "what is settled does not come back by being postponed");
}

pub(crate) async fn a_timer_that_is_given_up_is_kept_among_the_dead<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    for name in ["one", "two"] {
        acme.apply(set_timer(name, 10, "{\"a\":1}\n")).await;
        fixture.pass(20).await;
        let due = acme.due().await.remove(0);
        assert!(acme.engine.bury_timer(&due, "it failed\n5 times").await.unwrap());
        assert!(!acme.engine.bury_timer(&due, "again").await.unwrap());
        assert_eq!(acme.commit(settle(&due)).await, Outcome::TimerGone);
    }
    acme.apply(set_timer("replaced", 10, "1")).await;
    fixture.pass(20).await;
    let old = acme.due().await.remove(0);
    acme.apply(set_timer("replaced", 60_000, "2")).await;
    assert!(!acme.engine.bury_timer(&old, "late").await.unwrap(), "another one has its name now");
    fixture.pass(fixture.lease_ms() + 20).await;
    assert_eq!(acme.due().await, []);

    let dead = fixture.another().await.dead_timers(&acme.id, 10).await.unwrap();
    assert_eq!(dead.iter().map(|timer| &*timer.key.name).collect::<Vec<_>>(), ["two", "one"]);
    assert_eq!((&*dead[0].data, dead[0].attempts, &*dead[0].why), ("{\"a\":1}\n", 1, "it failed\n5 times"));
    assert_eq!(acme.engine.dead_timers(&acme.id, 1).await.unwrap().len(), 1);
    assert_eq!(globex.engine.dead_timers(&globex.id, 10).await.unwrap(), []);
}
