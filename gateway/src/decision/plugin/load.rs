//! From bytes to a plugin: checked, compiled, tried.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use wasmparser::{Parser, Payload};
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};

use super::bindings::{Answer, EXPORTABLE, IMPORTABLE, Input, Links};
use super::breaker::Breakers;
use super::calls::OUT_OF_STEP;
use super::failure::{CallError, FailureKind, Hook, MESSAGE_BYTES_MAX, tame};
use super::host::Call;
use super::instance::Prepared;
use super::metering::Metering;
use super::transaction::Transaction;
use super::warm::WarmPool;
use super::{Description, Exports, Host, Plugin};
use crate::event::EVENT_NAME_BYTES_MAX;
use crate::room::ROOT_NAMESPACE;
use crate::tenant::{CallLimits, Instances, Pattern, PluginSettings, Role, TenantId};

/// The package of the contract; its version is checked by its types.
const PACKAGE: &str = "postern:plugin/";

/// The longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// The most event patterns in a description.
const PATTERNS_MAX: usize = 256;

/// A page of linear memory, in bytes.
const PAGE_BYTES: u64 = 64 << 10;

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
    /// It wants something that is not in the contract.
    #[error("it imports `{0}`, which the gateway does not have: build it for `wasm32-unknown-unknown`, without WASI")]
    Import(String),
    /// It offers something that is not in the contract.
    #[error("it exports `{0}`, which is not in the contract")]
    Export(String),
    /// Its interfaces have other types than the contract's.
    #[error("it does not fit the contract: {0}")]
    Contract(String),
    /// It does not compile.
    #[error("it does not compile: {0}")]
    Compile(String),
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
    #[error("it is to be a {role:?} and does not export `{missing}`")]
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
    /// The gateway stops.
    #[error("the gateway is stopping")]
    Stopping,
}

impl Host {
    /// Checks a component, compiles it off the request path and tries it in an instance without
    /// capabilities. The plugin is ready to be called; it replaces nothing by itself.
    pub async fn load(
        self: &Arc<Self>,
        tenant: &TenantId,
        settings: &PluginSettings,
        limits: &CallLimits,
        component: Bytes,
    ) -> Result<Arc<Plugin>, LoadError> {
        let limit = self.settings.memory_bytes_max;
        if limits.memory_bytes > limit {
            return Err(LoadError::MemoryLimit { asked: limits.memory_bytes, limit });
        }
        let limit = self.settings.component_bytes_max;
        if component.len() > limit {
            return Err(LoadError::TooLarge { bytes: component.len(), limit });
        }
        let (prepared, digest) = self.compile(component, limits.memory_bytes).await?;
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
            prepared: Arc::new(prepared),
            admission: share.admission(limits),
            share,
            breakers: Breakers::new(),
            warm: match settings.instances {
                Instances::Fresh => None,
                Instances::Warm(limits) => Some(Arc::new(WarmPool::new(limits, &self.idle))),
            },
            account: self.account(tenant, &settings.name),
            metering: Metering::new(tenant.as_str(), &settings.name),
            host: self.clone(),
        };
        plugin.description = plugin.describe(limits).await?;
        Ok(Arc::new(plugin))
    }

    /// Everything that takes long, on a thread for such things; as many at a time as the settings say.
    async fn compile(self: &Arc<Self>, component: Bytes, memory_bytes: usize) -> Result<(Prepared, String), LoadError> {
        let place = self.compilations.clone().acquire_owned().await.map_err(|_| LoadError::Stopping)?;
        let host = self.clone();
        let compiled = self.handle.spawn_blocking(move || {
            let _place = place;
            inspect(&component)?;
            let digest = hex(&Sha256::digest(&component));
            Ok((host.prepare(&component, memory_bytes)?, digest))
        });
        match compiled.await {
            Ok(compiled) => compiled,
            Err(error) if error.is_cancelled() => Err(LoadError::Stopping),
            Err(_) => Err(LoadError::Compile("the compiler failed".into())),
        }
    }

    fn prepare(&self, bytes: &[u8], memory_bytes: usize) -> Result<Prepared, LoadError> {
        let component =
            Component::from_binary(&self.engine, bytes).map_err(|error| LoadError::Compile(text(&error)))?;
        if let Some(needs) = component.resources_required() {
            let pages = needs.max_initial_memory_size.unwrap_or(0);
            let needed = pages.saturating_mul(PAGE_BYTES);
            if usize::try_from(needed).is_ok_and(|needed| needed > memory_bytes) {
                return Err(LoadError::Memory { needed, limit: memory_bytes });
            }
        }
        component.initialize_copy_on_write_image().map_err(|error| LoadError::Compile(text(&error)))?;
        let pre: InstancePre<Call> =
            self.linker.instantiate_pre(&component).map_err(|error| LoadError::Contract(text(&error)))?;
        let links = Links::new(&pre).map_err(|error| LoadError::Contract(text(&error)))?;
        Ok(Prepared { pre, links })
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
            Ok(info) => description(&info),
            Err(CallError::Failed(failure)) if failure.kind == FailureKind::BadAnswer => {
                Err(LoadError::Contract(failure.message))
            }
            Err(error) => Err(LoadError::Trial(error)),
        }
    }
}

