//! The Redis engine through TLS.

use std::net::{Ipv4Addr, TcpListener};

use postern::engine::Engine as _;
use postern::engine::redis::{Options, connect};

use crate::redis_engine::{acme, apply, next_position, say};
use crate::support::redis_server::RedisServer;
use crate::support::tls::certificates;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_trusted_when_its_authority_is_and_only_then() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let _server = RedisServer::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    let options = Options { ca_file: Some(directory.path().join("ca.pem")), ..Options::default() };
    let engine = connect(&url, options).await.unwrap();
    let mut follower = engine.follow(&acme()).await.unwrap();
    let position = apply(&engine, say("hidden")).await;
    assert_eq!(next_position(&mut follower).await, position);

    let error = connect(&url, Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let nowhere = Options { ca_file: Some("/nowhere/ca.pem".into()), ..Options::default() };
    let error = connect(&url, nowhere).await.unwrap_err().to_string();
    assert!(error.contains("redis_ca_file") && error.contains("/nowhere/ca.pem"), "{error}");
}
