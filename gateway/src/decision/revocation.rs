//! Tokens that are good no more, before their time.
//!
//! A revocation is a record in the tenant's state and, in the same commit, an entry of its log. A connect reads the
//! record in its own transaction: where the record comes first the connect is refused, where the connection comes
//! first every node finds it when the entry comes. There is nothing in between.
//!
//! A revocation never weakens another: of a subject there are at most two, one of all its tokens and one of those issued
//! before some time, and each is only prolonged. Whoever wants less takes back what there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Decisions, Undecided, engine_unavailable};
use crate::client::{Identity, TokenMark};
use crate::commit::{Commit, CommitId, Effect, Millis, Position, Revoked, StateKey, Write, now_ms};
use crate::engine::{EngineError, Outcome};
use crate::event::Refusal;

use super::plugin::Transaction;

/// In whose name the records are: no plugin can have it.
const OWNER: &str = "_revoked";

/// The longest time for which something is revoked, in milliseconds: 400 days.
pub const REVOKED_MS_MAX: Millis = 400 * 24 * 3_600_000;

/// The longest `jti` that can be revoked, in bytes.
pub const TOKEN_ID_BYTES_MAX: usize = 1_024;

/// Records that are read at once when all are looked through.
const PAGE: usize = 200;

/// Revocations that a tenant has at a time, about: nodes do not count each other's of the last [`COUNTED_ANEW`].
pub const REVOCATIONS_MAX: usize = 100_000;

/// How long a count of a tenant's revocations is gone by; those that end by themselves are not told.
const COUNTED_ANEW: Duration = Duration::from_secs(60);

/// Keys that are read at once when they are counted.
const COUNTED_AT_ONCE: usize = 1_000;

/// How often a revocation is tried again because another of the same came between.
const TRIED_MAX: u32 = 16;

/// How many revocations a tenant has, as far as this node knows, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Count(Arc<Mutex<Option<(usize, Instant)>>>);

/// What is revoked, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Revocation {
    /// What.
    #[serde(flatten)]
    pub what: RevokedTokens,
    /// Until then, in milliseconds since the Unix epoch. Longer than the tokens live is long enough.
    pub until_ms: Millis,
}

/// A revocation as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    subject: Option<String>,
    issued_before_s: Option<u64>,
    token_id: Option<String>,
    until_ms: Millis,
}

impl TryFrom<Written> for Revocation {
    type Error = &'static str;
    fn try_from(written: Written) -> Result<Revocation, &'static str> {
        let what = match written {
            Written { subject: Some(subject), issued_before_s, token_id: None, .. } => {
                RevokedTokens::Subject { subject, issued_before_s }
            }
            Written { subject: None, issued_before_s: None, token_id: Some(token_id), .. } => {
                RevokedTokens::Token { token_id }
            }
            _ => return Err("give either subject, perhaps with issued_before_s, or token_id"),
        };
        Ok(Revocation { what, until_ms: written.until_ms })
    }
}

/// Which tokens are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RevokedTokens {
    /// Those of a subject.
    Subject {
        /// Whose.
        subject: String,
        /// Only those issued (`iat`) before this second since the Unix epoch, or that do not say when: who signs in
        /// anew gets in. `None`: all, for as long as the revocation lasts.
        #[serde(skip_serializing_if = "Option::is_none")]
        issued_before_s: Option<u64>,
    },
    /// One.
    Token {
        /// Its `jti`.
        token_id: String,
    },
}

impl Revocation {
    /// Can it be?
    ///
    /// # Errors
    /// A time that is past or further than [`REVOKED_MS_MAX`] away; a name that no token can have.
    pub fn check(&self) -> Result<(), Undecided> {
        let invalid = |text: String| Err(Undecided::Refused(Refusal::new("invalid", text)));
        let (now, until) = (now_ms(), self.until_ms);
        let ttl_ms = until.saturating_sub(now);
        if ttl_ms == 0 || ttl_ms > REVOKED_MS_MAX {
            return invalid(format!(
                "until_ms is after now ({now}) and at most {REVOKED_MS_MAX} ms later, not {until}"
            ));
        }
        let (name, bytes_max) = match &self.what {
            RevokedTokens::Subject { subject, .. } => (subject, super::token::SUBJECT_BYTES_MAX),
            RevokedTokens::Token { token_id } => (token_id, TOKEN_ID_BYTES_MAX),
        };
        if !(1..=bytes_max).contains(&name.len()) {
            return invalid(format!("it has {} bytes, from 1 to {bytes_max} are possible", name.len()));
        }
        Ok(())
    }

