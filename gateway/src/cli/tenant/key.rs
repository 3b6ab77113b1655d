//! `postern tenant key …`: several keys at once, so that they can be rotated.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::{path, read};
use crate::cli::Failure;
use crate::cli::output::{cell, json as print_json, table};
use crate::cli::plugin::done;
use crate::cli::remote::{Remote, RemoteArgs, part};
use crate::config::Environment;

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Add a key, or put another in its place.
    #[command(after_help = "\
To rotate: put the new key, let tokens be signed with it, then delete the old one.

Examples:
  postern tenant key put acme 2026-11 --algorithm HS256 --secret-file secret.txt
  postern tenant key put acme idp --algorithm ES256 --pem-file idp.pem
  ACME_SECRET=… postern tenant key put acme 2026-11 --algorithm HS256 --secret-env ACME_SECRET")]
    Put(PutArgs),
    /// List a tenant's keys, without what is secret.
    #[command(after_help = "Example:\n  postern tenant key list acme")]
    List(OfArgs),
    /// Revoke a key: connections that it admitted end, on all nodes.
    #[command(after_help = "Example:\n  postern tenant key delete acme 2025-02")]
    Delete(DeleteArgs),
}

/// What to put.
#[derive(Debug, Clone, Args)]
pub struct PutArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// The key's id: the `kid` of the tokens that it verifies.
    #[arg(value_name = "ID")]
    pub id: String,
    /// HS256, HS384, HS512, RS256, …, ES256, ES384 or EdDSA; a JWK may say it itself.
    #[arg(long, value_name = "NAME", required_unless_present = "jwk_file")]
    pub algorithm: Option<String>,
    /// The variable with the shared secret.
    #[arg(long, value_name = "VARIABLE", group = "material")]
    pub secret_env: Option<String>,
    /// The file with the shared secret; space around it does not count.
    #[arg(long, value_name = "FILE", group = "material")]
    pub secret_file: Option<PathBuf>,
    /// The file with the public key.
    #[arg(long, value_name = "FILE", group = "material")]
    pub pem_file: Option<PathBuf>,
    /// The file with the public key as a JSON Web Key.
    #[arg(long, value_name = "FILE", group = "material")]
    pub jwk_file: Option<PathBuf>,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Whose.
#[derive(Debug, Clone, Args)]
pub struct OfArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to revoke.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// The key's id.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Does what is asked for.
pub(super) fn run(command: &KeyCommand, env: &dyn Environment) -> Result<(), Failure> {
    match command {
        KeyCommand::Put(args) => put(args, env),
        KeyCommand::List(args) => list(args, env),
        KeyCommand::Delete(args) => delete(args, env),
    }
}

fn put(args: &PutArgs, env: &dyn Environment) -> Result<(), Failure> {
    let mut key = match (&args.secret_env, &args.secret_file, &args.pem_file, &args.jwk_file) {
        (Some(variable), ..) => {
            let secret = env.get(variable).filter(|secret| !secret.is_empty());
            let secret =
                secret.ok_or_else(|| Failure::Usage(format!("the variable {variable} (--secret-env) is not set")))?;
            json!({ "secret": secret })
        }
        (_, Some(file), ..) => json!({ "secret": read(file)?.trim() }),
        (_, _, Some(file), _) => json!({ "pem": read(file)? }),
        (_, _, _, Some(file)) => json!({ "jwk": read(file)? }),
        _ => {
            return Err(Failure::Usage(
                "give the key: one of --secret-file, --secret-env, --pem-file, --jwk-file".into(),
            ));
        }
    };
    if let Some(algorithm) = &args.algorithm {
        key["algorithm"] = algorithm.as_str().into();
    }
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.send(Method::PUT, &key_path(&args.tenant, &args.id), Some(&key))?;
    done(&remote, &answer, &format!("the key {} of {} is good on all nodes", args.id, args.tenant));
    Ok(())
}

fn list(args: &OfArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.get(&format!("{}/keys", path(&args.tenant)))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let row = |key: &Value| vec![cell(&key["id"]), cell(&key["algorithm"]), cell(&key["kind"])];
    let rows: Vec<_> = answer["keys"].as_array().into_iter().flatten().map(row).collect();
    table(&["KEY", "ALGORITHM", "KIND"], &rows);
    Ok(())
}

fn delete(args: &DeleteArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.send(Method::DELETE, &key_path(&args.tenant, &args.id), None)?;
    done(
        &remote,
        &answer,
        &format!("the key {} of {} is revoked; connections that it admitted end", args.id, args.tenant),
    );
    Ok(())
}

fn key_path(tenant: &str, id: &str) -> String {
    format!("{}/keys/{}", path(tenant), part(id))
}
