//! Who is connected.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// Bytes of randomness in an id; 15 give 20 characters of URL-safe base64.
const ID_BYTES: usize = 15;

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
