//! Turns at computing: as many at a time as there are threads, handed out round-robin by
//! tenant, so that a tenant with fifty busy calls gets as much as a tenant with one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::Sleep;

use super::budget::Purse;
use crate::tenant::TenantId;

/// Tenants whose last round is remembered before those of earlier rounds are forgotten.
const TENANTS_REMEMBERED: usize = 1_024;

/// The most that one turn is charged, in nanoseconds: 10 ms, ten ticks of the clock that ends it. When a turn
/// took longer, the machine gave the thread's core to somebody else: that is not the component's doing.
const TURN_CHARGED_MAX_NS: u64 = 10_000_000;

/// Hands out turns. Every tenant has one turn a round while it wants one.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
}

/// There are free turns only while nobody waits.
#[derive(Debug, Default)]
struct State {
    free: usize,
    /// The round of the turn that was granted last.
    round: u64,
    /// Places in `order` so far: who came first in a round has its turn first.
    places: u64,
    /// The tenants that wait, each once, by the round of their next turn and their place in it.
    order: BTreeMap<(u64, u64), TenantId>,
    lines: HashMap<TenantId, VecDeque<Arc<Ticket>>>,
    /// The first round in which a tenant may have its next turn, for those that had one lately.
    next_rounds: HashMap<TenantId, u64>,
}

#[derive(Debug)]
struct Ticket(Mutex<Stage>);

#[derive(Debug)]
enum Stage {
    Waiting(Waker),
    Granted,
    /// Whoever waited has gone; skipped when its place comes up.
    Gone,
}

impl Gate {
    pub(super) fn new(turns: usize) -> Arc<Gate> {
        Arc::new(Gate { state: Mutex::new(State { free: turns, ..State::default() }) })
    }

