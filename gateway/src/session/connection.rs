//! One namespace of a client: how it comes in, and how it goes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::departure::Departure;
use super::language::Language;
use super::recovery::{Claim, Lost, Past, count, hand_over};
use super::requests::RETRY_AFTER_MS;
use super::{Session, TOKEN_EXPIRING_BEFORE};
use crate::client::{Client, ConnectionId, Identity, NAMESPACES_MAX, TokenMark, random_id};
use crate::close::Close;
use crate::commit::{Commit, CommitId, Cursor, Effect, Grant, Millis, Position, SessionRecord, now_ms};
use crate::connection::upgrade::Protocol;
use crate::decision::token::peek_tenant;
use crate::decision::{Decided, Input, Returning, Undecided};
use crate::delivery::rooms::{Attached, Local, Tokens};
use crate::event::{Event, Payload, Refusal};
use crate::gateway::{Gateway, LiveTenant};
use crate::key_sets::Unidentified;
use crate::room::Room;

/// How long an answer waits for this node to apply the commit that it speaks of.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// One namespace of a client.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) local: Arc<Local>,
    /// Has it taken up an earlier session?
    pub(super) resumed: bool,
    /// Where it came in: what is published to its own rooms reaches it from here on.
    pub(super) arrived: Option<Position>,
    /// The secret name under which the client can come back.
    pub(super) session: Arc<str>,
    /// Up to here it has received everything (see [`SessionRecord::heard`]).
    heard: Option<Position>,
    /// The mark of the rooms in the session record.
    recorded: u64,
    expires: Option<Instant>,
    _attached: Attached,
}

impl Connection {
    /// When the token ends; or, with `told == false`, when its client is to be told that it will.
    pub(super) fn expires(&self, told: bool) -> Option<Instant> {
        let expires = self.expires?;
        Some(if told { expires } else { expires.checked_sub(TOKEN_EXPIRING_BEFORE).unwrap_or(expires) })
    }

    /// Takes a fresh token's identity.
    pub(super) fn refresh(&mut self, identity: Identity) {
        self.expires = expiry(&identity);
        self.client.identity = identity;
    }

    /// An event of the client's.
    pub(super) fn said(&self, name: &str, data: &Payload) -> Event {
        let namespace = self.local.namespace.clone();
        Event { name: name.into(), namespace, data: data.clone(), sender: Some(self.client.clone()) }
    }

    /// The session record as it stands.
    pub(super) fn record(&self, ttl_ms: Millis) -> SessionRecord {
        SessionRecord {
            session: self.session.clone(),
            connection: self.client.connection.clone(),
            subject: self.client.identity.subject.clone(),
            namespace: self.client.namespace.clone(),
            claims: self.client.identity.claims.clone(),
            rooms: self.local.grants.lock().iter().map(|(room, grant)| (room.clone(), *grant)).collect(),
            ttl_ms,
            heard: self.heard,
        }
    }

    /// The session record has these rooms now.
    pub(super) fn has_recorded(&mut self, rooms: &BTreeMap<Room, Grant>) {
        self.recorded = mark(rooms);
    }

    /// The client has answered a ping that went out behind everything up to here.
    pub(super) fn has_heard(&mut self, position: Position) {
        self.heard = self.heard.max(Some(position));
    }
}

/// Tells two sets of rooms apart without keeping one.
fn mark(rooms: &BTreeMap<Room, Grant>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (room, Grant { publish, presence, history }) in rooms {
        (room, publish, presence, history).hash(&mut hasher);
    }
    hasher.finish()
}

fn expiry(identity: &Identity) -> Option<Instant> {
    let left_ms = identity.expires_at_s?.saturating_mul(1_000).saturating_sub(now_ms());
    // A century is for ever, and does not overflow an instant.
    const CENTURY_MS: u64 = 100 * 365 * 24 * 3_600_000;
    Some(Instant::now() + Duration::from_millis(left_ms.min(CENTURY_MS)))
}

