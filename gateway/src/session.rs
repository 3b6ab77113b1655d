//! THE SPINE: one client from hello to close.
//!
//! bytes → inputs (`protocol`) → decision (`decisions`) → commit (`engine`), and back: the
//! tenant's delivery puts what others did into this client's outbox. Inputs of one client run one
//! after the other.

mod admission;
mod connection;
mod departure;
mod language;
mod recovery;
mod requests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::close::Close;
use crate::commit::{Cursor, Position};
use crate::connection::protocol::{AckId, Input as Heard};
use crate::connection::socket::{Received, Socket, pong_frame};
use crate::connection::upgrade::{self, Protocol};
use crate::delivery::outbox::{Outbox, OutboxLimits};
use crate::event::request::Request;
use crate::event::{Event, Payload, Refusal};
use crate::gateway::{Gateway, LiveTenant, Slot, UserSlot};
use crate::limits::{Bucket, rate_limited};
use crate::rates::Shared;
use crate::tenant::Limits;
use connection::Connection;
use language::{Language, Said};
pub use recovery::Claim;

/// How long the last words may take to reach the client.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often session records are written anew at least.
const RECORD_INTERVAL_MAX: Duration = Duration::from_secs(40);

/// How long before a token's end its client is told (`token_expiring`).
const TOKEN_EXPIRING_BEFORE: Duration = Duration::from_secs(30);

/// What the request with which a client came said of it.
pub struct Hello {
    /// What it will speak.
    pub protocol: Protocol,
    /// The tenant of the path, if that named one.
    pub tenant: Option<Arc<LiveTenant>>,
    /// The namespace of a plain WebSocket client.
    pub namespace: Arc<str>,
    /// The token of the `Authorization` header or the query. Not to be logged.
    pub token: Option<String>,
    /// The page it comes from, if it is a browser.
    pub origin: Option<String>,
    /// The host that it called us by.
    pub host: Option<String>,
    /// The session that a plain WebSocket client comes back to.
    pub claim: Option<Claim>,
    /// The query's parameters, without what is secret.
    pub query: BTreeMap<String, String>,
    /// Where it comes from.
    pub address: SocketAddr,
}

impl Hello {
    /// Does a tenant with these origins take clients from the page? One with none leaves it to the listener.
    fn may_talk_to(&self, origins: &[String]) -> bool {
        let Some(origin) = &self.origin else { return true };
        origins.is_empty() || upgrade::is_origin_allowed(origin, self.host.as_deref(), origins)
    }
}

/// One client.
pub struct Session {
    gateway: Arc<Gateway>,
    hello: Hello,
    socket: Socket,
    outbox: Arc<Outbox>,
    language: Language,
    /// Known from the path, or from the first token.
    tenant: Option<Arc<LiveTenant>>,
    /// The tenant's settings and keys were looked at in this revision; 0: not since the last connect.
    tenant_revision: u64,
    connections: Vec<Connection>,
    /// Somebody changed what one of the connections may do.
    changed: Arc<Notify>,
    rate: Bucket,
    opened: Instant,
    ping_due: Instant,
    pinged: Option<Instant>,
    /// Up to where the tenant's log was pushed to the client before it was pinged last.
    pinged_at: Option<Position>,
    told_of_expiry: bool,
    record_due: Instant,
    user: Option<UserSlot>,
    tenant_slot: Option<Slot>,
    _slot: Slot,
}

/// What a session waits for.
enum Happening {
    Received(Received),
    End(Close),
    Clock,
    Changed,
    Draining,
}

impl Session {
    /// A client that has just been upgraded.
    pub fn new(gateway: Arc<Gateway>, hello: Hello, socket: Socket, outbox: Arc<Outbox>, slot: Slot) -> Session {
        Session {
            language: Language::new(hello.protocol, Limits::default().message_bytes),
            tenant: hello.tenant.clone(),
            tenant_revision: 0,
            rate: Bucket::new(Limits::default().messages_per_minute, Instant::now()),
            ping_due: Instant::now() + gateway.config.ping_interval,
            gateway,
            hello,
            socket,
            outbox,
            connections: Vec::new(),
            changed: Arc::default(),
            opened: Instant::now(),
            pinged: None,
            pinged_at: None,
            told_of_expiry: false,
            record_due: Instant::now() + RECORD_INTERVAL_MAX,
            user: None,
            tenant_slot: None,
            _slot: slot,
        }
    }

