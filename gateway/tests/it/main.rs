//! The one integration test binary: the parts together, with real files, sockets and servers.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod contract;
mod embedded;
mod engine_suite;
mod plugin_build;
mod plugin_host;
