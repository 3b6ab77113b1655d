//! The team hub: tasks, comments, notifications, typing, statuses.

use serde_json::{Value, json};

use super::{Stage, across_two_nodes, event_with, on_one_node, times};
use crate::support::clients::Clients;
use crate::support::{components, tenant_file, token};

const HUB: &str = "hub";

fn hub() -> (String, String) {
    let plugins = [
        ("room-authorization", "authorizer", "room-authorization"),
        ("task-updates", "handler", "task-updates"),
        ("typing-status", "handler", "typing-status"),
    ];
    let more = "limits.messages_per_minute = 600\nlimits.recovery_window_ms = 1000\npresence_grace_ms = 0";
    let (name, file) = tenant_file(HUB, &plugins, more, "typing_timeout_ms = 700");
    let component = components().join("event-routing.wasm");
    let router = format!("[[plugins]]\nname = \"event-routing\"\nrole = \"router\"\ncomponent = {component:?}\n");
    (name, format!("{file}{router}{ROUTES}"))
}

const ROUTES: &str = r#"
[plugins.settings]
features = '{ "cursors": false }'
routes = '''{
    "task:*": "task-updates", "comment:add": "task-updates", "typing:*": "typing-status", "status:*": "typing-status",
    "note:*": "relay", "cursor:*": { "to": "relay", "feature": "cursors" }, "test-event": "broadcast",
    "admin:*": { "refuse": "forbidden" }
}'''
"#;

fn member(name: &str) -> String {
    token(HUB, name, json!({ "projects": ["p1"], "teams": ["t1"], "channels": ["c1"] }))
}

/// Ana and Bob in the browser, Cleo in a mobile app; all in the project, Ana and Cleo in the task.
struct People {
    web: Clients,
    mobile: Clients,
    task: Value,
}

fn people(stage: &Stage<'_>) -> People {
    let (mut web, mut mobile) = (Clients::socketio(), Clients::python());
    web.join_socketio(stage.one, "ana", HUB, &member("ana"));
    web.join_socketio(stage.two, "bob", HUB, &member("bob"));
    mobile.join_socketio(stage.two, "cleo", HUB, &member("cleo"));
    for name in ["ana", "bob", "cleo"] {
        let clients = if name == "cleo" { &mut mobile } else { &mut web };
        clients.ask(name, "join_room", json!({ "room_type": "project", "room_id": "p1", "user_id": name }));
        assert_eq!(clients.event(name, "room_joined")["room_name"], "project:p1");
    }
    People { web, mobile, task: Value::Null }
}

/// Creates a task; Ana and Cleo watch it.
fn with_task(stage: &Stage<'_>) -> People {
    let mut people = people(stage);
    let made = people.web.ask("ana", "task:create", json!({ "projectId": "p1", "title": "Paint" }));
    people.task = made["taskId"].clone();
    let watch = json!({ "room_type": "task", "room_id": people.task, "project_id": "p1" });
    people.web.ask("ana", "join_room", watch.clone());
    people.mobile.ask("cleo", "join_room", watch);
    people
}

fn tasks(stage: &Stage<'_>) {
    let People { mut web, mut mobile, task } = with_task(stage);
    for name in ["ana", "bob", "cleo"] {
        let clients = if name == "cleo" { &mut mobile } else { &mut web };
        let update = event_with(clients, name, "task:update", json!({ "action": "create" }));
        assert_eq!((&update["task"]["id"], &update["task"]["title"]), (&task, &json!("Paint")), "{name}");
    }
    let edited = web.ask("bob", "task:edit", json!({ "taskId": task, "changes": { "status": "doing" } }));
    assert_eq!(edited["task"]["status"], "doing");
    let update = event_with(&mut mobile, "cleo", "task:update", json!({ "action": "update" }));
    assert_eq!((&update["task"]["title"], &update["task"]["status"]), (&json!("Paint"), &json!("doing")));

    web.ask("bob", "task:assign", json!({ "taskId": task, "assigneeId": "cleo" }));
    let assigned = mobile.event("cleo", "task:assigned");
    assert_eq!((&assigned["task"]["id"], &assigned["assignedBy"]), (&task, &json!("bob")));
    let notice = mobile.event("cleo", "notification");
    assert_eq!((&notice["type"], &notice["taskId"]), (&json!("task_assigned"), &task));

    web.ask("bob", "comment:add", json!({ "taskId": task, "text": "Which colour?" }));
    for (clients, name) in [(&mut web, "ana"), (&mut mobile, "cleo")] {
        let added = clients.event(name, "comment:added");
        assert_eq!((&added["taskId"], &added["comment"]["text"]), (&task, &json!("Which colour?")), "{name}");
        assert_eq!(clients.event(name, "notification")["type"], "comment_added", "{name}");
    }
    mobile.ask("cleo", "task:delete", json!({ "taskId": task }));
    event_with(&mut web, "bob", "task:update", json!({ "action": "delete", "task": { "id": task } }));
    let gone = web.ask("ana", "task:edit", json!({ "taskId": task, "title": "x" }));
    assert_eq!(gone["error"]["code"], "not_found");
    web.absent(json!({ "what": "event", "name": "bob", "event": "task:assigned" }));
    assert_eq!(
        (times(&web, "bob", "comment:added"), times(&web, "bob", "notification")),
        (0, 0),
        "bob watches nothing"
    );

    let (status, made) =
        stage.two.raise(HUB, "task:edit", &json!({ "taskId": 77, "projectId": "p1", "title": "Sand" }));
    assert_eq!((status, &made["data"]["taskId"]), (200, &json!("77")), "a task of the back end's own database: {made}");
    event_with(&mut web, "ana", "task:update", json!({ "action": "update", "task": { "id": "77", "title": "Sand" } }));
}

