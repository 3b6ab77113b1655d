//! The plugin host: tenants' WebAssembly components, each call in a sandbox of its own.
//!
//! [`Host`] is the machine: one wasmtime engine, a pool of instances, threads of its own and the
//! `gate` that shares them out by tenant. [`Host::load`] checks and compiles a component into a
//! [`Plugin`]; the plugin's methods are the contract's exports. What an input reads and does
//! gathers in a [`Transaction`], which becomes one commit.
//!
//! wasmtime is known only in here; the contract's generated types only in `bindings`.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, broadcast};
use wasmtime::component::Linker;

mod admission;
mod bindings;
mod breaker;
mod budget;
mod calls;
pub mod contract;
mod engine;
mod failure;
mod gate;
mod host;
mod instance;
mod journal;
mod load;
mod metering;
mod own_limits;
mod routes;
mod share;
mod transaction;
mod usage;
mod warm;

use admission::Admission;
use breaker::Breakers;
use gate::Gate;
use host::Call;
use instance::Prepared;
use metering::Metering;
use own_limits::OwnLimits;
use share::Share;
use usage::Account;
use warm::{IdlePlaces, WarmPool};

pub use breaker::{BreakerSnapshot, BreakerState};
pub use failure::{CallError, Failure, FailureKind, Hook, MESSAGE_BYTES_MAX, REFUSAL_CODE_BYTES_MAX};
pub use journal::{
    JOURNAL_BYTES_MAX, JOURNAL_ENTRIES_MAX, Journal, JournalEntry, JournalKind, JournalNews, JournalTail, Level,
};
use load::{Cache, code_hash};
pub use load::{
    Checked, CodeCache, CompileOrders, Compiler, LoadError, Signature, SignatureError, Surface, UploadPolicy,
    compile_worker, digest, inspect, own_program, public_key, sign, verify,
};
pub use transaction::{Author, Invocation, PRESENCE_CONNECTIONS_MAX, PRESENCE_ROOMS_MAX, Parts, Transaction};
pub use usage::PluginUsage;

use crate::commit::{Grant, Millis};
use crate::tenant::{Pattern, Role, TenantId};

/// The most handlers that a router may name for one event.
pub const ROUTE_HANDLERS_MAX: usize = 64;

/// Changes of breakers that are kept for whoever follows them; a slow one misses the oldest and looks at
/// [`Plugin::breakers`] instead.
const BREAKER_CHANGES_KEPT: usize = 256;

/// The longest that an authorizer's answer is kept, in milliseconds: one hour.
pub const CACHE_FOR_MS_MAX: Millis = 3_600_000;

/// Compiled components that are read and made ready at the same time.
const LOADS: usize = 4;

/// Uploads that are compiled at the same time.
const TRIALS: usize = 1;

/// What the plugin host may use of its machine.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Threads of the decision runtime, and so the components that compute at the same time.
    /// Default: the machine's cores.
    pub threads: usize,
    /// Component instances that exist at the same time, over all tenants. Each reserves about 8 GiB of
    /// addresses (not of memory). Default: 512.
    pub instances: u32,
    /// The most linear memory that any tenant's `call_limits.memory_bytes` can give, in bytes. Default:
    /// 256 MiB.
    pub memory_bytes_max: usize,
    /// The largest component, in bytes. Default: 64 MiB.
    pub component_bytes_max: usize,
    /// Components that are compiled at the same time to be served; one that is uploaded is compiled besides. Default: 1.
    pub compilations: usize,
    /// Where they are compiled. Default: in this process.
    pub compiler: Compiler,
    /// How long a compiler process may take for a component, in milliseconds by the clock; its two threads together may compute
    /// twice as long. Default: 120,000.
    pub compile_ms_max: u64,
    /// The addresses that a compiler process may use, in bytes, its own program among them. Default: 2 GiB.
    pub compile_memory_bytes_max: usize,
    /// Where compiled code is kept between two starts. Default: nowhere.
    pub code_cache: Option<CodeCache>,
}

impl Default for HostSettings {
    fn default() -> Self {
        HostSettings {
            threads: std::thread::available_parallelism().map_or(2, NonZeroUsize::get),
            instances: 512,
            memory_bytes_max: 256 << 20,
            component_bytes_max: 64 << 20,
            compilations: 1,
            compiler: Compiler::InProcess,
            compile_ms_max: 120_000,
            compile_memory_bytes_max: 2 << 30,
            code_cache: None,
        }
    }
}

