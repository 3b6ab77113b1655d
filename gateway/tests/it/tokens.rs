//! Whose tokens hold: keys that come and go, tenants and subjects by every way, tokens that are revoked.

use std::time::{Duration, Instant};

use postern::commit::now_ms;
use postern::decision::Decisions;
use postern::decision::backlog::Backlog;
use postern::decision::revocation::{Revocation, RevokedTokens};
use postern::engine::redis::{Options, connect};
use postern::tenant::{CallLimits, TenantId};
use serde_json::{Value, json};

use crate::support::clients::Clients;
use crate::support::key_server::{KeyServer, Pair, set};
use crate::support::node::{Node, Settings};
use crate::support::redis_server::RedisServer;
use crate::support::tls::certificates;
use crate::support::{components, now_s, open, token, token_until, token_without_tenant};

/// A tenant in which everybody may do everything, whose keys are only those of `auth`.
fn keyed(name: &str, auth: &str) -> (String, String) {
    let path = components().join("bench.wasm");
    let plugin = |name, role| format!("[[plugins]]\nname = \"{name}\"\nrole = \"{role}\"\ncomponent = {path:?}\n");
    let limits = "limits.messages_per_minute = \"unlimited\"\nlimits.connections_per_user = 1000\n";
    let plugins = plugin("authorizer", "authorizer") + &plugin("echo", "handler");
    (name.into(), format!("name = \"{name}\"\n{limits}[auth]\n{auth}\n{plugins}"))
}

fn url(server: &KeyServer, more: &str) -> (String, String) {
    keyed("one", &format!("jwks_url = \"{}\"\n{more}", server.url()))
}

