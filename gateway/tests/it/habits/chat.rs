//! The chat product: channels, messages, reactions, pages.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, event_with, on_one_node, times};
use crate::support::clients::Clients;
use crate::support::{tenant_file, token};

const CHAT: &str = "chat";

fn chat() -> (String, String) {
    let plugins = [
        ("room-authorization", "authorizer", "room-authorization"),
        ("chat", "handler", "chat"),
        ("typing-status", "handler", "typing-status"),
    ];
    let more = "history_on_join = 50\nlimits.messages_per_minute = \"unlimited\"\n\
        limits.user_events_per_minute = { send_message = \"unlimited\" }\ncall_limits.attempts = 64";
    tenant_file(CHAT, &plugins, more, "")
}

fn member(name: &str) -> String {
    token(CHAT, name, json!({ "channels": ["c1"], "projects": ["p1"] }))
}

/// Ana in the browser, Bob in another one, Cleo in a mobile app.
fn people(stage: &Stage<'_>) -> (Clients, Clients) {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    web.join_socketio(stage.one, "ana", CHAT, &member("ana"));
    web.join_socketio(stage.two, "bob", CHAT, &member("bob"));
    mobile.join_socketio(stage.two, "cleo", CHAT, &member("cleo"));
    (web, mobile)
}

fn join(clients: &mut Clients, name: &str) -> Value {
    let answer = clients.ask(name, "join_channel", json!({ "channelId": "c1" }));
    assert_eq!(clients.event(name, "joined_channel"), answer, "the event and the answer are one");
    answer
}

fn texts(page: &Value) -> Vec<&str> {
    page["messages"].as_array().unwrap().iter().map(|message| message["text"].as_str().unwrap()).collect()
}

fn talk(stage: &Stage<'_>) {
    let (mut web, mut mobile) = people(stage);
    let empty = join(&mut web, "ana");
    assert_eq!(
        (&empty["channelId"], &empty["room_name"], &empty["more"]),
        (&json!("c1"), &json!("channel:c1"), &json!(false))
    );
    join(&mut web, "bob");

    let said = json!({ "channelId": "c1", "text": "Hello", "tempId": "a1" });
    let sent = web.ask("ana", "send_message", said);
    assert_eq!((&sent["tempId"], &sent["channelId"]), (&json!("a1"), &json!("c1")));
    assert_eq!(web.event("ana", "message_sent"), sent, "the sender hears of it as event, too");
    let heard = web.event("bob", "new_message");
    assert_eq!(
        (&heard["messageId"], &heard["text"], &heard["userId"]),
        (&sent["messageId"], &json!("Hello"), &json!("ana"))
    );

    let id = &sent["messageId"];
    web.ask("bob", "add_reaction", json!({ "messageId": id, "emoji": "👍" }));
    for name in ["ana", "bob"] {
        let reaction = web.event(name, "reaction_added");
        assert_eq!(
            (&reaction["messageId"], &reaction["userId"], &reaction["count"]),
            (id, &json!("bob"), &json!(1)),
            "{name}"
        );
    }
    web.ask("ana", "edit_message", json!({ "messageId": id, "text": "Hello!" }));
    assert_eq!(web.event("bob", "message_edited")["text"], "Hello!");
    let refused = web.ask("bob", "delete_message", json!({ "messageId": id }));
    assert_eq!(refused["error"]["code"], "forbidden");

    // Who comes later has what was said, as it is now.
    let page = join(&mut mobile, "cleo");
    assert_eq!(texts(&page), ["Hello!"]);
    assert_eq!(page["messages"][0]["reactions"], json!({ "👍": ["bob"] }));
    mobile.tell(json!({ "do": "emit", "name": "cleo", "event": "typing:start", "args": [{ "channelId": "c1" }] }));
    event_with(&mut web, "ana", "user:typing", json!({ "channelId": "c1", "userId": "cleo" }));
    mobile.ask("cleo", "send_message", json!({ "channelId": "c1", "text": "Me too", "echo": true }));
    assert_eq!(mobile.event("cleo", "new_message")["text"], "Me too", "a copy for who asks for it");
    web.ask("ana", "delete_message", json!({ "messageId": id }));
    assert_eq!(mobile.event("cleo", "message_deleted")["messageId"], *id);
    let page = web.ask("bob", "history", json!({ "room": "channel:c1", "limit": 10 }));
    assert_eq!(texts(&page), ["", "Me too"], "what is deleted keeps its place");

    assert_eq!((times(&web, "ana", "new_message"), times(&web, "ana", "history")), (1, 0), "no copy to the sender");
    let stranger = token(CHAT, "eve", json!({ "channels": [] }));
    web.join_socketio(stage.two, "eve", CHAT, &stranger);
    for (event, data) in [
        ("join_channel", json!({ "channelId": "c1" })),
        ("history", json!({ "room": "channel:c1" })),
        ("send_message", json!({ "channelId": "c1", "text": "x" })),
        ("add_reaction", json!({ "messageId": id, "emoji": "x" })),
    ] {
        assert_eq!(web.ask("eve", event, data)["error"]["code"], "forbidden", "{event}");
    }
    web.ask("bob", "join_room", json!({ "room_type": "project", "room_id": "p1" }));
    let log = web.ask("bob", "history", json!({ "room": "project:p1" }));
    assert!(log["events"].is_array(), "other rooms have the gateway's own history: {log}");

    let (status, raised) =
        stage.one.raise(CHAT, "send_message", &json!({ "channelId": "c1", "text": "Bot", "userId": "bot" }));
    assert_eq!((status, &raised["data"]["channelId"]), (200, &json!("c1")));
    event_with(&mut mobile, "cleo", "new_message", json!({ "text": "Bot", "userId": "bot" }));
}

