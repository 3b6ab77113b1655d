//! The Redis engine: one script a commit, one stream and one shard channel a tenant.
//!
//! Redis's single thread is what makes a commit atomic and the log one order for all nodes; its
//! `master_replid` says when the data may be from another history, so that a new epoch begins. All
//! connections are supervised here (`link`, `subscriptions`), a pair for each master that there is (`router`); a
//! message on the channel that does not follow the one before is answered by reading the log (`follow`).

mod artifacts;
mod backoff;
mod cluster;
mod commit;
mod dial;
mod follow;
mod forgetting;
mod frame;
mod keys;
mod link;
mod memory;
mod nodes;
mod probe;
mod registry;
mod router;
mod script;
mod sentinel;
mod shared_limits;
mod sizes;
mod subscriptions;
mod timers;
pub(crate) mod url;

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::info;

use self::dial::Dialer;
use self::follow::{Log, Pump, unexpected};
use self::keys::TenantKeys;
use self::memory::Memory;
use self::nodes::{Nodes, Rhythm};
use self::registry::Cleared;
use self::router::{Route, Router};
use self::sizes::Sizes;
use self::url::{Kind, Target};
use super::{
    DeadTimer, DueTimer, Engine, EngineError, FEED_ENTRIES_MAX, Follower, Health, KeyPage, Member, NodeStat,
    OldArtifact, Orphan, Outcome, Range, Registration, Seat, SeatLimits, Seating, TIMER_LEASE_MS, Tokens,
};
use crate::client::ConnectionId;
use crate::commit::{
    Commit, CommitId, Effect, Entry, Millis, Position, Publication, SessionRecord, StateKey, TimerChange, TimerKey,
    Version, Versioned, now_ms,
};
use crate::quota::Stored;
use crate::room::Room;
use crate::tenant::TenantId;

/// How long the first connection may take before the engine is said not to be there.
const FIRST_CONNECTION_MAX: Duration = Duration::from_secs(5);

/// A session's name has at most so many bytes; there are no records under longer ones.
const SESSION_NAME_BYTES_MAX: usize = 256;

/// Keys of one page, at most.
const KEY_PAGE_MAX: usize = 1_000;

/// Values whose time has passed that are forgotten at most when totals are asked for.
const EXPIRED_PER_LOOK: usize = 1_000;

/// What may be set.
#[derive(Debug, Clone)]
pub struct Options {
    /// Entries that each tenant's log keeps, about; at least 1. A hundred more may stay.
    pub log_entries_max: usize,
    /// Bytes that each tenant's log keeps, about: of large entries fewer are kept.
    pub log_bytes_max: usize,
    /// Older entries go with the commits that follow them; looked at every fifteenth of it.
    pub log_age_max: Duration,
    /// How long a claimed timer stays with whoever claimed it, in milliseconds.
    pub timer_lease_ms: Millis,
    /// Certificates (PEM) of the authorities that may have signed the servers', for `rediss`; `None`: those that the
    /// system trusts.
    pub ca_file: Option<PathBuf>,
    /// How often timers are looked for in the partitions of other nodes too; from none to minutes.
    pub timer_sweep_every: Duration,
    /// How often the node tells the others that it lives.
    pub beat: Duration,
    /// For how long that counts; longer than two beats.
    pub lease: Duration,
    /// Are the documented keys of who is online kept? Only where one server has all keys.
    pub presence_view: bool,
    /// The tenant whose documented keys have no tenant in their names.
    pub default_tenant: Option<TenantId>,
}

impl Default for Options {
    /// 20,000 entries or 64 MiB of two minutes and a half, which is what recovery needs, [`TIMER_LEASE_MS`], a beat every 3 s
    /// that counts for 12, a sweep every 5 s, and the documented keys.
    fn default() -> Self {
        Options {
            log_entries_max: 20_000,
            log_bytes_max: 64 << 20,
            log_age_max: Duration::from_secs(150),
            timer_lease_ms: TIMER_LEASE_MS,
            ca_file: None,
            timer_sweep_every: Duration::from_secs(5),
            beat: Duration::from_secs(3),
            lease: Duration::from_secs(12),
            presence_view: true,
            default_tenant: None,
        }
    }
}

