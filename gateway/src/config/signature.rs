//! `signature_keys` and `require_signature` of a tenant: who signs its components.

use super::source::{Report, Section};
use crate::decision::plugin::public_key;
use crate::tenant::{SIGNATURE_KEY_ID_BYTES_MAX, SignatureKey, is_key_id};

/// The most keys of a tenant.
const SIGNATURE_KEYS_MAX: usize = 32;

/// All `[[signature_keys]]`: `id` and `public_key`, which is 32 bytes in Base64 or a PEM.
pub(super) fn signature_keys(sections: Vec<Section<'_>>, report: &mut Report) -> Vec<SignatureKey> {
    let mut keys: Vec<SignatureKey> = Vec::new();
    for (n, section) in sections.into_iter().enumerate() {
        let at = section.at.clone();
        if n == SIGNATURE_KEYS_MAX {
            report.mistake(at, format!("a tenant has at most {SIGNATURE_KEYS_MAX} signature keys"));
            break;
        }
        let Some(key) = signature_key(section, report) else { continue };
        if keys.iter().any(|other| other.id == key.id) {
            report.mistake(at, format!("the key id {:?} is given twice", key.id));
        }
        keys.push(key);
    }
    keys
}

fn signature_key(mut given: Section<'_>, report: &mut Report) -> Option<SignatureKey> {
    let at = given.at.clone();
    let (id, text) = (given.get("id"), given.get("public_key"));
    given.finish(report);
    let (Some(id), Some(text)) = (id, text) else {
        report.mistake(at, "`id` and `public_key` are needed");
        return None;
    };
    let name = id.string(report)?;
    if !is_key_id(&name) {
        let must = "must be 1 to";
        id.wrong(format_args!("{must} {SIGNATURE_KEY_ID_BYTES_MAX} letters, digits, `.`, `_` and `-`"), report);
        return None;
    }
    match public_key(&text.string(report)?) {
        Ok(public_key) => Some(SignatureKey { id: name, public_key }),
        Err(error) => {
            report.mistake(text.at, error.to_string());
            None
        }
    }
}

/// `require_signature`; without keys nothing could be uploaded.
pub(super) fn require_signature(given: &mut Section<'_>, keys: &[SignatureKey], report: &mut Report) -> bool {
    let Some(required) = given.get("require_signature") else { return false };
    let is_required = required.boolean(report).unwrap_or(false);
    if is_required && keys.is_empty() {
        report.warn(&required.at, "there are no `signature_keys`, so no component can be uploaded");
    }
    is_required
}
