//! From an HTTP request to a WebSocket: RFC 6455 §4.2, and what the request says of the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    AUTHORIZATION, CONNECTION, HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

use crate::room::ROOT_NAMESPACE;

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The JSON protocol.
    Json,
    /// Socket.IO.
    SocketIo,
}

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// It does not ask to be one.
    #[error("this address speaks WebSocket: send `Connection: Upgrade` and `Upgrade: websocket`")]
    NotAnUpgrade,
    /// Another version of the protocol.
    #[error("`Sec-WebSocket-Version` must be 13")]
    Version,
    /// No usable key.
    #[error("`Sec-WebSocket-Key` must be 16 bytes in base64")]
    Key,
}

/// Checks a handshake; answers the value of `Sec-WebSocket-Accept`.
pub fn accept(headers: &HeaderMap) -> Result<HeaderValue, UpgradeError> {
    if !has_word(headers.get(CONNECTION), "upgrade") || !has_word(headers.get(UPGRADE), "websocket") {
        return Err(UpgradeError::NotAnUpgrade);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeError::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(UpgradeError::Key)?;
    if STANDARD.decode(key.as_bytes()).map_or(0, |bytes| bytes.len()) != 16 {
        return Err(UpgradeError::Key);
    }
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).map_err(|_| UpgradeError::Key)
}

fn has_word(header: Option<&HeaderValue>, word: &str) -> bool {
    header
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
}

/// A parameter of the query, decoded.
pub fn query_parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pair = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decode_str(&pair.replace('+', " ")).decode_utf8_lossy().into_owned())
}

/// The token of a request: `Authorization: Bearer`, or `?token=`.
pub fn token(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = header.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
    bearer.map(|token| token.trim().to_owned()).or_else(|| query_parameter(query, "token"))
}

/// The namespace that a plain WebSocket client asks for with `?namespace=`.
pub fn namespace(query: Option<&str>) -> Option<Arc<str>> {
    let Some(asked) = query_parameter(query, "namespace") else { return Some(ROOT_NAMESPACE.into()) };
    super::protocol::parse_namespace(&asked).ok().map(Into::into)
}

/// May a page of this origin talk to us? Those that are no browsers send none; a page that we
/// served ourselves always may.
pub fn origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return !headers.contains_key(ORIGIN);
    };
    let host = headers.get(hyper::header::HOST).and_then(|host| host.to_str().ok());
    is_origin_allowed(origin, host, allowed)
}

/// As [`origin_allowed`], of a page that called us by `host`.
pub fn is_origin_allowed(origin: &str, host: Option<&str>, allowed: &[String]) -> bool {
    let own = origin.split_once("://").map(|(_, authority)| authority);
    (own.is_some() && own == host)
        || allowed.iter().any(|pattern| pattern == "*" || pattern.eq_ignore_ascii_case(origin))
}

/// The parameters of a query, decoded, but never the token. Of several with one name the last counts.
pub fn query_parameters(query: Option<&str>) -> BTreeMap<String, String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name != "token").map(|(name, value)| (decode(name), decode(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (hyper::header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn the_handshake_of_rfc_6455_is_accepted() {
        let handshake = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        assert_eq!(accept(&handshake).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_is_missing_in_a_handshake_is_named() {
        let mut handshake =
            headers(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "8")]);
        assert_eq!(accept(&handshake), Err(UpgradeError::Version));
        handshake.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        assert_eq!(accept(&handshake), Err(UpgradeError::Key));
        handshake.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("c2hvcnQ="));
        assert_eq!(accept(&handshake), Err(UpgradeError::Key));
        handshake.remove(UPGRADE);
        assert_eq!(accept(&handshake), Err(UpgradeError::NotAnUpgrade));
    }

    #[test]
    fn tokens_come_in_the_header_or_the_query() {
        assert_eq!(token(&headers(&[("authorization", "Bearer a.b.c")]), Some("token=x")), Some("a.b.c".into()));
        assert_eq!(token(&headers(&[]), Some("EIO=4&token=a%2Eb.c")), Some("a.b.c".into()));
        assert_eq!(token(&headers(&[("authorization", "Basic xyz")]), None), None);
    }

    #[test]
    fn only_configured_origins_and_our_own_pages_may_come_from_a_browser() {
        let allowed = ["https://app.example".to_owned()];
        let from = |origin| headers(&[("host", "rt.example:3000"), ("origin", origin)]);
        assert!(origin_allowed(&from("https://app.example"), &allowed));
        assert!(origin_allowed(&from("http://rt.example:3000"), &allowed));
        assert!(!origin_allowed(&from("https://evil.example"), &allowed));
        assert!(!origin_allowed(&from("null"), &allowed));
        assert!(origin_allowed(&headers(&[("host", "rt.example")]), &[]));
        assert!(origin_allowed(&from("https://any.example"), &["*".to_owned()]));
    }
}
