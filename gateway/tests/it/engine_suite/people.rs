//! Presence, sessions, artefacts, readiness.

use std::collections::BTreeMap;

use postern::client::ConnectionId;
use postern::commit::{Grant, Position, SessionRecord, Who};
use postern::engine::Member;

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

pub(crate) async fn sessions_of_tenants_are_apart<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let record = session("secret", &["flat:a1"], 60_000);
    acme.apply(Commit { session: Some(record.clone()), ..nothing() }).await;
    assert_eq!(acme.engine.session(&globex(), "secret").await.unwrap(), None);
    let other = Tenant::of(fixture.engine(), globex());
    other.apply(Commit { session: Some(session("secret", &[], 60_000)), ..nothing() }).await;
    assert_eq!(acme.engine.session(&acme.id, "secret").await.unwrap(), Some(record));
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
