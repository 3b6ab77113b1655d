//! Act 1: bytes become events.

pub mod server;
pub mod upgrade;

pub mod socket;

pub mod protocol;
