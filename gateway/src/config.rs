//! Settings: as written, then as meant.
//!
//! As written is a tree of values that know their places ([`source`]); reading it as meant checks
//! every value and goes on after a mistake, so that all of them are reported together, before a
//! port is bound. For the gateway's own settings the command line wins over the environment and
//! the environment over the file. Variables that are set but empty count as not set.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::connection::server::UNFINISHED_HEADS_DEFAULT;
use crate::decision::plugin::HostSettings;
use crate::engine::mistake_in_redis_url;
use crate::telemetry::labels::TENANTS_MAX_DEFAULT;
use crate::tenant::{Secret, Tenant, TenantId};

mod admin;
mod api_keys;
mod auth;
mod context;
mod document;
mod limits;
mod plugins;
mod scenario;
mod secrets;
mod signature;
mod source;
mod tenant;
#[cfg(test)]
mod tests;

pub use admin::AdminLimits;
pub use document::{DOCUMENT_BYTES_MAX, plugin_from_json, tenant_from_json};
pub use scenario::{ENDING as SCENARIO_ENDING, scenario, unusable};
pub use secrets::{NOT_SHOWN, SET, only_names, without_secrets, without_secrets_since};
use source::{Document, Given, Report, Section, read_text};
pub use source::{Mistake, Mistakes, Place};
pub use tenant::role_name;

/// A gateway's settings as meant: everything checked, nothing opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect: `host` and `port`, or `HOST` and `PORT`; default `0.0.0.0:3000`.
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where the embedded engine keeps its data: `data_dir`, `POSTERN_DATA`; default `./data`.
    pub data_dir: PathBuf,
    /// Where the tenant files are: `tenants_dir`, `POSTERN_TENANTS`; default `./tenants`.
    pub tenants_dir: PathBuf,
    /// What the component paths in tenant files are relative to: `plugins_dir`; `None`: each
    /// tenant file's own directory.
    pub plugins_dir: Option<PathBuf>,
    /// The Redis to work on: `redis_url`, `REDIS_URL`; `None`: the embedded engine. The forms are in the text of
    /// [`connect`](crate::engine::redis::connect).
    pub redis_url: Option<RedisUrl>,
    /// Certificates (PEM) of the authorities that may have signed the certificates of a `rediss` server:
    /// `redis_ca_file`, `REDIS_CA_FILE`; `None`: those that the system trusts.
    pub redis_ca_file: Option<PathBuf>,
    /// Origins from which browsers may open a socket or call HTTP, unless a tenant names its own:
    /// `origins`, or `CORS_ORIGIN` separated by commas. Empty: the gateway's own only; `*`: all.
    pub origins: Vec<String>,
    /// Tenants that metrics name, each with some plugins; the others are together under `other`:
    /// `metrics_tenants_max`; 0 to 100,000, default 200.
    pub metrics_tenants_max: usize,
    /// The bearer token that `/metrics` and `/api/v1/ws/metrics` want, for these name the tenants: `metrics_token`,
    /// `POSTERN_METRICS_TOKEN`; 32 bytes or more, printable ASCII. `None`: everybody may read them who reaches the port.
    pub metrics_token: Option<Secret>,
    /// Open connections at the same time: `max_connections`, `MAX_CONNECTIONS`; 1 to 10,000,000,
    /// default 10,000.
    pub max_connections: u32,
    /// HTTP connections of one address whose next request's head is not whole, while more than half of all are taken:
    /// `unfinished_heads_per_address`; 1 to 1,000,000, default 64. Behind a proxy all clients come from its address:
    /// bound them there, and set this to 1,024 or more.
    pub unfinished_heads_per_address: u32,
    /// How often clients are pinged: `ping_interval_ms`; 100 to 600,000, default 25,000.
    pub ping_interval: Duration,
    /// How long a pong may take: `ping_timeout_ms`; 100 to 600,000, default 20,000.
    pub ping_timeout: Duration,
    /// How long a client may take from accept to verified: `handshake_timeout_ms`; 100 to
    /// 120,000, default 10,000.
    pub handshake_timeout: Duration,
    /// The tenant of clients that name none: `default_tenant`; one of [`tenants`](Config::tenants).
    pub default_tenant: Option<TenantId>,
    /// What the embedded engine promises of a commit that it has acknowledged: `durability`.
    pub durability: Durability,
    /// Are `presence:online`, `room:{room}:users` and `user:{user}:socket` kept in Redis, for other programs to
    /// read: `presence_view`; default true.
    pub presence_view: bool,
    /// How long a node that says nothing lives in the eyes of the others: `node_lease_ms`; 1,000 to 120,000,
    /// default 12,000. It says something four times as often.
    pub node_lease: Duration,
    /// How long connections are drained before the process ends: `shutdown_grace_ms`; 0 to
    /// 600,000, default 10,000.
    pub shutdown_grace: Duration,
    /// Threads on which components run: `decision_threads`; 1 to 1,024, default one per core.
    pub decision_threads: NonZeroUsize,
    /// What the plugin host may use: `[plugins]`. `instances`, 1 to 100,000; `memory_bytes_max`, 1 MiB to 4 GiB;
    /// `component_bytes_max`, 1 KiB to 256 MiB; `compilations`, 1 to 64; `compile_ms_max`, 1,000 to 3,600,000;
    /// `compile_memory_bytes_max`, 256 MiB to 64 GiB; `code_cache_dir`, default `code-cache` in `data_dir`;
    /// `code_cache_bytes`, default 1 GiB, 0: no cache. The other defaults are those of [`HostSettings`].
    pub plugins: HostSettings,
    /// What tenants may do over the admin API: `[admin]`.
    pub admin: AdminLimits,
    /// What is logged, as `tracing_subscriber`'s `EnvFilter` reads it: `log`, `POSTERN_LOG`;
    /// default `info`.
    pub log: String,
    /// The bearer token of the first operator of the admin API: `admin_token`, `POSTERN_ADMIN_TOKEN`; 32 bytes or more,
    /// printable ASCII. `None`: only tokens that the admin API itself has made are good.
    pub admin_token: Option<Secret>,
    /// Is this a demonstration? Weak secrets are then only warned of: `demo`, `POSTERN_DEMO`.
    pub demo: bool,
    /// The tenants, by name.
    pub tenants: Vec<Tenant>,
    /// What is allowed but looks wrong; for the log.
    pub warnings: Vec<String>,
}

