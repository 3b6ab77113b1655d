//! What a component may ask of the gateway: one file per imported interface of the contract,
//! in the nouns of the gateway. Everything that comes in is hostile: it is measured before it
//! is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::budget::Purse;
use super::gate::Meter;
use super::instance::Limiter;
use super::journal::{Journal, Source};
use super::transaction::Work;
use crate::room::ROOT_NAMESPACE;

pub(super) mod config;
pub(super) mod invocation;
pub(super) mod json;
pub(super) mod log;
pub(super) mod presence;
pub(super) mod rooms;
pub(super) mod state;
pub(super) mod timers;

/// Why a call to the gateway was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rejection {
    /// Not allowed in this hook.
    Denied,
    /// Malformed.
    Invalid(String),
    /// Larger than this many bytes.
    TooLarge(u32),
    /// A limit is used up.
    Quota(String),
    /// The engine cannot answer.
    Unavailable,
}

/// One running call, as the host functions see it.
pub(super) struct Call {
    pub(super) work: Box<Work>,
    /// The plugin, its version and what was called.
    pub(super) source: Source,
    pub(super) settings: Arc<BTreeMap<String, String>>,
    /// Where the input was said.
    pub(super) namespace: Arc<str>,
    pub(super) meter: Arc<Meter>,
    /// The tenant's computing time, where it is limited; taken when the call runs.
    pub(super) purse: Option<Purse>,
    pub(super) journal: Arc<Journal>,
    pub(super) limiter: Limiter,
    /// Calls to the gateway until now.
    pub(super) host_calls: u32,
    /// Log lines until now, those that were dropped included.
    pub(super) log_lines: usize,
}

impl Call {
    /// In an instance that idles there is nobody's data.
    pub(super) fn nobody(&self) -> Call {
        let work = Box::new(Work::nobody(self.work.tenant.clone(), self.work.limits.clone()));
        let mut limiter = Limiter::new(0);
        limiter.take_over(&self.limiter);
        Call {
            work,
            source: self.source.clone(),
            settings: self.settings.clone(),
            namespace: ROOT_NAMESPACE.into(),
            meter: self.meter.clone(),
            purse: None,
            journal: self.journal.clone(),
            limiter,
            host_calls: 0,
            log_lines: 0,
        }
    }

    fn may_read(&self) -> Result<(), Rejection> {
        if self.source.hook.may_read() { Ok(()) } else { Err(Rejection::Denied) }
    }

    fn may_write(&self) -> Result<(), Rejection> {
        if self.source.hook.may_write() { Ok(()) } else { Err(Rejection::Denied) }
    }
}

/// Checks a name: 1 to `bytes_max` bytes, no control characters.
fn check_name(what: &str, name: &str, bytes_max: usize) -> Result<(), Rejection> {
    if name.is_empty() || name.len() > bytes_max {
        return Err(Rejection::Invalid(format!("{what} has 1 to {bytes_max} bytes, this one has {}", name.len())));
    }
    if name.chars().any(char::is_control) {
        return Err(Rejection::Invalid(format!("{what} must not contain control characters")));
    }
    Ok(())
}

fn too_large(limit: usize) -> Rejection {
    Rejection::TooLarge(u32::try_from(limit).unwrap_or(u32::MAX))
}
