//! Tenants: the unit of isolation, of order and of atomicity.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::quota::Stored;

mod plugin_limits;

pub use plugin_limits::PluginLimits;

/// The longest tenant name, in bytes.
pub const TENANT_NAME_BYTES_MAX: usize = 32;

/// A tenant's name: 1 to 32 of [`NAME_FORM`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// A text that is no tenant name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant's name is 1 to {TENANT_NAME_BYTES_MAX} of {NAME_FORM}, not {0:?}")]
pub struct TenantNameError(String);

impl TenantId {
    /// Checks and takes a name.
    pub fn parse(name: &str) -> Result<TenantId, TenantNameError> {
        if is_name(name, TENANT_NAME_BYTES_MAX) { Ok(TenantId(name.into())) } else { Err(TenantNameError(name.into())) }
    }

    /// Under which the engine keeps the catalog of tenants. No tenant has this name: it begins with `_`.
    pub fn catalog() -> TenantId {
        TenantId("_catalog".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a name must be, after its length: for those whose name is not taken.
pub const NAME_FORM: &str = "`a-z`, `0-9` and `-`, which is neither first nor last";

/// Is it 1 to `bytes_max` of [`NAME_FORM`]? The form of tenant and plugin names: a command line does not take it for an
/// option, and it can be a part of a host's name.
pub fn is_name(name: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod names {
    use super::*;

    #[test]
    fn a_name_is_taken_by_no_command_line_for_an_option() {
        for name in ["a", "7", "a-b", "green-valley", &"x".repeat(32)] {
            assert!(TenantId::parse(name).is_ok(), "{name:?}");
        }
        for name in ["", "-", "-a", "a-", "A", "a_b", "a.b", "ä", "a b", &"x".repeat(33)] {
            let error = TenantId::parse(name).unwrap_err().to_string();
            assert!(error.contains("neither first nor last") && error.contains(name), "{error}");
        }
    }
}

impl TryFrom<String> for TenantId {
    type Error = TenantNameError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        TenantId::parse(&name)
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> String {
        id.0.as_ref().into()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant as meant: everything checked, nothing loaded.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// Is it out of service? Then nobody may connect, and its timers wait.
    pub disabled: bool,
    /// How its tokens are verified.
    pub auth: Auth,
    /// What its clients may use up.
    pub limits: Limits,
    /// What one call of its plugins may use up.
    pub call_limits: CallLimits,
    /// Its components, in the order of the file.
    pub plugins: Vec<PluginSettings>,
    /// Event name patterns that are published without a handler, to the rooms that their
    /// first argument names; an event that names none is answered with its own data.
    pub relay: Vec<Pattern>,
    /// Event name patterns that are published without a handler, unchanged, to every client of the
    /// tenant in the sender's namespace, on every node. Who may connect may say them.
    pub broadcast: Vec<Pattern>,
    /// Origins from which browsers may open a socket or call HTTP; empty: those of the
    /// listener's settings.
    pub origins: Vec<String>,
    /// Host names, without a port, whose clients are this tenant's when their path names none.
    pub hosts: Vec<String>,
    /// How many of the latest events of a room a member gets on joining; 0: none.
    pub history_on_join: usize,
    /// Are Socket.IO clients given a `pid`, and an offset as the last argument of every event, so that they get what
    /// they missed when they come back (connection state recovery)? Handlers of fixed arity do not expect that argument.
    pub socketio_recovery: bool,
    /// Are clients sent `authenticated` once they are in? Those of some older back ends wait for it.
    pub authenticated_event: bool,
    /// Types of rooms (`flat` of `flat:a1`) whose members are told who comes and goes: `presence:join` and
    /// `presence:leave`, in bursts and in rooms of more than 50 members on a node together as `presence:update`.
    pub presence_events: Arc<[String]>,
    /// How long a connection that ended without a goodbye keeps its place in its rooms.
    pub presence_grace: Duration,
    /// The bearer token with which the tenant's own back end may do everything over HTTP that an API key can be good
    /// for; `None`: only [`api_keys`](Tenant::api_keys) are good.
    pub backend_token: Option<Secret>,
    /// The keys of the tenant's own back ends, for its HTTP API.
    pub api_keys: Vec<ApiKey>,
    /// Who may have signed the components that are uploaded for it.
    pub signature_keys: Vec<SignatureKey>,
    /// Are only signed components taken? Those that a tenant file names are the operator's own, and need none.
    pub require_signature: bool,
}

/// The name under which the `backend_token` counts as an API key; no other can have it.
pub const BACKEND_TOKEN_ID: &str = "backend_token";

/// A key of the tenant's HTTP API.
#[derive(Clone)]
pub struct ApiKey {
    /// Its name: 1 to 64 of [`NAME_FORM`].
    pub id: Arc<str>,
    /// The SHA-256 of what is sent as the bearer token.
    pub digest: [u8; 32],
    /// What it is good for.
    pub may: Vec<ApiRight>,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).field("may", &self.may).finish_non_exhaustive()
    }
}

/// What an API key may be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiRight {
    /// Raising events, as a client would: the handlers run.
    Events,
    /// Publishing to rooms, users, connections and everyone, without a handler.
    Publish,
    /// Ending connections, changing the rooms that they are in, revoking tokens.
    Connections,
    /// Looking at connections, rooms, history and revoked tokens.
    Read,
}

impl ApiRight {
    /// All of them.
    pub const ALL: [ApiRight; 4] = [ApiRight::Events, ApiRight::Publish, ApiRight::Connections, ApiRight::Read];

    /// As settings and documents write it.
    pub fn word(self) -> &'static str {
        match self {
            ApiRight::Events => "events",
            ApiRight::Publish => "publish",
            ApiRight::Connections => "connections",
            ApiRight::Read => "read",
        }
    }
}

/// The longest id of a signature key, in bytes.
pub const SIGNATURE_KEY_ID_BYTES_MAX: usize = 64;

/// An Ed25519 key that components are signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureKey {
    /// What signatures call it.
    pub id: String,
    /// Its public half.
    pub public_key: [u8; 32],
}

