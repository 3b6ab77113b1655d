//! Accepting connections: HTTP first, WebSockets taken out of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::heads::{Head, Heads};
use crate::drain::Tasks;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The same while more than half of the places are taken.
const HEAD_TIMEOUT_SCARCE: Duration = Duration::from_secs(3);

/// Connections of one address whose next request's head is not whole, while more than half of the places are taken,
/// where the settings do not say.
pub const UNFINISHED_HEADS_DEFAULT: u32 = 64;

/// How long an HTTP connection may live, whatever it does: a place is never held for ever. Whoever answers a
/// request may prolong it, see [`Stay`].
const HTTP_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// HTTP connections beside the WebSockets: scrapes, probes, back ends.
const HTTP_CONNECTIONS_MAX: usize = 1_024;

/// How long accepting rests after the system refused it (out of file descriptors).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What answers a request.
pub type Answer = Response<Body>;

/// What an answer carries.
#[derive(Debug)]
pub enum Body {
    /// All of it at once.
    Whole(Full<Bytes>),
    /// A piece now and then, until the sender is dropped.
    Pieces(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Body::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Body::Pieces(pieces) => pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(whole) => whole.is_end_stream(),
            Body::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(whole) => whole.size_hint(),
            Body::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Until when an HTTP connection may live. It comes with each request, among its extensions.
#[derive(Debug, Clone)]
pub struct Stay(Arc<Mutex<Instant>>);

impl Stay {
    fn new() -> Stay {
        Stay(Arc::new(Mutex::new(Instant::now() + HTTP_CONNECTION_TIMEOUT)))
    }

    /// The connection may live so long from now, or as long as it might before. Only for those that have shown who
    /// they are.
    pub fn for_another(&self, time: Duration) {
        let mut until = self.0.lock();
        *until = (*until).max(Instant::now() + time);
    }

    async fn over(&self) {
        loop {
            let until = *self.0.lock();
            tokio::time::sleep_until(until).await;
            if *self.0.lock() <= until {
                return;
            }
        }
    }
}

/// Answers requests; knows how to take a WebSocket out of one.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> impl Future<Output = Answer> + Send;
}

/// How many HTTP connections there are, and who waits among them.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    max: usize,
    heads: Arc<Heads>,
}

impl Places {
    fn new(max: usize, heads_per_address: u32) -> Places {
        Places { free: Arc::new(Semaphore::new(max)), max, heads: Heads::new(heads_per_address) }
    }

    fn are_scarce(&self) -> bool {
        self.free.available_permits() < self.max / 2
    }

    fn wait_for_head(&self, peer: SocketAddr) -> Option<Head> {
        self.heads.take(peer.ip(), self.are_scarce())
    }
}

/// Accepts until the last phase of stopping. Sockets that were upgraded live on in tasks of their own. While more than
/// half of the places are taken, an address has at most `heads_per_address` connections whose head is not whole.
pub async fn serve<S: Service>(listener: TcpListener, service: Arc<S>, tasks: Tasks, heads_per_address: u32) {
    serve_within(listener, service, tasks, Places::new(HTTP_CONNECTIONS_MAX, heads_per_address)).await;
}

async fn serve_within<S: Service>(listener: TcpListener, service: Arc<S>, tasks: Tasks, places: Places) {
    loop {
        // A place first: what cannot be served is not accepted, and waits in the backlog.
        let place = tokio::select! {
            place = places.free.clone().acquire_owned() => place,
            () = tasks.stopping().cancelled() => return,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopping().cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(head) = places.wait_for_head(peer) else {
                    tracing::debug!(%peer, "too many unfinished heads (setting unfinished_heads_per_address)");
                    metrics::counter!("ws_connection_errors_total", "reason" => "unfinished_heads").increment(1);
                    continue;
                };
                let (service, stopping, places) = (service.clone(), tasks.stopping().clone(), places.clone());
                tasks.spawn(async move {
                    let served = serve_one(stream, peer, service, places, head);
                    tokio::select! { () = served => {}, () = stopping.cancelled() => {} }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                metrics::counter!("ws_connection_errors_total", "reason" => "accept").increment(1);
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn serve_one<S: Service>(stream: TcpStream, peer: SocketAddr, service: Arc<S>, places: Places, head: Head) {
    // Small messages must not wait for each other; a socket that refuses is as good as gone.
    let _ = stream.set_nodelay(true);
    let stay = Stay::new();
    let given = stay.clone();
    let head_timeout = if places.are_scarce() { HEAD_TIMEOUT_SCARCE } else { HEAD_TIMEOUT };
    let waiting = Arc::new(Mutex::new(Some(head)));
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(given.clone());
        let (service, waiting, places) = (service.clone(), waiting.clone(), places.clone());
        *waiting.lock() = None;
        async move {
            let mut answer = service.answer(request, peer).await;
            // Now it waits for the next head; not, if its address has enough of these.
            if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                let next = places.wait_for_head(peer);
                if next.is_none() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                *waiting.lock() = next;
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    // A WebSocket leaves this connection when it is upgraded; what is left has no business for longer.
    tokio::select! {
        ended = connection => match ended {
            Ok(()) => {}
            Err(error) => tracing::trace!(%peer, %error, "an HTTP connection ended"),
        },
        () = stay.over() => tracing::debug!(%peer, "an HTTP connection was ended after its time"),
    }
}

/// Takes the bare stream out of an upgraded request, with what was already read from it.
pub async fn take_stream(request: Request<Incoming>) -> Option<(TcpStream, Bytes)> {
    let upgraded = hyper::upgrade::on(request).await.ok()?;
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    // A copy, nearly always of nothing: what was read holds hyper's whole buffer, 8 KiB, as long as it lives.
    Some((parts.io.into_inner(), Bytes::copy_from_slice(&parts.read_buf)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    use super::*;

    struct Fine;

    impl Service for Fine {
        async fn answer(self: Arc<Self>, _: Request<Incoming>, _: SocketAddr) -> Answer {
            Response::new(Body::Whole(Full::new("fine".into())))
        }
    }

    async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(to).await.unwrap()
    }

    /// Asks twice over one connection, as a probe that keeps it does.
    async fn ask_twice(from: [u8; 4], to: SocketAddr) {
        let mut stream = connect(from, to).await;
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
            let (mut answer, mut piece) = (Vec::new(), [0; 512]);
            while !answer.ends_with(b"fine") {
                let length = stream.read(&mut piece).await.unwrap();
                assert_ne!(length, 0, "the connection was ended: {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&piece[..length]);
            }
        }
    }

    #[tokio::test]
    async fn one_address_with_half_heads_keeps_nobody_else_out() {
        const PLACES: usize = 32;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let places = Places::new(PLACES, 4);
        let heads = places.heads.clone();
        tasks.spawn(serve_within(listener, Arc::new(Fine), tasks.clone(), places));
        let mut half = Vec::new();
        for _ in 0..PLACES * 3 {
            let mut stream = connect([127, 0, 0, 2], to).await;
            // Those that were turned away may be gone already.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost:").await;
            half.push(stream);
        }
        let served = tokio::time::timeout(Duration::from_secs(2), ask_twice([127, 0, 0, 1], to)).await;
        assert!(served.is_ok(), "somebody else was not served");
        let address = "127.0.0.2".parse().unwrap();
        assert!(heads.take(address, true).is_none(), "the flood was let in no further");
        drop(half);
        let gone = async {
            while heads.take(address, true).is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(2), gone).await.is_ok(), "whoever is gone counts no more");
    }
}
