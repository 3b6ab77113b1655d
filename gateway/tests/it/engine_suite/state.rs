//! State: read sets, conflicts, counters, times to live, listings.

use postern::commit::{SessionRecord, Version};
use postern::engine::{EngineError, KeyPage};

use super::*;

pub(crate) async fn what_was_put_is_read_until_it_is_deleted<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    assert_eq!(acme.read("a").await, None);
    acme.apply(write("a", value("1"))).await;
    acme.apply(write("empty", value(""))).await;
    acme.apply(write("bytes", Write::Put { value: Bytes::from_static(&[0, 255, 128, 10]), ttl_ms: None })).await;

    let keys = [key("missing"), key("bytes"), key("a"), key("empty")];
    let elsewhere = fixture.another().await;
    let read = elsewhere.read(&acme.id, &keys).await.unwrap();
    let values: Vec<_> = read.iter().map(|read| read.as_ref().map(|read| &read.value[..])).collect();
    assert_eq!(values, [None, Some(&[0, 255, 128, 10][..]), Some(b"1"), Some(b"")]);

    acme.apply(write("a", Write::Delete)).await;
    acme.apply(write("missing", Write::Delete)).await;
    assert_eq!(acme.read("a").await, None);
}

pub(crate) async fn every_write_has_a_version_of_its_own<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut versions: Vec<Version> = Vec::new();
    for change in [value("1"), value("1"), Write::Add(0), Write::Delete, value("1")] {
        acme.apply(write("a", change)).await;
        if let Some(read) = acme.read("a").await {
            assert_eq!(read.value, "1");
            assert!(!versions.contains(&read.version), "{:?} came twice", read.version);
            assert_eq!(acme.read("a").await.unwrap().version, read.version, "reading changes nothing");
            versions.push(read.version);
        }
    }
    assert_eq!(versions.len(), 4);
}

pub(crate) async fn a_commit_whose_reads_still_hold_is_applied<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let reads = acme.reads("a").await;
    acme.apply(Commit { reads, ..write("a", value("1")) }).await;
    let mut reads = acme.reads("a").await;
    reads.extend(acme.reads("absent").await);
    acme.apply(write("unrelated", value("x"))).await;
    acme.apply(Commit { reads, ..write("a", value("2")) }).await;
    assert_eq!(acme.text("a").await.as_deref(), Some("2"));
}

pub(crate) async fn a_changed_read_is_a_conflict<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value("1"))).await;
    acme.apply(write("b", value("1"))).await;
    for change in [value("2"), value("1"), Write::Add(1)] {
        let mut reads = acme.reads("b").await;
        reads.extend(acme.reads("a").await);
        acme.apply(write("a", change)).await;
        let outcome = acme.commit(Commit { reads, ..write("b", value("lost")) }).await;
        assert_eq!(outcome, Outcome::Conflict(key("a")));
    }
    assert_eq!(acme.text("b").await.as_deref(), Some("1"));
}

pub(crate) async fn a_key_that_came_to_be_is_a_conflict<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let reads = acme.reads("a").await;
    acme.apply(write("a", value("1"))).await;
    let outcome = acme.commit(Commit { reads, ..write("a", value("2")) }).await;
    assert_eq!(outcome, Outcome::Conflict(key("a")));
    assert_eq!(acme.text("a").await.as_deref(), Some("1"));
}

pub(crate) async fn a_deleted_read_is_a_conflict<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value("1"))).await;
    let reads = acme.reads("a").await;
    acme.apply(write("a", Write::Delete)).await;
    let stale = Commit { reads, ..write("b", value("lost")) };
    assert_eq!(acme.commit(stale.clone()).await, Outcome::Conflict(key("a")));
    acme.apply(write("a", value("1"))).await;
    let again = Commit { id: CommitId::random(), ..stale };
    assert_eq!(acme.commit(again).await, Outcome::Conflict(key("a")), "the same value written again is another");
}

pub(crate) async fn an_expired_read_is_a_conflict<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value_for("1", 100))).await;
    let reads = acme.reads("a").await;
    assert!(reads[0].1.is_some());
    fixture.pass(150).await;
    let outcome = acme.commit(Commit { reads, ..write("b", value("lost")) }).await;
    assert_eq!(outcome, Outcome::Conflict(key("a")));
    let reads = acme.reads("a").await;
    acme.apply(Commit { reads, ..write("b", value("found")) }).await;
}

