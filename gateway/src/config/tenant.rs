//! Tenant files: one `NAME.toml` a tenant.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::api_keys::api_keys;
use super::auth::auth;
use super::context::{Context, secret_of_environment, strength};
use super::limits::{call_limits, limits, plugin_limits};
use super::origins;
use super::signature::{require_signature, signature_keys};
use super::source::{Document, Given, Report, Section, read_text};
use crate::event::EVENT_NAME_BYTES_MAX;
use crate::room::Room;
use crate::tenant::{
    CallLimits, Instances, NAME_FORM, Pattern, PluginSettings, Role, Secret, Tenant, TenantId, WarmLimits, is_name,
};

/// The longest name of a plugin, in bytes.
const PLUGIN_NAME_BYTES_MAX: usize = 64;

/// The most that a room's history can be on joining, in events.
const HISTORY_ON_JOIN_MAX: u64 = 200;

/// How long a connection that ended without a goodbye keeps its place, where the tenant does not say.
const PRESENCE_GRACE: Duration = Duration::from_secs(10);

/// The longest that it can be, in milliseconds: as long as sessions can be resumed.
const PRESENCE_GRACE_MS_MAX: u64 = 140_000;

/// A back end's token shorter than this can be guessed, in bytes.
const BACKEND_TOKEN_BYTES_MIN: usize = 32;

/// The tenant files of a directory, by name.
pub(super) fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one tenant file; `None` only when mistakes were reported.
pub(super) fn tenant(context: &Context<'_>, report: &mut Report) -> Option<Tenant> {
    let text = read_text(context.path, report)?;
    let document = Document::parse(&context.path.display().to_string(), &text, report)?;
    of_document(&document, context, report)
}

/// Reads one tenant; `None` only when mistakes were reported.
pub(super) fn of_document(document: &Document<'_>, context: &Context<'_>, report: &mut Report) -> Option<Tenant> {
    let mistakes_before = report.mistakes.len();
    let mut given = document.root();
    let id = name(&mut given, context, report);
    let auth = auth(given.section("auth", report), context, report);
    let limits = limits(given.section("limits", report), report);
    let call_limits = call_limits(given.section("call_limits", report), report);
    let plugins = plugins(given.sections("plugins", report), &call_limits, context, report);
    let relay = patterns(given.get("relay"), report).unwrap_or_default();
    let broadcast = patterns(given.get("broadcast"), report).unwrap_or_default();
    let origins = origins(given.get("origins"), report);
    let hosts = hosts(given.strings("hosts", report), report);
    let mut history_on_join = 0;
    given.integer("history_on_join", 0..=HISTORY_ON_JOIN_MAX, &mut history_on_join, report);
    let socketio_recovery = given.get("socketio_recovery").and_then(|given| given.boolean(report)).unwrap_or(false);
    let authenticated_event = given.get("authenticated_event").and_then(|given| given.boolean(report)).unwrap_or(false);
    let presence_events = presence_events(given.strings("presence_events", report), report);
    let presence_grace =
        given.get("presence_grace_ms").and_then(|grace| grace.millis(0..=PRESENCE_GRACE_MS_MAX, report));
    let presence_grace = presence_grace.unwrap_or(PRESENCE_GRACE);
    let api_keys = api_keys(given.sections("api_keys", report), context, report);
    let backend_token = backend_token(&mut given, context, report);
    let disabled = given.get("disabled").and_then(|given| given.boolean(report)).unwrap_or(false);
    let signature_keys = signature_keys(given.sections("signature_keys", report), report);
    let require_signature = require_signature(&mut given, &signature_keys, report);
    given.finish(report);
    if report.mistakes.len() > mistakes_before {
        return None;
    }
    Some(Tenant {
        id: id?,
        disabled,
        auth,
        limits,
        call_limits,
        plugins,
        relay,
        broadcast,
        origins,
        hosts,
        history_on_join,
        socketio_recovery,
        authenticated_event,
        presence_events,
        presence_grace,
        backend_token,
        api_keys,
        signature_keys,
        require_signature,
    })
}

