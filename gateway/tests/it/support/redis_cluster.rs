//! A cluster of three masters with a replica each.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use super::redis_server::RedisServer;

/// How long the servers may take to agree.
const PATIENCE: Duration = Duration::from_secs(30);

/// Masters, and as many replicas.
const MASTERS: usize = 3;

/// Six servers of one cluster.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<RedisServer>,
}

impl Cluster {
    /// Starts them and waits until all of them see a whole cluster with a replica for each master.
    pub(crate) fn start() -> Cluster {
        let servers: Vec<_> = (0..2 * MASTERS).map(|_| start_one()).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port())));
        let output = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().expect("redis-cli runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let cluster = Cluster { servers };
        for server in &cluster.servers {
            wait("the cluster is whole", || {
                let whole = text(server, &["CLUSTER", "INFO"]).contains("cluster_state:ok");
                let lines = text(server, &["CLUSTER", "NODES"]);
                whole && lines.lines().filter(|line| line.contains("slave")).count() == MASTERS
            });
        }
        for replica in cluster.servers.iter().filter(|server| !is_master(server)) {
            wait("the replica follows", || text(replica, &["INFO", "replication"]).contains("master_link_status:up"));
        }
        cluster
    }

    /// For the engine under test.
    pub(crate) fn url(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port())).collect();
        format!("redis+cluster://{}", servers[..2].join(","))
    }

    /// Empties all masters.
    pub(crate) fn flush(&self) {
        for master in self.servers.iter().filter(|server| is_master(server)) {
            master.command(&["FLUSHALL"]);
        }
    }

    /// The place of the master that holds a key.
    pub(crate) fn master_of(&self, key: &str) -> usize {
        let slot: i64 = redis::from_redis_value(self.servers[0].command(&["CLUSTER", "KEYSLOT", key])).unwrap();
        let stretches: Vec<(i64, i64, redis::Value)> = {
            let answer: Vec<Vec<redis::Value>> =
                redis::from_redis_value(self.servers[0].command(&["CLUSTER", "SLOTS"])).unwrap();
            let number = |value: &redis::Value| redis::from_redis_value(value.clone()).unwrap();
            answer.into_iter().map(|parts| (number(&parts[0]), number(&parts[1]), parts[2].clone())).collect()
        };
        let (_, _, master) = stretches.into_iter().find(|(from, to, _)| (*from..=*to).contains(&slot)).unwrap();
        let parts: Vec<redis::Value> = redis::from_redis_value(master).unwrap();
        let port: u16 = redis::from_redis_value(parts[1].clone()).unwrap();
        self.servers.iter().position(|server| server.port() == port).unwrap()
    }

    /// A replica of a master.
    pub(crate) fn replica_of(&self, master: usize) -> usize {
        let port = format!("master_port:{}\r\n", self.servers[master].port());
        self.servers.iter().position(|server| text(server, &["INFO", "replication"]).contains(&port)).unwrap()
    }

    /// Gives the slot of a key, with all that is in it, to another master, while it is used.
    pub(crate) fn migrate(&self, key: &str, to: usize) {
        let from = &self.servers[self.master_of(key)];
        let to = &self.servers[to];
        let id = |server: &RedisServer| text(server, &["CLUSTER", "MYID"]);
        let slot: i64 = redis::from_redis_value(from.command(&["CLUSTER", "KEYSLOT", key])).unwrap();
        let slot = slot.to_string();
        to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        let port = to.port().to_string();
        loop {
            let keys: Vec<String> =
                redis::from_redis_value(from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"])).unwrap();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                from.command(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
            }
        }
        for server in [to, from] {
            server.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
        }
    }
}

fn start_one() -> RedisServer {
    // The bus has a port of its own, for ports from 55536 on have none 10,000 above.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bus = free.local_addr().unwrap().port().to_string();
    drop(free);
    RedisServer::start_with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "1500",
        "--repl-diskless-sync-delay",
        "0",
    ])
}

fn is_master(server: &RedisServer) -> bool {
    text(server, &["INFO", "replication"]).contains("role:master")
}

fn text(server: &RedisServer, words: &[&str]) -> String {
    redis::from_redis_value(server.command(words)).unwrap()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
