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

/// Addresses that are remembered. When there are more, all whose tries are refilled are forgotten; if that is not
/// enough, whoever comes from an address that is not remembered waits.
const ADDRESSES_MAX: usize = 10_000;

/// Tokens of which is remembered that they were good.
const GOOD_MAX: usize = 10_000;

/// For how long.
const GOOD_KEPT: Duration = Duration::from_secs(3_600);

/// What this process remembers.
pub(super) static GUESSES: LazyLock<Guesses> = LazyLock::new(Guesses::default);

/// See the [module's text](self).
#[derive(Default)]
pub(super) struct Guesses {
    addresses: Mutex<HashMap<IpAddr, Bucket>>,
    good: Mutex<HashMap<[u8; 32], Instant>>,
}

/// A token that may be looked for.
pub(super) struct Try<'a> {
    of: &'a Guesses,
    digest: [u8; 32],
    now: Instant,
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
        let try_of = Try { of: self, digest, now };
        if self.good.lock().get(&digest).is_some_and(|at| now.duration_since(*at) < GOOD_KEPT) {
            return Ok(try_of);
        }
        let mut addresses = self.addresses.lock();
        let network = network_of(address);
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&network) {
            addresses.retain(|_, bucket| !bucket.is_full(now));
            if addresses.len() >= ADDRESSES_MAX {
                return Err(too_often(address, per_minute, Duration::from_secs(60)));
            }
        }
        let bucket = addresses.entry(network).or_insert_with(|| Bucket::new(Some(per_minute), now));
        bucket.set_rate(Some(per_minute), now);
        bucket.take(now).map_err(|wait| too_often(address, per_minute, wait))?;
        Ok(try_of)
    }
}

impl Try<'_> {
    /// It was good: it counts as no try, and will be looked for for a while whatever comes from its address.
    pub(super) fn was_good(self, address: IpAddr) {
        let mut good = self.of.good.lock();
        if good.len() >= GOOD_MAX && !good.contains_key(&self.digest) {
            good.retain(|_, at| self.now.duration_since(*at) < GOOD_KEPT);
        }
        let is_known = good.contains_key(&self.digest);
        if is_known || good.len() < GOOD_MAX {
            good.insert(self.digest, self.now);
        }
        drop(good);
        if !is_known && let Some(bucket) = self.of.addresses.lock().get_mut(&network_of(address)) {
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
            may("good", 0).unwrap().was_good(of("10.0.0.1"));
        }
        may("guess", 0).unwrap().was_wrong();
        assert!(may("guess", 0).is_err());
        may("good", 1).unwrap().was_good(of("10.0.0.1"));
        may("good", 1).unwrap().was_wrong();
        assert!(may("good", 1).is_err(), "it was revoked: from here on it is one of the guesses");
    }

    #[test]
    fn more_addresses_than_are_remembered_wait_and_those_that_rest_are_forgotten() {
        let (guesses, now, rate) = (Guesses::default(), Instant::now(), NonZeroU32::MIN);
        let guess =
            |n: u32, now| guesses.may_try(IpAddr::from(n.to_be_bytes()), "guess", rate, now).map(Try::was_wrong);
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            guess(n, now).unwrap();
        }
        assert!(guess(u32::MAX, now).is_err());
        assert!(guess(u32::MAX, now + Duration::from_secs(60)).is_ok());
        assert_eq!(guesses.addresses.lock().len(), 1);
    }
}
