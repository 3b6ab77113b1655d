//! A Redis server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::{Process, free_port, wait_for};

/// How long a server may take to answer.
const START_MAX: Duration = Duration::from_secs(15);

/// One command on a connection of its own.
pub(crate) fn command(url: &str, words: &[&str]) -> redis::RedisResult<redis::Value> {
    let mut connection = redis::Client::open(url)?.get_connection_with_timeout(Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
}

/// `redis-server` on a port of its own that it keeps when it is started again.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    dir: PathBuf,
    process: Option<Process>,
}

impl RedisServer {
    pub(crate) fn start(dir: &Path) -> RedisServer {
        RedisServer::start_as(dir, &[])
    }

    /// With further arguments, and without files.
    pub(crate) fn start_as(dir: &Path, arguments: &[&str]) -> RedisServer {
        std::fs::create_dir_all(dir).expect("a folder for Redis");
        let mut server = RedisServer { port: free_port(), dir: dir.into(), process: None };
        server.launch(arguments);
        server.wait();
        server
    }

    /// Starts it again at its port, empty.
    pub(crate) fn restart_empty(&mut self) {
        _ = std::fs::remove_dir_all(self.dir.join("appendonlydir"));
        self.launch(&[]);
        self.wait();
    }

    /// Starts it again with what its append-only file holds.
    pub(crate) fn restart_persistent(&mut self, fsync: &str) {
        self.launch(&["--appendonly", "yes", "--appendfsync", fsync]);
        self.wait();
    }

    pub(crate) fn restart_as(&mut self, arguments: &[&str]) {
        self.launch(arguments);
        self.wait();
    }

    fn launch(&mut self, arguments: &[&str]) {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--enable-debug-command", "local", "--dir"]).arg(&self.dir);
        if !arguments.contains(&"--appendonly") {
            command.args(["--appendonly", "no"]);
        }
        command.args(arguments);
        self.process = Some(Process::start(&mut command, &self.dir.join("log.txt")));
    }

    fn wait(&mut self) {
        let port = self.port;
        wait_for(&format!("redis-server at {port}"), START_MAX, || {
            let process = self.process.as_mut().expect("it was launched");
            assert!(!process.has_ended(), "redis-server at {port} has ended: see {:?}", self.dir.join("log.txt"));
            matches!(self.command(&["PING"]), Ok(redis::Value::SimpleString(_)))
        });
    }

    /// From here on it writes an append-only file (`fsync`: `always` or `everysec`); waits until everything is in it.
    pub(crate) fn persist(&self, fsync: &str) {
        self.command(&["CONFIG", "SET", "appendfsync", fsync]).expect("Redis answers");
        self.command(&["CONFIG", "SET", "appendonly", "yes"]).expect("Redis answers");
        wait_for("the append-only file", Duration::from_secs(20), || {
            let info = self.info("persistence");
            info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
        });
    }

    pub(crate) fn info(&self, section: &str) -> String {
        let answer = self.command(&["INFO", section]);
        answer.and_then(|value| Ok(redis::from_redis_value::<String>(value)?)).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Stops the process where it is, lets it go on after a while; connections stay open.
    pub(crate) fn freeze(&self, during: Duration) {
        let until = Instant::now() + during;
        self.signal("STOP");
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        self.signal("CONT");
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        command(&self.url(), words)
    }
}
