//! Uploads: a component is checked, compiled and tried before anything of it is kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::body::{self, UPLOAD_TIMEOUT};
use super::denied::Denied;
use super::plugins::{Wanted, no_plugin};
use super::query::Query;
use super::{Asked, Done};
use crate::catalog::{self, CatalogError, NewVersion, PluginRecord, ROLLOUT_DEADLINE, VersionRecord};
use crate::config::{Mistakes, plugin_from_json, tenant_from_json};
use crate::decision::plugin::{LoadError, Signature, SignatureError, UploadPolicy, digest};
use crate::gateway::Gateway;
use crate::tenant::{PluginSettings, Role, Tenant, TenantId};

/// Uploads that are read and checked at the same time on one node: each may be as large as a component may be.
const UPLOADS_MAX: usize = 6;

/// Of one tenant, so that its slow uploads leave room for others'.
const UPLOADS_OF_TENANT_MAX: usize = 2;

/// How long waiting for the compiler, trying and storing may take beside compiling, which has a limit of its own.
const CHECK_TIME: Duration = Duration::from_secs(90);

/// The component's SHA-256 as the sender knows it.
const DIGEST: &str = "postern-digest";

/// Who says that it is theirs.
const SIGNATURE: &str = "postern-signature";

/// Whose uploads are read and checked on this node.
static UPLOADS: Mutex<Vec<TenantId>> = Mutex::new(Vec::new());

/// One of them; over when dropped.
#[derive(Debug)]
struct Uploading(TenantId);

impl Uploading {
    fn begin(tenant: &TenantId) -> Result<Uploading, Denied> {
        let mut uploads = UPLOADS.lock();
        let of_tenant = uploads.iter().filter(|other| *other == tenant).count();
        if uploads.len() >= UPLOADS_MAX || of_tenant >= UPLOADS_OF_TENANT_MAX {
            return Err(Denied::busy(format!(
                "as many uploads are read and checked on this node already as may be: {UPLOADS_MAX}, or \
                 {UPLOADS_OF_TENANT_MAX} of one tenant (UPLOADS_MAX, UPLOADS_OF_TENANT_MAX)"
            )));
        }
        uploads.push(tenant.clone());
        Ok(Uploading(tenant.clone()))
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut uploads = UPLOADS.lock();
        if let Some(index) = uploads.iter().position(|tenant| *tenant == self.0) {
            uploads.swap_remove(index);
        }
    }
}

/// `POST …/versions`.
pub(super) async fn upload(asked: Asked) -> Done {
    let (id, name) = (asked.tenant()?.clone(), asked.names.plugin.clone());
    let activate = asked.query.truth("activate")?;
    // What cannot be taken whatever it is, is refused before its bytes are.
    let role = role(&asked.query)?;
    place(&asked.gateway, role, &id, &name).await?;
    let signature = signature(&asked.headers)?;
    let _place = Uploading::begin(&id)?;
    if let Some(stay) = &asked.stay {
        let compiling = Duration::from_millis(asked.gateway.config.plugins.compile_ms_max);
        stay.for_another(UPLOAD_TIMEOUT + compiling + CHECK_TIME);
    }
    let component = body::upload(asked.body, asked.gateway.config.plugins.component_bytes_max).await?;
    is_what_was_sent(&asked.headers, &component)?;
    // Minutes may have gone by: who was let in then may be nobody by now, and what a component is held against another.
    asked.gateway.catalog.still_good(&asked.actor).await?;
    let Place { settings, plugin, is_there } = place(&asked.gateway, role, &id, &name).await?;
    let document = Value::Object(settings);
    let tenant = tenant_from_json(&id, &document, asked.gateway.config.demo).map_err(mistakes)?.0;
    let plugin_settings = plugin_from_json(&name, &plugin.document()).map_err(mistakes)?;
    let checked = check(&asked.gateway, &tenant, &plugin_settings, signature.as_ref(), component.clone()).await?;
    let catalog = &asked.gateway.catalog;
    // Only now: an upload that is refused leaves nothing behind, in the engine's store neither.
    catalog.still_good(&asked.actor).await?;
    if !is_there {
        let wanted = Wanted::of_role(plugin.role);
        let made = catalog.change_plugin(&asked.actor, &id, &name, "plugin.put", |there| match there {
            Some(there) => Ok(Some(there)),
            None => wanted.applied(None, &name).map(Some),
        });
        made.await?;
    }
    let added = catalog.add_version(&asked.actor, &id, &name, checked, component).await?;
    let version = added.version.version;
    let now = catalog.plugin(&id, &name).await?.ok_or_else(|| no_plugin(&name))?;
    let state = match (now.active == Some(version), activate) {
        (true, _) => "active",
        (false, true) => {
            catalog.activate(&asked.actor, &id, &name, version, ROLLOUT_DEADLINE).await?;
            "waiting"
        }
        (false, false) => "stored",
    };
    Ok((StatusCode::CREATED, pushed(&added.version, added.existed, state)))
}

