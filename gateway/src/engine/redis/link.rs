//! Connections to the server: how one is made, and the one that carries commands.
//!
//! The crate's own reconnection gives up after a while and does not see a server that stopped answering,
//! so each connection has a supervisor of ours: it dials with back-off without end, makes the
//! connection ready (is it a master, does it know the scripts), offers it, watches it, and takes it away
//! when it is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo as _, ProtocolVersion, PushInfo, PushKind, RedisError,
    ServerErrorKind, Value,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::script;
use crate::commit::Position;
use crate::engine::{EngineError, Health};

/// How long a TCP connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a command may take before its outcome counts as unknown.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a command that carries megabytes may take.
const BULK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long making a connection ready may take, from dialling to the last script.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands that wait to be written; more callers wait for room.
const COMMANDS_WAITING_MAX: usize = 1_024;

/// Bytes that were written and not acknowledged make the connection break after this long.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// How often a connection is asked whether its server is still there, a master, and the same.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// After so many silent questions in a row the connection is replaced.
const SILENT_QUESTIONS_MAX: u32 = 3;

/// A connection that lived so long was a good one: the back-off starts afresh after it.
const GOOD_AFTER: Duration = Duration::from_secs(2);

/// How long a caller waits for a connection before it is told that there is none.
const LINK_WAIT_MAX: Duration = Duration::from_secs(1);

/// The oldest server that has shard channels and `<ms>-*` ids.
const SERVER_MAJOR_MIN: u32 = 7;

/// Where to dial.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    client: Client,
}

impl Dialer {
    /// Reads `redis://[user:password@]host[:port][/db]`. Errors do not repeat it: it may hold a password.
    pub(super) fn new(url: &str) -> Result<Dialer, EngineError> {
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_MAX);
        let client = url.into_connection_info().and_then(|info| {
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))
        });
        match client {
            Ok(client) => Ok(Dialer { client }),
            Err(error) => Err(EngineError::Unavailable(format!("the Redis URL is not usable: {}", error.category()))),
        }
    }

    /// Host and port, for log lines.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// A connection whose pushes go to `push`, which must not block and answers whether the connection is
    /// still good. The token is cancelled when it is not, or when it broke.
    pub(super) async fn dial(
        &self,
        push: impl Fn(PushInfo) -> bool + Send + Sync + 'static,
    ) -> Result<(MultiplexedConnection, CancellationToken), RedisError> {
        let broken = CancellationToken::new();
        let breaks = broken.clone();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_pipeline_buffer_size(COMMANDS_WAITING_MAX)
            .set_push_sender(move |info: PushInfo| -> Result<(), ::redis::aio::SendError> {
                if info.kind == PushKind::Disconnection || !push(info) {
                    breaks.cancel();
                }
                Ok(())
            });
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok((connection, broken))
    }
}

/// A connection that is ready for commands.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// The history that the server's data belongs to: changes when it restarts or is promoted.
    pub(super) generation: Arc<str>,
    broken: CancellationToken,
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
        if error.is_connection_dropped() || error.kind() == ErrorKind::Parse {
            self.give_up();
        }
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::ResponseError) => EngineError::Corrupt(error.to_string()),
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => EngineError::Corrupt(error.to_string()),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Client | ErrorKind::AuthenticationFailed => {
                EngineError::Unavailable(error.to_string())
            }
            _ => EngineError::Ambiguous(error.to_string()),
        }
    }
}

/// The connection for commands: always one, or none for now.
#[derive(Clone)]
pub(super) struct Commands {
    current: watch::Receiver<Option<Link>>,
    last_error: Arc<Mutex<String>>,
    health: watch::Receiver<Health>,
    epoch_seen: Arc<AtomicU64>,
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

    /// The largest epoch that this node has seen, of any tenant: what begins anew is larger, even on a server
    /// that has forgotten everything and whose clock is behind.
    pub(super) fn epoch_seen(&self) -> u64 {
        self.epoch_seen.load(Ordering::Relaxed)
    }

    /// Takes note of a position.
    pub(super) fn saw(&self, position: Position) {
        self.epoch_seen.fetch_max(position.epoch, Ordering::Relaxed);
    }

    /// Is there a connection?
    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn unavailable(&self) -> EngineError {
        EngineError::Unavailable(format!("no connection to Redis: {}", self.last_error.lock()))
    }