/// Why the host does not start. It never falls back to something slower or less safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The pool cannot be had as large as asked for.
    #[error("cannot reserve a pool of {instances} plugin instances (plugins.instances): {reason}")]
    Pool {
        /// What was asked for.
        instances: u32,
        /// What stood in the way.
        reason: String,
    },
    /// The decision runtime's threads could not be started.
    #[error("cannot start the plugin threads: {0}")]
    Threads(String),
    /// The contract and the gateway do not fit together.
    #[error("cannot link the contract: {0}")]
    Contract(String),
}

/// Runs components. Lives as long as any [`Plugin`] of it.
pub struct Host {
    settings: HostSettings,
    engine: wasmtime::Engine,
    linker: Linker<Call>,
    handle: Handle,
    /// Gone after [`Host::shutdown`].
    runtime: Mutex<Option<Runtime>>,
    gate: Arc<Gate>,
    pool: Arc<Semaphore>,
    /// Places for instances that idle.
    idle: Arc<IdlePlaces>,
    /// Who compiles, and who looks at an upload.
    compilations: Arc<Semaphore>,
    /// A place of its own for uploads: what takes long to compile must not hold up what was found good before.
    trials: Arc<Semaphore>,
    /// Who reads and prepares code that is compiled.
    loads: Arc<Semaphore>,
    /// What identifies the engine that code must be for.
    code_hash: u64,
    /// `None` also when it cannot be opened.
    cache: Option<Cache>,
    /// By the component's digest, as long as a plugin uses it.
    prepared: Mutex<HashMap<String, Weak<Prepared>>>,
    tenants: Mutex<Tenants>,
    breaker_changes: broadcast::Sender<BreakerChange>,
}

impl Host {
    /// Reserves the pool and starts the threads. Must not be dropped before the last plugin call has
    /// returned; calls that run when it is shut down end.
    pub fn new(settings: HostSettings) -> Result<Arc<Host>, HostError> {
        let engine = engine::start(&settings)?;
        let mut linker = Linker::new(&engine);
        bindings::link(&mut linker).map_err(|error| HostError::Contract(format!("{error:#}")))?;
        let threads = settings.threads.max(1);
        // Calls come from the sockets' runtime: look for them, and at the timers, between any two turns.
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("plugins")
            .global_queue_interval(1)
            .event_interval(8)
            .on_thread_start(wasmtime::Engine::tls_eager_initialize)
            .enable_all()
            .build()
            .map_err(|error| HostError::Threads(error.to_string()))?;
        let code_hash = code_hash(&engine);
        let cache = settings.code_cache.as_ref().and_then(|cache| open_cache(cache, code_hash));
        Ok(Arc::new(Host {
            engine,
            linker,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            gate: Gate::new(threads),
            pool: Arc::new(Semaphore::new(settings.instances as usize)),
            idle: Arc::new(IdlePlaces::new(settings.instances as usize)),
            compilations: Arc::new(Semaphore::new(settings.compilations.max(1))),
            trials: Arc::new(Semaphore::new(TRIALS)),
            loads: Arc::new(Semaphore::new(LOADS)),
            code_hash,
            cache,
            prepared: Mutex::new(HashMap::new()),
            tenants: Mutex::default(),
            breaker_changes: broadcast::Sender::new(BREAKER_CHANGES_KEPT),
            settings,
        }))
    }

