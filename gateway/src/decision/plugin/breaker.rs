//! The circuit breaker: a hook of one version of a plugin that keeps failing is not called for a while.
//!
//! Closed, it counts calls and the component's own failures in a sliding window. Open, it refuses calls until its
//! rest is over; then one call is let through. If that one ends well everything goes on, else it rests twice as long.

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::failure::{CallError, FailureKind, Hook};
use crate::commit::Millis;
use crate::tenant::BreakerLimits;

/// Parts of the window: what is older than it goes a part at a time.
const PARTS: u64 = 10;

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// One call goes through, to see; the others are refused.
    HalfOpen,
}

impl BreakerState {
    /// Its name in logs and in the API.
    pub fn word(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// One breaker as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerSnapshot {
    /// Which hook's.
    pub hook: Hook,
    /// How it stands.
    pub state: BreakerState,
    /// Calls in the window, while it is closed; those in which it opened, while it is not.
    pub calls: u32,
    /// Those of them that failed.
    pub failures: u32,
    /// Until a call is let through again, in milliseconds; 0: the next one is.
    pub retry_after_ms: Millis,
}

/// What a call says about the component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Worked,
    Broke,
    /// It was not asked, or others are to blame.
    Unclear,
}

impl Verdict {
    /// A refusal or a wish to be called later is an answer: the component works. `fatal` is how a component says that it
    /// does not, and what the guards of JavaScript and Python make of whatever is thrown.
    pub(super) fn of<T>(result: &Result<T, CallError>) -> Verdict {
        match result {
            Ok(_) | Err(CallError::Refused(_) | CallError::Retry(_)) => Verdict::Worked,
            Err(CallError::Failed(failure)) => match failure.kind {
                FailureKind::Internal | FailureKind::NotExported => Verdict::Unclear,
                _ => Verdict::Broke,
            },
            Err(CallError::Overloaded(_) | CallError::EngineUnavailable(_) | CallError::BreakerOpen { .. }) => {
                Verdict::Unclear
            }
        }
    }
}

/// The breaker has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turned {
    pub(super) state: BreakerState,
    pub(super) calls: u32,
    pub(super) failures: u32,
    pub(super) rest: Duration,
}

/// Calls and failures of the last while.
#[derive(Debug)]
struct Window {
    born: Instant,
    parts: [(u32, u32); PARTS as usize],
    part: u64,
}

impl Window {
    fn new(now: Instant) -> Window {
        Window { born: now, parts: [(0, 0); PARTS as usize], part: 0 }
    }

    /// Forgets what is too old.
    fn turn(&mut self, window_ms: u32, now: Instant) {
        let length = (u64::from(window_ms) / PARTS).max(1);
        let age = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        let part = age / length;
        for passed in (self.part + 1..=part).take(PARTS as usize) {
            self.parts[(passed % PARTS) as usize] = (0, 0);
        }
        // After a long rest all are empty, wherever it goes on.
        if part.saturating_sub(self.part) > PARTS {
            self.parts = [(0, 0); PARTS as usize];
        }
        self.part = self.part.max(part);
    }

    fn count(&mut self, failed: bool) {
        let (calls, failures) = &mut self.parts[(self.part % PARTS) as usize];
        *calls = calls.saturating_add(1);
        *failures = failures.saturating_add(u32::from(failed));
    }

