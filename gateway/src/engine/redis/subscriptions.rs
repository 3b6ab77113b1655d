//! The connection that carries one master's shard channels, and who listens to which.
//!
//! The messages are only a hint that comes fast: what counts is the log. So nothing here waits. A
//! listener whose queue is full, or whose connection broke, is marked as behind and reads the log.
//!
//! A connection can be open and carry nothing: the other end was demoted, or lost the subscriptions. So one that
//! is quiet is tried the way that messages go (`probe`), and it is always one to the server that runs the commands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, RedisResult, Value};
use bytes::Bytes;
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::backoff::Backoff;
use super::dial::Dialer;
use super::frame::{Message, parse_message};
use super::link::{Commands, Link, Server, info_of, judge};
use super::probe::{Echo, Probe};
use super::router::Router;
use crate::engine::EngineError;

/// Messages that wait for one listener; more make it read the log.
const MESSAGES_WAITING_MAX: usize = 1_024;

/// Subscriptions that wait to be made; more callers wait for room.
const REQUESTS_WAITING_MAX: usize = 64;

/// How long making a connection or a batch of subscriptions may take.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Channels that are subscribed in one round trip after a reconnection.
const SUBSCRIBE_BATCH: usize = 512;

/// How often the connection is pinged, channels without listeners are given up, and those that were refused tried
/// again.
const TEND_EVERY: Duration = Duration::from_secs(2);

/// How often the probe is looked after.
const PROBE_EVERY: Duration = Duration::from_millis(250);

/// A connection that lived so long was a good one: the back-off starts afresh after it.
const GOOD_AFTER: Duration = Duration::from_secs(2);

/// Why a listener may have missed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missed {
    /// It did not take its messages fast enough.
    Overflow,
    /// For a while nobody listened for it.
    Reconnect,
}

/// Nothing was missed.
const NOT_BEHIND: u8 = 0;

/// The near end of one listener.
#[derive(Debug)]
struct Ear {
    messages: mpsc::Sender<Message>,
    /// Its channel was subscribed at some time: it can have missed something since. Written by the supervisor only.
    confirmed: AtomicBool,
    /// [`NOT_BEHIND`], or why it is, from 1.
    behind: AtomicU8,
    wake: Notify,
}

impl Ear {
    fn mark_behind(&self, why: Missed) {
        self.behind.fetch_max(1 + why as u8, Ordering::AcqRel);
        self.wake.notify_one();
    }

    fn hear(&self, message: Message) {
        let loggable = matches!(message, Message::Entry(..));
        if self.messages.try_send(message).is_err() && loggable {
            self.mark_behind(Missed::Overflow);
        }
    }
}

/// Who listens to what, shared by the listeners, the supervisor and the connection's driver.
#[derive(Debug, Default)]
struct Ears {
    by_channel: Mutex<HashMap<String, Vec<Arc<Ear>>>>,
    /// Channels that are being given up: their confirmations were asked for.
    leaving: Mutex<HashSet<String>>,
    echo: Echo,
}

impl Ears {
    /// Runs on the connection's driver: never blocks. `false`: Redis took a channel away.
    fn push(&self, info: PushInfo) -> bool {
        let mut data = info.data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else { return true };
        let Ok(channel) = String::from_utf8(channel) else { return true };
        match (info.kind, data.next()) {
            (PushKind::SMessage, Some(Value::BulkString(message))) => {
                self.echo.heard();
                if let Some(ears) = self.by_channel.lock().get(&channel) {
                    let Some(message) = parse_message(Bytes::from(message)) else { return true };
                    for ear in ears {
                        ear.hear(message.clone());
                    }
                } else {
                    self.echo.take(&message);
                }
                true
            }
            (PushKind::SUnsubscribe, _) => self.leaving.lock().remove(&channel),
            _ => true,
        }
    }

    fn mark_behind<'a>(&self, channels: impl Iterator<Item = &'a String>) {
        let by_channel = self.by_channel.lock();
        for ear in channels.filter_map(|channel| by_channel.get(channel)).flatten() {
            if ear.confirmed.load(Ordering::Relaxed) {
                ear.mark_behind(Missed::Reconnect);
            }
        }
    }

    /// Whoever listens to this channel is about to be told so, and reads the log after that.
    fn confirm(&self, channel: &str) {
        for ear in self.by_channel.lock().get(channel).into_iter().flatten() {
            ear.confirmed.store(true, Ordering::Relaxed);
        }
    }

    fn channels(&self) -> HashSet<String> {
        self.by_channel.lock().keys().cloned().collect()
    }
}

/// Keeps a listener listening: dropped, nothing more is heard.
#[derive(Debug)]
pub(super) struct Listener {
    ear: Arc<Ear>,
    channel: String,
    ears: Arc<Ears>,
}

impl Listener {
    /// Waits until messages may have been missed, and says why.
    pub(super) async fn behind(&self) -> Missed {
        loop {
            match self.ear.behind.load(Ordering::Acquire) {
                NOT_BEHIND => self.ear.wake.notified().await,
                1 => return Missed::Overflow,
                _ => return Missed::Reconnect,
            }
        }
    }

