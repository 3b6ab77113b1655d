use super::*;
use crate::engine::Outcome;
use crate::engine::embedded::{EmbeddedEngine, Options};

fn engine() -> Arc<EmbeddedEngine> {
    EmbeddedEngine::in_memory(Options::default()).unwrap()
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn invocation() -> Invocation {
    Invocation { id: CommitId::random(), attempt: 1, now: 1_000 }
}

fn begin(engine: &Arc<EmbeddedEngine>, limits: CallLimits) -> Transaction {
    Transaction::new(engine.clone(), tenant(), Arc::new(limits), invocation())
}

fn key(name: &str) -> StateKey {
    StateKey::of("p", name)
}

fn put(text: &str) -> Write {
    Write::Put { value: Bytes::copy_from_slice(text.as_bytes()), ttl_ms: None }
}

async fn store(engine: &EmbeddedEngine, name: &str, text: &str) {
    let commit = Commit { writes: vec![(key(name), put(text))], ..Commit::new(CommitId::random()) };
    assert!(matches!(engine.commit(&tenant(), Arc::new(commit)).await, Ok(Outcome::Committed(_))));
}

async fn get(work: &mut Work, name: &str) -> Result<Option<String>, Rejection> {
    let value = work.get(&[key(name)]).await?.remove(0);
    Ok(value.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
}

#[tokio::test]
async fn a_call_sees_its_own_writes_and_reads_again_what_it_has_read() {
    let engine = engine();
    store(&engine, "a", "old").await;
    let mut tx = begin(&engine, CallLimits::default());
    let mut work = tx.take().unwrap();
    assert_eq!(get(&mut work, "a").await, Ok(Some("old".into())));
    store(&engine, "a", "changed by another").await;
    assert_eq!(get(&mut work, "a").await, Ok(Some("old".into())));
    work.write(key("a"), put("new")).unwrap();
    assert_eq!(get(&mut work, "a").await, Ok(Some("new".into())));
    work.write(key("a"), Write::Delete).unwrap();
    assert_eq!(get(&mut work, "a").await, Ok(None));
    tx.put_back(work);
    let commit = tx.into_parts().commit;
    assert_eq!(commit.reads.len(), 1);
    assert_eq!(commit.writes, [(key("a"), Write::Delete)]);
    let outcome = engine.commit(&tenant(), Arc::new(commit)).await;
    assert!(matches!(outcome, Ok(Outcome::Conflict(_))), "{outcome:?}");
}

#[tokio::test]
async fn only_what_was_read_from_the_engine_is_in_the_read_set() {
    let engine = engine();
    let mut tx = begin(&engine, CallLimits::default());
    let mut work = tx.take().unwrap();
    work.write(key("written"), put("1")).unwrap();
    assert_eq!(get(&mut work, "written").await, Ok(Some("1".into())));
    work.add(key("added"), 1).unwrap();
    assert_eq!(get(&mut work, "absent").await, Ok(None));
    assert_eq!(get(&mut work, "absent").await, Ok(None));
    tx.put_back(work);
    let id = tx.invocation().id.clone();
    let commit = tx.into_parts().commit;
    assert_eq!(commit.reads, [(key("absent"), None)]);
    assert_eq!(commit.id, id);
}

#[tokio::test]
async fn additions_join_whatever_was_written_before_them() {
    let engine = engine();
    store(&engine, "n", "40").await;
    let mut tx = begin(&engine, CallLimits::default());
    let mut work = tx.take().unwrap();
    work.add(key("n"), 1).unwrap();
    work.add(key("n"), 1).unwrap();
    assert_eq!(get(&mut work, "n").await, Ok(Some("42".into())));
    work.write(key("put"), Write::Put { value: "7".into(), ttl_ms: Some(5) }).unwrap();
    work.add(key("put"), -10).unwrap();
    work.write(key("gone"), Write::Delete).unwrap();
    work.add(key("gone"), 3).unwrap();
    work.write(key("text"), put("seven")).unwrap();
    assert!(matches!(work.add(key("text"), 1), Err(Rejection::Invalid(_))));
    work.add(key("max"), i64::MAX).unwrap();
    assert!(matches!(work.add(key("max"), 1), Err(Rejection::Invalid(_))));
    tx.put_back(work);
    let writes = tx.into_parts().commit.writes;
    let of = |name: &str| writes.iter().find(|(k, _)| *k == key(name)).map(|(_, write)| write.clone());
    assert_eq!(of("n"), Some(Write::Add(2)));
    assert_eq!(of("put"), Some(Write::Put { value: "-3".into(), ttl_ms: Some(5) }));
    assert_eq!(of("gone"), Some(put("3")));
}

#[tokio::test]
async fn keys_read_and_written_are_counted_once_each() {
    let mut tx = begin(&engine(), CallLimits { state_keys: 2, ..CallLimits::default() });
    let mut work = tx.take().unwrap();
    get(&mut work, "a").await.unwrap();
    work.write(key("a"), put("1")).unwrap();
    work.write(key("b"), put("1")).unwrap();
    get(&mut work, "b").await.unwrap();
    let Err(Rejection::Quota(text)) = work.write(key("c"), put("1")) else { panic!("a third key was let in") };
    assert!(text.contains("call_limits.state_keys = 2"), "{text}");
    assert!(matches!(get(&mut work, "c").await, Err(Rejection::Quota(_))));
}

#[tokio::test]
async fn a_call_that_did_not_end_well_leaves_its_reads_and_nothing_else() {
    let engine = engine();
    let mut tx = begin(&engine, CallLimits::default());
    let mut work = tx.take().unwrap();
    get(&mut work, "a").await.unwrap();
    work.write(key("a"), put("1")).unwrap();
    work.timer(TimerKey { plugin: "p".into(), name: "t".into() }, TimerChange::Cancel).unwrap();
    work.reply(Payload::empty());
    let everyone = || publication(Room::everyone("/"), "e", Payload::empty(), None);
    work.publish(everyone(), false).unwrap();
    work.publish(everyone(), true).unwrap();
    work.discard();
    // A later call that ends well does not bring the input back to life.
    work.publish(everyone(), false).unwrap();
    work.settle();
    tx.put_back(work);
    let parts = tx.into_parts();
    assert_eq!(parts.commit.reads, [(key("a"), None)]);
    assert!(parts.commit.writes.is_empty() && parts.commit.timers.is_empty() && parts.commit.effects.is_empty());
    assert!(parts.reply.is_none() && parts.ephemeral.is_empty());
}

#[tokio::test]
async fn a_transaction_whose_call_was_abandoned_comes_to_nothing() {
    let mut tx = begin(&engine(), CallLimits::default());
    drop(tx.take());
    let commit = tx.into_parts().commit;
    assert!(commit.reads.is_empty() && commit.effects.is_empty());
}

#[tokio::test]
async fn output_is_counted_over_everything_that_is_handed_over() {
    let mut tx = begin(&engine(), CallLimits { output_bytes: 100, ..CallLimits::default() });
    let mut work = tx.take().unwrap();
    work.hand_over(60).unwrap();
    work.hand_over(40).unwrap();
    let Err(Rejection::Quota(text)) = work.hand_over(1) else { panic!("more was let through") };
    assert!(text.contains("101") && text.contains("call_limits.output_bytes = 100"), "{text}");
}

#[tokio::test]
async fn two_inputs_that_read_the_same_and_write_cannot_both_commit() {
    let engine = engine();
    let mut commits = Vec::new();
    for _ in 0..2 {
        let mut tx = begin(&engine, CallLimits::default());
        let mut work = tx.take().unwrap();
        get(&mut work, "once").await.unwrap();
        work.write(key("once"), put("mine")).unwrap();
        tx.put_back(work);
        commits.push(Arc::new(tx.into_parts().commit));
    }
    assert!(matches!(engine.commit(&tenant(), commits[0].clone()).await, Ok(Outcome::Committed(_))));
    assert_eq!(engine.commit(&tenant(), commits[1].clone()).await.unwrap(), Outcome::Conflict(key("once")));
}
