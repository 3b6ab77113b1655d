use super::page::{Asked, LIMIT_DEFAULT, PAGE_BYTES_MAX, Page};
use super::*;

fn caller(name: &str) -> Caller {
    Caller::from_claims(name, r#"{"channels":["c1",7]}"#, "conn")
}

fn channel() -> Channel {
    Channel::named("/", &json!({ "channelId": "c1" })).unwrap()
}

fn message(number: u64) -> Message {
    let data = json!({ "text": format!("m{number}") });
    Message::new(&caller("ana"), &channel(), number, &data, 1_000).unwrap()
}

fn code<T>(result: Result<T, Refused>) -> &'static str {
    result.err().map_or("ok", |refused| refused.code)
}

#[test]
fn a_message_is_shown_with_its_place_and_acknowledged_with_its_senders_own_name_for_it() {
    let data =
        json!({ "channelId": "c1", "text": "hi", "replyTo": "c1.3", "tempId": "x9", "userId": "eve", "junk": 1 });
    let message = Message::new(&caller("ana"), &channel(), 4, &data, 1_000).unwrap();
    let shown = json!({"messageId": "c1.4", "channelId": "c1", "seq": 4, "userId": "ana", "text": "hi",
        "createdAt": 1_000, "replyTo": "c1.3"});
    assert_eq!(message.said(), Told { event: "new_message", data: shown.clone() });
    assert_eq!(
        message.sent(&data),
        json!({"messageId": "c1.4", "channelId": "c1", "seq": 4, "createdAt": 1_000, "tempId": "x9"})
    );
    assert_eq!(serde_json::from_value::<Message>(shown).unwrap(), message);
    let id = MessageId::named("/", &json!({ "messageId": "c1.4" })).unwrap();
    assert_eq!((id.channel, id.number), (channel(), 4));
}

#[test]
fn people_speak_in_the_channels_of_their_token_and_the_back_end_everywhere_for_anybody() {
    let speak = |caller: &Caller, id: Value| {
        let channel = Channel::named("/", &json!({ "channelId": id })).unwrap();
        Message::new(caller, &channel, 1, &json!({ "text": "x", "userId": "bob" }), 1)
    };
    assert!(speak(&caller("ana"), json!("c1")).is_ok() && speak(&caller("ana"), json!(7)).is_ok());
    assert_eq!(code(speak(&caller("ana"), json!("c2"))), "forbidden");
    assert_eq!(speak(&Caller::backend(), json!("c2")).unwrap().user_id, "bob");
    for claims in ["", "[]", r#"{"channels":"c1"}"#] {
        assert_eq!(code(speak(&Caller::from_claims("eve", claims, "c"), json!("c1"))), "forbidden", "{claims}");
    }
}

