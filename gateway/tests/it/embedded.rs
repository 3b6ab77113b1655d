//! The embedded engine: the suite, restarts, and deaths without warning.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use postern::commit::{Commit, CommitId, FiredTimer, Millis, StateKey, TimerChange, TimerKey, Write};
use postern::engine::embedded::{Clock, Durability, EmbeddedEngine, OpenError, Options};
use postern::engine::{Engine, Outcome, TIMER_LEASE_MS};
use postern::tenant::TenantId;

use crate::engine_suite::{Fixture, engine_suite};

engine_suite!(suite, super::OneFile);

/// An engine on a file of its own, in a time of its own.
pub(crate) struct OneFile {
    engine: Option<Arc<EmbeddedEngine>>,
    options: Options,
    time: Arc<AtomicU64>,
    directory: tempfile::TempDir,
}

impl OneFile {
    fn open(options: Options) -> OneFile {
        let directory = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicU64::new(1_700_000_000_000));
        let read = Arc::clone(&time);
        let clock: Clock = Arc::new(move || read.load(Ordering::SeqCst));
        let options = Options { clock, ..options };
        let engine = EmbeddedEngine::open(&directory.path().join("data.redb"), options.clone()).unwrap();
        OneFile { engine: Some(engine), options, time, directory }
    }

    fn restart(&mut self) {
        self.engine = None;
        let path = self.directory.path().join("data.redb");
        self.engine = Some(EmbeddedEngine::open(&path, self.options.clone()).unwrap());
    }
}

#[async_trait]
impl Fixture for OneFile {
    async fn start() -> Self {
        OneFile::open(Options::default())
    }

    async fn with_log(entries: usize) -> Self {
        OneFile::open(Options { log_entries_max: entries, ..Options::default() })
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone().unwrap()
    }

    async fn another(&self) -> Arc<dyn Engine> {
        self.engine()
    }

    async fn pass(&self, ms: Millis) {
        self.time.fetch_add(ms, Ordering::SeqCst);
    }

    fn lease_ms(&self) -> Millis {
        TIMER_LEASE_MS
    }

    async fn lose_log(&mut self) {
        self.restart();
    }
}

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn nothing() -> Commit {
    Commit::new(CommitId::random())
}

fn put(key: &str, ttl_ms: Option<Millis>) -> (StateKey, Write) {
    (StateKey::stored(key), Write::Put { value: Bytes::from_static(b"1"), ttl_ms })
}

async fn apply(engine: &Arc<dyn Engine>, commit: Commit) -> Outcome {
    engine.commit(&acme(), Arc::new(commit)).await.unwrap()
}

#[tokio::test]
async fn a_restart_keeps_state_timers_commit_ids_and_artefacts() {
    for durability in [Durability::Immediate, Durability::Relaxed] {
        let mut file = OneFile::open(Options { durability, ..Options::default() });
        let engine = file.engine();
        let timer = TimerKey { plugin: "p".into(), name: "t".into() };
        let set = TimerChange::Set { after_ms: 100, data: "1".into() };
        let (stays, short) = (put("p/stays", None), put("p/short", Some(1_000)));
        let count = (StateKey::stored("p/count"), Write::Add(1));
        let commit = Commit { writes: vec![stays, short, count], timers: vec![(timer.clone(), set)], ..nothing() };
        apply(&engine, commit.clone()).await;
        engine.put_artifact("ab", Bytes::from_static(b"wasm")).await.unwrap();
        file.pass(200).await;
        let claimed = engine.claim_timers(10).await.unwrap();
        let keys = ["p/stays", "p/short", "p/count"].map(StateKey::stored);
        let before = engine.read(&acme(), &keys).await.unwrap();
        drop(engine);

        file.restart();
        let engine = file.engine();
        assert_eq!(engine.read(&acme(), &keys).await.unwrap(), before, "values and versions");
        assert_eq!(engine.artifact("ab").await.unwrap(), Some(Bytes::from_static(b"wasm")));
        assert!(matches!(apply(&engine, commit).await, Outcome::Committed(_)), "done, and not done again");
        assert_eq!(engine.read(&acme(), &keys).await.unwrap(), before);

        // Nobody who claimed it is alive, so it can be claimed at once; the token is the same.
        let again = engine.claim_timers(10).await.unwrap();
        assert_eq!((&again[0].key, &again[0].token, again[0].due), (&timer, &claimed[0].token, claimed[0].due));
        apply(&engine, Commit { writes: vec![put("p/stays", None)], ..nothing() }).await;
        let after = engine.read(&acme(), &keys).await.unwrap();
        assert_ne!(before[0].as_ref().unwrap().version, after[0].as_ref().unwrap().version);

        file.pass(1_000).await;
        assert_eq!(engine.read(&acme(), &keys).await.unwrap()[1], None, "the time to live went on");
        let fired = Some(FiredTimer { key: timer, token: again[0].token.clone() });
        apply(&engine, Commit { fired: fired.clone(), ..nothing() }).await;
        drop(engine);
        file.restart();
        assert_eq!(file.engine().claim_timers(10).await.unwrap(), []);
        assert_eq!(apply(&file.engine(), Commit { fired, ..nothing() }).await, Outcome::TimerGone);
    }
}

