//! Wrong tokens: each is looked for in the engine, so an address may try so many.
//!
//! A token that was good here a moment ago is looked for whatever else comes from its address, and that of the gateway's
//! settings is not looked for at all: behind a proxy all share one address, and somebody who guesses must not lock the
//! others out.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::denied::Denied;
use crate::client::network_of;
use crate::limits::Bucket;

/// Addresses that are remembered. When there are more, all whose tries are refilled are forgotten, at most each
/// [`FORGET_EVERY`]; if that is not enough, those that are not remembered share [`OTHERS`] times the tries of one.
const ADDRESSES_MAX: usize = 10_000;

/// See [`ADDRESSES_MAX`].
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// See [`ADDRESSES_MAX`]: so many that somebody with very many addresses does not shut everybody else out, and can try
/// no more than from so many.
const OTHERS: u32 = 100;

/// Tokens of which is remembered that they were good.
const GOOD_MAX: usize = 10_000;

/// For how long.
const GOOD_KEPT: Duration = Duration::from_secs(3_600);

/// What this process remembers.
pub(super) static GUESSES: LazyLock<Guesses> = LazyLock::new(Guesses::default);

/// See the [module's text](self).
#[derive(Default)]
pub(super) struct Guesses {
    addresses: Mutex<Addresses>,
    good: Mutex<HashMap<[u8; 32], Instant>>,
}

#[derive(Default)]
struct Addresses {
    each: HashMap<IpAddr, Bucket>,
    /// Of all others together.
    others: Option<Bucket>,
    forgot_at: Option<Instant>,
}

impl Addresses {
    /// The bucket of an address, and with what rate.
    fn of(&mut self, network: IpAddr, per_minute: NonZeroU32, now: Instant) -> (&mut Bucket, NonZeroU32) {
        if self.each.len() >= ADDRESSES_MAX && !self.each.contains_key(&network) {
            if self.forgot_at.is_none_or(|at| now.duration_since(at) >= FORGET_EVERY) {
                self.forgot_at = Some(now);
                self.each.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.each.len() >= ADDRESSES_MAX {
                let rate = per_minute.saturating_mul(NonZeroU32::new(OTHERS).unwrap_or(NonZeroU32::MIN));
                return (self.others.get_or_insert_with(|| Bucket::new(Some(rate), now)), rate);
            }
        }
        (self.each.entry(network).or_insert_with(|| Bucket::new(Some(per_minute), now)), per_minute)
    }
}

/// A token that may be looked for.
pub(super) struct Try<'a> {
    of: &'a Guesses,
    digest: [u8; 32],
    now: Instant,
    /// Was it counted, and of which address?
    counted: Option<IpAddr>,
}

impl Guesses {
    /// One more try from this address. It is counted from here on, so that many at once are no more than may be.
    ///
    /// # Errors
    /// It has tried too often; says when it may again.
    pub(super) fn may_try(
        &self,
        address: IpAddr,
        token: &str,
        per_minute: NonZeroU32,
        now: Instant,
    ) -> Result<Try<'_>, Denied> {
        let digest = Sha256::digest(token.as_bytes()).into();
        if self.good.lock().get(&digest).is_some_and(|at| now.duration_since(*at) < GOOD_KEPT) {
            return Ok(Try { of: self, digest, now, counted: None });
        }
        let mut addresses = self.addresses.lock();
        let network = network_of(address);
        let (bucket, rate) = addresses.of(network, per_minute, now);
        bucket.set_rate(Some(rate), now);
        bucket.take(now).map_err(|wait| too_often(address, per_minute, wait))?;
        Ok(Try { of: self, digest, now, counted: Some(network) })
    }
}

