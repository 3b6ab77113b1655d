//! Order, exactness and memory of the log.

use postern::engine::{FEED_ENTRIES_MAX, Range};

use super::*;

pub(crate) async fn a_commit_arrives_whole_at_its_position<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;

    let effects = vec![
        Effect::Publish(publication("flat:a1", "first")),
        Effect::Publish(Publication {
            data: Payload { args: r#"["x",{"n":1}]"#.into(), attachments: vec![Bytes::from_static(&[0, 255, 10, 13])] },
            except: Some("somebody".into()),
            ..publication("/events#lobby", "")
        }),
        Effect::Leave { who: postern::commit::Who::User("bob".into()), room: room("flat:a1") },
    ];
    let position =
        acme.apply(Commit { effects: effects.clone(), writes: vec![(key("a"), value("1"))], ..nothing() }).await;

    let entry = next_entry(&mut follower).await;
    assert_eq!((entry.position, &entry.effects), (position, &effects));
    assert!(entry.at > 0);
    assert_eq!(acme.text("a").await.as_deref(), Some("1"), "what an entry tells of can be read");
}

pub(crate) async fn concurrent_commits_get_positions_without_holes<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let mut follower = Tenant::of(fixture.engine(), acme()).follow().await;

    // Durable commits and relayed ones take different ways into the same log.
    let answered = at_once(8, |n| {
        let acme = Tenant::of(nodes[n % 2].clone(), acme());
        async move {
            let mut positions = Vec::new();
            for i in 0..25 {
                let mut commit = say("flat:a1", &format!("{n}.{i}"));
                if (n / 2 + i) % 2 == 0 {
                    commit.writes.push((key(&format!("by-{n}")), value(&i.to_string())));
                }
                positions.push((acme.apply(commit).await, format!("{n}.{i}")));
            }
            assert!(positions.is_sorted(), "one after the other means one after the other in the log");
            positions
        }
    })
    .await;

    let mut answered: Vec<_> = answered.into_iter().flatten().collect();
    answered.sort();
    let entries = next_entries(&mut follower, answered.len()).await;
    let seen: Vec<_> =
        entries.iter().map(|entry| (entry.position, texts(std::slice::from_ref(entry)).remove(0))).collect();
    assert_eq!(seen, answered, "every commit is where its answer said");
    assert_quiet(&mut follower).await;
}

pub(crate) async fn every_follower_on_every_node_sees_the_same_order<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let mut followers = Vec::new();
    for n in 0..3 {
        followers.push(Tenant::of(nodes[n % 2].clone(), acme()).follow().await);
    }
    at_once(4, |n| {
        let acme = Tenant::of(nodes[n % 2].clone(), acme());
        async move {
            for i in 0..25 {
                acme.apply(say("flat:a1", &format!("{n}.{i}"))).await;
            }
        }
    })
    .await;

    let mut seen = Vec::new();
    for follower in &mut followers {
        seen.push(next_entries(follower, 100).await);
    }
    assert!(seen.iter().all(|entries| entries == &seen[0]));
}

pub(crate) async fn a_follower_misses_nothing_that_is_committed_while_it_starts<F: Fixture>() {
    let fixture = F::start().await;
    let (one, other) = (fixture.engine(), fixture.another().await);
    for round in 0..100 {
        let writer = Tenant::of(one.clone(), acme());
        let commits = async {
            let mut last = None;
            for n in 0..3 {
                for _ in 0..round % 4 {
                    tokio::task::yield_now().await;
                }
                last = Some(writer.apply(say("flat:a1", &format!("{round}.{n}"))).await);
            }
            last.unwrap()
        };
        let reader = Tenant::of(other.clone(), acme());
        let (last, mut follower) = tokio::join!(commits, reader.follow());
        while follower.position < last {
            next_entry(&mut follower).await;
        }
        assert_eq!(follower.position, last);
    }
}

pub(crate) async fn a_commit_without_effects_answers_the_top_and_is_not_in_the_log<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let top = acme.apply(say("flat:a1", "one")).await;
    let mut follower = acme.follow().await;
    assert_eq!(follower.position, top);

    assert_eq!(acme.apply(write("a", value("1"))).await, top);
    assert_eq!(acme.apply(nothing()).await, top);
    assert_quiet(&mut follower).await;
    assert_eq!(acme.apply(say("flat:a1", "two")).await, top.next());
}

pub(crate) async fn the_same_id_twice_is_done_once<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    let mut follower = acme.follow().await;

    let relayed = say("flat:a1", "relayed");
    let durable = Commit { writes: vec![(key("count"), Write::Add(1))], ..say("flat:a1", "durable") };
    let silent = write("silent", Write::Add(1));
    let mut first = Vec::new();
    for commit in [&relayed, &durable, &silent] {
        first.push(acme.apply(commit.clone()).await);
    }
    acme.apply(say("flat:a1", "meanwhile")).await;
    for (commit, position) in [&relayed, &durable, &silent].into_iter().zip(first) {
        assert_eq!(acme.apply(commit.clone()).await, position);
        assert_eq!(elsewhere.apply(commit.clone()).await, position);
    }
    assert_eq!(acme.text("count").await.as_deref(), Some("1"));
    assert_eq!(acme.text("silent").await.as_deref(), Some("1"));
    let entries = next_entries(&mut follower, 3).await;
    assert_eq!(texts(&entries), ["relayed", "durable", "meanwhile"]);
    assert_quiet(&mut follower).await;
}

