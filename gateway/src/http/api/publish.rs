//! Publishing without a handler: to rooms, users, connections and everyone, one by one or several as one.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{Asked, Denied, Done, body, namespace, room_in};
use crate::commit::{Effect, Publication};
use crate::decision::Input;
use crate::event::GATEWAY_EVENTS;
use crate::room::Room;

/// Publications that one batch holds at most.
const BATCH_MAX: usize = 64;

/// The longest id of a connection, in bytes.
const CONNECTION_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted<'a> {
    room: Option<String>,
    user: Option<String>,
    connection: Option<String>,
    #[serde(default)]
    everyone: bool,
    namespace: Option<String>,
    event: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    args: Option<Vec<&'a RawValue>>,
    /// A connection that does not get it.
    except: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    publications: Vec<Wanted<'a>>,
}

/// Is it an event that a back end may say? The gateway's own are believed by clients.
pub(super) fn may_be_said(event: &str) -> Result<(), Denied> {
    body::event_name(event)?;
    if GATEWAY_EVENTS.contains(&event) {
        return Err(Denied::new(StatusCode::FORBIDDEN, "forbidden", format!("only the gateway says {event:?}")));
    }
    Ok(())
}

impl Wanted<'_> {
    fn to(&self) -> Result<Room, Denied> {
        let namespace = namespace(self.namespace.as_deref())?;
        match (&self.room, &self.user, &self.connection, self.everyone) {
            (Some(room), None, None, false) => room_in(&namespace, room),
            (None, Some(user), None, false) => room_in(&namespace, &format!("user:{user}")),
            (None, None, Some(id), false) => room_in(&namespace, &format!("connection:{id}")),
            (None, None, None, true) => Ok(Room::everyone(&namespace)),
            _ => Err(Denied::invalid("say to whom: exactly one of room, user, connection and \"everyone\": true")),
        }
    }

    fn publication(self) -> Result<Effect, Denied> {
        let room = self.to()?;
        may_be_said(&self.event)?;
        if let Some(id) = self.except.as_ref().filter(|id| !(1..=CONNECTION_BYTES_MAX).contains(&id.len())) {
            return Err(Denied::invalid(format!("except is a connection's id, not {} bytes", id.len())));
        }
        let data = body::payload(self.data, self.args.as_deref())?;
        let except = self.except.as_deref().map(Into::into);
        Ok(Effect::Publish(Publication { room, event: self.event.into(), data, except }))
    }
}

/// One publication.
pub(super) async fn one(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let form = "{room | user | connection | everyone, event, data | args, namespace?, except?}";
    let wanted: Wanted<'_> = body::read(&body, form)?;
    commit(&asked, &body, &[wanted.publication()?]).await
}

/// Several in one commit: all of them or none, delivered together and in this order.
pub(super) async fn batch(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let Batch { publications } = body::read(&body, "{publications: [{room, event, data}, …]}")?;
    if publications.is_empty() || publications.len() > BATCH_MAX {
        let text = format!("{} publications, from 1 to {BATCH_MAX} are possible", publications.len());
        return Err(Denied::invalid(text));
    }
    let effects: Vec<Effect> = publications.into_iter().map(Wanted::publication).collect::<Result<_, _>>()?;
    commit(&asked, &body, &effects).await
}

/// Has something done, once if the request has a name; answers where it is in the log.
pub(super) async fn commit(asked: &Asked, body: &[u8], effects: &[Effect]) -> Done {
    let once = asked.once(body)?;
    let tenant = &asked.tenant;
    let input = Input::Effects(effects);
    let decided = tenant.decisions.run_once(&tenant.pipeline.load_full(), input, once.as_ref()).await?;
    Ok(json!({ "pos": decided.position.map(|position| position.to_string()) }))
}
