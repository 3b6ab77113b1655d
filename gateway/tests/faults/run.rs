//! Runs faults: a world, a swarm in it, and for each fault a history and its verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postern::commit::now_ms;
use serde_json::Value;

use crate::chance::Chance;
use crate::checker::{Verdict, check};
use crate::faults::{FAULTS, Fault, Ghosts};
use crate::history::{self, History, RoomPresence};
use crate::log::LogReader;
use crate::settings::Settings;
use crate::swarm::Swarm;
use crate::world::process::resident_bytes;
use crate::world::{Form, TENANTS, World};

/// How long the bustle goes on before the first blow.
const BEFORE: Duration = Duration::from_millis(1_500);

/// How long the bustle goes on after the last blow: recovery is seen in it.
const AFTER: Duration = Duration::from_secs(4);

/// Between two blows of one fault.
const BETWEEN: Duration = Duration::from_secs(5);

/// How long everybody may take to be there in the end.
const SETTLE_MAX: Duration = Duration::from_secs(25);

/// How long a timer may wait for the lease of a gateway that died with it.
const TIMERS_MAX: Duration = Duration::from_secs(45);

/// A lease and ten seconds.
const GHOSTS_MAX: Duration = Duration::from_secs(22);

/// How long a connection that was cut off keeps its place (`presence_grace_ms`), and a little.
const GRACE_MAX: Duration = Duration::from_secs(8);

/// How long the nodes take at most to look through the registry, and a little.
const AUDIT_MAX: Duration = Duration::from_secs(130);

/// How long 500 clients may take to connect.
const START_MAX: Duration = Duration::from_secs(60);

/// What one fault came to.
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) number: &'static str,
    pub(crate) seconds: f64,
    pub(crate) blows: usize,
    pub(crate) verdict: Verdict,
    /// Violations of a first run, where this is the second.
    pub(crate) first_run: usize,
    /// The most that the swarm was late by itself, in milliseconds: more than that is not the gateways' doing.
    pub(crate) swarm_lag_ms: u64,
}

/// Those that the settings name; of each form of Redis one after the other.
pub(crate) fn chosen(settings: &Settings) -> Vec<&'static Fault> {
    let wanted = |fault: &&Fault| match settings.only.as_slice() {
        [] => !fault.long_only || settings.seconds > 0,
        only => only.iter().any(|name| fault.name.starts_with(name.as_str())),
    };
    FAULTS.iter().filter(wanted).collect()
}

/// A world with its swarm.
struct Stage {
    world: World,
    swarm: Swarm,
}

impl Stage {
    fn set(settings: &Settings, form: Form, dir: &Path) -> Stage {
        let world = World::start(form, settings.nodes, dir);
        let mut swarm = Swarm::new(settings, &world.urls(), dir);
        let started = swarm.start(START_MAX);
        assert_eq!(started["on"], settings.clients, "not everybody could connect: {started}");
        Stage { world, swarm }
    }
}

/// Runs the chosen faults; `told` hears each outcome as it comes.
pub(crate) fn run(settings: &Settings, dir: &Path, mut told: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut stage: Option<(Form, Stage)> = None;
    for (index, fault) in chosen(settings).into_iter().enumerate() {
        let dir = dir.join(format!("{index:02}-{}", fault.name));
        std::fs::create_dir_all(&dir).expect("a folder for the run");
        if stage.as_ref().is_none_or(|(form, _)| *form != fault.form) {
            drop(stage.take()); // the old one ends first
            stage = Some((fault.form, Stage::set(settings, fault.form, &dir)));
        }
        let Some((_, present)) = &mut stage else { continue };
        let mut outcome = one(settings, fault, present, &dir);
        told(&outcome);
        let violations = outcome.verdict.total();
        // What is wrong now shall not be blamed on the next fault.
        if violations > 0 {
            stage = None;
        }
        // The short form stands at a gate: what is seen once is told and counted, what is seen twice in a row closes it.
        if violations > 0 && settings.seconds == 0 {
            let dir = dir.join("again");
            std::fs::create_dir_all(&dir).expect("a folder for the run");
            let (_, fresh) = stage.insert((fault.form, Stage::set(settings, fault.form, &dir)));
            outcome = Outcome { first_run: violations, ..one(settings, fault, fresh, &dir) };
            told(&outcome);
            if outcome.verdict.total() > 0 {
                stage = None;
            }
        }
        outcomes.push(outcome);
    }
    outcomes
}

fn one(settings: &Settings, fault: &'static Fault, stage: &mut Stage, dir: &Path) -> Outcome {
    let began = Instant::now();
    let Stage { world, swarm } = stage;
    let mut chance = Chance::new(settings.seed, fault.name);
    let file = dir.join("history.jsonl");
    (fault.prepare)(world);
    let reader = LogReader::start(&TENANTS, world.redis.master());
    let memory = MemoryWatch::start(world.pids());
    swarm.begin(&file);
    std::thread::sleep(BEFORE);
    let mut blows = 0;
    loop {
        (fault.strike)(world, &mut chance);
        blows += 1;
        memory.watch(world.pids());
        if began.elapsed() + AFTER >= Duration::from_secs(settings.seconds) {
            break;
        }
        std::thread::sleep(BETWEEN);
    }
    let healed_at = now_ms();
    std::thread::sleep(AFTER);
    let settled = swarm.settle(SETTLE_MAX);
    if settled["complete"] != true || settled["marked"] != true {
        eprintln!("  not everything came to rest: {settled}");
    }
    wait_for_visitors(world, swarm, &reader);
    // What was decided last may be on its way: what is published behind it shows that it came.
    let settled = swarm.settle(SETTLE_MAX);
    if settled["marked"] != true {
        eprintln!("  what was decided last did not come to rest: {settled}");
    }
    let presence = presence(world, swarm, ghosts_max(settings, fault.ghosts));
    let concluded = swarm.conclude();
    let logs = reader.finish();
    let history = History {
        records: history::read(&file),
        logs,
        allowed: fault.allowed,
        healed_at,
        nodes: world.gateways.len(),
        presence,
        leftovers_counted: fault.ghosts == Ghosts::UntilAudited && settings.seconds == 0,
        rss_max: memory.finish(),
    };
    let verdict = check(&history);
    (fault.restore)(world);
    Outcome {
        name: fault.name,
        number: fault.number,
        seconds: began.elapsed().as_secs_f64(),
        blows,
        verdict,
        first_run: 0,
        swarm_lag_ms: concluded["lag_ms"].as_u64().unwrap_or_default(),
    }
}

