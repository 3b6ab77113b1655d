//! Continuous broadcast, by clients and by the tenant's back end in turn.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::member::Member;
use super::world::{ALL_ROOM, EVENT, Publication, TENANT, World, room_name};

/// What makes a frame some 190 bytes long, as those of the other benchmarks.
const PADDING: usize = 84;

/// Publishes to the shared rooms, one after the other, until it is stopped.
pub(crate) async fn to_rooms(world: Rc<World>, members: Rc<Vec<Rc<Member>>>, stop: Rc<Cell<bool>>) {
    let rooms = world.plan.rooms;
    let every = Duration::from_secs(1) / world.plan.rooms_per_second;
    let turn = |n: usize| {
        let (room, round) = (n % rooms, n / rooms);
        let who = if round.is_multiple_of(2) {
            Who::Client(room * world.plan.members())
        } else {
            Who::BackEnd(round / 2 + room)
        };
        (Some(room), who)
    };
    publish(&world, &members, every, &stop, turn).await;
}

/// Publishes to the room of all until it is stopped.
pub(crate) async fn to_all(world: Rc<World>, members: Rc<Vec<Rc<Member>>>, stop: Rc<Cell<bool>>) {
    let rooms = world.plan.rooms;
    let every = Duration::from_secs(1) / world.plan.all_per_second;
    let turn = |n: usize| {
        let (turn, by_client) = (n / 2, n.is_multiple_of(2));
        let who = if by_client { Who::Client(turn % rooms * world.plan.members() + 1) } else { Who::BackEnd(turn) };
        (None, who)
    };
    publish(&world, &members, every, &stop, turn).await;
}

/// Who publishes.
enum Who {
    /// A client, by its number.
    Client(usize),
    /// The back end, on one of the nodes in turn.
    BackEnd(usize),
}

async fn publish(
    world: &Rc<World>,
    members: &Rc<Vec<Rc<Member>>>,
    every: Duration,
    stop: &Cell<bool>,
    turn: impl Fn(usize) -> (Option<usize>, Who),
) {
    let begun = Instant::now();
    for n in 0.. {
        let due = begun + every * n;
        tokio::time::sleep_until(due.into()).await;
        if stop.get() {
            return;
        }
        let (room, who) = turn(n as usize);
        let publisher = match who {
            Who::Client(client) => Some(client),
            Who::BackEnd(_) => None,
        };
        let number = world.published();
        let churn = world.churn.get();
        world.publications.borrow_mut().push(Publication { room, publisher, due, churn });
        let data = json!({
            "room": room.map_or_else(|| ALL_ROOM.into(), room_name),
            "event": EVENT,
            "data": { "n": number, "text": "x".repeat(PADDING) },
        });
        world.under_way.set(world.under_way.get() + 1);
        match who {
            Who::Client(client) => by_client(world, &members[client], &data).await,
            Who::BackEnd(turn) => by_back_end(world, turn, &data),
        }
    }
}

/// Sent in turn, so that one client's are in order; the answers may overlap.
async fn by_client(world: &Rc<World>, member: &Rc<Member>, data: &Value) {
    match member.request("publish", data).await {
        Ok(answer) => {
            let world = world.clone();
            tokio::task::spawn_local(async move {
                answered(&world, answer.await);
            });
        }
        Err(error) => answered(world, Err(error)),
    }
}

fn by_back_end(world: &Rc<World>, turn: usize, data: &Value) {
    let (world, body) = (world.clone(), data.to_string());
    tokio::task::spawn_local(async move {
        let http = &world.http[turn % world.http.len()];
        answered(&world, http.call("POST", &format!("/t/{TENANT}/api/v1/publish"), &body).await);
    });
}

fn answered(world: &World, answer: Result<String, String>) {
    world.under_way.set(world.under_way.get() - 1);
    match answer {
        Ok(answer) if answer.contains("\"pos\"") => {}
        Ok(refused) => world.fault(format!("a publication was refused: {refused}")),
        Err(error) => world.fault(error),
    }
}
