//! Act 2: events become commits.

pub mod plugin;
pub mod token;
