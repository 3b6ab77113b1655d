//! Why a call was not done, and what to do about it.

use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use super::super::{Answer, json_answer};
use crate::catalog::CatalogError;
use crate::engine::EngineError;

/// When it is worth asking again after the engine was away, in seconds.
const RETRY_AFTER_S: u32 = 2;

/// A call that was not done.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    code: &'static str,
    message: String,
    mistakes: Vec<String>,
    allow: Option<String>,
    /// When it is worth asking again, in seconds.
    retry_after_s: u32,
}

impl Denied {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Denied {
        Denied {
            status,
            code,
            message: message.into(),
            mistakes: Vec::new(),
            allow: None,
            retry_after_s: RETRY_AFTER_S,
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Denied {
        Denied::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// One thing is wrong with what was sent.
    pub(super) fn invalid(mistake: impl Into<String>) -> Denied {
        Denied::mistakes(vec![mistake.into()])
    }

    /// Several are.
    pub(super) fn mistakes(mistakes: Vec<String>) -> Denied {
        let message = match mistakes.as_slice() {
            [one] => one.clone(),
            _ => format!("{} mistakes, see `mistakes`", mistakes.len()),
        };
        Denied { mistakes, ..Denied::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message) }
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Denied {
        Denied::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn methods(methods: &[&str]) -> Denied {
        let methods = methods.join(", ");
        let denied =
            Denied::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("here is only {methods}"));
        Denied { allow: Some(methods), ..denied }
    }

    pub(super) fn busy(message: impl Into<String>) -> Denied {
        Denied::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
    }

    /// As often as it may be; worth another try after so many seconds.
    pub(super) fn too_often(message: impl Into<String>, retry_after_s: u32) -> Denied {
        Denied { retry_after_s, ..Denied::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit", message) }
    }

    /// The same, with what it is about in front.
    pub(super) fn about(self, what: &str) -> Denied {
        Denied { message: format!("{what}: {}", self.message), ..self }
    }

    pub(super) fn answer(self) -> Answer {
        let mut error = json!({ "code": self.code, "message": self.message });
        if !self.mistakes.is_empty() {
            error["mistakes"] = Value::from(self.mistakes);
        }
        let mut answer = json_answer(self.status, &json!({ "error": error }));
        let headers = answer.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(RETRY_AFTER, HeaderValue::from(self.retry_after_s));
            }
            _ => {}
        }
        if let Some(allow) = self.allow.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
            headers.insert(ALLOW, allow);
        }
        answer
    }
}

impl From<CatalogError> for Denied {
    fn from(error: CatalogError) -> Denied {
        let text = error.to_string();
        match error {
            CatalogError::NotFound { .. } => Denied::not_found(text),
            CatalogError::Exists { .. } => Denied::new(StatusCode::CONFLICT, "exists", text),
            CatalogError::Conflict(_) => Denied::new(StatusCode::CONFLICT, "conflict", text),
            CatalogError::ReadOnly { .. } => Denied::new(StatusCode::CONFLICT, "read_only", text),
            CatalogError::Invalid(mistakes) => Denied::mistakes(mistakes),
            CatalogError::Limit { .. } => Denied::new(StatusCode::UNPROCESSABLE_ENTITY, "limit", text),
            CatalogError::Revoked => Denied::new(StatusCode::UNAUTHORIZED, "unauthorized", text),
            CatalogError::Later { .. } => Denied::new(StatusCode::CONFLICT, "later_format", text),
            CatalogError::Damaged { .. } => Denied::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged", text),
            CatalogError::Engine(EngineError::Ambiguous(_)) => {
                let text = "the engine did not answer: the change may have been made; look before you repeat it";
                Denied::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", text)
            }
            // Which server does not answer is for the log only.
            CatalogError::Engine(error) => {
                tracing::warn!(%error, "the admin API cannot reach the engine");
                let text = "the engine does not answer: nothing was changed";
                Denied::new(StatusCode::SERVICE_UNAVAILABLE, "engine_unavailable", text)
            }
        }
    }
}
