//! `postern tenant …`: tenants that are made over the admin API.

mod key;
mod revocation;
mod settings;

use std::path::PathBuf;

pub(super) use settings::{assignment, put};

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use super::Failure;
use super::output::{cell, json as print_json, line, table, time};
use super::plugin::done;
use super::remote::{Remote, RemoteArgs, TenantArgs, part, plain};
use crate::config::Environment;

/// What can be done with tenants.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant.
    #[command(after_help = "\
The settings are those of a tenant file (TOML or JSON), without `name` and `[[plugins]]`. Clients can connect when the
tenant has a key and an authorizer.

Examples:
  postern tenant create acme
  postern tenant create acme --file acme.toml
  postern tenant create acme limits.connections=500 relay='[\"chat:*\"]'")]
    Create(CreateArgs),
    /// List all tenants: of files and of the API.
    #[command(after_help = "Examples:\n  postern tenant list\n  postern tenant list --json")]
    List(ListArgs),
    /// Show a tenant's settings, without its secrets.
    #[command(after_help = "Example:\n  postern tenant show acme")]
    Show(NameArgs),
    /// Change a tenant's settings; what is not named stays.
    #[command(after_help = "\
A value that is JSON is taken as JSON, everything else as text.

Examples:
  postern tenant set acme limits.connections=500 history_on_join=20
  postern tenant set acme relay='[\"chat:*\"]' --unset hosts
  postern tenant set acme --file changes.toml")]
    Set(settings::SetArgs),
    /// The keys with which a tenant's tokens are verified.
    #[command(subcommand, disable_help_subcommand = true)]
    Key(key::KeyCommand),
    /// Tokens of clients that are good no more, before their time.
    #[command(subcommand, disable_help_subcommand = true)]
    Revocation(revocation::RevocationCommand),
    /// Take a tenant out of service: its clients are told to go, nothing is lost.
    #[command(after_help = "Example:\n  postern tenant disable acme")]
    Disable(NameArgs),
    /// Take a disabled tenant into service again.
    #[command(after_help = "Example:\n  postern tenant enable acme")]
    Enable(NameArgs),
    /// Delete a tenant with its plugins.
    #[command(after_help = "Example:\n  postern tenant delete acme --yes")]
    Delete(DeleteArgs),
    /// Show what a tenant's plugins used, day by day.
    #[command(
        after_help = "Examples:\n  postern tenant usage acme\n  postern tenant usage acme --from 2026-11-01 --to 2026-11-30 --json"
    )]
    Usage(UsageArgs),
}

/// What to make.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Its name: 1 to 32 of `a-z`, `0-9` and `-`, which is neither first nor last.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// What it begins with.
    #[command(flatten)]
    pub given: settings::Given,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What to list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Which tenant.
#[derive(Debug, Clone, Args)]
pub struct NameArgs {
    /// The tenant's name [default: as --tenant].
    #[arg(value_name = "TENANT")]
    pub name: Option<String>,
    /// Which, if it is not said before.
    #[command(flatten)]
    pub of: TenantArgs,
}

impl NameArgs {
    fn remote(&self, env: &dyn Environment) -> Result<(Remote, String), Failure> {
        let tenant = self.name.clone().or_else(|| self.of.tenant.clone());
        Remote::of_tenant(&TenantArgs { tenant, remote: self.of.remote.clone() }, env)
    }
}

/// What to delete.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The tenant's name.
    #[arg(value_name = "TENANT")]
    pub tenant: String,
    /// Yes, really.
    #[arg(long)]
    pub yes: bool,
    /// Where the gateway is.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// Which days.
#[derive(Debug, Clone, Args)]
pub struct UsageArgs {
    /// Which tenant.
    #[command(flatten)]
    pub name: NameArgs,
    /// The first day [default: 30 days ago].
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub from: Option<String>,
    /// The last day [default: today, in UTC].
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub to: Option<String>,
}

/// Does what is asked for.
///
/// # Errors
/// What went wrong, and what to do.
pub fn run(command: &TenantCommand, env: &dyn Environment) -> Result<(), Failure> {
    match command {
        TenantCommand::Create(args) => create(args, env),
        TenantCommand::List(args) => list(args, env),
        TenantCommand::Show(args) => show(args, env),
        TenantCommand::Set(args) => settings::set(args, env),
        TenantCommand::Key(command) => key::run(command, env),
        TenantCommand::Revocation(command) => revocation::run(command, env),
        TenantCommand::Disable(args) => switch(args, "disable", env),
        TenantCommand::Enable(args) => switch(args, "enable", env),
        TenantCommand::Delete(args) => delete(args, env),
        TenantCommand::Usage(args) => usage(args, env),
    }
}

/// The path of a tenant.
fn path(tenant: &str) -> String {
    format!("/tenants/{}", part(tenant))
}

