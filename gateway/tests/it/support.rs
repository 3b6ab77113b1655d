//! What several tests stand on.

pub(crate) mod redis_server;
