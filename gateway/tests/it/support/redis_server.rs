//! A real Redis server of a test's own.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer.
const START_MAX: Duration = Duration::from_secs(10);

/// How many ports are tried.
const PORTS_TRIED_MAX: usize = 10;

/// `redis-server` on a free port of the loopback interface, without a file; killed when dropped.
pub(crate) struct RedisServer {
    port: u16,
    directory: tempfile::TempDir,
    process: Option<Child>,
    /// Further arguments.
    arguments: Vec<String>,
    /// What it is told as a Sentinel, a line each; `None`: it is none.
    sentinel: Option<String>,
}

impl RedisServer {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> RedisServer {
        RedisServer::start_with(&[])
    }

    /// Starts one with further arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> RedisServer {
        RedisServer::start_as(arguments, None)
    }

    /// Starts a Sentinel that is told these lines.
    pub(crate) fn start_sentinel(lines: &str) -> RedisServer {
        RedisServer::start_as(&[], Some(lines))
    }

    fn start_as(arguments: &[&str], sentinel: Option<&str>) -> RedisServer {
        // A port that is free now may be another test's in a moment.
        for _ in 0..PORTS_TRIED_MAX {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut server = RedisServer {
                port,
                directory: tempfile::tempdir().unwrap(),
                process: None,
                arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
                sentinel: sentinel.map(Into::into),
            };
            if server.try_start() {
                return server;
            }
        }
        panic!("no redis-server at any of {PORTS_TRIED_MAX} ports");
    }

    /// Starts a server that was killed, empty, at the same port.
    pub(crate) fn start_again(&mut self) {
        assert!(self.try_start(), "port {} is taken", self.port);
    }

    /// `false`: the process ended because it could not have the port.
    fn try_start(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        if let Some(lines) = &self.sentinel {
            let settings = self.directory.path().join("sentinel.conf");
            std::fs::write(&settings, format!("port {}\nbind 127.0.0.1\n{lines}\n", self.port)).unwrap();
            command.arg(settings).arg("--sentinel");
        } else {
            command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
            command.args(&self.arguments);
        }
        command.arg("--dir").arg(self.directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = self.process.insert(command.spawn().expect("redis-server is installed"));
        let own = format!("process_id:{}\r\n", process.id());
        let deadline = Instant::now() + START_MAX;
        while self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none()) {
            let info = self.try_command(&["INFO", "server"]).map(redis::from_redis_value::<String>);
            if matches!(info, Ok(Ok(text)) if text.contains(&own)) {
                return true;
            }
            assert!(Instant::now() < deadline, "no redis-server after {START_MAX:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Kills the server without warning; its data is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops the process where it is (`STOP`) or lets it go on (`CONT`): connections stay open.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("the server runs").id();
        assert!(Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().unwrap().success());
    }

    /// Where it listens, on the loopback interface.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// For the engine under test.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// One command of an operator, on a connection of its own.
    pub(crate) fn command(&self, words: &[&str]) -> redis::Value {
        self.try_command(words).unwrap()
    }

    /// As [`command`](RedisServer::command), where the server may not answer.
    /// Waits until a replica has everything that was written up to now. `WAIT` tells it only of what the same
    /// connection wrote.
    pub(crate) fn wait_for_replica(&self) {
        let info = || redis::from_redis_value::<String>(self.command(&["INFO", "replication"])).unwrap();
        let number = |text: &str, name: &str| -> Option<u64> {
            let rest = &text[text.find(name)? + name.len()..];
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let written = number(&info(), "master_repl_offset:").expect("a master");
        let deadline = Instant::now() + START_MAX;
        while number(&info(), ",offset=").is_none_or(|replicated| replicated < written) {
            assert!(Instant::now() < deadline, "no replica has it within {START_MAX:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn try_command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(1))?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }
}
