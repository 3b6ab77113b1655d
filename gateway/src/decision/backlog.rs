//! What waits while the engine is away: bounded in number, bytes and time, the same for all tenants.
//!
//! A short outage is then nothing but a late answer; a long one is told at once. Nothing of it is delivered or
//! acknowledged before the engine has it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::Health;
use crate::event::Refusal;

/// How long an outage may be for an input to wait for its end; also how long one input waits in all.
pub const OUTAGE_WAIT_MAX: Duration = Duration::from_secs(10);

/// The first rest of an input whose connection this node is about to register again; each is twice as long as the one
/// before.
const REGISTERING_REST: Duration = Duration::from_millis(50);

/// The longest such rest.
const REGISTERING_REST_MAX: Duration = Duration::from_millis(400);

/// What a client is told to wait before it tries again, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

/// What may wait on this node.
const NODE: Limits = Limits { whose: "the node", inputs: 20_000, bytes: 32 << 20 };

/// What may wait of one tenant: a quarter, so that one does not take the others' places.
const TENANT: Limits = Limits { whose: "the tenant", inputs: 5_000, bytes: 8 << 20 };

#[derive(Debug, Clone, Copy)]
struct Limits {
    whose: &'static str,
    inputs: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Held {
    inputs: usize,
    bytes: usize,
}

/// Places for inputs that wait, of the node or of one of its tenants.
#[derive(Debug)]
pub struct Backlog {
    limits: Limits,
    held: Mutex<Held>,
    node: Option<Arc<Backlog>>,
}

/// Why there is no place: names the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} has {1} waiting for the engine, at most {2} may")]
struct Full(&'static str, String, String);

impl Backlog {
    /// The node's.
    pub fn of_node() -> Arc<Backlog> {
        Arc::new(Backlog { limits: NODE, held: Mutex::default(), node: None })
    }

    /// A tenant's share of the node's.
    pub fn of_tenant(node: &Arc<Backlog>) -> Arc<Backlog> {
        Arc::new(Backlog { limits: TENANT, held: Mutex::default(), node: Some(node.clone()) })
    }

    fn take(self: &Arc<Backlog>, bytes: usize) -> Result<Place, Full> {
        let node = self.node.as_ref().map(|node| node.take(bytes)).transpose()?;
        let mut held = self.held.lock();
        let Limits { whose, inputs, bytes: bytes_max } = self.limits;
        if held.inputs >= inputs {
            return Err(Full(whose, format!("{} inputs", held.inputs), inputs.to_string()));
        }
        if held.bytes + bytes > bytes_max {
            return Err(Full(whose, format!("{} bytes", held.bytes), bytes_max.to_string()));
        }
        held.inputs += 1;
        held.bytes += bytes;
        self.tell(&held);
        Ok(Place { backlog: self.clone(), bytes, _node: node.map(Box::new) })
    }

    /// The node's places are what operators see; the tenants' add up to them.
    fn tell(&self, held: &Held) {
        if self.node.is_none() {
            #[expect(clippy::cast_precision_loss, reason = "bounded by the limits of the node")]
            let (inputs, bytes) = (held.inputs as f64, held.bytes as f64);
            metrics::gauge!("backlog_inputs").set(inputs);
            metrics::gauge!("backlog_bytes").set(bytes);
        }
    }
}

/// A place; given back when dropped.
#[derive(Debug)]
struct Place {
    backlog: Arc<Backlog>,
    bytes: usize,
    _node: Option<Box<Place>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.backlog.held.lock();
        held.inputs -= 1;
        held.bytes -= self.bytes;
        self.backlog.tell(&held);
    }
}

/// One input's patience with the engine.
pub(super) struct Outage {
    backlog: Arc<Backlog>,
    health: watch::Receiver<Health>,
    bytes: usize,
    deadline: Option<Instant>,
    /// Rests for want of a registered connection.
    rests: u32,
}

impl Outage {
    /// Of an input of about this size.
    pub(super) fn new(backlog: &Arc<Backlog>, health: watch::Receiver<Health>, bytes: usize) -> Outage {
        Outage { backlog: backlog.clone(), health, bytes, deadline: None, rests: 0 }
    }

    /// Is the engine known to be away?
    pub(super) fn is_on(&self) -> bool {
        matches!(*self.health.borrow(), Health::Down { .. })
    }

    /// Waits until the engine is there, at once if it is.
    ///
    /// # Errors
    /// It is away for longer than an input may wait, or too much waits already.
    pub(super) async fn over(&mut self) -> Result<(), Refusal> {
        let (since, why) = match &*self.health.borrow() {
            Health::Up => return Ok(()),
            Health::Down { since, why } => (*since, why.clone()),
        };
        let own = *self.deadline.get_or_insert_with(|| Instant::now() + OUTAGE_WAIT_MAX);
        let deadline = own.min(since + OUTAGE_WAIT_MAX);
        if Instant::now() >= deadline {
            let away_ms = since.elapsed().as_millis();
            tracing::debug!(away_ms, %why, "refused: the engine is away");
            return Err(refused(format!("the engine has been away for {away_ms} ms")));
        }
        let _place = self.backlog.take(self.bytes).map_err(|full| refused(full.to_string()))?;
        match timeout_at(deadline, self.health.wait_for(|health| *health == Health::Up)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(refused("the engine is closed".into())),
            Err(_) => {
                let max = OUTAGE_WAIT_MAX.as_millis();
                tracing::debug!(%why, "refused: the engine is away");
                Err(refused(format!("the engine is away, for longer than the {max} ms that an input waits")))
            }
        }
    }

