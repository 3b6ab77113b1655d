//! A gateway from settings to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;

use crate::catalog::{CatalogFollower, FIRST_LOOK_MAX};
use crate::config::{Config, Durability};
use crate::connection::server;
use crate::decision::pipeline::Pipeline;
use crate::decision::plugin::{Host, HostSettings};
use crate::decision::token::Verifier;
use crate::drain::Tasks;
use crate::engine::Engine;
use crate::engine::embedded::{self, EmbeddedEngine};
use crate::engine::redis;
use crate::gateway::{Gateway, LiveTenant};
use crate::http::{Http, welcome};
use crate::tenant::Tenant;
use crate::{key_sets, presence, tail, telemetry, timers, usage};

/// How long the last tasks may take after the clients are gone.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long telling the other nodes of the end may take.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often metrics are tidied.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address} (settings host and port): {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// No engine.
    #[error("{0}")]
    Engine(String),
    /// No plugin host.
    #[error("{0}")]
    Host(String),
    /// Tenants that cannot be served; all that is wrong, a line each.
    #[error("{}", .0.join("\n"))]
    Tenants(Vec<String>),
}

/// Opens the engine that the settings name.
pub async fn open_engine(config: &Config) -> Result<Arc<dyn Engine>, StartError> {
    match &config.redis_url {
        Some(url) => {
            let options = redis::Options {
                beat: config.node_lease / 4,
                lease: config.node_lease,
                presence_view: config.presence_view,
                default_tenant: config.default_tenant.clone(),
                ca_file: config.redis_ca_file.clone(),
                ..redis::Options::default()
            };
            let engine =
                redis::connect(url.as_str(), options).await.map_err(|error| StartError::Engine(error.to_string()))?;
            let servers = engine.description();
            tracing::info!(servers, "Redis mode: state and events are shared with all nodes on this Redis");
            Ok(engine)
        }
        None => {
            let path = config.data_dir.join("postern.redb");
            let durability = match config.durability {
                Durability::Immediate => embedded::Durability::Immediate,
                Durability::Relaxed => embedded::Durability::Relaxed,
            };
            std::fs::create_dir_all(&config.data_dir).map_err(|error| {
                StartError::Engine(format!("cannot make {} (setting data_dir): {error}", config.data_dir.display()))
            })?;
            let options = embedded::Options { durability, ..embedded::Options::default() };
            let engine = EmbeddedEngine::open(&path, options).map_err(|error| StartError::Engine(error.to_string()))?;
            tracing::info!(data = %path.display(), "single-instance mode: set REDIS_URL to run several nodes");
            Ok(engine)
        }
    }
}

/// Binds the listener that the settings name.
pub async fn bind(config: &Config) -> Result<TcpListener, StartError> {
    TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen { address: config.listen, error })
}

/// Serves until `shutdown`, then lets the clients go.
///
/// # Errors
/// When it cannot start; nothing was accepted then.
pub async fn run(
    config: Config,
    listener: TcpListener,
    engine: Arc<dyn Engine>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    // Before anything is counted: handles that are taken earlier count nothing, and are kept.
    telemetry::metrics();
    telemetry::labels::allow(config.metrics_tenants_max);
    let tasks = Tasks::new();
    let settings = HostSettings { threads: config.decision_threads.get(), ..config.plugins.clone() };
    let host = Host::new(settings).map_err(|error| StartError::Host(error.to_string()))?;
    let gateway = Arc::new(Gateway::new(config, engine, host, tasks.clone()));
    load_tenants(&gateway).await?;
    let catalog = CatalogFollower::start(gateway.clone(), FIRST_LOOK_MAX);
    let catalog = catalog.await.map_err(|error| StartError::Engine(format!("the catalog cannot be read: {error}")))?;
    for warning in &gateway.config.warnings {
        tracing::warn!("{warning}");
    }
    tasks.spawn(catalog.run());
    tasks.spawn(timers::run(gateway.clone()));
    tasks.spawn(key_sets::refresh::run(gateway.clone()));
    tasks.spawn(presence::run(gateway.clone()));
    tasks.spawn(tail::listening::run(gateway.clone()));
    tasks.spawn(usage::run(gateway.clone()));
    tasks.spawn(upkeep(gateway.clone()));
    let address =
        listener.local_addr().map_err(|error| StartError::Listen { address: gateway.config.listen, error })?;
    tasks.spawn(server::serve(
        listener,
        Arc::new(Http::new(gateway.clone())),
        tasks.clone(),
        gateway.config.unfinished_heads_per_address,
    ));
    gateway.ready.store(true, Ordering::Release);
    tracing::info!(%address, engine = gateway.engine.name(), tenants = gateway.tenants().len(), "accepting connections");
    if let Some(welcome) = gateway.config.demo.then(|| welcome(&gateway, address)).flatten() {
        println!("{welcome}");
    }
    shutdown.await;
    drain(&gateway).await;
    Ok(())
}

