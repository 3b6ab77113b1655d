//! The connection that carries the shard channels, and who listens to which.
//!
//! The messages are only a hint that comes fast: what counts is the log. So nothing here waits. A
//! listener whose queue is full, or whose connection broke, is marked as behind and reads the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{PushInfo, PushKind, Value};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::backoff::Backoff;
use super::frame::{Message, parse_message};
use super::link::Dialer;
use crate::engine::EngineError;

/// Messages that wait for one listener; more make it read the log.
const MESSAGES_WAITING_MAX: usize = 1_024;

/// Subscriptions that wait to be made; more callers wait for room.
const REQUESTS_WAITING_MAX: usize = 64;

/// How long making a connection or a batch of subscriptions may take.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Channels that are subscribed in one round trip after a reconnection.
const SUBSCRIBE_BATCH: usize = 512;

/// How often the connection is pinged and channels without listeners are given up.
const TEND_EVERY: Duration = Duration::from_secs(2);

/// A connection that lived so long was a good one: the back-off starts afresh after it.
const GOOD_AFTER: Duration = Duration::from_secs(2);

/// The near end of one listener.
#[derive(Debug)]
struct Ear {
    messages: mpsc::Sender<Message>,
    behind: AtomicBool,
    wake: Notify,
}

impl Ear {
    fn mark_behind(&self) {
        self.behind.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn hear(&self, message: Message) {
        let loggable = matches!(message, Message::Entry(..));
        if self.messages.try_send(message).is_err() && loggable {
            self.mark_behind();
        }
    }
}

/// Who listens to what, shared by the listeners, the supervisor and the connection's driver.
#[derive(Debug, Default)]
struct Ears {
    by_channel: Mutex<HashMap<String, Vec<Arc<Ear>>>>,
    /// Channels that are being given up: their confirmations were asked for.
    leaving: Mutex<HashSet<String>>,
}

impl Ears {
    /// Runs on the connection's driver: never blocks. `false`: Redis took a channel away.
    fn push(&self, info: PushInfo) -> bool {
        let mut data = info.data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else { return true };
        let Ok(channel) = String::from_utf8(channel) else { return true };
        match (info.kind, data.next()) {
            (PushKind::SMessage, Some(Value::BulkString(message))) => {
                let Some(message) = parse_message(Bytes::from(message)) else { return true };
                if let Some(ears) = self.by_channel.lock().get(&channel) {
                    for ear in ears {
                        ear.hear(message.clone());
                    }
                }
                true
            }
            (PushKind::SUnsubscribe, _) => self.leaving.lock().remove(&channel),
            _ => true,
        }
    }

