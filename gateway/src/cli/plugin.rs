//! `postern plugin …` on a gateway that runs: push, activate, look at.

mod logs;
mod push;
mod rollout;
mod sign;

use std::collections::BTreeMap;
use std::path::Path;

use clap::{ArgAction, Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::Failure;
use super::output::{cell, json as print_json, line, size, table, time};
use super::plugin_build::contract;
use super::remote::{Remote, TenantArgs, part, plain};
use super::tenant::{assignment, put};
use crate::config::Environment;
use crate::decision::plugin::digest;

/// What can be done with the plugins of a gateway that runs.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Upload a component as the next version of a plugin.
    #[command(after_help = "\
The same component again is the version that there is already. With --activate it is rolled out at once: every node
loads it, and events go to it from the moment that all nodes are ready.

Examples:
  postern plugin push word-filter target/postern/word_filter.wasm --role handler --activate
  postern plugin push word-filter word_filter.wasm --sign-with release.pem --key-id release-2026
  postern plugin push word-filter word_filter.wasm --tenant acme --json")]
    Push(push::PushArgs),
    /// List a tenant's plugins, or the versions of one.
    #[command(after_help = "Examples:\n  postern plugin list\n  postern plugin list word-filter --tenant acme --json")]
    List(ListArgs),
    /// Show one plugin with its versions, or what a component's file imports and exports.
    #[command(
        after_help = "Examples:\n  postern plugin inspect word-filter\n  postern plugin inspect ./word_filter.wasm"
    )]
    Inspect(InspectArgs),
    /// Change what a plugin is for, or what it is told.
    #[command(after_help = "\
What is not named stays as it is; --setting replaces all settings, --event all events. KEY=VALUE is everything else
that [[plugins]] of a tenant's file can say: a value that is JSON is taken as JSON, null takes the key back to its default.

Examples:
  postern plugin set word-filter --setting words=3 --setting language=en
  postern plugin set audit --event 'message:*' --instances warm warm_max=8 warm_calls_max=10000
  postern plugin set word-filter call_limits.cpu_ms=20 call_limits.memory_bytes=null
  postern plugin set word-filter --auto-rollback true")]
    Set(Box<SetArgs>),
    /// Roll a version out to all nodes.
    #[command(after_help = "\
One line for each node tells how far it is. Events in flight end on the version that they began with.

Examples:
  postern plugin activate word-filter 3
  postern plugin activate word-filter 3 --deadline-ms 60000 --no-wait")]
    Activate(ActivateArgs),
    /// Go back to the version that was active before, at once.
    #[command(after_help = "Examples:\n  postern plugin rollback word-filter\n  postern plugin rollback word-filter 1")]
    Rollback(RollbackArgs),
    /// Give a version to some percent of the users, before all get it.
    #[command(after_help = "\
The same users get it each time. `activate` gives it to all; `--off` takes it from those.

Examples:
  postern plugin canary word-filter 4 5
  postern plugin canary word-filter --off")]
    Canary(CanaryArgs),
    /// Show what a tenant's plugins log, and how they fail, on all nodes.
    #[command(after_help = "\
Examples:
  postern plugin logs
  postern plugin logs word-filter --follow
  postern plugin logs -n 500 --json")]
    Logs(logs::LogsArgs),
    /// Sign a component, without a gateway, and print the signature.
    #[command(after_help = sign::EXAMPLES)]
    Sign(sign::SignArgs),
    /// Let a disabled plugin work again.
    #[command(after_help = "Example:\n  postern plugin enable word-filter")]
    Enable(NameArgs),
    /// Take a plugin out of the tenant's pipeline; its versions and state stay.
    #[command(after_help = "Example:\n  postern plugin disable word-filter")]
    Disable(NameArgs),
    /// Delete a plugin with all its versions.
    #[command(after_help = "Example:\n  postern plugin delete word-filter --yes")]
    Delete(DeleteArgs),
}

