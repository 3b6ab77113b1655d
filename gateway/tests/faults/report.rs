//! The results as a table, for the terminal and for FAULTS.md.

use std::fmt::Write as _;

use crate::run::Outcome;
use crate::settings::Settings;

const HEADINGS: [&str; 15] = [
    "fault",
    "plan",
    "s",
    "blows",
    "published",
    "acked",
    "nacked",
    "deliveries",
    "acked, then lost",
    "resets told",
    "resumed",
    "not resumed",
    "recovery ms",
    "timers late ms",
    "violations",
];

fn row(outcome: &Outcome) -> [String; 15] {
    let counts = &outcome.verdict.counts;
    [
        outcome.name.into(),
        outcome.number.into(),
        format!("{:.0}", outcome.seconds),
        outcome.blows.to_string(),
        counts.published.to_string(),
        counts.acked.to_string(),
        counts.nacked.to_string(),
        counts.deliveries.to_string(),
        counts.acked_lost.to_string(),
        counts.resets.to_string(),
        counts.recovered.to_string(),
        counts.unrecovered.to_string(),
        counts.recovery_ms.map_or("–".into(), |ms| ms.to_string()),
        counts.lateness_max_ms.to_string(),
        match outcome.first_run {
            0 => outcome.verdict.total().to_string(),
            first => format!("{} (first run: {first})", outcome.verdict.total()),
        },
    ]
}

/// The table in Markdown, with what it was made with.
pub(crate) fn table(settings: &Settings, outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{} clients of both protocols on {} gateways, {} publications a second, a hop every {} s, seed {}.\n\n",
        settings.clients,
        settings.nodes,
        settings.publishes_per_s,
        f64::from(settings.hop_mean_ms) / 1_000.0,
        settings.seed,
    );
    text += &format!("| {} |\n", HEADINGS.join(" | "));
    text += &format!("|---|---|{}\n", "--:|".repeat(HEADINGS.len() - 2));
    for outcome in outcomes {
        text += &format!("| {} |\n", row(outcome).join(" | "));
    }
    let leftovers: usize = outcomes.iter().map(|outcome| outcome.verdict.counts.leftovers).sum();
    if leftovers > 0 {
        _ = writeln!(
            text,
            "\nAfter failovers {leftovers} memberships of connections that were gone were not taken out yet."
        );
    }
    let repeats: usize = outcomes.iter().map(|outcome| outcome.verdict.counts.presence_repeats).sum();
    if repeats > 0 {
        _ = writeln!(text, "\nAfter losses {repeats} joins or leaves of a user were told to a client twice in a row.");
    }
    let mut unchecked: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.verdict.unchecked).collect();
    unchecked.sort();
    unchecked.dedup();
    if !unchecked.is_empty() {
        text += "\nNot checked:\n";
        for what in unchecked {
            _ = writeln!(text, "- {what}");
        }
    }
    text
}

/// One fault's line for who watches, and what is wrong.
pub(crate) fn line(outcome: &Outcome) -> String {
    let counts = &outcome.verdict.counts;
    let mut text = format!(
        "test fault {} ... {} ({:.1} s, {} blows, {} published, {} deliveries, {} acked then lost, {} resets, {}/{} \
         resumed, {} refused, {} epochs, {} visitors ({} lost), recovery {} ms, lateness {} ms, {} MiB, swarm late {} ms)",
        outcome.name,
        if outcome.verdict.total() == 0 { "ok" } else { "FAILED" },
        outcome.seconds,
        outcome.blows,
        counts.published,
        counts.deliveries,
        counts.acked_lost,
        counts.resets,
        counts.recovered,
        counts.recovered + counts.unrecovered,
        counts.refused,
        counts.epochs,
        counts.visitors,
        counts.visitors_lost,
        counts.recovery_ms.unwrap_or_default(),
        counts.lateness_max_ms,
        counts.rss_max >> 20,
        outcome.swarm_lag_ms,
    );
    for (invariant, count, described) in outcome.verdict.violations() {
        _ = write!(text, "\n  {invariant} violated {count} times:");
        for one in described {
            _ = write!(text, "\n    {one}");
        }
    }
    text
}
