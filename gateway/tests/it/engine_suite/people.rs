//! Presence, sessions, artefacts, readiness.

use std::collections::BTreeMap;

use postern::client::ConnectionId;
use postern::commit::{Grant, Position, PresenceChange, SessionRecord, Who};
use postern::engine::{EngineError, Member, NodeStat, OldArtifact, Range, Registration};

use super::*;

fn effect(effect: Effect) -> Commit {
    Commit { effects: vec![effect], ..nothing() }
}

fn arrive(id: &str, subject: &str, namespace: &str) -> Commit {
    effect(Effect::Arrive { id: id.into(), subject: subject.into(), namespace: namespace.into() })
}

fn gone(id: &str) -> Commit {
    effect(Effect::Gone { id: id.into() })
}

fn join(who: Who, to: &str) -> Commit {
    effect(Effect::Join { who, room: room(to), grant: Grant::default() })
}

fn leave(who: Who, from: &str) -> Commit {
    effect(Effect::Leave { who, room: room(from) })
}

fn connection(id: &str) -> Who {
    Who::Connection(ConnectionId::from(id))
}

fn user(subject: &str) -> Who {
    Who::User(subject.into())
}

impl Tenant {
    /// The commit is refused for want of this connection.
    async fn assert_absent(&self, commit: Commit, connection: &str) {
        let refused = self.engine.commit(&self.id, Arc::new(commit)).await;
        assert!(matches!(&refused, Err(EngineError::Absent(id)) if id.as_str() == connection), "{refused:?}");
    }

    async fn in_room(&self, name: &str, limit: usize) -> String {
        let members = self.engine.members(&self.id, &room(name), limit).await.unwrap();
        let member = |Member { subject, connection }: &Member| format!("{subject}/{connection}");
        members.iter().map(member).collect::<Vec<_>>().join(" ")
    }

    /// The room holds exactly these, on this node, at the latest in a moment.
    async fn assert_members(&self, name: &str, members: &str) {
        let what = format!("{name} holds {members:?}");
        eventually(&what, || async { self.in_room(name, 100).await == members }).await;
        let count = if members.is_empty() { 0 } else { members.split(' ').count() };
        eventually(&what, || async { self.count(name).await == count }).await;
    }
}

pub(crate) async fn an_arrived_connection_is_in_its_own_rooms_until_it_is_gone<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    acme.apply(arrive("c1", "bob", "/")).await;
    elsewhere.apply(arrive("c2", "bob", "/")).await;
    acme.apply(arrive("c3", "bob", "/events")).await;
    acme.apply(join(connection("c2"), "flat:a1")).await;
    for node in [&acme, &elsewhere] {
        node.assert_members("connection:c1", "bob/c1").await;
        node.assert_members("user:bob", "bob/c1 bob/c2").await;
        node.assert_members("everyone", "bob/c1 bob/c2").await;
        node.assert_members("/events#everyone", "bob/c3").await;
        node.assert_members("/events#user:bob", "bob/c3").await;
        node.assert_members("flat:a1", "bob/c2").await;
    }
    acme.apply(gone("c2")).await;
    acme.apply(gone("c2")).await;
    elsewhere.assert_members("everyone", "bob/c1").await;
    elsewhere.assert_members("user:bob", "bob/c1").await;
    elsewhere.assert_members("flat:a1", "").await;
    elsewhere.assert_members("connection:c2", "").await;
}

pub(crate) async fn a_user_joins_with_all_connections_of_the_rooms_namespace<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    for (id, subject, namespace) in
        [("c1", "bob", "/"), ("c2", "bob", "/"), ("c3", "bob", "/events"), ("c4", "ann", "/")]
    {
        acme.apply(arrive(id, subject, namespace)).await;
    }
    acme.apply(join(user("bob"), "flat:a1")).await;
    acme.apply(join(user("bob"), "/events#lobby")).await;
    acme.apply(join(user("nobody"), "flat:a1")).await;
    acme.assert_members("flat:a1", "bob/c1 bob/c2").await;
    acme.assert_members("/events#lobby", "bob/c3").await;
    acme.apply(arrive("c5", "bob", "/")).await;
    acme.assert_members("flat:a1", "bob/c1 bob/c2").await;
    acme.apply(leave(connection("c1"), "flat:a1")).await;
    acme.assert_members("flat:a1", "bob/c2").await;
    acme.apply(leave(user("bob"), "flat:a1")).await;
    acme.assert_members("flat:a1", "").await;
    acme.assert_members("user:bob", "bob/c1 bob/c2 bob/c5").await;
}

