//! Tokens: who is the bearer?
//!
//! The algorithm is the key's, never the token's; time is handed in; no error shows the
//! token or a claim.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess};
use serde_json::{Map, Value};

use crate::client::{Identity, random_id};
use crate::tenant::{Algorithm, Auth, Secret, TenantId};

mod key;
mod key_set;
#[cfg(test)]
mod tests;

use key::Key;
pub use key::{ALGORITHMS, KeyError, algorithm_named, check_key, jwk_algorithm, shared_secret};
pub(crate) use key_set::keep_those_tried;
pub use key_set::{KEY_SET_KEYS_MAX, KeySetKeys, read_key_set};

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// The longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 128;

/// Keys of one algorithm that a tenant may have: as many signatures are checked for a token
/// that does not say which key signed it.
pub const KEYS_PER_ALGORITHM_MAX: usize = 16;

/// The claim that says whose token it is.
pub const TENANT_CLAIM: &str = "tenant";

/// Why a token is refused. The text is for the gateway's log; clients get
/// [`public_message`](TokenError::public_message).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token has {0} bytes, at most {TOKEN_BYTES_MAX} are accepted")]
    TooLong(usize),
    /// Not of the form that RFC 7519 gives a signed token.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// `none`, an encryption, or nothing known.
    #[error("the token's algorithm is not one of those accepted")]
    Algorithm,
    /// Its `kid` names a key that is used with another algorithm.
    #[error("the token's `kid` names a key for {key:?}, but its `alg` is {token:?}")]
    KeyAlgorithm {
        /// The key's.
        key: Algorithm,
        /// The token's.
        token: Algorithm,
    },
    /// The tenant has no key that could have signed it.
    #[error("the tenant has no key for {0:?}")]
    NoKey(Algorithm),
    /// None of the keys signed it.
    #[error("the signature fits none of the {0} keys tried")]
    Signature(usize),
    /// `exp` is past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet (`nbf`)")]
    NotYet,
    /// `aud` is missing or names nobody that the tenant accepts.
    #[error("the token's `aud` is none of the tenant's audiences")]
    Audience,
    /// `iss` is missing or not accepted.
    #[error("the token's `iss` is none of the tenant's issuers")]
    Issuer,
    /// Its `tenant` claim names another tenant.
    #[error("the token is another tenant's")]
    Tenant,
    /// The subject claim is missing or unusable.
    #[error("the token's subject claim `{claim}` {problem}")]
    Subject {
        /// The name of the claim, from the tenant's settings.
        claim: Arc<str>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A registered claim is of the wrong type.
    #[error("the token's claim `{0}` is of the wrong type")]
    ClaimType(&'static str),
}

impl TokenError {
    /// What the client is told: enough to act on, nothing about keys.
    pub fn public_message(&self) -> &'static str {
        match self {
            TokenError::TooLong(_) => "token too long",
            TokenError::Malformed(_) | TokenError::ClaimType(_) => "token malformed",
            TokenError::Expired => "token expired",
            TokenError::NotYet => "token not valid yet",
            TokenError::Algorithm
            | TokenError::KeyAlgorithm { .. }
            | TokenError::NoKey(_)
            | TokenError::Signature(_)
            | TokenError::Tenant => "token is not signed by a key of this tenant",
            TokenError::Audience | TokenError::Issuer => "token is not meant for this service",
            TokenError::Subject { .. } => "token has no usable subject",
        }
    }
}

/// Verifies one tenant's tokens.
pub struct Verifier {
    tenant: TenantId,
    keys: Vec<Key>,
    /// The marks of the key sets, whether they hold keys or not.
    sets: Vec<u64>,
    subject_claim: Arc<str>,
    audiences: Vec<String>,
    issuers: Vec<String>,
    leeway_s: u64,
    anonymous: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("tenant", &self.tenant).field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Makes the keys ready.
    ///
    /// # Errors
    /// The first key that does not fit its algorithm; more than [`KEYS_PER_ALGORITHM_MAX`] of one.
    pub fn new(tenant: &TenantId, auth: &Auth) -> Result<Verifier, KeyError> {
        let mut keys: Vec<Key> = auth.keys.iter().map(Key::new).collect::<Result<_, _>>()?;
        for set in &auth.key_sets {
            for key in &set.keys {
                let key = Key::new(key)?;
                // Whoever it admits is admitted by the set, as long as the tenant has that.
                let vouches = !auth.key_sets_end_connections;
                let fingerprint = if vouches { key::set_fingerprint(&set.source) } else { key.fingerprint };
                keys.push(Key { fingerprint, ..key });
            }
        }
        let sets = auth.key_sets.iter().map(|set| key::set_fingerprint(&set.source)).collect();
        for algorithm in ALGORITHMS {
            if keys.iter().filter(|key| key.algorithm == algorithm).count() > KEYS_PER_ALGORITHM_MAX {
                return Err(KeyError::TooMany(algorithm));
            }
        }
        Ok(Verifier {
            tenant: tenant.clone(),
            keys,
            sets,
            subject_claim: auth.subject_claim.as_str().into(),
            audiences: auth.audiences.clone(),
            issuers: auth.issuers.clone(),
            leeway_s: auth.leeway.as_secs(),
            anonymous: auth.anonymous,
        })
    }