    /// From hello to close. Every way out is a [`Close`].
    ///
    /// The larger steps are boxed, here and below, where they cost more than a box: a future has room
    /// for the largest that it may wait for, and most sessions wait for their client to say something.
    pub async fn run(mut self) -> Close {
        let close = match Box::pin(self.hello()).await {
            Ok(()) => self.converse().await,
            Err(close) => close,
        };
        Box::pin(self.goodbye(close)).await;
        close
    }

    /// What comes before the first message: the protocol's greeting, and for plain WebSocket the token.
    async fn hello(&mut self) -> Result<(), Close> {
        if let Some(tenant) = self.tenant.clone() {
            self.limit(&tenant.settings().limits);
        }
        match self.language {
            Language::SocketIo { .. } => {
                let greeting = language::handshake(&self.gateway.config, self.message_bytes_max());
                self.say(greeting);
                Ok(())
            }
            Language::Json => {
                let namespace = self.hello.namespace.clone();
                match self.connect(&namespace, None).await {
                    Ok(()) => Ok(()),
                    Err((close, refusal)) => {
                        self.say_error(&namespace, &refusal);
                        Err(close)
                    }
                }
            }
        }
    }

    async fn converse(&mut self) -> Close {
        loop {
            let done = match self.next().await {
                Happening::Received(Received::Message(message)) => {
                    match self.language.decode(message, &self.hello.namespace) {
                        Ok(said) => self.on_said(said).await,
                        Err((close, why)) => self.broken(close, &why),
                    }
                }
                Happening::Received(Received::Ping(payload)) => {
                    // Through the outbox: a frame may be half written.
                    self.say(pong_frame(&payload));
                    Ok(())
                }
                Happening::Received(Received::Close) => Err(Close::ClientLeft),
                Happening::Received(Received::TooLarge) => {
                    let text = format!(
                        "a message has at most {} bytes (setting limits.message_bytes)",
                        self.message_bytes_max()
                    );
                    self.broken(Close::MessageTooLarge, &text)
                }
                Happening::Received(Received::Broken(why)) => self.broken(Close::ProtocolError, &why),
                Happening::End(close) => Err(close),
                Happening::Clock => Ok(()),
                Happening::Changed => {
                    Box::pin(self.keep_changed_records(false)).await;
                    Ok(())
                }
                Happening::Draining => Err(self.drain().await),
            };
            // Whatever happened: a client that says much does not stop the clock.
            let done = match done {
                Ok(()) => self.on_clock().await,
                Err(close) => Err(close),
            };
            if let Err(close) = done {
                return close;
            }
        }
    }

    /// Everything waited for here may be dropped half-way.
    async fn next(&mut self) -> Happening {
        let wake = self.next_wake();
        tokio::select! {
            biased;
            close = self.outbox.ended() => Happening::End(close),
            () = self.gateway.tasks.draining().cancelled() => Happening::Draining,
            received = self.socket.inbox.recv() => {
                received.map_or(Happening::End(Close::ConnectionLost), Happening::Received)
            }
            () = self.changed.notified() => Happening::Changed,
            () = tokio::time::sleep_until(wake) => Happening::Clock,
        }
    }

    async fn on_said(&mut self, said: Vec<Said>) -> Result<(), Close> {
        metrics::counter!("ws_messages_total", "direction" => "in").increment(said.len() as u64);
        for said in said {
            self.on_clock().await?;
            match said {
                Ok(Heard::Event { namespace, name, data, ack }) => self.on_event(&namespace, name, data, ack).await,
                Ok(Heard::Connect { namespace, auth }) => {
                    let connected = match self.within_rate() {
                        Ok(()) => Box::pin(self.connect(&namespace, auth.as_deref())).await,
                        Err(refusal) => Err((Close::ProtocolError, refusal)),
                    };
                    if let Err((close, refusal)) = connected {
                        // One refused namespace ends nothing else; a client without any runs into
                        // the handshake's time-out.
                        tracing::debug!(code = refusal.code, close = close.word(), "connect refused");
                        if self.connections.is_empty() && is_passing(close) {
                            return Err(close);
                        }
                        metrics::counter!("ws_connection_errors_total", "reason" => close.word()).increment(1);
                        self.say(language::connect_error(&namespace, &refusal));
                    }
                }
                Ok(Heard::Disconnect { namespace }) => self.leave_namespace(&namespace).await,
                Ok(Heard::Ping(text)) => self.say(language::engine_pong(&text)),
                Ok(Heard::Pong) => {
                    if let Some(position) = self.pinged_at.take() {
                        self.connections.iter_mut().for_each(|connection| connection.has_heard(position));
                    }
                }
                Ok(Heard::Ack { .. } | Heard::Upgrade) => {}
                Ok(Heard::Close) => return Err(Close::ClientLeft),
                Err((ack, refusal)) => {
                    let refusal = self.within_rate().err().unwrap_or(refusal);
                    let namespace = self.hello.namespace.clone();
                    self.say_refused(&namespace, ack, &refusal, false);
                }
            }
        }
        Ok(())
    }

