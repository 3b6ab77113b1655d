use super::*;

const CLAIMS: &str = r#"{"channels":["c1",7],"tasks":["k1"],"projects":["p1"],"teams":["t1","t2"]}"#;

fn ana() -> Person {
    Person::from_claims("ana", CLAIMS, "/")
}

fn typing(data: Value) -> Result<Typing, &'static str> {
    Typing::start(&ana(), &data, 1_000).map_err(|refused| refused.code)
}

#[test]
fn a_room_is_named_by_id_by_type_or_whole() {
    for (data, room) in [
        (json!({ "channelId": "c1" }), "channel:c1"),
        (json!({ "channel_id": 7 }), "channel:7"),
        (json!({ "task_id": "k1" }), "task:k1"),
        (json!({ "taskId": "k2", "projectId": "p1" }), "task:k2"),
        (json!({ "teamId": "t2" }), "team:t2"),
        (json!({ "room": "project:p1" }), "project:p1"),
        (json!({ "room_type": "channel", "room_id": 7 }), "channel:7"),
    ] {
        assert_eq!(typing(data).unwrap().room, room);
    }
    for data in [
        json!({}),
        json!({ "room": "c1" }),
        json!({ "room": "user:bob" }),
        json!({ "room": "everyone" }),
        json!({ "channelId": ["c1"] }),
        json!({ "channelId": "" }),
        json!({ "room_type": "channel" }),
    ] {
        assert_eq!(typing(data.clone()), Err("invalid"), "{data}");
    }
}

#[test]
fn people_are_seen_typing_where_their_token_lets_them_be() {
    for data in [
        json!({ "channelId": "c2" }),
        json!({ "taskId": "k2" }),
        json!({ "taskId": "k2", "projectId": "p2" }),
        json!({ "room": "team:p1" }),
    ] {
        assert_eq!(typing(data.clone()), Err("forbidden"), "{data}");
    }
    for claims in ["", "[]", r#"{"channels":"c1"}"#] {
        let refused = Typing::start(&Person::from_claims("eve", claims, "/"), &json!({ "channelId": "c1" }), 1);
        assert_eq!(refused.unwrap_err().code, "forbidden", "{claims}");
    }
}

#[test]
fn the_others_know_the_room_by_the_fields_that_the_typist_used() {
    let shown = |data: Value| typing(data).unwrap().shown();
    assert_eq!(
        shown(json!({ "channelId": 7, "x": 1 })),
        json!({ "channelId": 7, "room": "channel:7", "userId": "ana" })
    );
    assert_eq!(
        shown(json!({ "task_id": "k2", "project_id": "p1" })),
        json!({ "task_id": "k2", "project_id": "p1", "room": "task:k2", "userId": "ana" })
    );
    let elsewhere = Typing::start(&Person::from_claims("ana", CLAIMS, "/hub"), &json!({ "teamId": "t1" }), 1).unwrap();
    assert_eq!((elsewhere.room.as_str(), &elsewhere.shown()["room"]), ("/hub#team:t1", &json!("team:t1")));
}

#[test]
fn typing_is_written_down_anew_after_half_its_time_only() {
    let typing = typing(json!({ "channelId": "c1" })).unwrap();
    assert!(!typing.is_due(1_499, 1_000));
    assert!(typing.is_due(1_500, 1_000));
}

#[test]
fn keys_and_timers_fit_however_long_the_names_are_and_meet_no_others() {
    let long = "x/".repeat(64);
    let claims = json!({ "channels": [long] }).to_string();
    let typing = |subject: &str| {
        Typing::start(&Person::from_claims(subject, &claims, "/"), &json!({ "channelId": long }), 1).unwrap()
    };
    let (one, other) = (typing(&long), typing("x"));
    assert!(one.timer_name().len() <= 128 && one.state_key().len() <= 512, "{}", one.state_key().len());
    assert_ne!(one.timer_name(), other.timer_name());
    assert!(!one.state_key().starts_with(&typing_prefix("x")));
}

#[test]
fn a_status_is_told_to_the_teams_or_to_the_projects_or_where_its_owner_says() {
    let rooms = |claims: &str, data: Value| {
        Status::of(&Person::from_claims("ana", claims, "/"), &data, 5).map(|status| status.rooms).map_err(|r| r.code)
    };
    assert_eq!(rooms(CLAIMS, json!({ "status": "away" })).unwrap(), ["team:t1", "team:t2"]);
    assert_eq!(rooms(r#"{"projects":["p1"]}"#, json!({ "status": "away" })).unwrap(), ["project:p1"]);
    assert_eq!(rooms(CLAIMS, json!({ "status": "away", "projectId": "p1" })).unwrap(), ["project:p1"]);
    assert_eq!(rooms(CLAIMS, json!({ "status": "away", "projectId": "p2" })), Err("forbidden"));
    assert_eq!(rooms("{}", json!({ "status": "away" })).unwrap(), [""; 0]);
    let many: Vec<u32> = (0..100).collect();
    let many = json!({ "teams": many }).to_string();
    assert_eq!(rooms(&many, json!({ "status": "away" })).unwrap().len(), STATUS_ROOMS_MAX);
    for data in [json!({}), json!({ "status": "" }), json!({ "status": 7 }), json!({ "status": "x".repeat(141) })] {
        assert_eq!(rooms(CLAIMS, data.clone()), Err("invalid"), "{data}");
    }
}

#[test]
fn whoever_is_gone_is_offline() {
    let status = Status::of(&ana(), &json!({ "status": "busy", "message": "until 5" }), 5).unwrap();
    assert_eq!(status.shown(), json!({ "userId": "ana", "status": "busy", "message": "until 5", "at": 5 }));
    assert_eq!(status.gone(9).shown(), json!({ "userId": "ana", "status": "offline", "message": null, "at": 9 }));
}

#[test]
fn settings_and_arguments_are_checked() {
    assert_eq!(timeout_ms(None), Ok(TIMEOUT_MS_DEFAULT));
    assert_eq!(timeout_ms(Some("500")), Ok(500));
    for wrong in ["", "5s", "199", "60001", "-1"] {
        assert!(timeout_ms(Some(wrong)).is_err(), "{wrong}");
    }
    assert_eq!(first_argument(r#"["away"]"#, "status"), Ok(json!({ "status": "away" })));
    assert_eq!(first_argument("[]", "room"), Ok(json!({})));
    assert_eq!(first_argument("[7]", "room").unwrap_err().code, "invalid");
}
