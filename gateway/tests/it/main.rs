//! The one integration test binary: the parts together, with real files, sockets, servers and clients.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

// The parts.
mod catalog;
mod contract;
mod embedded;
mod engine_suite;
mod plugin_build;
mod plugin_host;
mod plugin_test;
mod redis_cluster;
mod redis_engine;
mod redis_nodes;
mod redis_sentinel;
mod redis_tls;
mod usage;
mod warm;

// The whole, as its users meet it.
mod admin;
mod approvals;
mod cli;
mod cluster;
mod connect;
mod demo;
mod deploy;
mod first_plugin;
mod habits;
mod harm;
mod hostile;
mod hostile_totals;
mod hostile_uploads;
mod http;
mod http_api;
mod languages;
mod limits;
mod moving;
mod outage;
mod outcome;
mod presence;
mod recovery;
mod rooms;
mod rooms_load;
mod shutdown;
mod socketio;
mod socketio_apps;
mod tokens;

// The documents name what is there.
mod documents;
// What each part must not know.
mod tidy;
