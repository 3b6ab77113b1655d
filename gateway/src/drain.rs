//! Tasks and the end of them: the one place that spawns, so that nothing outlives the gateway.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks, tells them when to end, and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    draining: CancellationToken,
    stopping: CancellationToken,
}

impl Tasks {
    /// Nothing runs yet.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Runs a task that [`finish`](Tasks::finish) waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "this is the tracked place that the rule names")]
        tokio::spawn(self.tracker.track_future(task))
    }

    /// First phase: no new connections, clients are told to go.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Last phase: tasks that serve nobody any more end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Ends every task: waits `grace` for them to end by themselves. Answers whether all did.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.draining.cancel();
        self.stopping.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