/// Waits until this node has applied what was decided, where the answer would otherwise be
/// ahead of it: the next event of the client may rest on it.
pub(super) async fn applied(gateway: &Arc<Gateway>, tenant: &Arc<LiveTenant>, decided: &Decided) {
    let (true, Some(position)) = (decided.memberships, decided.position) else { return };
    let Ok(rooms) = tenant.rooms(gateway).await else { return };
    if tokio::time::timeout(APPLY_TIMEOUT, rooms.applied(position)).await.is_err() {
        metrics::counter!("apply_timeouts_total").increment(1);
        tracing::warn!(tenant = %tenant.id, %position, "this node is late in applying the log");
    }
}

const NO_TOKEN: &str = "no token: send it as auth.token, as Authorization: Bearer, or as ?token=";

pub(super) type Refused = (Close, Refusal);

pub(super) fn refused(close: Close, message: impl Into<String>) -> Refused {
    (close, Refusal::new(close.word(), message))
}

impl Session {
    /// Brings the client into a namespace: token → identity → authorizer → commit → attached.
    pub(super) async fn connect(&mut self, namespace: &Arc<str>, auth: Option<&str>) -> Result<(), Refused> {
        if self.connections.iter().any(|connection| connection.local.namespace == *namespace) {
            return Err(refused(Close::ProtocolError, format!("already connected to {namespace}")));
        }
        if self.connections.len() >= NAMESPACES_MAX {
            return Err(refused(
                Close::ProtocolError,
                format!("at most {NAMESPACES_MAX} namespaces on one connection"),
            ));
        }
        let (tenant, identity) = self.identify(auth).await?;
        if !self.hello.may_talk_to(&tenant.settings().origins) {
            return Err(refused(Close::Forbidden, "this origin may not connect to the tenant (setting origins)"));
        }
        self.enter(&tenant).map_err(|close| {
            let max = tenant.settings().limits.connections;
            refused(close, format!("the tenant has {max} connections on this node (setting limits.connections)"))
        })?;
        let id = ConnectionId::random();
        if self.user.is_none() {
            self.user = Some(self.admitted_user(&tenant, &identity, &id, auth).await?);
        } else if self.user.as_ref().is_some_and(|user| *user.subject() != identity.subject) {
            return Err(refused(Close::Unauthorized, "one connection speaks for one user in all its namespaces"));
        }
        // A key that is revoked while the client comes in has let nobody in.
        self.tenant_revision = 0;
        let connected = self.admit(&tenant, identity, id, namespace, auth).await;
        if connected.is_err() && self.connections.is_empty() {
            self.user = None;
        }
        connected
    }

    async fn identify(&self, auth: Option<&str>) -> Result<(Arc<LiveTenant>, Identity), Refused> {
        let auth: serde_json::Value = auth.and_then(|auth| serde_json::from_str(auth).ok()).unwrap_or_default();
        let token = auth.get("token").and_then(|token| token.as_str()).or(self.hello.token.as_deref());
        let token = token.map(|token| token.strip_prefix("Bearer ").unwrap_or(token)).filter(|token| !token.is_empty());
        let tenant = match (&self.tenant, token) {
            (Some(tenant), _) => Some(tenant.clone()),
            (None, Some(token)) => peek_tenant(token).and_then(|name| self.gateway.tenant(&name)),
            (None, None) => None,
        };
        let tenant = tenant.or_else(|| self.gateway.tenant(self.gateway.config.default_tenant.as_ref()?.as_str()));
        let Some(tenant) = tenant else {
            let text = match token {
                Some(token) => match peek_tenant(token) {
                    // As far as it goes it is the client's own word.
                    Some(name) => format!("the token's `tenant` claim says {name:?}: there is no such tenant here"),
                    None => "the token has no `tenant` claim that can be read; or connect to /t/{tenant}/…".to_owned(),
                },
                None => NO_TOKEN.to_owned(),
            };
            return Err(refused(Close::Unauthorized, text));
        };
        if tenant.settings().disabled {
            return Err(refused(Close::TenantDisabled, "the tenant is disabled or deleted"));
        }
        // Who came without a token stays the same in all namespaces.
        let known = || self.connections.first().map(|connection| connection.client.identity.clone());
        let identity = match token {
            Some(token) => tenant.identify(token).await.map_err(|error| {
                tracing::debug!(tenant = %tenant.id, %error, "token refused");
                match error {
                    Unidentified::Token(error) => refused(Close::Unauthorized, error.public_message()),
                    // What is passing must not look like a refusal: clients do not come back from one.
                    Unidentified::KeysAway => {
                        refused(Close::AuthorizerUnavailable, "the tenant's keys are not there yet")
                    }
                }
            })?,
            None => {
                let anonymous = tenant.verifier().anonymous().ok_or_else(|| refused(Close::Unauthorized, NO_TOKEN))?;
                known().unwrap_or(anonymous)
            }
        };
        Ok((tenant, identity))
    }

