//! What the gateway itself answers, in both protocols. Everything else goes to routing.

mod publishing;
mod reading;
mod resume;
mod rooms;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Session;
use crate::client::TokenMark;
use crate::commit::{Revoked, now_ms};
use crate::decision::Decided;
use crate::engine::EngineError;
use crate::event::request::Request;
use crate::event::{Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::key_sets::Unidentified;

/// What a client is told to wait when the engine could not be asked, in milliseconds.
pub(super) const RETRY_AFTER_MS: u64 = 2_000;

/// What goes back to the client: its acknowledgement, and events beside it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) ack: Payload,
    pub(super) events: Vec<(&'static str, Payload)>,
}

impl Answer {
    fn ack(data: &Value) -> Answer {
        Answer { ack: Payload::one(data), events: Vec::new() }
    }

    /// The same as acknowledgement and as an event, for clients that listen for it.
    fn also(event: &'static str, data: &Value) -> Answer {
        let data = Payload::one(data);
        Answer { ack: data.clone(), events: vec![(event, data)] }
    }

    /// What a handler replied; without a reply, where its commit is.
    pub(super) fn of_decision(decided: Decided) -> Answer {
        let ack = decided
            .reply
            .unwrap_or_else(|| Payload::one(&json!({ "pos": decided.position.map(|position| position.to_string()) })));
        Answer { ack, events: Vec::new() }
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new("invalid", message)
}

/// The engine could not be asked; the next try may find it.
fn unavailable(error: &EngineError) -> Refusal {
    // Names of servers are for the log, not for clients.
    tracing::debug!(%error, "the engine could not be asked");
    let text = "the engine is not available";
    Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..Refusal::new("engine_unavailable", text) }
}

/// The first argument as this request's own type.
fn argument<T: DeserializeOwned>(data: &Payload) -> Result<T, Refusal> {
    let first: Vec<Value> = serde_json::from_str(&data.args).map_err(|error| invalid(error.to_string()))?;
    let first = first.into_iter().next().unwrap_or(Value::Null);
    serde_json::from_value(first).map_err(|error| invalid(format!("the first argument: {error}")))
}

impl Session {
    /// Answers a request of the connection with this index.
    pub(super) async fn answer(
        &mut self,
        request: Request,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        match request {
            // Boxed: see `Session::run`.
            Request::JoinRoom => Box::pin(self.join_room(tenant, index, data)).await,
            Request::JoinChannel => Box::pin(self.join_channel(tenant, index, data)).await,
            Request::LeaveRoom => Box::pin(self.leave_room(tenant, index, data)).await,
            Request::LeaveChannel => Box::pin(self.leave_channel(tenant, index, data)).await,
            Request::Subscribe => Box::pin(self.subscribe(tenant, index, data)).await,
            Request::Unsubscribe => Box::pin(self.unsubscribe(tenant, index, data)).await,
            Request::Publish => self.publish(tenant, index, data).await,
            Request::BatchUpdate => self.batch_update(tenant, index, data).await,
            Request::History => Box::pin(self.history(tenant, index, data)).await,
            Request::Presence => Box::pin(self.presence(tenant, index, data)).await,
            Request::Heartbeat => Ok(Answer::ack(&json!({ "ts": now_ms(), "server": self.gateway.server_id }))),
            Request::RefreshToken => Box::pin(self.refresh_token(tenant, index, data)).await,
            Request::Resume => Box::pin(self.resume(tenant, index, data)).await,
        }
    }

    async fn refresh_token(&mut self, tenant: &LiveTenant, index: usize, data: &Payload) -> Result<Answer, Refusal> {
        #[derive(serde::Deserialize)]
        struct Fresh {
            token: String,
        }
        let fresh: Fresh = argument(data)?;
        let identity = tenant.identify(&fresh.token).await.map_err(|error| match error {
            Unidentified::Token(error) => Refusal::new("unauthorized", error.public_message()),
            Unidentified::KeysAway => {
                let refusal = Refusal::new("authorizer_unavailable", "the tenant's keys are not there yet");
                Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..refusal }
            }
        })?;
        let connection = &mut self.connections[index];
        if identity.subject != connection.client.identity.subject {
            return Err(Refusal::new("forbidden", "the fresh token is for another subject"));
        }
        // First known by the fresh token, too, then looked up: a revocation comes before the one or after the other.
        let mark = TokenMark::of_claims(&identity.claims);
        connection.local.tokens.lock().next = Some(mark.clone());
        let revoked = tenant.decisions.is_revoked(&identity).await;
        let mut tokens = connection.local.tokens.lock();
        tokens.next = None;
        if revoked.map_err(|error| unavailable(&error))? {
            return Err(Revoked::refusal());
        }
        tokens.now = mark;
        drop(tokens);
        let expires_at_s = identity.expires_at_s;
        connection.refresh(identity);
        self.told_of_expiry = false;
        Ok(Answer::also("token_refreshed", &json!({ "expires_at_s": expires_at_s })))
    }
}
