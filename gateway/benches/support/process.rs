//! What a process of this machine uses, from `/proc`.

use std::time::Duration;

/// Clock ticks of `/proc/PID/stat` a second; Linux tells user space 100, whatever it uses itself.
const TICKS_A_SECOND: u64 = 100;

/// Computing time of a process so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) user: Duration,
    /// In the kernel for it.
    pub(crate) system: Duration,
}

impl Cpu {
    /// Of a process, by its id.
    pub(crate) fn of(process: u32) -> Cpu {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
        // The name in parentheses may hold anything; what follows it begins with field 3.
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
        let time = |field: usize| Duration::from_millis(ticks(field) * 1_000 / TICKS_A_SECOND);
        Cpu { user: time(14), system: time(15) }
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Cpu) -> Cpu {
        Cpu { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }

    /// Both.
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }
}
