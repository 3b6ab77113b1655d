//! Components that no version names any more are deleted, some time after the last one did.
//!
//! A round first finds the components that are old, then reads which ones are named, and deletes those that are not,
//! each only if it was not stored or kept since it was found. An upload stores its component before its record, and
//! storing makes it young again, whether or not it was there: so whatever is named after a round has read the names was
//! stored after the round has found it, or not long before, and stays; however long the round was held up in between.
//! What is named is noted with each round ([`Engine::keep_artifacts`]), well before it is old enough to go.
//!
//! [`Engine::keep_artifacts`]: crate::engine::Engine::keep_artifacts

use std::collections::HashSet;
use std::sync::Arc;

use super::record::decode;
use super::{Catalog, CatalogError, PluginRecord, keys};
use crate::commit::Millis;

/// How long a component stays that no version names, in milliseconds: an hour.
pub const COMPONENTS_KEPT_MS: Millis = 3_600_000;

/// How much of that passes before a round notes that a component is still named.
const NOTED_AT: Millis = 4;

/// Components with one first byte that a round looks at, at most: the oldest.
const COMPONENTS_AT_ONCE: usize = 500;

/// Records that are read at once; each has at most a mebibyte.
const RECORDS_AT_ONCE: usize = 32;

/// Components that versions name, at most, for a round to be made.
const NAMED_MAX: usize = 2_000_000;

impl Catalog {
    /// Deletes the components that no version names and that for `unnamed_ms` nobody has stored and no round has seen
    /// named. Answers how many. Any node may do so, also at the same time.
    ///
    /// # Errors
    /// Also where a record cannot be read: what it names is not known, and nothing is deleted.
    pub async fn collect_components(&self, unnamed_ms: Millis) -> Result<u64, CatalogError> {
        let mut old = Vec::new();
        for first in 0..=u8::MAX {
            old.extend(self.engine().old_artifacts(first, unnamed_ms, COMPONENTS_AT_ONCE).await?);
        }
        // Their components may be needed again.
        if self.is_missed().await? {
            return Ok(0);
        }
        let named = self.named_components().await?;
        // A catalog that names none may be one that was lost, and come back.
        if named.is_empty() {
            return Ok(0);
        }
        for first in 0..=u8::MAX {
            let aging = self.engine().old_artifacts(first, unnamed_ms / NOTED_AT, COMPONENTS_AT_ONCE).await?;
            let aging = aging.into_iter().map(|old| old.digest);
            self.engine().keep_artifacts(&aging.filter(|digest| named.contains(&**digest)).collect::<Vec<_>>()).await?;
        }
        let mut deleted = 0;
        for old in old.iter().filter(|old| !named.contains(&*old.digest)) {
            deleted += u64::from(self.engine().delete_artifact(old).await?);
        }
        Ok(deleted)
    }

    async fn named_components(&self) -> Result<HashSet<Arc<str>>, CatalogError> {
        let mut named = HashSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(keys::PLUGINS, after.as_deref(), RECORDS_AT_ONCE).await?;
            for (key, record) in self.read(&page.keys).await? {
                let Some(record) = record else { continue };
                let plugin: PluginRecord = decode(&key, &record.value)?;
                named.extend(plugin.versions.into_iter().map(|version| version.digest));
            }
            if named.len() > NAMED_MAX {
                let (what, value, limit) = ("components that versions name", named.len(), NAMED_MAX);
                return Err(CatalogError::Limit { what, value, limit });
            }
            after = page.keys.last().filter(|_| page.more).map(|key| key.as_str().to_owned());
            if after.is_none() {
                return Ok(named);
            }
        }
    }
}
