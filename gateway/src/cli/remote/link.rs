//! One request on a connection of its own: HTTP/1.1, over TLS where the URL says https.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{EXPECT, HOST, HeaderValue};
use hyper::http::request::Builder;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long reaching the gateway may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is taken whole, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The longest line of an answer in lines, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How long an answer in lines may be silent; the gateway says something more often.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Bodies of more bytes are sent when the gateway wants them.
const ASKED_FIRST_BYTES: usize = 16 << 10;

/// How long it may take to say so.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is sent at a time, in bytes: what the progress moves by.
const PIECE_BYTES: usize = 64 << 10;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Why there was no answer.
#[derive(Debug)]
pub(super) enum LinkError {
    /// Nobody is there.
    Dial(String),
    /// Whoever is there is not trusted.
    Tls(String),
    /// No answer in time.
    Timeout(Duration),
    /// The connection ended before the answer did.
    Broken(String),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Dial(why) => f.write_str(why),
            LinkError::Tls(why) => write!(f, "TLS: {why}"),
            LinkError::Timeout(limit) => write!(f, "not within {} s", limit.as_secs()),
            LinkError::Broken(why) => write!(f, "the connection broke off: {why}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Calls that block, one at a time.
pub(super) struct Link {
    runtime: tokio::runtime::Runtime,
    /// The authorities that are trusted; `None`: the system's.
    ca_file: Option<PathBuf>,
}

impl Link {
    pub(super) fn new(ca_file: Option<PathBuf>) -> Result<Link, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Link { runtime: runtime.map_err(|error| format!("cannot start: {error}"))?, ca_file })
    }

    /// Sends a body and takes the whole answer.
    pub(super) fn whole(
        &self,
        request: Builder,
        body: Bytes,
        timeout: Duration,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(StatusCode, Bytes), LinkError> {
        let body = Counted::new(body);
        let sent = body.sent.clone();
        let answer = async {
            let (exchange, connection) = exchange(request, body, self.ca_file.as_deref()).await?;
            let answer = async {
                let answer = exchange.await?;
                whole_body(answer).await
            };
            beside(answer, connection).await
        };
        self.runtime.block_on(async {
            let mut answer = std::pin::pin!(tokio::time::timeout(timeout, answer));
            let mut told = 0;
            loop {
                let waited = tokio::time::timeout(PROGRESS_INTERVAL, answer.as_mut()).await;
                let now = sent.load(Ordering::Relaxed);
                if now != told {
                    told = now;
                    progress(now);
                }
                match waited {
                    Ok(Ok(answer)) => return answer,
                    Ok(Err(_)) => return Err(LinkError::Timeout(timeout)),
                    Err(_) => {}
                }
            }
        })
    }

    /// Takes an answer line by line, until `each` has enough; a refusal is given back whole.
    pub(super) fn lines(
        &self,
        request: Builder,
        timeout: Duration,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<(StatusCode, Bytes)>, LinkError> {
        self.runtime.block_on(async {
            let exchange = exchange(request, Counted::new(Bytes::new()), self.ca_file.as_deref());
            let begun = tokio::time::timeout(timeout, exchange).await;
            let (exchange, connection) = begun.map_err(|_| LinkError::Timeout(timeout))??;
            let read = async {
                let answer = tokio::time::timeout(timeout, exchange).await;
                let answer = answer.map_err(|_| LinkError::Timeout(timeout))??;
                if answer.status().is_success() {
                    read_lines(answer, each).await.map(|()| None)
                } else {
                    whole_body(answer).await.map(Some)
                }
            };
            beside(read, connection).await
        })
    }
}

type Connection = http1::Connection<TokioIo<Box<dyn Stream>>, Counted>;

/// Dials and sends the request's head; the exchange goes on while the connection is driven.
async fn exchange(
    request: Builder,
    body: Counted,
    ca_file: Option<&Path>,
) -> Result<(impl Future<Output = Result<Response<Incoming>, LinkError>>, Connection), LinkError> {
    let uri = request.uri_ref().cloned().unwrap_or_default();
    let stream = tokio::time::timeout(DIAL_TIMEOUT, dial(&uri, ca_file))
        .await
        .map_err(|_| LinkError::Timeout(DIAL_TIMEOUT))??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned();
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut request =
        request.uri(path).header(HOST, host).body(body).map_err(|error| LinkError::Broken(error.to_string()))?;
    if request.body().rest.len() > ASKED_FIRST_BYTES {
        ask_first(&mut request);
    }
    Ok((async move { sender.send_request(request).await.map_err(broken) }, connection))
}

/// Sends the body when it is wanted: whoever refuses it would otherwise close, and the refusal be lost.
fn ask_first(request: &mut Request<Counted>) {
    let (say, wanted) = tokio::sync::watch::channel(false);
    hyper::ext::on_informational(request, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            say.send_replace(true);
        }
    });
    request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    let mut heard = wanted;
    request.body_mut().wanted = Some(Box::pin(async move {
        // Not everybody in between passes it on. An error: whoever would say it is gone.
        let _ = tokio::time::timeout(CONTINUE_TIMEOUT, heard.wait_for(|wanted| *wanted)).await;
    }));
}

