//! Nodes of one catalog, in this process or in processes of their own, with versions to roll out.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern::catalog::{
    Actor, Catalog, NewVersion, PluginRecord, RolloutState, RolloutStatus, Signature, TenantRecord,
};
use postern::commit::{StateKey, now_ms};
use postern::decision::plugin;
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::engine::{Engine, redis};
use postern::tenant::{Pattern, Role, TenantId};
use postern::{config, run};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::redis_server::RedisServer;
use crate::support::staged_engine::{Faults, StagedEngine};
use crate::support::{SECRET, components};

/// How long a test waits for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The deadline of roll-outs that are to end by themselves.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

pub(super) fn operator() -> &'static Actor {
    static OPERATOR: LazyLock<Actor> = LazyLock::new(|| Actor::gateway("ops"));
    &OPERATOR
}

/// A version of the component that answers its number.
pub(super) fn component(number: u32) -> Bytes {
    let mut bytes = std::fs::read(components().join("test-version.wasm")).unwrap();
    let mark = b"version:0000";
    let places: Vec<_> = bytes.windows(mark.len()).enumerate().filter(|(_, w)| w == mark).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the component does not hold its mark");
    for at in places {
        bytes[at..at + mark.len()].copy_from_slice(format!("version:{number:04}").as_bytes());
    }
    bytes.into()
}

/// Waits until something is so.
pub(super) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A catalog and whoever serves it.
pub(super) struct Site {
    pub(super) runtime: Runtime,
    pub(super) catalog: Catalog,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) redis: Option<RedisServer>,
    pub(super) nodes: Vec<Running>,
}

/// A node in this process.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    pub(super) fn ws(&self, tenant: &str) -> String {
        format!("ws://{}/t/{tenant}/ws", self.address)
    }
}

impl Site {
    /// One node, embedded.
    pub(super) fn embedded(path: &Path) -> Site {
        let runtime = Runtime::new().unwrap();
        let engine: Arc<dyn Engine> = EmbeddedEngine::open(path, Options::default()).unwrap();
        let mut site = Site::of(runtime, engine.clone(), None);
        site.start(engine);
        site
    }

    /// Nodes on one Redis.
    pub(super) fn on_redis(nodes: usize) -> Site {
        let mut site = Site::without_nodes();
        for _ in 0..nodes {
            let url = site.redis.as_ref().unwrap().url();
            let engine = site.runtime.block_on(redis::connect(&url, options())).unwrap();
            site.start(engine);
        }
        site.wait_for_nodes(nodes);
        site
    }

    /// Nodes on one Redis, each with faults of its own.
    pub(super) fn on_faulty_redis(nodes: usize) -> (Site, Vec<Arc<Faults>>) {
        let mut site = Site::without_nodes();
        let mut all = Vec::new();
        for _ in 0..nodes {
            let url = site.redis.as_ref().unwrap().url();
            let engine = site.runtime.block_on(redis::connect(&url, options())).unwrap();
            let faults = Arc::new(Faults::default());
            site.start(StagedEngine::faulty(engine, faults.clone()));
            all.push(faults);
        }
        site.wait_for_nodes(nodes);
        (site, all)
    }

    /// One node with faults and with room for one call at a time.
    pub(super) fn with_room_for_one_call() -> (Site, Arc<Faults>) {
        let mut site = Site::without_nodes();
        let url = site.redis.as_ref().unwrap().url();
        let engine = site.runtime.block_on(redis::connect(&url, options())).unwrap();
        let faults = Arc::new(Faults::default());
        site.start_with(StagedEngine::faulty(engine, faults.clone()), |config| config.plugins.instances = 1);
        (site, faults)
    }

    /// A Redis and a catalog on it.
    pub(super) fn without_nodes() -> Site {
        let runtime = Runtime::new().unwrap();
        let server = RedisServer::start();
        let engine = runtime.block_on(redis::connect(&server.url(), options())).unwrap();
        Site::of(runtime, engine, Some(server))
    }

