//! The `[auth]` of a tenant: keys from texts, files, URLs and the environment.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::context::{Context, secret_of_environment, strength};
use super::source::{Given, Place, Report, Section};
use crate::decision::token::{
    ALGORITHMS, KEYS_PER_ALGORITHM_MAX, KeyError, algorithm_named, check_key, jwk_algorithm, read_key_set,
    shared_secret,
};
use crate::tenant::{Algorithm, Auth, KeyMaterial, KeySet, KeySetSource, Secret, VerifyingKey};

/// Shared secrets shorter than this can be guessed (RFC 7518 §3.2), in bytes.
const SECRET_BYTES_MIN: usize = 32;

/// The clock skew allowed unless written otherwise, in seconds, and the most that can be written.
const LEEWAY_S: u64 = 30;
const LEEWAY_S_MAX: u64 = 600;

/// How often key sets behind URLs are fetched, unless written otherwise, and what can be written, in milliseconds.
const KEY_SET_REFRESH: Duration = Duration::from_secs(300);
const KEY_SET_REFRESH_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// The longest URL of a key set, in bytes.
const URL_BYTES_MAX: usize = 2_048;

/// The ways to write a key.
const SOURCES: [&str; 5] = ["secret", "secret_env", "pem", "pem_file", "jwk"];

pub(super) fn auth(section: Option<Section<'_>>, context: &Context<'_>, report: &mut Report) -> Auth {
    let mut auth = Auth {
        keys: Vec::new(),
        key_sets: Vec::new(),
        key_set_refresh: KEY_SET_REFRESH,
        key_sets_end_connections: false,
        subject_claim: "sub".into(),
        audiences: Vec::new(),
        issuers: Vec::new(),
        leeway: Duration::from_secs(LEEWAY_S),
        anonymous: false,
    };
    let mistakes_before = report.mistakes.len();
    let Some(mut given) = section else {
        if context.of_a_file {
            report.mistake(context.place("auth"), "is missing: without keys nobody can connect");
        } else {
            report.warn(&context.place("auth"), "the tenant has no key yet, so nobody can connect");
        }
        return auth;
    };
    if let Some(claim) = given.get("subject_claim") {
        match claim.string(report) {
            Some(name) if name.is_empty() => claim.wrong("must be the name of a claim", report),
            Some(name) => auth.subject_claim = name,
            None => {}
        }
    }
    auth.audiences = given.strings("audiences", report).into_iter().map(|(_, text)| text).collect();
    auth.issuers = given.strings("issuers", report).into_iter().map(|(_, text)| text).collect();
    if let Some(seconds) = given.get("leeway_s").and_then(|given| given.integer(0..=LEEWAY_S_MAX, report)) {
        auth.leeway = Duration::from_secs(seconds);
    }
    if let Some(anonymous) = given.get("anonymous") {
        auth.anonymous = anonymous.boolean(report).unwrap_or(false);
        if auth.anonymous {
            let name = context.name;
            report.warn(&anonymous.at, format_args!("the tenant {name} lets clients in without a token"));
        }
    }
    (auth.keys, auth.key_sets) = keys(&mut given, context, report);
    auth.key_sets.extend(key_set_url(&mut given, context, report));
    if let Some(refresh) = given.get("jwks_refresh_ms").and_then(|given| given.millis(KEY_SET_REFRESH_MS, report)) {
        auth.key_set_refresh = refresh;
    }
    if let Some(ends) = given.get("jwks_ends_connections").and_then(|given| given.boolean(report)) {
        auth.key_sets_end_connections = ends;
    }
    let at = given.at.clone();
    given.finish(report);
    let later = auth.key_sets.iter().any(|set| matches!(set.source, KeySetSource::Url { .. }));
    if auth.all_keys().next().is_none() && !later && !auth.anonymous && report.mistakes.len() == mistakes_before {
        let problem = "no key can be used, so nobody can connect: give `[[auth.keys]]`, `jwks_file` or `jwks_url`";
        if context.of_a_file {
            report.mistake(at, problem);
        } else {
            // A tenant is made first; its keys are put one by one.
            report.warn(&at, "the tenant has no key yet, so nobody can connect");
        }
    }
    auth
}

