//! The command line: what can be said, and what comes of it.

use std::fmt;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::Flags;
use crate::decision::plugin::CompileOrders;

pub mod admin;
pub mod check;
mod output;
pub mod plugin;
pub mod plugin_build;
pub mod plugin_new;
pub mod plugin_test;
pub mod remote;
pub mod serve;
pub mod tenant;
pub mod token;

/// The version of the plugins' contract, `wit/`.
pub const CONTRACT_VERSION: &str = plugin_build::contract::VERSION;

/// A multi-tenant real-time gateway whose rules are WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "postern", version, disable_help_subcommand = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  postern serve --demo --tenants examples/tenants
  postern check --config postern.toml
  postern token --tenant green-valley --sub alice --claim role=resident --claim 'flats=[\"A-101\"]'
  postern plugin new door-bell
  postern plugin build door-bell
  postern plugin test door-bell
  postern tenant create acme --file acme.toml
  postern plugin push door-bell door-bell/target/postern/door-bell.wasm --tenant acme --role handler --activate

`tenant`, `admin` and most of `plugin` call the admin API of a gateway that runs: POSTERN_URL says where it is,
POSTERN_ADMIN_TOKEN is the token.

Exit codes: 0 done, 1 failed, 64 wrong arguments or settings.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a gateway.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(SettingsArgs),
    /// Check the settings and all tenants, and report every mistake with its file and key.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(SettingsArgs),
    /// Make a token for one of a tenant's clients, and print it.
    #[command(after_help = TOKEN_EXAMPLES)]
    Token(token::TokenArgs),
    /// Build plugins, and push them to a gateway that runs.
    #[command(subcommand, disable_help_subcommand = true)]
    Plugin(PluginCommand),
    /// Compile one component; the gateway starts this, nobody else.
    #[command(hide = true, after_help = "Example: none. It speaks with the gateway that started it.")]
    CompileComponent(CompileOrders),
    /// Tenants of a gateway that runs.
    #[command(subcommand, disable_help_subcommand = true)]
    Tenant(tenant::TenantCommand),
    /// Tokens, audit log and nodes of a gateway that runs.
    #[command(subcommand, disable_help_subcommand = true)]
    Admin(admin::AdminCommand),
    /// Print the versions of the gateway and of the plugins' contract.
    #[command(after_help = "Example:\n  postern version")]
    Version,
}

const SERVE_EXAMPLES: &str = "\
The command line wins over the environment, the environment over the file.

Examples:
  postern serve --tenants examples/tenants --demo
  postern serve --config /etc/postern/postern.toml --port 8080
  REDIS_URL=redis://redis:6379 CORS_ORIGIN=https://app.example.com postern serve --tenants /etc/postern/tenants";

const CHECK_EXAMPLES: &str = "\
Exit code 0 if all is well, 1 if there is a mistake.

Examples:
  postern check --tenants examples/tenants
  postern check --config /etc/postern/postern.toml";

const TOKEN_EXAMPLES: &str = "\
Signs with the tenant's first shared secret (HS256, HS384 or HS512), or with the key that --key names.
A claim's value that is JSON is taken as JSON, everything else as text.

Examples:
  postern token --tenants examples/tenants --tenant green-valley --sub gita --claim role=guard --claim society_id=gv
  postern token --tenant green-valley --sub alice --claim role=resident --claim 'flats=[\"A-101\"]' --ttl 15m
  postern token --tenant team-hub --sub bob --claim 'projects=[\"p1\"]' --key 2025-02
  ACME_SECRET=… postern token --tenant acme --sub asha --secret-env ACME_SECRET";

/// The settings that the command line can give.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingsArgs {
    /// The gateway's settings [env: POSTERN_CONFIG].
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// The directory of the tenant files, NAME.toml each [env: POSTERN_TENANTS] [default: ./tenants].
    #[arg(long, value_name = "DIR")]
    pub tenants: Option<String>,
    /// The directory of the embedded engine's data [env: POSTERN_DATA] [default: ./data].
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// The address to listen on [env: HOST] [default: 0.0.0.0].
    #[arg(long, value_name = "IP")]
    pub host: Option<String>,
    /// The port to listen on; 0: any that is free [env: PORT] [default: 3000].
    #[arg(long, value_name = "N")]
    pub port: Option<String>,
    /// Work on this Redis instead of the embedded engine: redis://HOST, redis+sentinel://HOST,…/SERVICE or
    /// redis+cluster://HOST,…; rediss for TLS [env: REDIS_URL, which keeps a password out of `ps`].
    #[arg(long, value_name = "URL")]
    pub redis_url: Option<String>,
    /// Origins that browsers may connect from, separated by commas; `*`: all [env: CORS_ORIGIN].
    #[arg(long, value_name = "ORIGINS")]
    pub cors_origin: Option<String>,
    /// Open connections at the same time [env: MAX_CONNECTIONS] [default: 10000].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<String>,
    /// What is logged, for example `info,postern=debug` [env: POSTERN_LOG] [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// This is a demonstration: weak secrets are only warned of [env: POSTERN_DEMO].
    #[arg(long, action = ArgAction::SetTrue)]
    pub demo: bool,
}

