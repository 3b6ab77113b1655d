//! How a call ends when it does not end well.

use std::fmt;
use std::sync::Arc;

use crate::commit::{CommitId, Millis};
use crate::event::Refusal;

/// The function of a component that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// `describe.info`.
    Describe,
    /// `authorization.connect`.
    Connect,
    /// `authorization.join`.
    Join,
    /// `routing.route`.
    Route,
    /// `events.handle`.
    Handle,
    /// `timer-events.fire`.
    Fire,
    /// `connection-events.connected`.
    Connected,
    /// `connection-events.disconnected`.
    Disconnected,
}

impl Hook {
    /// How many there are.
    pub(super) const COUNT: usize = Hook::ALL.len();

    /// Each of them, in the order of their numbers.
    pub const ALL: [Hook; 8] = [
        Hook::Describe,
        Hook::Connect,
        Hook::Join,
        Hook::Route,
        Hook::Handle,
        Hook::Fire,
        Hook::Connected,
        Hook::Disconnected,
    ];

    /// Its name in the contract; the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Describe => "describe.info",
            Hook::Connect => "authorization.connect",
            Hook::Join => "authorization.join",
            Hook::Route => "routing.route",
            Hook::Handle => "events.handle",
            Hook::Fire => "timer-events.fire",
            Hook::Connected => "connection-events.connected",
            Hook::Disconnected => "connection-events.disconnected",
        }
    }

    /// May it change anything? Decisions about who and where are pure.
    pub fn may_write(self) -> bool {
        matches!(self, Hook::Handle | Hook::Fire | Hook::Connected | Hook::Disconnected)
    }

    /// May it read the tenant's data? Only a description has no capability at all.
    pub fn may_read(self) -> bool {
        self != Hook::Describe
    }
}

/// Why a call has no result. Whatever it is, nothing that the transaction buffered takes effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The component refused; the client is told.
    #[error("refused: {}: {}", .0.code, .0.message)]
    Refused(Refusal),
    /// The component asks to be called again later.
    #[error("to be tried again later: {0}")]
    Retry(String),
    /// The component broke down, broke a limit, or said that it is broken. Counts against it.
    #[error("{0}")]
    Failed(Failure),
    /// It was not called: too much is going on. Names the limit and the setting.
    #[error("{0}")]
    Overloaded(String),
    /// The engine could not answer a read of the call, which then did not end well. Does not count
    /// against the component.
    #[error("the engine is not available: {0}")]
    EngineUnavailable(String),
    /// It was not called: its breaker is open, because it failed too often.
    #[error("{message}")]
    BreakerOpen {
        /// Names the plugin and the hook.
        message: String,
        /// When it is worth trying again, in milliseconds from now.
        retry_after_ms: Millis,
    },
}

/// What went wrong in a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The plugin's name within its tenant.
    pub plugin: Arc<str>,
    /// What was called.
    pub hook: Hook,
    /// What kind of failure.
    pub kind: FailureKind,
    /// For the tenant's developer: names the limit, the value and the setting where there is one.
    /// Without control characters.
    pub message: String,
    /// The input that it was called for (`invocation.id`), where it was called for one.
    pub input: Option<CommitId>,
}

impl Failure {
    /// As a refusal with this code: in the words that clients may hear, with its own for the tenant's records.
    pub fn refusal(&self, code: &str) -> Refusal {
        Refusal { cause: Some(self.to_string().into()), ..Refusal::new(code, self.told()) }
    }