/// Is it 1 to 64 of letters, digits, `.`, `_` and `-`? The form of the ids of signature keys.
pub fn is_key_id(id: &str) -> bool {
    (1..=SIGNATURE_KEY_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// How a tenant's tokens are verified.
#[derive(Debug, Clone)]
pub struct Auth {
    /// The keys that the settings give, several at once for rotation.
    pub keys: Vec<VerifyingKey>,
    /// Sets of keys that are looked at again while the tenant is served.
    pub key_sets: Vec<KeySet>,
    /// How often the sets behind URLs are fetched.
    pub key_set_refresh: Duration,
    /// Do connections end when the key that admitted them leaves its set? Otherwise the set vouches for them: whoever
    /// issues tokens changes keys as a matter of course, and the tokens of the old one run out by themselves.
    pub key_sets_end_connections: bool,
    /// The claim that is the subject.
    pub subject_claim: String,
    /// If given, `aud` must contain one of them.
    pub audiences: Vec<String>,
    /// If given, `iss` must be one of them.
    pub issuers: Vec<String>,
    /// Clock skew allowed on `exp` and `nbf`.
    pub leeway: Duration,
    /// May clients come without a token? They get the subject `anonymous-{random}` and no claims.
    pub anonymous: bool,
}

impl Auth {
    /// The keys of the settings, then those of the sets as they were last seen.
    pub fn all_keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.keys.iter().chain(self.key_sets.iter().flat_map(|set| &set.keys))
    }
}

/// A JSON Web Key set, and what was last seen in it.
#[derive(Debug, Clone)]
pub struct KeySet {
    /// Where it is.
    pub source: KeySetSource,
    /// Its usable keys; none while a URL has not been fetched yet.
    pub keys: Vec<VerifyingKey>,
}

/// Where a JSON Web Key set is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum KeySetSource {
    /// A file of this machine, read again when it changes.
    File(PathBuf),
    /// A URL: `https`, or `http` to this machine.
    Url {
        /// The whole of it.
        url: Arc<str>,
        /// May it only lead to addresses of the public Internet? So where whoever wrote it does not have this machine.
        public_only: bool,
    },
}

