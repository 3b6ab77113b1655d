#![doc = include_str!("../ARCHITECTURE.md")]

pub mod cli;
pub mod config;
pub mod run;

pub mod client;
pub mod close;
pub mod commit;
pub mod event;
pub mod room;
pub mod tenant;

pub mod catalog;
pub mod gateway;
pub mod key_sets;
pub mod limits;
pub mod rates;
pub mod scenario;
pub mod seats;

pub mod session;

pub mod connection;
pub mod decision;
pub mod delivery;
pub mod engine;

pub mod http;
pub mod presence;
pub mod quota;
pub mod reading;
pub mod tail;
pub mod timers;
pub mod traffic;
pub mod usage;

pub mod drain;
pub mod telemetry;
