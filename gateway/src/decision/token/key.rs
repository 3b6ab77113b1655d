//! Keys: what may verify a token, and with which algorithm only.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{AlgorithmFamily, DecodingKey};
use sha2::{Digest as _, Sha256};

use crate::tenant::{Algorithm, KeyMaterial, KeySetSource, Secret, VerifyingKey};

/// RSA keys outside of these sizes, in bits, are refused.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// Why a key cannot be used. Never shows key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// HS* with a public key.
    #[error("{0:?} needs a shared secret (`secret` or `secret_env`)")]
    NeedsSecret(Algorithm),
    /// Another algorithm with a shared secret.
    #[error("{0:?} needs a public key (`pem`, `pem_file` or `jwk`), not a shared secret")]
    NeedsPublicKey(Algorithm),
    /// A secret of no bytes.
    #[error("the secret is empty")]
    EmptySecret,
    /// A private key where a public one belongs.
    #[error("this is a private key; a gateway that only verifies must not hold it: give the public key")]
    PrivateKey,
    /// The PEM is not one of a public key of the algorithm's kind.
    #[error("not a PEM of the public key that {0:?} needs ({1})")]
    Pem(Algorithm, &'static str),
    /// An RSA key too small to be safe or too big to be checked.
    #[error("an RSA key of {0} bits; {min} to {max} are accepted", min = RSA_BITS.start(), max = RSA_BITS.end())]
    RsaBits(usize),
    /// An EC or Ed25519 key of the wrong size for the algorithm.
    #[error("{0:?} needs {1}")]
    Curve(Algorithm, &'static str),
    /// The JSON Web Key cannot be read.
    #[error("not a JSON Web Key: {0}")]
    Jwk(String),
    /// The JSON Web Key is for something else.
    #[error("a JSON Web Key {0}, which is not supported here")]
    JwkUnsupported(&'static str),
    /// The JSON Web Key says another algorithm than the settings.
    #[error("the JSON Web Key is for {jwk:?}, the settings say {given:?}")]
    JwkAlgorithm {
        /// What its `alg`, or else its kind, says.
        jwk: Algorithm,
        /// What the settings say.
        given: Algorithm,
    },
    /// A set has more keys than are looked at.
    #[error("a set has at most {0} keys here")]
    Beyond(usize),
    /// More keys of one algorithm than are ever tried for one token.
    #[error("more than {max} keys for {0:?}", max = super::KEYS_PER_ALGORITHM_MAX)]
    TooMany(Algorithm),
    /// Signing is for shared secrets only.
    #[error("{0:?} cannot sign here: only HS256, HS384 and HS512 can")]
    CannotSign(Algorithm),
}

/// A key ready for use.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
    /// Of algorithm and material: the same key under another id is the same key.
    pub(super) fingerprint: u64,
}

impl Key {
    pub(super) fn new(key: &VerifyingKey) -> Result<Key, KeyError> {
        let algorithm = key.algorithm;
        let decoding = match &key.material {
            KeyMaterial::Secret(secret) => from_secret(algorithm, secret)?,
            KeyMaterial::Pem(pem) => from_pem(algorithm, pem)?,
            KeyMaterial::Jwk(text) => from_jwk(algorithm, text)?,
        };
        check_size(algorithm, &decoding)?;
        Ok(Key {
            id: key.id.clone(),
            algorithm,
            fingerprint: fingerprint(algorithm, &decoding, &key.material),
            decoding,
        })
    }
}

fn fingerprint(algorithm: Algorithm, decoding: &DecodingKey, material: &KeyMaterial) -> u64 {
    let written: &[u8] = match material {
        KeyMaterial::Secret(Secret(secret)) => secret,
        KeyMaterial::Pem(pem) => pem,
        KeyMaterial::Jwk(text) => text.as_bytes(),
    };
    // However it was written, where the library tells.
    let bytes = decoding.try_get_as_bytes().unwrap_or(written);
    mark(Sha256::new().chain_update(format!("{algorithm:?}:")).chain_update(bytes))
}

/// Stands for a key set as a whole, whatever it holds at the moment.
pub(super) fn set_fingerprint(source: &KeySetSource) -> u64 {
    match source {
        KeySetSource::File(path) => mark(Sha256::new().chain_update(format!("key set: file {}", path.display()))),
        KeySetSource::Url { url, .. } => mark(Sha256::new().chain_update(format!("key set: {url}"))),
    }
}

fn mark(hasher: Sha256) -> u64 {
    hasher.finalize().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Can the key be used with its algorithm?
pub fn check_key(key: &VerifyingKey) -> Result<(), KeyError> {
    Key::new(key).map(|_| ())
}

/// The shared secret of an HS* key, however it was given; `None` for public keys.
pub fn shared_secret(key: &VerifyingKey) -> Option<Secret> {
    let key = Key::new(key).ok()?;
    if key.decoding.family() != AlgorithmFamily::Hmac {
        return None;
    }
    key.decoding.try_get_as_bytes().ok().map(|bytes| Secret(bytes.to_vec()))
}

/// The algorithm that a JSON Web Key is for: its `alg`, or else what its kind implies.
pub fn jwk_algorithm(text: &str) -> Result<Algorithm, KeyError> {
    let jwk = parse_jwk(text)?;
    let implied = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return Err(KeyError::JwkUnsupported("of a curve other than P-256 and P-384")),
        },
        AlgorithmParameters::OctetKeyPair(key) => match key.curve {
            EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return Err(KeyError::JwkUnsupported("of a curve other than Ed25519")),
        },
        _ => return Err(KeyError::JwkUnsupported("that is no RSA, EC, OKP or oct key (by `kty`) with all its fields")),
    };
    match jwk.common.key_algorithm {
        None => Ok(implied),
        Some(named) => from_jwk_name(named).ok_or(KeyError::JwkUnsupported("whose `alg` signs no tokens")),
    }
}