    /// The log is about to be read: what is missed from here on counts anew.
    pub(super) fn catching_up(&self) {
        self.ear.behind.store(NOT_BEHIND, Ordering::Release);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut by_channel = self.ears.by_channel.lock();
        if let Some(ears) = by_channel.get_mut(&self.channel) {
            ears.retain(|ear| !Arc::ptr_eq(ear, &self.ear));
            if ears.is_empty() {
                by_channel.remove(&self.channel);
            }
        }
    }
}

struct Request {
    channel: String,
    done: oneshot::Sender<Result<(), String>>,
}

/// The handle by which channels are listened to.
#[derive(Clone)]
pub(super) struct Subscriptions {
    ears: Arc<Ears>,
    requests: mpsc::Sender<Request>,
}

impl Subscriptions {
    /// Whoever listens to this channel reads the log: something else says that it may have been lost.
    pub(super) fn look_again(&self, channel: &str) {
        self.ears.mark_behind(std::iter::once(&channel.to_owned()));
    }

    /// The handle, and the supervisor to be spawned: it ends when `stop` is cancelled.
    pub(super) fn supervised(
        dialer: Dialer,
        commands: Commands,
        router: Arc<Router>,
        stop: CancellationToken,
    ) -> (Subscriptions, impl Future<Output = ()> + Send) {
        let (requests, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
        let ears = Arc::new(Ears::default());
        let supervisor = Supervisor { dialer, commands, router, ears: ears.clone(), requests: asked };
        (Subscriptions { ears, requests }, async move {
            stop.run_until_cancelled(supervisor.run()).await;
        })
    }

    /// Listens to a channel: Redis has confirmed it when this returns. What is heard comes in order
    /// and may have holes.
    pub(super) async fn listen(&self, channel: String) -> Result<(Listener, mpsc::Receiver<Message>), EngineError> {
        let (sender, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let (confirmed, behind) = (AtomicBool::new(false), AtomicU8::new(NOT_BEHIND));
        let ear = Arc::new(Ear { messages: sender, confirmed, behind, wake: Notify::new() });
        self.ears.by_channel.lock().entry(channel.clone()).or_default().push(ear.clone());
        let listener = Listener { ear, channel: channel.clone(), ears: self.ears.clone() };
        match timeout(SUBSCRIBE_TIMEOUT, self.confirmed(&channel)).await {
            Ok(Ok(())) => Ok((listener, messages)),
            Ok(Err(why)) => Err(EngineError::Unavailable(why)),
            Err(_) => Err(EngineError::Unavailable(format!("no subscription within {SUBSCRIBE_TIMEOUT:?}"))),
        }
    }

    async fn confirmed(&self, channel: &str) -> Result<(), String> {
        loop {
            let (done, confirmed) = oneshot::channel();
            if self.requests.send(Request { channel: channel.to_owned(), done }).await.is_err() {
                return Err("the connection is closed".into());
            }
            // A connection that broke takes the requests it was serving with it: ask again.
            if let Ok(confirmed) = confirmed.await {
                return confirmed;
            }
        }
    }
}

/// Why a connection has to be replaced.
struct Broken {
    /// For the metric.
    reason: &'static str,
    why: String,
}

impl Broken {
    fn new(reason: &'static str, why: impl ToString) -> Broken {
        Broken { reason, why: why.to_string() }
    }
}

struct Supervisor {
    dialer: Dialer,
    commands: Commands,
    router: Arc<Router>,
    ears: Arc<Ears>,
    requests: mpsc::Receiver<Request>,
}

/// An open connection.
struct Open {
    connection: MultiplexedConnection,
    broken: CancellationToken,
    server: Server,
    confirmed: HashSet<String>,
    probe: Probe,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let Broken { reason, why } = match timeout(SUBSCRIBE_TIMEOUT, self.connect()).await {
                Ok(Ok(open)) => {
                    // Whoever listened before has missed what was said meanwhile.
                    self.ears.mark_behind(open.confirmed.iter());
                    self.serve(open).await
                }
                Ok(Err(broken)) => broken,
                Err(_) => Broken::new("silent", format!("no subscriptions within {SUBSCRIBE_TIMEOUT:?}")),
            };
            if since.elapsed() >= GOOD_AFTER {
                backoff.reset();
            }
            counter!("pubsub_reconnects_total", "reason" => reason).increment(1);
            warn!(reason, why, "no subscriptions at Redis");
            sleep(backoff.next()).await;
        }
    }