    fn sums(&self) -> (u32, u32) {
        self.parts.iter().fold((0, 0), |sum, part| (sum.0.saturating_add(part.0), sum.1.saturating_add(part.1)))
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open { until: Instant },
    Probing,
}

#[derive(Debug)]
struct State {
    window: Window,
    phase: Phase,
    rest: Duration,
    /// When it closed last; one that opens again soon rests longer.
    closed_at: Option<Instant>,
}

/// One hook's.
#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

/// Leave to call; says how the call ended.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    fn new(now: Instant) -> Breaker {
        let (window, rest) = (Window::new(now), Duration::ZERO);
        Breaker(Mutex::new(State { window, phase: Phase::Closed, rest, closed_at: None }))
    }

    /// Lets a call through, or says after what time it is worth trying.
    fn enter(&self, limits: &BreakerLimits, now: Instant) -> Result<(Pass<'_>, Option<Turned>), Duration> {
        let mut state = self.0.lock();
        match state.phase {
            Phase::Closed => Ok((Pass { breaker: self, probe: false }, None)),
            Phase::Open { until } if now < until => Err(until - now),
            Phase::Open { .. } => {
                state.phase = Phase::Probing;
                Ok((Pass { breaker: self, probe: true }, Some(state.turned(BreakerState::HalfOpen))))
            }
            Phase::Probing => Err(millis(limits.rest_ms)),
        }
    }

    fn leave(&self, probe: bool, verdict: Verdict, limits: &BreakerLimits, now: Instant) -> Option<Turned> {
        let mut state = self.0.lock();
        match (state.phase, probe, verdict) {
            (Phase::Probing, true, Verdict::Worked) => {
                state.phase = Phase::Closed;
                state.window = Window::new(now);
                state.closed_at = Some(now);
                Some(state.turned(BreakerState::Closed))
            }
            (Phase::Probing, true, Verdict::Broke) => {
                state.rest = (state.rest * 2).min(millis(limits.rest_max_ms));
                // What it was opened for first has been told; this one call says that it still holds.
                Some(Turned { calls: 1, failures: 1, ..state.open(now) })
            }
            // The next one is to see.
            (Phase::Probing, true, Verdict::Unclear) => {
                state.phase = Phase::Open { until: now };
                None
            }
            (Phase::Closed, _, Verdict::Worked | Verdict::Broke) => {
                state.window.turn(limits.window_ms, now);
                state.window.count(verdict == Verdict::Broke);
                state.judge(limits, now)
            }
            // It began before the breaker opened.
            _ => None,
        }
    }

    fn snapshot(&self, hook: Hook, now: Instant) -> BreakerSnapshot {
        let state = self.0.lock();
        let (calls, failures) = state.window.sums();
        let (state, rest) = match state.phase {
            Phase::Closed => (BreakerState::Closed, Duration::ZERO),
            Phase::Open { until } => (BreakerState::Open, until.saturating_duration_since(now)),
            Phase::Probing => (BreakerState::HalfOpen, Duration::ZERO),
        };
        let retry_after_ms = Millis::try_from(rest.as_millis()).unwrap_or(Millis::MAX);
        BreakerSnapshot { hook, state, calls, failures, retry_after_ms }
    }

    fn is_closed(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Closed)
    }
}

impl State {
    fn turned(&self, state: BreakerState) -> Turned {
        let (calls, failures) = self.window.sums();
        Turned { state, calls, failures, rest: self.rest }
    }

    /// Opens it where too much has failed.
    fn judge(&mut self, limits: &BreakerLimits, now: Instant) -> Option<Turned> {
        let (calls, failures) = self.window.sums();
        let too_many = u64::from(failures) * 100 >= u64::from(limits.failure_percent) * u64::from(calls);
        if limits.failure_percent == 0 || failures == 0 || calls < limits.calls_min || !too_many {
            return None;
        }
        let soon = self.closed_at.is_some_and(|at| now.saturating_duration_since(at) < millis(limits.window_ms));
        let rest = if soon { self.rest * 2 } else { millis(limits.rest_ms) };
        self.rest = rest.min(millis(limits.rest_max_ms));
        Some(self.open(now))
    }

    fn open(&mut self, now: Instant) -> Turned {
        self.phase = Phase::Open { until: now + self.rest };
        self.turned(BreakerState::Open)
    }
}

impl Pass<'_> {
    /// The call has ended.
    pub(super) fn end(self, verdict: Verdict, limits: &BreakerLimits) -> Option<Turned> {
        let (breaker, probe) = (self.breaker, self.probe);
        std::mem::forget(self);
        breaker.leave(probe, verdict, limits, Instant::now())
    }
}

impl Drop for Pass<'_> {
    /// Whoever called has gone: nothing is known.
    fn drop(&mut self) {
        if self.probe {
            self.breaker.leave(true, Verdict::Unclear, &BreakerLimits::default(), Instant::now());
        }
    }
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// Those of one version of a plugin, by hook; made when a hook is called first.
#[derive(Debug)]
pub(super) struct Breakers([OnceLock<Box<Breaker>>; Hook::COUNT]);

impl Breakers {
    pub(super) fn new() -> Breakers {
        Breakers([const { OnceLock::new() }; Hook::COUNT])
    }

    /// Lets a call through, or says after what time it is worth trying.
    pub(super) fn enter(&self, hook: Hook, limits: &BreakerLimits) -> Result<(Pass<'_>, Option<Turned>), Duration> {
        let now = Instant::now();
        self.0[hook as usize].get_or_init(|| Box::new(Breaker::new(now))).enter(limits, now)
    }