impl SettingsArgs {
    /// What was given, for [`config::load`](crate::config::load).
    pub fn flags(&self) -> Flags {
        let given = [
            ("config", &self.config),
            ("tenants", &self.tenants),
            ("data", &self.data),
            ("host", &self.host),
            ("port", &self.port),
            ("redis-url", &self.redis_url),
            ("cors-origin", &self.cors_origin),
            ("max-connections", &self.max_connections),
            ("log", &self.log),
        ];
        let mut flags: Flags = given.into_iter().filter_map(|(flag, value)| Some((flag, value.clone()?))).collect();
        if self.demo {
            flags.insert("demo", "true".into());
        }
        flags
    }
}

/// What can be done with plugins.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Begin a plugin: a project that builds, with the contract and tests.
    #[command(after_help = "\
The plugin is named after the directory.

Examples:
  postern plugin new door-bell
  postern plugin new plugins/door-bell --language javascript
  postern plugin new door-bell --language python")]
    New(PluginNewArgs),
    /// Build plugins in Rust, JavaScript or Python into components, and check them against the contract.
    #[command(after_help = "\
Examples:
  postern plugin build plugins/visitor-approvals
  postern plugin build plugins/* --out target/components
  postern plugin build examples/plugins/word-filter-js
  postern plugin build my-plugin --json")]
    Build(PluginBuildArgs),
    /// Run a plugin's scenarios in the sandbox of a gateway, without one.
    #[command(after_help = "\
Scenarios are the files tests/NAME.scenario.toml of the plugin; docs/testing-plugins.md says what they can hold. Time
in them is virtual.

Exit codes: 0 all as expected, 1 not, 2 a scenario is not right or a component is not taken.

Examples:
  postern plugin test
  postern plugin test plugins/visitor-approvals --print
  postern plugin test door-bell.wasm --scenario hello.scenario.toml --json")]
    Test(plugin_test::PluginTestArgs),
    /// What calls a gateway that runs.
    #[command(flatten)]
    Remote(plugin::RemoteCommand),
}

/// What to begin, and where.
#[derive(Debug, Clone, Args)]
pub struct PluginNewArgs {
    /// The directory to make.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What it is written in.
    #[arg(long, value_enum, default_value_t = plugin_new::Language::Rust)]
    pub language: plugin_new::Language,
}

/// What to build, and where to.
#[derive(Debug, Clone, Args)]
pub struct PluginBuildArgs {
    /// The directories of the plugins: with a Cargo.toml, a package.json or a pyproject.toml.
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Where the components go [default: each plugin's target/postern].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a command failed, for its exit code.
#[derive(Debug)]
pub enum Failure {
    /// What was said cannot be done: arguments or settings (exit code 64).
    Usage(String),
    /// It was tried (exit code 1).
    Failed(String),
    /// Files are not right, so that it was not tried (exit code 2).
    Mistakes(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Usage(text) | Failure::Failed(text) | Failure::Mistakes(text)) = self;
        f.write_str(text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn visit(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") || command.has_subcommands(), "{}", command.get_name());
            command.get_subcommands().for_each(visit);
        }
        visit(&Cli::command());
    }

    #[test]
    fn the_version_of_the_contract_is_that_of_its_files() {
        let package = format!("package postern:plugin@{CONTRACT_VERSION};");
        assert!(include_str!("../../wit/world.wit").contains(&package));
    }

    #[test]
    fn flags_carry_what_was_given_and_nothing_else() {
        let cli =
            Cli::try_parse_from(["postern", "serve", "--port", "80", "--demo", "--redis-url", "redis://r"]).unwrap();
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        let flags: Vec<_> = args.flags().into_iter().collect();
        let expected = [("demo", "true"), ("port", "80"), ("redis-url", "redis://r")];
        assert_eq!(flags, expected.map(|(flag, value)| (flag, value.to_owned())));
    }
}