    fn of(runtime: Runtime, engine: Arc<dyn Engine>, redis: Option<RedisServer>) -> Site {
        let catalog = Catalog::new(engine.clone(), HashMap::new(), false);
        Site { runtime, catalog, engine, redis, nodes: Vec::new() }
    }

    fn start(&mut self, engine: Arc<dyn Engine>) {
        self.start_with(engine, |_| {});
    }

    fn start_with(&mut self, engine: Arc<dyn Engine>, set: impl FnOnce(&mut config::Config)) {
        let directory = tempfile::tempdir().unwrap();
        let text = |path: &Path| path.display().to_string();
        let flags = BTreeMap::from([
            ("tenants", text(directory.path())),
            ("data", text(directory.path())),
            ("host", "127.0.0.1".to_owned()),
            ("port", "0".to_owned()),
        ]);
        let mut config = config::load(&flags, &BTreeMap::new()).unwrap();
        set(&mut config);
        let (stop, stopped) = oneshot::channel();
        let node = self.runtime.block_on(async {
            let listener = run::bind(&config).await.unwrap();
            let address = listener.local_addr().unwrap();
            let config = config::Config { shutdown_grace: Duration::from_millis(200), ..config };
            #[expect(clippy::disallowed_methods, reason = "a node of the test's own, which the test ends")]
            let task = tokio::spawn(async move {
                run::run(config, listener, engine, async { drop(stopped.await) }).await.unwrap();
            });
            Running { address, stop: Some(stop), task, _directory: directory }
        });
        eventually("the node accepts", || {
            std::net::TcpStream::connect(node.address).is_ok() && !node.task.is_finished()
        });
        self.nodes.push(node);
    }

    pub(super) fn wait_for_nodes(&self, count: usize) {
        let live = || self.engine.nodes().iter().filter(|node| !node.server.is_empty()).count();
        eventually("the nodes see each other", || live() == count);
    }

