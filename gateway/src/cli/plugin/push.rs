//! `postern plugin push`.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::{path, read_component, rollout, sign};
use crate::cli::Failure;
use crate::cli::output::{cell, json as print_json, line, note, note_again, size};
use crate::cli::remote::{Remote, TenantArgs, is_watched, part, plain};
use crate::config::Environment;
use crate::decision::plugin::digest;

/// What to upload.
#[derive(Debug, Clone, Args)]
pub struct PushArgs {
    /// The plugin's name.
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// The component.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What a plugin that is new does: authorizer, router or handler.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Roll it out at once.
    #[arg(long)]
    pub activate: bool,
    /// Sign it with this private key (Ed25519, PKCS #8 in PEM).
    #[arg(long, value_name = "FILE", requires = "key_id")]
    pub sign_with: Option<PathBuf>,
    /// The name of that key in the tenant's `signature_keys`.
    #[arg(long, value_name = "ID")]
    pub key_id: Option<String>,
    /// A signature that was made before, as `postern plugin sign` prints it.
    #[arg(long, value_name = "ID:BASE64", conflicts_with = "sign_with")]
    pub signature: Option<String>,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// Uploads, and rolls out if that is asked for.
pub(super) fn push(args: &PushArgs, env: &dyn Environment) -> Result<(), Failure> {
    let component = read_component(&args.file)?;
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let signature = match (&args.sign_with, &args.key_id, &args.signature) {
        (Some(key), Some(id), _) => Some(sign::signature(key, id, &tenant, &args.plugin, &component)?),
        (_, _, given) => given.clone(),
    };
    let mut headers: Vec<_> = signature.into_iter().map(|signature| ("postern-signature", signature)).collect();
    headers.push(("postern-digest", digest(&component)));
    let mut query = Vec::new();
    query.extend(args.role.as_deref().map(|role| format!("role={}", part(role))));
    query.extend(args.activate.then(|| "activate=true".to_owned()));
    let path = path(&tenant, &args.plugin);
    let address = match query.as_slice() {
        [] => format!("{path}/versions"),
        query => format!("{path}/versions?{}", query.join("&")),
    };
    let pushed = upload(&remote, &args.plugin, &address, &headers, component.into())?;
    let Some(version) = pushed["version"].as_u64() else {
        return Err(Failure::Failed(
            "the gateway did not say which version it made of it: is it of another version?".into(),
        ));
    };
    if !remote.json {
        tell(&args.plugin, &pushed);
    }
    // What is active already is not rolled out again.
    let rolled_out = match args.activate && pushed["state"] != "active" {
        true => Some(rollout::watch(&remote, &path, &args.plugin, version)?),
        false => None,
    };
    if remote.json {
        print_json(&json!({ "pushed": pushed, "rollout": rolled_out }));
    } else if pushed["state"] == "active" {
        note("it is active already");
    } else if !args.activate {
        note(&format!("it is not active yet: `postern plugin activate {} {version}`", args.plugin));
    }
    Ok(())
}

fn upload(
    remote: &Remote,
    plugin: &str,
    address: &str,
    headers: &[(&'static str, String)],
    component: Bytes,
) -> Result<Value, Failure> {
    let total = component.len();
    let percent = |sent: usize| sent * 100 / total.max(1);
    let shown = !remote.json;
    if shown && !is_watched() {
        note(&format!("{plugin}: uploading {}", size(total as u64)));
    }
    let mut progress = |sent: usize| {
        if shown && is_watched() {
            let then = if sent == total { ", being checked" } else { "" };
            let (sent_text, total) = (size(sent as u64), size(total as u64));
            note_again(&format!("{plugin}: uploading, {sent_text} of {total} ({} %){then}", percent(sent)));
        }
    };
    progress(0);
    let pushed = remote.upload(address, headers, component, &mut progress);
    if shown && is_watched() {
        note("");
    }
    pushed
}

fn tell(plugin: &str, pushed: &Value) {
    let what = if pushed["existed"] == true { "is what was pushed before" } else { "is stored" };
    let bytes = size(pushed["bytes"].as_u64().unwrap_or(0));
    line(&plain(&format!(
        "{plugin}: version {} {what}: {bytes}, sha256 {}",
        pushed["version"],
        cell(&pushed["digest"])
    )));
    line(&format!("  imports {}", plain(&cell(&pushed["imports"]))));
    line(&format!("  exports {}", plain(&cell(&pushed["exports"]))));
}