/// Phases of the end: not ready → clients told and moved away in paced steps → tasks ended.
async fn drain(gateway: &Gateway) {
    let clients = gateway.connections.taken();
    tracing::info!(clients, grace = ?gateway.config.shutdown_grace, "stopping: clients are told to come back elsewhere");
    gateway.ready.store(false, Ordering::Release);
    gateway.tasks.draining().cancel();
    let gone = async {
        while gateway.connections.taken() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(gateway.config.shutdown_grace, gone).await.is_err() {
        tracing::warn!(left = gateway.connections.taken(), "clients were cut off (setting shutdown_grace_ms)");
    }
    let clean = gateway.tasks.finish(FINISH_TIMEOUT).await;
    retire(gateway).await;
    gateway.host.shutdown();
    tracing::info!(clean, "stopped");
}

/// Whoever was moved away keeps its place until it is back elsewhere, or its grace is over.
async fn retire(gateway: &Gateway) {
    let grace_ms = |tenant: &LiveTenant| tenant.settings().presence_grace.as_millis().try_into().unwrap_or(u64::MAX);
    let graces: Vec<_> = gateway.tenants().iter().map(|tenant| (tenant.id.clone(), grace_ms(tenant))).collect();
    match tokio::time::timeout(RETIRE_TIMEOUT, gateway.engine.retire(&graces)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the others were not told that this node stops"),
        Err(_) => tracing::warn!("the others could not be told in time that this node stops"),
    }
}

async fn load_tenants(gateway: &Arc<Gateway>) -> Result<(), StartError> {
    let mut mistakes = Vec::new();
    for tenant in gateway.config.tenants.clone() {
        match live(gateway, tenant).await {
            Ok(tenant) => drop(gateway.serve_tenant(tenant)),
            Err(mut found) => mistakes.append(&mut found),
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(StartError::Tenants(mistakes)) }
}

/// A tenant with its keys and components loaded; otherwise all that is wrong with it.
async fn live(gateway: &Gateway, tenant: Tenant) -> Result<LiveTenant, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut pipeline =
        Pipeline { relay: tenant.relay.clone(), broadcast: tenant.broadcast.clone(), ..Pipeline::default() };
    for settings in &tenant.plugins {
        let bytes = match std::fs::read(&settings.component) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                mistakes.push(format!("tenant {}: component {}: {error}", tenant.id, settings.component.display()));
                continue;
            }
        };
        match gateway.host.load(&tenant.id, settings, &tenant.call_limits, bytes).await {
            Ok(plugin) => pipeline.add(settings.role, plugin, settings.events.clone()),
            Err(error) => mistakes.push(format!("tenant {}: {error}", tenant.id)),
        }
    }
    match Verifier::new(&tenant.id, &tenant.auth) {
        Ok(verifier) if mistakes.is_empty() => Ok(LiveTenant::new(tenant, verifier, pipeline, gateway)),
        Ok(_) => Err(mistakes),
        Err(error) => {
            mistakes.push(format!("tenant {}: {error}", tenant.id));
            Err(mistakes)
        }
    }
}

async fn upkeep(gateway: Arc<Gateway>) {
    loop {
        if let Some(recorder) = telemetry::metrics() {
            recorder.run_upkeep();
        }
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_INTERVAL) => {}
            () = gateway.tasks.stopping().cancelled() => return,
        }
    }
}
