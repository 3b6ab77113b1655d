//! The plugin host: tenants' WebAssembly components, each call in a sandbox of its own.
//!
//! [`Host`] is the machine: one wasmtime engine, a pool of instances, threads of its own and the
//! `gate` that shares them out by tenant. [`Host::load`] checks and compiles a component into a
//! [`Plugin`]; the plugin's methods are the contract's exports. What an input reads and does
//! gathers in a [`Transaction`], which becomes one commit.
//!
//! wasmtime is known only in here; the contract's generated types only in `bindings`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::Linker;

mod admission;
mod bindings;
pub mod contract;
mod engine;
mod failure;
mod gate;
mod host;
mod instance;
mod load;
mod metering;
mod transaction;

use admission::{Admission, stopping};
use bindings::{Answer, Input};
use gate::{Gate, Meter};
use host::Call;
use instance::{Limiter, Prepared};
use metering::Metering;
use transaction::Work;

pub use failure::{CallError, Failure, FailureKind, Hook, MESSAGE_BYTES_MAX, REFUSAL_CODE_BYTES_MAX};
use load::{Cache, code_hash};
pub use load::{
    Checked, CodeCache, CompileOrders, Compiler, LoadError, Signature, SignatureError, Surface, UploadPolicy,
    compile_worker, inspect, own_program, public_key, sign, verify,
};
pub use transaction::{Invocation, PRESENCE_CONNECTIONS_MAX, PRESENCE_ROOMS_MAX, Parts, Transaction};

use crate::client::Client;
use crate::commit::{Grant, Millis};
use crate::engine::DueTimer;
use crate::event::{Event, Payload};
use crate::room::{ROOT_NAMESPACE, Room};
use crate::tenant::{CallLimits, Pattern, Role, TenantId};

/// The most handlers that a router may name for one event.
pub const ROUTE_HANDLERS_MAX: usize = 64;

/// The longest that an authorizer's answer is kept, in milliseconds: one hour.
pub const CACHE_FOR_MS_MAX: Millis = 3_600_000;