    fn mark_all_behind(&self) {
        for ear in self.by_channel.lock().values().flatten() {
            ear.mark_behind();
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
    /// Waits until messages may have been missed.
    pub(super) async fn behind(&self) {
        while !self.ear.behind.load(Ordering::Acquire) {
            self.ear.wake.notified().await;
        }
    }

    /// The log is about to be read: what is missed from here on counts anew.
    pub(super) fn catching_up(&self) {
        self.ear.behind.store(false, Ordering::Release);
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
    done: oneshot::Sender<()>,
}

/// The handle by which channels are listened to.
#[derive(Clone)]
pub(super) struct Subscriptions {
    ears: Arc<Ears>,
    requests: mpsc::Sender<Request>,
}

impl Subscriptions {
    /// The handle, and the supervisor to be spawned: it ends when `stop` is cancelled.
    pub(super) fn supervised(
        dialer: Dialer,
        stop: CancellationToken,
    ) -> (Subscriptions, impl Future<Output = ()> + Send) {
        let (requests, asked) = mpsc::channel(REQUESTS_WAITING_MAX);
        let ears = Arc::new(Ears::default());
        let supervisor = Supervisor { dialer, ears: ears.clone(), requests: asked };
        (Subscriptions { ears, requests }, async move {
            stop.run_until_cancelled(supervisor.run()).await;
        })
    }

    /// Listens to a channel: Redis has confirmed it when this returns. What is heard comes in order
    /// and may have holes.
    pub(super) async fn listen(&self, channel: String) -> Result<(Listener, mpsc::Receiver<Message>), EngineError> {
        let (sender, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let ear = Arc::new(Ear { messages: sender, behind: AtomicBool::new(false), wake: Notify::new() });
        self.ears.by_channel.lock().entry(channel.clone()).or_default().push(ear.clone());
        let listener = Listener { ear, channel: channel.clone(), ears: self.ears.clone() };
        match timeout(SUBSCRIBE_TIMEOUT, self.confirmed(&channel)).await {
            Ok(true) => Ok((listener, messages)),
            Ok(false) => Err(EngineError::Unavailable("the engine is closed".into())),
            Err(_) => Err(EngineError::Unavailable(format!("no subscription within {SUBSCRIBE_TIMEOUT:?}"))),
        }
    }

    /// Waits for the confirmation; `false`: there is no supervisor any more.
    async fn confirmed(&self, channel: &str) -> bool {
        loop {
            let (done, confirmed) = oneshot::channel();
            if self.requests.send(Request { channel: channel.to_owned(), done }).await.is_err() {
                return false;
            }
            // A connection that broke takes the requests it was serving with it: ask again.
            if confirmed.await.is_ok() {
                return true;
            }
        }
    }
}

struct Supervisor {
    dialer: Dialer,
    ears: Arc<Ears>,
    requests: mpsc::Receiver<Request>,
}

impl Supervisor {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let since = Instant::now();
            let why = match timeout(SUBSCRIBE_TIMEOUT, self.connect()).await {
                Ok(Ok((connection, broken, confirmed))) => {
                    // Whoever listened before has missed what was said meanwhile.
                    self.ears.mark_all_behind();
                    self.serve(connection, broken, confirmed).await
                }
                Ok(Err(why)) => why,
                Err(_) => format!("no subscriptions within {SUBSCRIBE_TIMEOUT:?}"),
            };
            if since.elapsed() >= GOOD_AFTER {
                backoff.reset();
            }
            warn!(address = self.dialer.address(), why, "no subscriptions at Redis");
            sleep(backoff.next()).await;
        }
    }

    /// A connection on which everything is subscribed that is listened to.
    async fn connect(&self) -> Result<(MultiplexedConnection, CancellationToken, HashSet<String>), String> {
        self.ears.leaving.lock().clear();
        let ears = self.ears.clone();
        let (mut connection, broken) =
            self.dialer.dial(move |info| ears.push(info)).await.map_err(|e| e.to_string())?;
        let channels = self.ears.channels();
        let all: Vec<&String> = channels.iter().collect();
        for batch in all.chunks(SUBSCRIBE_BATCH) {
            subscribe(&mut connection, batch).await?;
        }
        debug!(channels = all.len(), "subscribed at Redis");
        Ok((connection, broken, channels))
    }

    /// Serves one connection until it has to be replaced, and says why.
    async fn serve(
        &mut self,
        mut connection: MultiplexedConnection,
        broken: CancellationToken,
        mut confirmed: HashSet<String>,
    ) -> String {
        let mut tend = interval(TEND_EVERY);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                biased;
                () = broken.cancelled() => return "the connection broke".into(),
                request = self.requests.recv() => match request {
                    Some(request) => serve_request(&mut connection, &mut confirmed, request).await,
                    None => std::future::pending().await,
                },
                _ = tend.tick() => self.tend(&mut connection, &mut confirmed).await,
            };
            if let Err(why) = done {
                return why;
            }
        }
    }

    async fn tend(
        &self,
        connection: &mut MultiplexedConnection,
        confirmed: &mut HashSet<String>,
    ) -> Result<(), String> {
        ::redis::cmd("PING").exec_async(connection).await.map_err(|e| e.to_string())?;
        let wanted = self.ears.channels();
        let unheard: Vec<String> = confirmed.difference(&wanted).cloned().collect();
        for channel in unheard {
            self.ears.leaving.lock().insert(channel.clone());
            ::redis::cmd("SUNSUBSCRIBE").arg(&channel).exec_async(connection).await.map_err(|e| e.to_string())?;
            confirmed.remove(&channel);
        }
        Ok(())
    }
}

async fn serve_request(
    connection: &mut MultiplexedConnection,
    confirmed: &mut HashSet<String>,
    request: Request,
) -> Result<(), String> {
    if !confirmed.contains(&request.channel) {
        subscribe(connection, &[&request.channel]).await?;
        confirmed.insert(request.channel);
    }
    // Who asked may have given up; then the channel is given up when the connection is tended.
    _ = request.done.send(());
    Ok(())
}

/// One channel a command: the crate takes the first confirmation of a command for its answer.
async fn subscribe(connection: &mut MultiplexedConnection, channels: &[&String]) -> Result<(), String> {
    let mut pipeline = ::redis::pipe();
    for channel in channels {
        pipeline.cmd("SSUBSCRIBE").arg(channel).ignore();
    }
    pipeline.exec_async(connection).await.map_err(|e| e.to_string())
}