#[tokio::test]
async fn a_file_in_use_is_refused_with_its_name() {
    let file = OneFile::open(Options::default());
    let path = file.directory.path().join("data.redb");
    let error = EmbeddedEngine::open(&path, Options::default()).unwrap_err();
    assert!(matches!(&error, OpenError::InUse(named) if *named == path), "{error:?}");
    assert!(error.to_string().contains("data.redb is in use by another process"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_data_file_is_refused_and_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.redb");
    let text = "somebody's notes\n".repeat(1_000);
    std::fs::write(&path, &text).unwrap();
    let error = EmbeddedEngine::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Store(_)), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

/// Names the data file to the process that is going to be killed.
const VICTIM: &str = "POSTERN_TEST_VICTIM";

/// How many commits the victim acknowledges before it is killed.
const ACKNOWLEDGED_MIN: usize = 300;

/// Not a test by itself: what the test below starts as another process, and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let engine: Arc<dyn Engine> = EmbeddedEngine::open(Path::new(&path), Options::default()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let engine = Arc::clone(&engine);
        tasks.spawn(async move {
            for n in 0.. {
                let timer = TimerKey { plugin: "p".into(), name: format!("{task}-{n}").into() };
                let commit = Commit {
                    writes: vec![
                        put(&format!("a/{task}-{n}"), None),
                        put(&format!("b/{task}-{n}"), Some(3_600_000)),
                        (StateKey::stored("count"), Write::Add(1)),
                    ],
                    timers: vec![(timer, TimerChange::Set { after_ms: 0, data: "1".into() })],
                    ..nothing()
                };
                apply(&engine, commit).await;
                println!("acknowledged {task}-{n}");
            }
        });
    }
    tasks.join_next().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_and_no_commit_is_there_in_part() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.redb");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::victim", "--nocapture"])
        .env(VICTIM, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some((_, name)) = line.unwrap().split_once("acknowledged ") {
            acknowledged.push(name.to_owned());
        }
        if acknowledged.len() == ACKNOWLEDGED_MIN {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= ACKNOWLEDGED_MIN, "it ended by itself after {}", acknowledged.len());

    let engine = EmbeddedEngine::open(&path, Options::default()).unwrap();
    let names = |prefix: &'static str| {
        let engine = &engine;
        async move {
            let page = engine.list_keys(&acme(), prefix, None, 1_000_000).await.unwrap();
            page.keys.iter().map(|key| key.as_str()[prefix.len()..].to_owned()).collect::<Vec<_>>()
        }
    };
    let (a, b) = (names("a/").await, names("b/").await);
    let lost: Vec<_> = acknowledged.iter().filter(|name| !a.contains(name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert_eq!(a, b);
    let count = engine.read(&acme(), &[StateKey::stored("count")]).await.unwrap().remove(0).unwrap();
    assert_eq!(count.value, a.len().to_string());
    assert_eq!(engine.claim_timers(1_000_000).await.unwrap().len(), a.len());
}
