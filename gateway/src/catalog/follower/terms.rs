//! What a tenant's clients are held to, whether or not its components are there: its settings and its keys.
//!
//! They hold as soon as they are read. A tenant whose components are being loaded, or that waits for others to be, is
//! [hurried](Terms::hurry): who is disabled, or has lost a key, does not stay for as long as that takes.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::catalog::TenantRecord;
use crate::commit::Millis;
use crate::config::{Mistakes, tenant_from_json};
use crate::decision::token::Verifier;
use crate::gateway::{Gateway, LiveTenant};
use crate::tenant::{Tenant, TenantId};

/// Those of one tenant; `None` while it is not served. Locked from the reading of a record until it is in force, so that
/// no earlier one comes after a later one.
#[derive(Default)]
pub(super) struct Terms(pub(super) Mutex<Option<InForce>>);

/// What is in force.
pub(super) struct InForce {
    pub(super) live: Arc<LiveTenant>,
    created_ms: Millis,
    /// As they were taken last; `None`: it was disabled without any.
    settings: Option<(Map<String, Value>, bool)>,
}

impl Terms {
    /// Puts into force what the tenant's record says now. What cannot be read, or is wrong, is left to whoever brings the
    /// tenant up to date.
    pub(super) async fn hurry(self: Arc<Self>, gateway: Arc<Gateway>, id: TenantId) {
        let mut in_force = self.0.lock().await;
        let Some(in_force) = &mut *in_force else { return };
        match gateway.catalog.tenant(&id).await {
            Ok(Some(record)) if record.created_ms == in_force.created_ms => {
                if let Ok((tenant, verifier)) = read(&gateway, &record) {
                    in_force.change(&record, tenant, verifier).await;
                }
            }
            // Another one of its name.
            Ok(Some(_)) => in_force.disable().await,
            Ok(None) => {
                if let Ok(true) = gateway.catalog.was_deleted(&id, in_force.created_ms).await {
                    in_force.disable().await;
                }
            }
            Err(error) => tracing::debug!(tenant = %id, %error, "a tenant's settings cannot be read now"),
        }
    }
}

impl InForce {
    pub(super) fn of(record: &TenantRecord, live: Arc<LiveTenant>) -> InForce {
        let settings = Some((record.settings.clone(), record.disabled));
        InForce { live, created_ms: record.created_ms, settings }
    }

    /// What the record says, from now on, if it is not in force already.
    pub(super) async fn change(&mut self, record: &TenantRecord, tenant: Tenant, verifier: Verifier) {
        let settings = Some((record.settings.clone(), record.disabled));
        if self.settings != settings {
            self.live.change(tenant, verifier).await;
            self.settings = settings;
        }
    }

    /// Its clients are told that it is gone.
    pub(super) async fn disable(&mut self) {
        self.settings = None;
        let tenant = Tenant { disabled: true, ..Tenant::clone(&self.live.settings()) };
        match Verifier::new(&self.live.id, &tenant.auth) {
            Ok(verifier) => self.live.change(tenant, verifier).await,
            // They are those that it has.
            Err(error) => {
                tracing::error!(tenant = %self.live.id, %error, "the keys of a tenant cannot be used any more")
            }
        }
    }
}

/// The settings and keys that a record holds; all that is wrong with them.
pub(super) fn read(gateway: &Gateway, record: &TenantRecord) -> Result<(Tenant, Verifier), Vec<String>> {
    let settings = Value::Object(record.settings.clone());
    let (tenant, _) = tenant_from_json(&record.name, &settings, gateway.config.demo)
        .map_err(|Mistakes(mistakes)| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let tenant = Tenant { disabled: record.disabled, ..tenant };
    let verifier = Verifier::new(&tenant.id, &tenant.auth).map_err(|error| vec![error.to_string()])?;
    Ok((tenant, verifier))
}