pub(crate) async fn joins_of_unknown_connections_count_nobody<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    acme.apply(arrive("c1", "bob", "/")).await;
    acme.apply(gone("c1")).await;
    acme.apply(join(connection("c1"), "flat:a1")).await;
    acme.apply(leave(connection("never"), "flat:a1")).await;
    acme.apply(arrive("c2", "ann", "/")).await;
    acme.apply(join(connection("c2"), "flat:a1")).await;
    acme.apply(join(connection("c2"), "flat:a1")).await;
    acme.assert_members("flat:a1", "ann/c2").await;
}

pub(crate) async fn members_are_in_order_and_limited<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    for (id, subject) in [("c3", "bob"), ("c2", "zoe"), ("c1", "bob"), ("c4", "ann")] {
        acme.apply(arrive(id, subject, "/")).await;
        acme.apply(join(connection(id), "flat:a1")).await;
    }
    acme.assert_members("flat:a1", "ann/c4 bob/c1 bob/c3 zoe/c2").await;
    assert_eq!(acme.in_room("flat:a1", 2).await, "ann/c4 bob/c1");
    assert_eq!(acme.in_room("flat:empty", 2).await, "");
}

/// The changes of one entry as text, in no particular order of rooms.
fn turns(entry: &Entry) -> String {
    let mut changes = entry.presence.clone();
    changes.sort();
    let turn = |change: &PresenceChange| {
        format!("{}{}@{}", if change.joined { '+' } else { '-' }, change.subject, change.room)
    };
    changes.iter().map(turn).collect::<Vec<_>>().join(" ")
}

pub(crate) async fn a_user_comes_with_the_first_connection_and_goes_with_the_last<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    let mut followers = [acme.follow().await, elsewhere.follow().await];
    let commits = [
        (arrive("c1", "bob", "/"), ""),
        (arrive("c2", "bob", "/"), ""),
        (arrive("c3", "bobby", "/"), ""),
        (join(connection("c1"), "flat:a1"), "+bob@flat:a1"),
        (join(connection("c1"), "flat:a1"), ""),
        (join(connection("c3"), "flat:a1"), "+bobby@flat:a1"),
        (join(connection("c2"), "flat:a1"), ""),
        (join(user("bob"), "flat:b2"), "+bob@flat:b2"),
        (leave(connection("c1"), "flat:a1"), ""),
        (leave(connection("c1"), "flat:a1"), ""),
        (gone("c2"), "-bob@flat:a1"),
        (gone("c2"), ""),
        (gone("c1"), "-bob@flat:b2"),
        (leave(user("bobby"), "flat:a1"), "-bobby@flat:a1"),
    ];
    let mut expected = Vec::new();
    for (n, (commit, turns)) in commits.into_iter().enumerate() {
        if n % 2 == 0 {
            acme.apply(commit).await
        } else {
            elsewhere.apply(commit).await
        };
        expected.push(turns);
    }
    for follower in &mut followers {
        let entries = next_entries(follower, expected.len()).await;
        assert_eq!(entries.iter().map(|entry| turns(entry)).collect::<Vec<_>>(), expected);
    }
    let Range::Entries(read) = elsewhere
        .engine
        .range(&acme.id, Position { seq: followers[0].position.seq - 1, ..followers[0].position }, 9)
        .await
        .unwrap()
    else {
        panic!("gone")
    };
    assert_eq!(turns(&read[0]), "-bobby@flat:a1", "as it is read from the log");
}

pub(crate) async fn whoever_goes_and_comes_within_one_commit_has_not_moved<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    acme.apply(arrive("c1", "bob", "/")).await;
    acme.apply(join(connection("c1"), "flat:a1")).await;
    acme.apply(join(connection("c1"), "flat:b2")).await;
    let mut resume = arrive("c2", "bob", "/");
    for commit in [gone("c1"), join(connection("c2"), "flat:a1"), say("flat:a1", "back")] {
        resume.effects.extend(commit.effects);
    }
    acme.apply(resume).await;
    let entries = next_entries(&mut follower, 4).await;
    assert_eq!(turns(&entries[3]), "-bob@flat:b2");
    acme.assert_members("flat:a1", "bob/c2").await;
}