    /// Takes a turn if one is free, else a place in the tenant's line.
    fn take(&self, tenant: &TenantId, waker: &Waker) -> Option<Arc<Ticket>> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return None;
        }
        let ticket = Arc::new(Ticket(Mutex::new(Stage::Waiting(waker.clone()))));
        if let Some(line) = state.lines.get_mut(tenant) {
            line.push_back(ticket.clone());
        } else {
            state.lines.insert(tenant.clone(), VecDeque::from([ticket.clone()]));
            let earliest = state.next_rounds.get(tenant).copied().unwrap_or(0);
            let round = earliest.max(state.round);
            state.line_up(tenant.clone(), round);
        }
        Some(ticket)
    }

    /// Passes a turn on to the tenant whose round it is, or back to the free ones.
    fn give_back(&self) {
        let waker = {
            let mut state = self.state.lock();
            let waker = state.grant();
            if waker.is_none() {
                state.free += 1;
                state.next_rounds.clear();
            }
            waker
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    fn line_up(&mut self, tenant: TenantId, round: u64) {
        self.places += 1;
        self.order.insert((round, self.places), tenant);
    }

    /// Grants the next turn; `None`: nobody waits.
    fn grant(&mut self) -> Option<Waker> {
        while let Some(((round, _), tenant)) = self.order.pop_first() {
            let line = self.lines.get_mut(&tenant)?;
            let waker = line.pop_front().map(|ticket| ticket.grant());
            let empty = line.is_empty();
            if empty {
                self.lines.remove(&tenant);
            }
            // Whoever has gone costs the tenant nothing.
            let Some(Some(waker)) = waker else {
                if !empty {
                    self.line_up(tenant, round);
                }
                continue;
            };
            self.round = round;
            if self.next_rounds.len() >= TENANTS_REMEMBERED {
                self.next_rounds.retain(|_, next| *next > round);
            }
            self.next_rounds.insert(tenant.clone(), round + 1);
            if !empty {
                self.line_up(tenant, round + 1);
            }
            return Some(waker);
        }
        None
    }
}

impl Ticket {
    /// Grants the turn, unless whoever waited has gone.
    fn grant(&self) -> Option<Waker> {
        let mut stage = self.0.lock();
        match std::mem::replace(&mut *stage, Stage::Granted) {
            Stage::Waiting(waker) => Some(waker),
            other => {
                *stage = other;
                None
            }
        }
    }
}

/// One call's dealings with the gate.
#[derive(Debug)]
struct Turn {
    gate: Arc<Gate>,
    tenant: TenantId,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Outside,
    InLine(Arc<Ticket>),
    Inside,
}

impl Turn {
    fn poll_enter(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.place {
            Place::Inside => return Poll::Ready(()),
            Place::Outside => {
                if let Some(ticket) = self.gate.take(&self.tenant, cx.waker()) {
                    self.place = Place::InLine(ticket);
                    return Poll::Pending;
                }
            }
            Place::InLine(ticket) => {
                let mut stage = ticket.0.lock();
                if let Stage::Waiting(waker) = &mut *stage {
                    waker.clone_from(cx.waker());
                    return Poll::Pending;
                }
            }
        }
        self.place = Place::Inside;
        Poll::Ready(())
    }

    fn leave(&mut self) {
        match std::mem::replace(&mut self.place, Place::Outside) {
            Place::Outside => {}
            Place::Inside => self.gate.give_back(),
            Place::InLine(ticket) => {
                let granted = matches!(std::mem::replace(&mut *ticket.0.lock(), Stage::Gone), Stage::Granted);
                if granted {
                    self.gate.give_back();
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.leave();
    }
}

/// How long a call has computed: the time inside `poll`, so waiting costs nothing. Time is the wall's,
/// and so at most [`TURN_CHARGED_MAX_NS`] of it counts for one turn.
#[derive(Debug)]
pub(super) struct Meter {
    born: Instant,
    spent_ns: AtomicU64,
    /// Nanoseconds after `born` at which the running poll began; 0: none runs.
    began_ns: AtomicU64,
    /// Waiting because the tenant's computing time was used up.
    slowed: Wait,
    /// Waiting in the line for a turn.
    queued: Wait,
}

/// How long it was waited for something.
#[derive(Debug, Default)]
struct Wait {
    /// Waits that are over, in nanoseconds.
    total_ns: AtomicU64,
    /// Nanoseconds after the meter's birth at which the present one began; 0: there is none.
    since_ns: AtomicU64,
}

impl Wait {
    fn until(&self, now_ns: u64) -> Duration {
        let waiting = match self.since_ns.load(Ordering::Relaxed) {
            0 => 0,
            since => now_ns.saturating_sub(since),
        };
        Duration::from_nanos(self.total_ns.load(Ordering::Relaxed) + waiting)
    }

    /// It begins, unless it has begun before.
    fn begins(&self, now_ns: u64) {
        _ = self.since_ns.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It ends, if it has begun.
    fn ends(&self, now_ns: u64) {
        let since = self.since_ns.swap(0, Ordering::Relaxed);
        if since != 0 {
            self.total_ns.fetch_add(now_ns.saturating_sub(since), Ordering::Relaxed);
        }
    }
}

impl Meter {
    pub(super) fn new() -> Arc<Meter> {
        Arc::new(Meter {
            born: Instant::now(),
            spent_ns: AtomicU64::new(0),
            began_ns: AtomicU64::new(0),
            slowed: Wait::default(),
            queued: Wait::default(),
        })
    }

    /// Computing time until now, the running poll included.
    pub(super) fn spent(&self) -> Duration {
        let running = match self.began_ns.load(Ordering::Relaxed) {
            0 => 0,
            began => self.charge(began),
        };
        Duration::from_nanos(self.spent_ns.load(Ordering::Relaxed) + running)
    }

    fn charge(&self, began_ns: u64) -> u64 {
        self.now_ns().saturating_sub(began_ns).min(TURN_CHARGED_MAX_NS)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn start(&self) {
        self.began_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// Answers what the poll is charged.
    fn stop(&self) -> Duration {
        let began = self.began_ns.swap(0, Ordering::Relaxed);
        let charge = self.charge(began);
        self.spent_ns.fetch_add(charge, Ordering::Relaxed);
        Duration::from_nanos(charge)
    }

    /// How long it has waited for computing time of its tenant, until now.
    pub(super) fn slowed(&self) -> Duration {
        self.slowed.until(self.now_ns())
    }

    /// How long it has waited for turns while others had them, until now.
    pub(super) fn queued(&self) -> Duration {
        self.queued.until(self.now_ns())
    }
}

/// How far a turn is with its tenant's computing time.
#[derive(Debug)]
enum Pace {
    /// Nothing is paid yet.
    Unpaid,
    /// Paid, to be taken later.
    Slowed(Pin<Box<Sleep>>),
    /// To be taken now.
    Paid,
}

/// A future that is polled only while it holds a turn, and whose polls are measured. It gives
/// the turn back whenever it yields or waits. Where the tenant's computing time is limited each turn is paid first.
#[derive(Debug)]
pub(super) struct Metered<F> {
    inner: F,
    turn: Turn,
    meter: Arc<Meter>,
    purse: Option<Purse>,
    pace: Pace,
}

impl<F: Future + Unpin> Metered<F> {
    pub(super) fn new(
        inner: F,
        gate: &Arc<Gate>,
        tenant: &TenantId,
        meter: &Arc<Meter>,
        purse: Option<Purse>,
    ) -> Metered<F> {
        let turn = Turn { gate: gate.clone(), tenant: tenant.clone(), place: Place::Outside };
        Metered { inner, turn, meter: meter.clone(), purse, pace: Pace::Unpaid }
    }

    fn poll_pay(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(purse) = &mut self.purse else { return Poll::Ready(()) };
        if matches!(self.pace, Pace::Unpaid) {
            let wait = purse.reserve();
            self.pace = if wait.is_zero() {
                Pace::Paid
            } else {
                self.meter.slowed.begins(self.meter.now_ns());
                Pace::Slowed(Box::pin(tokio::time::sleep(wait)))
            };
        }
        if let Pace::Slowed(sleep) = &mut self.pace {
            ready!(sleep.as_mut().poll(cx));
            self.meter.slowed.ends(self.meter.now_ns());
            self.pace = Pace::Paid;
        }
        Poll::Ready(())
    }
}

impl<F: Future + Unpin> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        ready!(self.poll_pay(cx));
        if self.turn.poll_enter(cx).is_pending() {
            self.meter.queued.begins(self.meter.now_ns());
            return Poll::Pending;
        }
        self.meter.queued.ends(self.meter.now_ns());
        self.meter.start();
        let result = Pin::new(&mut self.inner).poll(cx);
        let charged = self.meter.stop();
        self.turn.leave();
        self.pace = Pace::Unpaid;
        if let Some(purse) = &mut self.purse {
            purse.settle(charged);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    fn turn(gate: &Arc<Gate>, name: &str) -> Turn {
        Turn { gate: gate.clone(), tenant: tenant(name), place: Place::Outside }
    }

    fn enters(turn: &mut Turn) -> bool {
        turn.poll_enter(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn as_many_turns_run_at_a_time_as_there_are_threads() {
        let gate = Gate::new(2);
        let (mut a, mut b, mut c) = (turn(&gate, "a"), turn(&gate, "b"), turn(&gate, "c"));
        assert!(enters(&mut a) && enters(&mut b));
        assert!(!enters(&mut c));
        a.leave();
        assert!(enters(&mut c));
    }

    /// Who gets the turn, in order, when every call comes back for another one at once.
    fn rounds(mut calls: Vec<(&'static str, Turn)>, turns: usize) -> Vec<&'static str> {
        let mut order = Vec::new();
        for (_, turn) in &mut calls {
            let _ = enters(turn);
        }
        for _ in 0..turns {
            let (name, inside) =
                calls.iter_mut().find_map(|(name, turn)| enters(turn).then_some((*name, turn))).expect("one is inside");
            order.push(name);
            inside.leave();
            let _ = enters(inside);
        }
        order
    }

    #[test]
    fn time_in_the_line_is_measured_apart_from_computing() {
        let gate = Gate::new(1);
        let mut other = turn(&gate, "other");
        assert!(enters(&mut other));
        let meter = Meter::new();
        let mut call = Metered::new(std::future::ready(()), &gate, &tenant("acme"), &meter, None);
        let poll = |call: &mut Metered<_>| Pin::new(call).poll(&mut Context::from_waker(Waker::noop()));
        for _ in 0..2 {
            assert!(poll(&mut call).is_pending());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(meter.queued() >= Duration::from_millis(20), "{:?}", meter.queued());
        other.leave();
        assert!(poll(&mut call).is_ready());
        let waited = meter.queued();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(meter.queued(), waited);
        assert_eq!(meter.slowed(), Duration::ZERO);
    }

    #[test]
    fn fifty_busy_calls_of_one_tenant_get_one_turn_per_round_like_everybody() {
        let gate = Gate::new(1);
        let mut calls: Vec<_> = (0..50).map(|_| ("busy", turn(&gate, "busy"))).collect();
        calls.push(("quiet", turn(&gate, "quiet")));
        calls.push(("other", turn(&gate, "other")));
        let order = rounds(calls, 300);
        for window in order[3..].chunks_exact(3) {
            for name in ["busy", "quiet", "other"] {
                assert_eq!(window.iter().filter(|n| **n == name).count(), 1, "{window:?}");
            }
        }
    }

    #[test]
    fn a_newcomer_waits_one_turn_per_other_busy_tenant() {
        let gate = Gate::new(1);
        let mut busy: Vec<_> = (0..50).map(|_| turn(&gate, "busy")).collect();
        for turn in &mut busy {
            let _ = enters(turn);
        }
        for (from, to) in [(0, 1), (1, 2)] {
            busy[from].leave();
            assert!(enters(&mut busy[to]));
        }
        let mut quiet = turn(&gate, "quiet");
        assert!(!enters(&mut quiet));
        busy[2].leave();
        assert!(enters(&mut quiet), "the next turn that is given back is the newcomer's");
    }

    #[test]
    fn a_call_that_goes_away_passes_its_turn_on() {
        let gate = Gate::new(1);
        let (mut a, mut b, mut c) = (turn(&gate, "a"), turn(&gate, "b"), turn(&gate, "c"));
        assert!(enters(&mut a) && !enters(&mut b) && !enters(&mut c));
        a.leave();
        drop(b);
        assert!(enters(&mut c), "b's turn had been granted before it went");
        drop(c);
        let mut d = turn(&gate, "d");
        assert!(enters(&mut d));
        let mut e = turn(&gate, "e");
        assert!(!enters(&mut e));
        drop(e);
        drop(d);
        assert_eq!(gate.state.lock().free, 1);
        assert!(gate.state.lock().lines.is_empty() && gate.state.lock().order.is_empty());
    }

    #[tokio::test]
    async fn waiting_is_not_charged_and_computing_is() {
        let (gate, meter) = (Gate::new(1), Meter::new());
        let work = Box::pin(async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Metered::new(work, &gate, &tenant("a"), &meter, None).await;
        assert!(meter.spent() >= Duration::from_millis(20), "{:?}", meter.spent());
        assert!(meter.spent() < Duration::from_millis(70), "{:?}", meter.spent());
    }

    #[tokio::test]
    async fn a_turn_in_which_the_machine_did_something_else_is_not_charged_in_full() {
        let (gate, meter) = (Gate::new(1), Meter::new());
        let seen = meter.clone();
        let work = Box::pin(async move {
            std::thread::sleep(Duration::from_millis(60));
            seen.spent()
        });
        let while_it_ran = Metered::new(work, &gate, &tenant("a"), &meter, None).await;
        assert_eq!(while_it_ran, Duration::from_nanos(TURN_CHARGED_MAX_NS));
        assert!(meter.spent() <= Duration::from_nanos(TURN_CHARGED_MAX_NS));
    }

    #[tokio::test]
    async fn a_tenant_that_used_up_its_computing_time_is_slowed_down_and_others_are_not() {
        use crate::decision::plugin::budget::Budget;
        let (gate, budget) = (Gate::new(1), Budget::new());
        let mut used = Purse::new([(&budget, 10), (&budget, 0)]).unwrap();
        used.reserve();
        used.settle(Duration::from_millis(10));
        let spend = || {
            Box::pin(async {
                for _ in 0..2 {
                    std::thread::sleep(Duration::from_millis(1));
                    tokio::task::yield_now().await;
                }
            })
        };
        let (slow, quick) = (Meter::new(), Meter::new());
        let begun = Instant::now();
        let greedy = async {
            Metered::new(spend(), &gate, &tenant("greedy"), &slow, Purse::new([(&budget, 10), (&budget, 0)])).await;
            begun.elapsed()
        };
        let other = async {
            Metered::new(
                spend(),
                &gate,
                &tenant("other"),
                &quick,
                Purse::new([(&Budget::new(), 10), (&Budget::new(), 0)]),
            )
            .await;
            begun.elapsed()
        };
        let (greedy, other) = tokio::join!(greedy, other);
        assert!(greedy >= Duration::from_millis(90), "10 ms of computing a second: {greedy:?}");
        assert!(other < Duration::from_millis(80), "{other:?}");
        assert!(slow.slowed() >= Duration::from_millis(80) && quick.slowed().is_zero(), "{:?}", slow.slowed());
        assert!(slow.spent() < Duration::from_millis(60), "waiting is not charged: {:?}", slow.spent());
    }

    #[tokio::test]
    async fn a_call_that_waits_does_not_keep_its_turn() {
        let (gate, meter) = (Gate::new(1), Meter::new());
        let mut stuck = Metered::new(Box::pin(std::future::pending::<()>()), &gate, &tenant("a"), &meter, None);
        poll_fn(|cx| {
            assert!(Pin::new(&mut stuck).poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        Metered::new(Box::pin(async {}), &gate, &tenant("b"), &meter, None).await;
    }
}
