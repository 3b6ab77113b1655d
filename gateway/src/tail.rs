//! What a tenant's plugins say, gathered from all nodes for whoever looks at it now.
//!
//! Each node keeps the latest lines in its memory. One that is asked for them asks the others through the engine, with
//! publications that no log keeps, and goes on asking as long as somebody looks; nothing is stored. What cannot be sent
//! is counted and told, never waited for.

mod answering;
pub mod listening;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::commit::{Millis, now_ms};
use crate::decision::plugin::JournalEntry;
use crate::tenant::TenantId;

/// How many may look at the same time on one node.
pub const LISTENERS_MAX: usize = 32;

/// How many of them at one tenant's lines, so that its readers leave room for others'.
pub const LISTENERS_OF_TENANT_MAX: usize = 8;

/// The most lines of one node to begin with.
pub const LINES_MAX: usize = 1_000;

/// How long a node goes on after it was asked.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How many are answered at the same time; more are not heard.
const ANSWERS_MAX: usize = 64;

/// One line of a tenant's plugins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, by the clock of its node.
    pub at_ms: Millis,
    /// Its node.
    pub server: Arc<str>,
    /// Counts from 1 on its node.
    pub seq: u64,
    /// Whose.
    pub plugin: Arc<str>,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: Arc<str>,
    /// How much it matters: `trace` to `error`.
    pub level: String,
    /// `log`, or `failure` where the gateway says it.
    pub kind: String,
    /// What; without control characters.
    pub message: String,
}

impl Line {
    fn of(entry: &JournalEntry, server: &Arc<str>) -> Line {
        Line {
            at_ms: entry.at_ms,
            server: server.clone(),
            seq: entry.seq,
            plugin: entry.plugin.clone(),
            digest: entry.digest.clone(),
            level: entry.level.word().to_owned(),
            kind: entry.kind.word().to_owned(),
            message: entry.message.clone(),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whose lines.
    pub tenant: TenantId,
    /// Only this plugin's.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Only lines after this moment.
    #[serde(default)]
    pub after_ms: Millis,
    /// How many of the latest lines to begin with, at most [`LINES_MAX`].
    pub limit: usize,
    /// And those that come.
    #[serde(default)]
    pub follow: bool,
}

impl Wanted {
    fn takes(&self, entry: &JournalEntry) -> bool {
        entry.at_ms > self.after_ms && self.plugin.as_deref().is_none_or(|plugin| plugin == &*entry.plugin)
    }
}

/// Lines, and how many were lost before them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their node.
    pub lines: Vec<Line>,
    /// Lines that could not be sent or kept.
    pub lost: u64,
}

/// What nodes say to each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
enum Word {
    /// Say what you have, and go on for a while.
    Ask { id: String, server: Arc<str>, wanted: Wanted },
    /// This is what I have.
    Lines {
        id: String,
        server: Arc<str>,
        lines: Vec<Line>,
        lost: u64,
        /// Was that all there was to begin with?
        begun: bool,
    },
    /// Something of a later version.
    #[serde(other)]
    Other,
}

/// Whose lines somebody listens to, and where they go.
type Ear = (TenantId, mpsc::Sender<(Batch, bool)>);

/// The nodes' questions that are being answered, and until when.
#[derive(Default)]
struct Answering(Mutex<HashMap<String, Instant>>);

impl Answering {
    /// Is this question a new one that is to be answered now? One that is being answered goes on.
    fn begins(&self, id: &str) -> bool {
        let mut until = self.0.lock();
        let is_new = !until.contains_key(id);
        if is_new && until.len() >= ANSWERS_MAX {
            return false;
        }
        until.insert(id.to_owned(), Instant::now() + ANSWER_TIME);
        is_new
    }

    /// Until when is this to be answered? `None`: no longer; then it is forgotten.
    fn until(&self, id: &str) -> Option<Instant> {
        let mut all = self.0.lock();
        let until = *all.get(id)?;
        if until > Instant::now() {
            return Some(until);
        }
        all.remove(id);
        None
    }

    fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }
}

/// Who looks on this node, and for whom it answers.
#[derive(Default)]
pub struct Tail {
    listening: Mutex<HashMap<String, Ear>>,
    answering: Answering,
}

/// As many look already as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "as many look at logs on this node already as may: {LISTENERS_MAX}, or {LISTENERS_OF_TENANT_MAX} of one tenant \
     (LISTENERS_MAX, LISTENERS_OF_TENANT_MAX)"
)]
pub struct TooMany;

impl Tail {
    fn hear(&self, id: &str, batch: Batch, begun: bool) {
        let mut listening = self.listening.lock();
        let Some((_, listener)) = listening.get(id) else { return };
        // Whoever looks and does not keep up misses lines; the numbers of those that follow tell.
        if let Err(mpsc::error::TrySendError::Closed(_)) = listener.try_send((batch, begun)) {
            listening.remove(id);
        }
    }
}

/// A line of the gateway's own about what is missing; it has no number.
pub fn about_loss(server: &str, message: String) -> Line {
    Line {
        at_ms: now_ms(),
        server: server.into(),
        seq: 0,
        plugin: "".into(),
        digest: "".into(),
        level: "warn".into(),
        kind: "lost".into(),
        message,
    }
}
