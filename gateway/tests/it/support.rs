//! The system under test as people see it: nodes that run, clients that speak, tokens that hold.
//!
//! Everything is real: the `postern` binary, components built from source, npm's `socket.io-client`
//! and `ws`, PyPI's `python-socketio`. All of it is on loopback and stopped when dropped.

pub(crate) mod balancer;
pub(crate) mod bombs;
pub(crate) mod clients;
pub(crate) mod hand_made;
pub(crate) mod key_server;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod redis_cluster;
pub(crate) mod redis_sentinel;
pub(crate) mod redis_server;
pub(crate) mod staged_engine;
pub(crate) mod tls;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use postern::decision::token::sign;
use postern::tenant::{Algorithm, Secret};
use serde_json::{Value, json};

/// The secret of every test tenant.
pub(crate) const SECRET: &str = "test-secret-of-no-real-tenant-0123456789";
/// The token with which test tenants' back ends raise events.
pub(crate) const BACKEND_TOKEN: &str = "test-backend-token-0123456789abcdef";

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").into()
}

/// The folder with the built reference components; built once per run, from source.
pub(crate) fn components() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = root().join("target/components");
        postern::cli::plugin_build::build_reference(&root(), &out, &mut |line| eprintln!("{line}"))
            .expect("the reference plugins build");
        out
    })
}

/// A token of a test tenant, valid for an hour.
pub(crate) fn token(tenant: &str, subject: &str, claims: Value) -> String {
    token_until(tenant, subject, claims, now_s() + 3_600)
}

/// A token that ends at a point in time.
pub(crate) fn token_until(tenant: &str, subject: &str, claims: Value, expires_at_s: u64) -> String {
    let mut all = json!({ "tenant": tenant, "sub": subject, "exp": expires_at_s });
    let object = all.as_object_mut().expect("an object");
    object.extend(claims.as_object().cloned().unwrap_or_default());
    sign(None, Algorithm::HS256, &Secret(SECRET.into()), object).expect("claims can be signed")
}

/// Seconds since the Unix epoch.
pub(crate) fn now_s() -> u64 {
    postern::commit::now_ms() / 1_000
}

/// The claims of a guard of a society.
pub(crate) fn guard(society: &str) -> Value {
    json!({ "role": "guard", "society_id": society })
}

/// The claims of a resident of flats.
pub(crate) fn resident(society: &str, flats: &[&str]) -> Value {
    json!({ "role": "resident", "society_id": society, "flats": flats })
}

/// A tenant file: its name, plugins by role, and more lines.
pub(crate) fn tenant_file(name: &str, plugins: &[(&str, &str, &str)], more: &str, settings: &str) -> (String, String) {
    let mut file = format!("name = \"{name}\"\nbackend_token = \"{BACKEND_TOKEN}\"\n{more}\n");
    file += &format!("[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n");
    for (plugin, role, component) in plugins {
        let path = components().join(format!("{component}.wasm"));
        file += &format!("[[plugins]]\nname = \"{plugin}\"\nrole = \"{role}\"\ncomponent = {path:?}\n");
        if *role == "handler" && !settings.is_empty() {
            file += &format!("[plugins.settings]\n{settings}\n");
        }
    }
    (name.into(), file)
}

/// A housing society, as the demo's, with its own time-out.
pub(crate) fn society(name: &str, timeout_ms: u64) -> (String, String) {
    let plugins = [
        ("room-authorization", "authorizer", "room-authorization"),
        ("visitor-approvals", "handler", "visitor-approvals"),
    ];
    tenant_file(name, &plugins, "", &format!("timeout_ms = {timeout_ms}"))
}

/// A tenant in which everybody may do everything, without rate limits.
pub(crate) fn open(name: &str, more: &str) -> (String, String) {
    let plugins = [("authorizer", "authorizer", "bench"), ("echo", "handler", "bench")];
    let limits = "limits.messages_per_minute = \"unlimited\"\nlimits.connections_per_user = 1000\n";
    tenant_file(name, &plugins, &format!("relay = [\"echo_relay\"]\n{more}\n{limits}"), "")
}

/// A tenant whose plugins misbehave on demand.
pub(crate) fn harm(name: &str, more: &str) -> (String, String) {
    let plugins = [("authorizer", "authorizer", "test-harm"), ("harm", "handler", "test-harm")];
    let limits = "limits.messages_per_minute = \"unlimited\"\nlimits.connections_per_user = 1000\n";
    tenant_file(name, &plugins, &format!("{limits}{more}"), "")
}

/// A token that does not say whose tenant's it is.
pub(crate) fn token_without_tenant(subject: &str) -> String {
    let claims = json!({ "sub": subject, "exp": now_s() + 3_600 });
    sign(None, Algorithm::HS256, &Secret(SECRET.into()), claims.as_object().expect("an object")).expect("can be signed")
}
