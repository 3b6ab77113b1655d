//! A master, a replica, and the Sentinels that watch them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::process::{Process, free_port, wait_for};
use super::redis_server::{RedisServer, command};

/// The name under which the master is known.
const SERVICE: &str = "postern";

const SENTINELS: usize = 3;

/// After so long a silence a server counts as down, in milliseconds.
const DOWN_AFTER_MS: u32 = 1_000;

/// How long a failover may take.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Sentinels {
    servers: [RedisServer; 2],
    ports: Vec<u16>,
    _sentinels: Vec<Process>,
}

impl Sentinels {
    pub(crate) fn start(dir: &Path) -> Sentinels {
        let master = RedisServer::start(&dir.join("redis-0"));
        let of = format!("127.0.0.1 {}", master.port);
        let replica = RedisServer::start_as(&dir.join("redis-1"), &["--replicaof", &of]);
        let servers = [master, replica];
        wait_for("replication", Duration::from_secs(20), || {
            servers[1].info("replication").contains("master_link_status:up")
        });
        let ports: Vec<_> = (0..SENTINELS).map(|_| free_port()).collect();
        let sentinels = ports.iter().map(|port| sentinel(dir, *port, servers[0].port)).collect();
        let all = Sentinels { servers, ports, _sentinels: sentinels };
        all.wait_until_watched();
        all
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Asks the Sentinels for the master.
    pub(crate) fn finder(&self) -> Arc<dyn Fn() -> Option<String> + Send + Sync> {
        let ports = self.ports.clone();
        Arc::new(move || {
            let port = ports.iter().find_map(|port| master_port(*port))?;
            Some(format!("redis://127.0.0.1:{port}"))
        })
    }

    /// A failover is possible: the replica follows, and every Sentinel knows it and the others.
    pub(crate) fn wait_until_watched(&self) {
        wait_for("Sentinels that know everybody", Duration::from_secs(40), || {
            self.ports.iter().all(|port| {
                let info = sentinel_info(*port);
                info.contains("status=ok")
                    && info.contains("slaves=1")
                    && info.contains(&format!("sentinels={SENTINELS}"))
            }) && self
                .replica()
                .is_some_and(|replica| self.servers[replica].info("replication").contains("master_link_status:up"))
        });
    }

    /// Which of the servers is the master, by the Sentinels' word.
    fn master(&self) -> Option<usize> {
        let port = self.ports.iter().find_map(|port| master_port(*port))?;
        self.servers.iter().position(|server| server.port == port)
    }

    fn replica(&self) -> Option<usize> {
        let other = 1 - self.master()?;
        self.servers[other].info("replication").contains("role:slave").then_some(other)
    }

    /// Kills the master after its replica has heard nothing for a while: what was written meanwhile is lost.
    /// The server comes back as a replica of the other.
    pub(crate) fn kill_master_with_lag(&mut self, lag: Duration) {
        let master = self.master().expect("the Sentinels know a master");
        let other = 1 - master;
        // Detached, not frozen: what waits in a frozen replica's socket would still arrive.
        self.servers[other].command(&["REPLICAOF", "127.0.0.1", "1"]).expect("the replica answers");
        std::thread::sleep(lag);
        self.servers[master].kill();
        self.wait_for_master(other);
        self.rejoin(master, other);
    }

    /// Asks the Sentinels for a failover; the old master stays up and is made a replica.
    pub(crate) fn fail_over(&mut self) {
        let master = self.master().expect("the Sentinels know a master");
        sentinel_command(self.ports[0], &["SENTINEL", "FAILOVER", SERVICE]).expect("a Sentinel fails over");
        self.wait_for_master(1 - master);
    }

    /// Freezes the master until the other has taken over; then it goes on, with its clients' connections open and
    /// believing that it is the master.
    pub(crate) fn fail_over_a_frozen_master(&mut self) {
        let master = self.master().expect("the Sentinels know a master");
        self.servers[master].signal("STOP");
        self.wait_for_master(1 - master);
        self.servers[master].signal("CONT");
    }

    fn wait_for_master(&self, wanted: usize) {
        let deadline = Instant::now() + FAILOVER_MAX;
        while self.master() != Some(wanted) || !self.servers[wanted].info("replication").contains("role:master") {
            assert!(Instant::now() < deadline, "no failover within {FAILOVER_MAX:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn rejoin(&mut self, dead: usize, master: usize) {
        let of = format!("127.0.0.1 {}", self.servers[master].port);
        self.servers[dead].restart_as(&["--replicaof", &of]);
    }
}

fn sentinel(dir: &Path, port: u16, master: u16) -> Process {
    let folder = dir.join(format!("sentinel-{port}"));
    std::fs::create_dir_all(&folder).expect("a folder for a Sentinel");
    let file = folder.join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\n\
         sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n\
         sentinel failover-timeout {SERVICE} 6000\n",
        folder.display(),
    );
    std::fs::write(&file, text).expect("a Sentinel's settings");
    Process::start(Command::new("redis-server").arg(&file).arg("--sentinel"), &folder.join("log.txt"))
}

fn sentinel_command(port: u16, words: &[&str]) -> redis::RedisResult<redis::Value> {
    command(&format!("redis://127.0.0.1:{port}"), words)
}

fn sentinel_info(port: u16) -> String {
    let answer = sentinel_command(port, &["INFO", "sentinel"]);
    answer.and_then(|value| Ok(redis::from_redis_value::<String>(value)?)).unwrap_or_default()
}

fn master_port(sentinel: u16) -> Option<u16> {
    let answer = sentinel_command(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).ok()?;
    let (_, port): (String, String) = redis::from_redis_value(answer).ok()?;
    port.parse().ok()
}
