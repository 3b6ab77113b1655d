//! Is this JSON?

use serde::de::IgnoredAny;

/// Checks that a text is JSON.
pub(in super::super) fn check(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| format!("not valid JSON: {error}"))
}