    /// Ends everything that runs, without waiting for it. Calls from then on are refused.
    pub fn shutdown(&self) {
        self.pool.close();
        self.compilations.close();
        self.trials.close();
        self.loads.close();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    /// What the plugins of a tenant share: the same as long as one of them lives.
    fn share(&self, tenant: &TenantId) -> Arc<Share> {
        let mut tenants = self.tenants.lock();
        if let Some(share) = tenants.shares.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        tenants.shares.retain(|_, share| share.strong_count() > 0);
        let share = Share::new(tenants.journal(tenant), self.idle.of_tenant());
        tenants.shares.insert(tenant.clone(), Arc::downgrade(&share));
        share
    }

    /// The most bytes of a component.
    pub fn component_bytes_max(&self) -> usize {
        self.settings.component_bytes_max
    }

    /// The latest log lines and failures of a tenant's plugins on this node. It is kept while the tenant has plugins or
    /// somebody holds it.
    pub fn journal(&self, tenant: &TenantId) -> Arc<Journal> {
        self.tenants.lock().journal(tenant)
    }

    /// What plugins used since the last time this was asked.
    pub fn take_usage(&self) -> Vec<PluginUsage> {
        self.tenants.lock().take_usage()
    }

    /// The account of a plugin, over all its versions.
    fn account(&self, tenant: &TenantId, plugin: &Arc<str>) -> Arc<Account> {
        self.tenants.lock().accounts.entry((tenant.clone(), plugin.clone())).or_default().clone()
    }

    /// Tells when a breaker of any plugin opens, tries a call or closes, from now on.
    pub fn breaker_changes(&self) -> broadcast::Receiver<BreakerChange> {
        self.breaker_changes.subscribe()
    }
}

/// What tenants have here, as long as somebody uses it.
#[derive(Default)]
struct Tenants {
    shares: HashMap<TenantId, Weak<Share>>,
    journals: HashMap<TenantId, Weak<Journal>>,
    /// Until they are empty and nobody fills them any more.
    accounts: HashMap<(TenantId, Arc<str>), Arc<Account>>,
}

impl Tenants {
    fn take_usage(&mut self) -> Vec<PluginUsage> {
        let mut taken = Vec::new();
        self.accounts.retain(|(tenant, plugin), account| {
            // Asked first: whoever fills it until then is seen.
            let unused = Arc::strong_count(account) == 1;
            let used = account.take();
            if !used.is_empty() {
                taken.push(PluginUsage { tenant: tenant.clone(), plugin: plugin.clone(), used });
            }
            !unused
        });
        taken
    }

    fn journal(&mut self, tenant: &TenantId) -> Arc<Journal> {
        if let Some(journal) = self.journals.get(tenant).and_then(Weak::upgrade) {
            return journal;
        }
        self.journals.retain(|_, journal| journal.strong_count() > 0);
        let journal = Journal::new();
        self.journals.insert(tenant.clone(), Arc::downgrade(&journal));
        journal
    }
}

/// A breaker of a plugin has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerChange {
    /// Whose plugin.
    pub tenant: TenantId,
    /// Its name within the tenant.
    pub plugin: Arc<str>,
    /// The SHA-256 of its component, in hexadecimal: which version it is.
    pub digest: Arc<str>,
    /// Which hook's breaker.
    pub hook: Hook,
    /// How it stands now.
    pub state: BreakerState,
    /// Calls in the window in which it opened.
    pub calls: u32,
    /// Those of them that failed.
    pub failures: u32,
}

/// Without its cache a gateway starts more slowly, and works as well.
fn open_cache(settings: &CodeCache, code_hash: u64) -> Option<Cache> {
    let engine = format!("{}-{code_hash:016x}", engine::CODE_VERSION);
    let opened = Cache::open(settings, &engine);
    opened
        .inspect_err(|error| {
            let dir = settings.dir.display();
            tracing::warn!(%dir, %error, "compiled code cannot be kept (plugins.code_cache_dir): every start compiles");
        })
        .ok()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Which hooks a component has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exports {
    /// `connect` and `join`.
    pub authorization: bool,
    /// `route`.
    pub routing: bool,
    /// `handle`.
    pub events: bool,
    /// `fire`.
    pub timer_events: bool,
    /// `connected` and `disconnected`.
    pub connection_events: bool,
}

/// What a component says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What it calls itself; not its name in the tenant.
    pub name: String,
    /// Its version, in its own words.
    pub version: String,
    /// The events that it wants.
    pub events: Vec<Pattern>,
    /// Do a router's answers depend on namespace and event name alone?
    pub routes_by_name: bool,
}

/// An authorizer's leave to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admittance {
    /// What the member may do.
    pub grant: Grant,
    /// How long the answer may be used again for the same subject and room, in milliseconds; 0: not at all.
    pub cache_for_ms: Millis,
}

/// A loaded component of one tenant.
pub struct Plugin {
    /// Its name within the tenant.
    pub name: Arc<str>,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is used for.
    pub role: Role,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: Arc<str>,
    /// Which hooks it has.
    pub exports: Exports,
    /// What it says about itself.
    pub description: Description,
    settings: Arc<BTreeMap<String, String>>,
    own_limits: OwnLimits,
    prepared: Arc<Prepared>,
    admission: Arc<Admission>,
    share: Arc<Share>,
    breakers: Breakers,
    routes: routes::Routes,
    /// `None`: each call has an instance of its own.
    warm: Option<Arc<WarmPool>>,
    metering: Metering,
    account: Arc<Account>,
    host: Arc<Host>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("tenant", &self.tenant)
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}
