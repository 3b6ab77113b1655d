//! The parameters of a request's query.

use std::collections::BTreeMap;

use super::denied::Denied;
use crate::connection::upgrade;

/// What stands behind the `?`.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn read(query: Option<&str>) -> Query {
        Query(upgrade::query_parameters(query).into_iter().collect())
    }

    /// A text; an empty one is none.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A number from 1 to `max`.
    pub(super) fn limit(&self, default: usize, max: usize) -> Result<usize, Denied> {
        let Some(text) = self.text("limit") else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (1..=max).contains(number));
        number.ok_or_else(|| Denied::invalid(format!("limit must be an integer from 1 to {max}, not {text:?}")))
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Denied> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Denied::invalid(format!("{name} must be an integer, not {text:?}")))
    }

    /// `true` or `false`.
    pub(super) fn truth(&self, name: &str) -> Result<bool, Denied> {
        match self.text(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(Denied::invalid(format!("{name} must be true or false, not {other:?}"))),
        }
    }
}
