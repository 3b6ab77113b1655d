//! The `[[api_keys]]` of a tenant: who may call its HTTP API, and for what.

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

use super::context::{Context, secret_of_environment, strength};
use super::source::{Given, Report, Section};
use crate::tenant::{ApiKey, ApiRight, NAME_FORM, Secret, is_name};

/// A key's secret shorter than this can be guessed, in bytes.
const SECRET_BYTES_MIN: usize = 32;

/// The longest name of a key, in bytes.
const ID_BYTES_MAX: usize = 64;

/// The most keys that a tenant can have: each request is compared with all.
const KEYS_MAX: usize = 64;

/// The ways to write a key's secret.
const SOURCES: [&str; 3] = ["secret", "secret_env", "secret_sha256"];

pub(super) fn api_keys(sections: Vec<Section<'_>>, context: &Context<'_>, report: &mut Report) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut ids = HashSet::new();
    if let Some(section) = sections.get(KEYS_MAX) {
        report.mistake(section.at.clone(), format!("{} keys; at most {KEYS_MAX} are possible", sections.len()));
    }
    for section in sections {
        let at = section.at.clone();
        let Some(key) = api_key(section, context, report) else { continue };
        if !ids.insert(key.id.clone()) {
            report.mistake(at, format!("the id {:?} is given twice", key.id));
        } else if keys.iter().any(|other| other.digest == key.digest) {
            report.mistake(at, "another key has the same secret");
        } else {
            keys.push(key);
        }
    }
    keys
}

/// One `[[api_keys]]`.
fn api_key(mut given: Section<'_>, context: &Context<'_>, report: &mut Report) -> Option<ApiKey> {
    let id = given.get("id");
    let may = given.get("may");
    let written: Vec<(&str, Given<'_>)> =
        SOURCES.into_iter().filter_map(|source| Some((source, given.get(source)?.secret()))).collect();
    let at = given.at.clone();
    given.finish(report);
    let (Some(id), Some(may), [(source, secret)]) = (id, may, written.as_slice()) else {
        let must = format!("give `id`, `may` and exactly one of {}", SOURCES.join(", "));
        report.mistake(at, must);
        return None;
    };
    let name = id.string(report)?;
    if !is_name(&name, ID_BYTES_MAX) {
        id.wrong(format_args!("must be 1 to {ID_BYTES_MAX} of {NAME_FORM}"), report);
        return None;
    }
    let may = rights(&may, report)?;
    Some(ApiKey { id: name.into(), digest: digest(source, secret, context, report)?, may })
}

fn rights(given: &Given<'_>, report: &mut Report) -> Option<Vec<ApiRight>> {
    let mistakes_before = report.mistakes.len();
    let words = ApiRight::ALL.map(ApiRight::word).join(", ");
    let mut may = Vec::new();
    for item in given.items(report) {
        let Some(word) = item.string(report) else { continue };
        match ApiRight::ALL.into_iter().find(|right| right.word() == word) {
            Some(right) => may.push(right),
            None => item.wrong(format_args!("must be one of {words}"), report),
        }
    }
    if may.is_empty() && report.mistakes.len() == mistakes_before {
        report.mistake(given.at.clone(), format!("must list at least one of {words}"));
    }
    (report.mistakes.len() == mistakes_before).then_some(may)
}

fn digest(source: &str, given: &Given<'_>, context: &Context<'_>, report: &mut Report) -> Option<[u8; 32]> {
    let text = given.string(report)?;
    let Secret(secret) = match source {
        "secret_sha256" => {
            let digest = hex(&text);
            if digest.is_none() {
                given.wrong("must be a SHA-256 as 64 hexadecimal digits", report);
            }
            return digest;
        }
        "secret_env" => secret_of_environment(given, &text, context, report)?,
        _ => Secret(text.into_bytes()),
    };
    strength(&secret, SECRET_BYTES_MIN, &given.at, context, report);
    Some(Sha256::digest(&secret).into())
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}