/// Compiled components that are read and made ready at the same time.
const LOADS: usize = 4;

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
    /// Components that are compiled at the same time. Default: 1.
    pub compilations: usize,
    /// Where they are compiled. Default: in this process.
    pub compiler: Compiler,
    /// How long a compiler process may take for a component, in milliseconds, by the clock and in computing. Default:
    /// 60,000.
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
            compile_ms_max: 60_000,
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
    /// Who compiles, and who looks at an upload.
    compilations: Arc<Semaphore>,
    /// Who reads and prepares code that is compiled.
    loads: Arc<Semaphore>,
    /// What identifies the engine that code must be for.
    code_hash: u64,
    /// `None` also when it cannot be opened.
    cache: Option<Cache>,
    /// By the component's digest, as long as a plugin uses it.
    prepared: Mutex<HashMap<String, Weak<Prepared>>>,
    tenants: Mutex<HashMap<TenantId, Weak<Admission>>>,
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
            compilations: Arc::new(Semaphore::new(settings.compilations.max(1))),
            loads: Arc::new(Semaphore::new(LOADS)),
            code_hash,
            cache,
            prepared: Mutex::new(HashMap::new()),
            tenants: Mutex::new(HashMap::new()),
            settings,
        }))
    }

    /// Ends everything that runs, without waiting for it. Calls from then on are refused.
    pub fn shutdown(&self) {
        self.pool.close();
        self.compilations.close();
        self.loads.close();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    /// The line of a tenant's calls: one for all its plugins, as long as the limit stays.
    fn admission(&self, tenant: &TenantId, limits: &CallLimits) -> Arc<Admission> {
        let mut tenants = self.tenants.lock();
        tenants.retain(|_, admission| admission.strong_count() > 0);
        let present = tenants.get(tenant).and_then(Weak::upgrade);
        match present {
            Some(admission) if admission.concurrent_calls == limits.concurrent_calls => admission,
            _ => {
                let admission = Arc::new(Admission::new(limits.concurrent_calls));
                tenants.insert(tenant.clone(), Arc::downgrade(&admission));
                admission
            }
        }
    }
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
    prepared: Arc<Prepared>,
    admission: Arc<Admission>,
    metering: Metering,
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

impl Plugin {
    /// May this client connect? Answers the rooms that it joins at once: those of its namespace that are
    /// not the gateway's own. Others that the component names are left out.
    pub async fn connect(&self, tx: &mut Transaction, who: &Client) -> Result<Vec<(Room, Grant)>, CallError> {
        let answer = self.call(tx, Hook::Connect, &who.namespace, Input::Connect { who: who.clone() }).await?;
        self.checked(tx, Hook::Connect, |limits| self.memberships(answer, who, limits))
    }

    /// May this client join this room?
    pub async fn join(
        &self,
        tx: &mut Transaction,
        who: &Client,
        room: &Room,
        params: Option<&Payload>,
    ) -> Result<Admittance, CallError> {
        let input = Input::Join { who: who.clone(), room: room.clone(), params: params.cloned() };
        match self.call(tx, Hook::Join, &who.namespace, input).await? {
            Answer::Admission(grant, cache_for) => {
                Ok(Admittance { grant, cache_for_ms: cache_for.min(CACHE_FOR_MS_MAX) })
            }
            _ => Err(self.out_of_step(Hook::Join)),
        }
    }

    /// Which plugins see this event, in order, by name?
    pub async fn route(
        &self,
        tx: &mut Transaction,
        who: Option<&Client>,
        namespace: &Arc<str>,
        event: &Arc<str>,
    ) -> Result<Vec<String>, CallError> {
        let input = Input::Route { who: who.cloned(), namespace: namespace.clone(), event: event.clone() };
        let answer = self.call(tx, Hook::Route, namespace, input).await?;
        self.checked(tx, Hook::Route, |_| match answer {
            Answer::Handlers(names) if names.len() <= ROUTE_HANDLERS_MAX => Ok(names),
            Answer::Handlers(names) => {
                Err(format!("named {} handlers for one event; at most {ROUTE_HANDLERS_MAX}", names.len()))
            }
            _ => Err("answered something else".into()),
        })
    }

    /// Handles an event.
    pub async fn handle(&self, tx: &mut Transaction, event: &Event) -> Result<(), CallError> {
        self.call(tx, Hook::Handle, &event.namespace, Input::Handle { event: event.clone() }).await.map(drop)
    }

    /// Handles a timer that is due.
    pub async fn fire(&self, tx: &mut Transaction, timer: &DueTimer) -> Result<(), CallError> {
        self.call(tx, Hook::Fire, &ROOT_NAMESPACE.into(), Input::Fire { timer: timer.clone() }).await.map(drop)
    }

    /// A client has connected; `handshake` is one JSON object.
    pub async fn connected(&self, tx: &mut Transaction, who: &Client, handshake: &str) -> Result<(), CallError> {
        let input = Input::Connected { who: who.clone(), handshake: handshake.into() };
        self.call(tx, Hook::Connected, &who.namespace, input).await.map(drop)
    }

    /// A client's session has ended.
    pub async fn disconnected(&self, tx: &mut Transaction, who: &Client, reason: &str) -> Result<(), CallError> {
        let input = Input::Disconnected { who: who.clone(), reason: reason.into() };
        self.call(tx, Hook::Disconnected, &who.namespace, input).await.map(drop)
    }

    /// Takes an authorizer's rooms at its word as far as it may speak.
    fn memberships(&self, answer: Answer, who: &Client, limits: &CallLimits) -> Result<Vec<(Room, Grant)>, String> {
        let Answer::Memberships(all) = answer else {
            return Err("answered something else".into());
        };
        let limit = limits.memberships;
        if all.len() > limit {
            return Err(format!("named {} rooms to join at once: call_limits.memberships = {limit}", all.len()));
        }
        let mut rooms = Vec::with_capacity(all.len());
        for (name, grant) in all {
            let room = Room::parse(&name).map_err(|error| format!("named a room that is none: {error}"))?;
            if room.is_reserved() {
                tracing::warn!(tenant = %self.tenant, plugin = %self.name, "the authorizer named a room that only \
                    the gateway joins; left out");
            } else if room.namespace() == &*who.namespace {
                rooms.push((room, grant));
            }
        }
        Ok(rooms)
    }

    fn failure(&self, hook: Hook, kind: FailureKind, message: String) -> CallError {
        CallError::Failed(Failure { plugin: self.name.clone(), hook, kind, message })
    }

    fn out_of_step(&self, hook: Hook) -> CallError {
        self.failure(hook, FailureKind::Internal, "the answer is not one to this question".into())
    }

    /// Checks an answer; a bad one undoes the call like any other failure.
    fn checked<T>(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        check: impl FnOnce(&CallLimits) -> Result<T, String>,
    ) -> Result<T, CallError> {
        let Some(limits) = tx.peek().map(|work| work.limits.clone()) else {
            return Err(self.out_of_step(hook));
        };
        check(&limits).map_err(|message| {
            self.metering.call(hook, FailureKind::BadAnswer.word(), Duration::ZERO);
            self.failure(hook, FailureKind::BadAnswer, message)
        })
    }

    fn exports(&self, hook: Hook) -> bool {
        match hook {
            Hook::Describe => true,
            Hook::Connect | Hook::Join => self.exports.authorization,
            Hook::Route => self.exports.routing,
            Hook::Handle => self.exports.events,
            Hook::Fire => self.exports.timer_events,
            Hook::Connected | Hook::Disconnected => self.exports.connection_events,
        }
    }

    /// One call, from the line to the end. If the caller goes away, the call ends at its next yield
    /// and its transaction comes to nothing.
    async fn call(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        namespace: &Arc<str>,
        input: Input,
    ) -> Result<Answer, CallError> {
        if !self.exports(hook) {
            return Err(self.failure(hook, FailureKind::NotExported, "the component does not export this".into()));
        }
        let Some(limits) = tx.peek().map(|work| work.limits.clone()) else {
            return Err(self.failure(hook, FailureKind::Internal, "an earlier call was abandoned".into()));
        };
        let begun = Instant::now();
        let result = match self.admission.admit(&self.host.pool, &limits, hook == Hook::Describe).await {
            Err(overloaded) => Err(overloaded),
            Ok(admitted) => {
                let Some(work) = tx.take() else {
                    return Err(self.out_of_step(hook));
                };
                let wall = Duration::from_millis(limits.wall_ms.into()).saturating_sub(begun.elapsed());
                let call = self.prepare(work, hook, namespace, &limits);
                let running = instance::run(self.prepared.clone(), self.host.gate.clone(), call, input, wall);
                self.run(tx, hook, async move {
                    let ended = running.await;
                    drop(admitted);
                    ended
                })
                .await
            }
        };
        self.metering.call(hook, result.as_ref().map_or_else(CallError::word, |_| "ok"), begun.elapsed());
        result
    }

    fn prepare(&self, work: Box<Work>, hook: Hook, namespace: &Arc<str>, limits: &CallLimits) -> Call {
        Call {
            work,
            plugin: self.name.clone(),
            settings: self.settings.clone(),
            hook,
            namespace: namespace.clone(),
            meter: Meter::new(),
            limiter: Limiter::new(limits.memory_bytes),
            host_calls: 0,
            log_lines: 0,
        }
    }

    /// Runs a call on the decision runtime and takes the transaction back.
    async fn run(
        &self,
        tx: &mut Transaction,
        hook: Hook,
        running: impl Future<Output = (Call, Result<Answer, CallError>)> + Send + 'static,
    ) -> Result<Answer, CallError> {
        let (call, result) = match AbortOnDropHandle::new(self.host.handle.spawn(running)).await {
            Ok(ended) => ended,
            Err(error) if error.is_cancelled() => return Err(stopping()),
            Err(_) => {
                return Err(self.failure(hook, FailureKind::Internal, "the gateway panicked while serving it".into()));
            }
        };
        self.metering.used(call.meter.spent(), call.limiter.memory_bytes());
        let mut work = call.work;
        if result.is_err() {
            work.discard();
        } else {
            work.settle();
        }
        tx.put_back(work);
        result
    }
}
