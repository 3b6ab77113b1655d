//! Artefacts: values under their SHA-256, and beside them, in the same slot, when each was stored or kept last.

use ::redis::Value;
use bytes::Bytes;

use super::follow::unexpected;
use super::{RedisEngine, keys, script, text};
use crate::commit::Millis;
use crate::engine::{EngineError, OldArtifact};

impl RedisEngine {
    /// See [`Engine::put_artifact`](crate::engine::Engine::put_artifact).
    pub(super) async fn store_artifact(&self, digest: &str, bytes: Bytes) -> Result<(), EngineError> {
        let key = keys::artifact(digest).ok_or_else(|| no_digest(digest))?;
        // First: from here on nobody takes it for one that is not needed.
        self.touch(&[digest], false).await?;
        let link = self.router.to_key(&key).link().await?;
        let mut command = ::redis::cmd("SET");
        command.arg(key).arg(&*bytes).arg("NX");
        command.exec_async(&mut link.bulk_connection()).await.map_err(|e| link.write_error(&e))
    }

    /// See [`Engine::artifact`](crate::engine::Engine::artifact).
    pub(super) async fn stored_artifact(&self, digest: &str) -> Result<Option<Bytes>, EngineError> {
        let Some(key) = keys::artifact(digest) else { return Ok(None) };
        let link = self.router.to_key(&key).link().await?;
        let answer: Result<Option<Vec<u8>>, _> =
            ::redis::cmd("GET").arg(key).query_async(&mut link.bulk_connection()).await;
        Ok(answer.map_err(|e| link.read_error(&e))?.map(Bytes::from))
    }

    /// These are stored, or kept, now; with `known` only those that are known. All begin with the same byte.
    pub(super) async fn touch(&self, digests: &[&str], known: bool) -> Result<(), EngineError> {
        let Some(first) = digests.first() else { return Ok(()) };
        let times = keys::artifact_times(first).ok_or_else(|| no_digest(first))?;
        let link = self.router.to_key(&times).link().await?;
        let mut arguments = vec![if known { &b"1"[..] } else { b"0" }];
        arguments.extend(digests.iter().map(|digest| digest.as_bytes()));
        let answer = script::TOUCH_ARTIFACTS.run(&mut link.connection(), &[&times], &arguments).await;
        answer.map_err(|e| link.write_error(&e)).map(drop)
    }

    /// See [`Engine::old_artifacts`](crate::engine::Engine::old_artifacts).
    pub(super) async fn untouched(
        &self,
        first: u8,
        age_ms: Millis,
        limit: usize,
    ) -> Result<Vec<OldArtifact>, EngineError> {
        let times = keys::artifact_times_of(first);
        let link = self.router.to_key(&times).link().await?;
        let (age, limit) = (age_ms.to_string(), limit.to_string());
        let arguments = [age.as_bytes(), limit.as_bytes()];
        let answer = script::OLD_ARTIFACTS.run(&mut link.connection(), &[&times], &arguments).await;
        let Value::Array(digests) = answer.map_err(|e| link.read_error(&e))? else {
            return Err(EngineError::Corrupt("artefacts were not answered with a list".into()));
        };
        let mut found = digests.into_iter().map(text);
        let mut old = Vec::new();
        while let (Some(digest), Some(last)) = (found.next().transpose()?, found.next().transpose()?) {
            let last = last.parse().map_err(|_| EngineError::Corrupt(format!("{last:?} is no time of an artefact")))?;
            old.push(OldArtifact { last, digest });
        }
        Ok(old)
    }

    /// See [`Engine::delete_artifact`](crate::engine::Engine::delete_artifact).
    pub(super) async fn drop_artifact(&self, old: &OldArtifact) -> Result<bool, EngineError> {
        let digest = &*old.digest;
        let (Some(key), Some(times)) = (keys::artifact(digest), keys::artifact_times(digest)) else { return Ok(false) };
        let link = self.router.to_key(&key).link().await?;
        let last = old.last.to_string();
        let arguments = [digest.as_bytes(), last.as_bytes()];
        let answer = script::DELETE_ARTIFACT.run(&mut link.connection(), &[&key, &times], &arguments).await;
        match answer.map_err(|e| link.write_error(&e))? {
            Value::Int(did) => Ok(did == 1),
            other => Err(unexpected(&other)),
        }
    }
}

fn no_digest(digest: &str) -> EngineError {
    EngineError::Corrupt(format!("{digest:?} is no SHA-256 in 64 lower-case hexadecimal digits"))
}
