//! `postern check`: are the settings right?

use std::fmt::Write as _;

use super::plugin_build::contract;
use crate::config::{self, Config, Environment, Flags, Mistake, Mistakes, Place, role_name};
use crate::decision::plugin::inspect;
use crate::tenant::{KeySetSource, PluginSettings, Role, Tenant};

/// Checks everything and says what is there.
///
/// # Errors
/// All mistakes.
pub fn check(flags: &Flags, env: &dyn Environment) -> Result<String, Mistakes> {
    let config = config::load(flags, env)?;
    let mut mistakes = Vec::new();
    for tenant in &config.tenants {
        for plugin in &tenant.plugins {
            let problems = problems(plugin, config.plugins.component_bytes_max);
            mistakes
                .extend(problems.into_iter().map(|problem| Mistake { place: place(&config, tenant, plugin), problem }));
        }
    }
    if mistakes.is_empty() { Ok(summary(&config)) } else { Err(Mistakes(mistakes)) }
}

fn place(config: &Config, tenant: &Tenant, plugin: &PluginSettings) -> Place {
    let file = config.tenants_dir.join(format!("{}.toml", tenant.id));
    let key = format!("plugins.{}.component ({})", plugin.name, plugin.component.display());
    Place { source: file.display().to_string().into(), line: None, key }
}

/// Would the gateway take the component, as far as that can be seen without compiling it; does it keep the contract, and
/// have what its role needs?
fn problems(plugin: &PluginSettings, bytes_max: usize) -> Vec<String> {
    let bytes = match std::fs::read(&plugin.component) {
        Ok(bytes) => bytes,
        Err(error) => return vec![error.to_string()],
    };
    if let Err(error) = inspect(&bytes, bytes_max) {
        return vec![error.to_string()];
    }
    let exports = match contract::check(&bytes) {
        Ok(shape) => shape.exports,
        Err(differences) => return differences,
    };
    let needed: &[&str] = match plugin.role {
        Role::Authorizer => &["authorization"],
        Role::Router => &["routing"],
        Role::Handler => &["events", "timer-events", "connection-events"],
    };
    let has = |interface: &&str| exports.iter().any(|export| export.contains(&format!("/{interface}@")));
    if needed.iter().any(has) {
        return Vec::new();
    }
    vec![format!("as {} it must export one of {needed:?}, and exports {exports:?}", role_name(plugin.role))]
}

/// What the settings come to, for people.
pub(crate) fn summary(config: &Config) -> String {
    let mut text = String::new();
    for warning in &config.warnings {
        line(&mut text, format_args!("warning: {warning}"));
    }
    let engine = if config.redis_url.is_some() { "Redis" } else { "the embedded engine" };
    line(&mut text, format_args!("listens on {} with {engine}", config.listen));
    for tenant in &config.tenants {
        describe(&mut text, tenant);
    }
    let plugins: usize = config.tenants.iter().map(|tenant| tenant.plugins.len()).sum();
    line(&mut text, format_args!("all is well: {} tenants, {plugins} plugins", config.tenants.len()));
    text
}

fn describe(text: &mut String, tenant: &Tenant) {
    let mut keys: Vec<String> = tenant.auth.all_keys().map(|key| format!("{:?}", key.algorithm)).collect();
    let urls = tenant.auth.key_sets.iter().filter(|set| matches!(set.source, KeySetSource::Url { .. }));
    keys.extend(urls.map(|set| format!("those of {}", set.source)));
    line(
        text,
        format_args!("tenant {}: keys {}", tenant.id, if keys.is_empty() { "none".into() } else { keys.join(", ") }),
    );
    for plugin in &tenant.plugins {
        line(text, format_args!("  {} {}: {}", role_name(plugin.role), plugin.name, plugin.component.display()));
    }
    if !tenant.plugins.iter().any(|plugin| plugin.role == Role::Handler)
        && tenant.relay.is_empty()
        && tenant.broadcast.is_empty()
    {
        line(text, format_args!("  no handler, no relay and no broadcast: clients can only listen"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{line}");
}
