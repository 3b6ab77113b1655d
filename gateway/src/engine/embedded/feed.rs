//! One follower's cursor in the log and the queue that it reads from.

use std::sync::{Arc, Weak};

use tokio::sync::{Notify, mpsc};

use super::stream::Stream;
use crate::commit::{Position, Publication};
use crate::engine::log::Log;
use crate::engine::{FEED_ENTRIES_MAX, Feed};

/// How many places must be free in a feed that was full before it is filled again.
/// A few at once, so that a slow follower does not cost a wake-up an entry.
const REFILL_ENTRIES_MIN: usize = FEED_ENTRIES_MAX / 4;

/// A follower as the log sees it: what it was sent so far. [`advance`](Feeder::advance) hands
/// on what follows. It is called when there is something new and, once the queue has been full,
/// when there is room in it: so a commit never waits, and nothing has a second way to a follower.
#[derive(Debug)]
pub(super) struct Feeder {
    pub(super) id: u64,
    sent: u64,
    queue: mpsc::Sender<Feed>,
    starved: Arc<Notify>,
    /// The queue was full; [`refill`] calls when it is not.
    waiting: bool,
}

impl Feeder {
    pub(super) fn new(id: u64, top: Position) -> (Feeder, mpsc::Receiver<Feed>) {
        let (queue, feed) = mpsc::channel(FEED_ENTRIES_MAX);
        (Feeder { id, sent: top.seq, queue, starved: Arc::default(), waiting: false }, feed)
    }

    /// Sends what is new; false when the follower is gone.
    pub(super) fn offer(&mut self, log: &Log) -> bool {
        self.waiting || self.advance(log)
    }

    /// Sends what the follower lacks as long as there is room; false when it is gone.
    pub(super) fn advance(&mut self, log: &Log) -> bool {
        while self.sent < log.top().seq {
            match self.queue.try_reserve() {
                Ok(place) => match log.get(self.sent + 1) {
                    Some(entry) => {
                        place.send(Feed::Entry(Arc::clone(entry)));
                        self.sent += 1;
                    }
                    None => {
                        let floor = log.floor();
                        place.send(Feed::Reset(floor));
                        self.sent = floor.seq;
                    }
                },
                Err(mpsc::error::TrySendError::Full(())) => {
                    self.waiting = true;
                    self.starved.notify_one();
                    return true;
                }
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            }
        }
        self.waiting = false;
        true
    }

    /// Sends what the log does not keep; dropped when there is no room.
    pub(super) fn ephemeral(&self, publication: &Arc<Publication>) {
        if !self.waiting {
            let _ = self.queue.try_send(Feed::Ephemeral(Arc::clone(publication)));
        }
    }

    /// The task that goes with this follower: it calls when a full queue has room again, and
    /// when the follower is gone.
    pub(super) fn task(&self, stream: Weak<Stream>) -> impl Future<Output = ()> + Send + use<> {
        refill(self.id, stream, self.queue.clone(), Arc::clone(&self.starved))
    }
}

impl Drop for Feeder {
    /// Ends the task, and with its sender the feed.
    fn drop(&mut self) {
        self.starved.notify_one();
    }
}

async fn refill(id: u64, stream: Weak<Stream>, queue: mpsc::Sender<Feed>, starved: Arc<Notify>) {
    loop {
        tokio::select! {
            () = queue.closed() => break,
            () = starved.notified() => {}
        }
        // The places are given back at once: it is the log that fills them.
        if queue.reserve_many(REFILL_ENTRIES_MIN).await.is_err() {
            break;
        }
        let Some(stream) = stream.upgrade() else { return };
        if !stream.refill(id) {
            return;
        }
    }
    if let Some(stream) = stream.upgrade() {
        stream.unfollow(id);
    }
}
