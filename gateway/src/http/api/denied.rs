//! Why a call was not done, and what to do about it.

use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;

use super::super::{Answer, json_answer};
use crate::decision::Undecided;
use crate::engine::EngineError;
use crate::event::Refusal;
use crate::quota::OverQuota;

/// When it is worth asking again after the engine was away, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

/// A call that was not done.
#[derive(Debug)]
pub(super) struct Denied {
    status: StatusCode,
    refusal: Refusal,
    allow: Option<String>,
}

impl Denied {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Denied {
        Denied::because(status, Refusal::new(code, message))
    }

    pub(super) fn because(status: StatusCode, refusal: Refusal) -> Denied {
        Denied { status, refusal, allow: None }
    }

    /// What was sent cannot be read, or asks for what cannot be.
    pub(super) fn invalid(message: impl Into<String>) -> Denied {
        Denied::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Denied {
        Denied::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn methods(methods: &[&str]) -> Denied {
        let methods = methods.join(", ");
        let text = format!("here is only {methods}");
        let denied = Denied::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text);
        Denied { allow: Some(methods), ..denied }
    }

    pub(super) fn answer(self) -> Answer {
        let mut answer = json_answer(self.status, &json!({ "error": self.refusal }));
        let headers = answer.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after_ms) = self.refusal.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1_000)));
        }
        if let Some(allow) = self.allow.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
            headers.insert(ALLOW, allow);
        }
        answer
    }
}

impl From<EngineError> for Denied {
    fn from(error: EngineError) -> Denied {
        // Names of servers are for the log, not for callers.
        tracing::debug!(%error, "the engine could not be asked");
        let refusal = Refusal::new("engine_unavailable", "the engine is not available");
        Denied::because(StatusCode::SERVICE_UNAVAILABLE, Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..refusal })
    }
}

impl From<Undecided> for Denied {
    fn from(undecided: Undecided) -> Denied {
        let status = match &undecided {
            Undecided::Refused(refused) => match refused.code.as_str() {
                "invalid" => StatusCode::BAD_REQUEST,
                "forbidden" => StatusCode::FORBIDDEN,
                "not_found" => StatusCode::NOT_FOUND,
                _ => StatusCode::UNPROCESSABLE_ENTITY,
            },
            Undecided::Unauthorized(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Undecided::Failed(refused) if OverQuota::is_why(refused) => StatusCode::UNPROCESSABLE_ENTITY,
            Undecided::Later(refused) if refused.code == "rate_limit" => StatusCode::TOO_MANY_REQUESTS,
            Undecided::Failed(_) | Undecided::Later(_) | Undecided::Engine(_) | Undecided::TimerGone => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Denied::because(status, undecided.into_refusal())
    }
}