    /// Rests a little: after a loss this node registers its connections again, and the input's is not there yet.
    ///
    /// # Errors
    /// It is not for longer than an input may wait, or too much waits already.
    pub(super) async fn registering(&mut self) -> Result<(), Refusal> {
        let now = Instant::now();
        if now >= *self.deadline.get_or_insert_with(|| now + OUTAGE_WAIT_MAX) {
            let max = OUTAGE_WAIT_MAX.as_millis();
            return Err(refused(format!(
                "the connection is not registered, for longer than the {max} ms that an input waits"
            )));
        }
        let _place = self.backlog.take(self.bytes).map_err(|full| refused(full.to_string()))?;
        sleep((REGISTERING_REST * 2_u32.pow(self.rests.min(8))).min(REGISTERING_REST_MAX)).await;
        self.rests += 1;
        Ok(())
    }
}

fn refused(text: String) -> Refusal {
    metrics::counter!("backlog_refused_total").increment(1);
    Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..Refusal::new("engine_unavailable", text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(backlog: &Backlog) -> (usize, usize) {
        let held = backlog.held.lock();
        (held.inputs, held.bytes)
    }

    fn down(since: Instant) -> Health {
        Health::Down { since, why: "no route".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_input_goes_on_when_the_engine_is_back() {
        let (tell, health) = watch::channel(down(Instant::now()));
        let backlog = Backlog::of_tenant(&Backlog::of_node());
        let mut outage = Outage::new(&backlog, health, 10);
        let back = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            assert_eq!(held(&backlog), (1, 10));
            tell.send_replace(Health::Up);
        };
        let (waited, ()) = tokio::join!(outage.over(), back);
        assert_eq!(waited, Ok(()));
        assert_eq!(held(&backlog), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_outage_is_told_after_ten_seconds_and_then_at_once() {
        let start = Instant::now();
        let (_tell, health) = watch::channel(down(start));
        let backlog = Backlog::of_node();
        let refusal = Outage::new(&backlog, health.clone(), 1).over().await.unwrap_err();
        assert_eq!((refusal.code.as_str(), refusal.retry_after_ms), ("engine_unavailable", Some(2_000)));
        assert_eq!(start.elapsed().as_secs(), 10);
        let refusal = Outage::new(&backlog, health, 1).over().await.unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 10, "nobody waits for an engine that is away for long");
        assert!(refusal.message.contains("away for 10000 ms"), "{}", refusal.message);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_flaps_does_not_hold_an_input_for_ever() {
        let start = Instant::now();
        let (tell, health) = watch::channel(down(start));
        let mut outage = Outage::new(&Backlog::of_node(), health, 1);
        let flapping = async {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                tell.send_replace(Health::Up);
                tokio::task::yield_now().await;
                tell.send_replace(down(Instant::now()));
            }
        };
        let input = async {
            while outage.over().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = flapping => {}, () = input => {} }
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_input_waits_ten_seconds_for_its_connection_and_takes_a_place_meanwhile() {
        let start = Instant::now();
        let (_tell, health) = watch::channel(Health::Up);
        let backlog = Backlog::of_tenant(&Backlog::of_node());
        let mut outage = Outage::new(&backlog, health, 10);
        let input = async {
            let mut tries = 0;
            loop {
                match outage.registering().await {
                    Ok(()) => tries += 1,
                    Err(refusal) => return (tries, refusal),
                }
            }
        };
        let look = async {
            tokio::time::sleep(Duration::from_millis(9_000)).await;
            held(&backlog)
        };
        let ((tries, refusal), waiting) = tokio::join!(input, look);
        assert_eq!((waiting, held(&backlog)), ((1, 10), (0, 0)));
        assert_eq!((refusal.code.as_str(), refusal.retry_after_ms), ("engine_unavailable", Some(2_000)));
        assert_eq!(start.elapsed().as_secs(), 10);
        assert!((20..40).contains(&tries), "{tries} tries");
    }

    #[test]
    fn a_tenant_takes_its_own_places_only_and_the_refusal_names_the_limit() {
        let node = Backlog::of_node();
        let (greedy, other) = (Backlog::of_tenant(&node), Backlog::of_tenant(&node));
        let places: Vec<_> = (0..TENANT.inputs).map(|_| greedy.take(1).unwrap()).collect();
        let full = greedy.take(1).unwrap_err().to_string();
        assert_eq!(full, "the tenant has 5000 inputs waiting for the engine, at most 5000 may");
        assert!(other.take(TENANT.bytes).is_ok());
        assert!(other.take(TENANT.bytes + 1).unwrap_err().to_string().contains("bytes"));
        drop(places);
        assert_eq!(held(&node), (0, 0));
    }
}
