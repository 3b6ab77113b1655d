//! Whether every node says rightly who is there, in each room and in all.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::member::Member;
use super::world::{ALL_ROOM, TENANT, World, room_name};

/// How long a node may be behind: until the others' beats have come, and places that are kept are given up.
const RIGHT_WITHIN: Duration = Duration::from_secs(20);
/// How long between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Users that an answer names at most; of more it says how many connections.
const NAMED_MAX: usize = 1_000;

/// How long it took until all was right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    /// Who is in each room: asked on each node, and as members were told.
    pub(crate) rooms: Duration,
    /// How many connections the nodes have, as each tells; of the others' they hear with their beats.
    pub(crate) totals: Duration,
}

/// Waits until all nodes are right, and all members that keep a list by what they are told.
pub(crate) async fn right(world: &World, members: &[Rc<Member>], when: &str) -> Option<Took> {
    let begun = Instant::now();
    let (mut rooms, mut totals) = (None, None);
    loop {
        let looks = [
            (rooms_are_right(world, members).await, &mut rooms),
            (totals_are_right(world, members).await, &mut totals),
        ];
        let mut wrong = None;
        for (look, took) in looks {
            match look {
                Ok(()) => {
                    took.get_or_insert_with(|| begun.elapsed());
                }
                // What was right once and is not any more counts from then on.
                Err(error) => (*took, wrong) = (None, Some(error)),
            }
        }
        if let (Some(rooms), Some(totals)) = (rooms, totals) {
            return Some(Took { rooms, totals });
        }
        if begun.elapsed() > RIGHT_WITHIN {
            world.fault(format!("presence {when}, not right within {RIGHT_WITHIN:?}: {}", wrong.unwrap_or_default()));
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn connected(members: &[Rc<Member>]) -> Vec<&Rc<Member>> {
    members.iter().filter(|member| member.node.get().is_some()).collect()
}

async fn totals_are_right(world: &World, members: &[Rc<Member>]) -> Result<(), String> {
    let connected = connected(members);
    for (node, http) in world.http.iter().enumerate() {
        let told = get(http.call("GET", "/api/v1/ws/metrics", "").await?)?;
        let here = connected.iter().filter(|member| member.node.get() == Some(node)).count();
        for (what, wanted) in
            [("connections", here), ("totalConnections", connected.len()), ("serverCount", world.nodes.len())]
        {
            same(node, what, told[what].as_u64(), wanted)?;
        }
    }
    Ok(())
}

async fn rooms_are_right(world: &World, members: &[Rc<Member>]) -> Result<(), String> {
    let connected = connected(members);
    for node in 0..world.nodes.len() {
        for room in 0..world.plan.rooms {
            let inside: Vec<_> = connected.iter().filter(|member| member.room == room).collect();
            let users = inside.iter().map(|member| &*member.user).collect();
            members_of(world, node, &room_name(room), inside.len(), &users).await?;
        }
        let users = connected.iter().map(|member| &*member.user).collect();
        members_of(world, node, ALL_ROOM, connected.len(), &users).await?;
    }
    // The same members see it without asking.
    for member in connected.iter().filter(|member| member.observes()) {
        let inside = connected.iter().filter(|other| other.room == member.room);
        let users: BTreeSet<&str> = inside.map(|member| &*member.user).collect();
        if !member.present.borrow().iter().map(|user| &**user).eq(users.iter().copied()) {
            let (told, there) = (member.present.borrow().len(), users.len());
            return Err(format!("{} was told of {told} users in its room, there are {there}", member.user));
        }
    }
    Ok(())
}

async fn members_of(
    world: &World,
    node: usize,
    room: &str,
    connections: usize,
    users: &BTreeSet<&str>,
) -> Result<(), String> {
    let told = get(world.http[node].call("GET", &format!("/t/{TENANT}/api/v1/rooms/{room}"), "").await?)?;
    same(node, room, told["count"].as_u64(), connections)?;
    let named: BTreeSet<&str> = told["users"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let right = if connections <= NAMED_MAX { named == *users } else { !named.is_empty() && named.is_subset(users) };
    if right { Ok(()) } else { Err(format!("node {node}, {room}: other users than there are: {named:?}")) }
}

fn same(node: usize, what: &str, told: Option<u64>, wanted: usize) -> Result<(), String> {
    if told == Some(wanted as u64) {
        Ok(())
    } else {
        Err(format!("node {node}, {what}: {told:?}, it should be {wanted}"))
    }
}

fn get(text: String) -> Result<Value, String> {
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}
