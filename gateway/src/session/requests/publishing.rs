//! Publishing without a handler, where the join's grant allows it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{Answer, Session, invalid};
use crate::commit::{Commit, CommitId, Effect, Publication};
use crate::connection::protocol::check_event_name;
use crate::event::{GATEWAY_EVENTS, Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;

/// Publications that one `batch_update` holds at most.
const BATCH_MAX: usize = 64;

#[derive(Deserialize)]
struct PublishArgument<'a> {
    room: String,
    event: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
    echo: Option<bool>,
}

fn first(data: &Payload) -> Result<&RawValue, Refusal> {
    let args: Vec<&RawValue> = serde_json::from_str(&data.args).map_err(|error| invalid(error.to_string()))?;
    args.first().copied().ok_or_else(|| invalid("the first argument is missing: {room, event, data}"))
}

impl Session {
    pub(super) async fn publish(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: PublishArgument<'_> =
            serde_json::from_str(first(data)?.get()).map_err(|error| invalid(error.to_string()))?;
        let publication = self.publication(index, wanted, data)?;
        self.commit_publications(tenant, vec![Effect::Publish(publication)]).await
    }

    /// Several publications in one commit: all of them or none, delivered together.
    pub(super) async fn batch_update(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: Vec<PublishArgument<'_>> = serde_json::from_str(first(data)?.get())
            .map_err(|error| invalid(format!("a list of {{room, event, data}}: {error}")))?;
        if wanted.is_empty() || wanted.len() > BATCH_MAX {
            return Err(invalid(format!("{} publications, from 1 to {BATCH_MAX} are possible", wanted.len())));
        }
        if !data.attachments.is_empty() {
            return Err(invalid("attachments travel with publish, not with batch_update"));
        }
        let effects = wanted
            .into_iter()
            .map(|wanted| self.publication(index, wanted, data).map(Effect::Publish))
            .collect::<Result<_, _>>()?;
        self.commit_publications(tenant, effects).await
    }

    fn publication(&self, index: usize, wanted: PublishArgument<'_>, data: &Payload) -> Result<Publication, Refusal> {
        let connection = &self.connections[index];
        check_event_name(&wanted.event).map_err(|error| invalid(error.to_string()))?;
        if GATEWAY_EVENTS.contains(&wanted.event.as_str()) {
            return Err(Refusal::new("forbidden", format!("only the gateway says {:?}", wanted.event)));
        }
        let room = Room::parse_in(&connection.local.namespace, &wanted.room)
            .map_err(|error| invalid(error.to_string()))?
            .ok_or_else(|| Refusal::new("forbidden", format!("{} belongs to another namespace", wanted.room)))?;
        let granted = connection.local.grants.lock().get(&room).is_some_and(|grant| grant.publish);
        if !granted {
            return Err(Refusal::new("forbidden", format!("no grant to publish to {room}: join it first")));
        }
        let args: Arc<str> = match (wanted.data, wanted.args) {
            (Some(_), Some(_)) => return Err(invalid("give data (one argument) or args (a list), not both")),
            (Some(one), None) => format!("[{}]", one.get()).into(),
            (None, Some(list)) if list.get().starts_with('[') => list.get().into(),
            (None, Some(_)) => return Err(invalid("args is a list of arguments")),
            (None, None) => "[]".into(),
        };
        Ok(Publication {
            room,
            event: wanted.event.into(),
            data: Payload { args, attachments: data.attachments.clone() },
            except: (wanted.echo == Some(false)).then(|| connection.client.connection.clone()),
        })
    }

    async fn commit_publications(&self, tenant: &LiveTenant, effects: Vec<Effect>) -> Result<Answer, Refusal> {
        let commit = Commit { effects, ..Commit::new(CommitId::random()) };
        let position =
            tenant.decisions.publish_directly(commit).await.map_err(crate::decision::Undecided::into_refusal)?;
        Ok(Answer::ack(&json!({ "pos": position.map(|position| position.to_string()) })))
    }
}
