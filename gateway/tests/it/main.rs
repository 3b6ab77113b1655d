//! One binary for all tests that see the gateway from outside.

mod contract;
mod plugin_build;
