//! Logs and metrics: how they are set up, and the list of metrics.
//!
//! No label holds a room, a user or a connection; those that name tenants and plugins are bounded ([`labels`]).

pub mod labels;

use std::sync::OnceLock;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Buckets of histograms of seconds, from 50 µs to 10 s.
const SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts recording metrics; the same handle for every gateway of the process. `None` when
/// something else in the process records them.
pub fn metrics() -> Option<&'static PrometheusHandle> {
    RECORDER
        .get_or_init(|| {
            let builder =
                PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS).ok()?;
            let handle = builder.install_recorder().ok()?;
            describe();
            Some(handle)
        })
        .as_ref()
}

fn describe() {
    describe_gauge!("ws_connections", "Open WebSocket connections of this node");
    describe_counter!("ws_connections_total", "WebSocket connections accepted, by protocol");
    describe_counter!("ws_disconnections_total", "WebSocket connections ended, by reason");
    describe_counter!("ws_messages_total", "Messages received (in) from clients");
    describe_counter!("ws_deliveries_total", "Publications handed to a client's outbox");
    describe_counter!("ws_connection_errors_total", "Connections refused or broken, by reason");
    describe_histogram!("delivery_lag_seconds", "From the commit of an entry to its delivery on this node");
    describe_counter!("delivery_resets_total", "Times that entries were lost for the clients of a tenant");
    describe_counter!(
        "resume_total",
        "Clients that came back, by protocol and result: recovered, or why not: expired, gone, too_much, refused, unavailable"
    );
    describe_histogram!("resume_seconds", "From a client's coming back to the answer, what it missed included");
    describe_histogram!("engine_commit_seconds", "Time of a commit, conflicts and resends included");
    describe_counter!("admin_requests_total", "Calls of the admin API, by route and status");
    describe_redis();
    describe_counter!("commit_conflicts_total", "Commits refused because something read had changed");
    describe_counter!("commit_ambiguous_total", "Commits sent again because their outcome was unknown");
    describe_gauge!("backlog_inputs", "Inputs that wait for the engine to come back");
    describe_gauge!("backlog_bytes", "Bytes of inputs that wait for the engine to come back");
    describe_counter!(
        "backlog_refused_total",
        "Inputs refused because the engine was away for too long, or too many waited"
    );
    describe_counter!("ephemeral_dropped_total", "Ephemeral publications that could not be sent");
    describe_counter!("apply_timeouts_total", "Answers that did not wait for a late node");
    describe_counter!("timers_fired_total", "Timers fired, by outcome");
    describe_histogram!("timer_lateness_seconds", "From a timer's due time to its firing");
    describe_counter!("timer_redelivered_total", "Timers claimed again after a failed or unfinished attempt");
    describe_counter!("timers_dead_total", "Timers given up and kept as dead, by tenant");
    describe_counter!(
        "key_set_fetches_total",
        "Key sets that were looked for, by tenant and result: fetched, failed, limited"
    );
    describe_counter!("revoked_connections_total", "Connections that were ended because their tokens were revoked");
    describe_counter!("api_requests_total", "Requests to the HTTP API of tenants' back ends, by route and status");
    describe_counter!(
        "limits_alone_total",
        "Checks of limits of all nodes that this node made alone because the engine did not answer, by limit: rate or seat"
    );
    describe_gauge!("nodes", "Nodes that live, this one included");
    describe_counter!("lease_lost_total", "Times that the other nodes counted this one as gone");
    describe_counter!("presence_reaped_total", "Connections of dead nodes that this one took out");
    describe_counter!("routes_total", "Events routed by a tenant's router, by source: component or memory");
    describe_counter!("plugin_calls_total", "Plugin calls, by tenant, plugin, hook and outcome");
    describe_histogram!("plugin_call_seconds", "From a call to its end, waiting included, by tenant, plugin and hook");
    describe_counter!(
        "plugin_code_total",
        "Components made ready, by where their code came from: memory, disk or compiler"
    );
    describe_counter!("plugin_code_cache_rejected_total", "Files of the code cache that were not as written");
    describe_gauge!("plugin_breakers_open", "Breakers that are not closed, by tenant, plugin and hook");
    describe_counter!("plugin_breaker_openings_total", "Times that a breaker opened, by tenant, plugin and hook");
    describe_counter!(
        "plugin_quota_refusals_total",
        "Commits refused because the tenant's plugins would keep too much, by tenant, plugin and what (state_bytes, \
         state_keys, timers)"
    );
    describe_counter!("plugin_cpu_microseconds_total", "Computing time of calls, by tenant and plugin");
    describe_gauge!("plugin_memory_peak_bytes", "The most memory that an instance had, by tenant and plugin");
    describe_counter!(
        "plugin_usage_total",
        "What plugins used, by tenant, plugin and what (calls, failures, cpu-us, host-calls, log-lines, output-bytes, \
         state-keys-read, state-bytes-read, state-keys-written, state-bytes-written, timers-set, publications); up to 10 s late"
    );
    describe_counter!(
        "tenant_usage_total",
        "What tenants caused, by tenant and what (events, published, deliveries); up to 10 s late"
    );
    describe_counter!("usage_lost_total", "Numbers that were left out of the daily accounts");
    describe_catalog();
    describe_gauge!("process_resident_memory_bytes", "Resident memory of the process");
    describe_gauge!("ws_memory_per_connection_bytes", "Resident memory divided by open connections");
}

