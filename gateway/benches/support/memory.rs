//! What a process of this machine has in memory, from `/proc`.

/// What of a process is in memory, in bytes: all of it, and what is its own (not mapped from a file).
pub(crate) fn resident_bytes(process: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let kilobytes = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a line of the status");
        line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    (kilobytes("VmRSS:") * 1_024, kilobytes("RssAnon:") * 1_024)
}
