//! A gateway as a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

/// How long a node may take from start to its first connection: components with an interpreter in them
/// take seconds to compile, each, on a machine that has nothing else to do.
const START_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a node may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// What a node is started with.
pub(crate) struct Settings {
    /// Tenant files: name and text.
    pub(crate) tenants: Vec<(String, String)>,
    /// Lines of `postern.toml`.
    pub(crate) config: String,
    /// Its Redis, if it is not to be embedded.
    pub(crate) redis_url: Option<String>,
}

/// A running node; killed when dropped.
pub(crate) struct Node {
    child: Option<Child>,
    /// Where it accepts.
    pub(crate) address: SocketAddr,
    dir: Arc<tempfile::TempDir>,
    redis_url: Option<String>,
    variables: Vec<(String, String)>,
    log: Arc<Mutex<String>>,
}

impl Node {
    /// Starts an embedded node with these tenants.
    pub(crate) fn start(tenants: Vec<(String, String)>) -> Node {
        Node::with(Settings { tenants, config: String::new(), redis_url: None })
    }

    /// Starts a node and waits until it accepts.
    pub(crate) fn with(settings: Settings) -> Node {
        Node::with_variables(settings, &[])
    }

    /// The same, with variables in its environment.
    pub(crate) fn with_variables(settings: Settings, variables: &[(&str, &str)]) -> Node {
        let dir = Arc::new(tempfile::tempdir().expect("a folder for the node"));
        let tenants = dir.path().join("tenants");
        std::fs::create_dir(&tenants).expect("a folder for the tenants");
        for (name, text) in &settings.tenants {
            std::fs::write(tenants.join(format!("{name}.toml")), text).expect("a tenant file");
        }
        std::fs::write(dir.path().join("postern.toml"), &settings.config).expect("a configuration");
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Node::spawn(dir, settings.redis_url, variables)
    }

    fn spawn(dir: Arc<tempfile::TempDir>, redis_url: Option<String>, variables: Vec<(String, String)>) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(["serve", "--host", "127.0.0.1", "--port", "0"]);
        command.arg("--config").arg(dir.path().join("postern.toml"));
        command.arg("--tenants").arg(dir.path().join("tenants"));
        command.arg("--data").arg(dir.path().join("data"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("POSTERN_LOG", "debug");
        if let Some(url) = &redis_url {
            command.env("REDIS_URL", url);
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("postern starts");
        let log = Arc::new(Mutex::new(String::new()));
        let lines = child.stderr.take().expect("stderr is piped");
        let (found, address) = std::sync::mpsc::channel();
        let shared = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                if line.contains("accepting connections")
                    && let Some(address) =
                        line.split("address=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok())
                {
                    let _ = found.send(address);
                }
                let mut log = shared.lock();
                log.push_str(&line);
                log.push('\n');
            }
        });
        match address.recv_timeout(START_TIMEOUT) {
            Ok(address) => Node { child: Some(child), address, dir, redis_url, variables, log },
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the node does not accept connections:\n{}", log.lock());
            }
        }
    }

    /// `http://…`, without a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `ws://…` of a tenant.
    pub(crate) fn ws(&self, tenant: &str) -> String {
        format!("ws://{}/t/{tenant}/ws", self.address)
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// SIGTERM, then a new process on the same data when the old one has ended.
    pub(crate) fn stop_and_restart(mut self) -> Node {
        self.signal("TERM");
        self.wait();
        Node::spawn(self.dir.clone(), self.redis_url.clone(), self.variables.clone())
    }

    /// SIGKILL, then a new process on the same data and, as nobody else took it, not the same port.
    pub(crate) fn kill_and_restart(mut self) -> Node {
        self.signal("KILL");
        self.wait();
        Node::spawn(self.dir.clone(), self.redis_url.clone(), self.variables.clone())
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success(), "SIG{name} was not delivered");
    }

    /// Waits for its end; its exit code, if it ended by itself.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it ran");
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("the node did not end within {STOP_TIMEOUT:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One HTTP request; status and body.
    pub(crate) fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let (status, _, body) = self.http_full(method, path, headers, body);
        (status, body)
    }

    /// One HTTP request; status, head and body.
    pub(crate) fn http_full(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).expect("the node accepts");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).expect("the request is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// An event of the tenant's back end.
    pub(crate) fn raise(&self, tenant: &str, event: &str, data: &Value) -> (u16, Value) {
        let body = serde_json::json!({ "event": event, "data": data }).to_string();
        let bearer = format!("Bearer {}", super::BACKEND_TOKEN);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let (status, body) = self.http("POST", &format!("/t/{tenant}/api/v1/events"), &headers, &body);
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// The sum of a metric over its labels that contain `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let (status, body) = self.http("GET", "/metrics", &[], "");
        assert_eq!(status, 200);
        body.lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter(|line| line[name.len()..].starts_with(['{', ' ']))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- the node's last lines");
            for line in tail.into_iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