    /// The handle, and the supervisor to be spawned: it ends when `stop` is cancelled.
    pub(super) fn supervised(dialer: Dialer, stop: CancellationToken) -> (Commands, impl Future<Output = ()> + Send) {
        let (offer, current) = watch::channel(None);
        const NOT_YET: &str = "not connected yet";
        let last_error = Arc::new(Mutex::new(NOT_YET.to_owned()));
        let (tell, health) = watch::channel(Health::Down { since: Instant::now(), why: NOT_YET.into() });
        let commands = Commands { current, last_error: last_error.clone(), health, epoch_seen: Arc::default() };
        let supervisor = async move {
            stop.run_until_cancelled(supervise(&dialer, &offer, &tell, &last_error)).await;
            offer.send_replace(None);
        };
        (commands, supervisor)
    }
}

async fn supervise(
    dialer: &Dialer,
    offer: &watch::Sender<Option<Link>>,
    health: &watch::Sender<Health>,
    last_error: &Mutex<String>,
) {
    let mut backoff = Backoff::new();
    loop {
        let since = Instant::now();
        let why = match timeout(HANDSHAKE_TIMEOUT, ready(dialer)).await {
            Ok(Ok(link)) => {
                info!(address = dialer.address(), "connected to Redis");
                offer.send_replace(Some(link.clone()));
                health.send_replace(Health::Up);
                let why = watch_over(link, offer).await;
                offer.send_replace(None);
                why
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no handshake within {HANDSHAKE_TIMEOUT:?}"),
        };
        if since.elapsed() >= GOOD_AFTER {
            backoff.reset();
        }
        warn!(address = dialer.address(), why, "no connection to Redis");
        health.send_if_modified(|health| {
            let lost = *health == Health::Up;
            if lost {
                *health = Health::Down { since: Instant::now(), why: why.as_str().into() };
            }
            lost
        });
        *last_error.lock() = why;
        sleep(backoff.next()).await;
    }
}

async fn ready(dialer: &Dialer) -> Result<Link, String> {
    let (mut connection, broken) = dialer.dial(|_| true).await.map_err(|e| e.to_string())?;
    let generation = ask(&mut connection).await?;
    script::load_all(&mut connection).await.map_err(|e| e.to_string())?;
    Ok(Link { connection, generation, broken })
}

/// Watches a connection until it has to be replaced, and says why.
async fn watch_over(mut link: Link, offer: &watch::Sender<Option<Link>>) -> String {
    let mut silent = 0;
    loop {
        tokio::select! {
            () = link.broken.cancelled() => return "the connection broke".into(),
            () = sleep(WATCH_EVERY) => {}
        }
        let mut connection = link.connection();
        match timeout(WATCH_EVERY, ask(&mut connection)).await {
            Ok(Ok(generation)) => {
                silent = 0;
                if generation != link.generation {
                    link.generation = generation;
                    offer.send_replace(Some(link.clone()));
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

/// The generation of a server that may be used.
async fn ask(connection: &mut MultiplexedConnection) -> Result<Arc<str>, String> {
    let answer = ::redis::cmd("INFO").arg("server").arg("replication").query_async(connection).await;
    let text = match answer {
        Ok(Value::VerbatimString { text, .. }) => text,
        Ok(Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(other) => return Err(format!("INFO answered {other:?}")),
        Err(error) => return Err(error.to_string()),
    };
    judge(&text)
}

fn judge(info: &str) -> Result<Arc<str>, String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let version = field("redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < SERVER_MAJOR_MIN) {
        return Err(format!("the server's version is {version}, at least {SERVER_MAJOR_MIN} is needed"));
    }
    match (field("role"), field("master_replid")) {
        (Some("master"), Some(generation)) => Ok(generation.into()),
        (role, _) => Err(format!("the server is no master but {}", role.unwrap_or("unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_master_of_version_seven_is_used() {
        let info =
            |version, role| format!("# Server\r\nredis_version:{version}\r\nrole:{role}\r\nmaster_replid:abc\r\n");
        assert_eq!(judge(&info("7.0.15", "master")).as_deref(), Ok("abc"));
        assert!(judge(&info("6.2.1", "master")).unwrap_err().contains("6.2.1"));
        assert!(judge(&info("7.2.4", "slave")).unwrap_err().contains("slave"));
        assert!(judge("").is_err());
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_being_repeated() {
        let error = Dialer::new("http://user:secret@host").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
