//! Compiled code: from memory, from the disk, or made.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};

use super::super::failure::{MESSAGE_BYTES_MAX, tame};
use super::super::host::Call;
use super::super::{Host, contract};
use super::inspect::{Surface, survey, validate};
use super::signature::digest;
use super::{LoadError, worker};
use crate::decision::plugin::bindings::Links;
use crate::decision::plugin::instance::Prepared;

/// A page of linear memory, in bytes.
const PAGE_BYTES: u64 = 64 << 10;

/// Where components are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// In this process, without bounds on time and memory: for components that are trusted.
    InProcess,
    /// In a process of its own, by this program: one that understands `compile-component` as `postern` does.
    Worker(PathBuf),
}

impl Host {
    /// The SHA-256 of a component, in lower-case hexadecimal.
    pub(super) async fn digest(&self, component: Bytes) -> Result<String, LoadError> {
        self.blocking(&self.loads, move || Ok(digest(&component))).await
    }

    /// Looks at a component without validating it: that is for the compiler, whose time is bounded.
    pub(super) async fn survey(&self, component: Bytes) -> Result<Surface, LoadError> {
        let limit = self.settings.component_bytes_max;
        self.blocking(&self.loads, move || survey(&component, limit)).await
    }

    /// What is the same for all plugins that are made of this component: shared by tenants, and made once. It is compiled
    /// when there is one of these places.
    pub(super) async fn prepared(
        self: &Arc<Self>,
        digest: &str,
        component: Bytes,
        places: &Arc<Semaphore>,
    ) -> Result<Arc<Prepared>, LoadError> {
        if let Some(prepared) = self.made_before(digest).await? {
            return Ok(prepared);
        }
        let place = places.clone().acquire_owned().await.map_err(|_| LoadError::Stopping)?;
        // Somebody else may have made it while this one waited.
        if let Some(prepared) = self.made_before(digest).await? {
            return Ok(prepared);
        }
        let started = Instant::now();
        self.survey(component.clone()).await?;
        let code = self.compiled(component).await?;
        drop(place);
        tracing::info!(digest, took = ?started.elapsed(), code_bytes = code.len(), "compiled a component");
        metrics::counter!("plugin_code_total", "from" => "compiler").increment(1);
        let (host, name) = (self.clone(), digest.to_owned());
        self.blocking(&self.loads, move || {
            let prepared = host.prepare(&name, &code)?;
            if let Some(cache) = &host.cache {
                cache.put(&name, &code);
            }
            Ok(prepared)
        })
        .await
    }

    async fn made_before(self: &Arc<Self>, digest: &str) -> Result<Option<Arc<Prepared>>, LoadError> {
        if let Some(prepared) = self.remembered(digest) {
            metrics::counter!("plugin_code_total", "from" => "memory").increment(1);
            return Ok(Some(prepared));
        }
        if self.cache.is_none() {
            return Ok(None);
        }
        let (host, name) = (self.clone(), digest.to_owned());
        self.blocking(&self.loads, move || {
            let Some(code) = host.cache.as_ref().and_then(|cache| cache.get(&name)) else { return Ok(None) };
            metrics::counter!("plugin_code_total", "from" => "disk").increment(1);
            host.prepare(&name, &code).map(Some)
        })
        .await
    }

    fn remembered(&self, digest: &str) -> Option<Arc<Prepared>> {
        self.prepared.lock().get(digest).and_then(std::sync::Weak::upgrade)
    }

    async fn compiled(&self, component: Bytes) -> Result<Vec<u8>, LoadError> {
        match &self.settings.compiler {
            Compiler::InProcess => {
                let engine = self.engine.clone();
                self.blocking(&self.loads, move || judge(&engine, &component)).await
            }
            Compiler::Worker(program) => {
                let work = worker::compile(program.clone(), self.settings.clone(), self.code_hash, component);
                let work = tokio_util::task::AbortOnDropHandle::new(self.handle.spawn(work));
                work.await.unwrap_or(Err(LoadError::Stopping))
            }
        }
    }

    /// Makes code runnable. The code must come from our own compiler.
    fn prepare(&self, digest: &str, code: &[u8]) -> Result<Arc<Prepared>, LoadError> {
        // SAFETY: `code` is what `Engine::precompile_component` made: in this process, in our worker, whose engine
        // has been found to be the same as this one, or before and kept in the cache, which gives out nothing that
        // it has not authenticated. No bytes of a tenant come here; those that look like code are refused.
        let component = unsafe { Component::deserialize(&self.engine, code) };
        let component = component.map_err(|error| LoadError::Resources(text(&error)))?;
        let needs = component.resources_required();
        let pages = needs.and_then(|needs| needs.max_initial_memory_size).unwrap_or(0);
        component.initialize_copy_on_write_image().map_err(|error| LoadError::Compile(text(&error)))?;
        let pre: InstancePre<Call> =
            self.linker.instantiate_pre(&component).map_err(|error| LoadError::Contract(text(&error)))?;
        let links = Links::new(&pre).map_err(|error| LoadError::Contract(text(&error)))?;
        let prepared = Arc::new(Prepared { pre, links, memory_bytes: pages.saturating_mul(PAGE_BYTES) });
        let mut all = self.prepared.lock();
        all.retain(|_, prepared| prepared.strong_count() > 0);
        // Two at the same time: both are the same, and one is enough.
        if let Some(present) = all.get(digest).and_then(std::sync::Weak::upgrade) {
            return Ok(present);
        }
        all.insert(digest.to_owned(), Arc::downgrade(&prepared));
        Ok(prepared)
    }

    /// Does what takes long on a thread for such things, when there is a place.
    async fn blocking<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let place = places.clone().acquire_owned().await.map_err(|_| LoadError::Stopping)?;
        let done = self.handle.spawn_blocking(move || {
            let _place = place;
            work()
        });
        match done.await {
            Ok(done) => done,
            Err(error) if error.is_cancelled() => Err(LoadError::Stopping),
            Err(_) => Err(LoadError::Compile("the compiler failed at it".into())),
        }
    }
}

/// Validates a component, holds it against the contract and compiles it. Nothing of that has a bound in time but the
/// process's own.
pub(super) fn judge(engine: &Engine, component: &[u8]) -> Result<Vec<u8>, LoadError> {
    validate(component)?;
    if let Err(differences) = contract::check(component) {
        return Err(LoadError::Contract(tame(&differences.join("; "), MESSAGE_BYTES_MAX)));
    }
    engine.precompile_component(component).map_err(|error| LoadError::Compile(text(&error)))
}

fn text(error: &wasmtime::Error) -> String {
    tame(&format!("{error:#}"), MESSAGE_BYTES_MAX)
}