pub(crate) async fn nobody_is_named_for_the_gateways_own_rooms<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    acme.apply(arrive("c1", "bob", "/events")).await;
    acme.apply(join(connection("c1"), "/events#lobby")).await;
    acme.apply(gone("c1")).await;
    let entries = next_entries(&mut follower, 3).await;
    let turns: Vec<_> = entries.iter().map(|entry| turns(entry)).collect();
    assert_eq!(turns, ["", "+bob@/events#lobby", "-bob@/events#lobby"]);
}

fn registration(id: &str, subject: &str, rooms: &[&str]) -> Registration {
    let own = [format!("user:{subject}"), "everyone".into()];
    let rooms = own.iter().map(String::as_str).chain(rooms.iter().copied()).map(room).collect();
    Registration { connection: id.into(), subject: subject.into(), namespace: "/".into(), session: "s".into(), rooms }
}

pub(crate) async fn what_a_node_registers_after_a_loss_is_there_again<F: Fixture>() {
    let mut fixture = F::start().await;
    Tenant::of(fixture.engine(), acme()).apply(arrive("c1", "bob", "/")).await;
    fixture.lose_log().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    let (at, there) = (follower.position, [registration("c1", "bob", &["flat:a1"]), registration("c2", "ann", &[])]);
    for _ in 0..2 {
        assert!(acme.engine.register(&acme.id, at, &there, &[]).await.unwrap());
        acme.assert_members("everyone", "ann/c2 bob/c1").await;
        acme.assert_members("user:bob", "bob/c1").await;
        acme.assert_members("flat:a1", "bob/c1").await;
        acme.assert_members("connection:c1", "bob/c1").await;
    }
    assert_quiet(&mut follower).await;
    let mut known = acme.engine.registered(&acme.id).await.unwrap();
    known.sort();
    assert_eq!(known, ["c1".into(), "c2".into()]);
    acme.apply(gone("c1")).await;
    assert_eq!(turns(&*next_entry(&mut follower).await), "-bob@flat:a1", "from here on it counts as always");
    acme.assert_members("everyone", "ann/c2").await;
}

pub(crate) async fn what_a_node_says_is_gone_is_gone_from_the_registry<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    for id in ["c1", "c2"] {
        acme.apply(arrive(id, "bob", "/")).await;
        acme.apply(join(connection(id), "flat:a1")).await;
    }
    let at = acme.apply(join(connection("c1"), "flat:b2")).await;
    let stale = Position { seq: at.seq - 1, ..at };
    let there = [registration("c1", "bob", &["flat:a1"])];
    let exact = acme.engine.register(&acme.id, stale, &there, &["c2".into()]).await.unwrap();
    assert!(!exact, "the node does not know of the last join yet");
    acme.assert_members("flat:a1", "bob/c1").await;
    acme.assert_members("flat:b2", "bob/c1").await;
    acme.apply(say("flat:a1", "which moves nobody")).await;
    assert!(acme.engine.register(&acme.id, at, &there, &[]).await.unwrap());
    acme.assert_members("flat:b2", "").await;
    acme.apply(gone("c1")).await;
    assert!(!acme.engine.register(&acme.id, at, &there, &[]).await.unwrap(), "whoever has left may be back now");
    assert_eq!(acme.engine.registered(&acme.id).await.unwrap(), ["c1".into()]);
    let now = acme.apply(nothing()).await;
    assert!(acme.engine.register(&acme.id, now, &[], &["c1".into()]).await.unwrap());
    assert_eq!(acme.engine.registered(&acme.id).await.unwrap(), []);
}

pub(crate) async fn a_node_that_reports_is_one_of_the_nodes<F: Fixture>() {
    let fixture = F::start().await;
    let engine = fixture.engine();
    engine.report(NodeStat { server: "one".into(), connections: 7 });
    assert_eq!(engine.nodes(), [NodeStat { server: "one".into(), connections: 7 }]);
    assert_eq!(engine.orphans(10).await.unwrap(), [], "and it lives");
}

pub(crate) async fn rooms_of_tenants_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    acme.apply(arrive("c1", "bob", "/")).await;
    globex.apply(arrive("c1", "eve", "/")).await;
    globex.apply(join(user("bob"), "flat:a1")).await;
    globex.apply(join(user("eve"), "flat:a1")).await;
    acme.assert_members("everyone", "bob/c1").await;
    acme.assert_members("flat:a1", "").await;
    globex.assert_members("flat:a1", "eve/c1").await;
    globex.apply(gone("c1")).await;
    globex.assert_members("everyone", "").await;
    acme.assert_members("everyone", "bob/c1").await;
}

