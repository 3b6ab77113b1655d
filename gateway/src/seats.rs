//! The seats of this node's clients: what limits on connections count over all nodes.
//!
//! A seat is taken with one call of the engine when a client comes in, and given back when it goes. So of clients that
//! come in at once, on whatever nodes, no more get in than may. What could fail is made good by saying again and again
//! which seats this node has:
//!
//! * While the engine is away each node counts for itself; afterwards all that came in meanwhile stay, at most the
//!   limit on each node.
//! * When the engine loses its data, seats are missing until their nodes have said so again: at most [`KEEP_EVERY`] and
//!   half of it, at once after an outage.
//! * Seats of a node that died count until the others have counted it as gone (its lease, and a beat), or until it has
//!   said nothing for [`SEATS_KEPT_MS`](crate::engine::SEATS_KEPT_MS); those of one that stops in order are given back
//!   with its clients. Who comes back to its session takes its own seat again at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::ConnectionId;
use crate::close::jitter;
use crate::drain::Tasks;
use crate::engine::{Engine, EngineError, Health, Seat, SeatLimits, Seating, Whose};
use crate::tenant::TenantId;

/// How often a node says which seats it has, about.
const KEEP_EVERY: Duration = Duration::from_secs(30);

/// How long saying so rests when the engine did not answer, about.
const ERROR_REST: Duration = Duration::from_secs(1);

/// How long a client waits for the engine to give it a seat.
const TAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long saying which seats a node has may take; then it is begun again.
const KEEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long giving back may take when the node stops: what is left goes with the node.
const LAST_TIMEOUT: Duration = Duration::from_millis(500);

/// Seats that wait to be given back, at most. What is beyond counts until this node ends: it takes that many clients that
/// go while the engine is away.
const GIVEN_BACK_MAX: usize = 100_000;

/// Those of one tenant on this node.
#[derive(Debug, Default)]
pub struct Seats {
    table: Mutex<Table>,
    /// Some were given back.
    changed: Notify,
    is_kept: AtomicBool,
    retired: CancellationToken,
    /// The most of the tenant that were taken at once on all nodes since somebody asked, as far as this one was told.
    peak: AtomicU32,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<ConnectionId, Arc<str>>,
    given_back: Vec<Seat>,
}

/// Where seats are counted, and what is counted there.
pub struct Whole<'a> {
    /// Who counts.
    pub engine: &'a Arc<dyn Engine>,
    /// Where this node's part is kept up from.
    pub tasks: &'a Tasks,
    /// Whose seats.
    pub tenant: &'a TenantId,
    /// How many there may be.
    pub limits: SeatLimits,
}

/// One seat; given back when dropped.
#[derive(Debug)]
pub struct HeldSeat {
    seats: Arc<Seats>,
    /// `None`: there is nothing to give back.
    seat: Option<Seat>,
}

impl Drop for HeldSeat {
    fn drop(&mut self) {
        let Some(seat) = self.seat.take() else { return };
        let mut table = self.seats.table.lock();
        table.held.remove(&seat.connection);
        if table.given_back.len() < GIVEN_BACK_MAX {
            table.given_back.push(seat);
        }
        drop(table);
        self.seats.changed.notify_one();
    }
}

impl Seats {
    /// Takes a seat of all nodes; while the engine does not answer everybody gets one. See
    /// [`Engine::take_seat`] for `instead_of`.
    ///
    /// # Errors
    /// Whose limit is reached.
    pub async fn take(
        self: &Arc<Self>,
        whole: &Whole<'_>,
        seat: &Seat,
        instead_of: Option<&ConnectionId>,
    ) -> Result<HeldSeat, Whose> {
        if !self.is_kept.swap(true, Ordering::AcqRel) {
            let (engine, tenant) = (whole.engine.clone(), whole.tenant.clone());
            whole.tasks.spawn(keep(self.clone(), engine, tenant, whole.tasks.stopping().clone()));
        }
        // From here on: it may be taken although nobody waits for the answer any more.
        let mut held = HeldSeat { seats: self.clone(), seat: Some(seat.clone()) };
        match ask(whole, seat, instead_of).await {
            Some(Seating::Full(whose)) => {
                held.seat = None;
                return Err(whose);
            }
            Some(Seating::Taken { of_tenant }) => {
                self.peak.fetch_max(of_tenant, Ordering::Relaxed);
            }
            None => metrics::counter!("limits_alone_total", "limit" => "seat").increment(1),
        }
        self.table.lock().held.insert(seat.connection.clone(), seat.subject.clone());
        Ok(held)
    }

    /// The most of the tenant that were taken at once on all nodes since the last time this was asked, as far as this
    /// one was told: it is told with every seat that it takes, and each [`KEEP_EVERY`], about.
    pub fn take_peak(&self) -> u32 {
        self.peak.swap(0, Ordering::Relaxed)
    }