/// Which plugin.
#[derive(Debug, Clone, Args)]
pub struct NameArgs {
    /// The plugin's name.
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// What to list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// List the versions of this plugin.
    #[arg(value_name = "PLUGIN")]
    pub plugin: Option<String>,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// What to look at.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A plugin's name, or the path of a component (with a `.` or `/` in it).
    #[arg(value_name = "PLUGIN or FILE")]
    pub what: String,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// What to change.
#[derive(Debug, Clone, Args)]
pub struct SetArgs {
    /// Which, whose.
    #[command(flatten)]
    pub name: NameArgs,
    /// Something else by its full key, such as warm_max=8 or call_limits.cpu_ms=20.
    #[arg(value_name = "KEY=VALUE", value_parser = assignment)]
    pub options: Vec<(String, Value)>,
    /// What it does: authorizer, router or handler. Makes the plugin if there is none of that name.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// An event that it handles, or a beginning and `*`, instead of those that it declares; may be given several times.
    #[arg(long = "event", value_name = "PATTERN")]
    pub events: Vec<String>,
    /// Something that it is told; may be given several times.
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
    /// fresh: a new instance for each call; warm: instances are used again.
    #[arg(long, value_name = "fresh|warm")]
    pub instances: Option<String>,
    /// Does a version that keeps failing go back to the one before by itself?
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    pub auto_rollback: Option<bool>,
    /// Its place among the plugins of its role; lower comes first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub position: Option<i64>,
}

/// What to roll out.
#[derive(Debug, Clone, Args)]
pub struct ActivateArgs {
    /// The plugin's name.
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// The version's number.
    #[arg(value_name = "VERSION")]
    pub version: u64,
    /// How long nodes that are not ready are waited for, in milliseconds [default: the gateway's, 30000].
    #[arg(long, value_name = "MS")]
    pub deadline_ms: Option<u64>,
    /// Do not wait for the end of the roll-out.
    #[arg(long)]
    pub no_wait: bool,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// Where to go back to.
#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// The plugin's name.
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// The version's number [default: the one that was active before].
    #[arg(value_name = "VERSION")]
    pub version: Option<u64>,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// Who gets what.
#[derive(Debug, Clone, Args)]
pub struct CanaryArgs {
    /// The plugin's name.
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// The version's number.
    #[arg(value_name = "VERSION", required_unless_present = "off")]
    pub version: Option<u64>,
    /// How many percent of the users, with up to two decimals.
    #[arg(value_name = "PERCENT", required_unless_present = "off")]
    pub percent: Option<f64>,
    /// Give everybody the active version.
    #[arg(long, conflicts_with_all = ["version", "percent"])]
    pub off: bool,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// What to delete.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Which, whose.
    #[command(flatten)]
    pub name: NameArgs,
    /// Yes, really.
    #[arg(long)]
    pub yes: bool,
}

/// Does what is asked for.
///
/// # Errors
/// What went wrong, and what to do.
pub fn run(command: &RemoteCommand, env: &dyn Environment) -> Result<(), Failure> {
    match command {
        RemoteCommand::Push(args) => push::push(args, env),
        RemoteCommand::List(args) => list(args, env),
        RemoteCommand::Inspect(args) => inspect(args, env),
        RemoteCommand::Set(args) => set(args, env),
        RemoteCommand::Activate(args) => activate(args, env),
        RemoteCommand::Rollback(args) => roll_back(args, env),
        RemoteCommand::Canary(args) => canary(args, env),
        RemoteCommand::Logs(args) => logs::logs(args, env),
        RemoteCommand::Sign(args) => sign::run(args),
        RemoteCommand::Enable(args) => switch(args, "enable", env),
        RemoteCommand::Disable(args) => switch(args, "disable", env),
        RemoteCommand::Delete(args) => delete(args, env),
    }
}

/// The path of a plugin.
fn path(tenant: &str, plugin: &str) -> String {
    format!("/tenants/{}/plugins/{}", part(tenant), part(plugin))
}

fn list(args: &ListArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    if let Some(plugin) = &args.plugin {
        let answer = remote.get(&format!("{}/versions", path(&tenant, plugin)))?;
        if remote.json {
            print_json(&answer);
        } else {
            versions(&answer);
        }
        return Ok(());
    }
    let answer = remote.get(&format!("/tenants/{}/plugins", part(&tenant)))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let row = |plugin: &Value| {
        let state = state(plugin);
        let canary = match &plugin["canary"] {
            Value::Null => String::new(),
            canary => format!("{} for {} %", canary["version"], canary["percent"]),
        };
        let versions = plugin["versions"].as_array().map_or(0, Vec::len).to_string();
        vec![cell(&plugin["name"]), cell(&plugin["role"]), cell(&plugin["active"]), versions, canary, state]
    };
    let rows: Vec<_> = answer["plugins"].as_array().into_iter().flatten().map(row).collect();
    table(&["PLUGIN", "ROLE", "ACTIVE", "VERSIONS", "CANARY", "STATE"], &rows);
    Ok(())
}

/// What there is to know of a plugin that does not simply run: the most pressing first.
fn state(plugin: &Value) -> String {
    let all = |name: &str| plugin[name].as_array().into_iter().flatten();
    let mut parts = Vec::new();
    if plugin["disabled"] == true {
        parts.push("disabled".to_owned());
    }
    parts.extend(all("troubles").map(cell));
    let open = all("breakers").filter(|breaker| breaker["state"] != "closed");
    parts.extend(open.map(|breaker| format!("breaker of {} {}", cell(&breaker["hook"]), cell(&breaker["state"]))));
    let (rollout, ended) = (&plugin["rollout"], &plugin["rollout"]["ended"]);
    if rollout.is_object() && ended.is_null() {
        parts.push(format!("version {} on its way", rollout["version"]));
    } else if !cell(&ended["message"]).is_empty() {
        parts.push(format!("version {}: {}", rollout["version"], cell(&ended["message"])));
    }
    parts.join("; ")
}

/// The table of a plugin's versions.
fn versions(answer: &Value) {
    let active = &answer["active"];
    let row = |version: &Value| {
        let digest: String = cell(&version["digest"]).chars().take(12).collect();
        vec![
            format!("{}{}", version["version"], if version["version"] == *active { " (active)" } else { "" }),
            digest,
            size(version["bytes"].as_u64().unwrap_or(0)),
            time(&version["uploaded_ms"]),
            cell(&version["by"]),
            cell(&version["signed_by"]),
        ]
    };
    let rows: Vec<_> = answer["versions"].as_array().into_iter().flatten().map(row).collect();
    table(&["VERSION", "SHA-256", "SIZE", "UPLOADED", "BY", "SIGNED BY"], &rows);
}

fn inspect(args: &InspectArgs, env: &dyn Environment) -> Result<(), Failure> {
    if args.what.contains(['.', '/']) {
        return inspect_file(Path::new(&args.what), args.of.remote.json);
    }
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let answer = remote.get(&path(&tenant, &args.what))?;
    if remote.json {
        print_json(&answer);
        return Ok(());
    }
    let state = state(&answer);
    if !state.is_empty() {
        line(&format!("{:14} {}", "state", plain(&state)));
    }
    for (name, value) in answer.as_object().into_iter().flatten() {
        let shown = !matches!(name.as_str(), "versions" | "format" | "breakers" | "troubles" | "rollout");
        let value = if name.ends_with("_ms") { time(value) } else { cell(value) };
        if shown && !value.is_empty() && !line(&format!("{:14} {}", plain(name), plain(&value))) {
            return Ok(());
        }
    }
    line("");
    versions(&answer);
    let active = answer["versions"].as_array().into_iter().flatten().find(|one| one["version"] == answer["active"]);
    if let Some(active) = active {
        line("");
        line(&format!("imports        {}", plain(&cell(&active["imports"]))));
        line(&format!("exports        {}", plain(&cell(&active["exports"]))));
    }
    Ok(())
}

fn inspect_file(file: &Path, as_json: bool) -> Result<(), Failure> {
    let bytes = read_component(file)?;
    let shape = contract::check(&bytes).map_err(|differences| {
        let differences: Vec<_> = differences.iter().map(|difference| plain(difference)).collect();
        let text = format!("{} does not keep the contract ({}):", file.display(), contract::PACKAGE);
        Failure::Failed(format!("{text}\n  {}\nbuild it with `postern plugin build`", differences.join("\n  ")))
    })?;
    let digest = digest(&bytes);
    if as_json {
        print_json(
            &json!({ "file": file, "bytes": bytes.len(), "digest": digest, "imports": shape.imports, "exports": shape.exports }),
        );
        return Ok(());
    }
    line(&format!("{}\n  {} bytes, sha256 {digest}", file.display(), bytes.len()));
    line(&format!("  imports {}\n  exports {}", plain(&shape.imports.join(", ")), plain(&shape.exports.join(", "))));
    Ok(())
}

fn read_component(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| {
        Failure::Failed(format!(
            "{}: {error}\n`postern plugin build DIR` makes a component and says where it is",
            file.display()
        ))
    })
}

fn set(args: &SetArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.name.of, env)?;
    let mut body = Map::new();
    args.options.iter().for_each(|(key, value)| put(&mut body, key, value.clone()));
    let mut say = |name: &str, value: Option<Value>| body.extend(value.map(|value| (name.to_owned(), value)));
    say("role", args.role.clone().map(Value::from));
    say("events", (!args.events.is_empty()).then(|| args.events.clone().into()));
    let settings: BTreeMap<_, _> = args.settings.iter().cloned().collect();
    say("settings", (!settings.is_empty()).then(|| json!(settings)));
    say("instances", args.instances.clone().map(Value::from));
    say("auto_rollback", args.auto_rollback.map(Value::from));
    say("position", args.position.map(Value::from));
    let answer = remote.send(Method::PUT, &path(&tenant, &args.name.plugin), Some(&Value::Object(body)))?;
    done(&remote, &answer, &format!("{} of {tenant} is changed on all nodes", args.name.plugin));
    Ok(())
}

