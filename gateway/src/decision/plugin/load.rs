//! From bytes to a plugin: checked, compiled, tried.
//!
//! What a tenant uploads goes through `Host::check` once: its signature verified, looked at (`inspect`), validated and
//! compiled by a process of its own and tried. Every node then loads it from the same bytes with `Host::load`; code that was compiled
//! before comes from memory or from the disk.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::bindings::{Answer, Input, Links};
use super::breaker::Breakers;
use super::calls::OUT_OF_STEP;
use super::contract::PACKAGE;
use super::failure::{CallError, FailureKind, Hook};
use super::metering::Metering;
use super::own_limits::OwnLimits;
use super::routes::Routes;
use super::transaction::Transaction;
use super::warm::WarmPool;
use super::{Description, Exports, Host, Plugin};
use crate::room::ROOT_NAMESPACE;
use crate::tenant::{CallLimits, Instances, PluginSettings, Role, SignatureKey, TenantId};

mod cache;
mod compile;
mod description;
mod inspect;
mod signature;
mod worker;

pub(super) use cache::Cache;
pub use cache::CodeCache;
pub use compile::Compiler;
pub use inspect::{Surface, inspect};
pub use signature::{Signature, SignatureError, digest, public_key, sign, verify};
pub(super) use worker::code_hash;
pub use worker::{Orders as CompileOrders, own_program, serve as compile_worker};

/// Why a component is not loaded. The text says what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// Too many bytes.
    #[error("the component has {bytes} bytes: plugins.component_bytes_max = {limit}")]
    TooLarge {
        /// How many.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// Machine code.
    #[error("this is precompiled machine code, which is never accepted: upload the component it was made from")]
    Precompiled,
    /// A core module.
    #[error(
        "this is a core module, not a component: make one with `postern plugin build` (or `wasm-tools component new`)"
    )]
    CoreModule,
    /// Neither.
    #[error("this is not a WebAssembly component: {0}")]
    NotAComponent(String),
    /// Made of several components.
    #[error("this is composed of several components: upload each as a plugin of its own")]
    Composed,
    /// More of something than a component may have.
    #[error("it has {value} {what}; at most {limit}: {advice}")]
    Bound {
        /// What there is too much of.
        what: &'static str,
        /// How much of it.
        value: usize,
        /// How much there may be.
        limit: usize,
        /// What to do.
        advice: &'static str,
    },
    /// It is made of kinds of WebAssembly that are switched off.
    #[error(
        "it uses a feature of WebAssembly that is switched off here ({0}): no threads, no 64-bit or several memories,          no garbage collection, no exceptions, no relaxed SIMD, no async components"
    )]
    Feature(String),
    /// It was built for another version of the contract.
    #[error(
        "it is built for postern:plugin@{theirs}: this gateway speaks {spoken}; build it with the contract and the SDK          of {spoken}, or bring the gateway up to date"
    )]
    Version {
        /// The version that the component names.
        theirs: String,
        /// The part of the gateway's version that must be the same.
        spoken: &'static str,
    },
    /// It wants WASI.
    #[error(
        "it imports `{0}`: there is no WASI here, so no files, sockets, clock, randomness or environment; build Rust          for `wasm32-unknown-unknown`, switch WASI off in other languages (`postern plugin build` does both)"
    )]
    Wasi(String),
    /// It wants something that is not in the contract.
    #[error("it imports `{0}`, which is not in the contract ({PACKAGE}): `postern plugin inspect` shows what is")]
    Import(String),
    /// It offers something that is not in the contract.
    #[error("it exports `{0}`, which is not in the contract ({PACKAGE}): nobody would call it")]
    Export(String),
    /// Its interfaces have other types than the contract's.
    #[error("it does not keep the contract ({PACKAGE}): {0}")]
    Contract(String),
    /// Its signature is missing or does not hold.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// It does not compile.
    #[error("it does not compile: {0}")]
    Compile(String),
    /// Compiling it takes too long.
    #[error(
        "compiling it takes longer than {limit_ms} ms: plugins.compile_ms_max = {limit_ms}; look for very large \
         functions"
    )]
    CompileTime {
        /// How long it may take, in milliseconds.
        limit_ms: u64,
    },
    /// Compiling it takes too much memory.
    #[error(
        "compiling it takes more than {limit} bytes of memory: plugins.compile_memory_bytes_max = {limit}; look for \
         very large functions"
    )]
    CompileMemory {
        /// How much it may take, in bytes.
        limit: usize,
    },
    /// An instance of it does not fit into a place of the pool.
    #[error("it needs more than an instance may have: {0}")]
    Resources(String),
    /// It needs more than it may have.
    #[error("it starts with {needed} bytes of memory: call_limits.memory_bytes = {limit}")]
    Memory {
        /// What it starts with, in bytes.
        needed: u64,
        /// What it may have, in bytes.
        limit: usize,
    },
    /// The tenant asks for more memory than any instance can have.
    #[error("call_limits.memory_bytes = {asked} is more than plugins.memory_bytes_max = {limit}")]
    MemoryLimit {
        /// What the tenant's file says, in bytes.
        asked: usize,
        /// What the gateway's settings say, in bytes.
        limit: usize,
    },
    /// It cannot do what it is there for.
    #[error("it is to be {} {} and does not export `{missing}`", if *role == Role::Authorizer { "an" } else { "a" }, format!("{role:?}").to_lowercase())]
    Role {
        /// What it is there for.
        role: Role,
        /// What it lacks.
        missing: &'static str,
    },
    /// It did not answer `describe.info`.
    #[error("it was tried and failed: {0}")]
    Trial(CallError),
    /// What it answered is no description.
    #[error("its description (`describe.info`) is not valid: {0}")]
    Description(String),
    /// The gateway could not do its part; the component is not to blame.
    #[error("the gateway cannot compile components now: {0}")]
    Gateway(String),
    /// The gateway stops.
    #[error("the gateway is stopping")]
    Stopping,
}

