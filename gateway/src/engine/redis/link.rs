//! The connection that carries one master's commands.
//!
//! The crate's own reconnection gives up after a while and does not see a server that stopped answering,
//! so each connection has a supervisor of ours: it dials with back-off without end, makes the
//! connection ready (is it a master, does it know the scripts), offers it, watches it, and takes it away
//! when it is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::dial::Dialer;
use super::router::Router;
use super::script;
use super::url::{Address, Kind};
use crate::commit::now_ms;
use crate::engine::{EngineError, Health};

/// How long a command that carries megabytes may take.
const BULK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long making a connection ready may take, from dialling to the last script.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection is asked whether its server is still there, a master, and the same.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// After so many silent questions in a row the connection is replaced.
const SILENT_QUESTIONS_MAX: u32 = 3;

/// How often the Sentinels are asked whether they still mean this master: they may not be able to tell it.
const SENTINELS_EVERY: Duration = Duration::from_secs(4);

/// What is added to that, at most, so that nodes do not ask together.
const SENTINELS_JITTER: Duration = Duration::from_secs(1);

/// A connection that lived so long was a good one: the back-off starts afresh after it.
const GOOD_AFTER: Duration = Duration::from_secs(2);

/// How long a caller waits for a connection before it is told that there is none.
pub(super) const LINK_WAIT_MAX: Duration = Duration::from_secs(1);

/// The oldest server that has shard channels and `<ms>-*` ids.
const SERVER_MAJOR_MIN: u32 = 7;

/// One run of a server's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) run: Arc<str>,
}

/// A connection that is ready for commands.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The history that the server's data belongs to: changes when it restarts or is promoted.
    pub(super) generation: Arc<str>,
    pub(super) server: Server,
    broken: CancellationToken,
    router: Arc<Router>,
}

/// What an error says about what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing: another server is to be asked, or this one a little later.
    Elsewhere,
    /// Nothing: the server is no master, or not yet.
    NoMaster,
    /// Nothing.
    Refused,
    /// Nothing: what is stored is of another kind than it must be.
    Damaged,
    /// Nobody knows.
    Unknown,
}

impl Verdict {
    fn of(error: &RedisError) -> (Verdict, &'static str) {
        use ServerErrorKind as Server;
        match error.kind() {
            ErrorKind::Server(Server::Moved) => (Verdict::Elsewhere, "moved"),
            ErrorKind::Server(Server::Ask) => (Verdict::Elsewhere, "ask"),
            ErrorKind::Server(Server::TryAgain) => (Verdict::Elsewhere, "tryagain"),
            ErrorKind::Server(Server::ClusterDown) => (Verdict::Elsewhere, "clusterdown"),
            ErrorKind::Server(Server::ReadOnly) => (Verdict::NoMaster, "readonly"),
            ErrorKind::Server(Server::BusyLoading) => (Verdict::NoMaster, "loading"),
            ErrorKind::Server(Server::MasterDown) => (Verdict::NoMaster, "masterdown"),
            ErrorKind::Server(Server::NoScript) => (Verdict::Refused, "noscript"),
            ErrorKind::Server(Server::ResponseError) => (Verdict::Damaged, "error"),
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => (Verdict::Damaged, "wrongtype"),
            ErrorKind::Extension if error.code() == Some("OOM") => (Verdict::Refused, "oom"),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client | ErrorKind::AuthenticationFailed => {
                (Verdict::Refused, "refused")
            }
            _ if error.is_timeout() => (Verdict::Unknown, "timeout"),
            _ => (Verdict::Unknown, "connection"),
        }
    }
}

impl Link {
    /// For one command.
    pub(super) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    /// For one command that carries megabytes.
    pub(super) fn bulk_connection(&self) -> MultiplexedConnection {
        let mut connection = self.connection.clone();
        connection.set_response_timeout(BULK_TIMEOUT);
        connection
    }

    /// Nobody is to use it any more.
    pub(super) fn give_up(&self) {
        self.broken.cancel();
    }

    /// Did the server say that it did nothing because it is not, or not now, the one to ask?
    pub(super) fn is_elsewhere(error: &RedisError) -> bool {
        matches!(Verdict::of(error).0, Verdict::Elsewhere | Verdict::NoMaster)
    }

    /// What an error of something that changes nothing means.
    pub(super) fn read_error(&self, error: &RedisError) -> EngineError {
        match self.write_error(error) {
            EngineError::Ambiguous(why) => EngineError::Unavailable(why),
            other => other,
        }
    }

    /// What an error of something that changes data means: unless the server itself said no, it may
    /// have been done.
    pub(super) fn write_error(&self, error: &RedisError) -> EngineError {
        let (verdict, kind) = Verdict::of(error);
        counter!("engine_command_errors_total", "kind" => kind).increment(1);
        if error.is_connection_dropped() || error.kind() == ErrorKind::Parse || verdict == Verdict::NoMaster {
            self.give_up();
        }
        match verdict {
            Verdict::Elsewhere | Verdict::NoMaster => {
                self.router.doubt();
                EngineError::Unavailable(error.to_string())
            }
            Verdict::Damaged => EngineError::Corrupt(error.to_string()),
            Verdict::Refused => EngineError::Unavailable(error.to_string()),
            Verdict::Unknown => EngineError::Ambiguous(error.to_string()),
        }
    }
}

