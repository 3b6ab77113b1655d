//! The world of a run: Redis in one of its forms, gateways, and what can be done to them.
//!
//! Everything is a real process on a free port of the loopback interface and ends with the [`World`].

pub(crate) mod gateway;
pub(crate) mod process;
pub(crate) mod redis_server;
pub(crate) mod sentinel;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gateway::Gateway;
use redis_server::RedisServer;
use sentinel::Sentinels;

/// The secret of every tenant of the world.
pub(crate) const SECRET: &str = "fault-suite-secret-of-no-real-tenant-0123456789";

/// Tenants with equal room names, so that a mix-up shows.
pub(crate) const TENANTS: [&str; 2] = ["one", "two"];

/// How long visitors wait for an answer, in milliseconds.
const VISITOR_TIMEOUT_MS: u64 = 2_500;

/// What Redis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One server.
    Standalone,
    /// A master, a replica, three Sentinels.
    Sentinel,
}

/// Redis, in whatever form.
pub(crate) enum Redis {
    Standalone(RedisServer),
    Sentinel(Sentinels),
}

impl Redis {
    /// `REDIS_URL`.
    pub(crate) fn url(&self) -> String {
        match self {
            Redis::Standalone(server) => server.url(),
            Redis::Sentinel(sentinels) => sentinels.url(),
        }
    }

    /// For who wants to ask the master, whichever it is at the moment.
    pub(crate) fn master(&self) -> Arc<dyn Fn() -> Option<String> + Send + Sync> {
        match self {
            Redis::Standalone(server) => {
                let url = server.url();
                Arc::new(move || Some(url.clone()))
            }
            Redis::Sentinel(sentinels) => sentinels.finder(),
        }
    }
}

/// Redis and the gateways on it.
pub(crate) struct World {
    pub(crate) redis: Redis,
    pub(crate) gateways: Vec<Gateway>,
}

impl World {
    /// Starts everything and waits until it serves. `dir` keeps the logs.
    pub(crate) fn start(form: Form, gateways: usize, dir: &Path) -> World {
        std::fs::create_dir_all(dir).expect("a folder for the world");
        let redis = match form {
            Form::Standalone => Redis::Standalone(RedisServer::start(&dir.join("redis"))),
            Form::Sentinel => Redis::Sentinel(Sentinels::start(dir)),
        };
        let tenants = tenants(dir);
        let url = redis.url();
        let mut gateways: Vec<_> = (0..gateways).map(|number| Gateway::new(number, dir, &tenants, &url)).collect();
        for gateway in &mut gateways {
            gateway.start();
        }
        for gateway in &gateways {
            gateway.wait_until_ready();
        }
        World { redis, gateways }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(Gateway::url).collect()
    }

    /// The one server of a world that has one.
    pub(crate) fn server(&mut self) -> &mut RedisServer {
        match &mut self.redis {
            Redis::Standalone(server) => server,
            Redis::Sentinel(_) => panic!("this fault is for a standalone server"),
        }
    }

    pub(crate) fn sentinels(&mut self) -> &mut Sentinels {
        match &mut self.redis {
            Redis::Sentinel(sentinels) => sentinels,
            Redis::Standalone(_) => panic!("this fault is for Sentinel"),
        }
    }

    /// One command to the master, on a connection of its own.
    pub(crate) fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let url = (self.redis.master())()
            .ok_or_else(|| redis::RedisError::from((redis::ErrorKind::Io, "there is no master")))?;
        redis_server::command(&url, words)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.gateways.iter().filter_map(Gateway::pid).collect()
    }
}

/// Writes the tenants' files: everybody may join and publish, and visitors are registered.
fn tenants(dir: &Path) -> PathBuf {
    let folder = dir.join("tenants");
    std::fs::create_dir_all(&folder).expect("a folder for the tenants");
    for name in TENANTS {
        let component = |name: &str| process::root().join(format!("target/components/{name}.wasm"));
        let text = format!(
            "name = {name:?}\n{}\n\
             [[auth.keys]]\nalgorithm = \"HS256\"\nsecret = {SECRET:?}\n\
             [limits]\nmessages_per_minute = \"unlimited\"\nconnections_per_user = 1000\n\
             [[plugins]]\nname = \"authorizer\"\nrole = \"authorizer\"\ncomponent = {:?}\n\
             [[plugins]]\nname = \"visitor-approvals\"\nrole = \"handler\"\ncomponent = {:?}\n\
             settings = {{ timeout_ms = {VISITOR_TIMEOUT_MS} }}\n",
            TENANT_SETTINGS.join("\n"),
            component("bench"),
            component("visitor-approvals"),
        );
        std::fs::write(folder.join(format!("{name}.toml")), text).expect("a tenant file");
    }
    folder
}

/// Settings of the tenants beside plugins and limits.
const TENANT_SETTINGS: [&str; 3] =
    ["presence_events = [\"r\"]", "presence_grace_ms = 3000", "socketio_recovery = true"];