#[test]
fn authors_and_moderators_edit_and_delete() {
    let boss = Caller::from_claims("boss", r#"{"role":"moderator","channels":["c1"]}"#, "c");
    let new = json!({ "text": "better" });
    for (who, allowed) in [(caller("ana"), true), (boss, true), (Caller::backend(), true), (caller("bob"), false)] {
        let mut edited = message(4);
        let told = edited.edit(&who, &new, 2_000);
        assert_eq!(told.is_ok(), allowed, "{who:?}");
        if let Ok(Some(told)) = told {
            assert_eq!(
                (told.event, &told.data["text"], &told.data["editedAt"]),
                ("message_edited", &json!("better"), &json!(2_000))
            );
            assert_eq!(edited.edit(&who, &new, 3_000), Ok(None), "the same again changes nothing");
        }
        assert_eq!(message(4).delete(&who, &json!({}), 2_000).is_ok(), allowed, "{who:?}");
    }
    let nobody = Caller::from_claims("backend", r#"{"channels":["c1"]}"#, "c");
    let by_backend = Message::new(&Caller::backend(), &channel(), 1, &json!({ "text": "x" }), 1).unwrap();
    assert_eq!(code(by_backend.clone().edit(&nobody, &new, 2)), "ok", "its subject is the author's");
}

#[test]
fn a_deleted_message_keeps_its_place_and_nothing_else() {
    let mut gone = message(4);
    gone.react(&caller("bob"), &json!({ "emoji": "👍" }), 1).unwrap();
    let told = gone.delete(&caller("ana"), &json!({}), 2_000).unwrap().unwrap();
    assert_eq!(told.data, json!({ "messageId": "c1.4", "channelId": "c1", "deletedAt": 2_000, "deletedBy": "ana" }));
    assert_eq!((gone.text.as_str(), gone.number, gone.reactions.len()), ("", 4, 0));
    assert_eq!(gone.delete(&caller("ana"), &json!({}), 3_000), Ok(None));
    assert_eq!(code(gone.edit(&caller("ana"), &json!({ "text": "x" }), 3_000)), "not_found");
    assert_eq!(code(gone.react(&caller("bob"), &json!({ "emoji": "👍" }), 3_000)), "not_found");
}

#[test]
fn a_reaction_counts_once_per_user_and_can_be_taken_back() {
    let mut liked = message(4);
    let like = json!({ "emoji": "👍" });
    let told = liked.react(&caller("bob"), &like, 1).unwrap().unwrap();
    assert_eq!(told.event, "reaction_added");
    assert_eq!(
        told.data,
        json!({ "messageId": "c1.4", "channelId": "c1", "emoji": "👍", "userId": "bob", "count": 1 })
    );
    assert_eq!(liked.react(&caller("bob"), &like, 2), Ok(None));
    assert_eq!(liked.react(&caller("cleo"), &like, 2).unwrap().unwrap().data["count"], 2);
    assert_eq!(liked.take_back(&caller("bob"), &like, 3).unwrap().unwrap().data["count"], 1);
    assert_eq!(liked.take_back(&caller("bob"), &like, 3), Ok(None));
    for wrong in [json!({}), json!({ "emoji": "" }), json!({ "emoji": "x".repeat(65) }), json!({ "emoji": 7 })] {
        assert_eq!(code(liked.react(&caller("bob"), &wrong, 4)), "invalid", "{wrong}");
    }
    for n in 1..EMOJIS_MAX {
        assert_eq!(code(liked.react(&caller("bob"), &json!({ "emoji": format!("e{n}") }), 4)), "ok");
    }
    assert_eq!(code(liked.react(&caller("bob"), &json!({ "emoji": "one more" }), 4)), "invalid");
}

#[test]
fn what_is_too_long_or_malformed_is_refused() {
    for data in [
        json!({}),
        json!({ "text": " \n" }),
        json!({ "text": 7 }),
        json!({ "text": "x".repeat(TEXT_CHARS_MAX + 1) }),
        json!({ "text": "x", "metadata": "y".repeat(EXTRAS_BYTES_MAX) }),
    ] {
        assert_eq!(code(Message::new(&caller("ana"), &channel(), 1, &data, 1)), "invalid");
    }
    for id in ["", "c1", "c1.", "c1.0", "c1.x", ".4", "c1.-1"] {
        assert_eq!(code(MessageId::named("/", &json!({ "messageId": id }))), "invalid", "{id}");
    }
    for data in [json!({}), json!({ "channelId": "" }), json!({ "channelId": 1.5 }), json!({ "channelId": "a\nb" })] {
        assert_eq!(code(Channel::named("/", &data)), "invalid");
    }
    assert_eq!(code(first_argument("[7]")), "invalid");
}

#[test]
fn channels_are_read_from_rooms_as_the_gateway_reads_them() {
    let of = |namespace: &str, room: &str| Channel::of_room(namespace, &json!({ "room": room })).map(|c| c.room());
    assert_eq!(of("/", "channel:c1").as_deref(), Some("channel:c1"));
    assert_eq!(of("/n", "channel:c1").as_deref(), Some("/n#channel:c1"));
    assert_eq!(of("/n", "/n#channel:c1").as_deref(), Some("/n#channel:c1"));
    assert_eq!((of("/", "team:c1"), of("/", "channel:"), of("/", "/n")), (None, None, None));
}

#[test]
fn messages_go_by_count_and_by_age() {
    let retention = |max: &str, age: Option<&str>| Retention::read(Some(max), age);
    let three = retention("3", Some("500")).unwrap();
    assert_eq!((three.beyond(3), three.beyond(4)), (1..1, 1..2));
    assert_eq!(three.beyond(100), 82..98, "a smaller setting than before is reached step by step");
    assert_eq!((three.left_ms(&message(1), 1_100), three.left_ms(&message(1), 9_000)), (Some(400), Some(1)));
    assert_eq!(Retention::read(None, None).unwrap().left_ms(&message(1), 1_100), None);
    for (max, age) in [("0", None), ("x", None), ("1", Some("0")), ("1", Some("-1"))] {
        assert!(retention(max, age).is_err(), "{max} {age:?}");
    }
}

/// A channel in memory: the model of what the gateway's state holds.
struct Kept {
    messages: Vec<Option<Message>>,
    retention: Retention,
}

impl Kept {
    fn last(&self) -> u64 {
        self.messages.len() as u64
    }

    fn say(&mut self) {
        let number = self.last() + 1;
        self.messages.push(Some(message(number)));
        for gone in self.retention.beyond(number) {
            self.messages[gone as usize - 1] = None;
        }
    }

    fn page(&self, asked: &Asked, size: usize) -> Page {
        let stored = asked.numbers().map(|number| {
            let message = self.messages.get(number as usize - 1).cloned().flatten();
            message.map(|message| (size, message))
        });
        Page::of(asked, stored.collect())
    }
}

/// The same numbers in every run, as different as chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// However somebody pages, by position or by offset, while others speak: what it has from its join, its pages and
/// from then on live is every message that is still kept, once, in order.
#[test]
fn nothing_is_missing_or_doubled_between_the_pages_and_what_comes_live() {
    for seed in 0..500 {
        let mut chance = Chance(seed);
        let max = if chance.below(4) == 0 { 30 } else { 10_000 };
        let mut kept = Kept { messages: Vec::new(), retention: Retention::read(Some(&max.to_string()), None).unwrap() };
        for _ in 0..chance.below(150) {
            kept.say();
        }
        // Sizes at which a page is cut by its bytes, now and then.
        let size = if chance.below(3) == 0 { PAGE_BYTES_MAX / 7 } else { 100 };
        let joined = kept.page(&Asked { before: kept.last() + 1, offset: 0, limit: LIMIT_DEFAULT }, size);
        let (joined_at, by_offset) = (kept.last(), chance.below(2) == 0);
        let mut seen: Vec<u64> = joined.messages.iter().map(|message| message.number).collect();
        let (upto, mut next, mut offset) = (joined.upto, joined.before, joined.messages.len() as u64);
        while let Some(before) = next {
            for _ in 0..chance.below(5) {
                kept.say();
            }
            let limit = 1 + chance.below(100);
            let data = match by_offset {
                true => json!({ "before": upto.to_string(), "offset": offset, "limit": limit }),
                false => json!({ "before": before.to_string(), "limit": limit }),
            };
            let page = kept.page(&Asked::read(&channel(), &data, kept.last()).unwrap(), size);
            assert!(page.messages.len() as u64 <= limit);
            offset += page.messages.len() as u64;
            seen.splice(0..0, page.messages.iter().map(|message| message.number));
            next = page.before;
        }
        seen.extend(joined_at + 1..=kept.last());
        let first = seen.first().copied().unwrap_or(1);
        assert_eq!(seen, (first..=kept.last()).collect::<Vec<_>>(), "seed {seed}: doubled, missing or out of order");
        let oldest = kept.messages.iter().position(Option::is_some).map_or(1, |index| index as u64 + 1);
        assert!(first <= oldest || kept.last() == 0, "seed {seed}: {oldest} is kept, and was not shown before {first}");
    }
}

#[test]
fn pages_that_cannot_be_are_refused() {
    let read = |data: Value| Asked::read(&channel(), &data, 10);
    for data in [
        json!({ "limit": 0 }),
        json!({ "limit": 101 }),
        json!({ "offset": -1 }),
        json!({ "before": "c2.4" }),
        json!({ "before": "x" }),
        json!({ "before": [] }),
    ] {
        assert_eq!(code(read(data.clone())), "invalid", "{data}");
    }
    assert_eq!(read(json!({})).unwrap().numbers(), 1..11);
    assert_eq!(read(json!({ "before": "c1.4", "limit": 2 })).unwrap().numbers(), 2..4);
    assert_eq!(read(json!({ "before": 99, "limit": 2 })).unwrap().numbers(), 9..11, "no further than there are");
    assert_eq!(read(json!({ "offset": 99 })).unwrap().numbers(), 1..1);
}
