//! Joining and leaving.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, RETRY_AFTER_MS, Session, argument, invalid};
use crate::commit::{Commit, CommitId, Effect, SessionRecord, Who};
use crate::decision::{Decided, Input};
use crate::event::{Event, Payload, Refusal};
use crate::gateway::LiveTenant;
use crate::room::Room;
use crate::session::connection::applied;
use crate::session::unless_fenced;

/// Rooms that one `subscribe` names at most.
const ROOMS_PER_REQUEST_MAX: usize = 100;

#[derive(Deserialize)]
struct RoomArgument {
    room_type: Option<String>,
    room_id: Option<Value>,
    room: Option<String>,
    user_id: Option<Value>,
}

#[derive(Deserialize)]
struct ChannelArgument {
    #[serde(rename = "channelId")]
    channel_id: Value,
}

/// An id as clients write it: text, or a number.
fn id_text(id: &Value) -> Result<String, Refusal> {
    match id {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(invalid(format!("an id is a text or a number, not {other}"))),
    }
}

impl RoomArgument {
    fn name(&self) -> Result<String, Refusal> {
        match (&self.room, &self.room_type, &self.room_id) {
            (Some(room), None, None) => Ok(room.clone()),
            (None, Some(room_type), Some(room_id)) => Ok(format!("{room_type}:{}", id_text(room_id)?)),
            _ => Err(invalid("give room_type and room_id, or room")),
        }
    }
}

fn room_in(namespace: &str, name: &str) -> Result<Room, Refusal> {
    Room::parse_in(namespace, name)
        .map_err(|error| invalid(error.to_string()))?
        .ok_or_else(|| Refusal::new("forbidden", format!("{name} belongs to another namespace than {namespace}")))
}

/// The answer that existing clients listen for.
fn room_data(room: &Room) -> Value {
    let (room_type, room_id) = room.name().split_once(':').unwrap_or((room.name(), ""));
    json!({ "room_type": room_type, "room_id": room_id, "room_name": room.name() })
}

/// One room, or a list: `"a"`, `["a","b"]`, `{room}`, `{channel}`, `{rooms}`, `{channels}`.
fn names(data: &Payload) -> Result<Vec<String>, Refusal> {
    let argument: Value = argument(data)?;
    let list = match argument {
        Value::Object(mut object) => ["room", "channel", "rooms", "channels"]
            .into_iter()
            .find_map(|key| object.remove(key))
            .ok_or_else(|| invalid("give a room or a list of rooms: \"a\", [\"a\",\"b\"], {room} or {channels}"))?,
        other => other,
    };
    let list = match list {
        Value::String(one) => vec![one],
        Value::Array(list) => list
            .into_iter()
            .map(|name| {
                name.as_str().map(str::to_owned).ok_or_else(|| invalid(format!("a room is a text, not {name}")))
            })
            .collect::<Result<_, _>>()?,
        other => return Err(invalid(format!("a room or a list of rooms, not {other}"))),
    };
    if list.is_empty() || list.len() > ROOMS_PER_REQUEST_MAX {
        return Err(invalid(format!("{} rooms named, from 1 to {ROOMS_PER_REQUEST_MAX} are possible", list.len())));
    }
    Ok(list)
}

/// The client hears of it by its connection's end, and comes back.
fn taken_out() -> Refusal {
    let refusal = Refusal::new("engine_unavailable", "the other nodes have counted this connection as gone");
    Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..refusal }
}

impl Session {
    pub(super) async fn join_room(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: RoomArgument = argument(data)?;
        self.same_user(index, wanted.user_id.as_ref())?;
        let (room, decided) = self.join_one(tenant, index, &wanted.name()?, "join_room", data).await?;
        let joined = room_data(&room);
        Ok(self.joined(tenant, index, &room, decided, "room_joined", joined).await)
    }

    pub(super) async fn join_channel(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: ChannelArgument = argument(data)?;
        let name = format!("channel:{}", id_text(&wanted.channel_id)?);
        let (room, decided) = self.join_one(tenant, index, &name, "join_channel", data).await?;
        let mut joined = room_data(&room);
        joined["channelId"] = wanted.channel_id;
        Ok(self.joined(tenant, index, &room, decided, "joined_channel", joined).await)
    }

    /// The answer to a join, with what handlers that took part add to it; what they add is the history then.
    async fn joined(
        &self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        room: &Room,
        decided: Decided,
        event: &'static str,
        mut joined: Value,
    ) -> Answer {
        let Some(Value::Object(added)) = decided.reply.as_ref().and_then(Payload::first) else {
            return self.with_history(tenant, index, room, decided.position, Answer::also(event, &joined)).await;
        };
        for (field, value) in added {
            // Where the client is, the gateway says.
            if joined.get(&field).is_none() {
                joined[field] = value;
            }
        }
        Answer::also(event, &joined)
    }

    pub(super) async fn leave_room(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: RoomArgument = argument(data)?;
        let room = self.leave_some(tenant, index, &[wanted.name()?]).await?.remove(0);
        Ok(Answer::also("room_left", &room_data(&room)))
    }

    pub(super) async fn leave_channel(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let wanted: ChannelArgument = argument(data)?;
        let name = format!("channel:{}", id_text(&wanted.channel_id)?);
        let room = self.leave_some(tenant, index, &[name]).await?.remove(0);
        Ok(Answer::also("left_channel", &room_data(&room)))
    }

