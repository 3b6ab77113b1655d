//! Is it alive, is it ready, how much does it do?

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;

use super::{Answer, answer, json_answer, refusal};
use crate::gateway::Gateway;
use crate::telemetry;

/// How long readiness waits for the engine.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /health`.
pub(super) fn health(gateway: &Arc<Gateway>) -> Answer {
    let ready = gateway.ready.load(Ordering::Acquire);
    let resident = telemetry::resident_bytes();
    json_answer(
        StatusCode::OK,
        &json!({
            "status": if ready { "ok" } else { "stopping" },
            "connections": gateway.connections.taken(),
            "uptime": gateway.started.elapsed().as_secs(),
            "memory": { "rss_bytes": resident },
            "engine": gateway.engine.name(),
            "version": env!("CARGO_PKG_VERSION"),
        }),
    )
}

/// `GET /api/v1/health/ready`: does this node take connections? A Redis that is away does not change that: all
/// nodes share it, and a balancer that took all of them out would have nowhere to send anybody.
pub(super) async fn ready(gateway: &Arc<Gateway>) -> Answer {
    if !gateway.ready.load(Ordering::Acquire) {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "this node starts or stops");
    }
    let answered = tokio::time::timeout(PING_TIMEOUT, gateway.engine.ping()).await;
    let why = match answered {
        Ok(Ok(())) => return json_answer(StatusCode::OK, &json!({ "status": "ready", "engine": "up" })),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the engine did not answer within {} ms", PING_TIMEOUT.as_millis()),
    };
    if gateway.config.redis_url.is_none() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", &why);
    }
    // Whoever asks need not know the server's name.
    tracing::debug!(why, "ready, but degraded");
    json_answer(StatusCode::OK, &json!({ "status": "degraded", "engine": "down" }))
}

/// `GET /api/v1/ws/metrics`.
pub(super) fn status(gateway: &Arc<Gateway>) -> Answer {
    let connections = gateway.connections.taken();
    let others: Vec<_> = gateway.engine.nodes().into_iter().skip(1).collect();
    let tenants: serde_json::Map<_, _> = gateway
        .tenants()
        .into_iter()
        .map(|tenant| (tenant.id.to_string(), json!(tenant.connections.taken())))
        .collect();
    json_answer(
        StatusCode::OK,
        &json!({
            "serverId": gateway.server_id,
            "connections": connections,
            // The others' are a few seconds old.
            "totalConnections": connections + others.iter().map(|node| node.connections).sum::<u32>(),
            "serverCount": others.len() + 1,
            "maxConnections": gateway.connections.max(),
            "connectionsByTenant": tenants,
            "uptime": gateway.started.elapsed().as_secs(),
            "memory": { "rss_bytes": telemetry::resident_bytes() },
        }),
    )
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) fn metrics(gateway: &Arc<Gateway>) -> Answer {
    let connections = gateway.connections.taken();
    metrics::gauge!("ws_connections").set(f64::from(connections));
    if let Some(resident) = telemetry::resident_bytes() {
        #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
        let resident = resident as f64;
        metrics::gauge!("process_resident_memory_bytes").set(resident);
        metrics::gauge!("ws_memory_per_connection_bytes").set(resident / f64::from(connections.max(1)));
    }
    match telemetry::metrics() {
        Some(recorder) => answer(StatusCode::OK, "text/plain; version=0.0.4", recorder.render()),
        None => refusal(StatusCode::SERVICE_UNAVAILABLE, "no_metrics", "another recorder is installed in this process"),
    }
}
