//! May this client connect, or join? The gateway's own rules first, then the tenant's component.

use super::Undecided;
use super::pipeline::Pipeline;
use super::plugin::{CallError, Transaction};
use crate::client::Client;
use crate::commit::Grant;
use crate::event::{Payload, Refusal};
use crate::room::Room;
use crate::tenant::Role;

/// Rooms that a connection may be given at once when it connects.
pub const ROOMS_AT_CONNECT_MAX: usize = 256;

fn no_authorizer(pipeline: &Pipeline) -> Undecided {
    if let Some(refusal) = pipeline.missing(Role::Authorizer, None) {
        return Undecided::Failed(refusal);
    }
    let text =
        "the tenant has no authorizer, so nobody may connect or join (add a [[plugins]] with role = \"authorizer\")";
    Undecided::Failed(Refusal::new("plugin_unavailable", text))
}

/// Whatever went wrong with the authorizer, the answer is no; only a refusal says so in its own words.
fn closed(error: CallError) -> Undecided {
    match error {
        CallError::Failed(failure) => Undecided::Failed(failure.refusal("plugin_unavailable")),
        other => other.into(),
    }
}

/// Asks whether a client may connect; answers the rooms that it joins at once.
pub async fn connect(
    pipeline: &Pipeline,
    transaction: &mut Transaction,
    who: &Client,
) -> Result<Vec<(Room, Grant)>, Undecided> {
    let authorizer = pipeline.authorizer.as_ref().ok_or_else(|| no_authorizer(pipeline))?;
    let mut rooms = authorizer.connect(transaction, who).await.map_err(closed)?;
    let answered = rooms.len();
    rooms.truncate(ROOMS_AT_CONNECT_MAX);
    rooms.retain(|(room, _)| may_be_joined(room, who).is_ok());
    if rooms.len() < answered {
        tracing::warn!(
            plugin = %authorizer.name,
            left_out = answered - rooms.len(),
            "the authorizer named rooms at connect that are reserved, of another namespace, or too many"
        );
    }
    Ok(rooms)
}

/// Asks whether a client may join a room.
pub async fn join(
    pipeline: &Pipeline,
    transaction: &mut Transaction,
    who: &Client,
    room: &Room,
    params: Option<&Payload>,
) -> Result<Grant, Undecided> {
    may_be_joined(room, who).map_err(Undecided::Refused)?;
    let authorizer = pipeline.authorizer.as_ref().ok_or_else(|| no_authorizer(pipeline))?;
    Ok(authorizer.join(transaction, who, room, params).await.map_err(closed)?.grant)
}

/// What holds whatever an authorizer answers: nobody joins the rooms that are the gateway's to
/// give, nor a room of another namespace.
fn may_be_joined(room: &Room, who: &Client) -> Result<(), Refusal> {
    if room.is_reserved() {
        let text = format!("{room} is given by the gateway and cannot be joined");
        return Err(Refusal::new("forbidden", text));
    }
    if room.namespace() != &*who.namespace {
        let text = format!("{room} belongs to another namespace than {}", who.namespace);
        return Err(Refusal::new("forbidden", text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ConnectionId, Identity};

    #[test]
    fn the_gateways_own_rooms_and_other_namespaces_are_never_joined() {
        let identity = Identity { subject: "bob".into(), claims: "{}".into(), expires_at_s: None, key: None };
        let who = Client { connection: ConnectionId::random(), identity, namespace: "/events".into() };
        for (room, allowed) in [
            ("/events#lobby", true),
            ("/events#user:bob", false),
            ("/events#user:eve", false),
            ("/events#everyone", false),
            ("/events#connection:x", false),
            ("lobby", false),
            ("/other#lobby", false),
        ] {
            assert_eq!(may_be_joined(&Room::parse(room).unwrap(), &who).is_ok(), allowed, "{room}");
        }
    }
}