fn typing(stage: &Stage<'_>) {
    let People { mut web, mut mobile, task } = with_task(stage);
    let place = json!({ "taskId": task, "projectId": "p1" });
    let start = |clients: &mut Clients, name: &str| {
        clients.tell(json!({ "do": "emit", "name": name, "event": "typing:start", "args": [place] }));
    };
    let seen = json!({ "taskId": task, "userId": "cleo" });
    start(&mut mobile, "cleo");
    event_with(&mut web, "ana", "user:typing", seen.clone());
    mobile.tell(json!({ "do": "emit", "name": "cleo", "event": "typing:stop", "args": [place] }));
    event_with(&mut web, "ana", "user:stopped-typing", seen.clone());

    start(&mut mobile, "cleo");
    event_with(&mut web, "ana", "user:typing", seen.clone());
    event_with(&mut web, "ana", "user:stopped-typing", seen);
    assert_eq!(times(&mobile, "cleo", "user:typing"), 0, "nobody is told of its own typing");

    start(&mut web, "ana");
    event_with(&mut mobile, "cleo", "user:typing", json!({ "userId": "ana" }));
    web.tell(json!({ "do": "kill", "name": "ana" }));
    event_with(&mut mobile, "cleo", "user:stopped-typing", json!({ "userId": "ana" }));
    assert_eq!(times(&web, "bob", "user:typing"), 0, "bob is not in the task");
    let foreign = web.ask("bob", "typing:start", json!({ "channelId": "c2" }));
    assert_eq!(foreign["error"]["code"], "forbidden");
}

fn status(stage: &Stage<'_>) {
    let People { mut web, mut mobile, .. } = people(stage);
    web.ask("ana", "status:change", json!({ "status": "busy" }));
    for (clients, name) in [(&mut web, "bob"), (&mut mobile, "cleo")] {
        let update = clients.event(name, "presence:update");
        assert_eq!((&update["userId"], &update["status"]), (&json!("ana"), &json!("busy")), "{name}");
    }
    assert!(web.ask("ana", "heartbeat", json!({}))["ts"].is_u64());
    web.tell(json!({ "do": "kill", "name": "ana" }));
    let update = event_with(&mut mobile, "cleo", "presence:update", json!({ "userId": "ana", "status": "offline" }));
    assert!(update["at"].is_u64());
}

/// The tenant's router says who sees what; asked once for each name.
fn routing(stage: &Stage<'_>) {
    let People { mut web, mut mobile, .. } = people(stage);
    web.tell(json!({ "do": "emit", "name": "ana", "event": "test-event", "args": ["all"] }));
    assert_eq!(mobile.event("cleo", "test-event"), "all");
    let note = json!({ "room": "project:p1", "text": "x" });
    web.tell(json!({ "do": "emit", "name": "ana", "event": "note:add", "args": [note] }));
    assert_eq!(mobile.event("cleo", "note:add")["text"], "x");
    for _ in 0..2 {
        for (event, code) in
            [("cursor:move", "feature_disabled"), ("admin:wipe", "forbidden"), ("unheard-of", "unknown_event")]
        {
            assert_eq!(web.ask("ana", event, note.clone())["error"]["code"], code, "{event}");
        }
    }
    for n in 0..20 {
        web.ask("ana", "task:create", json!({ "projectId": "p1", "title": n }));
    }
    let asked = stage.one.metric("plugin_calls_total", "hook=\"routing.route\"");
    let remembered = stage.one.metric("routes_total", "memory");
    assert_eq!((asked, remembered), (6.0, 22.0), "each name is asked for once");
}

#[test]
fn events_go_where_the_router_says() {
    on_one_node(hub(), routing);
}

#[test]
fn events_go_where_the_router_says_on_other_nodes() {
    across_two_nodes(hub(), routing);
}

#[test]
fn tasks_reach_the_project_their_watchers_and_those_concerned() {
    on_one_node(hub(), tasks);
}

#[test]
fn tasks_reach_members_on_other_nodes() {
    across_two_nodes(hub(), tasks);
}

#[test]
fn typing_ends_by_word_by_silence_and_with_its_typist() {
    on_one_node(hub(), typing);
}

#[test]
fn typing_is_seen_and_ends_on_other_nodes() {
    across_two_nodes(hub(), typing);
}

#[test]
fn a_status_is_told_to_the_team_and_ends_with_its_owner() {
    on_one_node(hub(), status);
}

#[test]
fn a_status_is_told_and_ends_on_other_nodes() {
    across_two_nodes(hub(), status);
}

/// Of two who edit the same task at once on different nodes, neither undoes the other.
#[test]
fn edits_at_once_are_both_kept() {
    across_two_nodes(hub(), |stage| {
        let People { mut web, task, .. } = with_task(stage);
        for round in 0..20 {
            for (name, field) in [("ana", "left"), ("bob", "right")] {
                let args = json!([{ "taskId": task, "changes": { field: round } }]);
                web.tell(json!({ "do": "emit", "name": name, "event": "task:edit", "args": args, "ack": true,
                    "tag": format!("{name}{round}") }));
            }
            for name in ["ana", "bob"] {
                let ack = web.expect(json!({ "what": "ack", "tag": format!("{name}{round}") }));
                assert!(ack["args"][0].get("error").is_none(), "{ack}");
            }
            let task = web.ask("ana", "task:edit", json!({ "taskId": task, "changes": {} }));
            assert_eq!((&task["task"]["left"], &task["task"]["right"]), (&json!(round), &json!(round)));
        }
    });
}
