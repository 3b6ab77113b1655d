use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tenant::{KeyMaterial, VerifyingKey};

const NOW_S: u64 = 1_800_000_000;
const SECRET: &[u8] = b"a test secret of more than thirty-two bytes";
const OTHER_SECRET: &[u8] = b"another test secret of more than thirty-two bytes";

macro_rules! pem {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/keys/", $name, ".pem"))
    };
}

fn tenant() -> TenantId {
    TenantId::parse("green-valley").unwrap()
}

fn auth(keys: Vec<VerifyingKey>) -> Auth {
    Auth {
        keys,
        key_sets: Vec::new(),
        key_set_refresh: Duration::from_secs(300),
        key_sets_end_connections: false,
        subject_claim: "sub".into(),
        audiences: Vec::new(),
        issuers: Vec::new(),
        leeway: Duration::from_secs(10),
        anonymous: false,
    }
}

fn key(id: Option<&str>, algorithm: Algorithm, material: KeyMaterial) -> VerifyingKey {
    VerifyingKey { id: id.map(Into::into), algorithm, material }
}

fn hs256(id: Option<&str>, secret: &[u8]) -> VerifyingKey {
    key(id, Algorithm::HS256, KeyMaterial::Secret(Secret(secret.into())))
}

/// The key that verifies what [`private`] signs.
fn public(algorithm: Algorithm) -> VerifyingKey {
    let material = match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => KeyMaterial::Secret(Secret(SECRET.into())),
        Algorithm::ES256 => KeyMaterial::Pem(pem!("p256.public").to_vec()),
        Algorithm::ES384 => KeyMaterial::Pem(pem!("p384.public").to_vec()),
        Algorithm::EdDSA => KeyMaterial::Pem(pem!("ed25519.public").to_vec()),
        _ => KeyMaterial::Pem(pem!("rsa.public").to_vec()),
    };
    key(None, algorithm, material)
}

fn private(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => EncodingKey::from_secret(SECRET),
        Algorithm::ES256 => EncodingKey::from_ec_pem(pem!("p256.private")).unwrap(),
        Algorithm::ES384 => EncodingKey::from_ec_pem(pem!("p384.private")).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem!("ed25519.private")).unwrap(),
        _ => EncodingKey::from_rsa_pem(pem!("rsa.private")).unwrap(),
    }
}

