//! `postern admin …`: tokens of the admin API, its audit log, the nodes.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::Failure;
use super::output::{cell, json as print_json, line, note, table, time};
use super::plugin::done;
use super::remote::{Remote, RemoteArgs, part, plain};
use crate::commit::now_ms;
use crate::config::Environment;

/// Entries of the audit log that are asked for at once.
const AUDIT_PAGE: u32 = 500;

/// What an operator can do.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Tokens of the admin API.
    #[command(subcommand, disable_help_subcommand = true)]
    Token(TokenCommand),
    /// Show what the token in POSTERN_ADMIN_TOKEN is good for.
    #[command(after_help = "Example:\n  postern admin whoami")]
    Whoami(WhereArgs),
    /// Show who changed what, latest first, before and after.
    #[command(after_help = "Examples:\n  postern admin audit\n  postern admin audit --tenant acme -n 20 --json")]
    Audit(AuditArgs),
    /// List the nodes that live.
    #[command(after_help = "Example:\n  postern admin nodes")]
    Nodes(WhereArgs),
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it: it is shown only now.
    #[command(after_help = "\
Scopes: operator (everything), tenant-admin (one tenant's plugins, keys and settings), tenant-read (looking at one tenant).

Examples:
  postern admin token create ci-of-acme --scope tenant-admin --tenant acme --days 90
  postern admin token create on-call --scope operator")]
    Create(CreateArgs),
    /// List the tokens, without their secrets.
    #[command(after_help = "Example:\n  postern admin token list")]
    List(WhereArgs),
    /// Make a token worthless, at once and on all nodes.
    #[command(after_help = "Example:\n  postern admin token revoke ID")]
    Revoke(RevokeArgs),
}

/// Where.
#[derive(Debug, Clone, Args)]
pub struct WhereArgs {
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to make.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Who has it; stands in the audit log.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// operator, tenant-admin or tenant-read.
    #[arg(long, value_name = "SCOPE", value_parser = ["operator", "tenant-admin", "tenant-read"])]
    pub scope: String,
    /// The tenant that it is for.
    #[arg(long, value_name = "TENANT", required_if_eq_any = [("scope", "tenant-admin"), ("scope", "tenant-read")])]
    pub tenant: Option<String>,
    /// How many days it is good [default: until it is revoked].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3_660))]
    pub days: Option<u64>,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to revoke.
#[derive(Debug, Clone, Args)]
pub struct RevokeArgs {
    /// The token's id, as `list` shows it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to show.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Only what concerns this tenant.
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// How many; they are kept for 400 days.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    pub entries: u32,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Does what is asked for.
///
/// # Errors
/// What went wrong, and what to do.
pub fn run(command: &AdminCommand, env: &dyn Environment) -> Result<(), Failure> {
    match command {
        AdminCommand::Token(TokenCommand::Create(args)) => create(args, env),
        AdminCommand::Token(TokenCommand::List(args)) => list(args, env),
        AdminCommand::Token(TokenCommand::Revoke(args)) => revoke(args, env),
        AdminCommand::Whoami(args) => whoami(args, env),
        AdminCommand::Audit(args) => audit(args, env),
        AdminCommand::Nodes(args) => nodes(args, env),
    }
}

fn create(args: &CreateArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let expires_ms = args.days.map(|days| now_ms() + days * 86_400_000);
    let body = json!({ "name": args.name, "scope": args.scope, "tenant": args.tenant, "expires_ms": expires_ms });
    let answer = remote.send(Method::POST, "/tokens", Some(&body))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    note("this token is shown only now: keep it where secrets are kept, and use it as POSTERN_ADMIN_TOKEN");
    line(&plain(&cell(&answer["secret"])));
    Ok(())
}

fn list(args: &WhereArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.get("/tokens")?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let row = |token: &Value| {
        let fields = [&token["id"], &token["name"], &token["scope"], &token["tenant"]].map(cell);
        fields.into_iter().chain([time(&token["created_ms"]), time(&token["expires_ms"])]).collect()
    };
    let rows: Vec<Vec<String>> = answer["tokens"].as_array().into_iter().flatten().map(row).collect();
    table(&["ID", "NAME", "SCOPE", "TENANT", "MADE", "GOOD UNTIL"], &rows);
    Ok(())
}

fn revoke(args: &RevokeArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.send(Method::DELETE, &format!("/tokens/{}", part(&args.id)), None)?;
    done(&remote, &answer, &format!("the token {} is worthless on all nodes", args.id));
    Ok(())
}

fn whoami(args: &WhereArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.get("/whoami")?;
    let tenant = answer["tenant"].as_str().map(|tenant| format!(" of {tenant}")).unwrap_or_default();
    done(&remote, &answer, &format!("{}: {}{tenant}", cell(&answer["name"]), cell(&answer["scope"])));
    Ok(())
}

fn nodes(args: &WhereArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.get("/nodes")?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let row = |node: &Value| vec![cell(&node["server"]), cell(&node["connections"])];
    let rows: Vec<_> = answer["nodes"].as_array().into_iter().flatten().map(row).collect();
    table(&["NODE", "CONNECTIONS"], &rows);
    Ok(())
}

/// A value without what is long and seldom looked for; `--json` has it all.
fn brief(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let shown = members.iter().filter(|(name, _)| !["imports", "exports", "events"].contains(&name.as_str()));
            let shown = shown.map(|(name, value)| match (name.as_str(), value) {
                ("digest", Value::String(digest)) => (name.clone(), digest.chars().take(12).collect::<String>().into()),
                (_, value) => (name.clone(), brief(value)),
            });
            Value::Object(shown.collect())
        }
        Value::Array(items) => items.iter().map(brief).collect(),
        other => other.clone(),
    }
}

fn audit(args: &AuditArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let tenant = args.tenant.as_deref().map(|tenant| format!("&tenant={}", part(tenant))).unwrap_or_default();
    let (mut entries, mut left): (Vec<Value>, _) = (Vec::new(), args.entries);
    while left > 0 {
        let before = entries.last().map(|last| format!("&before={}", part(&cell(&last["id"])))).unwrap_or_default();
        let limit = left.min(AUDIT_PAGE);
        let page = remote.get(&format!("/audit?limit={limit}{tenant}{before}"))?;
        let found = page["entries"].as_array().cloned().unwrap_or_default();
        // A tenant's page can be shorter: what was before the tenant was made is not shown.
        left = if found.is_empty() { 0 } else { left.saturating_sub(limit) };
        entries.extend(found);
    }
    if remote.json {
        print_json(&json!({ "entries": entries }));
        return Ok(());
    }
    for entry in &entries {
        let fields = [&entry["by"], &entry["what"], &entry["tenant"], &entry["subject"]].map(cell);
        let head = format!("{} {}", time(&entry["at_ms"]), fields.join(" "));
        if !line(plain(&head).trim_end()) {
            return Ok(());
        }
        for (name, value) in [("before", &entry["before"]), ("after", &entry["after"])] {
            if !value.is_null() {
                line(&plain(&format!("  {name:6} {}", brief(value))));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_in_the_audit_log_is_one_short_line() {
        let version =
            json!({ "versions": [{ "digest": "0123456789abcdef", "imports": ["a"], "exports": ["b"], "version": 1 }] });
        assert_eq!(brief(&version), json!({ "versions": [{ "digest": "0123456789ab", "version": 1 }] }));
    }
}