    async fn admit(
        &mut self,
        tenant: &Arc<LiveTenant>,
        identity: Identity,
        id: ConnectionId,
        namespace: &Arc<str>,
        auth: Option<&str>,
    ) -> Result<(), Refused> {
        let claim = match self.language.has_offsets() {
            true => Claim::of_auth(auth),
            false => self.hello.claim.take(),
        };
        let client = Client { connection: id, identity, namespace: namespace.clone() };
        // Nothing of its own rooms comes before the welcome, and nothing live before what was missed.
        self.outbox.hold();
        let mut attached = false;
        let admitted = Box::pin(self.admit_held(tenant, client, claim, &mut attached)).await;
        match &admitted {
            Err((close, _)) if attached && *close == Close::EngineUnavailable => {
                // It may have arrived, and would take what came live for all that there was, and come back from there. Its
                // other namespaces come back with it.
                self.outbox.discard_held();
                if !self.connections.is_empty() {
                    self.outbox.end(*close);
                }
            }
            _ => self.outbox.release(),
        }
        let recovered = admitted?;
        self.tell_authenticated(tenant, namespace);
        self.connected_hooks(tenant, namespace, auth, recovered).await;
        Ok(())
    }

    /// Answers whether a session goes on that was there before; and whether the delivery knew of the connection.
    async fn admit_held(
        &mut self,
        tenant: &Arc<LiveTenant>,
        client: Client,
        claim: Option<Claim>,
        was_attached: &mut bool,
    ) -> Result<bool, Refused> {
        let rooms = tenant.rooms(&self.gateway).await.map_err(|error| unavailable(error.to_string()))?;
        let expires = expiry(&client.identity);
        let mut back = self.look_back(tenant, &client, claim).await?;
        let session: Arc<str> = back.past().map_or_else(|| random_id().into(), |past| past.record.session.clone());
        let local = Arc::new(Local {
            id: client.connection.clone(),
            session: session.clone(),
            subject: client.identity.subject.clone(),
            namespace: client.namespace.clone(),
            outbox: self.outbox.clone(),
            dialect: self.language.dialect(),
            grants: Mutex::new(HashMap::new()),
            tokens: Mutex::new(Tokens { now: TokenMark::of_claims(&client.identity.claims), next: None }),
            arrived: AtomicBool::new(false),
            changed: self.changed.clone(),
            leaving: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            unrecorded: AtomicBool::new(false),
        });
        // Known here before it is anywhere else, so that its arrival in the log finds it.
        let attached = rooms.attach(local.clone()).await.map_err(|error| unavailable(error.to_string()))?;
        *was_attached = true;
        let heard = back.past().map_or_else(|| rooms.position(), |past| past.since.whole());
        let record = SessionRecord {
            session: session.clone(),
            connection: client.connection.clone(),
            subject: client.identity.subject.clone(),
            namespace: client.namespace.clone(),
            claims: client.identity.claims.clone(),
            rooms: BTreeMap::new(),
            ttl_ms: tenant.settings().limits.recovery_window_ms,
            heard: self.language.has_offsets().then_some(heard),
        };
        let heard = record.heard;
        let returning = back.past().map(|past| Returning { record: &past.record, rooms: &past.rooms });
        let input = Input::Connect { who: &client, session: record, returning };
        let pipeline = tenant.pipeline.load_full();
        let decided = match tenant.decisions.run(&pipeline, input).await {
            Ok(decided) => decided,
            Err(undecided) => {
                let engine = matches!(undecided, Undecided::Engine(_));
                back.count(self.language.protocol(), if engine { "unavailable" } else { "refused" });
                if engine {
                    // It may have been committed after all.
                    self.forget(tenant, &local).await;
                }
                return Err(connect_refused(undecided));
            }
        };
        applied(&self.gateway, tenant, &decided).await;
        let missed = match self.arrived(tenant, &local, &decided, &mut back).await {
            Ok(missed) => missed,
            Err(why) => {
                back.count(self.language.protocol(), "unavailable");
                self.forget(tenant, &local).await;
                return Err(unavailable(why));
            }
        };
        let (arrived, recovered) = (decided.position, back.past().is_some());
        let recorded = mark(&decided.joined.iter().cloned().collect());
        let connection = Connection {
            client,
            local,
            resumed: recovered,
            arrived,
            session,
            heard,
            recorded,
            expires,
            _attached: attached,
        };
        self.greet(&connection, &decided, &back, missed.len());
        hand_over(&self.outbox, missed);
        back.count(self.language.protocol(), "recovered");
        // What it answers from here on is a ping of before.
        self.pinged_at = None;
        self.connections.push(connection);
        Ok(recovered)
    }

