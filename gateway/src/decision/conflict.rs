//! Losers of a conflict wait for each other, per key, instead of spinning; and who comes later waits behind them, so
//! that nobody loses for ever against newcomers of the same node.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::commit::StateKey;

/// Losers that wait per key; more run again at once and may lose again.
const WAITING_PER_KEY_MAX: usize = 256;

/// The queues of one tenant on this node.
#[derive(Debug, Default)]
pub struct Conflicts {
    keys: Arc<Mutex<HashMap<StateKey, Queue>>>,
}

#[derive(Debug, Default)]
struct Queue {
    turn: Arc<tokio::sync::Mutex<()>>,
    users: usize,
}

/// The right to run again; the next loser gets it when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _guard: OwnedMutexGuard<()>,
    place: Place,
}

#[derive(Debug)]
struct Place {
    keys: Arc<Mutex<HashMap<StateKey, Queue>>>,
    key: StateKey,
}

impl Turn {
    /// Is it on this key?
    pub fn is_on(&self, key: &StateKey) -> bool {
        self.place.key == *key
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        if let Some(queue) = keys.get_mut(&self.key) {
            queue.users -= 1;
            if queue.users == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

impl Conflicts {
    /// The first of these keys that somebody has lost, and has not yet had its turn to try again.
    pub fn contested<'a>(&self, reads: impl IntoIterator<Item = &'a StateKey>) -> Option<&'a StateKey> {
        let keys = self.keys.lock();
        if keys.is_empty() { None } else { reads.into_iter().find(|key| keys.contains_key(*key)) }
    }

    /// Waits for this loser's turn on a key; `None` when too many wait already.
    pub async fn turn(&self, key: &StateKey) -> Option<Turn> {
        let (turn, place) = {
            let mut keys = self.keys.lock();
            let queue = keys.entry(key.clone()).or_default();
            if queue.users >= WAITING_PER_KEY_MAX {
                return None;
            }
            queue.users += 1;
            (queue.turn.clone(), Place { keys: self.keys.clone(), key: key.clone() })
        };
        let guard = turn.lock_owned().await;
        Some(Turn { _guard: guard, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn losers_of_one_key_take_turns_and_leave_nothing_behind() {
        let conflicts = Conflicts::default();
        let key = StateKey::stored("p/k");
        let first = conflicts.turn(&key).await.unwrap();
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(10), conflicts.turn(&key)).await;
        assert!(waiting.is_err(), "two had the turn at once");
        let other = conflicts.turn(&StateKey::stored("p/other")).await;
        assert!(other.is_some(), "another key has a queue of its own");
        drop((first, other));
        drop(conflicts.turn(&key).await.unwrap());
        assert!(conflicts.keys.lock().is_empty());
    }

    #[tokio::test]
    async fn a_key_is_contested_until_its_last_loser_has_had_its_turn() {
        let conflicts = Conflicts::default();
        let (key, other) = (StateKey::stored("p/k"), StateKey::stored("p/other"));
        assert_eq!(conflicts.contested([&key]), None);
        let turn = conflicts.turn(&key).await.unwrap();
        assert!(turn.is_on(&key) && !turn.is_on(&other));
        assert_eq!((conflicts.contested([&other, &key]), conflicts.contested([&other])), (Some(&key), None));
        drop(turn);
        assert_eq!(conflicts.contested([&key]), None);
    }

    #[tokio::test]
    async fn beyond_the_limit_nobody_waits() {
        let conflicts = Conflicts::default();
        let key = StateKey::stored("p/k");
        conflicts.keys.lock().insert(key.clone(), Queue { users: WAITING_PER_KEY_MAX, ..Queue::default() });
        assert!(conflicts.turn(&key).await.is_none());
    }
}
