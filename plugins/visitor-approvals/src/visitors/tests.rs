use super::*;

fn guard() -> Caller {
    Caller::from_claims("gus", r#"{"role":"guard","society_id":"s1"}"#)
}

fn resident() -> Caller {
    Caller::from_claims("rita", r#"{"role":"resident","flats":["f1",12]}"#)
}

fn ask() -> Value {
    json!({"flat_id": "f1", "visitor_name": "Vera", "purpose": "parcel"})
}

fn pending() -> Visitor {
    Visitor::create(&guard(), &ask(), "v_1".into(), 1_000, 500).unwrap()
}

fn approve(visitor: Visitor, caller: &Caller) -> Result<Visitor, &'static str> {
    visitor.answer(caller, &json!({"decision": "approve"}), 1_200).map_err(|refused| refused.code)
}

#[test]
fn a_guards_request_goes_to_the_flat_alone() {
    let announcement = pending().announcement();
    assert_eq!(announcement.event, "visitor_request");
    assert_eq!(announcement.rooms, ["flat:f1"]);
    assert_eq!(
        announcement.data,
        json!({"visitor_id": "v_1", "flat_id": "f1", "visitor_name": "Vera", "purpose": "parcel",
               "status": "pending", "requested_by": "gus", "expires_at": 1_500})
    );
}

#[test]
fn an_answer_goes_to_the_society_and_the_flat() {
    let approved = approve(pending(), &resident()).unwrap();
    let denied = pending().answer(&resident(), &json!({"decision": "deny"}), 1_200).unwrap();
    for (visitor, event, decision) in [(approved, "request_approved", "approve"), (denied, "request_denied", "deny")] {
        let announcement = visitor.announcement();
        assert_eq!(announcement.event, event);
        assert_eq!(announcement.rooms, ["society:s1", "flat:f1"]);
        assert_eq!(
            announcement.data,
            json!({"visitor_id": "v_1", "flat_id": "f1", "visitor_name": "Vera", "decision": decision,
                   "decided_by": "rita", "decided_at": 1_200})
        );
    }
}

#[test]
fn a_visitor_has_exactly_one_outcome() {
    let approved = approve(pending(), &resident()).unwrap();
    assert_eq!(approve(approved.clone(), &resident()), Err("already_resolved"));
    assert_eq!(approved.expire(2_000), None);
    let timed_out = pending().expire(2_000).unwrap();
    assert_eq!(timed_out.announcement().event, "visitor_timeout");
    assert_eq!(timed_out.announcement().rooms, ["society:s1", "flat:f1"]);
    assert_eq!(approve(timed_out, &resident()), Err("already_resolved"));
}

#[test]
fn only_guards_with_a_society_register_visitors() {
    for claims in [
        r#"{"role":"guard"}"#,
        r#"{"role":"guard","society_id":"s/1"}"#,
        r#"{"role":"resident","flats":["f1"],"society_id":"s1"}"#,
        r#"{"role":"admin","society_id":"s1"}"#,
        "{}",
        "",
    ] {
        let refused = Visitor::create(&Caller::from_claims("x", claims), &ask(), "v_1".into(), 0, 1).unwrap_err();
        assert_eq!(refused.code, "forbidden", "{claims}");
    }
}

#[test]
fn only_residents_of_the_flat_answer() {
    let neighbour = Caller::from_claims("ned", r#"{"role":"resident","flats":["f2"]}"#);
    for caller in [guard(), neighbour, Caller::Stranger] {
        assert_eq!(approve(pending(), &caller), Err("forbidden"));
    }
}

#[test]
fn a_stranger_does_not_learn_whether_a_visitor_is_resolved() {
    let approved = approve(pending(), &resident()).unwrap();
    assert_eq!(approve(approved, &Caller::Stranger), Err("forbidden"));
}

#[test]
fn the_back_end_names_the_society_itself_and_may_answer() {
    let refused = Visitor::create(&Caller::Backend, &ask(), "v_1".into(), 0, 1).unwrap_err();
    assert_eq!(refused.code, "invalid");
    let mut data = ask();
    data["society_id"] = json!("s9");
    let visitor = Visitor::create(&Caller::Backend, &data, "v_1".into(), 0, 1).unwrap();
    assert_eq!((visitor.society_id.as_str(), visitor.requested_by.as_str()), ("s9", "backend"));
    assert_eq!(approve(visitor, &Caller::Backend).unwrap().decided_by.as_deref(), Some("backend"));
}

#[test]
fn a_guard_cannot_ask_in_the_name_of_another_society() {
    let mut data = ask();
    data["society_id"] = json!("s9");
    assert_eq!(Visitor::create(&guard(), &data, "v_1".into(), 0, 1).unwrap().society_id, "s1");
}

#[test]
fn malformed_requests_are_invalid() {
    for (field, value) in [
        ("flat_id", json!(null)),
        ("flat_id", json!("a/b")),
        ("flat_id", json!("x".repeat(65))),
        ("flat_id", json!(1.5)),
        ("visitor_name", json!(null)),
        ("visitor_name", json!("  ")),
        ("visitor_name", json!(7)),
        ("visitor_name", json!("a\u{0}b")),
        ("visitor_name", json!("x".repeat(201))),
        ("purpose", json!("x".repeat(501))),
        ("purpose", json!([])),
    ] {
        let mut data = ask();
        data[field] = value.clone();
        let refused = Visitor::create(&guard(), &data, "v_1".into(), 0, 1).unwrap_err();
        assert_eq!(refused.code, "invalid", "{field} {value}");
    }
    for data in [json!({}), json!({"visitor_id": "a/b"}), json!({"visitor_id": 7})] {
        assert_eq!(named_visitor(&data).unwrap_err().code, "invalid");
    }
    assert_eq!(pending().answer(&resident(), &json!({"decision": "maybe"}), 0).unwrap_err().code, "invalid");
    assert_eq!(first_argument("[7]").unwrap_err().code, "invalid");
    assert_eq!(first_argument("[]"), Ok(json!({})));
}

#[test]
fn ids_may_be_numbers_as_they_are_in_tokens() {
    let data = json!({"flat_id": 12, "visitor_name": "Vera"});
    let visitor = Visitor::create(&guard(), &data, "v_1".into(), 0, 1).unwrap();
    assert_eq!(visitor.flat_id, "12");
    assert!(approve(visitor, &resident()).is_ok());
}

#[test]
fn an_input_keeps_its_visitor_id_whatever_the_input_is_called() {
    assert_eq!(visitor_id("abc-DEF_1"), "v_abc-DEF_1");
    for odd in ["a/b", "key with spaces", &"x".repeat(100)] {
        let id = visitor_id(odd);
        assert!(is_id(&id), "{id}");
        assert_eq!(id, visitor_id(odd));
    }
    assert_ne!(visitor_id("a/b"), visitor_id("a/c"));
}

#[test]
fn lists_are_newest_first_without_doubles_and_bounded() {
    let mut keys = Vec::new();
    for n in 0..150_u64 {
        let visitor = Visitor { visitor_id: format!("v-{n}"), created_at: n, ..pending() };
        keys.extend(visitor.index_keys(Status::Pending));
    }
    let ids = newest(keys);
    assert_eq!(ids.len(), LIST_MAX);
    assert_eq!((ids[0].as_str(), ids[99].as_str()), ("v-149", "v-50"));
}

#[test]
fn everybody_lists_what_is_theirs() {
    assert_eq!(scopes(&guard(), &json!({})).unwrap(), ["society/s1"]);
    assert_eq!(scopes(&resident(), &json!({})).unwrap(), ["flat/f1", "flat/12"]);
    assert_eq!(scopes(&Caller::Stranger, &json!({})).unwrap_err().code, "forbidden");
    assert_eq!(scopes(&Caller::Backend, &json!({})).unwrap_err().code, "invalid");
    assert_eq!(scopes(&Caller::Backend, &json!({"society_id": "s2"})).unwrap(), ["society/s2"]);
}

#[test]
fn a_list_can_be_narrowed_to_one_status() {
    assert_eq!(wanted_statuses(&json!({})).unwrap().len(), 4);
    assert_eq!(wanted_statuses(&json!({"status": "timed_out"})).unwrap(), [Status::TimedOut]);
    assert_eq!(wanted_statuses(&json!({"status": "lost"})).unwrap_err().code, "invalid");
    for status in Status::ALL {
        assert_eq!(json!(status), json!(status.word()));
    }
}

#[test]
fn the_time_to_answer_is_a_setting() {
    assert_eq!(timeout_ms(None), Ok(120_000));
    assert_eq!(timeout_ms(Some("250")), Ok(250));
    for bad in ["0", "-1", "soon", "1.5", "604800001"] {
        assert!(timeout_ms(Some(bad)).unwrap_err().contains("timeout_ms"), "{bad}");
    }
}

#[test]
fn a_timer_knows_its_visitor() {
    assert_eq!(timer_visitor(&timer_name("v_1")), Some("v_1"));
    assert_eq!(timer_visitor("other"), None);
}