    /// What the client comes back to, if it says so. Where that cannot be known now, it does not come in: it would lose
    /// what it could have had in a moment.
    async fn look_back(
        &self,
        tenant: &LiveTenant,
        client: &Client,
        claim: Option<Claim>,
    ) -> Result<LookedBack, Refused> {
        let started = Instant::now();
        let Some(claim) = claim else { return Ok(LookedBack { started, result: None }) };
        let (engine, limits) = (&*self.gateway.engine, &tenant.settings().limits);
        let looked = Past::look(engine, &tenant.id, &claim, client, limits).await;
        if let Err(lost) = &looked {
            count(self.language.protocol(), lost.word(), started.elapsed());
        }
        match looked {
            Err(Lost::Unavailable(error)) => Err(unavailable(error.to_string())),
            looked => Ok(LookedBack { started, result: Some(looked) }),
        }
    }

    /// Makes sure that the arrival is there, and reads the rest of what was missed; the text says why that cannot be.
    async fn arrived(
        &self,
        tenant: &LiveTenant,
        local: &Local,
        decided: &Decided,
        back: &mut LookedBack,
    ) -> Result<Vec<(Bytes, Cursor)>, String> {
        let (true, Some(arrived)) = (local.arrived.load(Ordering::Acquire), decided.position) else {
            return Err("the arrival was lost, or this node is late in applying it".into());
        };
        let Some(Ok(past)) = &mut back.result else { return Ok(Vec::new()) };
        let read = past.read_until(&*self.gateway.engine, &tenant.id, arrived).await;
        read.map_err(|lost| lost.to_string())?;
        if past.was_moved(arrived) {
            return Err("the session's rooms changed while it came back".into());
        }
        let joined = decided.joined.iter().map(|(room, _)| room).filter(|room| past.rooms.contains(room));
        let joined = joined.cloned().collect();
        let frames = past.frames(self.language.dialect(), joined, Vec::new(), arrived, &tenant.settings().limits);
        frames.map_err(|lost| lost.to_string())
    }