impl fmt::Display for KeySetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySetSource::File(path) => write!(f, "{}", path.display()),
            // A query may hold a password.
            KeySetSource::Url { url, .. } => f.write_str(url.split(['?', '#']).next().unwrap_or_default()),
        }
    }
}

impl fmt::Debug for KeySetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One key that verifies tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    /// The `kid` that selects it. A token whose `kid` names no key, or that has none, is tried
    /// against all keys for its algorithm.
    pub id: Option<String>,
    /// The only algorithm it is used with: never the token's choice.
    pub algorithm: Algorithm,
    /// The key itself.
    pub material: KeyMaterial,
}

/// Signature algorithms of RFC 7518 and RFC 8037 that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the RFCs")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// The bytes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyMaterial {
    /// A shared secret, for HS*.
    Secret(Secret),
    /// A public key in PEM, for all others.
    Pem(Vec<u8>),
    /// A JSON Web Key (one object of a JWK set).
    Jwk(String),
}

/// Bytes that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One component of a tenant.
#[derive(Debug, Clone)]
pub struct PluginSettings {
    /// Its name within the tenant: 1 to 64 of [`NAME_FORM`].
    pub name: Arc<str>,
    /// What it does.
    pub role: Role,
    /// Where the component's file is.
    pub component: PathBuf,
    /// Event patterns that it handles, instead of those that it declares itself.
    pub events: Option<Vec<Pattern>>,
    /// What `config.get` answers it: texts as they are, everything else as JSON.
    pub settings: BTreeMap<String, String>,
    /// Has each call an instance of its own?
    pub instances: Instances,
    /// What its calls may use up, where that is less than what the tenant's may.
    pub limits: PluginLimits,
}

/// What becomes of an instance of a component after a call that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instances {
    /// It is gone: a call sees nothing of an earlier one.
    #[default]
    Fresh,
    /// It is kept for the next call of the same version of the same plugin, with all that the component keeps in its
    /// memory, of whichever of the tenant's users it is.
    Warm(WarmLimits),
}

/// How long instances are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmLimits {
    /// Idle instances of the plugin on a node.
    pub idle_max: usize,
    /// Calls of one instance.
    pub calls_max: u32,
    /// What its memory may grow by from the beginning of its first call, in bytes.
    pub memory_growth_bytes_max: usize,
}

impl Default for WarmLimits {
    fn default() -> Self {
        WarmLimits { idle_max: 4, calls_max: 1_000, memory_growth_bytes_max: 1 << 20 }
    }
}

/// What a component is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Says who may connect and join; at most one a tenant. Without one nobody may.
    Authorizer,
    /// Says which handlers see an event; at most one a tenant.
    Router,
    /// Handles events, timers and connections.
    Handler,
}

/// A pattern of event names: a name, or a beginning followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Pattern {
    /// Does it match this event name?
    pub fn matches(&self, event: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => event.starts_with(beginning),
            None => self.0 == event,
        }
    }
}

/// A rate, as a token bucket that holds one minute's worth: `per_minute` at once, refilled
/// evenly. `None`: unlimited.
pub type PerMinute = Option<NonZeroU32>;

/// What clients of a tenant may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Messages of one connection.
    pub messages_per_minute: PerMinute,
    /// Events by name, of one user over all connections, on all nodes: exact but for what [`rates`](crate::rates) says.
    pub user_events_per_minute: BTreeMap<String, NonZeroU32>,
    /// Requests to the tenant's HTTP API with one key, on all nodes likewise.
    pub api_requests_per_minute: PerMinute,
    /// Open connections of one user, on all nodes; while the engine is away, on each.
    pub connections_per_user: u32,
    /// Open connections of the tenant, on all nodes; while the engine is away, on each.
    pub connections: u32,
    /// One message whole, however many frames and attachments it comes in, in bytes.
    pub message_bytes: usize,
    /// Rooms that one connection is in, those of the gateway not counted.
    pub rooms_per_connection: usize,
    /// Rooms with members on one node, those of the gateway not counted. Joins of others are refused beyond that.
    pub rooms: usize,
    /// What its plugins may keep in all: state, with the keys, in bytes; keys of state; timers that have not fired.
    /// Commits that would leave more are refused.
    pub stored: Stored,
    /// How long a client that is gone can come back to its rooms, in milliseconds. No longer than logs
    /// reach back.
    pub recovery_window_ms: u64,
    /// What waits for one slow client, in bytes; beyond that its connection ends (`slow`).
    pub outbox_bytes: usize,
    /// What waits for one slow client, in messages; likewise.
    pub outbox_messages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            messages_per_minute: NonZeroU32::new(100),
            user_events_per_minute: BTreeMap::from([("send_message".into(), NonZeroU32::MIN.saturating_add(59))]),
            api_requests_per_minute: NonZeroU32::new(6_000),
            connections_per_user: 5,
            connections: 10_000,
            message_bytes: 1 << 20,
            rooms_per_connection: 256,
            rooms: 100_000,
            stored: Stored { state_bytes: 64 << 20, state_keys: 100_000, timers: 100_000 },
            recovery_window_ms: 120_000,
            outbox_bytes: 4 << 20,
            outbox_messages: 4_096,
        }
    }
}

