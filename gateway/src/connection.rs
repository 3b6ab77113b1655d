//! Act 1: bytes become events.

pub mod protocol;