impl LoadError {
    /// Would the same component be taken at another time? Then the upload is to be tried again.
    pub fn is_passing(&self) -> bool {
        match self {
            LoadError::Gateway(_) | LoadError::Stopping => true,
            // It was not tried at all.
            LoadError::Trial(error) => matches!(error, CallError::Overloaded(_) | CallError::EngineUnavailable(_)),
            _ => false,
        }
    }

    /// Did its trial take too long? That may be the component's fault, or that of a machine with too much to do.
    pub fn is_slow(&self) -> bool {
        matches!(self, LoadError::Trial(CallError::Failed(failure))
            if matches!(failure.kind, FailureKind::WallTime | FailureKind::CpuTime))
    }
}

/// What an upload is held against.
#[derive(Debug)]
pub struct UploadPolicy<'a> {
    /// What the component is to be; where its bytes come from does not matter.
    pub plugin: &'a PluginSettings,
    /// What its calls may use up, the trial among them.
    pub limits: &'a CallLimits,
    /// The tenant's signature keys.
    pub signature_keys: &'a [SignatureKey],
    /// Does the tenant take signed components only?
    pub require_signature: bool,
    /// The signature that came with the upload.
    pub signature: Option<&'a Signature>,
}

/// A component that every node can load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its SHA-256, in lower-case hexadecimal.
    pub digest: String,
    /// Its size, in bytes.
    pub bytes: usize,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
    /// What it says about itself.
    pub description: Description,
    /// The id of the key that signed it. Nodes verify the signature again, so it is to be kept.
    pub signed_by: Option<String>,
}

impl Host {
    /// Does everything that is to be done with an upload before it is kept: looks at it, verifies its signature,
    /// compiles and tries it. What was compiled is kept, so that loading it costs little.
    ///
    /// # Errors
    /// Why it is not taken.
    pub async fn check(
        self: &Arc<Self>,
        tenant: &TenantId,
        policy: &UploadPolicy<'_>,
        component: Bytes,
    ) -> Result<Checked, LoadError> {
        let bytes = component.len();
        let limit = self.settings.component_bytes_max;
        if bytes > limit {
            return Err(LoadError::TooLarge { bytes, limit });
        }
        let digest = self.digest(component.clone()).await?;
        let UploadPolicy { signature_keys, require_signature, .. } = *policy;
        let signed_by =
            verify(tenant, &policy.plugin.name, &digest, signature_keys, require_signature, policy.signature)?;
        let surface = self.survey(component.clone()).await?;
        let plugin = self.load_in(&self.trials, tenant, policy.plugin, policy.limits, component).await?;
        let description = plugin.description.clone();
        Ok(Checked { digest, bytes, imports: surface.imports, exports: surface.exports, description, signed_by })
    }

