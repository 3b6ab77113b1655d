//! What becomes of a timer after it was fired: settled, tried again, or given up.

use super::{Decided, Undecided};
use crate::commit::Millis;
use crate::event::Refusal;

/// How long a failed timer rests, doubled with every attempt.
const RETRY_MS: Millis = 500;
/// How often it is doubled at most: a minute.
const RETRY_DOUBLINGS_MAX: u32 = 7;
/// How long a timer rests that was not tried, or whose handler asked to be called later.
pub const LATER_REST_MS: Millis = 1_000;
/// How often a timer whose handler fails is fired before it is given up. Waiting for the engine, a full line or
/// a handler's wish to be called later never ends a timer.
pub const ATTEMPTS_MAX: u32 = 5;

/// What becomes of a timer that was fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its handler's commit has settled it.
    Settled,
    /// It was replaced, cancelled or settled meanwhile.
    Gone,
    /// The engine was away: the attempt does not count.
    Untried,
    /// It was not tried, or its handler wants to be called later: it is postponed, and the attempt does not count.
    Later {
        /// For how long, in milliseconds.
        rest_ms: Millis,
    },
    /// Its handler failed: it is given back, to be tried again.
    Again {
        /// After how long, in milliseconds.
        rest_ms: Millis,
        /// What went wrong.
        why: String,
    },
    /// It is buried.
    GivenUp {
        /// What went wrong.
        why: String,
    },
}

impl Verdict {
    /// `attempt` is 1 for the first.
    pub fn of(attempt: u32, result: &Result<Decided, Undecided>) -> Verdict {
        let why = |refusal: &Refusal| {
            let Refusal { code, message, cause, .. } = refusal;
            format!("{code}: {}", cause.as_deref().unwrap_or(message))
        };
        match result {
            Ok(_) => Verdict::Settled,
            Err(Undecided::TimerGone) => Verdict::Gone,
            Err(Undecided::Engine(_)) => Verdict::Untried,
            Err(Undecided::Later(refusal)) => {
                Verdict::Later { rest_ms: refusal.retry_after_ms.unwrap_or(0).max(LATER_REST_MS) }
            }
            Err(Undecided::Failed(refusal)) if attempt < ATTEMPTS_MAX => {
                Verdict::Again { rest_ms: rest_ms(attempt), why: why(refusal) }
            }
            Err(Undecided::Failed(refusal) | Undecided::Refused(refusal) | Undecided::Unauthorized(refusal)) => {
                Verdict::GivenUp { why: why(refusal) }
            }
        }
    }
}

fn rest_ms(attempt: u32) -> Millis {
    RETRY_MS << attempt.min(RETRY_DOUBLINGS_MAX)
}