    /// The tenant is out of service for good: with its last client here, nothing is kept up any more.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// Is nobody seated, and nothing to be given back? Then whoever takes a seat all the same sees to it that they are
    /// kept again.
    fn may_be_left(&self) -> bool {
        let table = self.table.lock();
        let may_be = table.held.is_empty() && table.given_back.is_empty();
        if may_be {
            self.is_kept.store(false, Ordering::Release);
        }
        may_be
    }

    /// Gives back what waits for that; with `all` says which seats this node has, too.
    async fn say(&self, engine: &dyn Engine, tenant: &TenantId, all: bool) -> Result<(), EngineError> {
        let (held, given_back) = {
            let mut table = self.table.lock();
            let seat = |(connection, subject): (&ConnectionId, &Arc<str>)| Seat {
                subject: subject.clone(),
                connection: connection.clone(),
            };
            let held: Vec<_> = if all { table.held.iter().map(seat).collect() } else { Vec::new() };
            (held, std::mem::take(&mut table.given_back))
        };
        if held.is_empty() && given_back.is_empty() {
            return Ok(());
        }
        let late = || EngineError::Unavailable(format!("no answer within {KEEP_TIMEOUT:?}"));
        let said = timeout(KEEP_TIMEOUT, engine.keep_seats(tenant, &held, &given_back)).await;
        let said = said.unwrap_or_else(|_| Err(late()));
        // Also where nobody comes: a day that begins has a most of its own.
        if let Ok(of_tenant) = said {
            self.peak.fetch_max(of_tenant, Ordering::Relaxed);
        } else {
            let mut table = self.table.lock();
            let room = GIVEN_BACK_MAX.saturating_sub(table.given_back.len());
            table.given_back.extend(given_back.into_iter().take(room));
        }
        said.map(drop)
    }
}

/// What the engine says; `None`: nothing, in time.
async fn ask(whole: &Whole<'_>, seat: &Seat, instead_of: Option<&ConnectionId>) -> Option<Seating> {
    let Whole { engine, tenant, limits, .. } = *whole;
    if *engine.health(tenant).borrow() != Health::Up {
        return None;
    }
    match timeout(TAKE_TIMEOUT, engine.take_seat(tenant, seat, limits, instead_of)).await {
        Ok(Ok(seating)) => Some(seating),
        Ok(Err(error)) => {
            tracing::debug!(%tenant, %error, "connections are counted on this node alone");
            None
        }
        Err(_) => None,
    }
}

/// Gives seats back as clients go, and says now and then which ones there are, until the node stops or the last client
/// of a tenant that is out of service has gone.
async fn keep(seats: Arc<Seats>, engine: Arc<dyn Engine>, tenant: TenantId, stopping: CancellationToken) {
    let mut health = engine.health(&tenant);
    let mut say_at = Instant::now() + KEEP_EVERY / 2 + jitter(KEEP_EVERY);
    let mut is_retired = false;
    loop {
        if is_retired && seats.may_be_left() {
            return;
        }
        let all = tokio::select! {
            () = seats.retired.cancelled(), if !is_retired => {
                is_retired = true;
                false
            }
            () = seats.changed.notified() => Instant::now() >= say_at,
            () = sleep_until(say_at) => true,
            changed = health.changed() => match changed {
                // What was taken and given back meanwhile is not known there.
                Ok(()) if *health.borrow_and_update() == Health::Up => true,
                Ok(()) => continue,
                Err(_) => return,
            },
            () = stopping.cancelled() => {
                if timeout(LAST_TIMEOUT, seats.say(&*engine, &tenant, false)).await.is_err() {
                    tracing::debug!(%tenant, "seats are left to be counted out with this node");
                }
                return;
            }
        };
        match seats.say(&*engine, &tenant, all).await {
            Ok(()) if all => say_at = Instant::now() + KEEP_EVERY / 2 + jitter(KEEP_EVERY),
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%tenant, %error, "it could not be said which seats there are");
                say_at = Instant::now() + ERROR_REST + jitter(ERROR_REST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::{EmbeddedEngine, Options};

    #[tokio::test(start_paused = true)]
    async fn the_most_seats_of_a_day_are_known_also_where_nobody_comes_on_that_day() {
        let engine: Arc<dyn Engine> = EmbeddedEngine::in_memory(Options::default()).unwrap();
        let (tasks, tenant) = (Tasks::default(), TenantId::parse("acme").unwrap());
        let limits = SeatLimits { per_user: 10, per_tenant: 10 };
        let whole = Whole { engine: &engine, tasks: &tasks, tenant: &tenant, limits };
        let seats = Arc::new(Seats::default());
        let seat = |n| Seat { subject: "bob".into(), connection: ConnectionId::from(n) };
        let held = [
            seats.take(&whole, &seat("c1"), None).await.unwrap(),
            seats.take(&whole, &seat("c2"), None).await.unwrap(),
        ];
        assert_eq!((seats.take_peak(), seats.take_peak()), (2, 0));
        tokio::time::sleep(2 * KEEP_EVERY).await;
        assert_eq!(seats.take_peak(), 2);
        drop(held);
    }
}
