//! What each node says of itself in the catalog: which tenants it serves that the catalog does not know.
//!
//! What such a tenant has stored is not deleted because another node, that does not have its file yet or any more, makes
//! or deletes one of its name.

use serde::{Deserialize, Serialize};

use super::record::{FORMAT, decode};
use super::store::Tries;
use super::tenants::GoneRecord;
use super::{Catalog, CatalogError, keys};
use crate::commit::Millis;
use crate::tenant::TenantId;

/// For how long what a node has said counts, in milliseconds: three minutes.
pub const NODE_SAID_MS: Millis = 180_000;

/// Nodes that say something, at most.
const NODES_MAX: usize = 10_000;

/// What one node says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord {
    /// The format of whoever wrote it.
    #[serde(default)]
    format: u32,
    /// The tenants that are written in its files.
    #[serde(default)]
    files: Vec<TenantId>,
    /// Those that it serves as they were, because the catalog has lost their records.
    #[serde(default)]
    lost: Vec<TenantId>,
}

impl Catalog {
    /// Says which tenants this node serves without the catalog: those of its files, and `lost` ones. From then on, for
    /// [`NODE_SAID_MS`], nobody deletes what they have stored.
    ///
    /// # Errors
    /// The engine.
    pub async fn say(&self, server: &str, lost: Vec<TenantId>) -> Result<(), CatalogError> {
        let mut files: Vec<_> = self.inner.files.keys().cloned().collect();
        files.sort();
        let kept: Vec<TenantId> = files.iter().chain(&lost).cloned().collect();
        let mut draft = self.draft();
        draft.put(keys::node(server), &NodeRecord { format: FORMAT, files, lost }, Some(NODE_SAID_MS))?;
        draft.commit().await?;
        // Whoever had one of these names before is not in the way any more, nor is whoever deletes what that one has left.
        let marks = kept.iter().map(keys::gone).collect::<Vec<_>>();
        for ((_, mark), id) in self.read(&marks).await?.into_iter().zip(&kept) {
            if mark.is_some() {
                self.let_stay(id).await?;
            }
        }
        Ok(())
    }

    /// What is stored under the name of a deleted tenant is another's.
    async fn let_stay(&self, id: &TenantId) -> Result<(), CatalogError> {
        let mut tries = Tries::default();
        loop {
            tries.next().await?;
            let mut draft = self.draft();
            match draft.get::<GoneRecord>(keys::gone(id)).await? {
                Some(mark) if !mark.stays => draft.put(keys::gone(id), &GoneRecord { stays: true, ..mark }, None)?,
                _ => return Ok(()),
            }
            if draft.commit().await? {
                return Ok(());
            }
        }
    }

    /// Does some node serve a tenant of this name without the catalog?
    pub(super) async fn is_kept(&self, id: &TenantId) -> Result<bool, CatalogError> {
        Ok(self.nodes_said().await?.iter().any(|node| node.files.contains(id) || node.lost.contains(id)))
    }

    /// Does some node know of records that the catalog has lost?
    pub(super) async fn is_missed(&self) -> Result<bool, CatalogError> {
        Ok(self.nodes_said().await?.iter().any(|node| !node.lost.is_empty()))
    }

    async fn nodes_said(&self) -> Result<Vec<NodeRecord>, CatalogError> {
        let keys = self.list_all(keys::NODES, "nodes", NODES_MAX).await?;
        let found = self.read(&keys).await?;
        found.into_iter().filter_map(|(key, value)| Some(decode(&key, &value?.value))).collect()
    }
}