pub(crate) async fn the_same_id_at_once_is_done_once<F: Fixture>() {
    let fixture = F::start().await;
    let nodes = [fixture.engine(), fixture.another().await];
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    for durable in [true, false] {
        let mut commit = say("flat:a1", "once");
        if durable {
            commit.writes.push((key("count"), Write::Add(1)));
        }
        let positions = at_once(10, |n| {
            let (acme, commit) = (Tenant::of(nodes[n % 2].clone(), self::acme()), commit.clone());
            async move { acme.apply(commit).await }
        })
        .await;
        let entry = next_entry(&mut follower).await;
        assert!(positions.iter().all(|position| *position == entry.position), "{positions:?}");
    }
    assert_eq!(acme.text("count").await.as_deref(), Some("1"));
    assert_quiet(&mut follower).await;
}

/// Whoever lost the answer, here by not waiting for it, sends the commit again.
pub(crate) async fn an_abandoned_commit_sent_again_is_done_once<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    let rounds = 30;
    for round in 0..rounds {
        let commit = Commit { writes: vec![(key("count"), Write::Add(1))], ..say("flat:a1", &round.to_string()) };
        let patience = Duration::from_micros(200 * (round % 5));
        let _ = tokio::time::timeout(patience, acme.commit(commit.clone())).await;
        let position = acme.apply(commit).await;
        assert_eq!(next_entry(&mut follower).await.position, position);
    }
    assert_eq!(acme.text("count").await, Some(rounds.to_string()));
    assert_quiet(&mut follower).await;
}

async fn entries(tenant: &Tenant, after: Position, limit: usize) -> Option<Vec<String>> {
    match tenant.engine.range(&tenant.id, after, limit).await.unwrap() {
        Range::Entries(entries) => Some(texts(&entries)),
        Range::Gone => None,
    }
}

pub(crate) async fn a_range_starts_after_its_position_and_keeps_its_limit<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let first = acme.apply(say("flat:a1", "1")).await;
    for n in 2..=5 {
        acme.apply(say("flat:a1", &n.to_string())).await;
    }
    let top = Position { seq: 5, ..first };
    assert_eq!(entries(&acme, Position { seq: 0, ..first }, 10).await.unwrap(), ["1", "2", "3", "4", "5"]);
    assert_eq!(entries(&acme, first, 2).await.unwrap(), ["2", "3"]);
    assert_eq!(entries(&acme, top, 10).await.unwrap(), [""; 0]);
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    assert_eq!(entries(&elsewhere, first, 10).await.unwrap(), ["2", "3", "4", "5"]);
}

pub(crate) async fn a_range_from_another_epoch_or_beyond_the_top_is_gone<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let top = acme.apply(say("flat:a1", "1")).await;
    assert_eq!(entries(&acme, top.next(), 10).await, None, "beyond the top");
    assert_eq!(entries(&acme, Position { epoch: top.epoch - 1, ..top }, 10).await, None, "an older epoch");
    assert_eq!(entries(&acme, Position { epoch: top.epoch + 1, seq: 0 }, 10).await, None, "a later epoch");
}

pub(crate) async fn a_range_that_was_trimmed_is_gone<F: Fixture>() {
    let fixture = F::with_log(100).await;
    let acme = Tenant::of(fixture.engine(), acme());
    let first = acme.apply(say("flat:a1", "1")).await;
    let mut top = first;
    for n in 2..=400 {
        top = acme.apply(say("flat:a1", &n.to_string())).await;
    }
    assert_eq!(entries(&acme, first, 10).await, None);
    let recent = Position { seq: top.seq - 100, ..top };
    assert_eq!(entries(&acme, recent, 1_000).await.unwrap().len(), 100);
    let history = acme.engine.history(&acme.id, &room("flat:a1"), None, 1_000).await.unwrap();
    assert!((100..=300).contains(&history.len()), "{} of 100 kept", history.len());
}

pub(crate) async fn history_is_the_latest_of_one_room_oldest_first<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut positions = Vec::new();
    for n in 1..=6 {
        positions.push(acme.apply(say("flat:a1", &n.to_string())).await);
        acme.apply(say("flat:b2", "elsewhere")).await;
        acme.apply(Commit {
            effects: vec![Effect::Leave { who: postern::commit::Who::User("bob".into()), room: room("flat:a1") }],
            ..nothing()
        })
        .await;
    }
    let history = |before, limit| {
        let acme = &acme;
        async move { texts(&acme.engine.history(&acme.id, &room("flat:a1"), before, limit).await.unwrap()) }
    };
    assert_eq!(history(None, 3).await, ["4", "5", "6"]);
    assert_eq!(history(Some(positions[3]), 2).await, ["2", "3"]);
    assert_eq!(history(Some(positions[0]), 2).await, [""; 0]);
    assert_eq!(history(None, 100).await, ["1", "2", "3", "4", "5", "6"]);
    let none = acme.engine.history(&acme.id, &room("flat:never"), None, 10).await.unwrap();
    assert!(none.is_empty());
}