fn text(error: &wasmtime::Error) -> String {
    tame(&format!("{error:#}"), MESSAGE_BYTES_MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Looks at a component without running or compiling any of it.
fn inspect(bytes: &[u8]) -> Result<(), LoadError> {
    if Engine::detect_precompiled(bytes).is_some() {
        return Err(LoadError::Precompiled);
    }
    if Parser::is_core_wasm(bytes) {
        return Err(LoadError::CoreModule);
    }
    if !Parser::is_component(bytes) {
        return Err(LoadError::NotAComponent("it does not begin like one".into()));
    }
    let broken = |error: wasmparser::BinaryReaderError| LoadError::NotAComponent(tame(&error.to_string(), 256));
    // Components inside: tools make some without code, to give exports their types.
    let mut inside = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(broken)? {
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } => inside += 1,
            Payload::ModuleSection { .. } if inside > 1 => return Err(LoadError::Composed),
            Payload::ComponentImportSection(imports) if inside == 1 => {
                for import in imports {
                    let name = import.map_err(broken)?.name.name;
                    if !in_contract(name, &IMPORTABLE) {
                        return Err(LoadError::Import(tame(name, 256)));
                    }
                }
            }
            Payload::ComponentExportSection(exports) if inside == 1 => {
                for export in exports {
                    let name = export.map_err(broken)?.name.name;
                    if !in_contract(name, &EXPORTABLE) {
                        return Err(LoadError::Export(tame(name, 256)));
                    }
                }
            }
            // A core module has an end of its own, after a version of its own.
            Payload::Version { .. } => inside += 1,
            Payload::End(_) => inside -= 1,
            _ => {}
        }
    }
    Ok(())
}

fn in_contract(name: &str, interfaces: &[&str]) -> bool {
    let interface = name.strip_prefix(PACKAGE).map(|rest| rest.split_once('@').map_or(rest, |(name, _)| name));
    interface.is_some_and(|interface| interfaces.contains(&interface))
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

/// `describe.info` as written. Components may say more than this gateway knows.
#[derive(Deserialize)]
struct Info {
    name: String,
    version: String,
    #[serde(default)]
    events: Vec<String>,
    #[serde(default)]
    routes_by_name: bool,
    #[serde(flatten)]
    _more: BTreeMap<String, serde::de::IgnoredAny>,
}

fn description(info: &str) -> Result<Description, LoadError> {
    let bad = |text: String| LoadError::Description(tame(&text, MESSAGE_BYTES_MAX));
    if info.len() > DESCRIPTION_BYTES_MAX {
        return Err(bad(format!("it has {} bytes; at most {DESCRIPTION_BYTES_MAX}", info.len())));
    }
    let info: Info = serde_json::from_str(info).map_err(|error| bad(error.to_string()))?;
    if info.events.len() > PATTERNS_MAX {
        return Err(bad(format!("it has {} event patterns; at most {PATTERNS_MAX}", info.events.len())));
    }
    if let Some(pattern) = info.events.iter().find(|pattern| !is_pattern(pattern)) {
        return Err(bad(format!(
            "{pattern:?} is no event pattern: 1 to {EVENT_NAME_BYTES_MAX} bytes, `*` only at the end"
        )));
    }
    Ok(Description {
        name: tame(&info.name, 128),
        version: tame(&info.version, 128),
        events: info.events.into_iter().map(Pattern).collect(),
        routes_by_name: info.routes_by_name,
    })
}

fn is_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    (1..=EVENT_NAME_BYTES_MAX).contains(&pattern.len()) && !name.contains('*') && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_component_is_refused_with_advice() {
        assert_eq!(inspect(b"\0asm\x01\0\0\0"), Err(LoadError::CoreModule));
        assert!(LoadError::CoreModule.to_string().contains("postern plugin build"));
        assert!(matches!(inspect(b"hello"), Err(LoadError::NotAComponent(_))));
        assert!(matches!(inspect(b"\0asm\x0d\0\x01\0\xff"), Err(LoadError::NotAComponent(_))));
        assert_eq!(inspect(b"\0asm\x0d\0\x01\0"), Ok(()));
    }

    #[test]
    fn a_component_with_code_inside_another_component_is_composed() {
        let core = b"\0asm\x01\0\0\0";
        let nest = |inside: &[u8], section: u8| {
            let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
            bytes.extend([section, u8::try_from(inside.len()).unwrap()]);
            bytes.extend(inside);
            bytes
        };
        assert_eq!(inspect(&nest(core, 1)), Ok(()));
        assert_eq!(inspect(&nest(&nest(core, 1), 4)), Err(LoadError::Composed));
        assert_eq!(inspect(&nest(&nest(b"\0asm\x0d\0\x01\0", 4), 4)), Ok(()));
    }

    #[test]
    fn only_the_contracts_interfaces_may_be_imported() {
        assert!(in_contract("postern:plugin/state@0.1.0", &IMPORTABLE));
        assert!(in_contract("postern:plugin/state@0.1.7", &IMPORTABLE));
        assert!(!in_contract("wasi:cli/environment@0.2.0", &IMPORTABLE));
        assert!(!in_contract("postern:plugin/events@0.1.0", &IMPORTABLE));
        assert!(!in_contract("evil:postern:plugin/state@0.1.0", &IMPORTABLE));
    }

    #[test]
    fn a_description_is_bounded_and_may_say_more_than_is_known() {
        let it = description(r#"{"name":"n","version":"1","events":["a*","b"],"future":{"x":1}}"#).unwrap();
        assert_eq!(it.events, [Pattern("a*".into()), Pattern("b".into())]);
        assert!(!it.routes_by_name);
        for bad in ["[]", r#"{"name":"n"}"#, r#"{"name":"n","version":"1","events":["a*b"]}"#] {
            assert!(matches!(description(bad), Err(LoadError::Description(_))), "{bad}");
        }
    }
}