/// Waits until something is so.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(8);
    while !is() {
        assert!(Instant::now() < deadline, "not within 8 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Is a plain client with this token let in? Otherwise the code with which it is turned away.
fn admitted(ws: &mut Clients, node: &Node, name: &str, token: &str) -> Result<(), u64> {
    ws.try_ws(name, &node.ws("one"), token);
    let first = ws.message(name, json!({}));
    if first["event"] == "connected" { Ok(()) } else { Err(ws.closed(name).0) }
}

#[test]
fn a_key_set_behind_a_url_is_fetched_again_for_a_key_that_it_did_not_have() {
    let server = KeyServer::start(set(&[Pair::Ed25519.jwk("a")]));
    let node = Node::start(vec![url(&server, "")]);
    let mut ws = Clients::ws();
    let bob = json!({ "sub": "bob" });
    assert_eq!(admitted(&mut ws, &node, "1", &Pair::Ed25519.token(Some("a"), bob.clone())), Ok(()));
    // The same key under a name that the set has not, and a key that is not in it.
    assert_eq!(admitted(&mut ws, &node, "2", &Pair::Rsa.token(Some("b"), bob.clone())), Err(4500));
    server.answer(200, &set(&[Pair::Ed25519.jwk("a"), Pair::Rsa.jwk("b")]));
    assert_eq!(admitted(&mut ws, &node, "3", &Pair::Rsa.token(Some("b"), bob.clone())), Ok(()));
    let answer = ws.request("3", "refresh_token", json!({ "token": Pair::Ed25519.token(Some("a"), bob.clone()) }));
    assert!(answer["expires_at_s"].is_u64(), "{answer}");
    // Whoever makes up names of keys does not make us ask without end.
    let before = server.asked();
    for n in 0..30 {
        let name = format!("made-up-{n}");
        assert_eq!(admitted(&mut ws, &node, &name, &Pair::P256.token(Some(&name), bob.clone())), Err(4500));
    }
    assert!(server.asked() - before <= 6, "{} fetches for made-up keys", server.asked() - before);
    assert!(node.metric("key_set_fetches_total", "result=\"limited\"") >= 20.0);
    assert!(!node.log().contains("eyJ"), "a token is in the log");
}

#[test]
fn many_tenants_sources_are_all_fetched_soon() {
    let server = KeyServer::start(set(&[Pair::Ed25519.jwk("a")]));
    let jwks_url = format!("jwks_url = \"{}\"", server.url());
    let node = Node::start((0..80).map(|n| keyed(&format!("tenant-{n}"), &jwks_url)).collect());
    let begun = Instant::now();
    until("all are fetched", || server.asked() >= 80);
    assert!(begun.elapsed() < Duration::from_secs(8), "some were put off: {:?}", begun.elapsed());
    drop(node);
}

#[test]
fn a_source_that_is_away_or_talks_nonsense_takes_no_key_from_anybody() {
    let server = KeyServer::start(set(&[Pair::Ed25519.jwk("a")]));
    let node = Node::start(vec![url(&server, "jwks_refresh_ms = 1000")]);
    let mut ws = Clients::ws();
    let good = Pair::Ed25519.token(Some("a"), json!({ "sub": "bob" }));
    assert_eq!(admitted(&mut ws, &node, "before", &good), Ok(()));
    let secret =
        json!({ "kty": "oct", "alg": "HS256", "kid": "s", "k": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE" });
    let large = format!("{{\"keys\":[],\"pad\":\"{}\"}}", "x".repeat(300_000));
    for (n, (status, document)) in
        [(302, set(&[])), (500, "oops".into()), (200, "nonsense".into()), (200, large), (200, set(&[secret]))]
            .into_iter()
            .enumerate()
    {
        server.answer(status, &document);
        let asked = server.asked();
        until("another fetch", || server.asked() > asked + 1);
        assert_eq!(admitted(&mut ws, &node, &format!("during-{n}"), &good), Ok(()), "{status}");
    }
    assert!(node.log().contains("the keys of before stay"));
    drop(server);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(admitted(&mut ws, &node, "after", &good), Ok(()));
    assert!(node.metric("key_set_fetches_total", "result=\"failed\"") >= 5.0);
}

#[test]
fn clients_come_back_by_themselves_while_a_key_set_was_never_there() {
    let server = KeyServer::start("{}".into());
    let node = Node::start(vec![url(&server, "")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let bob = Pair::Ed25519.token(Some("a"), json!({ "sub": "bob" }));
    assert_eq!(admitted(&mut ws, &node, "early", &bob), Err(4004));
    // The set comes, and with it a Socket.IO client that has not been refused.
    io.tell(json!({"do": "connect", "name": "bob", "url": node.url(), "path": "/t/one/socket.io/",
        "auth": { "token": bob }, "reconnection": true, "timeout_ms": 15_000}));
    std::thread::sleep(Duration::from_millis(300));
    server.answer(200, &set(&[Pair::Ed25519.jwk("a")]));
    io.expect(json!({ "what": "connect", "name": "bob" }));
}

#[test]
fn a_key_that_leaves_its_set_ends_connections_only_where_the_tenant_says_so() {
    for ends in [false, true] {
        let server = KeyServer::start(set(&[Pair::Ed25519.jwk("a"), Pair::P256.jwk("b")]));
        let node = Node::start(vec![url(&server, &format!("jwks_refresh_ms = 1000\njwks_ends_connections = {ends}"))]);
        let mut ws = Clients::ws();
        let gone = Pair::Ed25519.token(Some("a"), json!({ "sub": "bob" }));
        assert_eq!(admitted(&mut ws, &node, "gone", &gone), Ok(()));
        assert_eq!(admitted(&mut ws, &node, "kept", &Pair::P256.token(Some("b"), json!({ "sub": "eve" }))), Ok(()));
        server.answer(200, &set(&[Pair::P256.jwk("b")]));
        let mut n = 0;
        until("the old key is refused", || {
            n += 1;
            admitted(&mut ws, &node, &format!("again-{n}"), &gone) == Err(4500)
        });
        if ends {
            assert_eq!(ws.closed("gone"), (4500, "unauthorized".into()));
        } else {
            assert!(ws.request("gone", "heartbeat", json!({}))["ts"].is_u64());
        }
        assert!(ws.request("kept", "heartbeat", json!({}))["ts"].is_u64());
    }
}

#[test]
fn a_key_set_file_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("set.json");
    std::fs::write(&file, set(&[Pair::Ed25519.jwk("a")])).unwrap();
    let node = Node::start(vec![keyed("one", &format!("jwks_file = {file:?}"))]);
    let mut ws = Clients::ws();
    let (old, new) =
        (Pair::Ed25519.token(Some("a"), json!({"sub": "bob"})), Pair::P256.token(Some("b"), json!({"sub": "bob"})));
    assert_eq!(admitted(&mut ws, &node, "old", &old), Ok(()));
    assert_eq!(admitted(&mut ws, &node, "new", &new), Err(4500));
    std::fs::write(&file, "half a se").unwrap();
    until("the log tells", || node.log().contains("the keys of before stay"));
    assert_eq!(admitted(&mut ws, &node, "old again", &old), Ok(()));
    std::fs::write(&file, set(&[Pair::P256.jwk("b")])).unwrap();
    let mut n = 0;
    until("the new key is there", || {
        n += 1;
        admitted(&mut ws, &node, &format!("new-{n}"), &new) == Ok(())
    });
    assert_eq!(admitted(&mut ws, &node, "too old", &old), Err(4500));
}

#[test]
fn a_key_set_over_https_is_trusted_when_its_authority_is_and_only_then() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let path = |name: &str| directory.path().join(name);
    let server = KeyServer::with_tls(set(&[Pair::Ed25519.jwk("a")]), &path("server.pem"), &path("server.key"));
    let url = format!("jwks_url = \"https://{}/jwks.json\"", server.address);
    let bob = Pair::Ed25519.token(Some("a"), json!({ "sub": "bob" }));
    let settings = |tenants| Settings { tenants, config: String::new(), redis_url: None };
    let ca = path("ca.pem").display().to_string();
    let trusting = Node::with_variables(settings(vec![keyed("one", &url)]), &[("SSL_CERT_FILE", &ca)]);
    let wary = Node::start(vec![keyed("one", &url)]);
    let mut ws = Clients::ws();
    assert_eq!(admitted(&mut ws, &trusting, "trusting", &bob), Ok(()));
    assert_eq!(admitted(&mut ws, &wary, "wary", &bob), Err(4004));
    until("the log says why", || wary.log().contains("TLS: "));
}

#[test]
fn the_default_tenant_takes_clients_that_name_none() {
    let settings =
        Settings { tenants: vec![open("one", "")], config: "default_tenant = \"one\"\n".into(), redis_url: None };
    let node = Node::with(settings);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let bob = token_without_tenant("bob");
    ws.try_ws("bob", &format!("ws://{}/ws", node.address), &bob);
    assert_eq!(ws.message("bob", json!({ "event": "connected" }))["data"]["subject"], "bob");
    io.tell(
        json!({"do": "connect", "name": "bob", "url": node.url(), "path": "/socket.io/", "auth": { "token": bob }}),
    );
    io.expect(json!({ "what": "connect", "name": "bob" }));
    // A claim that names another tenant is not overruled.
    ws.try_ws("foreign", &format!("ws://{}/ws", node.address), &token("two", "bob", json!({})));
    assert_eq!(ws.closed("foreign").0, 4500);
}

#[test]
fn subject_audience_issuer_and_leeway_are_the_tenants_to_say() {
    let auth = "auth.subject_claim = \"user_id\"\nauth.audiences = [\"app\"]\nauth.issuers = [\"https://id\"]\n\
                auth.leeway_s = 60";
    let node = Node::start(vec![open("one", auth)]);
    let mut ws = Clients::ws();
    let good = json!({ "user_id": 42, "aud": ["web", "app"], "iss": "https://id" });
    let welcome = ws.join_ws(&node, "good", "one", &token("one", "not-this", good.clone()));
    assert_eq!(welcome["subject"], "42");
    assert_eq!(admitted(&mut ws, &node, "late", &token_until("one", "x", good.clone(), now_s() - 30)), Ok(()));
    assert_eq!(admitted(&mut ws, &node, "too-late", &token_until("one", "x", good.clone(), now_s() - 90)), Err(4500));
    for (name, key, value) in
        [("aud", "aud", json!("web")), ("iss", "iss", json!("https://evil")), ("sub", "user_id", json!([1]))]
    {
        let mut claims = good.clone();
        claims[key] = value;
        assert_eq!(admitted(&mut ws, &node, name, &token("one", "x", claims)), Err(4500), "{name}");
    }
    let early = json!({ "user_id": 42, "aud": "app", "iss": "https://id", "nbf": now_s() + 30 });
    assert_eq!(admitted(&mut ws, &node, "early", &token("one", "x", early)), Ok(()));
}

#[test]
fn clients_that_wait_for_authenticated_are_told_where_the_tenant_says_so() {
    let node = Node::start(vec![open("old", "authenticated_event = true\nsocketio_recovery = true"), open("new", "")]);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    for tenant in ["old", "new"] {
        let bob = token(tenant, "bob", json!({}));
        ws.join_ws(&node, tenant, tenant, &bob);
        io.join_socketio(&node, tenant, tenant, &bob);
    }
    assert_eq!(ws.message("old", json!({ "event": "authenticated" }))["data"]["user_id"], "bob");
    let told = io.event("old", "authenticated");
    assert_eq!(told["user_id"], "bob");
    assert!(told["expires_at_s"].as_u64().unwrap() > now_s());
    ws.absent(json!({ "what": "message", "name": "new", "json": { "event": "authenticated" } }));
    io.absent(json!({ "what": "event", "name": "new", "event": "authenticated" }));
}

/// Revokes as one more node would.
fn revoke(redis: &RedisServer, what: RevokedTokens) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = connect(&redis.url(), Options::default()).await.unwrap();
        let tenant = TenantId::parse("one").unwrap();
        let node = Backlog::of_node();
        let decisions = Decisions::new(tenant, engine, CallLimits::default(), Backlog::of_tenant(&node));
        decisions.revoke(&Revocation { what, until_ms: now_ms() + 60_000 }).await.unwrap();
    });
}

fn of_subject(subject: &str, issued_before_s: Option<u64>) -> RevokedTokens {
    RevokedTokens::Subject { subject: subject.into(), issued_before_s }
}

fn nodes(redis: &RedisServer) -> [Node; 2] {
    let node =
        || Node::with(Settings { tenants: vec![open("one", "")], config: String::new(), redis_url: Some(redis.url()) });
    [node(), node()]
}

#[test]
fn a_subject_that_is_revoked_is_out_on_all_nodes_within_a_second_and_stays_out() {
    let redis = RedisServer::start();
    let nodes = nodes(&redis);
    let (mut ws, mut io) = (Clients::ws(), Clients::socketio());
    let bob = token("one", "bob", json!({}));
    for (n, node) in nodes.iter().enumerate() {
        ws.join_ws(node, &format!("bob-{n}"), "one", &bob);
        ws.join_ws(node, &format!("eve-{n}"), "one", &token("one", "eve", json!({})));
        io.try_socketio(node, &format!("bob-{n}"), "one", "/events", json!({ "token": bob }));
        io.expect(json!({ "what": "connect", "name": format!("bob-{n}") }));
    }
    revoke(&redis, of_subject("bob", None));
    let revoked = Instant::now();
    for n in 0..2 {
        assert_eq!(ws.closed(&format!("bob-{n}")), (4500, "unauthorized".into()));
        io.expect(json!({ "what": "disconnect", "name": format!("bob-{n}") }));
    }
    assert!(revoked.elapsed() < Duration::from_secs(1), "it took {:?}", revoked.elapsed());
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(admitted(&mut ws, node, &format!("again-{n}"), &bob), Err(4500));
        assert!(ws.request(&format!("eve-{n}"), "heartbeat", json!({}))["ts"].is_u64(), "eve is out, too");
    }
    assert!(nodes[0].metric("revoked_connections_total", "") >= 2.0);
}

