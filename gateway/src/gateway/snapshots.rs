//! Who was where when it was last asked: what is answered, marked as stale, while the engine is away.

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde_json::Value;

use crate::room::Room;

/// Rooms remembered for one tenant; beyond, all are forgotten and learned anew.
const ROOMS_MAX: usize = 1_024;

/// The last answers about presence, by room.
#[derive(Debug, Default)]
pub struct Snapshots(Mutex<HashMap<Room, Value>>);

impl Snapshots {
    /// Takes note of an answer.
    pub fn keep(&self, room: &Room, answer: &Value) {
        let mut rooms = self.0.lock();
        if rooms.len() >= ROOMS_MAX && !rooms.contains_key(room) {
            rooms.clear();
        }
        rooms.insert(room.clone(), answer.clone());
    }

    /// The last answer, with `"stale": true`.
    pub fn stale(&self, room: &Room) -> Option<Value> {
        let mut answer = self.0.lock().get(room)?.clone();
        answer["stale"] = true.into();
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_old_answer_says_that_it_is_one_and_there_are_only_so_many() {
        let snapshots = Snapshots::default();
        let room = |n: usize| Room::parse(&format!("r:{n}")).unwrap();
        assert_eq!(snapshots.stale(&room(0)), None);
        (0..ROOMS_MAX).for_each(|n| snapshots.keep(&room(n), &json!({ "count": n })));
        snapshots.keep(&room(7), &json!({ "count": 0 }));
        assert_eq!(snapshots.stale(&room(7)), Some(json!({ "count": 0, "stale": true })));
        snapshots.keep(&room(ROOMS_MAX), &json!({}));
        assert_eq!(snapshots.0.lock().len(), 1);
    }
}