    pub(super) async fn subscribe(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let namespace = self.connections[index].local.namespace.clone();
        let (mut wanted, mut refused) = (Vec::new(), Vec::new());
        for name in names(data)? {
            match room_in(&namespace, &name) {
                Ok(room) => wanted.push((room, Some(data.clone()))),
                Err(refusal) => refused.push((name, refusal)),
            }
        }
        let decided = self.join_all(tenant, index, &wanted, None, None).await?;
        let channels: Vec<_> = decided.joined.iter().map(|(room, _)| room.name()).collect();
        refused.extend(decided.refused.iter().map(|(room, refusal)| (room.name().to_owned(), refusal.clone())));
        let refused: Vec<_> = refused
            .iter()
            .map(|(name, refusal)| json!({"channel": name, "code": refusal.code, "message": refusal.message}))
            .collect();
        Ok(Answer::also("rooms_joined", &json!({ "channels": channels, "refused": refused })))
    }

    pub(super) async fn unsubscribe(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        data: &Payload,
    ) -> Result<Answer, Refusal> {
        let left = self.leave_some(tenant, index, &names(data)?).await?;
        let channels: Vec<_> = left.iter().map(|room| room.name()).collect();
        Ok(Answer::also("rooms_left", &json!({ "channels": channels })))
    }

    /// A client may name its own user id; another's is refused, not ignored.
    fn same_user(&self, index: usize, user_id: Option<&Value>) -> Result<(), Refusal> {
        let Some(user_id) = user_id.filter(|id| !id.is_null()) else { return Ok(()) };
        if id_text(user_id)? == *self.connections[index].client.identity.subject {
            return Ok(());
        }
        Err(Refusal::new("forbidden", "user_id is not the token's subject"))
    }

    async fn join_one(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        name: &str,
        request: &'static str,
        data: &Payload,
    ) -> Result<(Room, Decided), Refusal> {
        let connection = &self.connections[index];
        let room = room_in(&connection.local.namespace, name)?;
        let event = connection.said(request, data);
        let wanted = [(room.clone(), Some(data.clone()))];
        let mut decided = self.join_all(tenant, index, &wanted, None, Some(&event)).await?;
        match decided.refused.pop() {
            Some((_, refusal)) => Err(refusal),
            None => Ok((room, decided)),
        }
    }

    pub(super) async fn join_all(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        wanted: &[(Room, Option<Payload>)],
        resumed: Option<&SessionRecord>,
        request: Option<&Event>,
    ) -> Result<Decided, Refusal> {
        let connection = &self.connections[index];
        let max = tenant.settings().limits.rooms_per_connection;
        let (present, new) = {
            let grants = connection.local.grants.lock();
            (grants.len(), wanted.iter().filter(|(room, _)| !grants.contains_key(room)).count())
        };
        if present + new > max {
            let text = format!(
                "in {present} rooms, {new} more asked for, at most {max} (setting limits.rooms_per_connection)"
            );
            return Err(Refusal::new("room_limit", text));
        }
        let session = connection.record(tenant.settings().limits.recovery_window_ms);
        let mut rooms = session.rooms.clone();
        let input = Input::Join { who: &connection.client, wanted, resumed, session, request };
        let pipeline = tenant.pipeline.load_full();
        let decided = unless_fenced(&self.outbox, tenant.decisions.run(&pipeline, input)).await;
        let decided = decided.ok_or_else(taken_out)?.map_err(crate::decision::Undecided::into_refusal)?;
        rooms.extend(decided.joined.iter().cloned());
        if decided.memberships {
            self.connections[index].has_recorded(&rooms);
        }
        applied(&self.gateway, tenant, &decided).await;
        // Acknowledged is only what is: after a loss the entry may never come.
        let grants = self.connections[index].local.grants.lock();
        if let Some((room, _)) = decided.joined.iter().find(|(room, _)| !grants.contains_key(room)) {
            let text = format!("{room} was joined, but that was lost, or this node is late in applying it");
            let refusal = Refusal::new("engine_unavailable", text);
            return Err(Refusal { retry_after_ms: Some(RETRY_AFTER_MS), ..refusal });
        }
        drop(grants);
        Ok(decided)
    }

    async fn leave_some(
        &mut self,
        tenant: &Arc<LiveTenant>,
        index: usize,
        names: &[String],
    ) -> Result<Vec<Room>, Refusal> {
        let connection = &self.connections[index];
        let namespace = &connection.local.namespace;
        let rooms: Vec<_> = names.iter().map(|name| room_in(namespace, name)).collect::<Result<_, _>>()?;
        if let Some(room) = rooms.iter().find(|room| room.is_reserved()) {
            return Err(Refusal::new("forbidden", format!("{room} is given by the gateway and cannot be left")));
        }
        let who = Who::Connection(connection.client.connection.clone());
        let effects = rooms.iter().map(|room| Effect::Leave { who: who.clone(), room: room.clone() }).collect();
        let mut record = connection.record(tenant.settings().limits.recovery_window_ms);
        record.rooms.retain(|room, _| !rooms.contains(room));
        let left = record.rooms.clone();
        let commit = Commit { effects, session: Some(record), ..Commit::new(CommitId::random()) };
        let position = unless_fenced(&self.outbox, tenant.decisions.commit_directly(commit)).await;
        let position = position.ok_or_else(taken_out)?.map_err(crate::decision::Undecided::into_refusal)?;
        self.connections[index].has_recorded(&left);
        let decided = Decided { position, reply: None, memberships: true, joined: Vec::new(), refused: Vec::new() };
        applied(&self.gateway, tenant, &decided).await;
        Ok(rooms)
    }
}