fn session(name: &str, rooms: &[&str], ttl_ms: Millis) -> SessionRecord {
    SessionRecord {
        session: name.into(),
        connection: "c1".into(),
        subject: "bob".into(),
        namespace: "/".into(),
        claims: "{}".into(),
        rooms: rooms
            .iter()
            .map(|name| (room(name), Grant { publish: true, ..Grant::default() }))
            .collect::<BTreeMap<_, _>>(),
        ttl_ms,
        heard: Some(Position { epoch: 7, seq: 3 }),
    }
}

pub(crate) async fn a_session_record_lives_as_long_as_its_last_write_said<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let elsewhere = fixture.another().await;
    let save = |record: SessionRecord| Commit { session: Some(record), ..nothing() };
    acme.apply(arrive("c1", "bob", "/")).await;
    let first = session("secret", &["flat:a1"], 400);
    acme.apply(save(first.clone())).await;
    assert_eq!(elsewhere.session(&acme.id, "secret").await.unwrap(), Some(first));
    assert_eq!(elsewhere.session(&acme.id, "secrets").await.unwrap(), None);

    fixture.pass(250).await;
    let second = session("secret", &["flat:a1", "flat:b2"], 400);
    acme.apply(Commit { effects: say("flat:a1", "joined").effects, ..save(second.clone()) }).await;
    fixture.pass(250).await;
    assert_eq!(elsewhere.session(&acme.id, "secret").await.unwrap(), Some(second), "a write begins the time anew");
    fixture.pass(250).await;
    assert_eq!(elsewhere.session(&acme.id, "secret").await.unwrap(), None);
}

pub(crate) async fn a_connection_that_is_gone_does_not_write_the_session_of_its_successor<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let of = |connection: &str, rooms: &[&str]| {
        Some(SessionRecord { connection: connection.into(), ..session("secret", rooms, 60_000) })
    };
    acme.apply(Commit { session: of("c1", &[]), ..arrive("c1", "bob", "/") }).await;
    let successor = of("c2", &["flat:a1"]);
    let mut resumed = arrive("c2", "bob", "/");
    resumed.effects.extend(gone("c1").effects);
    acme.apply(Commit { session: successor.clone(), ..resumed }).await;
    acme.assert_absent(Commit { session: of("c1", &["flat:old"]), ..nothing() }, "c1").await;
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), successor);
    let last = of("c2", &["flat:last"]);
    acme.apply(Commit { session: last.clone(), ..gone("c2") }).await;
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), last, "it writes its own last word");
}

pub(crate) async fn a_commit_whose_session_has_no_connection_is_not_applied_until_it_is_there<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let top = acme.apply(say("flat:a1", "before")).await;
    let record = session("secret", &["flat:a1"], 60_000);
    let timers = set_timer("t", 0, "1").timers;
    let plain = Commit { session: Some(record.clone()), ..join(connection("c1"), "flat:a1") };
    let durable = Commit { timers, ..write("k", value("1")) };
    let durable =
        Commit { id: CommitId::random(), effects: plain.effects.clone(), session: plain.session.clone(), ..durable };
    for commit in [&plain, &durable, &durable] {
        acme.assert_absent(commit.clone(), "c1").await;
    }
    assert_eq!(acme.apply(nothing()).await, top, "nothing is in the log");
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), None);
    assert_eq!((acme.text("k").await, acme.due().await), (None, Vec::new()));

    acme.apply(arrive("c1", "bob", "/")).await;
    for commit in [plain, durable] {
        let position = acme.apply(commit.clone()).await;
        acme.assert_members("flat:a1", "bob/c1").await;
        assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), Some(record.clone()));
        acme.apply(gone("c1")).await;
        assert_eq!(acme.apply(commit).await, position, "what was done is answered as it was");
        acme.apply(arrive("c1", "bob", "/")).await;
    }
    assert_eq!(acme.text("k").await.as_deref(), Some("1"));
}