    /// As clients and back ends are told: what is the component's own (its words, names of its functions, what it
    /// answered) is for the tenant's log, where the input's id finds it.
    pub fn told(&self) -> String {
        let own_words = match self.kind {
            FailureKind::CpuTime
            | FailureKind::WallTime
            | FailureKind::Memory
            | FailureKind::HostCalls
            | FailureKind::Output
            | FailureKind::NotExported
            | FailureKind::Quota => return self.to_string(),
            FailureKind::Stack => "its calls nest too deeply",
            FailureKind::Trap
            | FailureKind::Fatal
            | FailureKind::Start
            | FailureKind::BadAnswer
            | FailureKind::Internal => "its log says why",
        };
        Failure { message: own_words.into(), ..self.clone() }.to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin `{}` failed in {}: {}", self.plugin, self.hook.name(), self.message)?;
        match &self.input {
            Some(id) => write!(f, " (input {})", id.as_str()),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// It trapped: a panic, a division by zero, an access out of bounds.
    Trap,
    /// It said that it, or the input, is broken: `fatal` of the contract, or an error that it did not catch.
    Fatal,
    /// It computed longer than `call_limits.cpu_ms`.
    CpuTime,
    /// It took longer than `call_limits.wall_ms`, waiting included.
    WallTime,
    /// It wanted more memory than `call_limits.memory_bytes`, or more table elements, and did not cope.
    Memory,
    /// Its calls nested too deeply.
    Stack,
    /// It called the gateway more often than `call_limits.host_calls`.
    HostCalls,
    /// It handed over more at once than `call_limits.output_bytes` allows.
    Output,
    /// It could not be instantiated.
    Start,
    /// Its answer breaks the contract, for example a room name that is none.
    BadAnswer,
    /// It does not export what was to be called.
    NotExported,
    /// What it did would leave more than its tenant may keep in all (`limits.state_bytes` and such).
    Quota,
    /// The gateway itself panicked while serving it, or the call was abandoned.
    Internal,
}

impl FailureKind {
    /// Each of them.
    pub const ALL: [FailureKind; 13] = [
        FailureKind::Trap,
        FailureKind::Fatal,
        FailureKind::CpuTime,
        FailureKind::WallTime,
        FailureKind::Memory,
        FailureKind::Stack,
        FailureKind::HostCalls,
        FailureKind::Output,
        FailureKind::Start,
        FailureKind::BadAnswer,
        FailureKind::NotExported,
        FailureKind::Quota,
        FailureKind::Internal,
    ];

    /// The metric's label.
    pub fn word(self) -> &'static str {
        match self {
            FailureKind::Trap => "trap",
            FailureKind::Fatal => "fatal",
            FailureKind::CpuTime => "cpu_time",
            FailureKind::WallTime => "wall_time",
            FailureKind::Memory => "memory",
            FailureKind::Stack => "stack",
            FailureKind::HostCalls => "host_calls",
            FailureKind::Output => "output",
            FailureKind::Start => "start",
            FailureKind::BadAnswer => "bad_answer",
            FailureKind::NotExported => "not_exported",
            FailureKind::Quota => "quota",
            FailureKind::Internal => "internal",
        }
    }
}

impl CallError {
    /// The metric's label.
    pub fn word(&self) -> &'static str {
        match self {
            CallError::Refused(_) => "refused",
            CallError::Retry(_) => "retry",
            CallError::Failed(failure) => failure.kind.word(),
            CallError::Overloaded(_) => "overloaded",
            CallError::EngineUnavailable(_) => "engine_unavailable",
            CallError::BreakerOpen { .. } => "breaker_open",
        }
    }
}

/// The longest code of a refusal, in bytes.
pub const REFUSAL_CODE_BYTES_MAX: usize = 64;

/// The longest text that is taken from a component for people to read, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1_024;

/// A component's text made safe for logs and terminals: control characters escaped, cut.
pub(super) fn tame(text: &str, bytes_max: usize) -> String {
    let mut tamed = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        let start = tamed.len();
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            tamed.extend(c.escape_default());
        } else {
            tamed.push(c);
        }
        if tamed.len() > bytes_max {
            tamed.truncate(start);
            break;
        }
    }
    tamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_of_limits_but_nothing_in_the_components_own_words() {
        let failure = |kind| Failure {
            plugin: "door".into(),
            hook: Hook::Handle,
            kind,
            message: "password=hunter2".into(),
            input: Some("i1".into()),
        };
        let own = [
            FailureKind::Trap,
            FailureKind::Fatal,
            FailureKind::Start,
            FailureKind::BadAnswer,
            FailureKind::Stack,
            FailureKind::Internal,
        ];
        for kind in own {
            let told = failure(kind).told();
            assert!(!told.contains("hunter2") && told.contains("`door`") && told.ends_with("(input i1)"), "{told}");
        }
        let limit = Failure { message: "call_limits.cpu_ms = 50".into(), ..failure(FailureKind::CpuTime) };
        assert_eq!(limit.told(), "plugin `door` failed in events.handle: call_limits.cpu_ms = 50 (input i1)");
        assert_eq!(
            failure(FailureKind::Trap).to_string(),
            "plugin `door` failed in events.handle: password=hunter2 (input i1)"
        );
    }

    #[test]
    fn a_components_text_cannot_break_a_log_line_nor_be_longer_than_allowed() {
        assert_eq!(tame("a\n\u{1b}[31mb\u{202e}", 100), "a\\n\\u{1b}[31mb\\u{202e}");
        assert_eq!(tame("ééé", 5), "éé");
        assert_eq!(tame("ab\n", 3), "ab");
    }
}
