//! The Redis engine on a cluster of three masters.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use postern::commit::{Commit, Millis, Position};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{Engine, EngineError, Follower, Health, Outcome};
use postern::tenant::TenantId;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};

use crate::engine_suite::{Fixture, engine_suite};
use crate::redis_engine::{next_position, say};
use crate::support::redis_cluster::Cluster;

engine_suite!(suite, super::OnCluster);

/// How long a fail-over may take.
const FAIL_OVER_MAX: Duration = Duration::from_secs(15);

/// The suite's cluster, empty, with one node's engine on it. Starting one takes seconds, so tests that run at the
/// same time wait for each other and share it; the last one stops it.
pub(crate) struct OnCluster {
    engine: Arc<RedisEngine>,
    options: Options,
    cluster: Arc<Cluster>,
    _alone: MutexGuard<'static, ()>,
}

static SHARED: parking_lot::Mutex<Weak<Cluster>> = parking_lot::Mutex::new(Weak::new());
static ALONE: Mutex<()> = Mutex::const_new(());

impl OnCluster {
    async fn with(options: Options) -> OnCluster {
        let cluster = {
            let mut shared = SHARED.lock();
            let cluster = shared.upgrade().unwrap_or_else(|| Arc::new(Cluster::start()));
            *shared = Arc::downgrade(&cluster);
            cluster
        };
        let _alone = ALONE.lock().await;
        cluster.flush();
        let engine = connect(&cluster.url(), options.clone()).await.unwrap();
        OnCluster { engine, options, cluster, _alone }
    }
}

#[async_trait]
impl Fixture for OnCluster {
    async fn start() -> Self {
        OnCluster::with(Options { timer_lease_ms: 400, ..Options::default() }).await
    }

    async fn with_log(entries: usize) -> Self {
        OnCluster::with(Options { log_entries_max: entries, ..Options::default() }).await
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone()
    }

    async fn another(&self) -> Arc<dyn Engine> {
        connect(&self.cluster.url(), self.options.clone()).await.unwrap()
    }

    async fn pass(&self, ms: Millis) {
        sleep(Duration::from_millis(ms + 5)).await;
    }

    fn lease_ms(&self) -> Millis {
        self.options.timer_lease_ms
    }

    async fn lose_log(&mut self) {
        self.cluster.flush();
    }
}

async fn apply(engine: &RedisEngine, tenant: &TenantId, commit: Commit) -> Position {
    let commit = Arc::new(commit);
    let until = Instant::now() + FAIL_OVER_MAX;
    loop {
        match engine.commit(tenant, commit.clone()).await {
            Ok(Outcome::Committed(position)) => return position,
            Err(EngineError::Unavailable(_) | EngineError::Ambiguous(_)) if Instant::now() < until => {
                sleep(Duration::from_millis(20)).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A tenant whose log is at that server, followed, and the name of its log.
async fn tenant_at(cluster: &Cluster, engine: &RedisEngine, server: usize) -> (TenantId, Follower, String) {
    for n in 0..100 {
        let tenant = TenantId::parse(&format!("tenant-{server}-{n}")).unwrap();
        apply(engine, &tenant, say("here")).await;
        let name = format!("ps:*:{tenant}:log");
        let found: Vec<String> = redis::from_redis_value(cluster.servers[server].command(&["KEYS", &name])).unwrap();
        if let [log] = &found[..] {
            return (tenant.clone(), engine.follow(&tenant).await.unwrap(), log.clone());
        }
    }
    panic!("no tenant is at server {server}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_takes_only_its_own_tenants_along_until_its_replica_takes_over() {
    let mut cluster = Cluster::start();
    let engine = connect(&cluster.url(), Options::default()).await.unwrap();
    let (here, mut here_follower, _) = tenant_at(&cluster, &engine, 0).await;
    let (there, mut there_follower, _) = tenant_at(&cluster, &engine, 1).await;
    cluster.servers[0].wait_for_replica();
    cluster.servers[0].kill();
    let mut health = engine.health(&here);
    timeout(Duration::from_secs(10), health.wait_for(|health| *health != Health::Up)).await.unwrap().unwrap();
    assert_eq!(*engine.health(&there).borrow(), Health::Up);
    let position = timeout(Duration::from_secs(5), apply(&engine, &there, say("meanwhile"))).await.unwrap();
    assert_eq!(next_position(&mut there_follower).await, position);

    let position = apply(&engine, &here, say("afterwards")).await;
    assert_eq!(timeout(Duration::from_secs(15), next_position(&mut here_follower)).await, Ok(position));
    timeout(Duration::from_secs(15), health.wait_for(|health| *health == Health::Up)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_takes_its_followers_along_and_loses_nothing() {
    let cluster = Arc::new(Cluster::start());
    let engine = connect(&cluster.url(), Options::default()).await.unwrap();
    let (tenant, mut follower, log) = tenant_at(&cluster, &engine, 0).await;
    let (moving, from_here) = (cluster.clone(), log.clone());
    let migration = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(100));
        moving.migrate(&from_here, 1);
    });
    let mut committed = Vec::new();
    for n in 0..100 {
        committed.push(apply(&engine, &tenant, say(&n.to_string())).await);
        sleep(Duration::from_millis(5)).await;
    }
    migration.await.unwrap();
    committed.push(apply(&engine, &tenant, say("at home")).await);
    for position in committed {
        assert_eq!(next_position(&mut follower).await, position);
    }
    assert_eq!(cluster.master_of(&log), 1);
    // Listened to at the new place, not only caught up once.
    let position = apply(&engine, &tenant, say("heard")).await;
    assert_eq!(timeout(Duration::from_secs(10), next_position(&mut follower)).await, Ok(position));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_to_the_replica_is_followed() {
    let cluster = Cluster::start();
    let engine = connect(&cluster.url(), Options::default()).await.unwrap();
    let (tenant, mut follower, _) = tenant_at(&cluster, &engine, 0).await;
    let replica = cluster.replica_of(0);
    cluster.servers[replica].command(&["CLUSTER", "FAILOVER"]);
    for n in 0..100 {
        let position = apply(&engine, &tenant, say(&n.to_string())).await;
        assert_eq!(next_position(&mut follower).await, position);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.replica_of(replica), 0, "the first server is a replica now");
}
