//! The fault suite: gateways on one Redis, hundreds of hopping clients, and things that go wrong.
//!
//! `cargo test` runs the checker against histories with planted violations, which takes no time. The faults
//! themselves run with `make test-faults`, which gives `--run`; [`settings`] says what can be set, `gateway/FAULTS.md`
//! what is done and what must hold.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod chance;
mod checker;
mod faults;
mod history;
mod log;
mod planted;
mod report;
mod run;
mod settings;
mod swarm;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        planted::TESTS.iter().for_each(|(name, _)| println!("checker::{name}: test"));
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--run") { run_faults() } else { test_checker(&arguments) }
}

/// Cargo's last line of a test binary, which `.ci/run` counts.
fn result(passed: usize, failed: usize) -> ExitCode {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn test_checker(arguments: &[String]) -> ExitCode {
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in planted::TESTS {
        let name = format!("checker::{name}");
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if ok { passed += 1 } else { failed += 1 }
    }
    result(passed, failed)
}

fn run_faults() -> ExitCode {
    let settings = match settings::Settings::read() {
        Ok(settings) => settings,
        Err(mistake) => {
            eprintln!("{mistake}");
            return ExitCode::from(64);
        }
    };
    let missing = run::missing_programs();
    if !missing.is_empty() {
        eprintln!("missing: {} (run scripts/setup test)", missing.join(", "));
        return ExitCode::FAILURE;
    }
    let components = world::process::root().join("target/components");
    postern::cli::plugin_build::build_reference(&world::process::root(), &components, &mut |line| eprintln!("{line}"))
        .expect("the reference plugins build");
    println!("FAULTS_SEED={} (choices are the same with the same seed; times are not)", settings.seed);
    let (dir, _removed_at_the_end) = run::folder(&settings);
    let outcomes = run::run(&settings, &dir, |outcome| println!("{}", report::line(outcome)));
    let table = report::table(&settings, &outcomes);
    println!("\n{table}");
    if let Some(file) = &settings.report {
        std::fs::write(file, &table).expect("FAULTS_REPORT can be written");
    }
    let failed = outcomes.iter().filter(|outcome| outcome.verdict.total() > 0).count();
    result(outcomes.len() - failed, failed)
}
