//! `postern plugin logs`: what a tenant's plugins say, on all nodes.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::output::{cell, line, note, time};
use crate::cli::remote::{Remote, TenantArgs, part, plain, plain_json};
use crate::config::Environment;

/// How many lines are remembered, so that none is shown twice.
const REMEMBERED_MAX: usize = 10_000;

/// The most lines to begin with: what a node keeps.
const LINES_MAX: u32 = 1_000;

/// How far back is asked for after a break, in milliseconds: nodes' clocks differ, and lines come late.
const OVERLAP_MS: u64 = 5_000;

/// How long to wait before asking again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often in a row asking again may fail.
const RETRIES_MAX: u32 = 30;

/// What to show.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Only this plugin's.
    #[arg(value_name = "PLUGIN")]
    pub plugin: Option<String>,
    /// Go on as lines come, until Ctrl-C.
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// How many of the latest lines to begin with.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
    pub lines: u32,
    /// Whose.
    #[command(flatten)]
    pub of: TenantArgs,
}

/// Lines that were shown, the latest of them.
#[derive(Default)]
struct Shown {
    known: HashSet<(String, u64)>,
    order: VecDeque<(String, u64)>,
    latest_ms: u64,
}

impl Shown {
    /// Is it to be shown? Each line is once.
    fn is_new(&mut self, line: &Value) -> bool {
        let id = (cell(&line["server"]), line["seq"].as_u64().unwrap_or(0));
        self.latest_ms = self.latest_ms.max(line["at_ms"].as_u64().unwrap_or(0));
        // What the gateway itself says of the tail has no number.
        if id.1 == 0 || !self.known.insert(id.clone()) {
            return id.1 == 0;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Shows the lines that there are, and those that come if that is asked for.
pub(super) fn logs(args: &LogsArgs, env: &dyn Environment) -> Result<(), Failure> {
    let (remote, tenant) = Remote::of_tenant(&args.of, env)?;
    let mut shown = Shown::default();
    let mut failures = 0;
    loop {
        let mut query = format!("limit={}", args.lines.clamp(1, LINES_MAX));
        if shown.latest_ms > 0 {
            query = format!("limit={LINES_MAX}&after={}", shown.latest_ms.saturating_sub(OVERLAP_MS));
        }
        query += &args.plugin.as_ref().map(|plugin| format!("&plugin={}", part(plugin))).unwrap_or_default();
        query += if args.follow { "&follow=true" } else { "" };
        let (mut is_read, mut came) = (true, false);
        let mut each = |value: Value| {
            came = true;
            if shown.is_new(&value) {
                is_read = line(&if remote.json { plain_json(&value.to_string()) } else { text(&value) });
            }
            is_read
        };
        let ended = remote.lines(&format!("/tenants/{}/logs?{query}", part(&tenant)), &mut each);
        if !args.follow || !is_read {
            if !came && ended.is_ok() && !remote.json {
                note(&format!(
                    "no lines of {tenant} yet: nodes keep the last ones in memory, since their start; --follow waits for what comes"
                ));
            }
            return if is_read { ended } else { Ok(()) };
        }
        failures = if came || ended.is_ok() { 0 } else { failures + 1 };
        match ended {
            Ok(()) => {}
            // The first attempt tells what is wrong; later ones wait for a gateway that is away.
            Err(failure) if shown.latest_ms == 0 || failures > RETRIES_MAX => return Err(failure),
            Err(failure) => note(&format!("{failure}\nasking again")),
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

fn text(line: &Value) -> String {
    let server: String = cell(&line["server"]).chars().take(8).collect();
    let kind = if line["kind"] == "failure" { "FAILURE " } else { "" };
    let (plugin, version) = (cell(&line["plugin"]), cell(&line["version"]));
    let level = cell(&line["level"]);
    let message = cell(&line["message"]);
    plain(&format!("{} {server:8} {plugin}@{version} {level:5} {kind}{message}", time(&line["at_ms"])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_that_comes_again_after_a_break_is_shown_once() {
        let mut shown = Shown::default();
        let line = |server: &str, seq: u64| json!({ "server": server, "seq": seq, "at_ms": 7 });
        assert!(shown.is_new(&line("a", 1)) && shown.is_new(&line("b", 1)) && shown.is_new(&line("a", 2)));
        assert!(!shown.is_new(&line("a", 1)) && !shown.is_new(&line("b", 1)));
        assert_eq!(shown.latest_ms, 7);
    }

    #[test]
    fn a_line_does_nothing_to_the_terminal() {
        let line = json!({ "server": "a\u{1b}[2J", "plugin": "p\n", "version": "v", "level": "info", "message": "\u{1b}]0;x\u{7}", "at_ms": 0 });
        assert!(!text(&line).chars().any(char::is_control), "{}", text(&line));
    }
}
