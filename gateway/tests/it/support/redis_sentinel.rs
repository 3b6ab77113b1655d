//! A master, its replica and Sentinels that watch them.

use std::time::{Duration, Instant};

use super::redis_server::RedisServer;

/// How long the servers may take to find each other, and a fail-over to be done.
const PATIENCE: Duration = Duration::from_secs(20);

/// The name of the service.
const SERVICE: &str = "postern";

/// Two servers and their Sentinels.
pub(crate) struct Sentinels {
    /// The first is the master at the start.
    pub(crate) servers: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
}

impl Sentinels {
    /// Starts them and waits until the Sentinels could fail over.
    pub(crate) fn start(count: usize) -> Sentinels {
        let master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]);
        let port = master.port().to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        wait("the replica follows", || info(&replica, "replication").contains("master_link_status:up"));
        let quorum = count / 2 + 1;
        let lines = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} 1000\n\
             sentinel failover-timeout {SERVICE} 4000\n"
        );
        let sentinels: Vec<_> = (0..count).map(|_| RedisServer::start_sentinel(&lines)).collect();
        for sentinel in &sentinels {
            wait("the Sentinel knows the others", || {
                let info = info(sentinel, "sentinel");
                info.contains(&format!("status=ok,address=127.0.0.1:{port},slaves=1,sentinels={count}"))
            });
        }
        Sentinels { servers: [master, replica], sentinels }
    }

    /// For the engine under test.
    pub(crate) fn url(&self) -> String {
        let sentinels: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{SERVICE}", sentinels.join(","))
    }

    /// Makes the Sentinels hand over to the replica, and waits until it is the master.
    pub(crate) fn fail_over(&self) {
        self.sentinels[0].command(&["SENTINEL", "FAILOVER", SERVICE]);
        // Sentinels cut the clients of a server whose role they change, whoever asks included.
        wait("the replica is promoted", || {
            let info = self.servers[1].try_command(&["INFO", "replication"]).map(redis::from_redis_value::<String>);
            matches!(info, Ok(Ok(info)) if info.contains("role:master"))
        });
    }

    /// Makes the Sentinels name the second server, which they know nothing else of.
    pub(crate) fn name_the_second(&self) {
        for sentinel in &self.sentinels {
            sentinel.command(&["SENTINEL", "REMOVE", SERVICE]);
            let port = self.servers[1].port().to_string();
            sentinel.command(&["SENTINEL", "MONITOR", SERVICE, "127.0.0.1", &port, "1"]);
        }
    }
}

fn info(server: &RedisServer, section: &str) -> String {
    redis::from_redis_value(server.command(&["INFO", section])).unwrap()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
