//! The load test of a trading and chat back end: 5,000 clients of both protocols on two nodes, in shared rooms and in one of
//! all, and broadcasts all the time while a tenth of them leave and come back. Each receiver's order is compared with
//! the others', nothing may be missing or come twice, and both nodes say rightly who is there.
//! `cargo bench --bench rooms_load`; how much, by `POSTERN_LOAD_CONNECTIONS`, `…_ROOMS`, `…_SECONDS`,
//! `…_ROOMS_PER_SECOND`, `…_ALL_PER_SECOND`, `…_CONNECTS_PER_SECOND`, `…_CHURN_PERCENT`. Ends with 1 where something was wrong.

#[path = "rooms_load/load.rs"]
mod load;

use std::process::ExitCode;
use std::time::Duration;

use load::Plan;

fn main() -> ExitCode {
    match load::run(plan()) {
        Ok(report) => {
            print!("{report}");
            if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Of the environment, with the load test's own figures as defaults; what is not a number there ends the program.
fn plan() -> Plan {
    let number = |name: &str, usual: usize| match std::env::var(name) {
        Err(_) => usual,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not {text:?}")),
    };
    let rate = |name: &str, usual: usize| u32::try_from(number(name, usual)).ok().filter(|rate| *rate > 0);
    let rate = |name: &str, usual| rate(name, usual).unwrap_or_else(|| panic!("{name} is a rate a second, from 1"));
    let plan = Plan {
        connections: number("POSTERN_LOAD_CONNECTIONS", 5_000),
        rooms: number("POSTERN_LOAD_ROOMS", 50),
        during: Duration::from_secs(number("POSTERN_LOAD_SECONDS", 30) as u64),
        rooms_per_second: rate("POSTERN_LOAD_ROOMS_PER_SECOND", 100),
        all_per_second: rate("POSTERN_LOAD_ALL_PER_SECOND", 2),
        connects_per_second: rate("POSTERN_LOAD_CONNECTS_PER_SECOND", 250),
        churn_percent: number("POSTERN_LOAD_CHURN_PERCENT", 10),
        grace_ms: 2_000,
        lease_ms: 12_000,
    };
    assert!(plan.rooms > 0 && plan.members() >= 4, "POSTERN_LOAD_ROOMS: at least 4 connections a room");
    assert!(plan.churn_percent <= 50, "POSTERN_LOAD_CHURN_PERCENT: at most 50");
    plan
}
