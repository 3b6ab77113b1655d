//! Scenarios: what happens to a plugin step by step, and what is to come of it, on its developer's machine.
//!
//! A scenario runs on the real [`Decisions`](crate::decision::Decisions), plugin host and embedded engine, with the
//! limits of production. Of its own are two things only: the clock, which stands still between the steps and jumps from
//! timer to timer, and the [`recorder`] in front of the engine, which notes what was committed and can have a commit
//! meet a change. There are no sockets: who comes, goes and speaks is what the steps say.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::commit::Millis;
use crate::tenant::{CallLimits, Pattern, PluginSettings};

mod comparison;
mod everybody;
mod members;
mod record;
mod recorder;
mod runner;
mod stage;
mod steps;

pub use comparison::{Difference, fits_named};
pub use record::{Ended, Happened, Measured, Played};
pub use runner::{Runner, RunnerError, Tested};
pub use steps::duration;

/// Timers that may fire while the clock is moved once.
pub const TIMERS_PER_ADVANCE_MAX: usize = 1_000;

/// The longest that the clock can be moved at once, in milliseconds: ten years.
pub const ADVANCE_MS_MAX: Millis = 10 * 366 * 86_400_000;

/// Steps that one scenario may have.
pub const STEPS_MAX: usize = 1_000;

/// The word of a step that could not be done, such as one of somebody who is not there.
pub const IMPOSSIBLE: &str = "impossible";

/// A text that stands for any value where something is expected.
pub const ANY: &str = "${any}";

/// One scenario as its file means it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The file's name without its ending; ids are made of it.
    pub name: String,
    /// The file, as it was named.
    pub source: Arc<str>,
    /// When it begins, in milliseconds since the Unix epoch.
    pub now: Millis,
    /// Settings of the plugin that is tested.
    pub settings: BTreeMap<String, String>,
    /// What calls may use up.
    pub call_limits: CallLimits,
    /// Who takes part, with the claims of their tokens: JSON objects.
    pub users: BTreeMap<String, Value>,
    /// Plugins beside the one that is tested.
    pub plugins: Vec<PluginSettings>,
    /// Events that are published without a handler to the rooms that they name.
    pub relay: Vec<Pattern>,
    /// Events that are published without a handler to everyone in their namespace.
    pub broadcast: Vec<Pattern>,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub struct Step {
    /// Where it begins in the file.
    pub line: usize,
    /// What happens.
    pub action: Action,
    /// So many commits of it meet a change of what they rest on.
    pub conflicts: u32,
    /// Is what plugins read in it not to be had?
    pub unavailable: bool,
    /// What is to come of it; what is not named is not looked at.
    pub expected: Vec<Expectation>,
    /// What of the reply later steps can name: names with JSON pointers into it.
    pub keep: BTreeMap<String, String>,
}

/// What happens in a step. Texts may hold `${name}` for what an earlier step kept.
#[derive(Debug, Clone)]
pub enum Action {
    /// Somebody says something.
    Event {
        /// Who; `None`: the tenant's own back end, over HTTP.
        user: Option<String>,
        /// Where.
        namespace: Arc<str>,
        /// The event's name.
        event: String,
        /// Its arguments, an array.
        args: Value,
    },
    /// A user comes in.
    Connect {
        /// Who.
        user: String,
        /// Where.
        namespace: Arc<str>,
    },
    /// A user goes.
    Disconnect {
        /// Who.
        user: String,
        /// Where.
        namespace: Arc<str>,
        /// The word of the ending.
        reason: String,
    },
    /// A user wants to join a room.
    Join {
        /// Who.
        user: String,
        /// Where.
        namespace: Arc<str>,
        /// The room.
        room: String,
        /// What it sends along, an array.
        params: Option<Value>,
    },
    /// A user leaves a room.
    Leave {
        /// Who.
        user: String,
        /// Where.
        namespace: Arc<str>,
        /// The room.
        room: String,
    },
    /// Time passes, so many milliseconds.
    Advance(Millis),
}

impl Action {
    /// Who does it, and where; nobody moves the clock or calls over HTTP.
    pub fn actor(&self) -> Option<(&str, &Arc<str>)> {
        match self {
            Action::Event { user, namespace, .. } => Some((user.as_deref()?, namespace)),
            Action::Connect { user, namespace }
            | Action::Disconnect { user, namespace, .. }
            | Action::Join { user, namespace, .. }
            | Action::Leave { user, namespace, .. } => Some((user, namespace)),
            Action::Advance(_) => None,
        }
    }
}

/// One thing that is to come of a step.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// What is looked at.
    pub aspect: Aspect,
    /// Where it is written.
    pub line: usize,
    /// What it is to be, in the form in which [`Happened`] has it.
    pub value: Value,
}

/// What can be looked at after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// What the sender is answered; `null`: nothing.
    Reply,
    /// Publications, in order; the ephemeral ones come last.
    Published,
    /// Who was brought into which rooms, in order.
    Joined,
    /// Who was taken out of which rooms, in order.
    Left,
    /// Whose connections were ended, in order.
    Disconnected,
    /// A refusal's code, or code and message.
    Refused,
    /// How a call failed, in the word of the metrics.
    Failed,
    /// Which timers fired, in order.
    Fired,
    /// Values of keys after the step.
    State,
    /// Keys that have no value after the step.
    StateAbsent,
    /// The plugin's timers after the step, with the milliseconds until they are due.
    Timers,
    /// Texts, each of them in a line that was logged.
    Logged,
    /// How often it ran.
    Runs,
}

impl Aspect {
    /// The key in the file.
    pub fn word(self) -> &'static str {
        match self {
            Aspect::Reply => "reply",
            Aspect::Published => "published",
            Aspect::Joined => "joined",
            Aspect::Left => "left",
            Aspect::Disconnected => "disconnected",
            Aspect::Refused => "refused",
            Aspect::Failed => "failed",
            Aspect::Fired => "fired",
            Aspect::State => "state",
            Aspect::StateAbsent => "state_absent",
            Aspect::Timers => "timers",
            Aspect::Logged => "logged",
            Aspect::Runs => "runs",
        }
    }
}