fn name(given: &mut Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<TenantId> {
    let Some(name) = given.get("name") else {
        report.mistake(
            context.place("name"),
            format!("is missing; it must be {:?}, as the file's name says", context.name),
        );
        return None;
    };
    match TenantId::parse(&name.string(report)?) {
        Ok(id) if id.as_str() == context.name => Some(id),
        Ok(_) => {
            name.wrong(format_args!("must be {:?}, as the file's name says", context.name), report);
            None
        }
        Err(error) => {
            report.mistake(name.at, error.to_string());
            None
        }
    }
}

/// Host names: lower case, without a port.
fn hosts(given: Vec<(Given<'_>, String)>, report: &mut Report) -> Vec<String> {
    let is_host = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
    };
    let mut hosts = Vec::with_capacity(given.len());
    for (written, name) in given {
        if is_host(&name) {
            hosts.push(name);
        } else {
            written.wrong(
                format_args!("{name:?} is no host name: lower case letters, digits, `.` and `-`, no port"),
                report,
            );
        }
    }
    hosts
}

/// Types of rooms: what stands before the colon of their names.
fn presence_events(given: Vec<(Given<'_>, String)>, report: &mut Report) -> Arc<[String]> {
    let mut types = Vec::with_capacity(given.len());
    for (written, name) in given {
        let reserved =
            Room::parse(&name).is_ok_and(|room| room.is_reserved()) || name == "user" || name == "connection";
        if name.is_empty() || name.contains([':', '#', '/']) || reserved {
            written
                .wrong("must be a type of rooms such as \"flat\", without `:`; not one of the gateway's own", report);
        } else {
            types.push(name);
        }
    }
    types.into()
}

fn backend_token(given: &mut Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<Secret> {
    let written = given.get("backend_token").map(Given::secret);
    let variable = given.get("backend_token_env");
    let (at, secret) = match (written, variable) {
        (None, None) => return None,
        (Some(written), None) => (written.at.clone(), written.string(report).map(|text| Secret(text.into_bytes()))),
        (None, Some(variable)) => {
            let name = variable.string(report)?;
            (variable.at.clone(), secret_of_environment(&variable, &name, context, report))
        }
        (Some(written), Some(_)) => {
            report.mistake(written.at, "give either `backend_token` or `backend_token_env`");
            return None;
        }
    };
    let secret = secret?;
    strength(&secret.0, BACKEND_TOKEN_BYTES_MIN, &at, context, report);
    Some(secret)
}

fn plugins(
    sections: Vec<Section<'_>>,
    call_limits: &CallLimits,
    context: &Context<'_>,
    report: &mut Report,
) -> Vec<PluginSettings> {
    let mut plugins: Vec<PluginSettings> = Vec::new();
    let (mut names, mut roles) = (HashSet::new(), HashSet::new());
    let mut all_read = true;
    for section in sections {
        let at = section.at.clone();
        let Some(plugin) = plugin(section, context, report) else {
            all_read = false;
            continue;
        };
        if !names.insert(plugin.name.clone()) {
            report.mistake(at.clone(), format!("the name {:?} is given twice", plugin.name));
        }
        for problem in plugin.limits.beyond(call_limits) {
            report.mistake(at.clone(), problem);
        }
        if plugin.role != Role::Handler && !roles.insert(plugin.role) {
            report.mistake(at, format!("a second {}; a tenant has at most one", role_name(plugin.role)));
        }
        plugins.push(plugin);
    }
    // Plugins of a tenant without a file come by themselves.
    if context.of_a_file && all_read && !roles.contains(&Role::Authorizer) {
        let name = context.name;
        report.warn(
            &context.place("plugins"),
            format_args!("the tenant {name} has no authorizer, so nobody may connect"),
        );
    }
    plugins
}

/// A role as the settings write it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Authorizer => "authorizer",
        Role::Router => "router",
        Role::Handler => "handler",
    }
}

/// One `[[plugins]]`.
pub(super) fn plugin(mut given: Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<PluginSettings> {
    let mut required = |key: &'static str, report: &mut Report| {
        let value = given.get(key);
        if value.is_none() {
            report.mistake(given.at.clone(), format!("`{key}` is missing"));
        }
        value
    };
    let name = required("name", report).and_then(|name| plugin_name(&name, report));
    let role = required("role", report).and_then(|role| plugin_role(&role, report));
    let component = required("component", report).and_then(|path| component(&path, context, report));
    let events = given.get("events");
    if let (Some(events), Some(Role::Authorizer | Role::Router)) = (&events, role) {
        report.mistake(events.at.clone(), "only a handler has events");
    }
    let events_given = events.is_some();
    let events = patterns(events, report);
    let settings = given.section("settings", report).map(|settings| texts(&settings, report)).unwrap_or_default();
    let instances = instances(&mut given, report);
    let limits = plugin_limits(given.section("call_limits", report), report);
    given.finish(report);
    (events.is_some() || !events_given).then_some(())?;
    Some(PluginSettings { name: name?.into(), role: role?, component: component?, events, settings, instances, limits })
}

/// `instances`, and how long warm ones are kept.
fn instances(given: &mut Section<'_>, report: &mut Report) -> Instances {
    let mode = given.get("instances");
    let word = mode.as_ref().and_then(|mode| mode.string(report));
    match (mode, word.as_deref()) {
        (_, Some("warm")) => {
            let mut limits = WarmLimits::default();
            given.integer("warm_max", 1..=256, &mut limits.idle_max, report);
            given.integer("warm_calls_max", 1..=1_000_000_000, &mut limits.calls_max, report);
            let growth = &mut limits.memory_growth_bytes_max;
            given.integer("warm_memory_growth_max", 0..=1 << 30, growth, report);
            return Instances::Warm(limits);
        }
        (Some(mode), Some(word)) if word != "fresh" => mode.wrong("must be \"fresh\" or \"warm\"", report),
        _ => {}
    }
    for key in ["warm_max", "warm_calls_max", "warm_memory_growth_max"] {
        if let Some(written) = given.get(key) {
            written.wrong("is only for `instances = \"warm\"`", report);
        }
    }
    Instances::Fresh
}

fn plugin_name(given: &Given<'_>, report: &mut Report) -> Option<String> {
    let name = given.string(report)?;
    if is_name(&name, PLUGIN_NAME_BYTES_MAX) {
        return Some(name);
    }
    given.wrong(format_args!("must be 1 to {PLUGIN_NAME_BYTES_MAX} of {NAME_FORM}"), report);
    None
}

fn plugin_role(given: &Given<'_>, report: &mut Report) -> Option<Role> {
    match given.string(report)?.as_str() {
        "authorizer" => Some(Role::Authorizer),
        "router" => Some(Role::Router),
        "handler" => Some(Role::Handler),
        _ => {
            given.wrong("must be \"authorizer\", \"router\" or \"handler\"", report);
            None
        }
    }
}

fn component(given: &Given<'_>, context: &Context<'_>, report: &mut Report) -> Option<PathBuf> {
    let base = context.plugins_dir.or(context.path.parent());
    let path = given.path(base, report)?;
    if context.with_components && !path.is_file() {
        report.mistake(given.at.clone(), format!("there is no component at {}; is it built?", path.display()));
    }
    Some(path)
}

/// Patterns of event names; `None` when nothing, or something wrong, is written.
pub(super) fn patterns(given: Option<Given<'_>>, report: &mut Report) -> Option<Vec<Pattern>> {
    let mistakes_before = report.mistakes.len();
    let mut patterns = Vec::new();
    for item in given?.items(report) {
        let Some(pattern) = item.string(report) else { continue };
        let beginning = pattern.strip_suffix('*').unwrap_or(&pattern);
        let fits = (1..=EVENT_NAME_BYTES_MAX).contains(&pattern.len());
        if !fits || beginning.contains('*') || beginning.chars().any(char::is_control) {
            let must = "must be an event's name or its beginning and `*`, of 1 to";
            item.wrong(format_args!("{must} {EVENT_NAME_BYTES_MAX} bytes"), report);
            continue;
        }
        patterns.push(Pattern(pattern));
    }
    (report.mistakes.len() == mistakes_before).then_some(patterns)
}

pub(super) fn texts(given: &Section<'_>, report: &mut Report) -> BTreeMap<String, String> {
    given.iter().filter_map(|(name, value)| Some((name.to_owned(), value.setting(report)?))).collect()
}
