//! `postern plugin sign`: whoever holds the key says that a component is theirs.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::read_component;
use crate::cli::Failure;
use crate::cli::output::{json as print_json, line};
use crate::decision::plugin::{digest, sign};
use crate::tenant::TenantId;

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

/// `{key id}:{base64}`, as the header `Postern-Signature` has it.
pub(super) fn signature(
    key: &Path,
    key_id: &str,
    tenant: &str,
    plugin: &str,
    component: &[u8],
) -> Result<String, Failure> {
    let tenant = TenantId::parse(tenant).map_err(|error| Failure::Usage(error.to_string()))?;
    let pem = std::fs::read_to_string(key).map_err(|error| Failure::Failed(format!("{}: {error}", key.display())))?;
    let signature = sign(&pem, key_id, &tenant, plugin, &digest(component));
    let signature = signature.map_err(|error| Failure::Failed(format!("{}: {error}", key.display())))?;
    Ok(signature.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::plugin::{public_key, verify};
    use crate::tenant::SignatureKey;

    fn keys() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys")
    }

    #[test]
    fn a_signature_is_of_this_tenant_this_plugin_and_these_bytes() {
        let signed = signature(&keys().join("ed25519.private.pem"), "k1", "acme", "filter", b"bytes").unwrap();
        let signed = signed.parse().unwrap();
        let pem = std::fs::read_to_string(keys().join("ed25519.public.pem")).unwrap();
        let key = SignatureKey { id: "k1".into(), public_key: public_key(&pem).unwrap() };
        let holds = |tenant: &str, plugin: &str, bytes: &[u8]| {
            let tenant = TenantId::parse(tenant).unwrap();
            verify(&tenant, plugin, &digest(bytes), std::slice::from_ref(&key), true, Some(&signed)).is_ok()
        };
        assert!(holds("acme", "filter", b"bytes"));
        assert!(
            !holds("other", "filter", b"bytes") && !holds("acme", "other", b"bytes") && !holds("acme", "filter", b"b")
        );
    }

    #[test]
    fn a_file_that_is_no_such_key_is_refused_with_how_to_make_one() {
        let error = signature(&keys().join("rsa.private.pem"), "k", "t", "p", b"").unwrap_err().to_string();
        assert!(error.contains("openssl genpkey -algorithm ed25519"), "{error}");
    }
}