    /// Those of hooks that were called.
    pub(super) fn snapshots(&self) -> Vec<BreakerSnapshot> {
        let now = Instant::now();
        let made = Hook::ALL.into_iter().filter_map(|hook| Some((hook, self.0[hook as usize].get()?)));
        made.map(|(hook, breaker)| breaker.snapshot(hook, now)).collect()
    }

    /// Hooks that are not called as usual.
    pub(super) fn not_closed(&self) -> Vec<Hook> {
        let not_closed = |hook: &Hook| self.0[*hook as usize].get().is_some_and(|breaker| !breaker.is_closed());
        Hook::ALL.into_iter().filter(not_closed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits =
        BreakerLimits { failure_percent: 50, calls_min: 20, window_ms: 10_000, rest_ms: 1_000, rest_max_ms: 4_000 };

    fn call(breaker: &Breaker, verdict: Verdict) -> Option<BreakerState> {
        let (pass, _) = breaker.enter(&LIMITS, Instant::now()).expect("it lets the call through");
        pass.end(verdict, &LIMITS).map(|turned| turned.state)
    }

    fn opened() -> Breaker {
        let breaker = Breaker::new(Instant::now());
        for n in 1..=20 {
            let turned = call(&breaker, Verdict::Broke);
            assert_eq!(turned, (n == 20).then_some(BreakerState::Open));
        }
        breaker
    }

    async fn rest(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    fn retry_after(breaker: &Breaker) -> u128 {
        breaker.enter(&LIMITS, Instant::now()).unwrap_err().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_half_of_twenty_calls_failed_and_not_before() {
        let breaker = Breaker::new(Instant::now());
        for _ in 0..10 {
            assert_eq!(call(&breaker, Verdict::Worked), None);
        }
        for _ in 0..9 {
            assert_eq!(call(&breaker, Verdict::Broke), None);
        }
        assert_eq!(call(&breaker, Verdict::Broke), Some(BreakerState::Open));
        assert_eq!(retry_after(&breaker), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_are_older_than_the_window_do_not_count() {
        let breaker = Breaker::new(Instant::now());
        for _ in 0..19 {
            assert_eq!(call(&breaker, Verdict::Broke), None);
        }
        rest(10_001).await;
        for _ in 0..19 {
            assert_eq!(call(&breaker, Verdict::Broke), None);
        }
        rest(1_000_000).await;
        assert_eq!(call(&breaker, Verdict::Broke), None);
        assert_eq!(breaker.snapshot(Hook::Handle, Instant::now()).calls, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_at_a_time_is_tried_and_closes_it_when_it_works() {
        let breaker = opened();
        rest(1_000).await;
        let (probe, turned) = breaker.enter(&LIMITS, Instant::now()).unwrap();
        assert_eq!(turned.unwrap().state, BreakerState::HalfOpen);
        assert!(breaker.enter(&LIMITS, Instant::now()).is_err(), "one at a time");
        assert_eq!(probe.end(Verdict::Worked, &LIMITS).unwrap().state, BreakerState::Closed);
        assert_eq!(call(&breaker, Verdict::Broke), None, "it counts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn it_rests_twice_as_long_after_each_failed_try_up_to_the_longest() {
        let breaker = opened();
        for longer in [2_000, 4_000, 4_000] {
            rest(4_000).await;
            assert_eq!(call(&breaker, Verdict::Broke), Some(BreakerState::Open));
            assert_eq!(retry_after(&breaker), longer);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_try_is_told_as_the_one_call_that_it_is() {
        let breaker = opened();
        rest(1_000).await;
        let (pass, _) = breaker.enter(&LIMITS, Instant::now()).unwrap();
        let turned = pass.end(Verdict::Broke, &LIMITS).unwrap();
        assert_eq!((turned.state, turned.failures, turned.calls), (BreakerState::Open, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_says_nothing_or_is_dropped_leaves_it_to_the_next_one() {
        let breaker = opened();
        rest(1_000).await;
        assert_eq!(call(&breaker, Verdict::Unclear), None);
        drop(breaker.enter(&LIMITS, Instant::now()).unwrap());
        assert_eq!(call(&breaker, Verdict::Worked), Some(BreakerState::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_nobodys_failure_does_not_open_it_and_zero_percent_never_does() {
        let breaker = Breaker::new(Instant::now());
        for _ in 0..100 {
            assert_eq!(call(&breaker, Verdict::Unclear), None);
        }
        let never = BreakerLimits { failure_percent: 0, ..LIMITS };
        for _ in 0..100 {
            let (pass, _) = breaker.enter(&never, Instant::now()).unwrap();
            assert_eq!(pass.end(Verdict::Broke, &never), None);
        }
    }
}
