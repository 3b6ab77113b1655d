//! A real nginx with the configuration of `examples/deploy`, in front of nodes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::node::Node;
use super::root;

/// How long it may take to accept, and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// `scripts/balancer` on a free port; stopped when dropped.
pub(crate) struct Balancer {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Balancer {
    /// Starts one in front of these nodes and waits until it accepts.
    pub(crate) fn start<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Balancer {
        let folder = tempfile::tempdir().expect("a folder for nginx");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let process = Command::new(root().join("scripts/balancer"))
            .arg(folder.path())
            .arg(address.to_string())
            .args(nodes.into_iter().map(|node| node.address.to_string()))
            .stdin(Stdio::null())
            .spawn()
            .expect("the script runs");
        let mut balancer = Balancer { process, address, _folder: folder };
        let deadline = Instant::now() + LIMIT;
        while TcpStream::connect(address).is_err() {
            let ended = balancer.process.try_wait().expect("it can be waited for");
            assert!(ended.is_none(), "nginx ended with {ended:?} (run scripts/setup test)");
            assert!(Instant::now() < deadline, "nginx does not accept after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        balancer
    }

    /// Where it accepts.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://…`, without a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // By a signal that it can see: killed, it would leave its workers behind.
        let _ = Command::new("kill").args(["-s", "TERM", &self.process.id().to_string()]).status();
        let deadline = Instant::now() + LIMIT;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
