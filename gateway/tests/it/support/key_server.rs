//! A server of JSON Web Key sets, and tokens that its keys have signed.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::now_s;
use super::tls::acceptor;

/// A key pair of the folder `tests/keys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair {
    Ed25519,
    P256,
    Rsa,
}

impl Pair {
    fn pem(self, part: &str) -> Vec<u8> {
        let name = match self {
            Pair::Ed25519 => "ed25519",
            Pair::P256 => "p256",
            Pair::Rsa => "rsa",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(format!("{name}.{part}.pem"));
        std::fs::read(path).expect("a key of the tests")
    }

    fn algorithm(self) -> Algorithm {
        match self {
            Pair::Ed25519 => Algorithm::EdDSA,
            Pair::P256 => Algorithm::ES256,
            Pair::Rsa => Algorithm::RS256,
        }
    }

    /// The public key as it stands in a set.
    pub(crate) fn jwk(self, kid: &str) -> Value {
        let pem = self.pem("public");
        let key = match self {
            Pair::Ed25519 => DecodingKey::from_ed_pem(&pem),
            Pair::P256 => DecodingKey::from_ec_pem(&pem),
            Pair::Rsa => DecodingKey::from_rsa_pem(&pem),
        };
        let jwk = Jwk::from_decoding_key(&key.expect("a public key"), None).expect("a JSON Web Key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// A token that this key has signed, valid for an hour.
    pub(crate) fn token(self, kid: Option<&str>, claims: Value) -> String {
        let mut all = json!({ "exp": now_s() + 3_600 });
        all.as_object_mut().expect("an object").extend(claims.as_object().cloned().unwrap_or_default());
        let pem = self.pem("private");
        let key = match self {
            Pair::Ed25519 => EncodingKey::from_ed_pem(&pem),
            Pair::P256 => EncodingKey::from_ec_pem(&pem),
            Pair::Rsa => EncodingKey::from_rsa_pem(&pem),
        };
        let header = Header { kid: kid.map(Into::into), ..Header::new(self.algorithm()) };
        jsonwebtoken::encode(&header, &all, &key.expect("a private key")).expect("a token")
    }
}

/// A set of these keys.
pub(crate) fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Serves one document; ends when dropped.
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl KeyServer {
    pub(crate) fn start(document: String) -> KeyServer {
        KeyServer::with(document, None)
    }

    /// Over TLS, with a certificate chain and its key in PEM.
    pub(crate) fn with_tls(document: String, certificate: &Path, key: &Path) -> KeyServer {
        KeyServer::with(document, Some(acceptor(certificate, key)))
    }

    fn with(document: String, tls: Option<TlsAcceptor>) -> KeyServer {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("not blocking");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(Mutex::new((200, document)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (shared, counted) = (answer.clone(), asked.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! { () = accept(listener, tls, shared, counted) => {}, _ = stopped => {} }
            });
        });
        KeyServer { address, answer, asked, stop: Some(stop) }
    }

    /// `http://127.0.0.1:PORT/jwks.json`
    pub(crate) fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    /// Answers this from now on.
    pub(crate) fn answer(&self, status: u16, document: &str) {
        *self.answer.lock() = (status, document.to_owned());
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.stop.take();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<AtomicUsize>,
) {
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, answer, asked) = (tls.clone(), answer.clone(), asked.clone());
                tokio::task::spawn_local(async move {
                    match tls {
                        None => serve(stream, answer, asked).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer, asked).await;
                            }
                        }
                    }
                });
            }
        })
        .await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<AtomicUsize>,
) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        asked.fetch_add(1, Ordering::SeqCst);
        let (status, document) = answer.lock().clone();
        let answer = Response::builder()
            .status(StatusCode::from_u16(status).expect("a status"))
            .header("location", format!("http://{}/other", request.uri()))
            .body(Full::new(Bytes::from(document)))
            .expect("an answer");
        async move { Ok::<_, Infallible>(answer) }
    });
    // A client that goes is no matter.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
