//! Who waits with half a request: bounded for each address, so that one cannot take all places.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::client::network_of;

/// The connections whose next request's head is not whole, by address.
#[derive(Debug)]
pub(super) struct Heads {
    /// So many of one address while places are scarce.
    per_address_max: u32,
    waiting: Mutex<HashMap<IpAddr, u32>>,
}

/// One connection that waits for a head, until it is dropped.
#[derive(Debug)]
pub(super) struct Head {
    heads: Arc<Heads>,
    address: IpAddr,
}

impl Heads {
    pub(super) fn new(per_address_max: u32) -> Arc<Heads> {
        Arc::new(Heads { per_address_max, waiting: Mutex::default() })
    }

    /// One more of this address; `None`: it has too many while places are scarce.
    pub(super) fn take(self: &Arc<Heads>, address: IpAddr, scarce: bool) -> Option<Head> {
        let address = network_of(address);
        let mut waiting = self.waiting.lock();
        let count = waiting.get(&address).copied().unwrap_or(0);
        if scarce && count >= self.per_address_max {
            return None;
        }
        waiting.insert(address, count + 1);
        Some(Head { heads: self.clone(), address })
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let mut waiting = self.heads.waiting.lock();
        match waiting.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                waiting.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_while_places_are_scarce_and_others_have_theirs() {
        let heads = Heads::new(2);
        let take = |address: &str, scarce| heads.take(address.parse().unwrap(), scarce);
        let first = take("10.0.0.1", true);
        let second = take("::ffff:10.0.0.1", true);
        assert!(first.is_some() && second.is_some() && take("10.0.0.1", true).is_none());
        assert!(take("10.0.0.2", true).is_some());
        assert!(take("10.0.0.1", false).is_some(), "nobody is turned away while there is room");
        drop(first);
        assert!(take("10.0.0.1", true).is_some());
        drop(second);
        assert!(heads.waiting.lock().is_empty());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let heads = Heads::new(1);
        let _one = heads.take("2001:db8::1".parse().unwrap(), true);
        assert!(heads.take("2001:db8::ffff:1".parse().unwrap(), true).is_none());
        assert!(heads.take("2001:db8:0:1::1".parse().unwrap(), true).is_some());
    }
}
