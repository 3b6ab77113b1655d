//! The `[auth]` of a tenant: keys from texts, files and the environment.

use std::collections::HashSet;
use std::time::Duration;

use super::source::{Given, Place, Report, Section};
use super::tenant::Context;
use crate::decision::token::{
    ALGORITHMS, KEYS_PER_ALGORITHM_MAX, KeyError, algorithm_named, check_key, jwk_algorithm, shared_secret,
};
use crate::tenant::{Algorithm, Auth, KeyMaterial, Secret, VerifyingKey};

/// Shared secrets shorter than this can be guessed (RFC 7518 §3.2), in bytes.
const SECRET_BYTES_MIN: usize = 32;

/// What the secrets of the examples contain; they are in a public repository.
const DEMO_MARK: &[u8] = b"demo-only";

/// The clock skew allowed unless written otherwise, in seconds, and the most that can be written.
const LEEWAY_S: u64 = 30;
const LEEWAY_S_MAX: u64 = 600;

/// The ways to write a key.
const SOURCES: [&str; 5] = ["secret", "secret_env", "pem", "pem_file", "jwk"];

pub(super) fn auth(section: Option<Section<'_>>, context: &Context<'_>, report: &mut Report) -> Auth {
    let mut auth = Auth {
        keys: Vec::new(),
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
    auth.keys = keys(&mut given, context, report);
    let at = given.at.clone();
    given.finish(report);
    if auth.keys.is_empty() && !auth.anonymous && report.mistakes.len() == mistakes_before {
        let problem = "no key can be used, so nobody can connect: give `[[auth.keys]]` or `jwks_file`";
        if context.of_a_file {
            report.mistake(at, problem);
        } else {
            // A tenant is made first; its keys are put one by one.
            report.warn(&at, "the tenant has no key yet, so nobody can connect");
        }
    }
    auth
}

fn keys(given: &mut Section<'_>, context: &Context<'_>, report: &mut Report) -> Vec<VerifyingKey> {
    let mut keys: Vec<(Place, VerifyingKey)> = Vec::new();
    for section in given.sections("keys", report) {
        let at = section.at.clone();
        if let Some(key) = written_key(section, context, report) {
            keys.push((at, key));
        }
    }
    if let Some(file) = given.get("jwks_file") {
        keys.extend(key_set(&file, context, report).into_iter().map(|key| (file.at.clone(), key)));
    }

    let mut ids = HashSet::new();
    for (at, key) in &keys {
        if let Some(id) = key.id.as_ref().filter(|id| !ids.insert((*id).clone())) {
            report.mistake(at.clone(), format!("the key id {id:?} is given twice"));
        }
        check(key, at, context, report);
    }
    for algorithm in ALGORITHMS {
        let count = keys.iter().filter(|(_, key)| key.algorithm == algorithm).count();
        if count > KEYS_PER_ALGORITHM_MAX {
            let problem =
                format!("{count} keys for {algorithm:?}; at most {KEYS_PER_ALGORITHM_MAX} are tried for one token");
            report.mistake(given.at.clone(), problem);
        }
    }
    keys.into_iter().map(|(_, key)| key).collect()
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

/// The secret in a variable of the environment.
pub(super) fn secret_of_environment(
    given: &Given<'_>,
    variable: &str,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Secret> {
    let value = context.env.get(variable).filter(|value| !value.is_empty());
    if value.is_none() {
        report.mistake(given.at.clone(), format!("the environment variable `{variable}` is not set"));
    }
    value.map(|value| Secret(value.into_bytes()))
}

/// The keys of a JWK set file. Keys of kinds that nothing here uses are only warned of: a
/// provider's set may well hold some.
fn key_set(given: &Given<'_>, context: &Context<'_>, report: &mut Report) -> Vec<VerifyingKey> {
    let Some(path) = given.string(report) else { return Vec::new() };
    let set = context.read(&path).and_then(|(path, bytes)| {
        let mut set: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| format!("{} is no JSON: {error}", path.display()))?;
        match set.get_mut("keys").map(serde_json::Value::take) {
            Some(serde_json::Value::Array(keys)) => Ok(keys),
            _ => Err(format!("{} is no JWK set: it has no array `keys`", path.display())),
        }
    });
    let set = match set {
        Ok(set) => set,
        Err(problem) => {
            report.mistake(given.at.clone(), problem);
            return Vec::new();
        }
    };
    let mut keys = Vec::new();
    for (index, jwk) in set.into_iter().enumerate() {
        let id = jwk.get("kid").and_then(serde_json::Value::as_str).map(String::from);
        let text = jwk.to_string();
        match jwk_algorithm(&text) {
            Ok(algorithm) => keys.push(VerifyingKey { id, algorithm, material: KeyMaterial::Jwk(text) }),
            Err(error @ KeyError::PrivateKey) => report.mistake(given.at.clone(), format!("keys[{index}]: {error}")),
            Err(error) => report.warn(&given.at, format_args!("keys[{index}] is left out: {error}")),
        }
    }
    keys
}

fn check(key: &VerifyingKey, at: &Place, context: &Context<'_>, report: &mut Report) {
    if let Err(error) = check_key(key) {
        report.mistake(at.clone(), error.to_string());
        return;
    }
    let Some(Secret(secret)) = shared_secret(key) else { return };
    strength(&secret, SECRET_BYTES_MIN, at, context, report);
}

/// A secret that can be guessed is a mistake, and in a demonstration a warning.
pub(super) fn strength(secret: &[u8], bytes_min: usize, at: &Place, context: &Context<'_>, report: &mut Report) {
    if secret.len() < bytes_min {
        let problem = format!("the secret has {} bytes; at least {bytes_min} are needed", secret.len());
        if context.demo {
            report.warn(at, problem);
        } else {
            report.mistake(at.clone(), problem);
        }
    } else if !context.demo && secret.windows(DEMO_MARK.len()).any(|window| window == DEMO_MARK) {
        report.warn(at, "this is the public secret of an example: anybody can make tokens with it");
    }
}
