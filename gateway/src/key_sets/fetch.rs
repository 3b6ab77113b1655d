//! One GET of a key set: bounded in size and time, no redirects, TLS as the system trusts it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a fetch may take, from the name's lookup to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest set that is taken, in bytes.
const SET_BYTES_MAX: usize = 256 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Fetches a URL; the text says why that failed, without the URL.
pub(super) async fn get(url: &str, public_only: bool) -> Result<Bytes, String> {
    let fetch = async {
        let uri: Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
        exchange(dial(&uri, public_only).await?, &uri).await
    };
    let late = |_| Err(format!("did not answer within {} ms", FETCH_TIMEOUT.as_millis()));
    tokio::time::timeout(FETCH_TIMEOUT, fetch).await.unwrap_or_else(late)
}

async fn dial(uri: &Uri, public_only: bool) -> Result<Box<dyn Stream>, String> {
    let is_https = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| format!("cannot be found: {error}"))?;
    // What a name leads to is looked at here, where it is used: it may lead elsewhere the next time.
    let may_be = |address: &SocketAddr| match (is_https, public_only) {
        (true, false) => true,
        (true, true) => is_public(address.ip()),
        (false, _) => address.ip().is_loopback(),
    };
    let addresses: Vec<SocketAddr> = found.filter(may_be).collect();
    if addresses.is_empty() {
        return Err(if is_https { "leads to no public address" } else { "does not lead to this machine" }.into());
    }
    let stream = TcpStream::connect(&addresses[..]).await.map_err(|error| error.to_string())?;
    if !is_https {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(trusting_the_system()?).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| format!("TLS: {error}"))?))
}

/// The authorities of this system, or those of the file that the variable `SSL_CERT_FILE` names.
fn trusting_the_system() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("TLS: this system trusts no certificate authority".into());
            }
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = config.map_err(|error| format!("TLS: {error}"))?;
            Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
        })
        .clone()
}

async fn exchange(stream: Box<dyn Stream>, uri: &Uri) -> Result<Bytes, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, uri.authority().map(|authority| authority.as_str()).unwrap_or_default())
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .header(USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let work = async move {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(format!("answered {status}: redirects are not followed, give the URL that they lead to"));
        }
        if status != StatusCode::OK {
            return Err(format!("answered {status}"));
        }
        let body = Limited::new(answer.into_body(), SET_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("{error} (at most {SET_BYTES_MAX} bytes are taken)"))?;
        Ok(body.to_bytes())
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = work.as_mut() => done,
        // What has arrived before its end is still to be taken.
        _ = connection => work.await,
    }
}

/// Is it an address of the public Internet? Whoever may name URLs, but does not have this machine, must not reach what
/// only this machine reaches.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped().or_else(|| translated(address)) {
            Some(inner) => is_public_v4(inner),
            None => {
                let local = address.is_unique_local() || address.is_unicast_link_local();
                let first = address.segments()[0];
                // What is given out as public unicast today: 2000::/3.
                !local && !address.is_multicast() && first & 0xe000 == 0x2000
            }
        },
    }
}

/// The IPv4 address that a NAT64 address (64:ff9b::/96) or a 6to4 one (2002::/16) leads to.
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (b == 18 || b == 19))
        || (a, b, c) == (192, 0, 0);
    !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
    }
}
