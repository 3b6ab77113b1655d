//! Key sets of tenants, kept fresh: files are read again when they change, URLs are fetched now and then, and at once
//! when a token names a key that is not there.
//!
//! What cannot be had leaves what was had: a source that is away, or talks nonsense, takes no key from anybody.

mod fetch;
pub mod refresh;

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::decision::token::TokenError;
use crate::limits::Bucket;
use crate::tenant::{KeySetSource, VerifyingKey};

/// How long a set rests that could not be had, about; no longer than one that could.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How often in a minute a tenant's sets are fetched because of tokens that name an unknown key. Anybody can make such
/// tokens.
const FETCHES_FOR_TOKENS_PER_MINUTE: u32 = 6;

/// Why a client's token does not say who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// It does not hold.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// A key set that may have its key was never there yet: nobody can say.
    #[error("the tenant's key set could not be fetched yet")]
    KeysAway,
}

/// What is known of a tenant's key sets, beside the keys.
#[derive(Debug)]
pub struct KeySets {
    sources: Mutex<HashMap<KeySetSource, Seen>>,
    /// Held by whoever fetches because of a token; others wait for what it finds.
    turn: tokio::sync::Mutex<()>,
    /// Grows with every fetch that has ended, well or not.
    fetches: AtomicU64,
    for_tokens: Mutex<Bucket>,
}

/// A source as it was last seen.
#[derive(Debug, Clone)]
struct Seen {
    /// When it is to be looked at again.
    due: Instant,
    /// When it was last had.
    had: Option<Instant>,
    /// Of a file: when it was changed, and its size.
    stamp: Option<(SystemTime, u64)>,
    /// It could not be had last time, and that was told.
    failing: bool,
}

impl Default for KeySets {
    fn default() -> Self {
        KeySets {
            sources: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            fetches: AtomicU64::new(0),
            for_tokens: Mutex::new(Bucket::new(
                std::num::NonZeroU32::new(FETCHES_FOR_TOKENS_PER_MINUTE),
                Instant::now(),
            )),
        }
    }
}

impl KeySets {
    fn seen(&self, source: &KeySetSource) -> Seen {
        let unseen = Seen { due: Instant::now(), had: None, stamp: None, failing: false };
        self.sources.lock().get(source).cloned().unwrap_or(unseen)
    }

    /// Takes the source, if it is due: nobody else does until it is done, or late.
    fn take_due(&self, source: &KeySetSource) -> Option<Seen> {
        let now = Instant::now();
        let mut sources = self.sources.lock();
        let unseen = Seen { due: now, had: None, stamp: None, failing: false };
        let seen = sources.entry(source.clone()).or_insert(unseen);
        let before = (seen.due <= now).then(|| seen.clone())?;
        seen.due = now + REST_AFTER_FAILURE;
        Some(before)
    }

    fn keep(&self, source: &KeySetSource, seen: Seen) {
        self.sources.lock().insert(source.clone(), seen);
    }

    /// Forgets sources that the tenant does not name any more.
    fn forget_others(&self, named: &[KeySetSource]) {
        self.sources.lock().retain(|source, _| named.contains(source));
    }

    fn was_never_had(&self, source: &KeySetSource) -> bool {
        self.sources.lock().get(source).is_none_or(|seen| seen.had.is_none())
    }
}

/// Are these the same keys, in whatever order?
pub(crate) fn same_keys(one: &[VerifyingKey], other: &[VerifyingKey]) -> bool {
    one.len() == other.len() && one.iter().all(|key| other.contains(key))
}