fn activate(args: &ActivateArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let mut body = json!({ "version": args.version });
    if let Some(deadline_ms) = args.deadline_ms {
        body["deadline_ms"] = deadline_ms.into();
    }
    let path = path(&tenant, &args.plugin);
    let begun = remote.send(Method::POST, &format!("{path}/activate"), Some(&body))?;
    if args.no_wait {
        let plugin = &args.plugin;
        done(
            &remote,
            &begun,
            &format!(
                "version {} of {plugin} is being rolled out; `postern plugin inspect {plugin}` shows it",
                args.version
            ),
        );
        return Ok(());
    }
    let ended = rollout::watch(&remote, &path, &args.plugin, args.version)?;
    if remote.json {
        print_json(&ended);
    }
    Ok(())
}

fn roll_back(args: &RollbackArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let body = args.version.map_or_else(|| json!({}), |version| json!({ "version": version }));
    let answer = remote.send(Method::POST, &format!("{}/rollback", path(&tenant, &args.plugin)), Some(&body))?;
    done(&remote, &answer, &format!("{} of {tenant} is back at version {}", args.plugin, cell(&answer["active"])));
    Ok(())
}

fn canary(args: &CanaryArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let path = format!("{}/canary", path(&tenant, &args.plugin));
    let (Some(version), Some(percent)) = (args.version, args.percent) else {
        let answer = remote.send(Method::DELETE, &path, None)?;
        done(&remote, &answer, &format!("all users of {} have the active version", args.plugin));
        return Ok(());
    };
    let answer = remote.send(Method::PUT, &path, Some(&json!({ "version": version, "percent": percent })))?;
    let text = format!("version {version} of {} goes to {percent} % of the users", args.plugin);
    done(&remote, &answer, &text);
    Ok(())
}

fn switch(args: &NameArgs, what: &str, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let answer = remote.send(Method::POST, &format!("{}/{what}", path(&tenant, &args.plugin)), None)?;
    done(&remote, &answer, &format!("{} of {tenant} is {what}d on all nodes", args.plugin));
    Ok(())
}

fn delete(args: &DeleteArgs, env: &dyn Environment) -> Result<(), Failure> {
    let plugin = &args.name.plugin;
    if !args.yes {
        let text = format!(
            "this deletes {plugin} and all its versions for good: say --yes, or `postern plugin disable {plugin}` instead"
        );
        return Err(Failure::Usage(text));
    }
    let (remote, tenant) = Remote::of_tenant(&args.name.of, env)?;
    let answer = remote.send(Method::DELETE, &path(&tenant, plugin), None)?;
    done(&remote, &answer, &format!("{plugin} of {tenant} is deleted"));
    Ok(())
}

/// The end of a command that changed something.
pub(super) fn done(remote: &Remote, answer: &Value, text: &str) {
    if remote.json {
        print_json(answer);
    } else {
        line(&plain(text));
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("a setting has the form NAME=VALUE".into()),
    }
}
