//! The tenants' logs as Redis holds them, read again and again while a run lasts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use postern::commit::{Effect, Position};
use postern::engine::redis::decode_log_frame;
use serde_json::Value;

use crate::history::{Log, Published, WHOLE};

/// How often the logs are looked at: what is lost in between was seen by clients only.
const EVERY: Duration = Duration::from_millis(200);

/// Entries read at once.
const PAGE: usize = 1_000;

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

type Finder = Arc<dyn Fn() -> Option<String> + Send + Sync>;
type Entries = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

/// Reads from now on, until it is asked for what it has.
pub(crate) struct LogReader {
    stop: Arc<AtomicBool>,
    states: Arc<Mutex<BTreeMap<String, State>>>,
    thread: Option<JoinHandle<()>>,
}

impl LogReader {
    /// Begins at the present top of each tenant's log.
    pub(crate) fn start(tenants: &[&str], master: Finder) -> LogReader {
        let stop = Arc::new(AtomicBool::new(false));
        let states: BTreeMap<_, _> = tenants.iter().map(|tenant| ((*tenant).to_owned(), State::default())).collect();
        let states = Arc::new(Mutex::new(states));
        let reader = (stop.clone(), states.clone());
        let mut connection = None;
        for state in states.lock().iter_mut() {
            while let Err(error) = begin(&mut connection, &master, state.0, state.1) {
                eprintln!("the log cannot be read yet: {error}");
                std::thread::sleep(EVERY);
            }
        }
        let thread = std::thread::spawn(move || {
            let (stop, states) = reader;
            while !stop.load(Ordering::Acquire) {
                for (tenant, state) in states.lock().iter_mut() {
                    // While the server is away there is nothing to read.
                    if read(&mut connection, &master, tenant, state).is_err() {
                        connection = None;
                    }
                }
                std::thread::sleep(EVERY);
            }
        });
        LogReader { stop, states, thread: Some(thread) }
    }

    /// The key of a tenant's log, once it has been read.
    pub(crate) fn keys(&self) -> BTreeMap<String, String> {
        self.states.lock().iter().filter_map(|(tenant, state)| Some((tenant.clone(), state.key.clone()?))).collect()
    }

    /// Reads to the end; what there was.
    pub(crate) fn finish(mut self) -> BTreeMap<String, Log> {
        // Twice the time of a look, so that there was one after everything.
        std::thread::sleep(EVERY * 3);
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reader of the log does not panic");
        }
        let states = std::mem::take(&mut *self.states.lock());
        states.into_iter().map(|(tenant, state)| (tenant, state.log)).collect()
    }
}

#[derive(Debug, Default)]
struct State {
    key: Option<String>,
    /// The last entry that was read.
    last: Option<Position>,
    log: Log,
}

/// A connection and the URL that it goes to.
type Connection = Option<(String, redis::Connection)>;

/// A failover leaves the old master reachable, but its log is nobody's any more: so the master is asked for
/// every time.
fn connected<'a>(connection: &'a mut Connection, master: &Finder) -> redis::RedisResult<&'a mut redis::Connection> {
    let url = master().ok_or_else(|| redis::RedisError::from((redis::ErrorKind::Io, "there is no master")))?;
    if connection.as_ref().is_none_or(|(open, _)| *open != url) {
        let opened = redis::Client::open(url.as_str())?.get_connection_with_timeout(ANSWER_MAX)?;
        opened.set_read_timeout(Some(ANSWER_MAX))?;
        *connection = Some((url, opened));
    }
    Ok(&mut connection.as_mut().expect("just connected").1)
}

fn begin(connection: &mut Connection, master: &Finder, tenant: &str, state: &mut State) -> redis::RedisResult<()> {
    let open = connected(connection, master)?;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("ps:{{*}}:{tenant}:log")).query(open)?;
    state.key = keys.into_iter().next();
    let Some(key) = &state.key else { return Ok(()) };
    let top: Entries = redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).query(open)?;
    state.last = top.first().and_then(|(id, _)| Position::parse(id));
    state.log.newest = state.last.map_or(0, |last| last.epoch);
    Ok(())
}

fn read(connection: &mut Connection, master: &Finder, tenant: &str, state: &mut State) -> redis::RedisResult<()> {
    let open = connected(connection, master)?;
    if state.key.is_none() {
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("ps:{{*}}:{tenant}:log")).query(open)?;
        state.key = keys.into_iter().next();
    }
    let Some(key) = state.key.clone() else { return Ok(()) };
    let still_there = match state.last {
        Some(last) => {
            let id = last.to_string();
            let found: Entries = redis::cmd("XRANGE").arg(&key).arg(&id).arg(&id).query(open)?;
            !found.is_empty()
        }
        None => false,
    };
    let mut from = match (state.last, still_there) {
        (Some(last), true) => format!("({last}"),
        _ => "-".to_owned(),
    };
    let mut before = state.last.filter(|_| still_there);
    loop {
        let page: Entries = redis::cmd("XRANGE").arg(&key).arg(&from).arg("+").arg("COUNT").arg(PAGE).query(open)?;
        let full = page.len() == PAGE;
        for (id, fields) in page {
            let Some(position) = Position::parse(&id) else { continue };
            from = format!("({position}");
            state.take(before, position, &fields);
            before = Some(position);
            state.last = Some(position);
        }
        if !full {
            return Ok(());
        }
    }
}

impl State {
    fn take(&mut self, before: Option<Position>, position: Position, fields: &[(Vec<u8>, Vec<u8>)]) {
        let log = &mut self.log;
        match before {
            Some(before) if before.epoch < position.epoch => {
                log.survivors.insert(before.epoch, Some(before.seq));
            }
            // The log begins with this epoch: nothing that was before outlived it.
            None if position.epoch > log.newest && log.newest > 0 => {
                log.survivors.entry(log.newest).or_insert(None);
            }
            _ => {}
        }
        log.newest = log.newest.max(position.epoch);
        let frame = fields.iter().find(|(name, _)| name == b"d").map(|(_, frame)| frame);
        let Some(frame) = frame else { return };
        let published = match decode_log_frame(position, frame) {
            Ok(entry) => publications(&entry.effects),
            Err(error) => {
                log.rewritten.push(format!("{position} cannot be read: {error}"));
                return;
            }
        };
        let known = log.entries.insert((position.epoch, position.seq), published.clone());
        if known.is_some_and(|known| known != published) {
            log.rewritten.push(format!("{position} held something else before"));
        }
    }
}

/// The swarm's publications and what was said of visitors.
fn publications(effects: &[Effect]) -> Vec<Published> {
    let all: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Publish(publication) => Some(publication),
            _ => None,
        })
        .collect();
    let key = |event: &str, args: &str| {
        let first = serde_json::from_str::<Vec<Value>>(args).ok()?.into_iter().next()?;
        match event {
            "m" => Some(format!("{}:{}", first["by"].as_str()?, first["n"])),
            "visitor_request" | "request_approved" | "request_denied" | "visitor_timeout" => {
                Some(format!("v:{}:{event}", first["visitor_id"].as_str()?))
            }
            _ => None,
        }
    };
    all.iter()
        .enumerate()
        .filter_map(|(index, publication)| {
            let part = if index + 1 == all.len() { WHOLE } else { index };
            let room = publication.room.name().to_owned();
            Some(Published { room, key: key(&publication.event, &publication.data.args)?, part })
        })
        .collect()
}
