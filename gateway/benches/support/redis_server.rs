//! A real Redis server of the benchmark's own, and what it says it used.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the server may take to answer.
const START_MAX: Duration = Duration::from_secs(10);

/// `redis-server` on a free port of the loopback interface, without a file; killed when dropped.
pub(crate) struct RedisServer {
    port: u16,
    process: Child,
    _dir: tempfile::TempDir,
}

/// What the server has used so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    /// Computing time of the process, in microseconds.
    pub(crate) cpu_us: f64,
    /// Calls and microseconds, by command.
    pub(crate) commands: BTreeMap<String, (f64, f64)>,
}

impl RedisServer {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> RedisServer {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let dir = tempfile::tempdir().expect("a folder for Redis");
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = RedisServer { port, process, _dir: dir };
        let deadline = Instant::now() + START_MAX;
        while server.info("server").is_err() {
            assert!(Instant::now() < deadline, "no redis-server after {START_MAX:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn info(&self, section: &str) -> redis::RedisResult<String> {
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(1))?;
        redis::cmd("INFO").arg(section).query(&mut connection)
    }

    /// What it has used so far.
    pub(crate) fn used(&self) -> Used {
        let cpu = self.info("cpu").expect("Redis answers");
        let commands = self.info("commandstats").expect("Redis answers");
        let number = |text: &str| text.parse::<f64>().expect("a number");
        let seconds = |name: &str| {
            let value = cpu.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("it is told");
            number(value.trim())
        };
        let commands = commands.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let field = |field: &str| {
                rest.split(',').find_map(|part| part.strip_prefix(field)?.strip_prefix('=')).map_or(0.0, number)
            };
            Some((name.to_owned(), (field("calls"), field("usec"))))
        });
        Used { cpu_us: 1e6 * (seconds("used_cpu_sys") + seconds("used_cpu_user")), commands: commands.collect() }
    }
}

impl Used {
    /// Microseconds of a command since `before`.
    pub(crate) fn command_us(&self, before: &Used, command: &str) -> f64 {
        let of = |used: &Used| used.commands.get(command).map_or(0.0, |(_, us)| *us);
        of(self) - of(before)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
