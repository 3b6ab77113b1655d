use super::*;

/// Made with `openssl genpkey -algorithm ed25519`.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
/// Its public half (RFC 8410, section 10.1).
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";
const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn keys() -> Vec<SignatureKey> {
    vec![SignatureKey { id: "ci".into(), public_key: public_key(PUBLIC).unwrap() }]
}

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

#[test]
fn a_signature_holds_for_its_tenant_its_plugin_and_its_component_only() {
    let acme = tenant("acme");
    let signature = sign(PRIVATE, "ci", &acme, "rules", DIGEST).unwrap();
    let written: Signature = signature.to_string().parse().unwrap();
    assert_eq!(written, signature);
    let holds =
        |tenant: &TenantId, plugin: &str, digest: &str| verify(tenant, plugin, digest, &keys(), true, Some(&signature));
    assert_eq!(holds(&acme, "rules", DIGEST), Ok(Some("ci".into())));
    let other_digest = DIGEST.replace('e', "f");
    for (tenant, plugin, digest) in
        [(&tenant("evil"), "rules", DIGEST), (&acme, "other", DIGEST), (&acme, "rules", &other_digest)]
    {
        let error = holds(tenant, plugin, digest).unwrap_err();
        assert!(matches!(error, SignatureError::Wrong { .. }), "{error}");
        assert!(error.to_string().contains(plugin) && error.to_string().contains(digest), "{error}");
    }
}

#[test]
fn a_signature_that_is_required_must_be_there_and_one_that_is_there_must_hold() {
    let acme = tenant("acme");
    assert_eq!(verify(&acme, "rules", DIGEST, &keys(), true, None), Err(SignatureError::Missing));
    assert_eq!(verify(&acme, "rules", DIGEST, &keys(), false, None), Ok(None));
    let stranger = Signature { key: "who".into(), bytes: [7; 64] };
    let unknown = verify(&acme, "rules", DIGEST, &keys(), false, Some(&stranger));
    assert_eq!(unknown, Err(SignatureError::UnknownKey("who".into())));
    let forged = Signature { key: "ci".into(), bytes: [7; 64] };
    let wrong = verify(&acme, "rules", DIGEST, &keys(), false, Some(&forged));
    assert!(matches!(wrong, Err(SignatureError::Wrong { .. })), "{wrong:?}");
}

#[test]
fn keys_are_read_in_both_forms_and_nothing_else_is_a_key() {
    let raw = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    assert_eq!(public_key(raw), public_key(PUBLIC));
    for bad in ["", "AAAA", "%%%", PRIVATE, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"] {
        assert!(matches!(public_key(bad), Err(SignatureError::PublicKey(_))), "{bad}");
    }
    assert_eq!(sign(PUBLIC, "ci", &tenant("acme"), "rules", DIGEST), Err(SignatureError::PrivateKey));
}

#[test]
fn what_is_no_signature_says_so() {
    for bad in ["", "ci", "ci:AAAA", ":AAAA", "ci:%%", &format!("ci:{}", "A".repeat(1_000)), "c i:AAAA"] {
        assert!(matches!(bad.parse::<Signature>(), Err(SignatureError::Malformed(_))), "{bad}");
    }
}
