//! Act 1: bytes become events.

mod heads;
pub mod server;
pub mod upgrade;

pub mod socket;

pub mod protocol;