pub(crate) async fn a_conflict_changes_nothing<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value("1"))).await;
    acme.apply(write("deleted", value("not"))).await;
    let reads = acme.reads("a").await;
    acme.apply(write("a", value("2"))).await;
    let mut follower = acme.follow().await;

    let session = SessionRecord {
        session: "secret".into(),
        connection: "c1".into(),
        subject: "bob".into(),
        namespace: "/".into(),
        claims: "{}".into(),
        rooms: Default::default(),
        ttl_ms: 60_000,
        heard: None,
    };
    let arrive = Effect::Arrive { id: "c1".into(), subject: "bob".into(), namespace: "/".into() };
    let commit = Commit {
        reads,
        writes: vec![(key("put"), value("x")), (key("added"), Write::Add(1)), (key("deleted"), Write::Delete)],
        effects: vec![Effect::Publish(publication("flat:a1", "never")), arrive],
        session: Some(session),
        ..set_timer("soon", 0, "null")
    };
    assert_eq!(acme.commit(commit).await, Outcome::Conflict(key("a")));

    fixture.pass(20).await;
    assert_eq!(acme.read("put").await, None);
    assert_eq!(acme.read("added").await, None);
    assert_eq!(acme.text("deleted").await.as_deref(), Some("not"));
    assert_eq!(acme.due().await, []);
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), None);
    assert_eq!(acme.count("everyone").await, 0);
    assert_quiet(&mut follower).await;
}

/// A decision that only tells others something rests on what it read as well.
pub(crate) async fn reads_alone_are_validated_too<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("a", value("1"))).await;
    let reads = acme.reads("a").await;
    let mut follower = acme.follow().await;
    acme.apply(Commit { reads: reads.clone(), ..say("flat:a1", "fresh") }).await;
    acme.apply(write("a", value("2"))).await;
    assert_eq!(
        acme.commit(Commit { reads: reads.clone(), ..say("flat:a1", "stale") }).await,
        Outcome::Conflict(key("a"))
    );
    assert_eq!(acme.commit(Commit { reads, ..nothing() }).await, Outcome::Conflict(key("a")), "with no effects either");
    assert_eq!(texts(&[next_entry(&mut follower).await]), ["fresh"]);
    assert_quiet(&mut follower).await;
}

pub(crate) async fn a_resent_commit_is_not_refused_for_what_it_changed_itself<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let commit =
        Commit { reads: acme.reads("a").await, writes: vec![(key("a"), value("1"))], ..say("flat:a1", "once") };
    let position = acme.apply(commit.clone()).await;
    assert_eq!(acme.apply(commit).await, position);

    let refused = Commit { reads: vec![(key("a"), None)], ..say("flat:a1", "never") };
    assert_eq!(acme.commit(refused.clone()).await, Outcome::Conflict(key("a")));
    assert_eq!(acme.commit(refused).await, Outcome::Conflict(key("a")), "a refused id is not a done one");
}

pub(crate) async fn of_many_commits_that_read_the_same_one_is_applied<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let acme = Tenant::of(fixture.engine(), acme());
    for round in 0..10 {
        let name = format!("visitor-{round}");
        acme.apply(write(&name, value("pending"))).await;
        let reads = acme.reads(&name).await;
        let outcomes = at_once(8, |n| {
            let acme = Tenant::of(nodes[n % 2].clone(), self::acme());
            let decided = Commit { reads: reads.clone(), ..write(&name, value(&format!("by {n}"))) };
            async move { acme.commit(decided).await }
        })
        .await;
        let won = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Committed(_))).count();
        let lost = outcomes.iter().filter(|outcome| **outcome == Outcome::Conflict(key(&name))).count();
        assert_eq!((won, lost), (1, 7));
    }
}

pub(crate) async fn additions_commute<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let outcomes = at_once(10, |n| {
        let acme = Tenant::of(nodes[n % 2].clone(), acme());
        async move {
            for _ in 0..10 {
                acme.apply(write("count", Write::Add(n as i64 - 3))).await;
            }
        }
    });
    outcomes.await;
    let acme = Tenant::of(fixture.engine(), acme());
    assert_eq!(acme.text("count").await.as_deref(), Some("150"));
    acme.apply(write("count", Write::Add(-151))).await;
    assert_eq!(acme.text("count").await.as_deref(), Some("-1"));
    acme.apply(write("big", value("9007199254740993"))).await;
    acme.apply(write("big", Write::Add(1))).await;
    assert_eq!(acme.text("big").await.as_deref(), Some("9007199254740994"), "all 64 bits count");
}

pub(crate) async fn an_addition_to_something_else_than_a_counter_changes_nothing<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    for text in ["", "ten", "1.5", "9223372036854775807"] {
        acme.apply(write("text", value(text))).await;
        let commit = Commit {
            writes: vec![(key("before"), value("x")), (key("text"), Write::Add(1))],
            ..say("flat:a1", "never")
        };
        let error = acme.engine.commit(&acme.id, Arc::new(commit)).await.unwrap_err();
        assert!(matches!(&error, EngineError::NotACounter(name) if *name == key("text")), "{text:?}: {error:?}");
        assert_eq!(acme.text("text").await.as_deref(), Some(text));
    }
    assert_eq!(acme.read("before").await, None);
    assert_quiet(&mut follower).await;
}