    /// Loads a component, compiled off the request path or before, and tries it in an instance without capabilities.
    /// The plugin is ready to be called; it replaces nothing by itself.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn load(
        self: &Arc<Self>,
        tenant: &TenantId,
        settings: &PluginSettings,
        limits: &CallLimits,
        component: Bytes,
    ) -> Result<Arc<Plugin>, LoadError> {
        self.load_in(&self.compilations, tenant, settings, limits, component).await
    }

    async fn load_in(
        self: &Arc<Self>,
        places: &Arc<Semaphore>,
        tenant: &TenantId,
        settings: &PluginSettings,
        limits: &CallLimits,
        component: Bytes,
    ) -> Result<Arc<Plugin>, LoadError> {
        let (tenants, limits) = (limits, &settings.limits.within(limits));
        let limit = self.settings.memory_bytes_max;
        if limits.memory_bytes > limit {
            return Err(LoadError::MemoryLimit { asked: limits.memory_bytes, limit });
        }
        let limit = self.settings.component_bytes_max;
        if component.len() > limit {
            return Err(LoadError::TooLarge { bytes: component.len(), limit });
        }
        let digest = self.digest(component.clone()).await?;
        let prepared = self.prepared(&digest, component, places).await?;
        if prepared.memory_bytes > limits.memory_bytes as u64 {
            return Err(LoadError::Memory { needed: prepared.memory_bytes, limit: limits.memory_bytes });
        }
        let exports = exports(&prepared.links);
        fits(settings.role, exports)?;
        let share = self.share(tenant);
        let mut plugin = Plugin {
            name: settings.name.clone(),
            tenant: tenant.clone(),
            role: settings.role,
            digest: digest.into(),
            exports,
            description: Description {
                name: String::new(),
                version: String::new(),
                events: Vec::new(),
                routes_by_name: false,
            },
            settings: Arc::new(settings.settings.clone()),
            prepared,
            own_limits: OwnLimits::new(settings.limits),
            admission: share.admission(tenants),
            warm: match settings.instances {
                Instances::Fresh => None,
                Instances::Warm(limits) => Some(WarmPool::new(limits, &self.idle, &share.idle)),
            },
            routes: Routes::default(),
            share,
            breakers: Breakers::new(),
            account: self.account(tenant, &settings.name),
            metering: Metering::new(tenant.as_str(), &settings.name),
            host: self.clone(),
        };
        plugin.description = plugin.describe(limits).await?;
        Ok(Arc::new(plugin))
    }
}

impl Plugin {
    /// Asks the component what it is, in an instance that can do nothing else.
    async fn describe(&self, limits: &CallLimits) -> Result<Description, LoadError> {
        let mut tx = Transaction::without_engine(self.tenant.clone(), Arc::new(limits.clone()));
        let info = |answer, _: &CallLimits| match answer {
            Answer::Info(info) => Ok(info),
            _ => Err(OUT_OF_STEP.into()),
        };
        match self.call(&mut tx, Hook::Describe, &ROOT_NAMESPACE.into(), Input::Describe, info).await {
            Ok(info) => description::description(&info),
            Err(CallError::Failed(failure)) if failure.kind == FailureKind::BadAnswer => {
                Err(LoadError::Contract(failure.message))
            }
            Err(error) => Err(LoadError::Trial(error)),
        }
    }
}

fn exports(links: &Links) -> Exports {
    Exports {
        authorization: links.authorization.is_some(),
        routing: links.routing.is_some(),
        events: links.events.is_some(),
        timer_events: links.timer_events.is_some(),
        connection_events: links.connection_events.is_some(),
    }
}

fn fits(role: Role, exports: Exports) -> Result<(), LoadError> {
    let (has, missing) = match role {
        Role::Authorizer => (exports.authorization, "authorization"),
        Role::Router => (exports.routing, "routing"),
        Role::Handler => (exports.events || exports.timer_events || exports.connection_events, "events"),
    };
    if has { Ok(()) } else { Err(LoadError::Role { role, missing }) }
}