/// The engine on a Redis server. Its tasks end when it is dropped.
pub struct RedisEngine {
    router: Arc<Router>,
    memory: Arc<Memory>,
    sizes: Sizes,
    target: Arc<Target>,
    nodes: Arc<Nodes>,
    cleared: Cleared,
    sweeps: timers::Sweeps,
    options: Options,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

impl fmt::Debug for RedisEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEngine").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is wrong with a URL, without repeating any of it; `None`: [`connect`] understands it.
pub(crate) fn mistake_in_url(url: &str) -> Option<String> {
    Target::parse(url).err()
}

/// Connects to Redis or Valkey 7 or newer and comes back when commands can be sent. From then on the engine reconnects
/// by itself, without end. The forms of the URL are
///
/// * `redis://[user:password@]host[:port][/database]`: one server;
/// * `redis+sentinel://[user:password@]host[:port],…/service[/database]`: the master that the Sentinels name, now and
///   after each fail-over. User and password are the master's; the Sentinels get them only when they refuse without;
/// * `redis+cluster://[user:password@]host[:port],…`: the masters of a cluster, found through any of the servers.
///
/// and each with `rediss` instead of `redis` for TLS. What is not a letter or digit of a password is
/// percent-encoded.
///
/// # Errors
/// [`EngineError::Unavailable`] when the URL is not usable, or when there is no such server after
/// five seconds; the text says why.
pub async fn connect(url: &str, options: Options) -> Result<Arc<RedisEngine>, EngineError> {
    // Before the first handle to a metric is made, or it counts for nobody.
    _ = crate::telemetry::metrics();
    let dialer = Dialer::new(url, options.ca_file.as_deref())?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let router = Router::new(tasks.clone(), stop.clone());
    let _stop_when_dropped = stop.clone().drop_guard();
    let mut options = options;
    match dialer.target.kind {
        Kind::Standalone | Kind::Sentinel(_) => router.install_only(&dialer),
        Kind::Cluster => {
            if std::mem::take(&mut options.presence_view) {
                info!("the documented keys of who is online are not kept in a cluster (setting presence_view)");
            }
            let follow = cluster::follow(router.clone(), dialer.clone());
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(follow).await });
        }
    }
    let rhythm = Rhythm { beat: options.beat, lease: options.lease };
    // Where the masters are several, the leases are not where a tenant's registry is.
    let leases_at_hand = !matches!(dialer.target.kind, Kind::Cluster);
    let nodes = Arc::new(Nodes::new(router.clone(), rhythm, leases_at_hand));
    let (beating, stopped) = (nodes.clone().run(), stop.clone());
    tasks.spawn(async move { stopped.run_until_cancelled(beating).await });
    let engine = RedisEngine {
        memory: Memory::new(options.log_entries_max, age_ms(&options)),
        sizes: Sizes::new(options.log_entries_max, options.log_bytes_max),
        target: dialer.target.clone(),
        cleared: Cleared::default(),
        sweeps: timers::Sweeps::new(options.timer_sweep_every),
        router,
        nodes,
        options,
        tasks,
        stop,
        _stop_when_dropped,
    };
    engine.router.ready(FIRST_CONNECTION_MAX).await?;
    Ok(Arc::new(engine))
}

/// Reads an entry as the log stores it (field `d` of the stream's entry at `position`): for tools and tests that
/// look at a log beside a running gateway.
///
/// # Errors
/// [`EngineError::Corrupt`] for anything that is no entry of a format that this gateway reads.
pub fn decode_log_frame(position: Position, frame: &[u8]) -> Result<Entry, EngineError> {
    frame::decode_entry(position, frame)
}

