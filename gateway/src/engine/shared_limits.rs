//! What limits of users and tenants count over all nodes: seats of clients, and tokens.

use std::sync::Arc;
use std::time::Duration;

use crate::client::ConnectionId;

/// A client that counts against the limits on connections: one WebSocket, whatever namespaces it is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// Whose.
    pub subject: Arc<str>,
    /// The first connection of the client: what names the seat.
    pub connection: ConnectionId,
}

/// How many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeatLimits {
    /// Of one user.
    pub per_user: u32,
    /// Of the tenant.
    pub per_tenant: u32,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The user's.
    User,
    /// The tenant's.
    Tenant,
}

/// What became of asking for a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seating {
    /// It is taken.
    Taken {
        /// How many seats of the tenant are taken with that, about: those of a node that died may be among them.
        of_tenant: u32,
    },
    /// There are as many as there may be.
    Full(Whose),
}

/// What became of asking for tokens of a bucket that all nodes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// So many, at least one and at most as many as were asked for.
    Granted(u32),
    /// None; how long until there is one.
    Wait(Duration),
}
