//! How much is done.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that the load itself needs beside its clients: HTTP connections, pipes, the runtime's own.
const OTHER_FILES: u64 = 256;

/// What one run does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Clients, evenly on all nodes, every second pair by Socket.IO.
    pub(crate) connections: usize,
    /// Rooms that share them evenly; beside them there is one room with all.
    pub(crate) rooms: usize,
    /// How long is broadcast, at least.
    pub(crate) during: Duration,
    /// Publications a second to the shared rooms, all rooms together.
    pub(crate) rooms_per_second: u32,
    /// Publications a second to the room of all.
    pub(crate) all_per_second: u32,
    /// Connections a second while everybody connects.
    pub(crate) connects_per_second: u32,
    /// Of a hundred clients, so many leave and come back.
    pub(crate) churn_percent: usize,
    /// How long a client keeps its place when its line breaks, in milliseconds.
    pub(crate) grace_ms: u64,
    /// How long nodes believe each other without a beat, in milliseconds; there are four beats in it.
    pub(crate) lease_ms: u64,
}

impl Plan {
    /// Members of a shared room.
    pub(crate) fn members(&self) -> usize {
        self.connections / self.rooms
    }

    /// The room that a client shares; the last one has what does not divide evenly.
    pub(crate) fn room_of(&self, client: usize) -> usize {
        (client / self.members()).min(self.rooms - 1)
    }

    /// Whether a client leaves and comes back: scattered, and never one of the first two of a room, who publish.
    pub(crate) fn churns(&self, client: usize) -> bool {
        client % self.members() > 1 && (client * 19 + 50) % 100 < self.churn_percent
    }

    /// Raises the limit of open files as far as may be; says what to do where that is not enough.
    pub(crate) fn open_files(&self) -> Result<(), String> {
        let wanted = self.connections as u64 + OTHER_FILES;
        let limit = getrlimit(Resource::Nofile);
        if limit.current.is_none_or(|current| current >= wanted) {
            return Ok(());
        }
        if limit.maximum.is_none_or(|maximum| maximum >= wanted) {
            let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
            return setrlimit(Resource::Nofile, raised).map_err(|error| error.to_string());
        }
        Err(format!(
            "{} connections need {wanted} open files in this process, and there may be {}: `ulimit -n {wanted}` as root \
             (or LimitNOFILE=, limits.conf), or fewer by POSTERN_LOAD_CONNECTIONS",
            self.connections,
            limit.maximum.map_or_else(String::new, |maximum| maximum.to_string()),
        ))
    }
}
