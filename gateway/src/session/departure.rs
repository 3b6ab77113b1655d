//! How a connection goes out of its rooms: at once, after a grace, or with its node.
//!
//! Whoever did not say goodbye is likely to be back in a moment, and the others are not to see it go and come. So its
//! place is kept for the tenant's grace; coming back takes the old connection out itself, or stands beside it.

use std::sync::Arc;
use std::time::Duration;

use crate::client::{Client, ConnectionId};
use crate::close::{Close, jitter};
use crate::commit::{Commit, CommitId, Effect, TimerChange, TimerKey};
use crate::decision::farewell::Farewell;
use crate::engine::Health;
use crate::gateway::{Gateway, LiveTenant};

/// How long a departure that could not be committed rests before it is tried again, about.
const RETRY_REST: Duration = Duration::from_secs(1);

/// When a connection that has ended is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    After(Duration),
    /// Its place outlives this node by the grace: the others take it out then ([`Engine::retire`]).
    ///
    /// [`Engine::retire`]: crate::engine::Engine::retire
    WithTheNode,
    /// It is out already.
    Never,
}

fn when(close: Close, grace: Duration) -> When {
    match close {
        Close::Fenced => When::Never,
        Close::Shutdown if !grace.is_zero() => When::WithTheNode,
        Close::ClientLeft => When::Now,
        other if other.reconnect() && !grace.is_zero() => When::After(grace),
        _ => When::Now,
    }
}

/// One connection on its way out.
pub(super) struct Departure {
    gateway: Arc<Gateway>,
    tenant: Arc<LiveTenant>,
    connection: ConnectionId,
    farewell: Vec<(TimerKey, TimerChange)>,
    when: When,
}

impl Departure {
    pub(super) fn of(
        gateway: &Arc<Gateway>,
        tenant: &Arc<LiveTenant>,
        client: &Client,
        session: &str,
        close: Close,
    ) -> Departure {
        let window = tenant.settings().limits.recovery_window_ms;
        let farewell = Farewell::new(client, close.word()).timers(&tenant.pipeline.load(), session, window);
        let when = when(close, tenant.settings().presence_grace);
        let (gateway, tenant, connection) = (gateway.clone(), tenant.clone(), client.connection.clone());
        Departure { gateway, tenant, connection, farewell, when }
    }

    /// Commits what is to be done at once, and leaves the rest to a task.
    pub(super) async fn depart(mut self) {
        let timers = std::mem::take(&mut self.farewell);
        let mut commit = Commit { timers, ..Commit::new(CommitId::random()) };
        match self.when {
            // Whoever took it out has seen to its session too.
            When::Never => {}
            When::WithTheNode => drop(self.commit(&commit).await),
            When::After(grace) if self.tenant.leaving.enter(&self.connection) => {
                let told = self.commit(&commit).await;
                let timers = if told { Vec::new() } else { commit.timers };
                let gone = Commit { timers, effects: self.gone(), ..Commit::new(CommitId::random()) };
                self.linger(gone, grace);
            }
            When::After(_) | When::Now => {
                commit.effects = self.gone();
                if !self.commit(&commit).await && self.tenant.leaving.enter(&self.connection) {
                    self.linger(commit, RETRY_REST);
                }
            }
        }
    }

    fn gone(&self) -> Vec<Effect> {
        vec![Effect::Gone { id: self.connection.clone() }]
    }

    /// Commits after a while, again until it is done: nobody stays present because the engine was away.
    fn linger(self, commit: Commit, rest: Duration) {
        let tasks = self.gateway.tasks.clone();
        let draining = tasks.draining().clone();
        tasks.spawn(async move {
            // What is left when the node stops is taken out with it.
            tokio::select! { () = self.commit_after(&commit, rest) => {}, () = draining.cancelled() => {} }
            self.tenant.leaving.exit(&self.connection);
        });
    }

    async fn commit_after(&self, commit: &Commit, mut rest: Duration) {
        let mut health = self.gateway.engine.health(&self.tenant.id);
        loop {
            tokio::time::sleep(rest).await;
            // Waiting here takes none of the places of what clients say; an engine that has ended refuses at once.
            let _ = health.wait_for(|health| *health == Health::Up).await;
            if self.commit(commit).await {
                return;
            }
            rest = RETRY_REST + jitter(RETRY_REST);
        }
    }

    /// Was it done?
    async fn commit(&self, commit: &Commit) -> bool {
        let done = self.tenant.decisions.commit_directly(commit.clone()).await;
        if let Err(error) = &done {
            tracing::warn!(tenant = %self.tenant.id, %error, "a connection's leaving was not committed");
        }
        done.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whoever_may_come_back_and_did_not_say_goodbye_keeps_its_place() {
        let grace = Duration::from_secs(10);
        for close in [Close::ConnectionLost, Close::PingTimeout, Close::Slow, Close::TokenExpired] {
            assert_eq!(when(close, grace), When::After(grace), "{close:?}");
            assert_eq!(when(close, Duration::ZERO), When::Now, "{close:?}");
        }
        for close in [Close::ClientLeft, Close::Disconnected, Close::Forbidden, Close::ProtocolError] {
            assert_eq!(when(close, grace), When::Now, "{close:?}");
        }
        assert_eq!(when(Close::Shutdown, grace), When::WithTheNode);
        assert_eq!(when(Close::Shutdown, Duration::ZERO), When::Now);
        assert_eq!(when(Close::Fenced, grace), When::Never);
    }
}