pub(crate) async fn a_session_goes_on_when_its_connection_is_registered_again_after_a_loss<F: Fixture>() {
    let mut fixture = F::start().await;
    let record = session("secret", &["flat:a1"], 60_000);
    let joins = Commit { session: Some(record.clone()), ..join(connection("c1"), "flat:a1") };
    Tenant::of(fixture.engine(), acme()).apply(arrive("c1", "bob", "/")).await;
    fixture.lose_log().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let at = acme.follow().await.position;
    acme.assert_absent(joins.clone(), "c1").await;
    assert!(acme.engine.register(&acme.id, at, &[registration("c1", "bob", &[])], &[]).await.unwrap());
    acme.apply(joins).await;
    acme.assert_members("flat:a1", "bob/c1").await;
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), Some(record));
}

pub(crate) async fn sessions_of_tenants_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let record = session("secret", &["flat:a1"], 60_000);
    acme.apply(Commit { session: Some(record.clone()), ..arrive("c1", "bob", "/") }).await;
    assert_eq!(acme.engine.session(&globex(), "secret").await.unwrap(), None);
    let other = Tenant::of(fixture.engine(), globex());
    other.apply(Commit { session: Some(session("secret", &[], 60_000)), ..arrive("c1", "bob", "/") }).await;
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), Some(record));
}

pub(crate) async fn an_artifact_is_deleted_only_when_nobody_stored_or_kept_it_for_long<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    let digest = |first: &str, rest: &str| format!("{first}{}", rest.repeat(62));
    let [stored, kept, old, elsewhere] = [digest("ab", "1"), digest("ab", "2"), digest("ab", "3"), digest("ac", "0")];
    for digest in [&stored, &kept, &old, &elsewhere] {
        one.put_artifact(digest, Bytes::from_static(b"x")).await.unwrap();
    }
    let older = async |first: u8, age_ms| {
        let mut found: Vec<_> = other.old_artifacts(first, age_ms, 10).await.unwrap();
        found.sort_by(|a, b| a.digest.cmp(&b.digest));
        found
    };
    assert_eq!(older(0xab, 100).await, []);
    fixture.pass(150).await;
    let found = older(0xab, 100).await;
    assert_eq!(found.iter().map(|old| &old.digest).collect::<Vec<_>>(), [&stored, &kept, &old]);
    assert_eq!(other.old_artifacts(0xab, 100, 2).await.unwrap().len(), 2);
    // What is uploaded again is new, and what is kept, if it is there.
    other.put_artifact(&stored, Bytes::from_static(b"x")).await.unwrap();
    let unknown = digest("ab", "4");
    other.keep_artifacts(&[kept.clone(), unknown.clone()]).await.unwrap();
    assert_eq!(older(0xab, 100).await, found[2..]);
    // However long ago they were found: what was stored or kept since stays.
    let never = OldArtifact { digest: unknown.clone(), ..found[0].clone() };
    let another = older(0xac, 100).await.remove(0);
    for (old, goes) in [(&found[0], false), (&found[1], false), (&never, false), (&found[2], true), (&another, true)] {
        assert_eq!(one.delete_artifact(old).await.unwrap(), goes, "{old:?}");
        let is_there = other.artifact(&old.digest).await.unwrap().is_some();
        assert_eq!(is_there, !goes && *old.digest != unknown, "{old:?}");
    }
    assert!(!other.delete_artifact(&found[2]).await.unwrap(), "it is gone already");
    one.put_artifact(&old, Bytes::from_static(b"x")).await.unwrap();
    assert!(other.artifact(&old).await.unwrap().is_some());
}

pub(crate) async fn an_artifact_is_found_by_its_digest<F: Fixture>() {
    use sha2::Digest;
    let fixture = F::start().await;
    let bytes = Bytes::from((0..=255_u8).cycle().take(300_000).collect::<Vec<_>>());
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let (one, other) = (fixture.engine(), fixture.another().await);
    assert_eq!(one.artifact(&digest).await.unwrap(), None);
    one.put_artifact(&digest, bytes.clone()).await.unwrap();
    one.put_artifact(&digest, bytes.clone()).await.unwrap();
    assert_eq!(other.artifact(&digest).await.unwrap(), Some(bytes));
    assert_eq!(other.artifact(&"0".repeat(64)).await.unwrap(), None);
}

pub(crate) async fn a_running_engine_says_that_it_is_ready<F: Fixture>() {
    let fixture = F::start().await;
    fixture.engine().ping().await.unwrap();
    fixture.another().await.ping().await.unwrap();
    assert!(!fixture.engine().name().is_empty());
}