impl Try<'_> {
    /// It was good: it counts as no try, and will be looked for for a while whatever comes from its address.
    pub(super) fn was_good(self) {
        let mut good = self.of.good.lock();
        if good.len() >= GOOD_MAX && !good.contains_key(&self.digest) {
            good.retain(|_, at| self.now.duration_since(*at) < GOOD_KEPT);
        }
        if good.contains_key(&self.digest) || good.len() < GOOD_MAX {
            good.insert(self.digest, self.now);
        }
        drop(good);
        self.was_none();
    }

    /// It could not be looked for: it counts as none.
    pub(super) fn was_none(self) {
        let Some(network) = self.counted else { return };
        let mut addresses = self.of.addresses.lock();
        if let Some(bucket) = addresses.each.get_mut(&network) {
            bucket.put_back();
        } else if let Some(bucket) = &mut addresses.others {
            bucket.put_back();
        }
    }

    /// It was not, or is not any more.
    pub(super) fn was_wrong(self) {
        self.of.good.lock().remove(&self.digest);
    }
}

fn too_often(address: IpAddr, per_minute: NonZeroU32, wait: Duration) -> Denied {
    let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    let text = format!(
        "too many tokens from {address} were wrong: admin.wrong_tokens_per_minute = {per_minute}; try again in {seconds} s"
    );
    Denied::too_often(text, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_may_guess_so_often_in_a_minute_and_others_for_themselves() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let rate = NonZeroU32::new(3).unwrap();
        let guess = |address: &str, n: u32, after_s| {
            let now = now + Duration::from_secs(after_s);
            guesses.may_try(of(address), &format!("guess-{n}"), rate, now).map(Try::was_wrong)
        };
        for n in 0..3 {
            guess("2001:db8::1", n, 0).unwrap();
        }
        let refused = guess("2001:db8::2", 3, 0).unwrap_err().answer();
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"21".parse().unwrap()));
        guess("2001:db8:0:1::1", 3, 0).unwrap();
        guess("2001:db8::1", 3, 21).unwrap();
        assert!(guess("2001:db8::1", 4, 21).is_err());
    }

    #[test]
    fn a_token_that_was_good_gets_in_whatever_else_comes_from_its_address_until_it_is_wrong() {
        let (guesses, now, rate) = (Guesses::default(), Instant::now(), NonZeroU32::MIN);
        let may =
            |token: &str, after_s| guesses.may_try(of("10.0.0.1"), token, rate, now + Duration::from_secs(after_s));
        for _ in 0..5 {
            may("good", 0).unwrap().was_good();
        }
        may("guess", 0).unwrap().was_wrong();
        assert!(may("guess", 0).is_err());
        may("good", 1).unwrap().was_good();
        may("good", 1).unwrap().was_wrong();
        assert!(may("good", 1).is_err(), "it was revoked: from here on it is one of the guesses");
    }

    #[test]
    fn a_new_token_that_is_good_takes_no_tries_however_many_come_with_it_at_once() {
        let (guesses, now, rate) = (Guesses::default(), Instant::now(), NonZeroU32::new(30).unwrap());
        let may = |token: &str| guesses.may_try(of("10.0.0.1"), token, rate, now);
        let at_once: Vec<_> = (0..30).map(|_| may("new").unwrap()).collect();
        at_once.into_iter().for_each(Try::was_good);
        // Nor do those that the engine did not answer for.
        (0..50).for_each(|_| may("unknown").unwrap().was_none());
        for n in 0..30 {
            may(&format!("guess-{n}")).unwrap().was_wrong();
        }
        assert!(may("guess-30").is_err());
    }

    #[test]
    fn more_addresses_than_are_remembered_share_some_tries_and_those_that_rest_are_forgotten() {
        let (guesses, now, rate) = (Guesses::default(), Instant::now(), NonZeroU32::MIN);
        let guess =
            |n: u32, now| guesses.may_try(IpAddr::from(n.to_be_bytes()), "guess", rate, now).map(Try::was_wrong);
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            guess(n, now).unwrap();
        }
        for n in 0..OTHERS {
            guess(u32::MAX - n, now).unwrap();
        }
        assert!(guess(u32::MAX, now).is_err());
        assert!(guess(u32::MAX, now + Duration::from_secs(60)).is_ok());
        assert_eq!(guesses.addresses.lock().each.len(), 1);
    }
}
