//! What a deleted tenant has left besides its values is forgotten, whole, and of nobody else.

use std::collections::BTreeMap;

use postern::commit::{SessionRecord, Version, Who};
use postern::engine::{Range, Seat, SeatLimits, Seating};

use super::*;

const ONE: SeatLimits = SeatLimits { per_user: 1, per_tenant: 100 };

fn guard() -> StateKey {
    StateKey::of("_gone", "guard")
}

fn record(session: &str, connection: &str) -> SessionRecord {
    SessionRecord {
        session: session.into(),
        connection: connection.into(),
        subject: "bob".into(),
        namespace: "/".into(),
        claims: "{}".into(),
        rooms: BTreeMap::new(),
        ttl_ms: 60_000,
        heard: None,
    }
}

fn seat(connection: &str) -> Seat {
    Seat { subject: "bob".into(), connection: connection.into() }
}

impl Tenant {
    /// One of everything. Answers where the log was when its publication was said.
    async fn live(&self, fixture: &impl Fixture) -> Position {
        for connection in ["c1", "c2"] {
            let arrive = Effect::Arrive { id: connection.into(), subject: "bob".into(), namespace: "/".into() };
            let who = Who::Connection(connection.into());
            let join = Effect::Join { who, room: room("flat:a1"), grant: Default::default() };
            let session = Some(record(&format!("session-{connection}"), connection));
            self.apply(Commit { effects: vec![arrive, join], session, ..nothing() }).await;
        }
        // A session whose connection has gone before.
        self.apply(Commit { effects: vec![Effect::Gone { id: "c2".into() }], ..nothing() }).await;
        let taken = self.engine.take_seat(&self.id, &seat("c1"), ONE, None).await.unwrap();
        assert!(matches!(taken, Seating::Taken { .. }), "{taken:?}");
        self.apply(set_timer("dead", 1, "1")).await;
        fixture.pass(20).await;
        let due = self.due().await.remove(0);
        assert!(self.engine.bury_timer(&due, "it failed").await.unwrap());
        for n in 0..20 {
            self.apply(set_timer(&format!("t{n}"), 1, "1")).await;
        }
        self.apply(write("kept", value("x"))).await;
        self.apply(say("flat:a1", "old")).await
    }

    /// Is everything of [`live`](Tenant::live) there?
    async fn assert_lives(&self, at: Position) {
        assert_eq!(self.count("flat:a1").await, 1);
        for session in ["session-c1", "session-c2"] {
            assert!(self.engine.session(&self.id, session).await.unwrap().is_some(), "{session}");
        }
        let another = self.engine.take_seat(&self.id, &seat("c9"), ONE, None).await.unwrap();
        assert!(matches!(another, Seating::Full(_)), "{another:?}");
        assert_eq!(self.engine.dead_timers(&self.id, 10).await.unwrap().len(), 1);
        assert_eq!(self.engine.stored(&self.id).await.unwrap().timers, 20);
        assert_eq!(texts(&self.history().await), ["old"]);
        assert!(matches!(self.engine.range(&self.id, at, 10).await.unwrap(), Range::Entries(_)));
        assert_eq!(self.text("kept").await.as_deref(), Some("x"));
    }

    async fn history(&self) -> Vec<Arc<Entry>> {
        self.engine.history(&self.id, &room("flat:a1"), None, 10).await.unwrap()
    }

    async fn guard(&self) -> Version {
        self.apply(Commit { writes: vec![(guard(), value("1"))], ..nothing() }).await;
        self.engine.read(&self.id, &[guard()]).await.unwrap().remove(0).unwrap().version
    }
}

pub(crate) async fn what_a_tenant_has_left_is_forgotten_and_of_nobody_else<F: Fixture>() {
    let fixture = F::start().await;
    let (acme, globex) = (Tenant::of(fixture.engine(), acme()), Tenant::of(fixture.engine(), globex()));
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    let (at, others) = (acme.live(&fixture).await, globex.live(&fixture).await);
    // Whoever follows remembers what it was given.
    let mut follower = elsewhere.follow().await;
    let version = acme.guard().await;
    assert!(acme.engine.forget(&acme.id, &guard(), &version).await.unwrap());

    for node in [&acme, &elsewhere] {
        eventually("nothing of it is there", || async {
            node.count("flat:a1").await == 0
                && node.count("user:bob").await == 0
                && node.history().await.is_empty()
                && matches!(node.engine.range(&node.id, at, 10).await.unwrap(), Range::Gone)
        })
        .await;
        for session in ["session-c1", "session-c2"] {
            assert_eq!(node.engine.session(&node.id, session).await.unwrap(), None, "{session}");
        }
        assert_eq!(node.engine.dead_timers(&node.id, 10).await.unwrap(), []);
    }
    assert_eq!(acme.engine.stored(&acme.id).await.unwrap().timers, 0);
    fixture.pass(20).await;
    let due = acme.engine.claim_timers(100).await.unwrap();
    assert!(due.len() == 20 && due.iter().all(|timer| timer.tenant == globex.id), "{due:?}");
    let taken = acme.engine.take_seat(&acme.id, &seat("c9"), ONE, None).await.unwrap();
    assert_eq!(taken, Seating::Taken { of_tenant: 1 });
    assert_eq!(acme.text("kept").await.as_deref(), Some("x"), "values are not its matter");
    globex.assert_lives(others).await;

    // Whoever comes next begins with nothing, and everything works.
    let arrive = Effect::Arrive { id: "c3".into(), subject: "bob".into(), namespace: "/".into() };
    let session = Some(record("session-c3", "c3"));
    fixture.pass(5).await;
    assert!(acme.apply(Commit { effects: vec![arrive], session, ..nothing() }).await > at);
    let said = acme.apply(say("flat:a1", "new")).await;
    acme.apply(set_timer("next", 60_000, "1")).await;
    assert_eq!(acme.engine.stored(&acme.id).await.unwrap().timers, 1);
    assert!(elsewhere.engine.session(&acme.id, "session-c3").await.unwrap().is_some());
    assert_eq!(texts(&elsewhere.history().await), ["new"]);
    loop {
        if let Feed::Entry(entry) = next(&mut follower).await
            && entry.position == said
        {
            break;
        }
    }
}

pub(crate) async fn nothing_is_forgotten_when_the_guard_has_changed<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let at = acme.live(&fixture).await;
    let late = acme.guard().await;
    let now = acme.guard().await;
    assert!(!acme.engine.forget(&acme.id, &guard(), &late).await.unwrap());
    acme.assert_lives(at).await;
    acme.apply(Commit { writes: vec![(guard(), Write::Delete)], ..nothing() }).await;
    assert!(!acme.engine.forget(&acme.id, &guard(), &now).await.unwrap());
    acme.assert_lives(at).await;
}

pub(crate) async fn however_many_are_registered_all_are_forgotten_in_time<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    // More than Redis goes through at once in a table from which most was taken.
    for hundred in 0..120 {
        let arrive = |n| {
            let (id, subject) = (format!("c{hundred}-{n}").as_str().into(), format!("user-{n}").into());
            Effect::Arrive { id, subject, namespace: "/".into() }
        };
        acme.apply(Commit { effects: (0..100).map(arrive).collect(), ..nothing() }).await;
    }
    let version = acme.guard().await;
    let forgotten = async { acme.engine.forget(&acme.id, &guard(), &version).await.unwrap() };
    let forgotten = tokio::time::timeout(Duration::from_secs(20), forgotten).await;
    assert!(forgotten.expect("it ends"));
    for user in ["user:user-0", "user:user-99"] {
        assert_eq!(acme.count(user).await, 0);
    }
}