/// Which server a supervisor dials.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// Always this one.
    At(Address),
    /// The master, whoever that is each time.
    Master,
}

/// The connection for commands: always one, or none for now.
#[derive(Clone)]
pub(super) struct Commands {
    current: watch::Receiver<Option<Link>>,
    last_error: Arc<Mutex<String>>,
    health: watch::Receiver<Health>,
    ahead_ms: Arc<AtomicI64>,
}

impl Commands {
    /// The connection, after a short wait if there is none at the moment.
    pub(super) async fn link(&self) -> Result<Link, EngineError> {
        self.link_within(LINK_WAIT_MAX).await
    }

    /// As [`link`](Commands::link), with another patience.
    pub(super) async fn link_within(&self, patience: Duration) -> Result<Link, EngineError> {
        // A broken one is offered until its supervisor has noticed.
        let usable = |link: &Option<Link>| link.as_ref().is_some_and(|link| !link.broken.is_cancelled());
        let mut current = self.current.clone();
        match timeout(patience, current.wait_for(usable)).await {
            Ok(Ok(link)) => link.clone().ok_or_else(|| self.unavailable()),
            _ => Err(self.unavailable()),
        }
    }

    /// Are these the same commands?
    pub(super) fn is(&self, other: &Commands) -> bool {
        Arc::ptr_eq(&self.last_error, &other.last_error)
    }

    /// The connection if there is one now.
    pub(super) fn present(&self) -> Option<Link> {
        self.current.borrow().clone().filter(|link| !link.broken.is_cancelled())
    }

    /// Waits until the commands go to another server than this one.
    pub(super) async fn left(&self, server: &Server) {
        let mut current = self.current.clone();
        let elsewhere = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.server != *server);
        if current.wait_for(elsewhere).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Is there a connection?
    pub(super) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// By how much the server's clock is ahead of this node's, in milliseconds; about.
    pub(super) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    fn unavailable(&self) -> EngineError {
        EngineError::Unavailable(format!("no connection to Redis: {}", self.last_error.lock()))
    }

    /// The handle, and the supervisor to be spawned: it ends when `stop` is cancelled.
    pub(super) fn supervised(
        dialer: Dialer,
        place: Place,
        router: Arc<Router>,
        stop: CancellationToken,
    ) -> (Commands, impl Future<Output = ()> + Send) {
        let (offer, current) = watch::channel(None);
        const NOT_YET: &str = "not connected yet";
        let last_error = Arc::new(Mutex::new(NOT_YET.to_owned()));
        let (tell, health) = watch::channel(Health::Down { since: Instant::now(), why: NOT_YET.into() });
        let ahead_ms = Arc::<AtomicI64>::default();
        let commands = Commands { current, last_error: last_error.clone(), health, ahead_ms: ahead_ms.clone() };
        let supervisor =
            Supervisor { dialer, place, router, offer, health: tell, last_error, ahead_ms, generation: None };
        let supervisor = async move {
            let offer = supervisor.offer.clone();
            stop.run_until_cancelled(supervisor.run()).await;
            offer.send_replace(None);
        };
        (commands, supervisor)
    }
}

