//! Health, metrics, and who may call from where.

use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::node::{Node, Settings};
use crate::support::{BACKEND_TOKEN, open, token};

fn parse(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

#[test]
fn health_readiness_and_status_tell_what_operators_ask() {
    let node = Node::start(vec![open("one", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    let (status, body) = node.http("GET", "/health", &[], "");
    let health = parse(&body);
    assert_eq!((status, &health["status"], &health["connections"]), (200, &json!("ok"), &json!(1)));
    assert!(health["memory"]["rss_bytes"].as_u64().unwrap() > 1_000_000);
    assert!(health["uptime"].is_u64());
    assert_eq!(node.http("GET", "/api/v1/health/live", &[], "").0, 200);
    assert_eq!(node.http("GET", "/api/v1/health/ready", &[], "").0, 200);
    let status = parse(&node.http("GET", "/api/v1/ws/metrics", &[], "").1);
    assert_eq!(
        (&status["connections"], &status["totalConnections"], &status["serverCount"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(status["serverId"].as_str().unwrap().len(), 20);
    assert_eq!(node.http("GET", "/nothing", &[], "").0, 404);
    assert_eq!(node.http("DELETE", "/health", &[], "").0, 405);
}

#[test]
fn with_a_token_for_metrics_nobody_reads_the_tenants_names_without_it() {
    const TOKEN: &str = "metrics-0123456789abcdef0123456789abcdef";
    let config = format!("metrics_token = \"{TOKEN}\"\n");
    let node = Node::with(Settings { tenants: vec![open("one", "")], config, redis_url: None });
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/metrics", "/api/v1/ws/metrics", "/t/one/metrics"] {
        for wrong in ["", "Bearer x"] {
            assert_eq!(node.http("GET", path, &[("authorization", wrong)], "").0, 401, "{path}");
        }
        assert_eq!(node.http("GET", path, &[("authorization", &bearer)], "").0, 200, "{path}");
    }
    assert_eq!(node.http("GET", "/health", &[], "").0, 200);
}

#[test]
fn metrics_count_what_happens() {
    let node = Node::start(vec![open("one", "")]);
    let mut ws = Clients::ws();
    ws.join_ws(&node, "bob", "one", &token("one", "bob", json!({})));
    ws.request("bob", "echo", json!(1));
    ws.request("bob", "join_room", json!({ "room": "r:1" }));
    ws.request("bob", "publish", json!({ "room": "r:1", "event": "x", "data": 1 }));
    ws.message("bob", json!({ "event": "x" }));
    ws.try_ws("nobody", &node.ws("one"), "no-token");
    ws.closed("nobody");
    std::thread::sleep(std::time::Duration::from_millis(50));
    for (metric, labels, at_least) in [
        ("ws_connections_total", "json", 2.0),
        ("ws_messages_total", "in", 3.0),
        ("ws_connection_errors_total", "unauthorized", 1.0),
        ("ws_deliveries_total", "", 1.0),
        ("ws_connections", "", 1.0),
        ("plugin_calls_total", "echo", 1.0),
        ("process_resident_memory_bytes", "", 1.0),
    ] {
        assert!(node.metric(metric, labels) >= at_least, "{metric}{{{labels}}} is {}", node.metric(metric, labels));
    }
}

#[test]
fn only_configured_origins_may_call_or_open_a_socket_from_a_browser() {
    let node = Node::with(Settings {
        tenants: vec![open("one", "")],
        config: "origins = [\"https://app.example\"]\n".into(),
        redis_url: None,
    });
    let (status, head, _) = node.http_full("GET", "/health", &[("origin", "https://app.example")], "");
    assert_eq!(status, 200);
    assert!(head.contains("access-control-allow-origin: https://app.example"), "{head}");
    let (status, head, body) = node.http_full("GET", "/health", &[("origin", "https://evil.example")], "");
    assert_eq!((status, parse(&body)["error"]["code"].clone()), (403, json!("origin_not_allowed")));
    assert!(!head.contains("access-control-allow-origin"), "{head}");
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    for (name, origin, what) in [("good", "https://app.example", "open"), ("bad", "https://evil.example", "refused")] {
        let headers = json!({ "origin": origin });
        ws.tell(json!({"do": "connect", "name": name, "url": node.ws("one"), "query": { "token": bob }, "headers": headers}));
        ws.expect(json!({ "what": what, "name": name }));
    }
    let preflight = node.http_full("OPTIONS", "/t/one/api/v1/events", &[("origin", "https://app.example")], "");
    assert_eq!(preflight.0, 204);
    assert!(preflight.1.contains("access-control-allow-headers: authorization"));
}

#[test]
fn events_over_http_need_the_tenants_own_token_and_a_sound_body() {
    let node = Node::start(vec![open("one", "limits.message_bytes = 2000")]);
    let path = "/t/one/api/v1/events";
    let bearer = format!("Bearer {BACKEND_TOKEN}");
    let good = [("authorization", bearer.as_str())];
    let (status, body) = node.http("POST", path, &good, r#"{"event":"echo","data":{"a":1}}"#);
    assert_eq!((status, parse(&body)["data"].clone()), (200, json!({ "a": 1 })));
    for (headers, body, status, code) in [
        (&[("authorization", "Bearer wrong")][..], r#"{"event":"echo"}"#.to_owned(), 401, "unauthorized"),
        (&[][..], r#"{"event":"echo"}"#.to_owned(), 401, "unauthorized"),
        (&good[..], "nonsense".to_owned(), 400, "invalid"),
        (&good[..], r#"{"event":"unheard_of"}"#.to_owned(), 422, "unknown_event"),
        (&good[..], format!(r#"{{"event":"echo","data":"{}"}}"#, "x".repeat(3_000)), 413, "message_too_large"),
    ] {
        let (answered, text) = node.http("POST", path, headers, &body);
        assert_eq!((answered, parse(&text)["error"]["code"].clone()), (status, json!(code)), "{text}");
    }
    assert_eq!(node.http("POST", "/t/nobody/api/v1/events", &good, "{}").0, 404);
}

#[test]
fn a_tenants_own_origins_hold_however_its_clients_name_it() {
    let node = Node::with(Settings {
        tenants: vec![open("one", "origins = [\"https://app.example\"]")],
        config: "origins = [\"*\"]\n".into(),
        redis_url: None,
    });
    let mut ws = Clients::ws();
    let bob = token("one", "bob", json!({}));
    let url = format!("ws://{}/ws", node.address);
    for (name, origin, event) in
        [("good", "https://app.example", "connected"), ("bad", "https://evil.example", "error")]
    {
        let headers = json!({ "origin": origin });
        ws.tell(json!({"do": "connect", "name": name, "url": url, "query": { "token": bob }, "headers": headers}));
        ws.message(name, json!({ "event": event }));
    }
    assert_eq!(ws.closed("bad").0, 4501);
}