pub(crate) async fn something_ephemeral_reaches_the_followers_and_not_the_log<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let elsewhere = Tenant::of(fixture.another().await, acme.id.clone());
    let mut follower = elsewhere.follow().await;
    let before = follower.position;

    let typing = publication("flat:a1", "typing");
    acme.engine.publish_ephemeral(&acme.id, typing.clone()).await.unwrap();
    match next(&mut follower).await {
        Feed::Ephemeral(publication) => assert_eq!(*publication, typing),
        other => panic!("{other:?}"),
    }
    let position = acme.apply(say("flat:a1", "said")).await;
    assert!(follows(before, position));
    let history = acme.engine.history(&acme.id, &room("flat:a1"), None, 10).await.unwrap();
    assert_eq!(texts(&history), ["said"]);
}

pub(crate) async fn a_sleeping_follower_gets_everything_the_log_still_holds<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    let count = FEED_ENTRIES_MAX + 1_500;
    flood(&fixture, count).await;
    // Ahead of it in the queue is nothing: it gets all of it, although its feed was full.
    let entries = next_entries(&mut follower, count).await;
    assert_eq!(texts(&entries).len(), count);
    assert_quiet(&mut follower).await;
    let position = acme.apply(say("flat:a1", "afterwards")).await;
    assert_eq!(next_entry(&mut follower).await.position, position);
}

pub(crate) async fn a_follower_that_sleeps_through_a_trimmed_log_is_told<F: Fixture>() {
    let fixture = F::with_log(500).await;
    let acme = Tenant::of(fixture.engine(), acme());
    let mut follower = acme.follow().await;
    flood(&fixture, FEED_ENTRIES_MAX + 2_000).await;
    let last = acme.apply(say("flat:a1", "last")).await;

    let (mut received, mut resets) = (0, 0);
    while follower.position < last {
        match next(&mut follower).await {
            Feed::Entry(entry) => {
                assert!(follows(follower.position, entry.position), "a hole that nobody told of");
                follower.position = entry.position;
                received += 1;
            }
            Feed::Reset(position) => {
                assert!(position > follower.position, "a reset goes forward");
                follower.position = position;
                resets += 1;
            }
            Feed::Ephemeral(_) => {}
        }
    }
    assert_eq!(follower.position, last);
    assert!(resets > 0 || received == FEED_ENTRIES_MAX + 2_001, "{received} entries, {resets} resets");
}

/// Relays `count` entries, several at a time.
async fn flood<F: Fixture>(fixture: &F, count: usize) {
    let writers = 50;
    at_once(writers, |n| {
        let acme = Tenant::of(fixture.engine(), acme());
        async move {
            for i in (n..count).step_by(writers) {
                acme.apply(say("flat:a1", &i.to_string())).await;
            }
        }
    })
    .await;
}

pub(crate) async fn a_follower_that_leaves_holds_nobody_up<F: Fixture>() {
    let fixture = F::start().await;
    let acme = Tenant::of(fixture.engine(), acme());
    let (gone, mut stays) = (acme.follow().await, acme.follow().await);
    drop(gone);
    for n in 0..10 {
        acme.apply(say("flat:a1", &n.to_string())).await;
    }
    assert_eq!(next_entries(&mut stays, 10).await.len(), 10);
    let mut back = acme.follow().await;
    assert_eq!(back.position, stays.position);
    let position = acme.apply(say("flat:a1", "back")).await;
    assert_eq!(next_entry(&mut back).await.position, position);
}

pub(crate) async fn a_log_that_begins_anew_has_a_larger_epoch_and_says_that_the_old_is_gone<F: Fixture>() {
    let mut fixture = F::start().await;
    for _ in 0..3 {
        let old = Tenant::of(fixture.engine(), acme());
        let mut follower = old.follow().await;
        old.apply(say("flat:a1", "old")).await;
        let top = old.apply(say("flat:a1", "old too")).await;
        next_entries(&mut follower, 2).await;
        drop(old);

        fixture.lose_log().await;
        let new = Tenant::of(fixture.engine(), acme());
        let position = new.apply(say("flat:a1", "new")).await;
        assert!(position.epoch > top.epoch && position.seq == 1, "{position} after {top}");
        assert_eq!(entries(&new, Position { seq: top.seq - 1, ..top }, 10).await, None);
        assert_eq!(entries(&new, Position { seq: 0, ..position }, 10).await.unwrap(), ["new"]);
        // Whoever followed the old log gets the new one's entries with their own epoch, or
        // the end of the feed; nothing that looks like the next of the old.
        while let Ok(Some(feed)) = tokio::time::timeout(QUIET, follower.feed.recv()).await {
            match feed {
                Feed::Entry(entry) => assert!(follows(follower.position, entry.position)),
                Feed::Reset(position) => follower.position = position,
                Feed::Ephemeral(_) => {}
            }
        }
    }
}