/// What one call of a plugin, and its commit, may use up.
#[derive(Debug, Clone)]
pub struct CallLimits {
    /// Computing time, in milliseconds; waiting for state does not count.
    pub cpu_ms: u32,
    /// From start to end, waiting included, in milliseconds.
    pub wall_ms: u32,
    /// Linear memory, in bytes. Components with an interpreter begin with 9.5 MB (JavaScript) and 13 MB (Python).
    pub memory_bytes: usize,
    /// Calls to the gateway.
    pub host_calls: u32,
    /// What the call hands to the gateway altogether, in bytes.
    pub output_bytes: usize,
    /// Keys read and written.
    pub state_keys: usize,
    /// One value, in bytes.
    pub state_value_bytes: usize,
    /// Publications, ephemeral ones included.
    pub publications: usize,
    /// Timers set or cancelled.
    pub timers: usize,
    /// Joins, leaves and disconnects.
    pub memberships: usize,
    /// Log lines.
    pub log_lines: usize,
    /// Calls of the tenant that run at the same time; more wait.
    pub concurrent_calls: usize,
    /// Calls of the tenant that wait; more are refused with `overloaded`.
    pub waiting_calls: usize,
    /// Attempts at one input when its reads conflict with other commits.
    pub attempts: u32,
    /// Computing time of all calls of the tenant on one node, in milliseconds a second: 1,000 is one core. Beyond it
    /// calls are slowed down, not ended. 0: unlimited.
    pub cpu_ms_per_second: u32,
    /// Log lines of all calls of the tenant on one node, a minute; more are dropped, and that is told.
    pub log_lines_per_minute: PerMinute,
    /// Publications of the tenant on one node, a second; inputs that would go beyond are refused. 0: unlimited.
    pub publications_per_second: u32,
    /// When a hook of a plugin that keeps failing is not called any more.
    pub breaker: BreakerLimits,
}

/// When a circuit breaker opens and how long it rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// It opens when so many of a hundred calls in the window failed. 0: never.
    pub failure_percent: u32,
    /// Not before so many calls in the window.
    pub calls_min: u32,
    /// The window, in milliseconds.
    pub window_ms: u32,
    /// How long it rests before one call is tried, in milliseconds; doubled when that fails.
    pub rest_ms: u32,
    /// The longest rest, in milliseconds.
    pub rest_max_ms: u32,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        BreakerLimits { failure_percent: 50, calls_min: 20, window_ms: 10_000, rest_ms: 1_000, rest_max_ms: 30_000 }
    }
}

impl Default for CallLimits {
    fn default() -> Self {
        CallLimits {
            cpu_ms: 50,
            wall_ms: 5_000,
            memory_bytes: 16 << 20,
            host_calls: 1_000,
            output_bytes: 1 << 20,
            state_keys: 128,
            state_value_bytes: 64 << 10,
            publications: 128,
            timers: 32,
            memberships: 128,
            log_lines: 32,
            concurrent_calls: 64,
            waiting_calls: 1_024,
            attempts: 8,
            cpu_ms_per_second: 1_000,
            log_lines_per_minute: NonZeroU32::new(600),
            publications_per_second: 10_000,
            breaker: BreakerLimits::default(),
        }
    }
}
