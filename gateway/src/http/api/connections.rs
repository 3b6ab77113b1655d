//! Single connections, whatever node they are on: looked at, sent to, ended.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Asked, Denied, Done, body, publish, room_in};
use crate::client::ConnectionId;
use crate::commit::{Effect, Publication};
use crate::engine::Registration;
use crate::event::Refusal;
use crate::reading::MEMBERS_MAX;
use crate::room::Room;

/// The longest code and message that whoever is disconnected is told, in bytes.
const CODE_BYTES_MAX: usize = 64;
const MESSAGE_BYTES_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said<'a> {
    event: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    args: Option<Vec<&'a RawValue>>,
}

/// The connection that the path names.
async fn registered(asked: &Asked) -> Result<Registration, Denied> {
    let id = ConnectionId::from(&*asked.name);
    let found = asked.gateway.engine.connection(&asked.tenant.id, &id).await?;
    found.ok_or_else(|| Denied::not_found("there is no such connection, or not any more"))
}

/// `GET /connections/{id}`
pub(super) async fn show(asked: Asked) -> Done {
    let found = registered(&asked).await?;
    let mut rooms: Vec<&str> = found.rooms.iter().filter(|room| !room.is_reserved()).map(Room::name).collect();
    rooms.sort_unstable();
    Ok(json!({
        "connection": found.connection.as_str(),
        "user": &*found.subject,
        "namespace": &*found.namespace,
        "rooms": rooms,
    }))
}

/// `POST /connections/{id}` `{event, data | args}`
pub(super) async fn send(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let said: Said<'_> = body::read(&body, "{event, data | args}")?;
    publish::may_be_said(&said.event)?;
    let data = body::payload(said.data, said.args.as_deref())?;
    let found = registered(&asked).await?;
    let room = Room::connection(&found.namespace, &found.connection);
    let publication = Publication { room, event: said.event.into(), data, except: None };
    publish::commit(&asked, &body, &[Effect::Publish(publication)]).await
}

/// `DELETE /connections/{id}?code=&message=`
pub(super) async fn end(asked: Asked) -> Done {
    let found = registered(&asked).await?;
    let room = Room::connection(&found.namespace, &found.connection);
    let effect = Effect::Disconnect { room, why: why(&asked)? };
    publish::commit(&asked, b"", &[effect]).await
}

/// `GET /users/{user}/connections?namespace=`
pub(super) async fn of_user(asked: Asked) -> Done {
    let room = own_room(&asked)?;
    let engine = &asked.gateway.engine;
    let count = engine.count(&asked.tenant.id, &room).await?;
    let members = engine.members(&asked.tenant.id, &room, MEMBERS_MAX).await?;
    let ids: Vec<Value> = members.iter().map(|member| member.connection.as_str().into()).collect();
    Ok(json!({ "user": asked.name, "namespace": room.namespace(), "count": count, "connections": ids }))
}

/// `DELETE /users/{user}/connections?namespace=&code=&message=`
pub(super) async fn end_of_user(asked: Asked) -> Done {
    let effect = Effect::Disconnect { room: own_room(&asked)?, why: why(&asked)? };
    publish::commit(&asked, b"", &[effect]).await
}

/// The room of the user that the path names.
fn own_room(asked: &Asked) -> Result<Room, Denied> {
    room_in(&asked.namespace()?, &format!("user:{}", asked.name))
}

/// What whoever is disconnected is told.
fn why(asked: &Asked) -> Result<Refusal, Denied> {
    let code = asked.parameter("code").unwrap_or("disconnected");
    let message = asked.parameter("message").unwrap_or("the connection was ended");
    let fits = |text: &str, bytes_max| text.len() <= bytes_max && !text.chars().any(char::is_control);
    if !fits(code, CODE_BYTES_MAX) || !fits(message, MESSAGE_BYTES_MAX) {
        let text = format!(
            "code has at most {CODE_BYTES_MAX} bytes, message {MESSAGE_BYTES_MAX}, both without control characters"
        );
        return Err(Denied::invalid(text));
    }
    Ok(Refusal::new(code, message))
}
