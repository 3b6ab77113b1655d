//! Act 3: commits become bytes on other sockets.
//!
//! One task per tenant and node takes the tenant's entries in order ([`rooms`]), picks the
//! local members and hands each the encoded bytes ([`outbox`]). It never waits for a client.

pub mod outbox;
mod presence;
pub mod rooms;
