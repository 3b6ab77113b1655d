//! Detached Ed25519 signatures over components.
//!
//! What is signed names the tenant and the plugin beside the component's digest, so that a signature is
//! worth nothing elsewhere: neither for another tenant nor in another of the tenant's plugins.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::tenant::{SIGNATURE_KEY_ID_BYTES_MAX, SignatureKey, TenantId, is_key_id};

/// What every signed text begins with; another form of it would be another number.
const CONTEXT: &str = "postern-plugin-v1";

/// What an Ed25519 public key in SPKI begins with (RFC 8410); the 32 bytes of the key follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The longest text that is looked at as a key, in bytes.
const KEY_TEXT_BYTES_MAX: usize = 4_096;

/// Why a signature does not hold, or a key is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The tenant requires one.
    #[error(
        "the tenant takes signed components only (require_signature = true), and this one has no signature: \
         `postern plugin sign`, or `push --sign-with KEY.pem`"
    )]
    Missing,
    /// It is not written as signatures are.
    #[error("a signature is written KEY-ID:BASE64 with 64 bytes in the Base64 part, {0}")]
    Malformed(&'static str),
    /// The tenant has no key of this name.
    #[error("the tenant has no signature key {0:?}: look at `signature_keys` in its settings")]
    UnknownKey(String),
    /// It is not a signature of this component for this tenant and plugin.
    #[error(
        "the signature by {key:?} does not hold for the plugin {plugin:?} of the tenant {tenant:?} with this component \
         (sha256 {digest}): it was made for other bytes, another plugin, another tenant, or with another key"
    )]
    Wrong {
        /// The key that it names.
        key: String,
        /// For which tenant it should be.
        tenant: String,
        /// For which plugin.
        plugin: String,
        /// The component's SHA-256, in hexadecimal.
        digest: String,
    },
    /// It is no key.
    #[error("an Ed25519 public key is 32 bytes in Base64, or a PEM `PUBLIC KEY`: {0}")]
    PublicKey(&'static str),
    /// It is no key to sign with.
    #[error(
        "an Ed25519 private key is a PEM `PRIVATE KEY` (PKCS #8), as `openssl genpkey -algorithm ed25519` makes it"
    )]
    PrivateKey,
}

/// A signature and the key that it names. Written `key-id:base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The `id` of one of the tenant's `signature_keys`.
    pub key: String,
    /// What Ed25519 makes.
    pub bytes: [u8; 64],
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Signature, SignatureError> {
        let malformed = SignatureError::Malformed;
        if text.len() > SIGNATURE_KEY_ID_BYTES_MAX + 1 + 88 {
            return Err(malformed("and this is longer"));
        }
        let (key, encoded) = text.trim().split_once(':').ok_or(malformed("and this has no colon"))?;
        if !is_key_id(key) {
            return Err(malformed("and this names no key"));
        }
        let bytes = STANDARD.decode(encoded).map_err(|_| malformed("and this is no Base64"))?;
        let bytes = bytes.try_into().map_err(|_| malformed("and these are not 64"))?;
        Ok(Signature { key: key.into(), bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, STANDARD.encode(self.bytes))
    }
}

/// The SHA-256 of a component, in lower-case hexadecimal: its name wherever it is kept, and what is signed of it.
pub fn digest(component: &[u8]) -> String {
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed_text(tenant: &TenantId, plugin: &str, digest: &str) -> String {
    format!("{CONTEXT}\n{tenant}\n{plugin}\n{digest}")
}

/// Does the signature hold for the component with this SHA-256 (lower-case hexadecimal)? Answers the key's id; none
/// without a signature, where none is required. A signature that is there and does not hold is always an error.
///
/// # Errors
/// What is wrong with it.
pub fn verify(
    tenant: &TenantId,
    plugin: &str,
    digest: &str,
    keys: &[SignatureKey],
    required: bool,
    signature: Option<&Signature>,
) -> Result<Option<String>, SignatureError> {
    let Some(signature) = signature else {
        return if required { Err(SignatureError::Missing) } else { Ok(None) };
    };
    let key = keys.iter().find(|key| key.id == signature.key);
    let key = key.ok_or_else(|| SignatureError::UnknownKey(signature.key.clone()))?;
    let text = signed_text(tenant, plugin, digest);
    let holds = UnparsedPublicKey::new(&ED25519, &key.public_key).verify(text.as_bytes(), &signature.bytes).is_ok();
    if holds {
        return Ok(Some(key.id.clone()));
    }
    Err(SignatureError::Wrong {
        key: key.id.clone(),
        tenant: tenant.to_string(),
        plugin: plugin.into(),
        digest: digest.into(),
    })
}

/// Signs the component with this SHA-256 (lower-case hexadecimal) for one plugin of one tenant. `private_key` is PEM
/// (PKCS #8), `key` the id that the tenant's settings give its public part.
///
/// # Errors
/// When the key is none.
pub fn sign(
    private_key: &str,
    key: &str,
    tenant: &TenantId,
    plugin: &str,
    digest: &str,
) -> Result<Signature, SignatureError> {
    let der = pem(private_key, "PRIVATE KEY").ok_or(SignatureError::PrivateKey)?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| SignatureError::PrivateKey)?;
    if !is_key_id(key) {
        return Err(SignatureError::Malformed("and this names no key"));
    }
    let made = pair.sign(signed_text(tenant, plugin, digest).as_bytes());
    let bytes = made.as_ref().try_into().map_err(|_| SignatureError::PrivateKey)?;
    Ok(Signature { key: key.into(), bytes })
}

/// Reads a public key: 32 bytes in Base64, or a PEM `PUBLIC KEY`.
///
/// # Errors
/// When it is none.
pub fn public_key(text: &str) -> Result<[u8; 32], SignatureError> {
    let wrong = SignatureError::PublicKey;
    if text.len() > KEY_TEXT_BYTES_MAX {
        return Err(wrong("this is longer"));
    }
    if !text.contains("-----BEGIN") {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| wrong("this is no Base64"))?;
        return bytes.try_into().map_err(|_| wrong("these are not 32"));
    }
    let der = pem(text, "PUBLIC KEY").ok_or(wrong("this is no PEM of that kind"))?;
    let key = der.strip_prefix(&SPKI_PREFIX).ok_or(wrong("this is a key of another algorithm"))?;
    key.try_into().map_err(|_| wrong("these are not 32"))
}

/// The bytes of the one block of this kind.
fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests;