    /// A connection to the server that runs the commands, on which everything is subscribed that is listened to.
    async fn connect(&self) -> Result<Open, Broken> {
        let refused = |why: String| Broken::new("refused", why);
        let link = self.commands.link_within(SUBSCRIBE_TIMEOUT).await.map_err(|e| refused(e.to_string()))?;
        let server = link.server.clone();
        self.ears.leaving.lock().clear();
        let ears = self.ears.clone();
        let (mut connection, broken) =
            self.dialer.dial(&server.address, move |info| ears.push(info)).await.map_err(|e| refused(e.to_string()))?;
        let state = info_of(&mut connection).await.and_then(|info| judge(&info)).map_err(refused)?;
        if state.run != server.run {
            return Err(Broken::new("server", "another server answers than the one that runs the commands"));
        }
        let since = Instant::now();
        let control = self.router.control_of(&self.commands);
        let channels = self.ears.channels();
        let all: Vec<&String> = channels.iter().chain(&control).collect();
        let mut confirmed = HashSet::new();
        for batch in all.chunks(SUBSCRIBE_BATCH) {
            self.subscribe(&mut connection, batch, &mut confirmed).await?;
        }
        histogram!("resubscribe_seconds").record(since.elapsed());
        gauge!("pubsub_subscriptions", "master" => server.address.to_string()).set(channels.len() as f64);
        debug!(address = %server.address, channels = channels.len(), "subscribed at Redis");
        let probe = Probe::new(control.filter(|control| confirmed.remove(control)), &self.ears.echo);
        Ok(Open { connection, broken, server, confirmed, probe })
    }

    /// Serves one connection until it has to be replaced, and says why.
    async fn serve(&mut self, mut open: Open) -> Broken {
        let mut tend = interval(TEND_EVERY);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(PROBE_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let commands = self.commands.clone();
        let server = open.server.clone();
        let mut left = std::pin::pin!(commands.left(&server));
        loop {
            let done = tokio::select! {
                biased;
                () = open.broken.cancelled() => {
                    // Redis took a channel away, perhaps, because another master holds it now.
                    self.router.doubt();
                    return Broken::new("broke", "the connection broke");
                }
                () = &mut left => return Broken::new("server", "the commands go to another server"),
                request = self.requests.recv() => match request {
                    Some(request) => self.serve_request(&mut open, request).await,
                    None => std::future::pending().await,
                },
                _ = tend.tick() => self.tend(&mut open).await,
                _ = look.tick() => {
                    let went = open.probe.look(&self.ears.echo, &self.commands).await;
                    went.map_err(|why| Broken::new("probe", why))
                }
            };
            if let Err(broken) = done {
                return broken;
            }
        }
    }

    async fn serve_request(&self, open: &mut Open, request: Request) -> Result<(), Broken> {
        let mut answer = Ok(());
        if !open.confirmed.contains(&request.channel) {
            let refused = self.subscribe(&mut open.connection, &[&request.channel], &mut open.confirmed).await?;
            answer = refused.map_or(Ok(()), Err);
        }
        if answer.is_ok() {
            self.ears.confirm(&request.channel);
        }
        // Who asked may have given up; then the channel is given up when the connection is tended.
        _ = request.done.send(answer);
        Ok(())
    }

    async fn tend(&self, open: &mut Open) -> Result<(), Broken> {
        let silent = |error: ::redis::RedisError| Broken::new("silent", error);
        ::redis::cmd("PING").exec_async(&mut open.connection).await.map_err(silent)?;
        let wanted = self.ears.channels();
        let unheard: Vec<String> = open.confirmed.difference(&wanted).cloned().collect();
        for channel in unheard {
            self.ears.leaving.lock().insert(channel.clone());
            ::redis::cmd("SUNSUBSCRIBE").arg(&channel).exec_async(&mut open.connection).await.map_err(silent)?;
            open.confirmed.remove(&channel);
        }
        let refused: Vec<&String> = wanted.difference(&open.confirmed).collect();
        let mut now = HashSet::new();
        for batch in refused.chunks(SUBSCRIBE_BATCH) {
            self.subscribe(&mut open.connection, batch, &mut now).await?;
        }
        self.ears.mark_behind(now.iter());
        open.confirmed.extend(now);
        gauge!("pubsub_subscriptions", "master" => open.server.address.to_string()).set(open.confirmed.len() as f64);
        Ok(())
    }

    /// Subscribes channels and says why some were refused. One channel a command: the crate takes the first
    /// confirmation of a command for its answer. A channel that another master holds must not keep the others from
    /// being heard.
    async fn subscribe(
        &self,
        connection: &mut MultiplexedConnection,
        channels: &[&String],
        confirmed: &mut HashSet<String>,
    ) -> Result<Option<String>, Broken> {
        let mut pipeline = ::redis::pipe();
        for channel in channels {
            pipeline.cmd("SSUBSCRIBE").arg(channel);
        }
        let answers: Vec<RedisResult<Value>> =
            pipeline.ignore_errors().query_async(connection).await.map_err(|error| Broken::new("silent", error))?;
        let mut refused = None;
        for (channel, answer) in channels.iter().zip(answers) {
            match answer {
                Ok(_) => _ = confirmed.insert((*channel).clone()),
                Err(error) if Link::is_elsewhere(&error) => {
                    self.router.doubt();
                    refused = Some(error.to_string());
                }
                Err(error) => return Err(Broken::new("refused", error)),
            }
        }
        Ok(refused)
    }
}