fn signed(algorithm: Algorithm, kid: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    let mut header = Header::new(key::library(algorithm));
    header.kid = kid.map(Into::into);
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn verifier(keys: Vec<VerifyingKey>) -> Verifier {
    Verifier::new(&tenant(), &auth(keys)).unwrap()
}

/// What a verifier with one shared secret says to these claims.
fn judge(change: impl FnOnce(&mut Auth), claims: &Value) -> Result<Identity, TokenError> {
    let mut auth = auth(vec![public(Algorithm::HS256)]);
    change(&mut auth);
    let token = signed(Algorithm::HS256, None, claims, &private(Algorithm::HS256));
    Verifier::new(&tenant(), &auth).unwrap().verify(&token, NOW_S)
}

fn subject(result: Result<Identity, TokenError>) -> Result<String, TokenError> {
    result.map(|identity| identity.subject.to_string())
}

/// A token whose parts are given as text, with a right HS256 signature.
fn raw(header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let library = jsonwebtoken::Algorithm::HS256;
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(SECRET), library).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_token_of_every_algorithm_says_who_its_bearer_is() {
    for algorithm in ALGORITHMS {
        let claims = json!({"sub": "alice", "tenant": "green-valley", "exp": NOW_S + 60, "flats": ["A-101"]});
        let token = signed(algorithm, None, &claims, &private(algorithm));
        let identity = verifier(vec![public(algorithm)]).verify(&token, NOW_S).unwrap();
        assert_eq!(&*identity.subject, "alice", "{algorithm:?}");
        assert_eq!(identity.expires_at_s, Some(NOW_S + 70));
        assert_eq!(serde_json::from_str::<Value>(&identity.claims).unwrap(), claims);
    }
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    for keys in ALGORITHMS {
        let verifier = verifier(vec![public(keys)]);
        for tokens in ALGORITHMS.into_iter().filter(|tokens| *tokens != keys) {
            let token = signed(tokens, None, &json!({"sub": "alice"}), &private(tokens));
            assert_eq!(verifier.verify(&token, NOW_S), Err(TokenError::NoKey(tokens)), "{tokens:?} for {keys:?}");
        }
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let mut rsa = public(Algorithm::RS256);
    rsa.id = Some("rsa".into());
    let forged = EncodingKey::from_secret(pem!("rsa.public"));
    for kid in [None, Some("rsa")] {
        let token = signed(Algorithm::HS256, kid, &json!({"sub": "alice"}), &forged);
        let refused = verifier(vec![rsa.clone()]).verify(&token, NOW_S).unwrap_err();
        let expected = match kid {
            None => TokenError::NoKey(Algorithm::HS256),
            Some(_) => TokenError::KeyAlgorithm { key: Algorithm::RS256, token: Algorithm::HS256 },
        };
        assert_eq!(refused, expected);
        assert_eq!(refused.public_message(), "token is not signed by a key of this tenant");
        // Beside a shared secret that exists it is tried, and does not fit.
        assert!(verifier(vec![rsa.clone(), hs256(None, SECRET)]).verify(&token, NOW_S).is_err());
    }
}

#[test]
fn an_unsigned_token_is_refused_however_it_spells_none() {
    let payload = URL_SAFE_NO_PAD.encode(r#"{"sub":"alice"}"#);
    for alg in ["none", "None", "NONE", "nOnE", "", "HS257", "hs256"] {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
        let token = format!("{header}.{payload}.");
        assert_eq!(verifier(vec![hs256(None, SECRET)]).verify(&token, NOW_S), Err(TokenError::Algorithm), "{alg}");
    }
}

#[test]
fn headers_that_demand_or_repeat_something_are_refused() {
    let verifier = verifier(vec![hs256(None, SECRET)]);
    let payload = r#"{"sub":"alice"}"#;
    assert!(verifier.verify(&raw(r#"{"alg":"HS256","typ":"JWT"}"#, payload), NOW_S).is_ok());
    for header in [
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":7}"#,
        r#""HS256""#,
        "",
    ] {
        let refused = verifier.verify(&raw(header, payload), NOW_S);
        assert!(matches!(refused, Err(TokenError::Malformed(_))), "{header}: {refused:?}");
    }
}

#[test]
fn a_payload_is_one_object_in_which_no_name_stands_twice() {
    let verifier = verifier(vec![hs256(None, SECRET)]);
    for payload in [r#"{"sub":"a","sub":"b"}"#, r#"["sub"]"#, r#""alice""#, "", r#"{"sub":"a"} {}"#, "\u{0}"] {
        let refused = verifier.verify(&raw(r#"{"alg":"HS256"}"#, payload), NOW_S);
        assert!(matches!(refused, Err(TokenError::Malformed(_))), "{payload}: {refused:?}");
    }
}

#[test]
fn a_token_ends_with_its_second_and_the_leeway() {
    let at = |exp: Value| judge(|_| {}, &json!({"sub": "alice", "exp": exp})).map(|identity| identity.expires_at_s);
    assert_eq!(at(json!(NOW_S + 1)), Ok(Some(NOW_S + 11)));
    assert_eq!(at(json!(NOW_S - 9)), Ok(Some(NOW_S + 1)));
    assert_eq!(at(json!(NOW_S - 10)), Err(TokenError::Expired));
    assert_eq!(at(json!(NOW_S as f64 + 0.5)), Ok(Some(NOW_S + 10)));
    assert_eq!(at(json!(0)), Err(TokenError::Expired));
    assert_eq!(at(json!(-1)), Err(TokenError::Expired));
    assert_eq!(at(json!(-1.5)), Err(TokenError::Expired));
    assert_eq!(at(json!(u64::MAX)), Ok(Some(u64::MAX)));
    assert_eq!(at(json!(1e300)), Ok(Some(u64::MAX)));
    assert_eq!(at(json!("1900000000")), Err(TokenError::ClaimType("exp")));
    assert_eq!(at(Value::Null), Err(TokenError::ClaimType("exp")));
    assert_eq!(judge(|_| {}, &json!({"sub": "alice"})).map(|identity| identity.expires_at_s), Ok(None));
}

#[test]
fn a_token_begins_with_its_second_less_the_leeway() {
    let at = |nbf: u64| subject(judge(|_| {}, &json!({"sub": "alice", "nbf": nbf})));
    assert_eq!(at(NOW_S), Ok("alice".into()));
    assert_eq!(at(NOW_S + 10), Ok("alice".into()));
    assert_eq!(at(NOW_S + 11), Err(TokenError::NotYet));
}

#[test]
fn a_token_is_for_one_of_the_tenants_audiences_if_it_has_any() {
    let audiences = |auth: &mut Auth| auth.audiences = vec!["app".into(), "web".into()];
    for (aud, accepted) in [
        (json!("web"), true),
        (json!(["other", "app"]), true),
        (json!("other"), false),
        (json!([]), false),
        (json!(7), false),
        (json!(["ap", "we"]), false),
    ] {
        let claims = json!({"sub": "alice", "aud": aud});
        let expected = if accepted { Ok("alice".into()) } else { Err(TokenError::Audience) };
        assert_eq!(subject(judge(audiences, &claims)), expected, "{aud}");
        assert_eq!(subject(judge(|_| {}, &claims)), Ok("alice".into()));
    }
    assert_eq!(subject(judge(audiences, &json!({"sub": "alice"}))), Err(TokenError::Audience));
}

#[test]
fn a_token_is_from_one_of_the_tenants_issuers_if_it_has_any() {
    let issuers = |auth: &mut Auth| auth.issuers = vec!["https://id".into()];
    assert_eq!(subject(judge(issuers, &json!({"sub": "alice", "iss": "https://id"}))), Ok("alice".into()));
    for claims in
        [json!({"sub": "alice"}), json!({"sub": "alice", "iss": "x"}), json!({"sub": "alice", "iss": ["https://id"]})]
    {
        assert_eq!(subject(judge(issuers, &claims)), Err(TokenError::Issuer), "{claims}");
    }
}

#[test]
fn another_tenants_token_is_refused_even_with_our_signature() {
    for tenant in [json!("team-hub"), json!(""), json!(null), json!(["green-valley"])] {
        assert_eq!(judge(|_| {}, &json!({"sub": "alice", "tenant": tenant})), Err(TokenError::Tenant));
    }
}

#[test]
fn a_subject_is_a_text_or_an_integer_of_bounded_size() {
    let of = |sub: Value| subject(judge(|_| {}, &json!({"sub": sub})));
    assert_eq!(of(json!("a".repeat(128))), Ok("a".repeat(128)));
    assert_eq!(of(json!(42)), Ok("42".into()));
    assert_eq!(of(json!(-7)), Ok("-7".into()));
    for wrong in
        [json!(""), json!("a".repeat(129)), json!("a\nb"), json!(1.5), json!(true), json!(null), json!(["alice"])]
    {
        assert!(matches!(of(wrong.clone()), Err(TokenError::Subject { .. })), "{wrong}");
    }
    assert!(matches!(judge(|_| {}, &json!({})), Err(TokenError::Subject { .. })));
    let user_id = |auth: &mut Auth| auth.subject_claim = "user_id".into();
    assert_eq!(subject(judge(user_id, &json!({"sub": "no", "user_id": 42}))), Ok("42".into()));
}

#[test]
fn a_kid_chooses_the_key_and_no_other_is_tried() {
    let keys = vec![hs256(Some("old"), SECRET), hs256(Some("new"), OTHER_SECRET)];
    let claims = json!({"sub": "alice"});
    let token = |kid, secret| signed(Algorithm::HS256, kid, &claims, &EncodingKey::from_secret(secret));
    let verifier = verifier(keys);
    let verify = |token: &str| subject(verifier.verify(token, NOW_S));
    assert_eq!(verify(&token(Some("old"), SECRET)), Ok("alice".into()));
    assert_eq!(verify(&token(Some("new"), OTHER_SECRET)), Ok("alice".into()));
    assert_eq!(verify(&token(Some("new"), SECRET)), Err(TokenError::Signature(1)));
    // One that names none, or is not there: all are tried.
    assert_eq!(verify(&token(None, SECRET)), Ok("alice".into()));
    assert_eq!(verify(&token(None, OTHER_SECRET)), Ok("alice".into()));
    assert_eq!(verify(&token(Some("unknown"), OTHER_SECRET)), Ok("alice".into()));
    assert_eq!(verify(&token(Some("unknown"), b"a stranger's secret")), Err(TokenError::Signature(2)));
}

#[test]
fn another_key_of_the_same_kind_does_not_sign_for_ours() {
    let stranger = EncodingKey::from_rsa_pem(pem!("rsa-other.private")).unwrap();
    for algorithm in [Algorithm::RS256, Algorithm::PS512] {
        let token = signed(algorithm, None, &json!({"sub": "alice"}), &stranger);
        assert_eq!(verifier(vec![public(algorithm)]).verify(&token, NOW_S), Err(TokenError::Signature(1)));
    }
}

#[test]
fn as_many_keys_of_an_algorithm_as_are_tried_are_accepted() {
    let keys = |count: usize| (0..count).map(|_| hs256(None, SECRET)).collect();
    assert!(Verifier::new(&tenant(), &auth(keys(16))).is_ok());
    assert_eq!(Verifier::new(&tenant(), &auth(keys(17))).unwrap_err(), KeyError::TooMany(Algorithm::HS256));
}

#[test]
fn a_key_that_does_not_fit_its_algorithm_is_refused() {
    let pem = |bytes: &[u8]| KeyMaterial::Pem(bytes.to_vec());
    let secret = |bytes: &[u8]| KeyMaterial::Secret(Secret(bytes.to_vec()));
    for (algorithm, material, expected) in [
        (Algorithm::RS256, secret(SECRET), KeyError::NeedsPublicKey(Algorithm::RS256)),
        (Algorithm::HS256, pem(pem!("rsa.public")), KeyError::NeedsSecret(Algorithm::HS256)),
        (Algorithm::HS256, secret(b""), KeyError::EmptySecret),
        (Algorithm::RS256, pem(pem!("rsa.private")), KeyError::PrivateKey),
        (Algorithm::RS256, pem(pem!("p256.public")), KeyError::Pem(Algorithm::RS256, "RSA")),
        (Algorithm::RS256, pem(b"rubbish"), KeyError::Pem(Algorithm::RS256, "RSA")),
        (Algorithm::RS256, pem(pem!("rsa-1024.public")), KeyError::RsaBits(1_024)),
        (Algorithm::ES256, pem(pem!("ed25519.public")), KeyError::Pem(Algorithm::ES256, "EC")),
        (Algorithm::ES256, pem(pem!("p384.public")), KeyError::Curve(Algorithm::ES256, "a key of the curve P-256")),
        (Algorithm::ES384, pem(pem!("p256.public")), KeyError::Curve(Algorithm::ES384, "a key of the curve P-384")),
        (Algorithm::EdDSA, pem(pem!("p256.public")), KeyError::Pem(Algorithm::EdDSA, "Ed25519")),
    ] {
        assert_eq!(check_key(&key(None, algorithm, material)), Err(expected));
    }
}

/// The public key of a PEM as a JSON Web Key.
fn jwk(algorithm: Algorithm, alg: Option<&str>) -> String {
    let ready = Key::new(&public(algorithm)).unwrap();
    let mut jwk =
        serde_json::to_value(jsonwebtoken::jwk::Jwk::from_decoding_key(&ready.decoding, None).unwrap()).unwrap();
    if let Some(alg) = alg {
        jwk["alg"] = alg.into();
    }
    jwk.to_string()
}

#[test]
fn a_json_web_key_verifies_for_its_own_algorithm_only() {
    for (algorithm, inferred) in [
        (Algorithm::HS256, Algorithm::HS256),
        (Algorithm::RS256, Algorithm::RS256),
        (Algorithm::PS384, Algorithm::RS256),
        (Algorithm::ES256, Algorithm::ES256),
        (Algorithm::ES384, Algorithm::ES384),
        (Algorithm::EdDSA, Algorithm::EdDSA),
    ] {
        let name = format!("{algorithm:?}");
        assert_eq!(jwk_algorithm(&jwk(algorithm, None)), Ok(inferred));
        assert_eq!(jwk_algorithm(&jwk(algorithm, Some(&name))), Ok(algorithm));
        let token = signed(algorithm, None, &json!({"sub": "alice"}), &private(algorithm));
        for text in [jwk(algorithm, None), jwk(algorithm, Some(&name))] {
            let verifier = verifier(vec![key(None, algorithm, KeyMaterial::Jwk(text))]);
            assert_eq!(subject(verifier.verify(&token, NOW_S)), Ok("alice".into()), "{algorithm:?}");
        }
    }
    for (text, algorithm) in [
        (jwk(Algorithm::RS256, Some("RS256")), Algorithm::PS256),
        (jwk(Algorithm::RS256, None), Algorithm::ES256),
        (jwk(Algorithm::RS256, Some("HS256")), Algorithm::HS256),
        (jwk(Algorithm::ES256, None), Algorithm::EdDSA),
    ] {
        let refused = check_key(&key(None, algorithm, KeyMaterial::Jwk(text)));
        assert!(matches!(refused, Err(KeyError::JwkAlgorithm { .. })), "{refused:?}");
    }
}

#[test]
fn json_web_keys_for_something_else_are_told_apart() {
    for (text, expected) in [
        (json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}), "curve"),
        (json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}), "kty"),
        (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc"}), "`use`"),
        (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RSA-OAEP"}), "`alg`"),
        (json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "AQAB"}), "private"),
        (json!({"kty": "RSA"}), "with all its fields"),
        (json!({"kid": "x"}), "`kty`"),
    ] {
        let error = jwk_algorithm(&text.to_string()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_tenant_can_be_peeked_at_but_only_as_a_text() {
    let token = |claims: Value| signed(Algorithm::HS256, None, &claims, &private(Algorithm::HS256));
    assert_eq!(peek_tenant(&token(json!({"tenant": "team-hub", "x": 1}))), Some("team-hub".into()));
    for token in [token(json!({"sub": "a"})), token(json!({"tenant": 7})), "a.b.c".into(), String::new(), "..".into()] {
        assert_eq!(peek_tenant(&token), None, "{token}");
    }
    assert_eq!(peek_tenant(&token(json!({"tenant": "x", "pad": "a".repeat(TOKEN_BYTES_MAX)}))), None);
}

#[test]
fn a_token_has_a_greatest_size() {
    let claims = json!({"sub": "alice", "pad": "a".repeat(TOKEN_BYTES_MAX)});
    assert!(matches!(judge(|_| {}, &claims), Err(TokenError::TooLong(bytes)) if bytes > TOKEN_BYTES_MAX));
}

#[test]
fn anonymous_clients_come_only_where_the_tenant_lets_them() {
    assert_eq!(verifier(Vec::new()).anonymous(), None);
    let mut open = auth(Vec::new());
    open.anonymous = true;
    let open = Verifier::new(&tenant(), &open).unwrap();
    let (one, other) = (open.anonymous().unwrap(), open.anonymous().unwrap());
    assert!(one.subject.starts_with("anonymous-") && one.subject != other.subject);
    assert_eq!((&*one.claims, one.expires_at_s), ("{}", None));
    // Without a key there is still no token that it takes.
    let token = signed(Algorithm::HS256, None, &json!({"sub": "a"}), &private(Algorithm::HS256));
    assert_eq!(open.verify(&token, NOW_S), Err(TokenError::NoKey(Algorithm::HS256)));
}

#[test]
fn what_is_signed_here_is_verified_here() {
    let claims = json!({"sub": "alice", "exp": NOW_S + 60});
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let token = sign(Some("k"), algorithm, &Secret(SECRET.into()), claims.as_object().unwrap()).unwrap();
        assert_eq!(subject(verifier(vec![public(algorithm)]).verify(&token, NOW_S)), Ok("alice".into()));
    }
    let refused = sign(None, Algorithm::RS256, &Secret(SECRET.into()), claims.as_object().unwrap());
    assert_eq!(refused, Err(KeyError::CannotSign(Algorithm::RS256)));
}

#[test]
fn no_error_shows_the_token_or_a_claim() {
    let secret_word = "hunter2";
    let claims = json!({"sub": secret_word, "tenant": secret_word, "exp": secret_word, "aud": secret_word});
    let token = signed(Algorithm::HS256, Some(secret_word), &claims, &EncodingKey::from_secret(OTHER_SECRET));
    for token in [token.clone(), token.replace('.', ""), raw(&format!(r#"{{"alg":"{secret_word}"}}"#), "{}")] {
        let error = verifier(vec![hs256(None, SECRET)]).verify(&token, NOW_S).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret_word), "{error:?}");
    }
    assert!(!format!("{:?}", verifier(vec![hs256(Some("k"), b"hunter2")])).contains(secret_word));
}

proptest! {
    #[test]
    fn a_token_that_is_changed_anywhere_is_refused(at in 0.0..1.0_f64, byte in any::<u8>(), how in 0..4_u8) {
        let algorithms = [Algorithm::HS256, Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA];
        let algorithm = algorithms[usize::from(byte) % algorithms.len()];
        let token = signed(algorithm, Some("k"), &json!({"sub": "alice"}), &private(algorithm));
        let at = (at * token.len() as f64) as usize;
        let mut changed = token.clone().into_bytes();
        match how {
            0 => changed[at] = byte,
            1 => changed.truncate(at),
            2 => changed.insert(at, byte),
            _ => drop(changed.remove(at)),
        }
        let changed = String::from_utf8_lossy(&changed).into_owned();
        let verified = verifier(vec![public(algorithm)]).verify(&changed, NOW_S);
        prop_assert!(changed == token || verified.is_err(), "{changed}");
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", dots in "[a-zA-Z0-9_-]{0,40}\\.[a-zA-Z0-9_-]{0,40}\\.[a-zA-Z0-9_-]{0,40}") {
        let verifier = verifier(vec![hs256(None, SECRET)]);
        for text in [text, dots] {
            prop_assert!(verifier.verify(&text, NOW_S).is_err());
            let _ = peek_tenant(&text);
        }
    }
}
