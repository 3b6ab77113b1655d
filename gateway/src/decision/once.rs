//! Requests that are done once, however often they are sent.
//!
//! What was done leaves a record in the same commit. Whoever sends the request again is answered from the record; two
//! at the same time conflict over it, and the second one finds it.

use serde::{Deserialize, Serialize};

use super::plugin::Transaction;
use super::{Undecided, engine_unavailable};
use crate::client::TokenMark;
use crate::commit::{CommitId, StateKey, Write};
use crate::engine::COMMIT_ID_KEPT_MS;
use crate::event::{Payload, Refusal};

/// In whose name the records are: no plugin can have it.
const OWNER: &str = "_once";

/// A request by the name that its sender has given it.
#[derive(Debug, Clone)]
pub struct Once {
    key: StateKey,
    request: String,
}

/// What is left of a request that was done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// Stands for the request.
    request: String,
    /// The commit that did it.
    pub(super) commit: CommitId,
    /// What it was answered.
    #[serde(default)]
    pub(super) reply: Option<Payload>,
}

impl Once {
    /// The request that `sender` calls `name`: remembered for [`COMMIT_ID_KEPT_MS`]. Another request of the same name is
    /// refused meanwhile.
    pub fn new(sender: &str, name: &str, request: &[u8]) -> Once {
        let name = TokenMark::digest_of(&format!("{sender}\n{name}"));
        Once { key: StateKey::of(OWNER, &name), request: digest(request) }
    }

    /// What came of it, if it was done. That it was not becomes part of what the commit rests on.
    pub(super) async fn done(&self, transaction: &mut Transaction) -> Result<Option<Done>, Undecided> {
        let found = transaction.read(std::slice::from_ref(&self.key)).await;
        let found = found.map_err(|error| engine_unavailable(&error.to_string()))?;
        let Some(record) = found.into_iter().flatten().next() else { return Ok(None) };
        match serde_json::from_slice::<Done>(&record) {
            Ok(done) if done.request == self.request => Ok(Some(done)),
            _ => {
                let text = "another request was sent with this idempotency key a moment ago: each needs its own";
                Err(Undecided::Refused(Refusal::new("idempotency_key_reused", text)))
            }
        }
    }

    /// The record that goes with its commit.
    pub(super) fn record(&self, commit: CommitId, reply: Option<Payload>) -> (StateKey, Write) {
        let done = Done { request: self.request.clone(), commit, reply };
        // Texts and bytes can always be written.
        let value = serde_json::to_vec(&done).unwrap_or_default();
        (self.key.clone(), Write::Put { value: value.into(), ttl_ms: Some(COMMIT_ID_KEPT_MS) })
    }
}

fn digest(bytes: &[u8]) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&sha2::Sha256::digest(bytes)[..16])
}
