//! What limits count over all nodes: seats of clients, and tokens.

use std::num::NonZeroU32;
use std::time::Duration;

use ::redis::Value;

use super::follow::unexpected;
use super::keys::TenantKeys;
use super::nodes::Nodes;
use super::script;
use crate::client::ConnectionId;
use crate::engine::{EngineError, SEATS_KEPT_MS, Seat, SeatLimits, Seating, Tokens, Whose};
use crate::tenant::TenantId;

/// How often a node begins again that finds itself dead.
const ATTEMPTS_MAX: usize = 3;

/// Seats that one script keeps or gives back.
const SEATS_AT_ONCE: usize = 200;

fn fenced_again() -> EngineError {
    EngineError::Unavailable("this node is counted as gone again and again".into())
}

/// See [`Engine::take_seat`](crate::engine::Engine::take_seat).
pub(super) async fn take_seat(
    nodes: &Nodes,
    tenant: &TenantId,
    seat: &Seat,
    limits: SeatLimits,
    instead_of: Option<&ConnectionId>,
) -> Result<Seating, EngineError> {
    let keys = TenantKeys::of(tenant);
    let (user, all, dead) = (keys.seats_of(&seat.subject), keys.seats(), keys.partition().dead());
    let names = [&*user, &*all, &*dead, &*keys.connections(), &*keys.seats_told()];
    let [per_user, per_tenant] = [limits.per_user, limits.per_tenant].map(|most| most.to_string());
    let (kept, earlier) = (SEATS_KEPT_MS.to_string(), instead_of.map_or("", ConnectionId::as_str));
    for _ in 0..ATTEMPTS_MAX {
        let incarnation = nodes.incarnation();
        let own = [&*incarnation, seat.connection.as_str(), &per_user, &per_tenant, &kept, earlier];
        let link = nodes.router.to_tenant(tenant).link().await?;
        let answer = script::TAKE_SEAT.run(&mut link.connection(), &names, &own.map(str::as_bytes)).await;
        match answer.map_err(|e| link.write_error(&e))? {
            Value::Int(of_tenant) => {
                return Ok(Seating::Taken { of_tenant: u32::try_from(of_tenant).unwrap_or(u32::MAX) });
            }
            Value::BulkString(word) if word == b"user-full" => return Ok(Seating::Full(Whose::User)),
            Value::BulkString(word) if word == b"tenant-full" => return Ok(Seating::Full(Whose::Tenant)),
            Value::BulkString(word) if word == b"fenced" => nodes.lost(&incarnation),
            other => return Err(unexpected(&other)),
        }
    }
    Err(fenced_again())
}

/// See [`Engine::keep_seats`](crate::engine::Engine::keep_seats).
pub(super) async fn keep_seats(
    nodes: &Nodes,
    tenant: &TenantId,
    kept: &[Seat],
    given_back: &[Seat],
) -> Result<u32, EngineError> {
    let mut taken = 0;
    let pages = kept.chunks(SEATS_AT_ONCE).map(|page| (page, &[][..]));
    // Behind the others: what was given back while they were looked up is given back.
    for (kept, given_back) in pages.chain(given_back.chunks(SEATS_AT_ONCE).map(|page| (&[][..], page))) {
        taken = keep_page(nodes, tenant, kept, given_back).await?;
    }
    Ok(taken)
}

async fn keep_page(nodes: &Nodes, tenant: &TenantId, kept: &[Seat], given_back: &[Seat]) -> Result<u32, EngineError> {
    let keys = TenantKeys::of(tenant);
    let (all, dead, kept_ms) = (keys.seats(), keys.partition().dead(), SEATS_KEPT_MS.to_string());
    let words = |seats: &[Seat]| -> Vec<(String, String)> {
        seats.iter().map(|seat| (seat.subject.to_string(), seat.connection.as_str().to_owned())).collect()
    };
    let packed = rmp_serde::to_vec(&(words(kept), words(given_back)));
    let packed = packed.map_err(|e| EngineError::Corrupt(e.to_string()))?;
    let names = [&*all, &*dead, &*keys.seats_told()];
    for _ in 0..ATTEMPTS_MAX {
        let incarnation = nodes.incarnation();
        let arguments = [keys.base().as_bytes(), incarnation.as_bytes(), kept_ms.as_bytes(), packed.as_slice()];
        let link = nodes.router.to_tenant(tenant).link().await?;
        let answer = script::KEEP_SEATS.run(&mut link.connection(), &names, &arguments).await;
        match answer.map_err(|e| link.write_error(&e))? {
            Value::Int(taken) => return Ok(u32::try_from(taken).unwrap_or(u32::MAX)),
            Value::BulkString(word) if word == b"fenced" => nodes.lost(&incarnation),
            other => return Err(unexpected(&other)),
        }
    }
    Err(fenced_again())
}

/// See [`Engine::take_tokens`](crate::engine::Engine::take_tokens).
pub(super) async fn take_tokens(
    nodes: &Nodes,
    tenant: &TenantId,
    bucket: &str,
    per_minute: NonZeroU32,
    wanted: NonZeroU32,
) -> Result<Tokens, EngineError> {
    let key = TenantKeys::of(tenant).bucket(bucket);
    let arguments = [per_minute, wanted].map(|number| number.to_string());
    let link = nodes.router.to_tenant(tenant).link().await?;
    let arguments = [arguments[0].as_bytes(), arguments[1].as_bytes()];
    let answer = script::TAKE_TOKENS.run(&mut link.connection(), &[&*key], &arguments).await;
    let answer = answer.map_err(|e| link.write_error(&e))?;
    let (granted, wait_ms): (u32, u64) =
        ::redis::from_redis_value(answer).map_err(|e| EngineError::Corrupt(format!("tokens: {e}")))?;
    Ok(match granted {
        0 => Tokens::Wait(Duration::from_millis(wait_ms)),
        granted => Tokens::Granted(granted),
    })
}
