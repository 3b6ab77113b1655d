//! What a deleted tenant has left besides its values; and session records, none of which outlives that.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;

use super::follow::unexpected;
use super::keys::TenantKeys;
use super::{RedisEngine, SESSION_NAME_BYTES_MAX, frame, script};
use crate::client::ConnectionId;
use crate::commit::{Commit, CommitId, Effect, Millis, SessionRecord, StateKey, Version};
use crate::engine::{Engine as _, EngineError};
use crate::tenant::TenantId;

/// Where a script begins.
const BEGINNING: &str = "c0";

/// How long deleting rests when connections came in meanwhile.
const COMING_REST: Duration = Duration::from_millis(100);

/// Connections, and timers of the partition, that one script looks at, about.
const LOOKED_AT_ONCE: usize = 500;

impl RedisEngine {
    /// See [`Engine::forget`](crate::engine::Engine::forget).
    pub(super) async fn forget_all(
        &self,
        tenant: &TenantId,
        guard: &StateKey,
        version: &Version,
    ) -> Result<bool, EngineError> {
        let keys = TenantKeys::of(tenant);
        let (partition, at_once) = (keys.partition().prefix(), LOOKED_AT_ONCE.to_string());
        let view = self.view(tenant).map(|view| format!("={view}")).unwrap_or_default();
        let names = [&*keys.log(), &*keys.meta(), &*keys.value(guard)];
        let mut cursor = BEGINNING.to_owned();
        let mut begun_on = None;
        loop {
            let route = self.router.to_tenant(tenant);
            let (link, seen) = (route.link().await?, route.epoch_seen().to_string());
            // Another server puts the same into another order.
            if begun_on.replace(link.generation.clone()).is_some_and(|before: Arc<str>| before != link.generation) {
                BEGINNING.clone_into(&mut cursor);
            }
            let arguments = [
                keys.base().as_bytes(),
                partition.as_bytes(),
                version.0.as_bytes(),
                view.as_bytes(),
                cursor.as_bytes(),
                at_once.as_bytes(),
                link.generation.as_bytes(),
                seen.as_bytes(),
            ];
            let answer = script::FORGET.run(&mut link.connection(), &names, &arguments).await;
            match answer.map_err(|e| link.write_error(&e))? {
                Value::BulkString(word) if word == b"guarded" => return Ok(false),
                Value::BulkString(word) if word == b"done" => break,
                Value::BulkString(next) => {
                    cursor = String::from_utf8_lossy(&next).into_owned();
                    // Clients that are told to go come back until all nodes know better.
                    if cursor == BEGINNING {
                        tokio::time::sleep(COMING_REST).await;
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
        // Whoever follows the log, or remembers what was in it, learns with an entry that it is another.
        let effects = vec![Effect::Gone { id: ConnectionId::random() }];
        self.commit(tenant, Commit { effects, ..Commit::new(CommitId::random()) }.into()).await?;
        Ok(true)
    }

    /// A record that was written since the tenant was forgotten, if ever it was.
    pub(super) async fn session_record(
        &self,
        tenant: &TenantId,
        session: &str,
    ) -> Result<Option<SessionRecord>, EngineError> {
        if session.len() > SESSION_NAME_BYTES_MAX {
            return Ok(None);
        }
        type Answer = (Option<Vec<u8>>, i64, Option<Millis>, (Millis, Millis));
        let keys = TenantKeys::of(tenant);
        let link = self.router.to_tenant(tenant).link().await?;
        let mut all = ::redis::pipe();
        all.cmd("GET").arg(keys.session(session));
        all.cmd("PTTL").arg(keys.session(session));
        all.cmd("HGET").arg(keys.meta()).arg("f");
        all.cmd("TIME");
        let (record, left_ms, forgotten, (s, us)): Answer =
            all.query_async(&mut link.connection()).await.map_err(|e| link.read_error(&e))?;
        let Some(record) = record.as_deref().map(frame::decode_session).transpose()? else { return Ok(None) };
        let age = record.ttl_ms.saturating_sub(left_ms.max(0).unsigned_abs());
        let written = (s * 1_000 + us / 1_000).saturating_sub(age);
        Ok((forgotten.is_none_or(|forgotten| written > forgotten)).then_some(record))
    }
}