/// The written keys, and the set of the file that is named.
fn keys(given: &mut Section<'_>, context: &Context<'_>, report: &mut Report) -> (Vec<VerifyingKey>, Vec<KeySet>) {
    let mut keys: Vec<(Place, VerifyingKey)> = Vec::new();
    for section in given.sections("keys", report) {
        let at = section.at.clone();
        let id = section.iter().find(|(name, _)| *name == "id").and_then(|(_, id)| id.string(&mut Report::default()));
        let before = report.mistakes.len();
        if let Some(key) = written_key(section, context, report) {
            if let Some((_, other)) =
                keys.iter().find(|(_, other)| other.id != key.id && other.material == key.material)
            {
                let other = other.id.as_deref().unwrap_or_default();
                let problem = format!(
                    "is the same key as that of the id {other:?}: taking one of them away would keep nobody out"
                );
                report.mistake(at.clone(), problem);
            }
            keys.push((at, key));
        }
        named(id.as_deref(), before, context, report);
    }
    let written = keys.len();
    let mut source = None;
    if let Some(file) = given.get("jwks_file")
        && let Some(set) = key_set_file(&file, context, report)
    {
        keys.extend(set.keys.into_iter().map(|key| (file.at.clone(), key)));
        source = Some(set.source);
    }

    let mut ids = HashSet::new();
    for (at, key) in &keys {
        if let Some(id) = key.id.as_ref().filter(|id| !ids.insert((*id).clone())) {
            report.mistake(at.clone(), format!("the key id {id:?} is given twice"));
        }
        let before = report.mistakes.len();
        check(key, at, context, report);
        named(key.id.as_deref(), before, context, report);
    }
    for algorithm in ALGORITHMS {
        let count = keys.iter().filter(|(_, key)| key.algorithm == algorithm).count();
        if count > KEYS_PER_ALGORITHM_MAX {
            let problem =
                format!("{count} keys for {algorithm:?}; at most {KEYS_PER_ALGORITHM_MAX} are tried for one token");
            report.mistake(given.at.clone(), problem);
        }
    }
    let mut keys: Vec<_> = keys.into_iter().map(|(_, key)| key).collect();
    let of_the_set = keys.split_off(written);
    (keys, source.map(|source| KeySet { source, keys: of_the_set }).into_iter().collect())
}

/// Mistakes in a key of a document, which has no lines and whose keys are put one by one, say in which.
fn named(id: Option<&str>, from: usize, context: &Context<'_>, report: &mut Report) {
    let Some(id) = id.filter(|_| !context.of_a_file) else { return };
    for mistake in report.mistakes.iter_mut().skip(from) {
        mistake.problem = format!("of the key {id:?}: {}", mistake.problem);
    }
}