    fn greet(&self, connection: &Connection, decided: &Decided, back: &LookedBack, missed: usize) {
        let config = &self.gateway.config;
        let rooms: Vec<_> = decided.joined.iter().map(|(room, _)| room.name().to_owned()).collect();
        // What was missed comes only after this: until then its own position is the one to come back with.
        let since = back.past().map(|past| past.since.to_string());
        let mut welcome = json!({
            "connection": connection.client.connection.as_str(),
            "session": &*connection.session,
            "server": self.gateway.server_id,
            "subject": &*connection.client.identity.subject,
            "namespace": &*connection.client.namespace,
            "rooms": rooms,
            "pos": since.or_else(|| decided.position.map(|position| position.to_string())),
            "recovery_window_ms": self.tenant.as_ref().map(|tenant| tenant.settings().limits.recovery_window_ms),
            "ping_interval_ms": config.ping_interval.as_millis() as u64,
            "ping_timeout_ms": config.ping_timeout.as_millis() as u64,
            "message_bytes_max": self.message_bytes_max(),
        });
        if let Some(result) = &back.result {
            welcome["recovered"] = result.is_ok().into();
        }
        if back.past().is_some() {
            welcome["missed"] = missed.into();
            welcome["refused"] = decided.refused.iter().map(|(room, _)| room.name()).collect();
        }
        let (id, namespace) = (connection.client.connection.as_str(), &connection.client.namespace);
        self.say(self.language.connected(id, &connection.session, namespace, &welcome));
        if let (Some(Err(lost)), Language::Json) = (&back.result, &self.language) {
            self.say_event(namespace, "reset", &Payload::one(&lost.told()));
        }
    }

    /// For clients that wait for it.
    fn tell_authenticated(&self, tenant: &LiveTenant, namespace: &str) {
        let connection = self.connections.iter().find(|connection| &*connection.local.namespace == namespace);
        let Some(connection) = connection.filter(|_| tenant.settings().authenticated_event) else { return };
        let Client { connection: id, identity, .. } = &connection.client;
        let data = json!({
            "user_id": &*identity.subject,
            "connection": id.as_str(),
            "expires_at_s": identity.expires_at_s,
        });
        self.say_event(namespace, "authenticated", &Payload::one(&data));
    }

    /// Tells the handlers that asked for it; what they do is a commit of its own.
    async fn connected_hooks(&self, tenant: &LiveTenant, namespace: &str, auth: Option<&str>, recovered: bool) {
        let pipeline = tenant.pipeline.load_full();
        if !pipeline.handlers.iter().any(|(handler, _)| handler.exports.connection_events) {
            return;
        }
        let Some(connection) = self.connections.iter().find(|c| &*c.local.namespace == namespace) else { return };
        let handshake = json!({
            "auth": auth_without_secrets(auth),
            "query": self.hello.query,
            "origin": self.hello.origin,
            "address": self.hello.address.to_string(),
            // A session that is resumed later is told by `disconnected` not being called for it.
            "recovered": recovered,
        });
        let input = Input::Connected { who: &connection.client, handshake: &handshake.to_string() };
        if let Err(error) = tenant.decisions.run(&pipeline, input).await {
            tracing::warn!(tenant = %tenant.id, %error, "a handler of connections failed");
        }
    }

    /// Takes a connection out of all rooms that nobody here stands for.
    async fn forget(&self, tenant: &LiveTenant, local: &Local) {
        local.leaving.store(true, Ordering::Release);
        let gone = Effect::Gone { id: local.id.clone() };
        let commit = Commit { effects: vec![gone], ..Commit::new(CommitId::random()) };
        if let Err(error) = tenant.decisions.commit_directly(commit).await {
            tracing::warn!(tenant = %tenant.id, %error, "a connection that was not admitted may be left in its rooms");
        }
    }

    /// Writes the session records anew: they are kept for the recovery window after the last time.
    pub(super) async fn keep_records(&mut self) {
        self.keep_records_of(|_| true, false).await;
    }

    /// Writes the records of those that others have joined to rooms, or taken out, and those that may have been lost;
    /// `patient`: waits until they are registered, if they are not.
    pub(super) async fn keep_changed_records(&mut self, patient: bool) {
        let wanted = |connection: &Connection| {
            let lost = connection.local.unrecorded.swap(false, Ordering::AcqRel);
            lost || mark(&connection.record(0).rooms) != connection.recorded
        };
        self.keep_records_of(wanted, patient).await;
    }