/// What following the catalog tells.
fn describe_catalog() {
    describe_gauge!(
        "catalog_troubled_tenants",
        "Tenants of the catalog that this node cannot serve altogether as they are written"
    );
    describe_counter!("catalog_losses_total", "Times that the catalog had lost records with its engine's data");
    describe_counter!("auto_rollbacks_total", "Versions that kept failing and were rolled back by themselves");
    describe_counter!("components_collected_total", "Components deleted that no version named any more");
    describe_counter!("rollout_loads_total", "Versions that this node loaded for a roll-out, by outcome");
}

/// What the Redis engine tells of its connections.
fn describe_redis() {
    describe_gauge!("engine_up", "1 while commands can be sent to a Redis master, by master");
    describe_counter!("engine_generation_changes_total", "Times that a Redis master had another history than before");
    describe_histogram!("engine_command_seconds", "Time of a script at Redis, by script");
    describe_counter!("engine_command_errors_total", "Errors of Redis and of connections to it, by kind");
    describe_histogram!(
        "pubsub_lag_seconds",
        "From the commit of an entry, by Redis's clock, to its arrival on the shard channel; Redis's clock is compared \
         with this node's every second, which is right to half a round trip, and entries are stamped to the millisecond"
    );
    describe_histogram!("pubsub_probe_seconds", "Round trip of a probe that was published on a quiet connection");
    describe_counter!("pubsub_probe_timeouts_total", "Probes that were published and did not arrive");
    describe_counter!("pubsub_reconnects_total", "Replaced connections for shard channels, by reason");
    describe_gauge!("pubsub_subscriptions", "Shard channels that are listened to, by master");
    describe_histogram!("resubscribe_seconds", "Time to subscribe to all channels on a new connection");
    describe_counter!("log_gaps_total", "Times that entries had to be read from the log to follow it, by cause");
    describe_histogram!("catch_up_seconds", "Time of reading a log up to its top");
    describe_counter!("catch_up_entries_total", "Entries that were read from logs to catch up");
    describe_gauge!("log_memory_bytes", "What this node keeps of the logs that it follows, about");
    describe_counter!("range_total", "Stretches of a log that were asked for, by where they came from (memory or log)");
}

/// Starts logging to standard error. A second call changes nothing.
pub fn logs(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Fails only when a subscriber is there already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).try_init();
}

/// Resident memory of this process, in bytes; `None` where `/proc` does not tell.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    // Linux on x86-64 and most of aarch64.
    const PAGE_BYTES: u64 = 4_096;
    Some(pages * PAGE_BYTES)
}
