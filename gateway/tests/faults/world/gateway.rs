//! A gateway as a process of its own, at a port that it keeps.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{Process, free_port, wait_for};

/// How long a gateway may take until it is ready.
const START_MAX: Duration = Duration::from_secs(40);

pub(crate) struct Gateway {
    number: usize,
    port: u16,
    dir: PathBuf,
    tenants: PathBuf,
    redis_url: String,
    process: Option<Process>,
}

impl Gateway {
    pub(crate) fn new(number: usize, dir: &Path, tenants: &Path, redis_url: &str) -> Gateway {
        let (dir, tenants, redis_url) = (dir.to_owned(), tenants.to_owned(), redis_url.to_owned());
        Gateway { number, port: free_port(), dir, tenants, redis_url, process: None }
    }

    pub(crate) fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(["serve", "--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.arg("--tenants").arg(&self.tenants);
        command.arg("--data").arg(self.dir.join(format!("data-{}", self.number)));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("POSTERN_LOG", "info").env("REDIS_URL", &self.redis_url);
        command.current_dir(&self.dir);
        self.process = Some(Process::start(&mut command, &self.log()));
    }

    fn log(&self) -> PathBuf {
        self.dir.join(format!("gateway-{}.log", self.number))
    }

    pub(crate) fn wait_until_ready(&self) {
        let what = format!("gateway {} is ready (see {})", self.number, self.log().display());
        wait_for(&what, START_MAX, || self.get("/api/v1/health/ready").is_some_and(|answer| answer.contains("200 OK")));
    }

    /// An HTTP answer, whole.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        let host = format!("127.0.0.1:{}", self.port);
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }
}