/// Several events in one frame, in order, delivered together.
fn batches(stage: &Stage<'_>) {
    let (mut web, mut mobile) = people(stage);
    join(&mut web, "ana");
    join(&mut mobile, "cleo");
    let batch: Vec<Value> =
        (0..10).map(|n| json!({ "room": "channel:c1", "event": format!("tick{n}"), "data": n })).collect();
    for _ in 0..3 {
        web.ask("ana", "batch_update", json!(batch));
    }
    for n in (0..3).flat_map(|_| 0..10) {
        mobile.event("cleo", &format!("tick{n}"));
    }
    let seen = mobile.all(&json!({ "what": "event", "name": "cleo" }));
    let ticks: Vec<u64> = seen.iter().filter_map(|seen| seen["args"][0].as_u64()).collect();
    assert_eq!(ticks, (0..3).flat_map(|_| 0..10).collect::<Vec<_>>());
}

const SPEAKERS: u64 = 3;
const MESSAGES: u64 = 120;

/// Ana comes while others speak, pages back by position or by offset, and has every message once, in one order.
fn paging(stage: &Stage<'_>) {
    let mut web = Clients::socketio();
    for n in 0..SPEAKERS {
        let name = format!("speaker{n}");
        web.join_socketio(if n % 2 == 0 { stage.one } else { stage.two }, &name, CHAT, &member(&name));
        join(&mut web, &name);
    }
    for n in 0..70 {
        web.ask(&format!("speaker{}", n % SPEAKERS), "send_message", json!({ "channelId": "c1", "text": "before" }));
    }
    for n in 0..MESSAGES {
        let args = json!([{ "channelId": "c1", "text": n.to_string() }]);
        web.tell(
            json!({ "do": "emit", "name": format!("speaker{}", n % SPEAKERS), "event": "send_message", "args": args,
            "ack": true, "tag": format!("m{n}"), "timeout_ms": 15_000 }),
        );
    }
    // Each reader is a process of its own, so that it comes at its own moment.
    let mut readers: Vec<(Clients, Vec<u64>)> = Vec::new();
    for (n, node) in [stage.one, stage.two, stage.one, stage.two].into_iter().enumerate() {
        let mut reader = Clients::socketio();
        reader.join_socketio(node, "ana", CHAT, &member(&format!("ana{n}")));
        let mut page = join(&mut reader, "ana");
        let upto = page["upto"].clone();
        let mut pages = numbers(&page["messages"]);
        while page["more"] == true {
            let limit = 7 + 13 * n;
            let data = match n % 2 {
                0 => json!({ "room": "channel:c1", "before": page["before"], "limit": limit }),
                _ => json!({ "room": "channel:c1", "before": upto, "offset": pages.len(), "limit": limit }),
            };
            page = reader.ask("ana", "history", data);
            pages.splice(0..0, numbers(&page["messages"]));
        }
        readers.push((reader, pages));
    }
    for n in 0..MESSAGES {
        let ack = web.expect(json!({ "what": "ack", "tag": format!("m{n}") }));
        assert!(ack["args"][0]["messageId"].is_string(), "{ack}");
    }
    let all = 70 + MESSAGES;
    for (mut reader, mut seen) in readers {
        if seen.last() != Some(&all) {
            reader.expect(json!({ "what": "event", "event": "new_message", "args": [{ "seq": all }] }));
        }
        let paged = seen.len() as u64;
        let live = reader.all(&json!({ "what": "event", "event": "new_message" }));
        seen.extend(live.iter().map(|seen| seen["args"][0]["seq"].as_u64().unwrap()));
        assert_eq!(seen, (1..=all).collect::<Vec<_>>(), "{paged} of them were on pages");
    }
}

fn numbers(messages: &Value) -> Vec<u64> {
    messages.as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()).collect()
}

#[test]
fn people_talk_in_a_channel_and_who_comes_later_sees_it() {
    on_one_node(chat(), talk);
}

#[test]
fn people_on_different_nodes_talk_in_a_channel() {
    across_two_nodes(chat(), talk);
}

#[test]
fn several_events_of_one_frame_arrive_in_order() {
    on_one_node(chat(), batches);
}

#[test]
fn several_events_of_one_frame_arrive_in_order_on_another_node() {
    across_two_nodes(chat(), batches);
}

#[test]
fn who_pages_while_others_speak_has_every_message_once() {
    on_one_node(chat(), paging);
}

#[test]
fn who_pages_while_others_speak_on_other_nodes_has_every_message_once() {
    across_two_nodes(chat(), paging);
}