fn create(args: &CreateArgs, env: &dyn Environment) -> Result<(), Failure> {
    let settings = args.given.document()?;
    let remote = Remote::new(&args.remote, env)?;
    let body = json!({ "name": args.tenant, "settings": settings });
    let answer = remote.send(Method::POST, "/tenants", Some(&body))?;
    let tenant = &args.tenant;
    let next = match settings["auth"]["keys"].as_array() {
        Some(keys) if !keys.is_empty() => {
            format!("postern plugin push authorizer FILE --tenant {tenant} --role authorizer --activate")
        }
        _ => format!("postern tenant key put {tenant} ID --algorithm HS256 --secret-file FILE"),
    };
    done(&remote, &answer, &format!("{tenant} is there. Next: {next}"));
    Ok(())
}

fn list(args: &ListArgs, env: &dyn Environment) -> Result<(), Failure> {
    let remote = Remote::new(&args.remote, env)?;
    let mut tenants: Vec<Value> = Vec::new();
    loop {
        let after = tenants.last().map(|last| format!("?after={}", part(&cell(&last["name"])))).unwrap_or_default();
        let page = remote.get(&format!("/tenants{after}"))?;
        let found = page["tenants"].as_array().cloned().unwrap_or_default();
        let is_last = page["more"] != true || found.is_empty();
        tenants.extend(found);
        if is_last {
            break;
        }
    }
    if remote.json {
        print_json(&json!({ "tenants": tenants }));
        return Ok(());
    }
    let row = |tenant: &Value| {
        let state = match (&tenant["unreadable"], &tenant["troubles"]) {
            (Value::Null, Value::Null) if tenant["disabled"] == true => "disabled".to_owned(),
            (Value::Null, troubles) => cell(troubles),
            (unreadable, _) => cell(unreadable),
        };
        vec![cell(&tenant["name"]), cell(&tenant["source"]), cell(&tenant["plugins"]), state]
    };
    table(&["TENANT", "SOURCE", "PLUGINS", "STATE"], &tenants.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn show(args: &NameArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = args.remote(env)?;
    let answer = remote.get(&path(&tenant))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let state = if answer["disabled"] == true { "disabled" } else { "in service" };
    let changed = time(&answer["changed_ms"]);
    let mut rows = vec![("name".to_owned(), cell(&answer["name"])), ("source".to_owned(), cell(&answer["source"]))];
    rows.push(("state".to_owned(), state.to_owned()));
    rows.extend((!changed.is_empty()).then(|| ("changed".to_owned(), changed)));
    settings::flat("", &answer["settings"], &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        if !line(&plain(&format!("{name:width$}  {value}"))) {
            return Ok(());
        }
    }
    for (kind, word) in [("mistakes", "mistake"), ("warnings", "warning"), ("troubles", "trouble")] {
        for text in answer[kind].as_array().into_iter().flatten() {
            line(&plain(&format!("{word}: {}", cell(text))));
        }
    }
    Ok(())
}

fn switch(args: &NameArgs, what: &str, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = args.remote(env)?;
    let answer = remote.send(Method::POST, &format!("{}/{what}", path(&tenant)), None)?;
    done(&remote, &answer, &format!("{tenant} is {what}d on all nodes"));
    Ok(())
}

fn delete(args: &DeleteArgs, env: &dyn Environment) -> Result<(), Failure> {
    let tenant = &args.tenant;
    if !args.yes {
        let text = format!(
            "this deletes {tenant} and its plugins for good: say --yes, or `postern tenant disable {tenant}` instead"
        );
        return Err(Failure::Usage(text));
    }
    let remote = Remote::new(&args.remote, env)?;
    let answer = remote.send(Method::DELETE, &path(tenant), None)?;
    done(&remote, &answer, &format!("{tenant} is deleted"));
    Ok(())
}

fn usage(args: &UsageArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = args.name.remote(env)?;
    let days = [("from", &args.from), ("to", &args.to)];
    let query: Vec<_> = days.iter().filter_map(|(name, day)| Some(format!("{name}={}", part(day.as_ref()?)))).collect();
    let answer = remote.get(&format!("{}/usage?{}", path(&tenant), query.join("&")))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let mut is_empty = true;
    for day in answer["days"].as_array().into_iter().flatten() {
        for (plugin, used) in day["plugins"].as_object().into_iter().flatten() {
            is_empty = false;
            let used: Vec<_> =
                used.as_object().into_iter().flatten().map(|(what, count)| format!("{what} {count}")).collect();
            let text = format!("{}  {plugin}  {}", cell(&day["day"]), used.join(", "));
            if !line(&plain(&text)) {
                return Ok(());
            }
        }
    }
    if is_empty {
        line(&format!("nothing of {tenant} was used in these days"));
    }
    let stored = answer["stored"].as_object().into_iter().flatten();
    let stored: Vec<_> = stored.map(|(what, count)| format!("{what} {}", cell(count))).collect();
    if !stored.is_empty() {
        line(&plain(&format!("stored now  {}", stored.join(", "))));
    }
    Ok(())
}

/// Reads a file that the command line names.
fn read(file: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))
}
