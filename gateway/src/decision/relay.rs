//! Events that are published unchanged, without a handler.

use serde_json::Value;

use super::Additions;
use crate::commit::{Effect, Publication};
use crate::event::{Event, GATEWAY_EVENTS, Refusal};
use crate::room::Room;

/// Rooms that one relayed event may name.
const ROOMS_MAX: usize = 32;

/// What one relayed event may come to over all its rooms, in bytes.
const BYTES_MAX: usize = 2 << 20;

/// Publishes an event to the rooms that its first argument names (`room`, or `rooms`: a list),
/// in one commit. An event that names none is answered with its own data.
pub(super) fn relay(event: &Event, may_publish: &(dyn Fn(&Room) -> bool + Send + Sync)) -> Result<Additions, Refusal> {
    may_be_said(event)?;
    let mut names = room_names(event)?;
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Ok(Additions { reply: Some(event.data.clone()), ..Additions::default() });
    }
    let bytes = event.data.bytes() * names.len();
    if bytes > BYTES_MAX {
        let text = format!("{bytes} bytes over {} rooms, at most {BYTES_MAX} are relayed", names.len());
        return Err(Refusal::new("too_large", text));
    }
    let mut effects = Vec::with_capacity(names.len());
    for name in names {
        let room = Room::parse_in(&event.namespace, &name)
            .map_err(|error| Refusal::new("invalid", error.to_string()))?
            .ok_or_else(|| Refusal::new("forbidden", format!("{name} belongs to another namespace")))?;
        if event.sender.is_some() && !may_publish(&room) {
            return Err(Refusal::new("forbidden", format!("no grant to publish to {room}: join it first")));
        }
        effects.push(Effect::Publish(Publication {
            room,
            event: event.name.clone(),
            data: event.data.clone(),
            except: None,
        }));
    }
    Ok(Additions { effects, ..Additions::default() })
}

/// Publishes an event to every client in its sender's namespace, the sender included.
pub(super) fn broadcast(event: &Event) -> Result<Additions, Refusal> {
    may_be_said(event)?;
    let publication = Publication {
        room: Room::everyone(&event.namespace),
        event: event.name.clone(),
        data: event.data.clone(),
        except: None,
    };
    Ok(Additions { effects: vec![Effect::Publish(publication)], ..Additions::default() })
}

fn may_be_said(event: &Event) -> Result<(), Refusal> {
    if GATEWAY_EVENTS.contains(&&*event.name) {
        return Err(Refusal::new("forbidden", format!("only the gateway says {:?}", event.name)));
    }
    Ok(())
}

fn room_names(event: &Event) -> Result<Vec<String>, Refusal> {
    let Some(Value::Object(mut first)) = event.data.first() else { return Ok(Vec::new()) };
    let names = match (first.remove("room"), first.remove("rooms")) {
        (Some(Value::String(room)), None) => vec![room],
        (None, Some(Value::Array(rooms))) => rooms
            .into_iter()
            .map(|room| match room {
                Value::String(room) => Ok(room),
                other => Err(Refusal::new("invalid", format!("`rooms` lists names, not {other}"))),
            })
            .collect::<Result<_, _>>()?,
        (None, None) => Vec::new(),
        _ => return Err(Refusal::new("invalid", "give `room` (a name) or `rooms` (a list of names)")),
    };
    if names.len() > ROOMS_MAX {
        let text = format!("{} rooms named, at most {ROOMS_MAX} take one event", names.len());
        return Err(Refusal::new("invalid", text));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, ConnectionId, Identity};
    use crate::event::Payload;

    fn event(args: &str) -> Event {
        let identity = Identity { subject: "bob".into(), claims: "{}".into(), expires_at_s: None, key: None };
        Event {
            name: "move".into(),
            namespace: "/".into(),
            data: Payload { args: args.into(), attachments: Vec::new() },
            sender: Some(Client { connection: ConnectionId::random(), identity, namespace: "/".into() }),
        }
    }

    fn rooms(additions: &Additions) -> Vec<&str> {
        additions
            .effects
            .iter()
            .map(|effect| match effect {
                Effect::Publish(publication) => publication.room.as_str(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn an_event_goes_to_the_rooms_it_names_in_one_step() {
        let one = relay(&event(r#"[{"room":"a:1","x":1}]"#), &|_| true).unwrap();
        assert_eq!(rooms(&one), ["a:1"]);
        let two = relay(&event(r#"[{"rooms":["a:1","b:2","a:1"]},"more"]"#), &|_| true).unwrap();
        assert_eq!(rooms(&two), ["a:1", "b:2"]);
    }

    #[test]
    fn an_event_that_names_no_room_is_answered_with_its_own_data() {
        let answer = relay(&event(r#"["hello",2]"#), &|_| true).unwrap();
        assert!(answer.effects.is_empty());
        assert_eq!(&*answer.reply.unwrap().args, r#"["hello",2]"#);
    }

    #[test]
    fn a_broadcast_goes_to_everyone_in_the_senders_namespace_and_nowhere_else() {
        let said = Event { namespace: "/events".into(), ..event(r#"[{"room":"a:1"}]"#) };
        assert_eq!(rooms(&broadcast(&said).unwrap()), ["/events#everyone"]);
        let forged = Event { name: "error".into(), ..said };
        assert_eq!(broadcast(&forged).unwrap_err().code, "forbidden");
    }

    #[test]
    fn without_a_grant_for_every_room_nothing_is_published() {
        let refusal = relay(&event(r#"[{"rooms":["a:1","b:2"]}]"#), &|room| room.as_str() == "a:1").unwrap_err();
        assert_eq!(refusal.code, "forbidden");
        assert_eq!(relay(&event(r#"[{"room":"/other#x"}]"#), &|_| true).unwrap_err().code, "forbidden");
        assert_eq!(relay(&event(r#"[{"room":7}]"#), &|_| true).unwrap_err().code, "invalid");
    }
}
