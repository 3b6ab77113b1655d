//! What limits of one tenant count: seats of clients, and tokens. It ends with the process, as its clients do.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use crate::client::ConnectionId;
use crate::commit::Millis;
use crate::engine::{Seat, SeatLimits, Seating, Tokens, Whose};

/// One minute: what a bucket holds flows in that time.
const MINUTE_MS: Millis = 60_000;

/// How many buckets are kept before full ones are looked for; there are no more than were used within a minute beyond.
const BUCKETS_SWEPT_AT: usize = 10_000;

/// Those of one tenant.
#[derive(Debug, Default)]
pub(super) struct SharedLimits {
    users: HashMap<Arc<str>, HashSet<ConnectionId>>,
    seats: usize,
    buckets: HashMap<Box<str>, Level>,
    /// How many buckets there are when full ones are looked for again.
    sweep_at: usize,
}

/// What is in a bucket, and when that was so.
#[derive(Debug, Clone, Copy)]
struct Level {
    tokens: f64,
    at: Millis,
}

impl SharedLimits {
    pub(super) fn take(&mut self, seat: &Seat, limits: SeatLimits, instead_of: Option<&ConnectionId>) -> Seating {
        let theirs = self.users.get(&seat.subject);
        if theirs.is_some_and(|theirs| theirs.contains(&seat.connection)) {
            return self.taken();
        }
        let earlier = instead_of.filter(|earlier| theirs.is_some_and(|theirs| theirs.contains(*earlier)));
        let freed = usize::from(earlier.is_some());
        if theirs.map_or(0, HashSet::len) - freed >= limits.per_user as usize {
            return Seating::Full(Whose::User);
        }
        if self.seats - freed >= limits.per_tenant as usize {
            return Seating::Full(Whose::Tenant);
        }
        if let Some(earlier) = earlier {
            self.give_back(&Seat { subject: seat.subject.clone(), connection: earlier.clone() });
        }
        self.keep(seat);
        self.taken()
    }

    fn taken(&self) -> Seating {
        Seating::Taken { of_tenant: self.count() }
    }

    pub(super) fn keep(&mut self, seat: &Seat) {
        let theirs = self.users.entry_ref(&seat.subject).or_default();
        self.seats += usize::from(theirs.insert(seat.connection.clone()));
    }

    /// How many seats are taken.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.seats).unwrap_or(u32::MAX)
    }

    pub(super) fn give_back(&mut self, seat: &Seat) {
        let Some(theirs) = self.users.get_mut(&seat.subject) else { return };
        self.seats -= usize::from(theirs.remove(&seat.connection));
        if theirs.is_empty() {
            self.users.remove(&seat.subject);
        }
    }

    pub(super) fn take_tokens(
        &mut self,
        bucket: &str,
        per_minute: NonZeroU32,
        wanted: NonZeroU32,
        now: Millis,
    ) -> Tokens {
        if self.buckets.len() >= self.sweep_at.max(BUCKETS_SWEPT_AT) {
            self.buckets.retain(|_, level| level.at + MINUTE_MS > now);
            self.sweep_at = 2 * self.buckets.len();
        }
        let rate = f64::from(per_minute.get());
        let level = self.buckets.get(bucket).copied().unwrap_or(Level { tokens: rate, at: now });
        #[expect(clippy::cast_precision_loss, reason = "beyond 2^52 ms a bucket is full long since")]
        let elapsed = now.saturating_sub(level.at) as f64;
        let tokens = (level.tokens + elapsed * rate / 60_000.0).min(rate);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a rate of 32 bits")]
        let granted = (tokens as u32).min(wanted.get());
        if granted == 0 {
            return Tokens::Wait(Duration::from_secs_f64((1.0 - tokens) * 60.0 / rate).max(Duration::from_millis(1)));
        }
        self.buckets.insert(bucket.into(), Level { tokens: tokens - f64::from(granted), at: now });
        Tokens::Granted(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let mut limits = SharedLimits::default();
        let one = NonZeroU32::MIN;
        for n in 0..3 * BUCKETS_SWEPT_AT {
            let now = MINUTE_MS * (n / BUCKETS_SWEPT_AT) as Millis;
            assert_eq!(limits.take_tokens(&n.to_string(), one, one, now), Tokens::Granted(1));
        }
        assert!(limits.buckets.len() <= 2 * BUCKETS_SWEPT_AT, "{}", limits.buckets.len());
    }

    #[test]
    fn nothing_is_left_of_seats_that_were_given_back() {
        let mut limits = SharedLimits::default();
        let seat = Seat { subject: "bob".into(), connection: "c1".into() };
        limits.keep(&seat);
        limits.keep(&seat);
        limits.give_back(&seat);
        limits.give_back(&seat);
        assert!(limits.users.is_empty() && limits.seats == 0);
    }
}