/// How old entries may be, in milliseconds; at least 1.
fn age_ms(options: &Options) -> Millis {
    Millis::try_from(options.log_age_max.as_millis()).unwrap_or(Millis::MAX).max(1)
}

impl RedisEngine {
    /// Ends all feeds and connections and waits until that is done. Calls after it answer
    /// [`EngineError::Unavailable`].
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// For the log line at the start: what kind of Redis, which servers, how many partitions.
    pub fn description(&self) -> String {
        format!("{:?}, {} partitions", self.target, keys::PARTITIONS)
    }

    fn log(&self, tenant: &TenantId) -> Log {
        Log { route: self.router.to_tenant(tenant), keys: TenantKeys::of(tenant) }
    }

    /// The time by the clock of the server that holds a tenant; about.
    fn now_of(&self, route: &Route) -> Millis {
        let ahead_ms = route.master().map_or(0, |master| master.commands.ahead_ms());
        now_ms().saturating_add_signed(ahead_ms)
    }

    /// What the names of a tenant's documented keys start with, if they are kept.
    fn view(&self, tenant: &TenantId) -> Option<String> {
        self.options.presence_view.then(|| keys::view_prefix(tenant, self.options.default_tenant.as_ref())).flatten()
    }

    /// One command on a tenant's server that may be done twice.
    async fn ask<T: ::redis::FromRedisValue>(
        &self,
        tenant: &TenantId,
        command: &::redis::Cmd,
    ) -> Result<T, EngineError> {
        self.router.to_tenant(tenant).ask(command).await
    }

    /// One stretch of the index of keys: how many it had, its last key, those that live.
    async fn stretch(
        &self,
        tenant: &TenantId,
        keys: &TenantKeys,
        from: &str,
        to: &[u8],
        count: usize,
    ) -> Result<(usize, String, Vec<StateKey>), EngineError> {
        let link = self.router.to_tenant(tenant).link().await?;
        let count = count.to_string();
        let arguments = [keys.base().as_bytes(), from.as_bytes(), to, count.as_bytes()];
        let answer = script::LIST_KEYS.run(&mut link.connection(), &[&keys.index()], &arguments).await;
        let Value::Array(parts) = answer.map_err(|e| link.read_error(&e))? else {
            return Err(EngineError::Corrupt("keys were not answered with a list".into()));
        };
        let mut parts = parts.into_iter();
        let (Some(Value::Int(had)), Some(last)) = (parts.next(), parts.next()) else {
            return Err(EngineError::Corrupt("keys were answered without their number".into()));
        };
        let live = parts.map(|key| Ok(StateKey::stored(&text(key)?))).collect::<Result<_, EngineError>>()?;
        Ok((usize::try_from(had).unwrap_or(0), text(last)?, live))
    }
}

#[async_trait]
impl Engine for RedisEngine {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn commit(&self, tenant: &TenantId, commit: Arc<Commit>) -> Result<Outcome, EngineError> {
        self.apply(tenant, &commit, None).await
    }

    async fn publish_ephemeral(&self, tenant: &TenantId, publication: Publication) -> Result<(), EngineError> {
        let message = frame::encode_ephemeral(&publication)?;
        let mut command = ::redis::cmd("SPUBLISH");
        command.arg(TenantKeys::of(tenant).channel()).arg(message);
        self.ask(tenant, &command).await
    }

    async fn follow(&self, tenant: &TenantId) -> Result<Follower, EngineError> {
        // Listen first, read second: what is committed between the two is heard and known.
        let log = self.log(tenant);
        let changes = log.route.changes();
        let master = log.route.master()?;
        let (listener, messages) = master.subscriptions.listen(log.keys.channel()).await?;
        let position = log.top().await?;
        let (sender, feed) = mpsc::channel(FEED_ENTRIES_MAX);
        let share = self.memory.share(tenant, position);
        let pump = Pump { log, master, changes, listener, messages, feed: sender, share, at: position };
        self.tasks.spawn(pump.run(self.stop.clone()));
        Ok(Follower { position, feed })
    }