/// Waits until every visitor that Redis knows to be waiting has its outcome: what Redis has lost has none.
fn wait_for_visitors(world: &World, swarm: &mut Swarm, reader: &LogReader) {
    let deadline = Instant::now() + TIMERS_MAX;
    while Instant::now() < deadline {
        let visitors = swarm.status()["visitors"].as_array().cloned().unwrap_or_default();
        let keys = reader.keys();
        let waits = |visitor: &Value| {
            let log = visitor["tenant"].as_str().and_then(|tenant| keys.get(tenant));
            let (Some(base), Some(id)) = (log.and_then(|key| key.strip_suffix("log")), visitor["id"].as_str()) else {
                return false;
            };
            let answer = world.command(&["GET", &format!("{base}k:visitor-approvals/visitor/{id}")]);
            let stored = answer.and_then(|value| Ok(redis::from_redis_value::<Option<String>>(value)?));
            matches!(stored, Ok(Some(text)) if text.contains(r#""status":"pending""#))
        };
        if !visitors.iter().any(waits) {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn ghosts_max(settings: &Settings, ghosts: Ghosts) -> Duration {
    match ghosts {
        Ghosts::UntilReaped => GHOSTS_MAX,
        Ghosts::UntilAudited if settings.seconds > 0 => AUDIT_MAX,
        Ghosts::UntilAudited | Ghosts::InGrace => GRACE_MAX,
    }
}

/// Who is in which room, once it is as it should be or its time is over. `None` where nobody takes out
/// members whose gateway is gone.
fn presence(world: &World, swarm: &mut Swarm, within: Duration) -> Option<Vec<RoomPresence>> {
    let leases =
        world.command(&["KEYS", "ps:{n}:nodes"]).and_then(|keys| Ok(redis::from_redis_value::<Vec<String>>(keys)?));
    if leases.unwrap_or_default().is_empty() {
        return None;
    }
    let deadline = Instant::now() + within;
    loop {
        let told = swarm.presence();
        let mut rooms: Vec<RoomPresence> = serde_json::from_value(told).expect("the swarm tells what it saw");
        for room in &mut rooms {
            room.view = view(world, &room.tenant, &room.room);
        }
        let right = |room: &RoomPresence| {
            let told = room.told.as_ref().is_some_and(|told| told.users == room.users && told.count == room.count);
            told && room.view.as_ref().is_none_or(|view| *view == room.users)
        };
        if rooms.iter().all(right) || Instant::now() > deadline {
            return Some(rooms);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The documented key of a room's users; `None` where there is no such view.
fn view(world: &World, tenant: &str, room: &str) -> Option<Vec<String>> {
    let key = format!("{tenant}:room:{room}:users");
    let answer = world.command(&["SMEMBERS", &key]).ok()?;
    let mut users = redis::from_redis_value::<Vec<String>>(answer).ok()?;
    users.sort();
    Some(users)
}

/// Watches how much memory gateways have.
struct MemoryWatch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    pids: Arc<parking_lot::Mutex<Vec<u32>>>,
    thread: std::thread::JoinHandle<()>,
}

impl MemoryWatch {
    fn start(pids: Vec<u32>) -> MemoryWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicU64::new(0));
        let pids = Arc::new(parking_lot::Mutex::new(pids));
        let (stopped, seen, watched) = (stop.clone(), most.clone(), pids.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let now = watched.lock().iter().filter_map(|pid| resident_bytes(*pid)).max().unwrap_or(0);
                seen.fetch_max(now, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        MemoryWatch { stop, most, pids, thread }
    }

    /// From here on these: gateways were started anew.
    fn watch(&self, pids: Vec<u32>) {
        *self.pids.lock() = pids;
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the watch does not panic");
        self.most.load(Ordering::Acquire)
    }
}

/// Whether the server is one that the suite can work with.
pub(crate) fn missing_programs() -> Vec<&'static str> {
    ["redis-server", "node"]
        .into_iter()
        .filter(|program| {
            let found = std::process::Command::new(program).arg("--version").output();
            !found.is_ok_and(|output| output.status.success())
        })
        .collect()
}

/// Where histories and logs are kept while the suite runs, and after it if they are wanted.
pub(crate) fn folder(settings: &Settings) -> (PathBuf, Option<tempfile::TempDir>) {
    match &settings.keep {
        Some(keep) => {
            std::fs::create_dir_all(keep).expect("FAULTS_KEEP can be made");
            (keep.canonicalize().expect("FAULTS_KEEP is a folder"), None)
        }
        None => {
            let dir = tempfile::tempdir().expect("a temporary folder");
            (dir.path().to_owned(), Some(dir))
        }
    }
}
