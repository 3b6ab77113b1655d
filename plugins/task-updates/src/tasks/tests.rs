use super::*;

fn ana() -> Caller {
    Caller::from_claims("ana", r#"{"projects":["p1",7]}"#)
}

fn at(by: &str, now: u64) -> Moment {
    Moment { by: by.into(), now }
}

fn task() -> Task {
    let data = json!({ "projectId": "p1", "title": "Paint", "labels": ["wall"] });
    Task::create(&ana(), &data, "t_1".into(), &at("ana", 1_000)).unwrap()
}

fn told(announcements: &[Announcement]) -> Vec<(&str, &str)> {
    announcements.iter().map(|one| (one.room.as_str(), one.event)).collect()
}

#[test]
fn a_new_task_keeps_what_was_said_of_it_and_its_project_is_told() {
    let announcements = task().changed("create", None, &at("ana", 1_000));
    let shown = json!({"id": "t_1", "projectId": "p1", "title": "Paint", "labels": ["wall"], "createdBy": "ana",
        "createdAt": 1_000, "updatedBy": "ana", "updatedAt": 1_000});
    assert_eq!(told(&announcements), [("project:p1", "task:update")]);
    assert_eq!(announcements[0].data, json!({"action": "create", "task": shown, "userId": "ana", "at": 1_000}));
}

#[test]
fn only_members_of_the_project_create_tasks_there() {
    let create = |caller: &Caller, project: Value| {
        let data = json!({ "project_id": project, "title": "x" });
        Task::create(caller, &data, "t_1".into(), &at("x", 1)).map_err(|refused| refused.code)
    };
    assert!(create(&ana(), json!("p1")).is_ok() && create(&ana(), json!(7)).is_ok());
    assert_eq!(create(&ana(), json!("p2")), Err("forbidden"));
    assert_eq!(create(&ana(), json!(["p1"])), Err("invalid"));
    assert!(create(&Caller::Backend, json!("p2")).is_ok());
    for claims in ["", "[]", r#"{"projects":"p1"}"#] {
        assert_eq!(create(&Caller::from_claims("eve", claims), json!("p1")), Err("forbidden"), "{claims}");
    }
}

#[test]
fn clients_choose_neither_id_nor_author() {
    let data = json!({ "projectId": "p1", "id": "mine", "createdBy": "boss", "createdAt": 1, "title": "x" });
    let task = Task::create(&ana(), &data, "t_1".into(), &at("ana", 5)).unwrap();
    assert_eq!(
        (task.id.as_str(), &task.shown()["createdBy"], &task.shown()["createdAt"]),
        ("t_1", &json!("ana"), &json!(5))
    );
    let given = Task::create(&Caller::Backend, &data, "t_1".into(), &at("backend", 5)).unwrap();
    assert_eq!(given.id, "mine", "the back end gives the id of its own database");
}

#[test]
fn an_edit_changes_the_named_fields_alone_in_any_of_its_forms() {
    for data in [
        json!({ "taskId": "t_1", "changes": { "title": "Paint it", "labels": null } }),
        json!({ "taskId": "t_1", "title": "Paint it", "labels": null }),
        json!({ "task": { "id": "t_1", "title": "Paint it", "labels": null, "project_id": "p1" } }),
    ] {
        assert_eq!(named_task(&data).unwrap(), "t_1");
        let edited = task().edit(&data, &at("bob", 2_000)).unwrap().shown();
        assert_eq!(
            edited,
            json!({"id": "t_1", "projectId": "p1", "title": "Paint it", "createdBy": "ana",
            "createdAt": 1_000, "updatedBy": "bob", "updatedAt": 2_000})
        );
    }
    let elsewhere = task().edit(&json!({ "taskId": "t_1", "projectId": "p2" }), &at("bob", 1));
    assert_eq!(elsewhere.unwrap_err().code, "invalid");
}

#[test]
fn a_new_assignee_is_told_by_name_and_whoever_assigns_itself_gets_no_notification() {
    let before = task();
    let after = before.assign(&json!({ "taskId": "t_1", "userId": "bob" }), &at("ana", 3)).unwrap();
    let announcements = after.changed("assign", before.assignee(), &at("ana", 3));
    assert_eq!(
        told(&announcements),
        [("project:p1", "task:update"), ("user:bob", "task:assigned"), ("user:bob", "notification")]
    );
    assert_eq!(announcements[1].data["task"]["assigneeId"], "bob");
    assert_eq!(announcements[1].data["assignedBy"], "ana");
    assert_eq!(
        announcements[2].data,
        json!({"type": "task_assigned", "taskId": "t_1", "projectId": "p1",
        "title": "Paint", "from": "ana", "at": 3})
    );
    let again = after.changed("update", after.assignee(), &at("ana", 4));
    assert_eq!(told(&again), [("project:p1", "task:update")], "bob knows already");
    let own = after.changed("assign", None, &at("bob", 3));
    assert_eq!(told(&own), [("project:p1", "task:update"), ("user:bob", "task:assigned")]);
    let nobody = after.assign(&json!({ "assigneeId": null }), &at("ana", 5)).unwrap();
    assert_eq!(told(&nobody.changed("assign", Some("bob"), &at("ana", 5))), [("project:p1", "task:update")]);
    assert_eq!(task().assign(&json!({}), &at("ana", 5)).unwrap_err().code, "invalid");
}

#[test]
fn a_comment_goes_to_the_tasks_watchers_and_to_whom_it_concerns() {
    let task = task().assign(&json!({ "assigneeId": "bob" }), &at("ana", 3)).unwrap();
    let say = |by: &str| Comment::new(&task, &json!({ "text": " Done? " }), "c_1".into(), &at(by, 9)).unwrap();
    let announcements = say("cleo").added(&task);
    assert_eq!(
        told(&announcements),
        [("task:t_1", "comment:added"), ("user:ana", "notification"), ("user:bob", "notification")]
    );
    assert_eq!(
        announcements[0].data,
        json!({"taskId": "t_1", "comment":
        {"id": "c_1", "taskId": "t_1", "text": "Done?", "authorId": "cleo", "createdAt": 9}})
    );
    assert_eq!(told(&say("bob").added(&task)), [("task:t_1", "comment:added"), ("user:ana", "notification")]);
    for data in [json!({}), json!({ "text": " " }), json!({ "text": "x".repeat(COMMENT_CHARS_MAX + 1) })] {
        assert_eq!(Comment::new(&task, &data, "c".into(), &at("ana", 1)).unwrap_err().code, "invalid");
    }
}

#[test]
fn a_stored_task_is_its_projects_and_unknown_ones_are_the_back_ends_alone() {
    let change = |caller: &Caller, stored: Option<Task>, data: Value| {
        caller.may_change("t_1", stored, &data).map_err(|refused| refused.code)
    };
    let stranger = Caller::from_claims("eve", r#"{"projects":["p2"]}"#);
    let guest = Caller::from_claims("gil", r#"{"tasks":["t_1"]}"#);
    assert!(change(&ana(), Some(task()), json!({})).is_ok());
    assert!(change(&guest, Some(task()), json!({})).is_ok());
    assert_eq!(change(&stranger, Some(task()), json!({ "projectId": "p2" })), Err("forbidden"));
    assert_eq!(change(&ana(), None, json!({ "projectId": "p1" })), Err("not_found"));
    assert_eq!(change(&Caller::Backend, None, json!({})), Err("not_found"));
    assert_eq!(change(&Caller::Backend, None, json!({ "projectId": "p9" })).unwrap().project_id, "p9");
}

#[test]
fn what_is_too_large_or_malformed_is_refused() {
    let huge = json!({ "title": "x".repeat(TASK_BYTES_MAX) });
    assert_eq!(task().edit(&huge, &at("ana", 1)).unwrap_err().code, "invalid");
    for data in [
        json!({}),
        json!({ "taskId": "" }),
        json!({ "taskId": 1.5 }),
        json!({ "taskId": "a\nb" }),
        json!({ "taskId": "x".repeat(ID_BYTES_MAX + 1) }),
    ] {
        assert_eq!(named_task(&data).unwrap_err().code, "invalid", "{data}");
    }
    assert_eq!(first_argument("[7]").unwrap_err().code, "invalid");
    assert_eq!(first_argument("[]"), Ok(json!({})));
}