    /// For the audit log, which does not say whose tokens they are.
    pub fn told(&self) -> Value {
        match self.what {
            RevokedTokens::Subject { issued_before_s: Some(before), .. } => {
                json!({ "issued_before_s": before, "until_ms": self.until_ms })
            }
            _ => json!({ "until_ms": self.until_ms }),
        }
    }

    /// This one and what was revoked before under the same key, in one that revokes at least what both do.
    fn with(&self, before: &Revocation) -> Revocation {
        let mut both = self.clone();
        both.until_ms = both.until_ms.max(before.until_ms);
        if let (
            RevokedTokens::Subject { issued_before_s, .. },
            RevokedTokens::Subject { issued_before_s: earlier, .. },
        ) = (&mut both.what, &before.what)
        {
            *issued_before_s = issued_before_s.zip(*earlier).map(|(a, b)| a.max(b));
        }
        both
    }
}

impl RevokedTokens {
    fn key(&self) -> StateKey {
        match self {
            RevokedTokens::Subject { subject, issued_before_s: None } => subject_key(subject),
            RevokedTokens::Subject { subject, issued_before_s: Some(_) } => older_key(subject),
            RevokedTokens::Token { token_id } => token_key(&TokenMark::digest_of(token_id)),
        }
    }

    /// Names it without saying whose tokens they are, for example `subject:5ce1…`.
    pub fn digest(&self) -> String {
        match self {
            RevokedTokens::Subject { subject, .. } => format!("subject:{}", TokenMark::digest_of(subject)),
            RevokedTokens::Token { token_id } => format!("token:{}", TokenMark::digest_of(token_id)),
        }
    }

    fn revoked(&self) -> Revoked {
        match self {
            RevokedTokens::Subject { subject, issued_before_s } => {
                Revoked::Subject { subject: subject.as_str().into(), issued_before_s: *issued_before_s }
            }
            RevokedTokens::Token { token_id } => Revoked::Token { digest: TokenMark::digest_of(token_id) },
        }
    }
}

fn subject_key(subject: &str) -> StateKey {
    // Whatever a subject holds, its key is short and plain.
    StateKey::of(OWNER, &format!("subject:{}", TokenMark::digest_of(subject)))
}

/// Under a key of its own: it must not end a revocation of all of the subject's tokens.
fn older_key(subject: &str) -> StateKey {
    StateKey::of(OWNER, &format!("subject-older:{}", TokenMark::digest_of(subject)))
}

fn token_key(digest: &str) -> StateKey {
    StateKey::of(OWNER, &format!("token:{digest}"))
}

/// The keys that say whether this token is revoked.
fn keys_of(identity: &Identity, mark: &TokenMark) -> Vec<StateKey> {
    let mut keys = vec![subject_key(&identity.subject), older_key(&identity.subject)];
    keys.extend(mark.digest.as_deref().map(token_key));
    keys
}

/// Does one of these records revoke it? One that cannot be read does.
fn is_revoked(identity: &Identity, mark: &TokenMark, records: impl Iterator<Item = impl AsRef<[u8]>>) -> bool {
    let mut records = records;
    records.any(|record| match serde_json::from_slice::<Revocation>(record.as_ref()) {
        Ok(record) => record.what.revoked().covers(&identity.subject, mark),
        Err(_) => true,
    })
}

/// Refuses an identity whose token is revoked; that it is not becomes part of what the commit rests on.
pub(super) async fn check(transaction: &mut Transaction, identity: &Identity) -> Result<(), Undecided> {
    if identity.key.is_none() {
        return Ok(());
    }
    let mark = TokenMark::of_claims(&identity.claims);
    let records = transaction.read(&keys_of(identity, &mark)).await;
    let records = records.map_err(|error| engine_unavailable(&error.to_string()))?;
    if is_revoked(identity, &mark, records.into_iter().flatten()) {
        return Err(Undecided::Unauthorized(Revoked::refusal()));
    }
    Ok(())
}