    /// Who is the bearer of this token, `now_s` seconds after the Unix epoch?
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Identity, TokenError> {
        let parts = Parts::of(token)?;
        let key = self.check_signature(&parts)?;
        let text = parts.payload()?;
        let claims = object(&text).ok_or(TokenError::Malformed("its payload is no JSON object with unique names"))?;
        self.check_tenant(&claims)?;
        let expires_at_s = self.check_time(&claims, now_s)?;
        self.check_addressee(&claims)?;
        let subject = self.subject(&claims)?;
        Ok(Identity { subject, claims: text.into(), expires_at_s, key: Some(key) })
    }

    /// An identity for a client that has no token; `None` if the tenant does not take those.
    pub fn anonymous(&self) -> Option<Identity> {
        self.anonymous.then(|| Identity {
            subject: format!("anonymous-{}", random_id()).into(),
            claims: "{}".into(),
            expires_at_s: None,
            key: None,
        })
    }

    /// Would whoever was let in be let in now: is the key that signed the token still one of the tenant's? Who came
    /// without a token is, while such clients are.
    pub fn admits(&self, identity: &Identity) -> bool {
        match identity.key {
            Some(fingerprint) => {
                self.sets.contains(&fingerprint) || self.keys.iter().any(|key| key.fingerprint == fingerprint)
            }
            None => self.anonymous,
        }
    }

    /// Does the token name a key that is not there, or one of an algorithm that no key is for? A newer key set may have
    /// it.
    pub fn lacks_key_of(&self, token: &str) -> bool {
        let Ok(header) = Parts::of(token).and_then(|parts| parts.header()) else { return false };
        let Some(algorithm) = algorithm_named(&header.alg) else { return false };
        match &header.kid {
            Some(kid) => !self.keys.iter().any(|key| key.id.as_ref() == Some(kid)),
            None => !self.keys.iter().any(|key| key.algorithm == algorithm),
        }
    }

    fn check_signature(&self, parts: &Parts<'_>) -> Result<u64, TokenError> {
        let header = parts.header()?;
        let algorithm = algorithm_named(&header.alg).ok_or(TokenError::Algorithm)?;
        let named = header.kid.as_deref().map(|kid| self.keys.iter().filter(move |key| key.id.as_deref() == Some(kid)));
        let mut candidates: Vec<&Key> = named.into_iter().flatten().collect();
        if let Some(key) = candidates.first() {
            let key = key.algorithm;
            candidates.retain(|key| key.algorithm == algorithm);
            if candidates.is_empty() {
                return Err(TokenError::KeyAlgorithm { key, token: algorithm });
            }
        } else {
            candidates.extend(self.keys.iter().filter(|key| key.algorithm == algorithm));
        }
        let signed = candidates.iter().find(|key| parts.is_signed_by(key));
        match (signed, candidates.len()) {
            (Some(key), _) => Ok(key.fingerprint),
            (None, 0) => Err(TokenError::NoKey(algorithm)),
            (None, tried) => Err(TokenError::Signature(tried)),
        }
    }

    fn check_tenant(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        match claims.get(TENANT_CLAIM) {
            None => Ok(()),
            Some(Value::String(tenant)) if tenant == self.tenant.as_str() => Ok(()),
            Some(_) => Err(TokenError::Tenant),
        }
    }

    /// The second in which the token ends, the leeway included.
    fn check_time(&self, claims: &Map<String, Value>, now_s: u64) -> Result<Option<u64>, TokenError> {
        let ends_s = seconds(claims, "exp")?.map(|exp_s| exp_s.saturating_add(self.leeway_s));
        if ends_s.is_some_and(|ends_s| now_s >= ends_s) {
            return Err(TokenError::Expired);
        }
        match seconds(claims, "nbf")? {
            Some(nbf_s) if now_s.saturating_add(self.leeway_s) < nbf_s => Err(TokenError::NotYet),
            _ => Ok(ends_s),
        }
    }

