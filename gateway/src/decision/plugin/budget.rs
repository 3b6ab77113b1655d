//! Computing time a second: a tenant that has used up its own waits, and nobody else does.
//!
//! Every turn is paid in advance and settled when it is over, so that calls of one tenant that wait each have a time of
//! their own to go on at. A tenant that rested may use one second's worth at once.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What one turn is expected to cost, in nanoseconds: a tick of the clock that ends it.
const TURN_NS: u64 = 1_000_000;

/// How much a tenant that rested may use at once: so many nanoseconds' worth.
const BURST_NS: u64 = 1_000_000_000;

/// The computing time of one tenant on this node.
#[derive(Debug)]
pub(super) struct Budget {
    born: Instant,
    /// Nanoseconds after `born` at which everything that was used will have been paid.
    paid_ns: Mutex<u64>,
}

impl Budget {
    pub(super) fn new() -> Arc<Budget> {
        // A tenant begins rested; the past that this needs is put into `now_ns`.
        Arc::new(Budget { born: Instant::now(), paid_ns: Mutex::new(0) })
    }

    fn now_ns(&self) -> u64 {
        BURST_NS.saturating_add(u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long until the tenant may compute again; zero: now.
    fn debt(&self) -> Duration {
        Duration::from_nanos(self.paid_ns.lock().saturating_sub(self.now_ns()))
    }

    /// Waits until the tenant may compute again.
    pub(super) async fn clear(&self) {
        loop {
            let debt = self.debt();
            if debt.is_zero() {
                return;
            }
            tokio::time::sleep(debt).await;
        }
    }
}

/// What `cost_ns` of computing are worth of time, at so many milliseconds a second.
fn worth_ns(cost_ns: u64, ms_per_second: u32) -> u64 {
    cost_ns.saturating_mul(1_000) / u64::from(ms_per_second.max(1))
}

/// One call's dealings with its tenant's budget, and its plugin's own.
#[derive(Debug)]
pub(super) struct Purse {
    /// Each with its milliseconds a second; at most two.
    budgets: [Option<(Arc<Budget>, u32)>; 2],
    /// A turn was paid and is not settled.
    reserved: bool,
}

impl Purse {
    /// `None` where computing time is unlimited.
    pub(super) fn new(budgets: [(&Arc<Budget>, u32); 2]) -> Option<Purse> {
        let limited = budgets.map(|(budget, rate)| (rate > 0).then(|| (budget.clone(), rate)));
        limited.iter().any(Option::is_some).then_some(Purse { budgets: limited, reserved: false })
    }

    /// Pays a turn in advance; answers how long to wait for it.
    pub(super) fn reserve(&mut self) -> Duration {
        self.reserved = true;
        let reserve = |(budget, ms_per_second): &(Arc<Budget>, u32)| {
            let now = budget.now_ns();
            let mut paid = budget.paid_ns.lock();
            let from = (*paid).max(now.saturating_sub(BURST_NS));
            *paid = from.saturating_add(worth_ns(TURN_NS, *ms_per_second));
            from.saturating_sub(now)
        };
        Duration::from_nanos(self.budgets.iter().flatten().map(reserve).max().unwrap_or(0))
    }

    /// The turn is over and took so long.
    pub(super) fn settle(&mut self, spent: Duration) {
        if std::mem::take(&mut self.reserved) {
            let spent_ns = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
            for (budget, ms_per_second) in self.budgets.iter().flatten() {
                let mut paid = budget.paid_ns.lock();
                *paid = paid
                    .saturating_add(worth_ns(spent_ns, *ms_per_second))
                    .saturating_sub(worth_ns(TURN_NS, *ms_per_second));
            }
        }
    }
}

impl Drop for Purse {
    /// A turn that was not taken costs nothing.
    fn drop(&mut self) {
        self.settle(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_nanos(TURN_NS);

    fn one(budget: &Arc<Budget>, ms_per_second: u32) -> Purse {
        Purse::new([(budget, ms_per_second), (budget, 0)]).expect("it is limited")
    }

    #[tokio::test(start_paused = true)]
    async fn a_rested_tenant_has_a_seconds_worth_at_once_and_then_its_share() {
        let budget = Budget::new();
        let mut purse = one(&budget, 100);
        for _ in 0..100 {
            assert_eq!(purse.reserve(), Duration::ZERO);
            purse.settle(TURN);
        }
        let mut free = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let wait = purse.reserve();
            free += u32::from(wait.is_zero());
            tokio::time::advance(wait).await;
            purse.settle(TURN);
            tokio::time::advance(TURN).await;
        }
        let used = budget.paid_ns.lock().saturating_sub(BURST_NS);
        assert!(free <= 2, "{free} turns were not waited for");
        let used_ms = used / 1_000_000 / 10;
        assert!((195..=205).contains(&used_ms), "{used_ms} ms of computing in 2 s");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_that_wait_each_have_a_time_of_their_own() {
        let budget = Budget::new();
        let mut purses: Vec<_> = (0..103).map(|_| one(&budget, 100)).collect();
        let waits: Vec<_> = purses.iter_mut().map(|purse| purse.reserve().as_millis()).collect();
        assert_eq!(waits[99..], [0, 0, 10, 20]);
        purses.truncate(50);
        assert_eq!(one(&budget, 100).reserve(), Duration::ZERO, "who gave up gave back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_turned_out_cheap_is_given_back_and_a_debt_is_waited_for() {
        let budget = Budget::new();
        let mut purse = one(&budget, 1_000);
        for _ in 0..5_000 {
            assert_eq!(purse.reserve(), Duration::ZERO);
            purse.settle(Duration::from_micros(100));
        }
        purse.reserve();
        purse.settle(Duration::from_millis(900));
        let begun = Instant::now();
        budget.clear().await;
        assert!((390..=402).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_budgets_the_one_that_makes_it_wait_longer_holds_and_both_are_paid() {
        let (tenants, own) = (Budget::new(), Budget::new());
        let mut purse = Purse::new([(&tenants, 1_000), (&own, 100)]).unwrap();
        for _ in 0..100 {
            assert_eq!(purse.reserve(), Duration::ZERO);
            purse.settle(TURN);
        }
        assert_eq!(purse.reserve(), Duration::ZERO);
        purse.settle(TURN);
        assert_eq!(purse.reserve().as_millis(), 10);
        purse.settle(Duration::ZERO);
        let paid = |budget: &Budget| budget.paid_ns.lock().saturating_sub(0) / 1_000_000;
        assert_eq!((paid(&tenants), paid(&own)), (101, 1_010));
    }

    #[test]
    fn zero_is_unlimited() {
        let budget = Budget::new();
        assert!(Purse::new([(&budget, 0), (&budget, 0)]).is_none());
    }
}