struct Supervisor {
    dialer: Dialer,
    place: Place,
    router: Arc<Router>,
    offer: watch::Sender<Option<Link>>,
    health: watch::Sender<Health>,
    last_error: Arc<Mutex<String>>,
    ahead_ms: Arc<AtomicI64>,
    /// The last one seen.
    generation: Option<Arc<str>>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let why = match timeout(HANDSHAKE_TIMEOUT, self.ready()).await {
                Ok(Ok(link)) => {
                    let address = link.server.address.to_string();
                    info!(address, "connected to Redis");
                    gauge!("engine_up", "master" => address.clone()).set(1.0);
                    self.saw_generation(&link.generation);
                    self.health.send_replace(Health::Up);
                    self.offer.send_replace(Some(link.clone()));
                    self.router.tell_health();
                    let why = self.watch_over(link).await;
                    self.offer.send_replace(None);
                    gauge!("engine_up", "master" => address.clone()).set(0.0);
                    format!("{address}: {why}")
                }
                Ok(Err(why)) => why,
                Err(_) => format!("no handshake within {HANDSHAKE_TIMEOUT:?}"),
            };
            if since.elapsed() >= GOOD_AFTER {
                backoff.reset();
            }
            warn!(why, "no connection to Redis");
            *self.last_error.lock() = why.clone();
            let lost = self.health.send_if_modified(|health| {
                let lost = *health == Health::Up;
                if lost {
                    *health = Health::Down { since: Instant::now(), why: why.into() };
                }
                lost
            });
            if lost {
                self.router.tell_health();
            }
            self.router.doubt();
            sleep(backoff.next()).await;
        }
    }

    async fn ready(&self) -> Result<Link, String> {
        let address = match &self.place {
            Place::At(address) => address.clone(),
            Place::Master => self.dialer.master().await?,
        };
        let told = |why: String| format!("{address}: {why}");
        let (mut connection, broken) =
            self.dialer.dial(&address, |_| true).await.map_err(|error| told(error.to_string()))?;
        let state = self.ask(&mut connection).await.map_err(told)?;
        script::load_all(&mut connection).await.map_err(|error| told(error.to_string()))?;
        let server = Server { address, run: state.run };
        Ok(Link { connection, generation: state.generation, server, broken, router: self.router.clone() })
    }

    /// Watches a connection until it has to be replaced, and says why.
    async fn watch_over(&mut self, mut link: Link) -> String {
        let mut silent = 0;
        let dialer = self.dialer.clone();
        let address = link.server.address.clone();
        let mut renamed = std::pin::pin!(another_master(&dialer, &address));
        loop {
            tokio::select! {
                () = link.broken.cancelled() => return "the connection broke".into(),
                other = &mut renamed => return format!("the Sentinels name another master: {other}"),
                // A server that was silent is asked again at once.
                () = sleep(WATCH_EVERY), if silent == 0 => {}
                () = std::future::ready(()), if silent > 0 => {}
            }
            let mut connection = link.connection();
            match timeout(WATCH_EVERY, self.ask(&mut connection)).await {
                Ok(Ok(state)) => {
                    silent = 0;
                    if state.generation != link.generation {
                        self.saw_generation(&state.generation);
                        link.generation = state.generation;
                        self.offer.send_replace(Some(link.clone()));
                    }
                }
                Ok(Err(why)) => return why,
                Err(_) => silent += 1,
            }
            if silent == SILENT_QUESTIONS_MAX {
                return format!("no answer to {silent} questions of {WATCH_EVERY:?} each");
            }
        }
    }

    fn saw_generation(&mut self, generation: &Arc<str>) {
        let before = self.generation.replace(generation.clone());
        if before.is_some_and(|before| before != *generation) {
            counter!("engine_generation_changes_total").increment(1);
        }
    }

    /// How it is with a server that may be used.
    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<State, String> {
        let asked_ms = now_ms();
        let state = judge(&info_of(connection).await?)?;
        if let Some(server_ms) = state.time_ms {
            // The answer was given between question and arrival.
            let here = asked_ms.midpoint(now_ms());
            self.ahead_ms.store(server_ms.cast_signed() - here.cast_signed(), Ordering::Relaxed);
        }
        Ok(state)
    }
}

/// Waits until the Sentinels name another master than this one; for ever where there are none.
async fn another_master(dialer: &Dialer, master: &Address) -> Address {
    if !matches!(dialer.target.kind, Kind::Sentinel(_)) {
        return std::future::pending().await;
    }
    loop {
        sleep(SENTINELS_EVERY + jitter(SENTINELS_JITTER)).await;
        // Sentinels that cannot be asked change nothing.
        if let Ok(named) = dialer.master().await
            && named != *master
        {
            return named;
        }
    }
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: Arc<str>,
    pub(super) run: Arc<str>,
    /// Its clock, in milliseconds since 1970, where it tells.
    time_ms: Option<u64>,
}

/// What a server tells of itself and its role.
pub(super) async fn info_of(connection: &mut MultiplexedConnection) -> Result<String, String> {
    match ::redis::cmd("INFO").arg("server").arg("replication").query_async(connection).await {
        Ok(Value::VerbatimString { text, .. }) => Ok(text),
        Ok(Value::BulkString(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(_) => Err("INFO was not answered with a text".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads [`info_of`]; an error unless it is a master of a version that can be used.
pub(super) fn judge(info: &str) -> Result<State, String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let version = field("redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < SERVER_MAJOR_MIN) {
        return Err(format!("the server's version is {version}, at least {SERVER_MAJOR_MIN} is needed"));
    }
    let time_ms = field("server_time_usec").and_then(|micros| micros.parse::<u64>().ok()).map(|micros| micros / 1_000);
    match (field("role"), field("master_replid"), field("run_id")) {
        (Some("master"), Some(generation), Some(run)) => {
            Ok(State { generation: generation.into(), run: run.into(), time_ms })
        }
        (role, ..) => Err(format!("the server is no master but {}", role.unwrap_or("unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_master_of_version_seven_is_used() {
        let info = |version, role| {
            format!(
                "# Server\r\nredis_version:{version}\r\nrun_id:r1\r\nserver_time_usec:1700000000123456\r\n\
                 role:{role}\r\nmaster_replid:abc\r\n"
            )
        };
        let state = judge(&info("7.0.15", "master")).unwrap();
        assert_eq!((&*state.generation, &*state.run, state.time_ms), ("abc", "r1", Some(1_700_000_000_123)));
        assert!(judge(&info("6.2.1", "master")).unwrap_err().contains("6.2.1"));
        assert!(judge(&info("7.2.4", "slave")).unwrap_err().contains("slave"));
        assert!(judge("").is_err());
    }
}