/// One `[[auth.keys]]`.
fn written_key(mut given: Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<VerifyingKey> {
    let id = given.string("id", report);
    let named = given.get("algorithm");
    let written: Vec<(&str, Given<'_>)> =
        SOURCES.into_iter().filter_map(|source| Some((source, given.get(source)?.secret()))).collect();
    let at = given.at.clone();
    given.finish(report);

    let algorithm = match &named {
        Some(given) => Some(algorithm(given, report)?),
        None => None,
    };
    let [(source, value)] = written.as_slice() else {
        report.mistake(at, format!("give exactly one of {}; there are {}", SOURCES.join(", "), written.len()));
        return None;
    };
    let material = material(source, value, context, report)?;
    let algorithm = match (algorithm, &material) {
        (Some(algorithm), _) => algorithm,
        (None, KeyMaterial::Jwk(text)) => match jwk_algorithm(text) {
            Ok(algorithm) => algorithm,
            Err(error) => {
                report.mistake(value.at.clone(), error.to_string());
                return None;
            }
        },
        (None, _) => {
            report.mistake(at, format!("`algorithm` is missing: one of {}", algorithm_names()));
            return None;
        }
    };
    Some(VerifyingKey { id, algorithm, material })
}

fn algorithm(given: &Given<'_>, report: &mut Report) -> Option<Algorithm> {
    let algorithm = algorithm_named(&given.string(report)?);
    if algorithm.is_none() {
        given.wrong(format_args!("must be one of {}", algorithm_names()), report);
    }
    algorithm
}

fn algorithm_names() -> String {
    ALGORITHMS.map(|algorithm| format!("{algorithm:?}")).join(", ")
}

fn material(source: &str, given: &Given<'_>, context: &Context<'_>, report: &mut Report) -> Option<KeyMaterial> {
    let text = given.string(report)?;
    match source {
        "secret" => Some(KeyMaterial::Secret(Secret(text.into_bytes()))),
        "secret_env" => secret_of_environment(given, &text, context, report).map(KeyMaterial::Secret),
        "pem" => Some(KeyMaterial::Pem(text.into_bytes())),
        "pem_file" => match context.read(&text) {
            Ok((_, pem)) => Some(KeyMaterial::Pem(pem)),
            Err(problem) => {
                report.mistake(given.at.clone(), problem);
                None
            }
        },
        _ => Some(KeyMaterial::Jwk(text)),
    }
}

/// The keys of a JWK set file. Keys of kinds that nothing here uses are only warned of: a
/// provider's set may well hold some.
fn key_set_file(given: &Given<'_>, context: &Context<'_>, report: &mut Report) -> Option<KeySet> {
    let path = given.string(report)?;
    let read = context.read(&path).and_then(|(path, bytes)| match read_key_set(&bytes, false) {
        Ok(set) => Ok((path, set)),
        Err(problem) => Err(format!("{} {problem}", path.display())),
    });
    let (path, set) = match read {
        Ok(read) => read,
        Err(problem) => {
            report.mistake(given.at.clone(), problem);
            return None;
        }
    };
    for (index, error) in set.left_out {
        match error {
            KeyError::PrivateKey => report.mistake(given.at.clone(), format!("keys[{index}]: {error}")),
            error => report.warn(&given.at, format_args!("keys[{index}] is left out: {error}")),
        }
    }
    Some(KeySet { source: KeySetSource::File(path), keys: set.keys })
}

/// A JWK set to be fetched; nothing is fetched here.
fn key_set_url(given: &mut Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<KeySet> {
    let given = given.get("jwks_url")?;
    let url = given.string(report)?;
    if let Err(must) = check_url(&url, context.of_a_file) {
        // Not shown: it may hold a password.
        report.mistake(given.at.clone(), must);
        return None;
    }
    let source = KeySetSource::Url { url: url.into(), public_only: !context.of_a_file };
    Some(KeySet { source, keys: Vec::new() })
}

/// `https`, or, where a file of this machine says so, `http` to this machine: whoever can change keys on their way can
/// make tokens.
fn check_url(url: &str, of_a_file: bool) -> Result<(), &'static str> {
    let uri: Option<hyper::Uri> = url.parse().ok().filter(|_| url.len() <= URL_BYTES_MAX);
    let Some((uri, host)) = uri.as_ref().and_then(|uri| Some((uri, uri.host()?))) else {
        return Err("must be a URL of at most 2048 bytes such as \"https://id.example.com/.well-known/jwks.json\"");
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("must have no user and no password in it");
    }
    let here = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if here && of_a_file => Ok(()),
        Some("http") if of_a_file => {
            Err("must be https: plain http is only for this machine (localhost, 127.0.0.1, ::1)")
        }
        _ => Err("must be https"),
    }
}

fn check(key: &VerifyingKey, at: &Place, context: &Context<'_>, report: &mut Report) {
    if let Err(error) = check_key(key) {
        report.mistake(at.clone(), error.to_string());
        return;
    }
    let Some(Secret(secret)) = shared_secret(key) else { return };
    strength(&secret, SECRET_BYTES_MIN, at, context, report);
}
