//! Arguments → settings → what was asked for → exit code.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use postern::cli::{Cli, Command, Failure, PluginBuildArgs, PluginCommand, PluginNewArgs};
use postern::cli::{admin, check, plugin, plugin_build, plugin_new, plugin_test, serve, tenant, token};
use postern::config::{self, ProcessEnvironment};

/// `EX_USAGE` of sysexits.h: wrong arguments or settings.
const USAGE: u8 = 64;

/// Files that a command reads are not right.
const MISTAKES: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed pipe is no reason to fail.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve(&args.flags()),
        Command::Check(args) => check(&args.flags()),
        Command::Token(args) => token(&args),
        Command::Plugin(PluginCommand::New(args)) => plugin_new(&args),
        Command::Plugin(PluginCommand::Build(args)) => plugin_build(&args),
        Command::Plugin(PluginCommand::Test(args)) => plugin_test::run(&args),
        Command::CompileComponent(orders) => postern::decision::plugin::compile_worker(orders).map_err(Failure::Failed),
        Command::Plugin(PluginCommand::Remote(command)) => plugin::run(&command, &ProcessEnvironment),
        Command::Tenant(command) => tenant::run(&command, &ProcessEnvironment),
        Command::Admin(command) => admin::run(&command, &ProcessEnvironment),
        Command::Version => {
            println!("postern {}\npostern:plugin {}", env!("CARGO_PKG_VERSION"), postern::cli::CONTRACT_VERSION);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", told(&failure.to_string(), std::env::args().any(|argument| argument == "--json")));
            match failure {
                Failure::Usage(_) => USAGE.into(),
                Failure::Failed(_) => ExitCode::FAILURE,
                Failure::Mistakes(_) => MISTAKES.into(),
            }
        }
    }
}

fn serve(flags: &config::Flags) -> Result<(), Failure> {
    let config = config::load(flags, &ProcessEnvironment).map_err(|mistakes| Failure::Usage(mistakes.to_string()))?;
    postern::telemetry::logs(&config.log);
    serve::serve(config)
}

fn check(flags: &config::Flags) -> Result<(), Failure> {
    let summary = check::check(flags, &ProcessEnvironment).map_err(|mistakes| {
        let count = mistakes.0.len();
        Failure::Failed(format!("{mistakes}{count} {}", if count == 1 { "mistake" } else { "mistakes" }))
    })?;
    print!("{summary}");
    Ok(())
}

fn token(args: &token::TokenArgs) -> Result<(), Failure> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let issued = token::token(args, &ProcessEnvironment, now_s)?;
    if let Some(refusal) = issued.refusal {
        eprintln!("the gateway would refuse this token now: {refusal}");
    }
    println!("{}", issued.token);
    Ok(())
}

fn plugin_new(args: &PluginNewArgs) -> Result<(), Failure> {
    for file in plugin_new::new(&args.dir, args.language)? {
        println!("{}", file.display());
    }
    eprintln!("next: cd {} && {} && postern plugin test .", args.dir.display(), args.language.test_command());
    Ok(())
}

fn plugin_build(args: &PluginBuildArgs) -> Result<(), Failure> {
    let options = plugin_build::BuildOptions { dirs: args.dirs.clone(), out: args.out.clone(), target_dir: None };
    let built = plugin_build::build(&options, &mut |line| eprintln!("{line}"))
        .map_err(|error| Failure::Failed(error.to_string()))?;
    if args.json {
        let json = serde_json::to_string_pretty(&built).map_err(|error| Failure::Failed(error.to_string()))?;
        println!("{json}");
        return Ok(());
    }
    for component in &built.components {
        println!("{}", component.path.display());
        println!("  {} bytes, sha256 {}", component.bytes, component.sha256);
        println!("  imports {}", component.imports.join(", "));
        println!("  exports {}", component.exports.join(", "));
    }
    if let [component] = &built.components[..] {
        let (name, role, path) = (component.plugin_name(), component.role(), component.path.display());
        eprintln!("next: postern plugin push {name} {path} --role {role} --activate");
    }
    Ok(())
}

/// A failure as it was asked for: what the gateway said is JSON already then.
fn told(failure: &str, as_json: bool) -> String {
    if !as_json || failure.starts_with('{') {
        return failure.to_owned();
    }
    serde_json::json!({ "error": { "code": "failed", "message": failure } }).to_string()
}
