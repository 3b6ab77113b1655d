//! Postern: a multi-tenant real-time gateway whose rules are WebAssembly components.

pub mod config;

pub mod client;
pub mod close;
pub mod commit;
pub mod event;
pub mod room;
pub mod tenant;

pub mod connection;
pub mod decision;
pub mod delivery;
pub mod engine;

pub mod cli;
