//! `postern plugin sign`: whoever holds the key says that a component is theirs.

use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::read_component;
use crate::cli::Failure;
use crate::cli::output::{json as print_json, line};

/// What a signature is of begins like this.
const CONTEXT: &str = "postern-plugin-v1";

pub(super) const EXAMPLES: &str = "\
The signature is of the tenant's and the plugin's name and the component's SHA-256: it is good for nothing else.
The tenant's `signature_keys` name the public key.

Examples:
  openssl genpkey -algorithm ed25519 -out release.pem
  openssl pkey -in release.pem -pubout
  postern plugin sign word_filter.wasm --tenant acme --plugin word-filter --key release.pem --key-id release-2026";

/// What to sign.
#[derive(Debug, Clone, Args)]
pub struct SignArgs {
    /// The component.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The tenant that it is for.
    #[arg(long, value_name = "TENANT")]
    pub tenant: String,
    /// The plugin that it is for.
    #[arg(long, value_name = "PLUGIN")]
    pub plugin: String,
    /// The private key: Ed25519, PKCS #8 in PEM.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The name of the key in the tenant's `signature_keys`.
    #[arg(long, value_name = "ID")]
    pub key_id: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Signs and prints.
pub(super) fn run(args: &SignArgs) -> Result<(), Failure> {
    let component = read_component(&args.file)?;
    let signature = signature(&args.key, &args.key_id, &args.tenant, &args.plugin, &component)?;
    if args.json {
        print_json(&json!({ "signature": signature, "digest": digest(&component) }));
    } else {
        line(&signature);
    }
    Ok(())
}

/// A component's SHA-256, in lower-case hexadecimal.
pub fn digest(component: &[u8]) -> String {
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is signed.
pub fn message(tenant: &str, plugin: &str, digest: &str) -> String {
    format!("{CONTEXT}\n{tenant}\n{plugin}\n{digest}")
}

/// `{key id}:{base64}`, as the header `Postern-Signature` has it.
pub(super) fn signature(
    key: &Path,
    key_id: &str,
    tenant: &str,
    plugin: &str,
    component: &[u8],
) -> Result<String, Failure> {
    let unusable = |why: String| {
        let make = "`openssl genpkey -algorithm ed25519 -out FILE` makes one";
        Failure::Failed(format!("{} is no private key of Ed25519 in PEM: {why}\n{make}", key.display()))
    };
    let pem = std::fs::read(key).map_err(|error| Failure::Failed(format!("{}: {error}", key.display())))?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
    let pair = pair.map_err(|error| unusable(error.to_string()))?;
    let signature = pair.sign(message(tenant, plugin, &digest(component)).as_bytes());
    Ok(format!("{key_id}:{}", STANDARD.encode(signature.as_ref())))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use rustls::pki_types::SubjectPublicKeyInfoDer;

    use super::*;

    #[test]
    fn a_signature_is_of_this_tenant_this_plugin_and_these_bytes() {
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
        let signed = signature(&keys.join("ed25519.private.pem"), "k1", "acme", "filter", b"bytes").unwrap();
        let signed = STANDARD.decode(signed.strip_prefix("k1:").unwrap()).unwrap();
        let public = SubjectPublicKeyInfoDer::from_pem_file(keys.join("ed25519.public.pem")).unwrap();
        // The raw key is the end of its SPKI.
        let public = UnparsedPublicKey::new(&ED25519, &public[public.len() - 32..]);
        let holds = |tenant, plugin, bytes: &[u8]| {
            public.verify(message(tenant, plugin, &digest(bytes)).as_bytes(), &signed).is_ok()
        };
        assert!(holds("acme", "filter", b"bytes"));
        assert!(
            !holds("other", "filter", b"bytes") && !holds("acme", "other", b"bytes") && !holds("acme", "filter", b"b")
        );
    }

    #[test]
    fn a_file_that_is_no_such_key_is_refused_with_how_to_make_one() {
        let rsa = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys/rsa.private.pem");
        let error = signature(&rsa, "k", "t", "p", b"").unwrap_err().to_string();
        assert!(error.contains("openssl genpkey -algorithm ed25519"), "{error}");
    }
}
