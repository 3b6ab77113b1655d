//! How long to wait before the next attempt.

use std::time::Duration;

/// The first wait is below this.
const FIRST: Duration = Duration::from_millis(50);

/// No wait is longer than this.
const LONGEST: Duration = Duration::from_secs(2);

/// Doubling ceilings with full jitter, without end: many nodes that lost one server do not come
/// back together.
#[derive(Debug)]
pub(super) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff { ceiling: FIRST }
    }

    /// Things went well.
    pub(super) fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(LONGEST);
        jitter(ceiling)
    }
}

/// A random part of a wait, so that many do not act together.
pub(super) fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_two_seconds_and_stay_there() {
        let mut backoff = Backoff::new();
        for ceiling_ms in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000] {
            assert!(backoff.next() <= Duration::from_millis(ceiling_ms));
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
