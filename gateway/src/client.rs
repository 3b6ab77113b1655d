//! Who is connected.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Namespaces that one client may be in at once.
pub const NAMESPACES_MAX: usize = 16;

/// Bytes of randomness in an id; 15 give 20 characters of URL-safe base64.
const ID_BYTES: usize = 15;

/// Bytes of a digest that stands for something longer.
const DIGEST_BYTES: usize = 16;

/// A fresh unguessable text of 20 URL-safe characters.
///
/// # Panics
/// When the operating system has no randomness to give: no id may be guessable.
pub fn random_id() -> String {
    let mut bytes = [0_u8; ID_BYTES];
    #[expect(clippy::expect_used, reason = "without randomness nothing that follows is safe")]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What counts as one address: whoever has one of IPv6 has its whole /64.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// One client in one namespace; the `{id}` of the room `connection:{id}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionId(Arc<str>);

impl ConnectionId {
    /// A new one, unguessable.
    pub fn random() -> ConnectionId {
        ConnectionId(random_id().into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ConnectionId {
    fn from(id: &str) -> Self {
        ConnectionId(id.into())
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a verified token says about its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The token's subject; never empty.
    pub subject: Arc<str>,
    /// All claims, one JSON object.
    pub claims: Arc<str>,
    /// When the token ends, the tenant's leeway included, in seconds since the Unix epoch;
    /// `None`: it never does.
    pub expires_at_s: Option<u64>,
    /// The key that signed the token, as [`Verifier::admits`](crate::decision::token::Verifier::admits) knows it;
    /// `None`: there was no token.
    pub key: Option<u64>,
}

/// What a token can be told apart by when it is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenMark {
    /// Stands for its `jti`, see [`TokenMark::digest_of`]; `None`: it has none that is a text.
    pub digest: Option<Arc<str>>,
    /// Its `iat`, in seconds since the Unix epoch.
    pub issued_at_s: Option<u64>,
}

impl TokenMark {
    /// Of a token with these claims, one JSON object.
    pub fn of_claims(claims: &str) -> TokenMark {
        let claims: serde_json::Value = serde_json::from_str(claims).unwrap_or_default();
        TokenMark {
            digest: claims.get("jti").and_then(|id| id.as_str()).map(TokenMark::digest_of),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
            issued_at_s: claims.get("iat").and_then(|at| at.as_u64().or(at.as_f64().map(|at| at as u64))),
        }
    }

    /// Stands for a token's id, which may be of any length: 22 characters of base64url.
    pub fn digest_of(id: &str) -> Arc<str> {
        let digest = Sha256::digest(id);
        URL_SAFE_NO_PAD.encode(&digest[..DIGEST_BYTES]).into()
    }
}

/// Who is on the other end of a connection, as plugins see it.
#[derive(Debug, Clone)]
pub struct Client {
    /// The connection.
    pub connection: ConnectionId,
    /// The verified identity.
    pub identity: Identity,
    /// The namespace it speaks in.
    pub namespace: Arc<str>,
}
