//! Who is where (I6), and the documented keys (I10).

use std::collections::HashMap;

use serde_json::Value;

use super::Verdict;
use super::places::Member;
use crate::history::{ClientNo, Event, History, Record};

pub(super) fn check(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
    alternating(history, members, verdict);
    let Some(rooms) = &history.presence else {
        verdict.unchecked.push("I6, I10: presence was not looked at".into());
        return;
    };
    for room in rooms {
        let name = format!("{} {}", room.tenant, room.room);
        match &room.told {
            None => verdict.violation("I6", || format!("{name}: a member was not told who is there")),
            Some(told)
                if history.leftovers_counted
                    && told.count > room.count
                    && difference(&room.users, &told.users).is_empty() =>
            {
                verdict.counts.leftovers += told.count - room.count;
                // The view has them, too.
                continue;
            }
            Some(told) if told.users != room.users || told.count != room.count => verdict.violation("I6", || {
                let (here, there) = (difference(&told.users, &room.users), difference(&room.users, &told.users));
                let (count, connected) = (told.count, room.count);
                format!("{name}: {count} told, {connected} connected; not there: {here:?}, not told: {there:?}")
            }),
            Some(_) => {}
        }
        if let Some(view) = &room.view
            && *view != room.users
        {
            verdict.violation("I10", || {
                let (more, less) = (difference(view, &room.users), difference(&room.users, view));
                format!("{name}: the keys have {more:?} too many and lack {less:?}")
            });
        }
    }
    if rooms.iter().all(|room| room.view.is_none()) {
        verdict.unchecked.push("I10: there is no key view".into());
    }
}

fn difference(these: &[String], those: &[String]) -> Vec<String> {
    these.iter().filter(|one| !those.contains(one)).cloned().collect()
}

/// A user does not join twice without leaving in between, as one client sees it on one connection.
fn alternating(history: &History, members: &HashMap<ClientNo, Member>, verdict: &mut Verdict) {
    let mut there: HashMap<(ClientNo, String, String), bool> = HashMap::new();
    for record in &history.records {
        match record {
            // What was missed meanwhile is not told; what is told before the word on recovery is of the new connection.
            Record::Event(Event::Off { c, .. } | Event::Reset { c, .. }) => there.retain(|(client, ..), _| client != c),
            Record::Event(Event::Joined { c, rooms, .. } | Event::Left { c, rooms }) => {
                there.retain(|(client, room, _), _| client != c || !rooms.contains(room));
            }
            Record::Event(Event::Presence { c, event, data }) => {
                for (room, user, joined) in changes(event, data) {
                    let before = there.insert((*c, room.clone(), user.clone()), joined);
                    if before == Some(joined) {
                        let tenant = members.get(c).map_or("", |member| &member.tenant);
                        // What a node registers again after a loss is not in the log.
                        if history.allowed.loss && history.logs.get(tenant).is_some_and(|log| !log.survivors.is_empty())
                        {
                            verdict.counts.presence_repeats += 1;
                            continue;
                        }
                        let word = if joined { "joined" } else { "left" };
                        verdict.violation("I6", || format!("{tenant}/c{c}: {user} {word} {room} twice in a row"));
                    }
                }
            }
            _ => {}
        }
    }
}

/// Room, user, joined: of `presence:join`, `presence:leave` and `presence:update`.
fn changes(event: &str, data: &Value) -> Vec<(String, String, bool)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let room = text(&data["room"]);
    let all = |list: &Value, joined: bool| -> Vec<_> {
        list.as_array().into_iter().flatten().map(|user| (room.clone(), text(user), joined)).collect()
    };
    match event {
        "presence:join" => vec![(room.clone(), text(&data["user"]), true)],
        "presence:leave" => vec![(room.clone(), text(&data["user"]), false)],
        "presence:update" => [all(&data["joined"], true), all(&data["left"], false)].concat(),
        _ => Vec::new(),
    }
}
