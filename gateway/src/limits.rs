//! Token buckets of this node: how much may be said in which time. Those of all nodes: [`rates`](crate::rates).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::event::Refusal;
use crate::tenant::PerMinute;

/// A bucket that holds one minute's worth and is refilled evenly.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_minute: PerMinute,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one; `None` never runs dry.
    pub fn new(per_minute: PerMinute, now: Instant) -> Bucket {
        Bucket { per_minute, tokens: per_minute.map_or(0.0, |rate| f64::from(rate.get())), filled: now }
    }

    fn fill(&mut self, rate: f64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * rate / 60.0).min(rate);
        self.filled = now;
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.per_minute.map(|rate| f64::from(rate.get())) else { return Ok(()) };
        self.fill(rate, now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) * 60.0 / rate))
    }

    /// Puts back what was taken last, and not used.
    pub fn put_back(&mut self) {
        let rate = self.per_minute.map_or(0.0, |rate| f64::from(rate.get()));
        self.tokens = (self.tokens + 1.0).min(rate);
    }

    /// Another rate from now on; what is in the bucket stays, as far as the new one holds it.
    pub fn set_rate(&mut self, per_minute: PerMinute, now: Instant) {
        if self.per_minute == per_minute {
            return;
        }
        match (self.per_minute, per_minute) {
            (Some(old), Some(new)) => {
                self.fill(f64::from(old.get()), now);
                self.tokens = self.tokens.min(f64::from(new.get()));
                self.per_minute = per_minute;
            }
            _ => *self = Bucket::new(per_minute, now),
        }
    }

    /// Its rate; 0 when it never runs dry.
    pub fn per_minute(&self) -> u32 {
        self.per_minute.map_or(0, std::num::NonZeroU32::get)
    }

    /// Does it hold a whole minute's worth?
    pub fn is_full(&mut self, now: Instant) -> bool {
        let Some(rate) = self.per_minute.map(|rate| f64::from(rate.get())) else { return true };
        self.fill(rate, now);
        self.tokens >= rate
    }
}

/// How much of something a second, by whatever amounts; what was not used of the last second is kept.
#[derive(Debug, Default)]
pub struct PerSecond(Mutex<Option<(f64, Instant)>>);

impl PerSecond {
    /// Takes `amount`, or says how long until it may be taken. An amount beyond a whole second's worth is let through
    /// when that is there, and paid off afterwards.
    pub fn take(&self, amount: u64, per_second: u64, now: Instant) -> Result<(), Duration> {
        if per_second == 0 || amount == 0 {
            return Ok(());
        }
        #[expect(clippy::cast_precision_loss, reason = "rates and amounts are far below 2^52")]
        let (amount, rate) = (amount as f64, per_second as f64);
        let mut state = self.0.lock();
        let (left, filled) = state.unwrap_or((rate, now));
        let left = (left + now.saturating_duration_since(filled).as_secs_f64() * rate).min(rate);
        let wanted = amount.min(rate);
        let enough = left >= wanted;
        *state = Some((if enough { left - amount } else { left }, now));
        if enough { Ok(()) } else { Err(Duration::from_secs_f64((wanted - left) / rate)) }
    }
}

/// The refusal of a rate that is used up.
pub fn rate_limited(what: &str, setting: &str, per_minute: u32, wait: Duration) -> Refusal {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let text = format!("{what}: at most {per_minute} a minute (setting {setting}); try again in {wait_ms} ms");
    Refusal { retry_after_ms: Some(wait_ms), ..Refusal::new("rate_limit", text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[tokio::test(start_paused = true)]
    async fn a_minutes_worth_at_once_then_evenly() {
        let mut bucket = Bucket::new(NonZeroU32::new(60), Instant::now());
        for _ in 0..60 {
            assert_eq!(bucket.take(Instant::now()), Ok(()));
        }
        let wait = bucket.take(Instant::now()).unwrap_err();
        assert_eq!(wait.as_millis(), 1_000);
        tokio::time::advance(wait).await;
        assert_eq!(bucket.take(Instant::now()), Ok(()));
        assert!(bucket.take(Instant::now()).is_err());
        tokio::time::advance(Duration::from_secs(600)).await;
        for _ in 0..60 {
            assert_eq!(bucket.take(Instant::now()), Ok(()));
        }
        assert!(bucket.take(Instant::now()).is_err(), "rest does not pile up beyond a minute's worth");
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_gives_nothing_back_and_holds_from_then_on() {
        let mut bucket = Bucket::new(NonZeroU32::new(60), Instant::now());
        for _ in 0..58 {
            assert_eq!(bucket.take(Instant::now()), Ok(()));
        }
        bucket.set_rate(NonZeroU32::new(1), Instant::now());
        assert!(bucket.take(Instant::now()).is_ok());
        assert_eq!(bucket.take(Instant::now()).unwrap_err().as_secs(), 60);
        bucket.set_rate(None, Instant::now());
        assert!(bucket.take(Instant::now()).is_ok());
    }

    #[test]
    fn a_seconds_worth_is_there_at_once_and_large_amounts_are_paid_off() {
        let (rate, start) = (PerSecond::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.take(100, 100, at(0)), Ok(()));
        assert_eq!(rate.take(10, 100, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(rate.take(10, 100, at(100)), Ok(()));
        assert_eq!(rate.take(300, 100, at(1_100)), Ok(()), "more than a second's worth, when that is there");
        assert_eq!(rate.take(1, 100, at(2_100)), Err(Duration::from_millis(1_010)));
        assert_eq!(rate.take(1, 100, at(3_200)), Ok(()));
        assert_eq!(rate.take(u64::MAX, 0, at(3_200)), Ok(()), "0 is unlimited");
    }
}