    async fn range(&self, tenant: &TenantId, after: Position, limit: usize) -> Result<Range, EngineError> {
        let log = self.log(tenant);
        match self.memory.range(tenant, after, limit, self.now_of(&log.route)) {
            Some(range) => Ok(range),
            None => log.range(after, limit).await,
        }
    }

    async fn history(
        &self,
        tenant: &TenantId,
        room: &Room,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Arc<Entry>>, EngineError> {
        let log = self.log(tenant);
        match self.memory.history(tenant, room, before, limit, self.now_of(&log.route)) {
            Some(entries) => Ok(entries),
            None => log.history(room, before, limit).await,
        }
    }

    async fn read(&self, tenant: &TenantId, keys: &[StateKey]) -> Result<Vec<Option<Versioned>>, EngineError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names = TenantKeys::of(tenant);
        let mut command = ::redis::cmd("MGET");
        for key in keys {
            command.arg(names.value(key));
        }
        let values: Vec<Value> = self.ask(tenant, &command).await?;
        values.into_iter().map(versioned).collect()
    }

    async fn list_keys(
        &self,
        tenant: &TenantId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<KeyPage, EngineError> {
        let limit = limit.min(KEY_PAGE_MAX);
        let names = TenantKeys::of(tenant);
        let mut from = match after {
            Some(after) if after >= prefix => format!("({after}"),
            _ => format!("[{prefix}"),
        };
        // No text contains the byte 255: it stands behind every key with the prefix.
        let to = [b"(", prefix.as_bytes(), b"\xff"].concat();
        let mut page = KeyPage::default();
        loop {
            let wanted = limit + 1 - page.keys.len();
            let (had, last, live) = self.stretch(tenant, &names, &from, &to, wanted).await?;
            page.keys.extend(live);
            if page.keys.len() > limit {
                page.keys.truncate(limit);
                page.more = true;
                return Ok(page);
            }
            if had < wanted {
                return Ok(page);
            }
            from = format!("({last}");
        }
    }

    async fn stored(&self, tenant: &TenantId) -> Result<Stored, EngineError> {
        let keys = TenantKeys::of(tenant);
        let (partition, limit) = (keys.partition().prefix(), EXPIRED_PER_LOOK.to_string());
        let link = self.router.to_tenant(tenant).link().await?;
        let arguments = [keys.base().as_bytes(), partition.as_bytes(), limit.as_bytes()];
        let answer = script::TOTALS.run(&mut link.connection(), &[&keys.meta()], &arguments).await;
        let Value::Array(totals) = answer.map_err(|e| link.read_error(&e))? else {
            return Err(EngineError::Corrupt("totals were not answered with a list".into()));
        };
        let mut totals = totals.into_iter().map(number);
        let mut next = || totals.next().unwrap_or_else(|| Err(EngineError::Corrupt("a total is missing".into())));
        Ok(Stored { state_bytes: next()?, state_keys: next()?, timers: next()? })
    }

    async fn claim_timers(&self, limit: usize) -> Result<Vec<DueTimer>, EngineError> {
        let own = self.nodes.partitions();
        timers::claim(&self.router, &self.sweeps.due(own), self.options.timer_lease_ms, limit).await
    }

    async fn release_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError> {
        timers::release(&self.router, timer, after_ms, true).await
    }

    async fn postpone_timer(&self, timer: &DueTimer, after_ms: Millis) -> Result<(), EngineError> {
        timers::release(&self.router, timer, after_ms, false).await
    }

    async fn bury_timer(&self, timer: &DueTimer, why: &str) -> Result<bool, EngineError> {
        timers::bury(&self.router, timer, why).await
    }

    async fn dead_timers(&self, tenant: &TenantId, limit: usize) -> Result<Vec<DeadTimer>, EngineError> {
        timers::dead(&self.router, tenant, limit).await
    }

    async fn session(&self, tenant: &TenantId, session: &str) -> Result<Option<SessionRecord>, EngineError> {
        self.session_record(tenant, session).await
    }

    async fn members(&self, tenant: &TenantId, room: &Room, limit: usize) -> Result<Vec<Member>, EngineError> {
        let keys = TenantKeys::of(tenant);
        if let Some(id) = room.as_connection() {
            let member = self.own_room(tenant, room, id).await?;
            return Ok(member.into_iter().take(limit).collect());
        }
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut command = ::redis::cmd("ZRANGE");
        command.arg(keys.room(room)).arg(0).arg(limit - 1);
        let members: Vec<String> = self.ask(tenant, &command).await?;
        members.iter().map(|member| parse_member(member)).collect()
    }

    async fn count(&self, tenant: &TenantId, room: &Room) -> Result<usize, EngineError> {
        let keys = TenantKeys::of(tenant);
        if let Some(id) = room.as_connection() {
            return Ok(self.own_room(tenant, room, id).await?.into_iter().count());
        }
        self.ask(tenant, ::redis::cmd("ZCARD").arg(keys.room(room))).await
    }

    async fn connection(&self, tenant: &TenantId, id: &ConnectionId) -> Result<Option<Registration>, EngineError> {
        let keys = TenantKeys::of(tenant);
        let who: Option<String> =
            self.ask(tenant, ::redis::cmd("HGET").arg(keys.connections()).arg(id.as_str())).await?;
        let Some([namespace, subject, session]) = who.as_deref().and_then(registry::read_connection) else {
            return Ok(None);
        };
        let rooms: Vec<String> = self.ask(tenant, ::redis::cmd("SMEMBERS").arg(keys.rooms_of(id.as_str()))).await?;
        Ok(Some(Registration {
            connection: id.clone(),
            subject: subject.into(),
            namespace: namespace.into(),
            session: session.into(),
            rooms: rooms.iter().filter_map(|room| Room::parse(room).ok()).collect(),
        }))
    }

    async fn registered(&self, tenant: &TenantId) -> Result<Vec<ConnectionId>, EngineError> {
        registry::registered(&self.nodes, tenant).await
    }

    async fn register(
        &self,
        tenant: &TenantId,
        at: Position,
        there: &[Registration],
        gone: &[ConnectionId],
    ) -> Result<bool, EngineError> {
        let known = registry::Known { at, there, gone };
        registry::register(&self.nodes, tenant, known, self.view(tenant).as_deref()).await
    }

    async fn orphans(&self, limit: usize) -> Result<Vec<Orphan>, EngineError> {
        registry::orphans(&self.nodes, &self.cleared, limit).await
    }

    async fn reap(&self, orphan: &Orphan, timers: Vec<(TimerKey, TimerChange)>) -> Result<bool, EngineError> {
        let effects = vec![Effect::Gone { id: orphan.connection.clone() }];
        let commit = Commit { effects, timers, ..Commit::new(CommitId::random()) };
        match self.apply(&orphan.tenant, &commit, Some(&orphan.connection)).await {
            Ok(_) => Ok(true),
            Err(EngineError::Absent(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn take_seat(
        &self,
        tenant: &TenantId,
        seat: &Seat,
        limits: SeatLimits,
        instead_of: Option<&ConnectionId>,
    ) -> Result<Seating, EngineError> {
        shared_limits::take_seat(&self.nodes, tenant, seat, limits, instead_of).await
    }

    async fn keep_seats(&self, tenant: &TenantId, kept: &[Seat], given_back: &[Seat]) -> Result<u32, EngineError> {
        shared_limits::keep_seats(&self.nodes, tenant, kept, given_back).await
    }

    async fn take_tokens(
        &self,
        tenant: &TenantId,
        bucket: &str,
        per_minute: NonZeroU32,
        wanted: NonZeroU32,
    ) -> Result<Tokens, EngineError> {
        shared_limits::take_tokens(&self.nodes, tenant, bucket, per_minute, wanted).await
    }

    fn report(&self, stat: NodeStat) {
        self.nodes.report(stat);
    }

    fn nodes(&self) -> Vec<NodeStat> {
        self.nodes.all()
    }

    async fn nodes_now(&self) -> Result<Vec<NodeStat>, EngineError> {
        self.nodes.ask().await
    }

    async fn retire(&self, after_ms: &[(TenantId, Millis)]) -> Result<(), EngineError> {
        self.nodes.retire(after_ms).await
    }

    async fn forget(&self, tenant: &TenantId, guard: &StateKey, version: &Version) -> Result<bool, EngineError> {
        self.forget_all(tenant, guard, version).await
    }

    async fn put_artifact(&self, digest: &str, bytes: Bytes) -> Result<(), EngineError> {
        self.store_artifact(digest, bytes).await
    }

    async fn artifact(&self, digest: &str) -> Result<Option<Bytes>, EngineError> {
        self.stored_artifact(digest).await
    }

    async fn old_artifacts(&self, first: u8, age_ms: Millis, limit: usize) -> Result<Vec<OldArtifact>, EngineError> {
        self.untouched(first, age_ms, limit).await
    }

    async fn keep_artifacts(&self, digests: &[String]) -> Result<(), EngineError> {
        let digests: Vec<_> = digests.iter().map(String::as_str).collect();
        self.touch(&digests, true).await
    }

    async fn delete_artifact(&self, old: &OldArtifact) -> Result<bool, EngineError> {
        self.drop_artifact(old).await
    }

    async fn ping(&self) -> Result<(), EngineError> {
        // Where one master answers, its tenants are served.
        let mut last = EngineError::Unavailable("no master is known".into());
        for master in self.router.masters() {
            match master.commands.link().await {
                Ok(link) => match ::redis::cmd("PING").exec_async(&mut link.connection()).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = link.read_error(&error),
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn health(&self, tenant: &TenantId) -> watch::Receiver<Health> {
        self.router.health(tenant)
    }
}

impl RedisEngine {
    /// The one member of a connection's own room.
    async fn own_room(&self, tenant: &TenantId, room: &Room, id: &str) -> Result<Option<Member>, EngineError> {
        let keys = TenantKeys::of(tenant);
        let who: Option<String> = self.ask(tenant, ::redis::cmd("HGET").arg(keys.connections()).arg(id)).await?;
        let Some([namespace, subject, _]) = who.as_deref().and_then(registry::read_connection) else { return Ok(None) };
        let member = Member { subject: subject.into(), connection: ConnectionId::from(id) };
        Ok((namespace == room.namespace()).then_some(member))
    }
}

/// Reads `<version>\n<value>`.
fn versioned(stored: Value) -> Result<Option<Versioned>, EngineError> {
    let stored = match stored {
        Value::Nil => return Ok(None),
        Value::BulkString(stored) => Bytes::from(stored),
        other => return Err(unexpected(&other)),
    };
    let end = stored.iter().position(|b| *b == b'\n');
    let version = end.and_then(|end| std::str::from_utf8(&stored[..end]).ok());
    let (Some(end), Some(version)) = (end, version) else {
        return Err(EngineError::Corrupt("a value without a version".into()));
    };
    Ok(Some(Versioned { value: stored.slice(end + 1..), version: Version(version.into()) }))
}

fn parse_member(member: &str) -> Result<Member, EngineError> {
    match member.rsplit_once('\0') {
        Some((subject, id)) => Ok(Member { subject: subject.into(), connection: ConnectionId::from(id) }),
        None => Err(EngineError::Corrupt("a member without a connection".into())),
    }
}

fn text(value: Value) -> Result<String, EngineError> {
    ::redis::from_redis_value(value).map_err(|_| EngineError::Corrupt("Redis answered no text".into()))
}

/// Reads a whole number that a script wrote as text.
fn number(value: Value) -> Result<u64, EngineError> {
    let text = text(value)?;
    text.parse().map_err(|_| EngineError::Corrupt(format!("Redis answered {text:?} where a number was expected")))
}