impl Decisions {
    /// Revokes tokens from now on, on all nodes, at least as long as this one and any earlier one of the same say.
    ///
    /// # Errors
    /// What [`Revocation::check`] finds; more than [`REVOCATIONS_MAX`]; the engine.
    pub async fn revoke(&self, revocation: &Revocation) -> Result<Option<Position>, Undecided> {
        revocation.check()?;
        let unavailable = |error: EngineError| engine_unavailable(&error.to_string());
        let key = revocation.what.key();
        for _ in 0..TRIED_MAX {
            let found = self.engine.read(&self.tenant, std::slice::from_ref(&key)).await.map_err(unavailable)?;
            let found = found.into_iter().next().flatten();
            let is_new = found.is_none();
            if is_new {
                self.may_revoke().await?;
            }
            // One that cannot be read lets nobody in; it gives way to one that can.
            let before = found.as_ref().and_then(|found| serde_json::from_slice::<Revocation>(&found.value).ok());
            let stands = before.map_or_else(|| revocation.clone(), |before| revocation.with(&before));
            let value = serde_json::to_vec(&stands)
                .map_err(|error| Undecided::Refused(Refusal::new("invalid", error.to_string())))?;
            let ttl_ms = stands.until_ms.saturating_sub(now_ms()).max(1);
            let commit = Commit {
                reads: vec![(key.clone(), found.map(|found| found.version))],
                writes: vec![(key.clone(), Write::Put { value: value.into(), ttl_ms: Some(ttl_ms) })],
                effects: vec![Effect::Revoke(stands.what.revoked())],
                ..Commit::new(CommitId::random())
            };
            let mut outage = self.outage(commit.bytes());
            if let Some(Outcome::Committed(position)) = self.commit(commit, &mut outage).await? {
                if is_new && let Some((count, _)) = &mut *self.revocation_count.0.lock() {
                    *count += 1;
                }
                return Ok(Some(position));
            }
        }
        let text = format!("others revoked the same {TRIED_MAX} times in a row; try again");
        Err(Undecided::Later(Refusal::new("busy", text)))
    }

    /// Is there room for one more?
    async fn may_revoke(&self) -> Result<(), Undecided> {
        let known = self.revocation_count.0.lock().filter(|(_, at)| at.elapsed() < COUNTED_ANEW);
        let count = match known {
            Some((count, _)) => count,
            None => {
                let count = self.count_revocations().await.map_err(|error| engine_unavailable(&error.to_string()))?;
                *self.revocation_count.0.lock() = Some((count, Instant::now()));
                count
            }
        };
        if count >= REVOCATIONS_MAX {
            let text = format!("the tenant has {count} revocations, at most {REVOCATIONS_MAX}: take some back");
            return Err(Undecided::Refused(Refusal::new("limit", text)));
        }
        Ok(())
    }

