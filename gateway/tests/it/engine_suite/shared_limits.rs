//! What limits count over all nodes.

use std::num::NonZeroU32;

use postern::engine::{Seat, SeatLimits, Seating, Tokens, Whose};

use super::*;

const PLENTY: u32 = 1_000;

fn seat(subject: &str, connection: &str) -> Seat {
    Seat { subject: subject.into(), connection: connection.into() }
}

fn limits(per_user: u32, per_tenant: u32) -> SeatLimits {
    SeatLimits { per_user, per_tenant }
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn outcome(seating: Seating) -> Result<(), Whose> {
    match seating {
        Seating::Taken { .. } => Ok(()),
        Seating::Full(whose) => Err(whose),
    }
}

async fn take(engine: &Arc<dyn Engine>, seat: &Seat, limits: SeatLimits) -> Result<(), Whose> {
    outcome(engine.take_seat(&acme(), seat, limits, None).await.unwrap())
}

async fn give_back(engine: &Arc<dyn Engine>, seat: Seat) {
    engine.keep_seats(&acme(), &[], &[seat]).await.unwrap();
}

/// Up to `wanted` tokens of the bucket `b`; 0: there was none.
async fn tokens(engine: &Arc<dyn Engine>, per_minute: u32, wanted: u32) -> u32 {
    match engine.take_tokens(&acme(), "b", number(per_minute), number(wanted)).await.unwrap() {
        Tokens::Granted(granted) => {
            assert!((1..=wanted).contains(&granted));
            granted
        }
        Tokens::Wait(wait) => {
            assert!(!wait.is_zero() && wait <= Duration::from_secs(60));
            0
        }
    }
}

pub(crate) async fn of_clients_that_come_in_at_once_as_many_get_in_as_may<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let seatings = at_once(20, |n| {
        let engine = nodes[n % 2].clone();
        async move { (n, take(&engine, &seat("bob", &format!("c{n}")), limits(5, PLENTY)).await) }
    })
    .await;
    let taken: Vec<usize> = seatings.iter().filter(|(_, one)| *one == Ok(())).map(|(n, _)| *n).collect();
    assert_eq!(taken.len(), 5, "{seatings:?}");
    assert!(seatings.iter().all(|(_, one)| matches!(one, Ok(()) | Err(Whose::User))));
    assert_eq!(take(&nodes[0], &seat("ann", "a"), limits(5, PLENTY)).await, Ok(()), "others have their own");

    let one = taken[0];
    give_back(&nodes[one % 2], seat("bob", &format!("c{one}"))).await;
    assert_eq!(take(&nodes[1], &seat("bob", "next"), limits(5, PLENTY)).await, Ok(()));
    assert_eq!(take(&nodes[0], &seat("bob", "beyond"), limits(5, PLENTY)).await, Err(Whose::User));
}

pub(crate) async fn a_seat_that_is_taken_twice_is_one_and_given_back_twice_too<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    for _ in 0..3 {
        assert_eq!(take(&one, &seat("bob", "c1"), limits(2, PLENTY)).await, Ok(()));
    }
    assert_eq!(take(&other, &seat("bob", "c2"), limits(2, PLENTY)).await, Ok(()));
    for _ in 0..3 {
        give_back(&one, seat("bob", "c1")).await;
    }
    assert_eq!(take(&other, &seat("bob", "c3"), limits(2, PLENTY)).await, Ok(()));
    assert_eq!(take(&one, &seat("bob", "c4"), limits(2, PLENTY)).await, Err(Whose::User));
}

pub(crate) async fn a_tenant_has_so_many_seats_whoever_has_them<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    for n in 0..3 {
        let seat = seat(&format!("user-{n}"), &format!("c{n}"));
        assert_eq!(take(&nodes[n % 2], &seat, limits(1, 3)).await, Ok(()));
    }
    assert_eq!(take(&nodes[0], &seat("ann", "a"), limits(1, 3)).await, Err(Whose::Tenant));
    assert_eq!(take(&nodes[0], &seat("ann", "a"), limits(1, 4)).await, Ok(()), "the setting is another now");
    let globex = nodes[0].take_seat(&globex(), &seat("ann", "a"), limits(1, 1), None).await.unwrap();
    assert_eq!(outcome(globex), Ok(()), "another tenant has its own");
}