#[test]
fn a_token_that_is_revoked_by_its_id_takes_nobody_else_with_it() {
    let redis = RedisServer::start();
    let nodes = nodes(&redis);
    let mut ws = Clients::ws();
    let with_id = |id: &str| token("one", "bob", json!({ "jti": id }));
    for id in ["stolen", "own"] {
        ws.join_ws(&nodes[1], id, "one", &with_id(id));
    }
    // One that has since shown a fresh token is known by that.
    ws.join_ws(&nodes[0], "refreshed", "one", &with_id("stolen"));
    ws.request("refreshed", "refresh_token", json!({ "token": with_id("own") }));
    revoke(&redis, RevokedTokens::Token { token_id: "stolen".into() });
    assert_eq!(ws.closed("stolen"), (4500, "unauthorized".into()));
    assert_eq!(admitted(&mut ws, &nodes[0], "again", &with_id("stolen")), Err(4500));
    assert_eq!(admitted(&mut ws, &nodes[0], "new", &with_id("new")), Ok(()));
    for name in ["own", "refreshed"] {
        let refused = ws.request(name, "refresh_token", json!({ "token": with_id("stolen") }));
        assert_eq!(refused["error"]["code"], "unauthorized", "{name}");
        assert!(ws.request(name, "heartbeat", json!({}))["ts"].is_u64(), "{name} is out, too");
    }
}

