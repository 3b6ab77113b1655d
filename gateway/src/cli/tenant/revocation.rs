//! `postern tenant revocation …`: tokens that are good no more, before their time.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::path;
use crate::cli::Failure;
use crate::cli::output::{cell, json as print_json, table, time};
use crate::cli::plugin::done;
use crate::cli::remote::{Remote, RemoteArgs, part};
use crate::commit::now_ms;
use crate::config::Environment;

/// What can be done with revocations.
#[derive(Debug, Subcommand)]
pub enum RevocationCommand {
    /// Revoke tokens: connections that hold them end, on all nodes.
    #[command(after_help = "\
Whose tokens, or which one (`jti`). A user's tokens are revoked whenever they were issued, so that the user is kept out;
with --only-earlier whoever logs in again gets in.

Examples:
  postern tenant revocation add acme --subject asha --hours 24
  postern tenant revocation add acme --subject asha --only-earlier
  postern tenant revocation add acme --token-id 7f0c1b --hours 2")]
    Add(AddArgs),
    /// List what is revoked.
    #[command(after_help = "Example:\n  postern tenant revocation list acme")]
    List(ListArgs),
    /// Take a revocation back.
    #[command(after_help = "Example:\n  postern tenant revocation delete acme --subject asha")]
    Delete(DeleteArgs),
}

/// Which tokens.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// All of this user.
    #[arg(long, value_name = "USER")]
    pub subject: Option<String>,
    /// The one with this id (`jti`).
    #[arg(long, value_name = "ID")]
    pub token_id: Option<String>,
}

/// What to revoke.
#[derive(Debug, Clone, Args)]
pub struct AddArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Which.
    #[command(flatten)]
    pub which: WhichArgs,
    /// For how long: as long as such tokens live is long enough.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=87_840))]
    pub hours: u64,
    /// Only tokens that were issued before now.
    #[arg(long, requires = "subject")]
    pub only_earlier: bool,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Whose.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to take back.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Which.
    #[command(flatten)]
    pub which: WhichArgs,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Does what is asked for.
pub(super) fn run(command: &RevocationCommand, env: &dyn Environment) -> Result<(), Failure> {
    match command {
        RevocationCommand::Add(args) => add(args, env),
        RevocationCommand::List(args) => list(args, env),
        RevocationCommand::Delete(args) => delete(args, env),
    }
}

impl WhichArgs {
    /// The key and the value by which the API names them.
    fn named(&self) -> (&'static str, &str) {
        match (&self.subject, &self.token_id) {
            (Some(subject), _) => ("subject", subject),
            (None, id) => ("token_id", id.as_deref().unwrap_or_default()),
        }
    }

    fn in_words(&self) -> String {
        match self.named() {
            ("subject", subject) => format!("the tokens of {subject}"),
            (_, id) => format!("the token {id}"),
        }
    }
}

fn add(args: &AddArgs, env: &dyn Environment) -> Result<(), Failure> {
    let now = now_ms();
    let (name, value) = args.which.named();
    let mut body = json!({ name: value, "until_ms": now + args.hours * 3_600_000 });
    if args.only_earlier {
        body["issued_before_s"] = (now / 1_000).into();
    }
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.send(Method::POST, &format!("{}/revocations", path(&args.tenant)), Some(&body))?;
    let until = time(&answer["until_ms"]);
    done(&remote, &answer, &format!("{}: good no more on all nodes, until {until}", args.which.in_words()));
    Ok(())
}

fn list(args: &ListArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let mut all: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let page = remote.get(&format!("{}/revocations?limit=200{after}", path(&args.tenant)))?;
        all.extend(page["revocations"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", part(next)),
            None => break,
        }
    }
    if remote.json {
        print_json(&json!({ "revocations": all }));
        return Ok(());
    }
    let row = |one: &Value| {
        let before = one["issued_before_s"].as_u64().map(|seconds| time(&(seconds * 1_000).into()));
        vec![cell(&one["subject"]), cell(&one["token_id"]), before.unwrap_or_default(), time(&one["until_ms"])]
    };
    table(&["USER", "TOKEN", "ISSUED BEFORE", "UNTIL"], &all.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn delete(args: &DeleteArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let (name, value) = args.which.named();
    let address = format!("{}/revocations?{name}={}", path(&args.tenant), part(value));
    let answer = remote.send(Method::DELETE, &address, None)?;
    done(&remote, &answer, &format!("{}: good again", args.which.in_words()));
    Ok(())
}