pub(crate) async fn who_takes_a_seat_is_told_how_many_the_tenant_has_on_all_nodes<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let plenty = limits(PLENTY, PLENTY);
    for n in 0..4 {
        let seating = nodes[n % 2].take_seat(&acme(), &seat("bob", &format!("c{n}")), plenty, None).await.unwrap();
        assert_eq!(seating, Seating::Taken { of_tenant: u32::try_from(n).unwrap() + 1 });
    }
    give_back(&nodes[0], seat("bob", "c0")).await;
    let seating = nodes[1].take_seat(&acme(), &seat("ann", "a"), plenty, None).await.unwrap();
    assert_eq!(seating, Seating::Taken { of_tenant: 4 });
}

pub(crate) async fn a_connection_that_comes_back_has_the_seat_of_the_earlier_one<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    assert_eq!(take(&one, &seat("bob", "c1"), limits(1, 1)).await, Ok(()));
    let arrive = Effect::Arrive { id: "c1".into(), subject: "bob".into(), namespace: "/".into() };
    Tenant::of(one.clone(), acme()).apply(Commit { effects: vec![arrive], ..nothing() }).await;
    let instead = async |earlier: &str, now: &str| {
        outcome(other.take_seat(&acme(), &seat("bob", now), limits(1, 1), Some(&earlier.into())).await.unwrap())
    };
    assert_eq!(instead("unknown", "c2").await, Err(Whose::User));
    assert_eq!(instead("c1", "c2").await, Ok(()));
    assert_eq!(instead("c1", "c3").await, Err(Whose::User), "a seat is given on once");
    give_back(&one, seat("bob", "c1")).await;
    assert_eq!(take(&one, &seat("bob", "c4"), limits(1, 1)).await, Err(Whose::User), "it is the other's now");
    give_back(&other, seat("bob", "c2")).await;
    assert_eq!(take(&one, &seat("bob", "c4"), limits(1, 1)).await, Ok(()));
}

pub(crate) async fn seats_that_a_node_says_it_has_are_there_whatever_the_limit<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    // More than one script takes.
    let kept: Vec<Seat> = (0..450).map(|n| seat("bob", &format!("c{n}"))).collect();
    assert_eq!(one.keep_seats(&acme(), &kept, &[]).await.unwrap(), 450);
    assert_eq!(take(&other, &seat("bob", "next"), limits(450, PLENTY)).await, Err(Whose::User));
    assert_eq!(one.keep_seats(&acme(), &kept, &kept[..1]).await.unwrap(), 449);
    assert_eq!(take(&other, &seat("bob", "next"), limits(450, PLENTY)).await, Ok(()));
    one.keep_seats(&acme(), &[], &kept).await.unwrap();
    assert_eq!(take(&other, &seat("ann", "a"), limits(1, 2)).await, Ok(()));
    assert_eq!(take(&other, &seat("eve", "e"), limits(1, 2)).await, Err(Whose::Tenant));
}

pub(crate) async fn a_bucket_grants_a_minutes_worth_however_many_ask_at_once<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    // So slow that nothing flows meanwhile.
    let granted = at_once(40, |n| {
        let engine = nodes[n % 2].clone();
        async move { tokens(&engine, 20, 3).await }
    })
    .await;
    assert_eq!(granted.iter().sum::<u32>(), 20, "{granted:?}");
}

pub(crate) async fn a_bucket_is_refilled_evenly<F: Fixture>() {
    let fixture = F::start().await;
    let engine = fixture.engine();
    let started = tokio::time::Instant::now();
    assert_eq!(tokens(&engine, 600, 1_000).await, 600);
    fixture.pass(500).await;
    let more = tokens(&engine, 600, 1_000).await;
    let most = 5.max(started.elapsed().as_millis() / 100);
    assert!((5..=most).contains(&u128::from(more)), "{more}");
    let other = engine.take_tokens(&acme(), "other", number(600), number(1)).await.unwrap();
    assert_eq!(other, Tokens::Granted(1), "another bucket is another's");
    let globex = engine.take_tokens(&globex(), "b", number(600), number(600)).await.unwrap();
    assert_eq!(globex, Tokens::Granted(600));
}

pub(crate) async fn an_empty_bucket_says_how_long_until_there_is_a_token<F: Fixture>() {
    let fixture = F::start().await;
    let engine = fixture.engine();
    assert_eq!(tokens(&engine, 300, 300).await, 300);
    let Tokens::Wait(wait) = engine.take_tokens(&acme(), "b", number(300), number(9)).await.unwrap() else {
        panic!("it was empty")
    };
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
    fixture.pass(u64::try_from(wait.as_millis()).unwrap() + 1).await;
    assert!(tokens(&engine, 300, 1).await == 1, "after {wait:?}");
}