/// A token of the settings that is shorter than this can be guessed, in bytes.
const BEARER_TOKEN_BYTES_MIN: usize = 32;

/// When the embedded engine acknowledges a durable commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// `immediate`: after it is on the disk.
    #[default]
    Immediate,
    /// `relaxed`: before; the last moments may be lost with the machine.
    Relaxed,
}

/// Where Redis is. May contain a password, so neither logs nor mistakes show it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL, password included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The variables that settings may come from.
pub trait Environment {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

/// Settings from the command line: values by the long name of their flag, unchecked. Those read
/// are `config`, `tenants`, `data`, `host`, `port`, `redis-url`, `cors-origin`,
/// `max-connections`, `log` and `demo`.
pub type Flags = BTreeMap<&'static str, String>;

/// Reads and checks everything: the gateway's settings and all tenants.
///
/// # Errors
/// All mistakes.
pub fn load(flags: &Flags, env: &dyn Environment) -> Result<Config, Mistakes> {
    let mut report = Report::default();
    let (mut config, default_tenant) = settings(flags, env, &mut report);
    config.tenants = read_tenants(&config, env, &mut report);
    // A tenant whose file holds a mistake is not missing.
    if let Some((place, name)) = default_tenant.filter(|_| report.mistakes.is_empty())
        && !config.tenants.iter().any(|tenant| tenant.id == name)
    {
        report.mistake(place, format!("there is no tenant {name} in {}", config.tenants_dir.display()));
    }
    config.warnings = std::mem::take(&mut report.warnings);
    finished(config, report)
}

/// Reads all tenants again, with what is to be warned of.
///
/// # Errors
/// All mistakes; then none of the tenants should be taken.
pub fn load_tenants(config: &Config, env: &dyn Environment) -> Result<(Vec<Tenant>, Vec<String>), Mistakes> {
    let mut report = Report::default();
    let tenants = read_tenants(config, env, &mut report);
    let warnings = std::mem::take(&mut report.warnings);
    finished((tenants, warnings), report)
}

/// Reads one tenant whose components need not exist, to work with its keys: its secrets may be
/// weak.
///
/// # Errors
/// All mistakes.
pub fn load_tenant(flags: &Flags, env: &dyn Environment, name: &TenantId) -> Result<Tenant, Mistakes> {
    let mut report = Report::default();
    let (config, _) = settings(flags, env, &mut report);
    let path = config.tenants_dir.join(format!("{name}.toml"));
    let plugins_dir = config.plugins_dir.as_deref();
    let context = context::Context {
        path: &path,
        name: name.as_str(),
        env,
        demo: true,
        plugins_dir,
        with_components: false,
        of_a_file: true,
    };
    match tenant::tenant(&context, &mut report) {
        Some(tenant) => finished(tenant, report),
        None => Err(Mistakes(report.mistakes)),
    }
}

fn finished<T>(value: T, report: Report) -> Result<T, Mistakes> {
    if report.mistakes.is_empty() { Ok(value) } else { Err(Mistakes(report.mistakes)) }
}

fn read_tenants(config: &Config, env: &dyn Environment, report: &mut Report) -> Vec<Tenant> {
    let dir = &config.tenants_dir;
    let place = |path: &Path| Place { source: path.display().to_string().into(), line: None, key: String::new() };
    let files = match tenant::files(dir) {
        Ok(files) => files,
        Err(error) => {
            report.mistake(
                place(dir),
                format!("cannot read the tenants' directory (--tenants, POSTERN_TENANTS; make it first): {error}"),
            );
            return Vec::new();
        }
    };
    if files.is_empty() {
        report.warn(&place(dir), "there is no tenant file (NAME.toml): only tenants of the admin API are served");
    }
    let mut tenants = Vec::new();
    for path in &files {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if let Err(error) = TenantId::parse(name) {
            report.mistake(place(path), format!("the file's name says the tenant's: {error}"));
            continue;
        }
        let (demo, plugins_dir) = (config.demo, config.plugins_dir.as_deref());
        let context = context::Context { path, name, env, demo, plugins_dir, with_components: true, of_a_file: true };
        let Some(tenant) = tenant::tenant(&context, report) else { continue };
        if let Some((host, other)) = shared_host(&tenant, &tenants) {
            let at = Place { key: "hosts".into(), ..place(path) };
            report.mistake(at, format!("{host:?} is also a host of the tenant {other}"));
        }
        tenants.push(tenant);
    }
    tenants
}

/// A host that another tenant has, too.
fn shared_host<'a>(tenant: &'a Tenant, others: &'a [Tenant]) -> Option<(&'a str, &'a TenantId)> {
    tenant.hosts.iter().find_map(|host| {
        let other = others.iter().find(|other| other.hosts.contains(host))?;
        Some((host.as_str(), &other.id))
    })
}