    async fn count_revocations(&self) -> Result<usize, EngineError> {
        let prefix = format!("{OWNER}/");
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let page = self.engine.list_keys(&self.tenant, &prefix, after.as_deref(), COUNTED_AT_ONCE).await?;
            count += page.keys.len();
            after = page.keys.last().map(|key| key.as_str().to_owned());
            if !page.more || after.is_none() || count >= REVOCATIONS_MAX {
                return Ok(count);
            }
        }
    }

    /// Takes revocations back: such tokens are good again, if nothing else speaks against them. Of a subject both are
    /// taken back, that of all its tokens and that of older ones.
    ///
    /// # Errors
    /// The engine.
    pub async fn take_back(&self, what: &RevokedTokens) -> Result<(), Undecided> {
        let keys = match what {
            RevokedTokens::Subject { subject, .. } => vec![subject_key(subject), older_key(subject)],
            RevokedTokens::Token { .. } => vec![what.key()],
        };
        let writes = keys.into_iter().map(|key| (key, Write::Delete)).collect();
        *self.revocation_count.0.lock() = None;
        self.commit_directly(Commit { writes, ..Commit::new(CommitId::random()) }).await.map(|_| ())
    }

    /// Some of what is revoked, in an order of its own: at most `limit` (1 to 200) after the mark `after`, and the mark
    /// to go on from if there are more.
    ///
    /// # Errors
    /// The engine.
    pub async fn revocations(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Revocation>, Option<String>), EngineError> {
        let prefix = format!("{OWNER}/");
        let after = after.map(|mark| format!("{prefix}{mark}"));
        let page = self.engine.list_keys(&self.tenant, &prefix, after.as_deref(), limit.clamp(1, PAGE)).await?;
        let next = page.keys.last().filter(|_| page.more);
        let next = next.and_then(|key| key.as_str().strip_prefix(&prefix).map(str::to_owned));
        let values = if page.keys.is_empty() { Vec::new() } else { self.engine.read(&self.tenant, &page.keys).await? };
        let revocations = values.into_iter().flatten().filter_map(|found| serde_json::from_slice(&found.value).ok());
        Ok((revocations.collect(), next))
    }

    /// Some of what is revoked, for connections to be held against; the mark to go on from if there is more.
    ///
    /// # Errors
    /// The engine.
    pub async fn revoked(&self, after: Option<&str>) -> Result<(Vec<Revoked>, Option<String>), EngineError> {
        let (page, next) = self.revocations(after, PAGE).await?;
        Ok((page.iter().map(|revocation| revocation.what.revoked()).collect(), next))
    }

    /// Is this identity's token revoked? What is revoked after the answer is told by the log.
    ///
    /// # Errors
    /// The engine.
    pub async fn is_revoked(&self, identity: &Identity) -> Result<bool, EngineError> {
        let mark = TokenMark::of_claims(&identity.claims);
        let records = self.engine.read(&self.tenant, &keys_of(identity, &mark)).await?;
        Ok(is_revoked(identity, &mark, records.into_iter().flatten().map(|found| found.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(claims: &str) -> Identity {
        Identity { subject: "alice".into(), claims: claims.into(), expires_at_s: None, key: Some(1) }
    }

    fn revoked(claims: &str, record: &str) -> bool {
        let identity = identity(claims);
        is_revoked(&identity, &TokenMark::of_claims(claims), std::iter::once(record))
    }

    #[test]
    fn a_record_revokes_the_tokens_that_it_names_and_no_others() {
        let of_alice = r#"{"subject":"alice","until_ms":9}"#;
        assert!(revoked("{}", of_alice) && !revoked("{}", r#"{"subject":"bob","until_ms":9}"#));
        let one = r#"{"token_id":"t1","until_ms":9}"#;
        assert!(revoked(r#"{"jti":"t1"}"#, one) && !revoked(r#"{"jti":"t2"}"#, one) && !revoked("{}", one));
        let older = r#"{"subject":"alice","issued_before_s":100,"until_ms":9}"#;
        assert!(revoked(r#"{"iat":99}"#, older) && revoked("{}", older) && revoked(r#"{"iat":99.5}"#, older));
        assert!(!revoked(r#"{"iat":100}"#, older));
        assert!(revoked("{}", "damaged"), "what cannot be read lets nobody in");
    }

    #[test]
    fn a_revocation_is_written_as_it_is_read_and_says_one_thing_only() {
        for text in [
            r#"{"subject":"a","until_ms":9}"#,
            r#"{"subject":"a","issued_before_s":5,"until_ms":9}"#,
            r#"{"token_id":"t","until_ms":9}"#,
        ] {
            let read: Revocation = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for wrong in [
            r#"{"until_ms":9}"#,
            r#"{"subject":"a","token_id":"t","until_ms":9}"#,
            r#"{"token_id":"t","issued_before_s":5,"until_ms":9}"#,
            r#"{"subject":"a"}"#,
            r#"{"subject":"a","until_ms":9,"forever":true}"#,
        ] {
            assert!(serde_json::from_str::<Revocation>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_later_and_weaker_revocation_takes_nothing_from_an_earlier_one() {
        let read = |text: &str| serde_json::from_str::<Revocation>(text).unwrap();
        let (ban, older) =
            (read(r#"{"subject":"a","until_ms":9}"#), read(r#"{"subject":"a","issued_before_s":5,"until_ms":3}"#));
        assert_ne!(ban.what.key(), older.what.key());
        assert_eq!(ban.what.digest(), older.what.digest());
        assert_eq!(read(r#"{"subject":"a","until_ms":4}"#).with(&ban), ban);
        let later = read(r#"{"subject":"a","issued_before_s":4,"until_ms":8}"#).with(&older);
        assert_eq!(later, read(r#"{"subject":"a","issued_before_s":5,"until_ms":8}"#));
        assert_eq!(older.with(&ban).what, ban.what, "whatever an earlier version wrote under this key");
    }

    #[test]
    fn no_plugin_can_reach_the_records() {
        let key = RevokedTokens::Subject { subject: "/alice".into(), issued_before_s: None }.key();
        assert!(key.as_str().starts_with("_revoked/subject:"), "{key:?}");
        assert!(!crate::tenant::is_name(OWNER, 64));
    }
}
