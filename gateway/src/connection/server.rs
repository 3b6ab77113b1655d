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
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::drain::Tasks;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Accepts until the last phase of stopping. Sockets that were upgraded live on in tasks of their own.
pub async fn serve<S: Service>(listener: TcpListener, service: Arc<S>, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    loop {
        // A place first: what cannot be served is not accepted, and waits in the backlog.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = tasks.stopping().cancelled() => return,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopping().cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (service, stopping) = (service.clone(), tasks.stopping().clone());
                tasks.spawn(async move {
                    tokio::select! { () = serve_one(stream, peer, service) => {}, () = stopping.cancelled() => {} }
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

async fn serve_one<S: Service>(stream: TcpStream, peer: SocketAddr, service: Arc<S>) {
    // Small messages must not wait for each other; a socket that refuses is as good as gone.
    let _ = stream.set_nodelay(true);
    let stay = Stay::new();
    let given = stay.clone();
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(given.clone());
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request, peer).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
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