    /// The life of an event: limits → the gateway's own answer, or a decision → the answer.
    async fn on_event(&mut self, namespace: &Arc<str>, name: Arc<str>, data: Payload, ack: Option<AckId>) {
        let Some((tenant, index)) = self.connected(namespace) else {
            let refusal = Refusal::new("not_connected", format!("connect to the namespace {namespace} first"));
            self.say_refused(namespace, ack, &refusal, false);
            return;
        };
        if let Err(refusal) = self.within_limits(&tenant, index, &name).await {
            self.say_refused(namespace, ack, &refusal, true);
            return;
        }
        let answer = match Request::of(&name) {
            Some(request) => self.answer(request, &tenant, index, &data).await,
            None => Box::pin(self.decide(&tenant, index, name, data)).await,
        };
        match answer {
            Ok(answer) => self.reply(namespace, ack, answer),
            Err(refusal) => self.say_refused(namespace, ack, &refusal, false),
        }
    }

    /// An event that is the tenant's to decide.
    async fn decide(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        name: Arc<str>,
        data: Payload,
    ) -> Result<requests::Answer, Refusal> {
        let connection = &self.connections[index];
        let event = Event {
            name,
            namespace: connection.local.namespace.clone(),
            data,
            sender: Some(connection.client.clone()),
        };
        let local = connection.local.clone();
        let may_publish =
            move |room: &crate::room::Room| local.grants.lock().get(room).is_some_and(|grant| grant.publish);
        let input = crate::decision::Input::Event { event: &event, may_publish: &may_publish };
        let decided = tenant
            .decisions
            .run(&tenant.pipeline.load_full(), input)
            .await
            .map_err(|undecided| undecided.into_refusal())?;
        connection::applied(&self.gateway, tenant, &decided).await;
        if decided.memberships {
            // Before the client hears of it: its record would not have the room that a handler gave it.
            let outbox = self.outbox.clone();
            _ = unless_fenced(&outbox, Box::pin(self.keep_changed_records(true))).await;
        }
        Ok(requests::Answer::of_decision(decided))
    }

    async fn within_limits(&mut self, tenant: &LiveTenant, index: usize, name: &Arc<str>) -> Result<(), Refusal> {
        self.within_rate()?;
        let rate = tenant.settings().limits.user_events_per_minute.get(&**name).copied();
        let Some(rate) = rate else { return Ok(()) };
        let shared = Shared { engine: &*self.gateway.engine, tenant: &tenant.id };
        let subject = &self.connections[index].client.identity.subject;
        tenant.user_rates.take(shared, subject, name, rate).await
    }

    /// Whatever a client says counts, refused or not.
    fn within_rate(&mut self) -> Result<(), Refusal> {
        self.rate.take(Instant::now()).map_err(|wait| {
            let what = "messages of one connection";
            rate_limited(what, "limits.messages_per_minute", self.rate.per_minute(), wait)
        })
    }

    fn connected(&self, namespace: &str) -> Option<(Arc<LiveTenant>, usize)> {
        let index = self.connections.iter().position(|connection| &*connection.local.namespace == namespace)?;
        Some((self.tenant.clone()?, index))
    }

    fn reply(&self, namespace: &Arc<str>, ack: Option<AckId>, answer: requests::Answer) {
        for (event, data) in &answer.events {
            self.say_event(namespace, event, data);
        }
        if let Some(ack) = ack {
            self.say(self.language.answer(namespace, ack, &answer.ack));
        }
    }