fn pushed(version: &VersionRecord, existed: bool, state: &str) -> Value {
    json!({
        "version": version.version,
        "digest": version.digest,
        "bytes": version.bytes,
        "description": { "name": version.described_name, "version": version.described_version },
        "imports": version.imports,
        "exports": version.exports,
        "signed_by": version.signature.as_ref().map(|signature| &signature.key),
        "existed": existed,
        "state": state,
    })
}

/// Where a component is to go.
struct Place {
    /// The tenant's.
    settings: Map<String, Value>,
    /// As it is, or would be made.
    plugin: PluginRecord,
    is_there: bool,
}

/// What a plugin is to do that is not there yet.
fn role(query: &Query) -> Result<Option<Role>, Denied> {
    match query.text("role") {
        None => Ok(None),
        Some("authorizer") => Ok(Some(Role::Authorizer)),
        Some("router") => Ok(Some(Role::Router)),
        Some("handler") => Ok(Some(Role::Handler)),
        Some(other) => Err(Denied::invalid(format!("role must be authorizer, router or handler, not {other:?}"))),
    }
}

async fn place(gateway: &Gateway, role: Option<Role>, id: &TenantId, name: &str) -> Result<Place, Denied> {
    let catalog = &gateway.catalog;
    if let Some(file) = catalog.file_of(id) {
        return Err(CatalogError::ReadOnly { tenant: id.clone(), file: file.clone() }.into());
    }
    let tenant = catalog.tenant(id).await?.ok_or_else(|| super::no_tenant(id.as_str()))?;
    let wanted = role.map(Wanted::of_role).unwrap_or_default();
    let there = catalog.plugin(id, name).await?;
    let is_there = there.is_some();
    Ok(Place { settings: tenant.settings, plugin: wanted.applied(there, name)?, is_there })
}

fn mistakes(Mistakes(mistakes): Mistakes) -> Denied {
    Denied::mistakes(mistakes.iter().map(ToString::to_string).collect())
}

/// Bytes that were changed on their way are not what the sender meant.
fn is_what_was_sent(headers: &HeaderMap, component: &Bytes) -> Result<(), Denied> {
    let Some(expected) = headers.get(DIGEST) else { return Ok(()) };
    let digest = digest(component);
    if expected.as_bytes().eq_ignore_ascii_case(digest.as_bytes()) {
        return Ok(());
    }
    let text =
        format!("{} bytes arrived with the SHA-256 {digest}, which is not the one in Postern-Digest", component.len());
    Err(Denied::invalid(text))
}

/// Everything that is to be done with a component before it is kept.
async fn check(
    gateway: &Gateway,
    tenant: &Tenant,
    plugin: &PluginSettings,
    signature: Option<&Signature>,
    component: Bytes,
) -> Result<NewVersion, Denied> {
    let policy = UploadPolicy {
        plugin,
        limits: &tenant.call_limits,
        signature_keys: &tenant.signature_keys,
        require_signature: tenant.require_signature,
        signature,
    };
    let checked = gateway.host.check(&tenant.id, &policy, component).await.map_err(refused)?;
    // Every node verifies it again, so it is kept.
    let kept = |signature: &Signature| {
        let value = STANDARD.encode(signature.bytes);
        catalog::Signature { key: signature.key.clone(), value }
    };
    Ok(NewVersion {
        digest: checked.digest.into(),
        described_name: checked.description.name,
        described_version: checked.description.version,
        events: checked.description.events,
        imports: checked.imports,
        exports: checked.exports,
        signature: signature.filter(|_| checked.signed_by.is_some()).map(kept),
    })
}

/// The signature that came with the component.
fn signature(headers: &HeaderMap) -> Result<Option<Signature>, Denied> {
    let Some(given) = headers.get(SIGNATURE) else { return Ok(None) };
    let parsed = given.to_str().unwrap_or_default().parse();
    parsed.map(Some).map_err(|error: SignatureError| Denied::invalid(error.to_string()))
}

fn refused(error: LoadError) -> Denied {
    let text = error.to_string();
    match error {
        LoadError::TooLarge { .. } => Denied::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
        // The same component may be taken at another time.
        _ if error.is_passing() => Denied::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text),
        _ => Denied::invalid(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_uploads_leave_room_for_others_and_a_place_is_given_back() {
        let tenant = |name| TenantId::parse(name).unwrap();
        let own = [Uploading::begin(&tenant("a")).unwrap(), Uploading::begin(&tenant("a")).unwrap()];
        assert_eq!(Uploading::begin(&tenant("a")).unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        let others: Vec<_> = ["b", "b", "c", "c"].iter().map(|name| Uploading::begin(&tenant(name)).unwrap()).collect();
        assert!(Uploading::begin(&tenant("d")).is_err(), "there are more than UPLOADS_MAX");
        drop(own);
        assert!(Uploading::begin(&tenant("a")).is_ok());
        drop(others);
        assert!(UPLOADS.lock().is_empty());
    }
}