fn from_jwk_name(name: KeyAlgorithm) -> Option<Algorithm> {
    let name = jsonwebtoken::Algorithm::try_from(name).ok()?;
    ALGORITHMS.iter().copied().find(|algorithm| library(*algorithm) == name)
}

/// All of them, in the order of the documentation.
pub const ALGORITHMS: [Algorithm; 12] = [
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// An algorithm by the name that tokens and settings use.
pub fn algorithm_named(name: &str) -> Option<Algorithm> {
    ALGORITHMS.into_iter().find(|algorithm| format!("{algorithm:?}") == name)
}

pub(super) fn library(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    use jsonwebtoken::Algorithm as Library;
    match algorithm {
        Algorithm::HS256 => Library::HS256,
        Algorithm::HS384 => Library::HS384,
        Algorithm::HS512 => Library::HS512,
        Algorithm::RS256 => Library::RS256,
        Algorithm::RS384 => Library::RS384,
        Algorithm::RS512 => Library::RS512,
        Algorithm::PS256 => Library::PS256,
        Algorithm::PS384 => Library::PS384,
        Algorithm::PS512 => Library::PS512,
        Algorithm::ES256 => Library::ES256,
        Algorithm::ES384 => Library::ES384,
        Algorithm::EdDSA => Library::EdDSA,
    }
}

pub(super) fn family(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => AlgorithmFamily::Hmac,
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        _ => AlgorithmFamily::Rsa,
    }
}

fn from_secret(algorithm: Algorithm, secret: &Secret) -> Result<DecodingKey, KeyError> {
    if family(algorithm) != AlgorithmFamily::Hmac {
        return Err(KeyError::NeedsPublicKey(algorithm));
    }
    Ok(DecodingKey::from_secret(&secret.0))
}

