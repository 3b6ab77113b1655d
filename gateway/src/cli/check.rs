//! `postern check`: are the settings right?

use std::fmt::Write as _;

use crate::config::{self, Config, Environment, Flags, Mistakes, role_name};
use crate::tenant::{Role, Tenant};

/// Checks everything and says what is there.
///
/// # Errors
/// All mistakes.
pub fn check(flags: &Flags, env: &dyn Environment) -> Result<String, Mistakes> {
    config::load(flags, env).map(|config| summary(&config))
}

fn summary(config: &Config) -> String {
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
    let keys: Vec<String> = tenant.auth.keys.iter().map(|key| format!("{:?}", key.algorithm)).collect();
    line(
        text,
        format_args!("tenant {}: keys {}", tenant.id, if keys.is_empty() { "none".into() } else { keys.join(", ") }),
    );
    for plugin in &tenant.plugins {
        line(text, format_args!("  {} {}: {}", role_name(plugin.role), plugin.name, plugin.component.display()));
    }
    if !tenant.plugins.iter().any(|plugin| plugin.role == Role::Handler) && tenant.relay.is_empty() {
        line(text, format_args!("  no handler and no relay: clients can only listen"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{line}");
}