    fn check_addressee(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let ours = |value: &Value| value.as_str().is_some_and(|text| self.audiences.iter().any(|ours| ours == text));
        let for_us = match claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        };
        if !self.audiences.is_empty() && !for_us {
            return Err(TokenError::Audience);
        }
        let issuer = claims.get("iss").and_then(Value::as_str);
        if !self.issuers.is_empty() && !issuer.is_some_and(|issuer| self.issuers.iter().any(|ours| ours == issuer)) {
            return Err(TokenError::Issuer);
        }
        Ok(())
    }

    fn subject(&self, claims: &Map<String, Value>) -> Result<Arc<str>, TokenError> {
        let wrong = |problem| TokenError::Subject { claim: Arc::clone(&self.subject_claim), problem };
        let subject = match claims.get(&*self.subject_claim) {
            None => return Err(wrong("is missing")),
            Some(Value::String(subject)) => subject.clone(),
            // A fraction has more than one spelling, so it identifies nobody.
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            Some(_) => return Err(wrong("is neither a text nor an integer")),
        };
        match subject.len() {
            0 => Err(wrong("is empty")),
            1..=SUBJECT_BYTES_MAX if subject.chars().any(char::is_control) => Err(wrong("contains control characters")),
            1..=SUBJECT_BYTES_MAX => Ok(subject.into()),
            _ => Err(wrong("is longer than 128 bytes")),
        }
    }
}

/// The unverified `tenant` claim. Trust nothing because of it: it only chooses whose keys
/// must verify the token.
pub fn peek_tenant(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Peek {
        tenant: String,
    }
    let payload = Parts::of(token).ok()?.payload().ok()?;
    serde_json::from_str(&payload).ok().map(|peek: Peek| peek.tenant)
}

/// Makes a token, for development and for back ends that share a secret with the gateway.
///
/// # Errors
/// An algorithm other than HS*; an empty secret.
pub fn sign(
    key_id: Option<&str>,
    algorithm: Algorithm,
    secret: &Secret,
    claims: &Map<String, Value>,
) -> Result<String, KeyError> {
    if key::family(algorithm) != jsonwebtoken::AlgorithmFamily::Hmac {
        return Err(KeyError::CannotSign(algorithm));
    }
    if secret.0.is_empty() {
        return Err(KeyError::EmptySecret);
    }
    let mut header = jsonwebtoken::Header::new(key::library(algorithm));
    header.kid = key_id.map(Into::into);
    let key = jsonwebtoken::EncodingKey::from_secret(&secret.0);
    jsonwebtoken::encode(&header, claims, &key).map_err(|_| KeyError::CannotSign(algorithm))
}

/// A token taken apart, nothing verified.
struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    /// Header and payload as they were signed.
    message: &'a str,
    signature: &'a str,
}

/// Of the header, what matters. Names given twice are refused.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood; we understand none.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Result<Parts<'a>, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong(token.len()));
        }
        let three = || {
            let (message, signature) = token.rsplit_once('.')?;
            let (header, payload) = message.split_once('.')?;
            (!payload.contains('.')).then_some(Parts { header, payload, message, signature })
        };
        three().ok_or(TokenError::Malformed("it has not three parts"))
    }

    fn header(&self) -> Result<Header, TokenError> {
        let bytes = URL_SAFE_NO_PAD.decode(self.header);
        let bytes = bytes.map_err(|_| TokenError::Malformed("its header is not base64url"))?;
        let header: Header =
            serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed("its header is not a JOSE header"))?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed("its header demands extensions (`crit`)"));
        }
        Ok(header)
    }

    fn payload(&self) -> Result<String, TokenError> {
        let bytes = URL_SAFE_NO_PAD.decode(self.payload);
        let bytes = bytes.map_err(|_| TokenError::Malformed("its payload is not base64url"))?;
        String::from_utf8(bytes).map_err(|_| TokenError::Malformed("its payload is not UTF-8"))
    }

    fn is_signed_by(&self, key: &Key) -> bool {
        let algorithm = key::library(key.algorithm);
        jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), &key.decoding, algorithm).unwrap_or(false)
    }
}

/// A JSON object in which no name stands twice: parsers differ in which of them they believe,
/// and a component may use another one than the gateway.
fn object(text: &str) -> Option<Map<String, Value>> {
    struct Unique;
    impl<'de> de::Visitor<'de> for Unique {
        type Value = Map<String, Value>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with unique names")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut object = Map::new();
            while let Some((name, value)) = map.next_entry::<String, Value>()? {
                if object.insert(name, value).is_some() {
                    return Err(de::Error::custom("a name stands twice"));
                }
            }
            Ok(object)
        }
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let object = parser.deserialize_map(Unique).ok()?;
    parser.end().ok()?;
    Some(object)
}

/// A point in time as RFC 7519 writes it: seconds, perhaps with a fraction.
fn seconds(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, TokenError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds));
    }
    match value.as_f64() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be at least 0, and `as` saturates"
        )]
        Some(seconds) if seconds >= 0.0 => Ok(Some(seconds as u64)),
        // Before 1970: long past.
        Some(_) if value.is_number() => Ok(Some(0)),
        _ => Err(TokenError::ClaimType(name)),
    }
}