/// The three places that a setting of the gateway may be written in, the strongest first.
struct Layers<'a> {
    flags: &'a Flags,
    env: &'a dyn Environment,
    file: Option<Section<'a>>,
}

impl<'a> Layers<'a> {
    /// The value that counts. Empty names: it has no variable, no flag.
    fn get(&mut self, key: &'static str, variable: &str, flag: &str) -> Option<Given<'a>> {
        let in_file = self.file.as_mut().and_then(|file| file.get(key));
        let on_line = self.flags.get(flag).map(|value| Given::text("command line", format!("--{flag}"), value.clone()));
        let in_env = self.env.get(variable).filter(|value| !variable.is_empty() && !value.is_empty());
        on_line.or(in_env.map(|value| Given::text("environment", variable.into(), value))).or(in_file)
    }
}

/// The settings of the gateway itself, and where the default tenant is written; a mistake leaves
/// the default.
fn settings(flags: &Flags, env: &dyn Environment, report: &mut Report) -> (Config, Option<(Place, TenantId)>) {
    let path = flags.get("config").cloned().or(env.get("POSTERN_CONFIG").filter(|path| !path.is_empty()));
    let path = path.map(PathBuf::from);
    let text = path.as_deref().and_then(|path| read_text(path, report)).unwrap_or_default();
    let source = path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let document = Document::parse(&source, &text, report);
    let mut layers = Layers { flags, env, file: document.as_ref().map(Document::root) };
    // Paths in the file are relative to the file; others to where the process was started.
    let base = path.as_deref().and_then(Path::parent);

    let default_tenant =
        layers.get("default_tenant", "", "").and_then(|given| Some((given.at.clone(), tenant_name(&given, report)?)));

    let data_dir =
        path_setting(&mut layers, ["data_dir", "POSTERN_DATA", "data"], base, report).unwrap_or("data".into());
    let of_plugins = layers.file.as_mut().and_then(|file| file.section("plugins", report));

    let of_admin = layers.file.as_mut().and_then(|file| file.section("admin", report));

    let config = Config {
        listen: listen(&mut layers, report),
        plugins: plugins::plugins(of_plugins, base, &data_dir, report),
        admin: admin::admin(of_admin, report),
        data_dir,
        tenants_dir: path_setting(&mut layers, ["tenants_dir", "POSTERN_TENANTS", "tenants"], base, report)
            .unwrap_or("tenants".into()),
        plugins_dir: path_setting(&mut layers, ["plugins_dir", "", ""], base, report),
        redis_url: layers
            .get("redis_url", "REDIS_URL", "redis-url")
            .and_then(|given| redis_url(given.secret(), report)),
        redis_ca_file: path_setting(&mut layers, ["redis_ca_file", "REDIS_CA_FILE", ""], base, report),
        origins: own_origins(&mut layers, report),
        metrics_tenants_max: layers
            .get("metrics_tenants_max", "", "")
            .and_then(|given| given.integer(0..=100_000, report))
            .unwrap_or(TENANTS_MAX_DEFAULT),
        metrics_token: layers
            .get("metrics_token", "POSTERN_METRICS_TOKEN", "")
            .and_then(|given| bearer_token(&given.secret(), report)),
        max_connections: layers
            .get("max_connections", "MAX_CONNECTIONS", "max-connections")
            .and_then(|given| given.integer(1..=10_000_000, report))
            .unwrap_or(10_000),
        unfinished_heads_per_address: layers
            .get("unfinished_heads_per_address", "", "")
            .and_then(|given| given.integer(1..=1_000_000, report))
            .unwrap_or(UNFINISHED_HEADS_DEFAULT),
        ping_interval: millis(&mut layers, "ping_interval_ms", 100..=600_000, 25_000, report),
        ping_timeout: millis(&mut layers, "ping_timeout_ms", 100..=600_000, 20_000, report),
        handshake_timeout: millis(&mut layers, "handshake_timeout_ms", 100..=120_000, 10_000, report),
        default_tenant: default_tenant.as_ref().map(|(_, name)| name.clone()),
        durability: layers.get("durability", "", "").and_then(|given| durability(&given, report)).unwrap_or_default(),
        presence_view: layers.get("presence_view", "", "").and_then(|given| given.boolean(report)).unwrap_or(true),
        node_lease: millis(&mut layers, "node_lease_ms", 1_000..=120_000, 12_000, report),
        shutdown_grace: millis(&mut layers, "shutdown_grace_ms", 0..=600_000, 10_000, report),
        decision_threads: layers
            .get("decision_threads", "", "")
            .and_then(|given| NonZeroUsize::new(given.integer(1..=1_024, report)?))
            .or(std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN),
        log: layers
            .get("log", "POSTERN_LOG", "log")
            .and_then(|given| log_filter(&given, report))
            .unwrap_or("info".into()),
        admin_token: layers
            .get("admin_token", "POSTERN_ADMIN_TOKEN", "")
            .and_then(|given| bearer_token(&given.secret(), report)),
        demo: layers.get("demo", "POSTERN_DEMO", "demo").and_then(|given| given.boolean(report)).unwrap_or(false),
        tenants: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(file) = layers.file {
        file.finish(report);
    }
    (config, default_tenant)
}

fn listen(layers: &mut Layers<'_>, report: &mut Report) -> SocketAddr {
    let host = layers.get("host", "HOST", "host").and_then(|given| {
        let text = given.string(report)?;
        let host = if text == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { text.parse::<IpAddr>().ok() };
        if host.is_none() {
            given.wrong("must be an IP address to listen on, such as 0.0.0.0 or ::1", report);
        }
        host
    });
    let port = layers.get("port", "PORT", "port").and_then(|given| given.integer(0..=65_535, report));
    SocketAddr::new(host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port.unwrap_or(3_000))
}

/// `names`: the key, the variable and the flag.
fn path_setting(
    layers: &mut Layers<'_>,
    [key, variable, flag]: [&'static str; 3],
    base: Option<&Path>,
    report: &mut Report,
) -> Option<PathBuf> {
    let given = layers.get(key, variable, flag)?;
    given.path(base.filter(|_| given.at.line.is_some()), report)
}

fn millis(
    layers: &mut Layers<'_>,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
    default_ms: u64,
    report: &mut Report,
) -> Duration {
    let given = layers.get(key, "", "").and_then(|given| given.millis(range, report));
    given.unwrap_or(Duration::from_millis(default_ms))
}

fn redis_url(given: Given<'_>, report: &mut Report) -> Option<RedisUrl> {
    let url = given.string(report)?;
    if let Some(why) = mistake_in_redis_url(&url) {
        report.mistake(given.at.clone(), format!("must be a URL of Redis (not shown): {why}"));
        return None;
    }
    Some(RedisUrl(url))
}

fn durability(given: &Given<'_>, report: &mut Report) -> Option<Durability> {
    match given.string(report)?.as_str() {
        "immediate" => Some(Durability::Immediate),
        "relaxed" => Some(Durability::Relaxed),
        _ => {
            given.wrong("must be \"immediate\" or \"relaxed\"", report);
            None
        }
    }
}

fn bearer_token(given: &Given<'_>, report: &mut Report) -> Option<Secret> {
    let token = given.string(report)?;
    if token.len() < BEARER_TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let must = format!(
            "must be {BEARER_TOKEN_BYTES_MIN} or more printable ASCII characters without spaces; this one has {} bytes \
             (for example from `openssl rand -hex 32`)",
            token.len()
        );
        report.mistake(given.at.clone(), must);
        return None;
    }
    Some(Secret(token.into_bytes()))
}

fn tenant_name(given: &Given<'_>, report: &mut Report) -> Option<TenantId> {
    let parsed = TenantId::parse(&given.string(report)?);
    parsed.map_err(|error| report.mistake(given.at.clone(), error.to_string())).ok()
}

fn log_filter(given: &Given<'_>, report: &mut Report) -> Option<String> {
    let filter = given.string(report)?;
    if tracing_subscriber::EnvFilter::try_new(&filter).is_err() {
        given.wrong("must be a log filter such as \"info\" or \"info,postern=debug\"", report);
        return None;
    }
    Some(filter)
}

fn own_origins(layers: &mut Layers<'_>, report: &mut Report) -> Vec<String> {
    let given = layers.get("origins", "CORS_ORIGIN", "cors-origin");
    let Some(given) = given else { return Vec::new() };
    if given.at.line.is_some() {
        return origins(Some(given), report);
    }
    // The environment and the command line have no arrays.
    let list = given.string(report).unwrap_or_default();
    let origins: Vec<String> = list.split(',').map(str::trim).filter(|one| !one.is_empty()).map(Into::into).collect();
    origins.into_iter().filter(|one| check_origin(one, &given, report)).collect()
}

/// An array of origins; those that are none are reported.
fn origins(given: Option<Given<'_>>, report: &mut Report) -> Vec<String> {
    let items = given.map(|given| given.items(report)).unwrap_or_default();
    let mut origins = Vec::new();
    for item in items {
        if let Some(origin) = item.string(report).filter(|origin| check_origin(origin, &item, report)) {
            origins.push(origin);
        }
    }
    origins
}

/// Is it `*` or what browsers send as `Origin`: scheme, host and perhaps a port?
fn check_origin(origin: &str, given: &Given<'_>, report: &mut Report) -> bool {
    if origin == "*" {
        report.warn(&given.at, "every web page may connect and call the HTTP side (`*`)");
        return true;
    }
    let fits = origin.split_once("://").is_some_and(|(scheme, host)| {
        let in_scheme = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        let in_host = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@,*\\".contains(&byte);
        !scheme.is_empty() && scheme.bytes().all(in_scheme) && !host.is_empty() && host.bytes().all(in_host)
    });
    if !fits {
        let must = "must be `*` or an origin as browsers send it, such as \"https://app.example.com\" without a path";
        given.wrong(must, report);
    }
    fits
}