    /// Says why before the end.
    fn broken(&self, close: Close, why: &str) -> Result<(), Close> {
        let namespace =
            self.connections.first().map_or_else(|| self.hello.namespace.clone(), |c| c.local.namespace.clone());
        self.say_error(&namespace, &Refusal::new(close.word(), why));
        Err(close)
    }

    fn say(&self, frames: bytes::Bytes) {
        self.outbox.push_before_held(frames);
        self.outbox.flush();
    }

    /// Says something that clients with an offset take for an event, with the offset that is true at its place.
    fn say_with_offset(&self, frames: impl FnOnce(&Language, Option<Cursor>) -> bytes::Bytes) {
        if !self.language.has_offsets() {
            return self.say(frames(&self.language, None));
        }
        let handed_out = || self.tenant.as_ref().and_then(|tenant| tenant.handed_out());
        self.outbox.push_between(handed_out, |reached| frames(&self.language, reached));
        self.outbox.flush();
    }

    fn say_event(&self, namespace: &str, name: &str, data: &Payload) {
        self.say_with_offset(|language, reached| language.event(namespace, name, data, reached));
    }

    fn say_error(&self, namespace: &str, refusal: &Refusal) {
        self.say_with_offset(|language, reached| language.error(namespace, refusal, reached));
    }

    /// As the acknowledgement that was asked for, otherwise, or with `event`, as the event `error`.
    fn say_refused(&self, namespace: &str, ack: Option<AckId>, refusal: &Refusal, event: bool) {
        if let Some(ack) = ack {
            self.say(self.language.refused(namespace, ack, refusal));
        }
        if event || ack.is_none() {
            self.say_error(namespace, refusal);
        }
    }

    fn message_bytes_max(&self) -> usize {
        self.socket.message_bytes_max.load(Ordering::Relaxed)
    }

    /// The tenant is known: its limits hold from here on.
    fn enter(&mut self, tenant: &Arc<LiveTenant>) -> Result<(), Close> {
        if self.tenant_slot.is_some() {
            return Ok(());
        }
        self.tenant_slot = Some(tenant.connections.take().ok_or(Close::ServerFull)?);
        let settings = tenant.settings();
        self.limit(&settings.limits);
        self.language.set_recovery(settings.socketio_recovery);
        self.rate = Bucket::new(settings.limits.messages_per_minute, Instant::now());
        self.record_due = Instant::now() + self.record_interval(&settings.limits);
        self.tenant = Some(tenant.clone());
        Ok(())
    }

    /// What the tenant's settings and keys say now holds for whoever is connected, too. Protocol features stay as they
    /// were when the client came.
    fn keep_up_with_tenant(&mut self) -> Result<(), Close> {
        let Some(tenant) = self.tenant.clone().filter(|tenant| tenant.revision() != self.tenant_revision) else {
            return Ok(());
        };
        self.tenant_revision = tenant.revision();
        let (settings, verifier) = (tenant.settings(), tenant.verifier());
        if settings.disabled {
            return self.broken(Close::TenantDisabled, "the tenant is disabled or deleted");
        }
        if !self.connections.iter().all(|connection| verifier.admits(&connection.client.identity)) {
            return self.broken(Close::Unauthorized, "the key that signed the token is not the tenant's any more");
        }
        self.limit(&settings.limits);
        self.rate.set_rate(settings.limits.messages_per_minute, Instant::now());
        Ok(())
    }

    fn limit(&mut self, limits: &Limits) {
        self.socket.message_bytes_max.store(limits.message_bytes, Ordering::Relaxed);
        self.language.set_message_bytes_max(limits.message_bytes);
        self.outbox.set_limits(OutboxLimits { bytes: limits.outbox_bytes, messages: limits.outbox_messages });
    }

    /// Often enough that a record outlives one refresh that failed.
    fn record_interval(&self, limits: &Limits) -> Duration {
        Duration::from_millis(limits.recovery_window_ms / 3).min(RECORD_INTERVAL_MAX)
    }

    fn next_wake(&self) -> Instant {
        let config = &self.gateway.config;
        let heartbeat = self.pinged.map_or(self.ping_due, |pinged| pinged + config.ping_timeout);
        let handshake = self.connections.is_empty().then(|| self.opened + config.handshake_timeout);
        let expiry = self.connections.iter().filter_map(|connection| connection.expires(self.told_of_expiry)).min();
        let record = (!self.connections.is_empty()).then_some(self.record_due);
        [Some(heartbeat), handshake, expiry, record].into_iter().flatten().min().unwrap_or(heartbeat)
    }

