//! JSON Web Key sets (RFC 7517 §5): which of their keys can be used here.

use serde_json::Value;

use super::key::{KeyError, check_key, family, jwk_algorithm};
use super::{ALGORITHMS, KEYS_PER_ALGORITHM_MAX};
use crate::tenant::{KeyMaterial, VerifyingKey};

/// Keys of a set that are looked at; what comes after them is left out.
pub const KEY_SET_KEYS_MAX: usize = 100;

/// What a set holds.
#[derive(Debug, Default)]
pub struct KeySetKeys {
    /// Those that can be used, at most [`KEYS_PER_ALGORITHM_MAX`] for each algorithm.
    pub keys: Vec<VerifyingKey>,
    /// The others: which, from 0, and why. A provider's set may well hold keys for something else.
    pub left_out: Vec<(usize, KeyError)>,
}

/// Reads a set. `public`: anybody may have read it, so a shared secret in it is one no more.
///
/// # Errors
/// It is no set; the text says why, and nothing of what is in it.
pub fn read_key_set(bytes: &[u8], public: bool) -> Result<KeySetKeys, String> {
    // The parser's own message would quote the text, and the text may hold a secret.
    let mut set: Value = serde_json::from_slice(bytes).map_err(|_| "is no JSON".to_owned())?;
    let Some(Value::Array(jwks)) = set.get_mut("keys").map(Value::take) else {
        return Err("is no JWK set: it has no array `keys`".into());
    };
    let mut read = KeySetKeys::default();
    for (index, jwk) in jwks.into_iter().enumerate() {
        let key = if index < KEY_SET_KEYS_MAX { usable(&jwk, public) } else { Err(KeyError::Beyond(KEY_SET_KEYS_MAX)) };
        match key {
            Ok(key) => read.keys.push(key),
            Err(error) => read.left_out.push((index, error)),
        }
    }
    Ok(read)
}

fn usable(jwk: &Value, public: bool) -> Result<VerifyingKey, KeyError> {
    let id = jwk.get("kid").and_then(Value::as_str).map(String::from);
    let text = jwk.to_string();
    let algorithm = jwk_algorithm(&text)?;
    if public && family(algorithm) == jsonwebtoken::AlgorithmFamily::Hmac {
        return Err(KeyError::JwkUnsupported("that is a shared secret in a set that anybody may read"));
    }
    let key = VerifyingKey { id, algorithm, material: KeyMaterial::Jwk(text) };
    check_key(&key)?;
    Ok(key)
}

/// Of the keys of sets those that are tried beside the keys of the settings: as many of each algorithm as there may be.
/// Answers how many are left out.
pub(crate) fn keep_those_tried(written: &[VerifyingKey], found: &mut Vec<VerifyingKey>) -> usize {
    let before = found.len();
    for algorithm in ALGORITHMS {
        let mut room =
            KEYS_PER_ALGORITHM_MAX.saturating_sub(written.iter().filter(|key| key.algorithm == algorithm).count());
        found.retain(|key| {
            let fits = key.algorithm != algorithm || room > 0;
            room = room.saturating_sub(usize::from(key.algorithm == algorithm));
            fits
        });
    }
    before - found.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ed25519(kid: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn read(keys: Value, public: bool) -> KeySetKeys {
        read_key_set(json!({ "keys": keys }).to_string().as_bytes(), public).unwrap()
    }

    #[test]
    fn a_set_is_read_without_what_is_of_no_use_here() {
        let set = read(json!([ed25519("a"), {"kty": "RSA"}, 7, ed25519("b")]), true);
        let ids: Vec<_> = set.keys.iter().map(|key| key.id.as_deref().unwrap()).collect();
        assert_eq!((ids, set.left_out.len()), (vec!["a", "b"], 2));
        let many = (0..150).map(|n| ed25519(&n.to_string())).collect();
        assert_eq!(read(many, true).keys.len(), KEY_SET_KEYS_MAX);
    }

    #[test]
    fn a_shared_secret_in_a_public_set_verifies_nothing() {
        let secret = json!([{"kty": "oct", "alg": "HS256", "k": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"}]);
        assert_eq!(read(secret.clone(), false).keys.len(), 1);
        let public = read(secret, true);
        assert!(public.keys.is_empty() && public.left_out[0].1.to_string().contains("shared secret"));
    }

    #[test]
    fn what_is_no_set_is_refused_without_showing_it() {
        for (text, why) in
            [("hunter2", "no JSON"), ("{}", "no array"), (r#"{"keys":{}}"#, "no array"), ("[]", "no array")]
        {
            let error = read_key_set(text.as_bytes(), true).unwrap_err();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn no_more_keys_of_an_algorithm_are_kept_than_are_tried() {
        let key = |n: usize| VerifyingKey { id: Some(n.to_string()), ..usable(&ed25519("x"), true).unwrap() };
        let written: Vec<_> = (0..10).map(key).collect();
        let mut found: Vec<_> = (10..20).map(key).collect();
        assert_eq!(keep_those_tried(&written, &mut found), 4);
        assert_eq!((found.len(), found[5].id.as_deref()), (6, Some("15")));
    }
}