    /// Ends all nodes and lets go of the engine.
    pub(super) fn stop(self) {
        let Site { runtime, nodes, .. } = self;
        for mut node in nodes {
            drop(node.stop.take());
            runtime.block_on(async { tokio::time::timeout(PATIENCE, node.task).await.expect("it ends").unwrap() });
        }
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// A tenant whose clients are known by the tests' secret, with limits that hinder nobody.
    pub(super) fn create(&self, name: &str) {
        let settings = json!({
            "auth": { "keys": [{ "id": "k1", "algorithm": "HS256", "secret": SECRET }] },
            "limits": { "messages_per_minute": "unlimited", "connections_per_user": 1000 },
            "call_limits": { "cpu_ms": 1000 },
        });
        let new = |_| Ok(Some(TenantRecord::new(id(name), settings.as_object().unwrap().clone())));
        self.runtime.block_on(self.catalog.change_tenant(operator(), &id(name), "tenant.create", new)).unwrap();
    }

    pub(super) fn change(&self, name: &str, change: impl Fn(TenantRecord) -> Option<TenantRecord>) {
        let change = |present: Option<TenantRecord>| Ok(change(present.unwrap()));
        self.runtime.block_on(self.catalog.change_tenant(operator(), &id(name), "test", change)).unwrap();
    }

    pub(super) fn change_plugin(
        &self,
        tenant: &str,
        name: &str,
        change: impl Fn(PluginRecord) -> Option<PluginRecord>,
    ) {
        let change = |present: Option<PluginRecord>| Ok(change(present.unwrap()));
        let tenant = id(tenant);
        let changed = self.catalog.change_plugin(operator(), &tenant, name, "test", change);
        self.runtime.block_on(changed).unwrap();
    }

    pub(super) fn plugin(&self, tenant: &str, name: &str, role: Role) {
        let new = |_| Ok(Some(PluginRecord::new(name, role)));
        let tenant = id(tenant);
        let made = self.catalog.change_plugin(operator(), &tenant, name, "plugin.create", new);
        self.runtime.block_on(made).unwrap();
    }

    /// Uploads a component; its version.
    pub(super) fn upload(&self, tenant: &str, name: &str, bytes: Bytes) -> u64 {
        self.put(tenant, name, bytes, |_| None)
    }

    /// Uploads a component with a signature of its digest; its version.
    pub(super) fn upload_signed(
        &self,
        tenant: &str,
        name: &str,
        bytes: Bytes,
        sign: impl Fn(&str) -> plugin::Signature,
    ) -> u64 {
        self.put(tenant, name, bytes, |digest| {
            let text = sign(digest).to_string();
            let (key, value) = text.split_once(':').unwrap();
            Some(Signature { key: key.into(), value: value.into() })
        })
    }

    fn put(&self, tenant: &str, name: &str, bytes: Bytes, sign: impl Fn(&str) -> Option<Signature>) -> u64 {
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        // As its description says.
        let events = ["version", "count", "trap", "read"].map(|event| Pattern(event.to_owned())).to_vec();
        let new = NewVersion { signature: sign(&digest), digest: digest.into(), events, ..NewVersion::default() };
        let tenant = id(tenant);
        let added = self.catalog.add_version(operator(), &tenant, name, new, bytes);
        self.runtime.block_on(added).unwrap().version.version
    }

    pub(super) fn activate(&self, tenant: &str, name: &str, version: u64, deadline: Duration) {
        let tenant = id(tenant);
        let begun = self.catalog.activate(operator(), &tenant, name, version, deadline);
        self.runtime.block_on(begun).unwrap();
    }

    pub(super) fn rollout(&self, tenant: &str, name: &str) -> RolloutStatus {
        self.runtime.block_on(self.catalog.rollout(&id(tenant), name)).unwrap()
    }

    /// Rolls a version out and waits until it is active.
    pub(super) fn roll_out(&self, tenant: &str, name: &str, version: u64) {
        self.activate(tenant, name, version, DEADLINE);
        self.wait_for_rollout(tenant, name, RolloutState::Active);
    }

    pub(super) fn wait_for_rollout(&self, tenant: &str, name: &str, state: RolloutState) -> RolloutStatus {
        let mut last = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let status = self.rollout(tenant, name);
            if status.state == state {
                return status;
            }
            last = Some(status);
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the roll-out is not {state:?}: {last:?}");
    }

    pub(super) fn roll_back(&self, tenant: &str, name: &str) -> u64 {
        self.runtime.block_on(self.catalog.roll_back(operator(), &id(tenant), name, None)).unwrap()
    }

    /// A tenant with an authorizer and a handler, both of version 1.
    pub(super) fn tenant_of_version_1(&self, name: &str) {
        self.create(name);
        for (plugin, role) in [("gate", Role::Authorizer), ("echo", Role::Handler)] {
            self.plugin(name, plugin, role);
            self.upload(name, plugin, component(1));
            self.roll_out(name, plugin, 1);
        }
    }

    /// How often versions of the handler have counted.
    pub(super) fn handled(&self, tenant: &str, version: &str) -> u64 {
        let key = StateKey::of("echo", &format!("handled-{version}"));
        let found = self.runtime.block_on(self.engine.read(&id(tenant), &[key])).unwrap().pop().flatten();
        found.map_or(0, |found| String::from_utf8_lossy(&found.value).parse().unwrap())
    }
}

fn options() -> redis::Options {
    redis::Options { beat: Duration::from_millis(250), lease: Duration::from_secs(4), ..redis::Options::default() }
}

/// A token of the first key.
pub(super) fn token(tenant: &str, subject: &str) -> String {
    crate::support::token(tenant, subject, Value::Object([("at".to_owned(), now_ms().into())].into_iter().collect()))
}