    async fn keep_records_of(&mut self, wanted: fn(&Connection) -> bool, patient: bool) {
        let Some(tenant) = self.tenant.clone() else { return };
        for connection in self.connections.iter_mut().filter(|connection| wanted(connection)) {
            let record = connection.record(tenant.settings().limits.recovery_window_ms);
            let recorded = mark(&record.rooms);
            match tenant.decisions.record(record, patient).await {
                Ok(()) => connection.recorded = recorded,
                Err(error) => {
                    // Whatever changes next has it written again, registering after a loss not least.
                    connection.local.unrecorded.store(true, Ordering::Release);
                    tracing::debug!(tenant = %tenant.id, %error, "a session record was not kept");
                }
            }
        }
    }

    /// A Socket.IO client leaves one namespace. As with its own server, that ends the session.
    pub(super) async fn leave_namespace(&mut self, namespace: &str) {
        if let Some(index) = self.connections.iter().position(|c| &*c.local.namespace == namespace) {
            let connection = self.connections.remove(index);
            if self.language.has_offsets() {
                self.end_session(&connection).await;
            }
            self.leave(connection, Close::ClientLeft).await;
            // Without any namespace it has the time of a handshake for another.
            self.opened = Instant::now();
        }
    }

    async fn end_session(&self, connection: &Connection) {
        let Some(tenant) = &self.tenant else { return };
        if let Err(error) = tenant.decisions.record(connection.record(0), false).await {
            tracing::debug!(tenant = %tenant.id, %error, "a session ends only with its time");
        }
    }

    /// Out of all rooms, on every node, at once or when its grace is over. The session record stays: the client may
    /// come back; handlers that want to know are told when it has not.
    pub(super) async fn leave(&self, connection: Connection, close: Close) {
        let Some(tenant) = &self.tenant else { return };
        // Before the commit: what the log says of it then is no news.
        connection.local.leaving.store(true, Ordering::Release);
        // A socket ends as a whole when one of its connections was taken out: the others were not.
        let taken_out = connection.local.gone.load(Ordering::Acquire);
        let close = if close == Close::Fenced && !taken_out { Close::ConnectionLost } else { close };
        Departure::of(&self.gateway, tenant, &connection.client, &connection.session, close).depart().await;
    }
}

/// What came of looking for the session that a client comes back to; `None`: it comes to none.
struct LookedBack {
    started: Instant,
    result: Option<Result<Past, Lost>>,
}

impl LookedBack {
    fn past(&self) -> Option<&Past> {
        self.result.as_ref()?.as_ref().ok()
    }

    /// Counts how it ended for a session that could have gone on.
    fn count(&self, protocol: Protocol, result: &'static str) {
        if self.past().is_some() {
            count(protocol, result, self.started.elapsed());
        }
    }
}

/// The client's `auth` payload, but never its token or the name of its session.
fn auth_without_secrets(auth: Option<&str>) -> serde_json::Value {
    let mut auth: serde_json::Value = auth.and_then(|auth| serde_json::from_str(auth).ok()).unwrap_or_default();
    if let Some(auth) = auth.as_object_mut() {
        for secret in ["token", "pid", "offset"] {
            auth.remove(secret);
        }
    }
    auth
}

fn unavailable(why: impl std::fmt::Display) -> Refused {
    // Names of servers are for the log, not for clients.
    tracing::debug!(%why, "a client could not come in");
    let (close, refusal) = refused(Close::EngineUnavailable, "the engine is not available");
    (close, Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..refusal })
}

fn connect_refused(undecided: Undecided) -> Refused {
    match undecided {
        // The component's own words.
        Undecided::Refused(refusal) => (Close::Forbidden, refusal),
        Undecided::Unauthorized(refusal) => (Close::Unauthorized, refusal),
        Undecided::Engine(refusal) => (Close::EngineUnavailable, refusal),
        other => (Close::AuthorizerUnavailable, other.into_refusal()),
    }
}
