//! Requests that are done once, however often they are sent.
//!
//! What was done leaves a record in the same commit. Whoever sends the request again is answered from the record; two
//! at the same time conflict over it, and the second one finds it.

use serde::{Deserialize, Serialize};

use super::plugin::Transaction;
use super::{Decisions, Undecided, engine_unavailable};
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
    pub(super) id: CommitId,
}

/// What is left of a request that was done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// Stands for the request.
    request: String,
    /// What it was answered.
    #[serde(default)]
    pub(super) reply: Option<Payload>,
}

impl Once {
    /// The request that `sender` calls `name`: remembered for [`COMMIT_ID_KEPT_MS`]. Another request of the same name is
    /// refused meanwhile.
    pub fn new(sender: &str, name: &str, request: &[u8]) -> Once {
        let name = TokenMark::digest_of(&format!("{sender}\n{name}"));
        let request = digest(request);
        // Two requests of one name at the same time are two commits, so that one of them is told.
        let id = CommitId::from(&*format!("once-{name}-{request}"));
        Once { key: StateKey::of(OWNER, &name), request, id }
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

    /// What it was answered, once it is committed: the same request may have been sent twice at the same time, and
    /// only one of them was applied. `own`: what this one would answer.
    pub(super) async fn answered(&self, decisions: &Decisions, own: Option<Payload>) -> Option<Payload> {
        let read = decisions.engine.read(&decisions.tenant, std::slice::from_ref(&self.key)).await;
        let record = read.ok().and_then(|found| found.into_iter().flatten().next());
        let done: Option<Done> = record.and_then(|record| serde_json::from_slice(&record.value).ok());
        done.filter(|done| done.request == self.request).map_or(own, |done| done.reply)
    }

    /// The record that goes with its commit.
    pub(super) fn record(&self, reply: Option<Payload>) -> (StateKey, Write) {
        let done = Done { request: self.request.clone(), reply };
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
