//! Rooms: who is there, what was said, and who else is to be there.

use hyper::StatusCode;
use serde::Deserialize;

use super::{Asked, Denied, Done, body, publish};
use crate::commit::{Effect, Grant, Who};
use crate::reading::{Page, who_is_in};
use crate::room::Room;

/// The longest name of whoever is to join, in bytes.
const WHO_BYTES_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    user: Option<String>,
    connection: Option<String>,
    /// What it may do there without a handler.
    #[serde(default)]
    publish: bool,
    #[serde(default)]
    presence: bool,
    #[serde(default)]
    history: bool,
}

/// `GET /rooms/{room}?namespace=`: also `everyone` and `user:{user}`.
pub(super) async fn show(asked: Asked) -> Done {
    Ok(who_is_in(&*asked.gateway.engine, &asked.tenant.id, &asked.room()?).await?)
}

/// `GET /rooms/{room}/history?namespace=&before=&offset=&limit=`
pub(super) async fn history(asked: Asked) -> Done {
    let offset = asked.number("offset")?.unwrap_or(0);
    let page = Page::of(asked.parameter("before"), offset, asked.number("limit")?).map_err(Denied::invalid)?;
    Ok(page.read(&*asked.gateway.engine, &asked.tenant.id, &asked.room()?).await?)
}

/// `POST /rooms/{room}/members` `{user | connection, publish?, presence?, history?}`: the tenant's authorizer is not asked.
pub(super) async fn join(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let joining: Joining = body::read(&body, "{user | connection, publish?, presence?, history?}")?;
    let who = who(joining.user.as_deref(), joining.connection.as_deref())?;
    let Joining { publish, presence, history, .. } = joining;
    let effect = Effect::Join { who, room: open_room(&asked)?, grant: Grant { publish, presence, history } };
    publish::commit(&asked, &body, &[effect]).await
}

/// `DELETE /rooms/{room}/members?user=&connection=`
pub(super) async fn leave(asked: Asked) -> Done {
    let who = who(asked.parameter("user"), asked.parameter("connection"))?;
    let effect = Effect::Leave { who, room: open_room(&asked)? };
    publish::commit(&asked, b"", &[effect]).await
}

/// A room whose members can be changed.
fn open_room(asked: &Asked) -> Result<Room, Denied> {
    let room = asked.room()?;
    if room.is_reserved() {
        let text = format!("{room} is given by the gateway: nobody else joins it or leaves it");
        return Err(Denied::new(StatusCode::FORBIDDEN, "forbidden", text));
    }
    Ok(room)
}

fn who(user: Option<&str>, connection: Option<&str>) -> Result<Who, Denied> {
    let fits = |name: &&str| (1..=WHO_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    match (user.filter(fits), connection.filter(fits), user.or(connection)) {
        (Some(user), None, _) => Ok(Who::User(user.into())),
        (None, Some(id), _) => Ok(Who::Connection(id.into())),
        (None, None, Some(_)) => Err(Denied::invalid(format!("a name has 1 to {WHO_BYTES_MAX} bytes"))),
        _ => Err(Denied::invalid("say who: user or connection")),
    }
}
