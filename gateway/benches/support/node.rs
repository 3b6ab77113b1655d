//! `postern serve` as a process of its own, built like the benchmark, with tenants for it. To compare
//! builds within the same minutes, `POSTERN_BENCH_BINARY` names another one.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use postern::commit::now_ms;
use postern::decision::token::sign;
use postern::tenant::{Algorithm, Secret};
use serde_json::json;

/// The secret of every tenant here.
const SECRET: &str = "bench-secret-of-no-real-tenant-0123456789";
/// How long tokens hold, in seconds.
const TOKEN_S: u64 = 24 * 3_600;

/// A running node; killed when dropped.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: Arc<tempfile::TempDir>,
    redis_url: Option<String>,
    /// From the start of the process until it accepts.
    #[allow(dead_code, reason = "not every benchmark asks")]
    pub(crate) started_in: Duration,
}

impl Node {
    /// Starts a node with these tenants, name and text, on a Redis or embedded, and waits until it accepts.
    pub(crate) fn start(tenants: &[(String, String)], settings: &str, redis_url: Option<&str>) -> Node {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the node");
        let tenants_dir = dir.path().join("tenants");
        std::fs::create_dir(&tenants_dir).expect("a folder for the tenants");
        for (name, text) in tenants {
            std::fs::write(tenants_dir.join(format!("{name}.toml")), text).expect("a tenant file");
        }
        std::fs::write(dir.path().join("postern.toml"), settings).expect("a configuration");
        Node::spawn(Arc::new(dir), redis_url.map(str::to_owned))
    }

    /// Ends the process and starts another one in its place, on the same data.
    #[allow(dead_code, reason = "not every benchmark restarts")]
    pub(crate) fn restart(mut self) -> Node {
        self.stop();
        Node::spawn(self.dir.clone(), self.redis_url.take())
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn spawn(dir: Arc<tempfile::TempDir>, redis_url: Option<String>) -> Node {
        let begun = Instant::now();
        let other = std::env::var_os("POSTERN_BENCH_BINARY");
        let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_postern").into()));
        command.env_remove("REDIS_URL");
        if let Some(url) = &redis_url {
            command.env("REDIS_URL", url);
        }
        let mut child = command
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--log", "info"])
            .arg("--config")
            .arg(dir.path().join("postern.toml"))
            .arg("--tenants")
            .arg(dir.path().join("tenants"))
            .arg("--data")
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("postern starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let mut seen = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the node does not accept connections:\n{seen}") };
            if let Some(rest) =
                line.split("accepting connections").nth(1).and_then(|rest| rest.split("address=").nth(1))
            {
                break rest.split(' ').next().and_then(|address| address.parse().ok()).expect("an address");
            }
            seen += &line;
            seen.push('\n');
        };
        let started_in = begun.elapsed();
        // Read on, so that the node never waits for whoever reads its log.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Node { child, address, dir, redis_url, started_in }
    }

    /// The process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The folder with the built reference components; built once, from source.
pub(crate) fn components() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository");
        let out = root.join("target/components");
        postern::cli::plugin_build::build_reference(root, &out, &mut |_| {}).expect("the reference plugins build");
        out
    })
}

/// A tenant's file: one component as authorizer and handler, and more lines.
pub(crate) fn tenant(name: &str, component: &str, more: &str) -> (String, String) {
    let path = components().join(format!("{component}.wasm"));
    let mut file = format!(
        "name = \"{name}\"\nlimits.messages_per_minute = \"unlimited\"\nlimits.connections = 100000\n{more}\n\
         [[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
    );
    for role in ["authorizer", "handler"] {
        file += &format!("[[plugins]]\nname = \"{component}-{role}\"\nrole = \"{role}\"\ncomponent = {path:?}\n");
    }
    (name.into(), file)
}

/// A token for a client of such a tenant.
pub(crate) fn token(tenant: &str, subject: &str) -> String {
    let claims = json!({ "tenant": tenant, "sub": subject, "exp": now_ms() / 1_000 + TOKEN_S });
    let claims = claims.as_object().expect("an object");
    sign(None, Algorithm::HS256, &Secret(SECRET.into()), claims).expect("claims can be signed")
}
