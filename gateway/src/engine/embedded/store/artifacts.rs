//! Artefacts, and when each was stored or kept last.

use bytes::Bytes;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::Store;
use crate::commit::Millis;
use crate::engine::OldArtifact;

/// SHA-256 → bytes
const ARTIFACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("artifacts");

/// SHA-256 → when it was stored or kept last; none: before that was noted.
const TIMES: TableDefinition<'_, &str, Millis> = TableDefinition::new("artifact_times");

/// Makes the tables where there are none.
pub(super) fn open(txn: &WriteTransaction) -> Result<(), TableError> {
    txn.open_table(ARTIFACTS)?;
    txn.open_table(TIMES)?;
    Ok(())
}

impl Store {
    /// An artefact's bytes.
    pub(in crate::engine::embedded) fn artifact(&self, digest: &str) -> Result<Option<Bytes>, redb::Error> {
        let artifacts = self.db.begin_read()?.open_table(ARTIFACTS)?;
        Ok(artifacts.get(digest)?.map(|bytes| Bytes::copy_from_slice(bytes.value())))
    }

    /// Stores an artefact. What is there already has the same bytes.
    pub(in crate::engine::embedded) fn put_artifact(
        &self,
        digest: &str,
        bytes: &[u8],
        now: Millis,
    ) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut artifacts = txn.open_table(ARTIFACTS)?;
            if artifacts.get(digest)?.is_none() {
                artifacts.insert(digest, bytes)?;
            }
            txn.open_table(TIMES)?.insert(digest, now)?;
        }
        Ok(txn.commit()?)
    }

    /// See [`Engine::old_artifacts`](crate::engine::Engine::old_artifacts); `before`: last stored or kept then.
    pub(in crate::engine::embedded) fn old_artifacts(
        &self,
        first: u8,
        before: Millis,
        limit: usize,
    ) -> Result<Vec<OldArtifact>, redb::Error> {
        let txn = self.db.begin_read()?;
        let (artifacts, times) = (txn.open_table(ARTIFACTS)?, txn.open_table(TIMES)?);
        let (prefix, mut found) = (format!("{first:02x}"), Vec::new());
        for row in artifacts.range(&*prefix..)? {
            let row = row?.0;
            let digest = row.value();
            if !digest.starts_with(&prefix) {
                break;
            }
            let last = times.get(digest)?.map_or(0, |last| last.value());
            if last <= before {
                found.push(OldArtifact { last, digest: digest.to_owned() });
            }
        }
        found.sort();
        found.truncate(limit);
        Ok(found)
    }

    /// These are kept now, where they are there.
    pub(in crate::engine::embedded) fn keep_artifacts(
        &self,
        digests: &[String],
        now: Millis,
    ) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let (artifacts, mut times) = (txn.open_table(ARTIFACTS)?, txn.open_table(TIMES)?);
            for digest in digests {
                if artifacts.get(&**digest)?.is_some() {
                    times.insert(&**digest, now)?;
                }
            }
        }
        Ok(txn.commit()?)
    }

    /// Deletes an artefact that was not stored or kept since it was found old; is it gone?
    pub(in crate::engine::embedded) fn delete_artifact(&self, old: &OldArtifact) -> Result<bool, redb::Error> {
        let txn = self.db.begin_write()?;
        let deleted = {
            let mut times = txn.open_table(TIMES)?;
            let last = times.get(&*old.digest)?.map_or(0, |last| last.value());
            let is_the_same = last == old.last;
            if is_the_same {
                times.remove(&*old.digest)?;
            }
            is_the_same && txn.open_table(ARTIFACTS)?.remove(&*old.digest)?.is_some()
        };
        txn.commit()?;
        Ok(deleted)
    }
}