#[test]
fn whoever_signs_in_anew_gets_in_where_only_older_tokens_are_revoked() {
    let redis = RedisServer::start();
    let nodes = nodes(&redis);
    let mut ws = Clients::ws();
    let issued = |at: u64| token("one", "bob", json!({ "iat": at }));
    let now = now_s();
    assert_eq!(admitted(&mut ws, &nodes[0], "old", &issued(now - 100)), Ok(()));
    assert_eq!(admitted(&mut ws, &nodes[0], "young", &issued(now + 1)), Ok(()));
    revoke(&redis, of_subject("bob", Some(now)));
    assert_eq!(ws.closed("old").0, 4500);
    assert_eq!(admitted(&mut ws, &nodes[1], "older", &issued(now - 1)), Err(4500));
    assert_eq!(admitted(&mut ws, &nodes[1], "undated", &token("one", "bob", json!({}))), Err(4500));
    assert_eq!(admitted(&mut ws, &nodes[1], "anew", &issued(now)), Ok(()));
    assert!(ws.request("young", "heartbeat", json!({}))["ts"].is_u64());
}

#[test]
fn who_connects_while_being_revoked_is_never_left_in() {
    let redis = RedisServer::start();
    let nodes = nodes(&redis);
    let mut ws = Clients::ws();
    for n in 0..20 {
        let subject = format!("s{n}");
        let token: String = token("one", &subject, json!({}));
        let names: Vec<String> = (0..4).map(|c| format!("{subject}-{c}")).collect();
        for (c, name) in names.iter().enumerate() {
            ws.try_ws(name, &nodes[c % 2].ws("one"), &token);
        }
        revoke(&redis, of_subject(&subject, None));
        for name in &names {
            assert_eq!(ws.closed(name).0, 4500, "{name}");
        }
    }
    let people: Value = ws.all(&json!({ "what": "message", "json": { "event": "connected" } })).len().into();
    println!("{people} of 80 were in when they were revoked");
}