fn from_pem(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, KeyError> {
    let label = b"PRIVATE KEY-----";
    if pem.windows(label.len()).any(|window| window == label) {
        return Err(KeyError::PrivateKey);
    }
    let (read, kind) = match family(algorithm) {
        AlgorithmFamily::Hmac => return Err(KeyError::NeedsSecret(algorithm)),
        AlgorithmFamily::Rsa => (DecodingKey::from_rsa_pem(pem), "RSA"),
        AlgorithmFamily::Ec => (DecodingKey::from_ec_pem(pem), "EC"),
        AlgorithmFamily::Ed => (DecodingKey::from_ed_pem(pem), "Ed25519"),
    };
    read.map_err(|_| KeyError::Pem(algorithm, kind))
}

fn parse_jwk(text: &str) -> Result<Jwk, KeyError> {
    // The parser's own message would quote the text, and the text may hold a secret.
    let value: serde_json::Value = serde_json::from_str(text).map_err(|_| KeyError::Jwk("it is no JSON".into()))?;
    if !value.get("kty").is_some_and(serde_json::Value::is_string) {
        return Err(KeyError::Jwk("it has no `kty`".into()));
    }
    if value.get("d").is_some() {
        return Err(KeyError::PrivateKey);
    }
    let jwk: Jwk = serde_json::from_value(value).map_err(|_| {
        KeyError::Jwk("a field that its `kty` needs is missing, or of a form that is not supported".into())
    })?;
    match jwk.common.public_key_use {
        None | Some(PublicKeyUse::Signature) => Ok(jwk),
        Some(_) => Err(KeyError::JwkUnsupported("whose `use` is not `sig`")),
    }
}

fn from_jwk(algorithm: Algorithm, text: &str) -> Result<DecodingKey, KeyError> {
    let jwk = parse_jwk(text)?;
    let own = jwk_algorithm(text)?;
    // Without an `alg` a key of a kind serves every algorithm of that kind (RS* and PS*).
    let fits = if jwk.common.key_algorithm.is_some() { own == algorithm } else { family(own) == family(algorithm) };
    if !fits {
        return Err(KeyError::JwkAlgorithm { jwk: own, given: algorithm });
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| KeyError::Jwk("a field is not base64url".into()))?;
    if key.family() != family(algorithm) {
        return Err(KeyError::JwkAlgorithm { jwk: own, given: algorithm });
    }
    Ok(key)
}

fn check_size(algorithm: Algorithm, key: &DecodingKey) -> Result<(), KeyError> {
    match (family(algorithm), key.try_get_as_bytes().map(<[u8]>::len).unwrap_or(0)) {
        (AlgorithmFamily::Hmac, 0) => Err(KeyError::EmptySecret),
        (AlgorithmFamily::Rsa, _) => match rsa_bits(key) {
            None => Err(KeyError::Pem(algorithm, "RSA")),
            Some(bits) if RSA_BITS.contains(&bits) => Ok(()),
            Some(bits) => Err(KeyError::RsaBits(bits)),
        },
        // An uncompressed point: 04, x, y.
        (AlgorithmFamily::Ec, bytes) => match algorithm {
            Algorithm::ES256 if bytes != 65 => Err(KeyError::Curve(algorithm, "a key of the curve P-256")),
            Algorithm::ES384 if bytes != 97 => Err(KeyError::Curve(algorithm, "a key of the curve P-384")),
            _ => Ok(()),
        },
        (AlgorithmFamily::Ed, bytes) if bytes != 32 => Err(KeyError::Curve(algorithm, "an Ed25519 key of 32 bytes")),
        _ => Ok(()),
    }
}

fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    let AlgorithmParameters::RSA(parts) = Jwk::from_decoding_key(key, None).ok()?.algorithm else { return None };
    let modulus = URL_SAFE_NO_PAD.decode(parts.n).ok()?;
    let first = modulus.iter().position(|byte| *byte != 0)?;
    Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
}