fn broken(error: hyper::Error) -> LinkError {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text += &format!(": {source}");
    }
    LinkError::Broken(text)
}

/// Drives the connection as long as the work on it lasts.
async fn beside<T>(work: impl Future<Output = Result<T, LinkError>>, connection: Connection) -> Result<T, LinkError> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = work.as_mut() => done,
        // What has arrived before its end is still to be taken.
        ended = connection => match tokio::time::timeout(DIAL_TIMEOUT, work).await {
            Ok(done) => done,
            Err(_) => Err(ended.map_or_else(broken, |()| LinkError::Broken("without an answer".into()))),
        },
    }
}

async fn dial(uri: &Uri, ca_file: Option<&Path>) -> Result<Box<dyn Stream>, LinkError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|error| LinkError::Dial(error.to_string()))?;
    // Requests are small and wait for answers.
    let _ = stream.set_nodelay(true);
    if !is_https {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| LinkError::Tls(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(trusting(ca_file)?));
    let stream = connector.connect(name, stream).await.map_err(|error| LinkError::Tls(error.to_string()))?;
    Ok(Box::new(stream))
}

/// The authorities in the file, or else the system's.
fn trusting(ca_file: Option<&Path>) -> Result<ClientConfig, LinkError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let unreadable =
                |error| LinkError::Tls(format!("{} (--ca-file, POSTERN_CA_FILE): {error}", path.display()));
            let found = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
            roots.add_parsable_certificates(found.map_err(unreadable)?);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        let whose = ca_file.map_or("this system".into(), |path| path.display().to_string());
        return Err(LinkError::Tls(format!("{whose} names no certificate authority to trust")));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| LinkError::Tls(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn whole_body(answer: Response<Incoming>) -> Result<(StatusCode, Bytes), LinkError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| LinkError::Broken(error.to_string()))?;
    Ok((status, body.to_bytes()))
}

async fn read_lines(answer: Response<Incoming>, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), LinkError> {
    let mut body = answer.into_body();
    let mut begun: Vec<u8> = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await;
        let Some(frame) = frame.map_err(|_| LinkError::Timeout(SILENCE_MAX))? else { return Ok(()) };
        let piece = frame.map_err(broken)?.into_data().unwrap_or_default();
        for byte in piece {
            if byte != b'\n' {
                begun.push(byte);
            } else if !each(&std::mem::take(&mut begun)) {
                return Ok(());
            }
        }
        if begun.len() > LINE_BYTES_MAX {
            return Err(LinkError::Broken(format!("a line of more than {LINE_BYTES_MAX} bytes")));
        }
    }
}

/// A body that says how much of it has gone, and that may wait until it is wanted.
struct Counted {
    rest: Bytes,
    sent: Arc<AtomicUsize>,
    wanted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Counted {
    fn new(rest: Bytes) -> Counted {
        Counted { rest, sent: Arc::default(), wanted: None }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(wanted) = &mut self.wanted {
            std::task::ready!(wanted.as_mut().poll(cx));
            self.wanted = None;
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let bytes = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(bytes);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