pub(crate) async fn an_addition_keeps_the_time_to_live<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("window", value_for("1", 100))).await;
    acme.apply(write("window", Write::Add(1))).await;
    fixture.pass(150).await;
    assert_eq!(acme.read("window").await, None);
    acme.apply(write("window", Write::Add(5))).await;
    assert_eq!(acme.text("window").await.as_deref(), Some("5"), "what has expired counts as 0");
    fixture.pass(150).await;
    assert_eq!(acme.text("window").await.as_deref(), Some("5"), "and what is new stays");
}

pub(crate) async fn a_key_is_gone_when_its_time_to_live_has_passed<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("short", value_for("1", 100))).await;
    acme.apply(write("long", value_for("1", 60_000))).await;
    acme.apply(write("ever", value("1"))).await;
    assert_eq!(acme.text("long").await.as_deref(), Some("1"));
    fixture.pass(150).await;
    assert_eq!(acme.read("short").await, None);
    let page = acme.engine.list_keys(&acme.id, "visits/", None, 10).await.unwrap();
    assert_eq!(page.keys, [key("ever"), key("long")]);
}

pub(crate) async fn a_new_value_forgets_the_old_time_to_live<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(write("stays", value_for("1", 100))).await;
    acme.apply(write("stays", value("2"))).await;
    acme.apply(write("longer", value_for("1", 100))).await;
    acme.apply(write("longer", value_for("2", 60_000))).await;
    fixture.pass(150).await;
    assert_eq!(acme.text("stays").await.as_deref(), Some("2"));
    assert_eq!(acme.text("longer").await.as_deref(), Some("2"));
}

pub(crate) async fn keys_are_listed_in_order_page_by_page<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let names = ["visits/a", "visits/b", "visits/ba", "visits/bé", "visits/c", "visit/x", "visitsx/y", "/shared"];
    let writes = names.iter().rev().map(|name| (StateKey::stored(name), value("1"))).collect();
    acme.apply(Commit { writes, ..nothing() }).await;

    let list = |prefix: &'static str, after: Option<&'static str>, limit| {
        let acme = &acme;
        async move {
            let KeyPage { keys, more } = acme.engine.list_keys(&acme.id, prefix, after, limit).await.unwrap();
            (keys.iter().map(|key| key.as_str().to_owned()).collect::<Vec<_>>().join(" "), more)
        }
    };
    let page = |keys: &str, more| (keys.to_owned(), more);
    assert_eq!(list("visits/", None, 10).await, page("visits/a visits/b visits/ba visits/bé visits/c", false));
    assert_eq!(list("visits/", None, 2).await, page("visits/a visits/b", true));
    assert_eq!(list("visits/", Some("visits/b"), 2).await, page("visits/ba visits/bé", true));
    assert_eq!(list("visits/", Some("visits/bé"), 2).await, page("visits/c", false));
    assert_eq!(list("visits/", Some("visits/bb"), 1).await, page("visits/bé", true), "`after` need not exist");
    assert_eq!(list("visits/", Some("visits/c"), 2).await, page("", false));
    assert_eq!(list("visits/b", Some("visits/a"), 10).await, page("visits/b visits/ba visits/bé", false));
    assert_eq!(list("/", None, 10).await, page("/shared", false));
    assert_eq!(list("nothing/", None, 10).await, page("", false));
    acme.apply(Commit { writes: vec![(StateKey::stored("visits/b"), Write::Delete)], ..nothing() }).await;
    assert_eq!(list("visits/", None, 2).await, page("visits/a visits/ba", true));
}

pub(crate) async fn tenants_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    let (mut of_acme, mut of_globex) = (acme.follow().await, globex.follow().await);
    let stale = globex.reads("a").await;

    let said = Commit { writes: vec![(key("a"), value("acme's"))], ..say("flat:a1", "acme's") };
    acme.apply(said.clone()).await;
    assert_eq!(globex.read("a").await, None);
    assert_eq!(globex.engine.list_keys(&globex.id, "", None, 10).await.unwrap(), KeyPage::default());
    let history = globex.engine.history(&globex.id, &room("flat:a1"), None, 10).await.unwrap();
    assert!(history.is_empty());

    // The same id, key and room at another tenant are other things.
    let same = Commit { reads: stale, writes: vec![(key("a"), value("globex's"))], ..say("flat:a1", "globex's") };
    globex.apply(Commit { id: said.id.clone(), ..same }).await;
    acme.engine.publish_ephemeral(&acme.id, publication("flat:a1", "typing")).await.unwrap();
    assert_eq!(texts(&[next_entry(&mut of_acme).await]), ["acme's"]);
    assert_eq!(texts(&[next_entry(&mut of_globex).await]), ["globex's"]);
    assert!(matches!(next(&mut of_acme).await, Feed::Ephemeral(_)));
    assert_quiet(&mut of_globex).await;
    globex.apply(write("a", Write::Delete)).await;
    assert_eq!(acme.text("a").await.as_deref(), Some("acme's"));
}