    async fn on_clock(&mut self) -> Result<(), Close> {
        self.keep_up_with_tenant()?;
        let (now, config) = (Instant::now(), &self.gateway.config);
        if now < self.next_wake() {
            return Ok(());
        }
        if self.connections.is_empty() && now >= self.opened + config.handshake_timeout {
            return self
                .broken(Close::HandshakeTimeout, "no namespace was connected in time (setting handshake_timeout_ms)");
        }
        if let Some(connection) =
            self.connections.iter().find(|connection| connection.expires(true).is_some_and(|at| now >= at))
        {
            let refusal = Refusal::new("token_expired", "the token has ended; connect again with a fresh one");
            self.say_error(&connection.local.namespace, &refusal);
            return Err(Close::TokenExpired);
        }
        if !self.told_of_expiry {
            for connection in
                self.connections.iter().filter(|connection| connection.expires(false).is_some_and(|at| now >= at))
            {
                let left = connection.expires(true).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
                let data = json!({ "expires_in_ms": left.as_millis() as u64 });
                self.say_event(&connection.local.namespace, "token_expiring", &Payload::one(&data));
                self.told_of_expiry = true;
            }
        }
        if let Some(tenant) = self.tenant.clone().filter(|_| now >= self.record_due) {
            Box::pin(self.keep_records()).await;
            self.record_due = Instant::now() + self.record_interval(&tenant.settings().limits);
        }
        self.heartbeat(now)
    }

    /// Pings on the beat whatever the client says meanwhile: Socket.IO clients count on it.
    fn heartbeat(&mut self, now: Instant) -> Result<(), Close> {
        if let Some(pinged) = self.pinged {
            if self.socket.last_heard.at() >= pinged {
                self.ping_due = pinged + self.gateway.config.ping_interval;
                self.pinged = None;
            } else if now >= pinged + self.gateway.config.ping_timeout {
                return Err(Close::PingTimeout);
            }
        }
        if self.pinged.is_none() && now >= self.ping_due {
            if self.language.has_offsets() {
                self.pinged_at = self.tenant.as_ref().and_then(|tenant| tenant.handed_out());
            }
            self.say(self.language.ping());
            self.pinged = Some(now);
        }
        Ok(())
    }

    /// The node stops: the client is told, and goes at a moment of its own.
    async fn drain(&mut self) -> Close {
        let window = self.gateway.config.shutdown_grace / 2;
        let hint = json!({"reason": "shutdown", "reconnect_after_ms": crate::close::jitter(crate::close::RECONNECT_JITTER_MAX).as_millis() as u64});
        for connection in &self.connections {
            self.say_event(&connection.local.namespace, "server:shutdown", &Payload::one(&hint));
        }
        let pace = window.min(Duration::from_millis(u64::from(self.gateway.connections.taken())));
        tokio::time::sleep(crate::close::jitter(pace)).await;
        Close::Shutdown
    }

    /// The last words, and out of all rooms.
    async fn goodbye(&mut self, close: Close) {
        // First: the client may come back as soon as it hears of this.
        self.user = None;
        let namespaces: Vec<_> = self.connections.iter().map(|connection| &*connection.local.namespace).collect();
        let last = self.language.farewell(close, &namespaces);
        self.outbox.release();
        self.outbox.seal(last);
        while let Some(connection) = self.connections.pop() {
            self.leave(connection, close).await;
        }
        // The reader stops when nobody reads the inbox; until then the client may still say its own goodbye.
        self.socket.inbox.close();
    }
}

/// Does something that may wait for the connection to be registered again; `None`: the others have taken it out, so
/// that it never is.
async fn unless_fenced<T>(outbox: &Outbox, work: impl Future<Output = T>) -> Option<T> {
    let fenced = async {
        if outbox.ended().await != Close::Fenced {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! { biased; done = work => Some(done), () = fenced => None }
}

/// Is it nobody's decision that a client does not get in, and different in a moment? Socket.IO clients do not try again
/// after a refusal, but they do when the connection ends.
fn is_passing(close: Close) -> bool {
    matches!(close, Close::EngineUnavailable | Close::AuthorizerUnavailable | Close::ServerFull)
}

/// How long a closing socket may take.
pub fn farewell_timeout() -> Duration {
    FAREWELL_TIMEOUT
}
