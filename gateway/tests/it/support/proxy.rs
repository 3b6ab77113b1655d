//! What stands between an engine and its server and does not always let everything through.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// What a server's push of a shard channel's message holds.
const MESSAGE: &[u8] = b"\r\nsmessage\r\n";

/// A TCP proxy on loopback; closes everything when dropped.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: u16,
    accepted: AtomicUsize,
    open: Mutex<Vec<Open>>,
}

struct Open {
    streams: [TcpStream; 2],
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    /// One in front of a port.
    pub(crate) fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { to: port, accepted: AtomicUsize::new(0), open: Mutex::default() });
        let weak = Arc::downgrade(&shared);
        std::thread::spawn(move || accept(&listener, &weak));
        Proxy { port: own, shared }
    }

    /// For the engine under test.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Connections that were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Lets no message of a shard channel through any more on the connections that are open now.
    pub(crate) fn swallow_messages(&self) {
        for open in self.shared.open.lock().iter() {
            open.swallow.store(true, Ordering::Relaxed);
        }
    }

    /// Closes the connections that are open now.
    pub(crate) fn cut(&self) {
        for open in self.shared.open.lock().drain(..) {
            for stream in open.streams {
                _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread that accepts, which finds nobody to accept for.
        let shared = Arc::downgrade(&self.shared);
        self.shared = Arc::new(Shared { to: 0, accepted: AtomicUsize::new(0), open: Mutex::default() });
        drop(shared);
        _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn accept(listener: &TcpListener, shared: &Weak<Shared>) {
    for near in listener.incoming() {
        let (Ok(near), Some(shared)) = (near, shared.upgrade()) else { return };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.to)) else { continue };
        let swallow = Arc::<AtomicBool>::default();
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        let never = Arc::default();
        let ways = [(clone(&near), clone(&far), never), (clone(&far), clone(&near), swallow.clone())];
        for (from, to, swallow) in ways {
            std::thread::spawn(move || carry(from, to, &swallow));
        }
        shared.open.lock().push(Open { streams: [near, far], swallow });
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, swallow: &AtomicBool) {
    let mut bytes = [0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        let chunk = &bytes[..read];
        let message = chunk.windows(MESSAGE.len()).any(|window| window == MESSAGE);
        if !(message && swallow.load(Ordering::Relaxed)) && to.write_all(chunk).is_err() {
            break;
        }
    }
    _ = from.shutdown(Shutdown::Both);
    _ = to.shutdown(Shutdown::Both);
}
