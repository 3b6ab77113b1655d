//! What can be set, by environment variables.

use std::path::PathBuf;

/// How the suite runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `FAULTS_SECONDS`: how long each fault is repeated; 0, the default: once.
    pub(crate) seconds: u64,
    /// `FAULTS_CLIENTS`: how many clients there are; 500.
    pub(crate) clients: usize,
    /// `FAULTS_SEED`: what chance starts from; by default the time, printed.
    pub(crate) seed: u32,
    /// `FAULTS_ONLY`: names of faults, separated by commas, or the beginnings of names.
    pub(crate) only: Vec<String>,
    /// `FAULTS_RATE`: publications a second, of all clients together; 100.
    pub(crate) publishes_per_s: u32,
    /// `FAULTS_HOP_MS`: the mean time that a client stays on a node, in milliseconds; 15,000.
    pub(crate) hop_mean_ms: u32,
    /// `FAULTS_NODES`: gateways; 3.
    pub(crate) nodes: usize,
    /// `FAULTS_REPORT`: a file to write the table of results to.
    pub(crate) report: Option<PathBuf>,
    /// `FAULTS_KEEP`: a folder to keep histories and logs in; by default they are removed.
    pub(crate) keep: Option<PathBuf>,
    /// Rooms per tenant that members publish to.
    pub(crate) rooms: usize,
    pub(crate) visitors_per_s: u32,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable that is not a number in its range.
    pub(crate) fn read() -> Result<Settings, String> {
        let now = u32::try_from(postern::commit::now_ms() % u64::from(u32::MAX)).unwrap_or_default();
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let only = text("FAULTS_ONLY").map(|only| only.split(',').map(|name| name.trim().to_owned()).collect());
        Ok(Settings {
            seconds: u64::from(number("FAULTS_SECONDS", 0, 0, 86_400)?),
            clients: number("FAULTS_CLIENTS", 500, 40, 10_000)? as usize,
            seed: number("FAULTS_SEED", now, 0, u32::MAX)?,
            only: only.unwrap_or_default(),
            publishes_per_s: number("FAULTS_RATE", 100, 1, 10_000)?,
            hop_mean_ms: number("FAULTS_HOP_MS", 15_000, 500, 120_000)?,
            nodes: number("FAULTS_NODES", 3, 2, 16)? as usize,
            report: text("FAULTS_REPORT").map(PathBuf::from),
            keep: text("FAULTS_KEEP").map(PathBuf::from),
            rooms: 50,
            visitors_per_s: 3,
        })
    }
}

fn number(name: &str, default: u32, min: u32, max: u32) -> Result<u32, String> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(default) };
    let range = min..=max;
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("{name} is {text:?}; it must be a number from {min} to {max}")),
    }
}
