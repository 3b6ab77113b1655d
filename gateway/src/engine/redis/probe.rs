//! Does what is published arrive? A connection that was quiet for a while is asked that in the only way that
//! proves it: by publishing to a channel that it is subscribed to.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Histogram, counter, histogram};
use tokio::time::timeout;

use super::link::Commands;

/// A connection on which nothing came for so long is tried.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// How long what was published may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(3);

/// How long publishing may take; a server that does not answer is not judged here.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

static ROUND_TRIP: LazyLock<Histogram> = LazyLock::new(|| histogram!("pubsub_probe_seconds"));

/// What came in, told by the connection's driver; times in microseconds since `born`.
#[derive(Debug)]
pub(super) struct Echo {
    born: Instant,
    /// Tells this node's probes from others'.
    node: u64,
    heard: AtomicU64,
    /// When the last own probe that came had been sent.
    returned: AtomicU64,
}

impl Default for Echo {
    fn default() -> Self {
        let node = getrandom::u64().unwrap_or(u64::from(std::process::id()));
        Echo { born: Instant::now(), node, heard: AtomicU64::new(0), returned: AtomicU64::new(0) }
    }
}

impl Echo {
    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Something came.
    pub(super) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Something came on a channel that nobody listens to: perhaps a probe, perhaps another node's.
    pub(super) fn take(&self, message: &[u8]) {
        let sent = std::str::from_utf8(message).ok().and_then(|text| {
            let (node, sent) = text.strip_prefix("probe ")?.split_once(' ')?;
            Some((node.parse::<u64>().ok()?, sent.parse::<u64>().ok()?))
        });
        if let Some((node, sent)) = sent
            && node == self.node
        {
            ROUND_TRIP.record(Duration::from_micros(self.now().saturating_sub(sent)));
            self.returned.fetch_max(sent, Ordering::Relaxed);
        }
    }
}

/// The probe of one connection.
#[derive(Debug)]
pub(super) struct Probe {
    /// The channel, if the master holds one.
    channel: Option<String>,
    since: u64,
    sent: Option<u64>,
}

impl Probe {
    /// For a connection that has just been made.
    pub(super) fn new(channel: Option<String>, echo: &Echo) -> Probe {
        Probe { channel, since: echo.now(), sent: None }
    }

    /// Publishes when it was quiet for too long; an error when what was published did not come.
    pub(super) async fn look(&mut self, echo: &Echo, commands: &Commands) -> Result<(), String> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let now = echo.now();
        let late = |since: u64, max: Duration| Duration::from_micros(now.saturating_sub(since)) >= max;
        if let Some(sent) = self.sent {
            if echo.returned.load(Ordering::Relaxed) >= sent {
                self.sent = None;
            } else if late(sent, ARRIVAL_MAX) {
                counter!("pubsub_probe_timeouts_total").increment(1);
                return Err(format!("what was published did not come within {ARRIVAL_MAX:?}"));
            }
            return Ok(());
        }
        if !late(self.since.max(echo.heard.load(Ordering::Relaxed)), QUIET_MAX) {
            return Ok(());
        }
        let Some(link) = commands.present() else { return Ok(()) };
        let message = format!("probe {} {now}", echo.node);
        let mut command = ::redis::cmd("SPUBLISH");
        command.arg(channel).arg(message);
        match timeout(PUBLISH_TIMEOUT, command.exec_async(&mut link.connection())).await {
            Ok(Ok(())) => self.sent = Some(now),
            Ok(Err(error)) => {
                link.read_error(&error);
                self.since = now;
            }
            Err(_) => self.since = now,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_nodes_own_probe_counts_as_returned() {
        let echo = Echo::default();
        for foreign in ["probe 1 7", "probe", "probe x y", "", "timer"] {
            echo.take(foreign.as_bytes());
        }
        echo.take(b"\xff");
        assert_eq!(echo.returned.load(Ordering::Relaxed), 0);
        echo.take(format!("probe {} 7", echo.node).as_bytes());
        assert_eq!(echo.returned.load(Ordering::Relaxed), 7);
    }
}
