//! The checker finds what is wrong: a story that is right, and one violation planted in each copy of it.

use std::collections::BTreeMap;

use crate::checker::{Verdict, check};
use crate::history::{Allowed, ClientNo, Event, Got, History, Log, Pos, Published, Record, RoomPresence, Told, WHOLE};

const ROOM: &str = "r:1";
const HEALED_AT: u64 = 5_000;

/// What is tested, by name.
pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_story_in_which_all_is_well_has_no_violation", || violates(|_| {}, &[])),
    ("i1_a_client_that_receives_in_another_order", || violates(swapped, &["I1"])),
    ("i1_two_clients_that_disagree_on_a_position", || violates(disagreeing, &["I1"])),
    ("i1_a_position_that_was_written_twice", || violates(rewritten, &["I1"])),
    ("i1_a_publication_that_is_not_in_the_log", || violates(invented, &["I1"])),
    ("i1_a_publication_that_is_not_what_was_sent", || violates(garbled, &["I1"])),
    ("i1_a_reset_to_before_what_was_received", || violates(set_back, &["I1"])),
    ("i2_a_publication_that_one_client_missed", || violates(missed, &["I2"])),
    ("i2_a_publication_that_one_client_missed_at_the_end", || violates(missed_last, &["I2"])),
    ("i2_a_publication_that_a_socketio_client_missed", || violates(missed_without_positions, &["I2"])),
    ("i2_a_publication_missed_across_a_recovered_hop", || violates(missed_in_a_hop, &["I2"])),
    ("what_comes_before_a_join_that_was_not_answered_is_not_owed", || violates(joined_unanswered, &[])),
    ("i2_a_publication_missed_behind_such_a_join", || violates(missed_after_joining_unanswered, &["I2"])),
    ("i2_a_publication_received_twice", || violates(doubled, &["I2"])),
    ("i2_a_room_that_is_not_there_after_recovery", || violates(room_forgotten, &["I2"])),
    ("i2_a_publication_of_a_room_that_was_left", || violates(heard_after_leaving, &["I2"])),
    ("i2_a_loss_that_nobody_was_told_of", || violates(untold_loss, &["I2"])),
    ("i2_more_lost_than_the_reset_says", || violates(missed_after_a_reset, &["I2"])),
    ("i2_a_loss_that_is_passed_over_in_recovering", || violates(loss_passed_over, &["I2"])),
    ("what_comes_before_the_word_not_recovered_is_not_owed", || violates(not_recovered_late, &[])),
    ("a_loss_that_was_told_is_counted", told_loss_is_counted),
    ("i3_an_acknowledged_publication_that_is_not_in_the_log", || violates(acked_only, &["I3"])),
    ("i3_a_loss_where_none_is_allowed", || violates(forbidden_loss, &["I3", "I9"])),
    ("i4_a_publication_in_the_log_twice", || violates(published_twice, &["I4"])),
    ("i4_a_publication_again_after_its_loss_is_none", || violates(published_again, &[])),
    ("i5_a_publication_of_another_tenant", || violates(foreign, &["I5"])),
    ("i6_a_ghost_and_a_member_not_told_of", || violates(ghost, &["I6"])),
    ("i6_a_leftover_is_counted_while_its_time_is_not_over", leftover_is_counted),
    ("i6_a_member_not_told_of_is_no_leftover", || violates(member_missing_among_leftovers, &["I6"])),
    ("i6_a_user_that_joins_twice", || violates(joins_twice, &["I6"])),
    ("i7_two_outcomes_for_a_visitor", || violates(two_outcomes, &["I7"])),
    ("i7_two_answers_taken", || violates(two_answers, &["I7"])),
    ("i7_a_timer_that_never_fired", || violates(timer_lost, &["I7"])),
    ("i7_a_timer_that_fired_late", || violates(timer_late, &["I7"])),
    ("i8_a_gateway_that_grows", || violates(|story| story.history.rss_max = u64::MAX, &["I8"])),
    ("i9_a_client_closed_because_of_redis", || violates(closed, &["I9"])),
    ("who_comes_in_when_a_loss_is_noticed_may_be_sent_away_once_more", || violates(sent_away, &[])),
    ("i9_a_client_closed_because_of_redis_that_did_not_just_come_in", || violates(sent_away_long_after, &["I9"])),
    ("i9_a_node_that_never_delivers_again", || violates(silent_node, &["I9"])),
    ("i9_a_refusal_long_after_everything_was_back", || violates(refused_late, &["I9"])),
    ("i9_a_client_not_recovered_although_nothing_was_lost", || violates(not_recovered, &["I9"])),
    ("i10_a_key_view_that_lags", || violates(stale_view, &["I10"])),
    ("what_was_not_looked_at_is_said", unchecked_is_said),
];

/// The story with something planted in it violates exactly these invariants.
fn violates(plant: fn(&mut Story), expected: &[&str]) {
    let mut story = Story::in_which_all_is_well();
    plant(&mut story);
    let verdict = check(&story.history);
    let found: Vec<_> = verdict.violations().map(|(invariant, ..)| invariant).collect();
    assert_eq!(found, expected, "{}", described(&verdict));
}

fn described(verdict: &Verdict) -> String {
    verdict.violations().flat_map(|(_, _, described)| described.to_vec()).collect::<Vec<_>>().join("\n")
}

struct Story {
    history: History,
    now: u64,
    seq: u64,
    epoch: u64,
    published: BTreeMap<ClientNo, u64>,
}

fn own(text: &str) -> String {
    text.to_owned()
}

impl Story {
    /// Client 1 (JSON, node 0) and 2 (Socket.IO, node 1) are in a room to which 2 publishes; client 3 hops; one
    /// visitor times out, another is let in.
    fn in_which_all_is_well() -> Story {
        let mut story = Story { history: History::default(), now: 1_000, seq: 0, epoch: 1, published: BTreeMap::new() };
        story.history.nodes = 2;
        story.history.healed_at = HEALED_AT;
        story.history.allowed = Allowed { lateness_max_ms: Some(1_000), ..Allowed::default() };
        story.history.logs.insert(own("one"), Log { newest: 1, ..Log::default() });
        for (c, kind, node) in [(1, "json", 0), (2, "socketio", 1), (3, "json", 1)] {
            let (tenant, kind) = (own("one"), own(kind));
            story.event(Event::Member { t: 0, c, tenant, kind, node, on: true, rooms: vec![own(ROOM)] });
        }
        for _ in 0..3 {
            story.publish(2, &[1, 2, 3]);
        }
        story.hops(3);
        story.visitor("v1", "visitor_timeout");
        story.visitor("v2", "request_approved");
        story.event(Event::Answered { c: 1, id: own("v2"), ok: true });
        story.now = HEALED_AT + 100;
        for _ in 0..3 {
            story.publish(2, &[1, 2, 3]);
        }
        let users = vec![own("u1"), own("u2"), own("u3")];
        let told = Some(Told { count: 3, users: users.clone() });
        let (tenant, room, view) = (own("one"), own(ROOM), Some(users.clone()));
        story.history.presence = Some(vec![RoomPresence { tenant, room, count: 3, users, told, view }]);
        for c in [1, 2, 3] {
            story.event(Event::End { c, on: true });
        }
        story
    }

    fn event(&mut self, event: Event) {
        self.now += 1;
        self.history.records.push(Record::Event(event));
    }

    fn log(&mut self) -> &mut Log {
        self.history.logs.get_mut("one").unwrap()
    }

    fn entry(&mut self, published: Vec<Published>) -> Pos {
        self.seq += 1;
        let at = (self.epoch, self.seq);
        self.log().entries.insert(at, published);
        Pos { epoch: at.0, seq: at.1, part: WHOLE }
    }

    fn got(&mut self, client: ClientNo, room: &str, pos: Pos, key: &str) {
        self.now += 1;
        let told = (client != 2).then_some(pos);
        let got = Got { at: self.now, client, room: own(room), pos: told, key: own(key) };
        self.history.records.push(Record::Got(got));
    }

    /// One publication, acknowledged, in the log, and received by some.
    fn publish(&mut self, by: ClientNo, receivers: &[ClientNo]) -> Pos {
        self.publish_to(ROOM, by, receivers)
    }

    fn publish_to(&mut self, room: &str, by: ClientNo, receivers: &[ClientNo]) -> Pos {
        let n = self.published.entry(by).or_default();
        *n += 1;
        let n = *n;
        let key = format!("one/c{by}:{n}");
        let t = self.now;
        self.event(Event::Sent { t, c: by, first: n, last: n, rooms: vec![own(room)] });
        let pos = self.entry(vec![Published { room: own(room), key: key.clone(), part: WHOLE }]);
        for client in receivers {
            self.got(*client, room, pos, &key);
        }
        self.event(Event::Acked { c: by, first: n, last: n, pos: pos.to_string() });
        pos
    }

    /// Is cut off, misses something, comes back and has it.
    fn hops(&mut self, c: ClientNo) {
        self.event(Event::Off { t: 0, c, code: own("cut"), own: true });
        self.publish(2, &[1, 2]);
        let missed = Pos { epoch: self.epoch, seq: self.seq, part: WHOLE };
        let key = format!("one/c2:{}", self.published[&2]);
        self.got(c, ROOM, missed, &key);
        let t = self.now;
        let rooms = Some(vec![own(ROOM)]);
        self.event(Event::On { t, c, node: 1, recovered: Some(true), rooms, refused: None });
        self.publish(2, &[1, 2, 3]);
    }

    fn visitor(&mut self, id: &str, outcome: &str) {
        let expires_at = self.now + 100;
        let published =
            |event: &str| vec![Published { room: own("flat:A-0"), key: format!("v:{id}:{event}"), part: WHOLE }];
        self.entry(published("visitor_request"));
        self.event(Event::Visitor { tenant: own("one"), id: own(id), expires_at });
        self.entry(published(outcome));
    }

    /// The place among the records of the `n`th publication that a client received.
    fn received(&self, client: ClientNo, n: usize) -> usize {
        let received = |(_, record): &(usize, &Record)| matches!(record, Record::Got(got) if got.client == client);
        self.history.records.iter().enumerate().filter(received).nth(n).unwrap().0
    }

    fn got_at(&mut self, index: usize) -> &mut Got {
        match &mut self.history.records[index] {
            Record::Got(got) => got,
            Record::Event(event) => panic!("not a delivery: {event:?}"),
        }
    }

    /// Everything before the end of client 1 is put here.
    fn before_the_end(&mut self, event: Event) {
        let end = |record: &Record| matches!(record, Record::Event(Event::End { .. }));
        let index = self.history.records.iter().position(end).unwrap();
        self.history.records.insert(index, Record::Event(event));
    }

    /// Takes the ends off, so that the story can go on.
    fn goes_on(&mut self) {
        self.history.records.retain(|record| !matches!(record, Record::Event(Event::End { .. })));
    }

    fn ends(&mut self) {
        for c in [1, 2, 3] {
            self.event(Event::End { c, on: true });
        }
    }

    /// The log begins anew and keeps nothing after `survivor`.
    fn begins_anew(&mut self, survivor: Option<u64>) {
        let epoch = self.epoch;
        self.log().survivors.insert(epoch, survivor);
        self.epoch += 1;
        self.seq = 0;
        self.log().newest += 1;
    }

    fn reset(&mut self, c: ClientNo) {
        let pos = Some(format!("{}-0", self.epoch));
        self.event(Event::Reset { c, pos });
    }
}

fn swapped(story: &mut Story) {
    let (one, two) = (story.received(1, 0), story.received(1, 1));
    story.history.records.swap(one, two);
}

fn disagreeing(story: &mut Story) {
    let index = story.received(1, 1);
    story.got_at(index).key = own("one/c2:99");
}

fn rewritten(story: &mut Story) {
    story.log().rewritten.push(own("1-2 held something else before"));
}

fn invented(story: &mut Story) {
    story.goes_on();
    story.got(1, ROOM, Pos { epoch: 1, seq: 99, part: WHOLE }, "one/c2:99");
    // Who was there at the end is owed what somebody saw, but only if the log has it.
    story.ends();
}

fn garbled(story: &mut Story) {
    story.before_the_end(Event::Bad { c: 1, what: own("not what was published"), data: serde_json::Value::Null });
}

fn set_back(story: &mut Story) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.event(Event::Reset { c: 1, pos: Some(own("1-3")) });
    story.publish(2, &[1, 2, 3]);
    story.ends();
}

fn missed(story: &mut Story) {
    let index = story.received(1, 1);
    story.history.records.remove(index);
}

fn missed_last(story: &mut Story) {
    story.goes_on();
    story.publish(2, &[2, 3]);
    story.ends();
}

fn missed_without_positions(story: &mut Story) {
    let index = story.received(2, 2);
    story.history.records.remove(index);
}

fn missed_in_a_hop(story: &mut Story) {
    let index = story.received(3, 3);
    story.history.records.remove(index);
}

fn doubled(story: &mut Story) {
    let index = story.received(1, 2);
    let again = story.history.records[index].clone();
    story.history.records.insert(index + 1, again);
}

fn room_forgotten(story: &mut Story) {
    for record in &mut story.history.records {
        if let Record::Event(Event::On { rooms, .. }) = record {
            *rooms = Some(Vec::new());
        }
    }
    // What it received afterwards it received where it is not.
    story.history.records.retain(|record| !matches!(record, Record::Got(got) if got.client == 3 && got.at > 1_040));
}

fn heard_after_leaving(story: &mut Story) {
    story.goes_on();
    story.event(Event::Leaving { c: 1, rooms: vec![own(ROOM)] });
    story.publish(2, &[1, 2, 3]);
    story.event(Event::Left { c: 1, rooms: vec![own(ROOM)] });
    let verdict = check(&story.history);
    assert_eq!(verdict.total(), 0, "a leave that is not answered yet: {}", described(&verdict));
    story.publish(2, &[1, 2, 3]);
    story.ends();
}

fn untold_loss(story: &mut Story) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.publish(2, &[1, 2, 3]);
    story.begins_anew(Some(story.seq - 1));
    for c in [2, 3] {
        story.reset(c);
    }
    story.publish(2, &[1, 2, 3]);
    story.ends();
}

fn comes_back_after_a_loss(story: &mut Story, recovered: bool) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.publish(2, &[1, 2, 3]);
    story.event(Event::Off { t: 0, c: 1, code: own("cut"), own: true });
    story.begins_anew(Some(story.seq - 1));
    for c in [2, 3] {
        story.reset(c);
    }
    story.publish(2, &[2, 3]);
    story.publish(2, &[1, 2, 3]);
    let (t, rooms) = (story.now, Some(vec![own(ROOM)]));
    story.event(Event::On { t, c: 1, node: 0, recovered: Some(recovered), rooms, refused: None });
    let t = story.now;
    story.event(Event::Joined { t, c: 1, rooms: vec![own(ROOM)] });
    story.ends();
}

fn loss_passed_over(story: &mut Story) {
    comes_back_after_a_loss(story, true);
}

fn not_recovered_late(story: &mut Story) {
    comes_back_after_a_loss(story, false);
}

/// Client 1 asks to join another room and is cut off; the join is committed only after something was said there.
fn joined_unanswered(story: &mut Story) {
    story.goes_on();
    story.event(Event::Joining { c: 1, rooms: vec![own("r:2")] });
    story.event(Event::Off { t: 0, c: 1, code: own("cut"), own: true });
    let first = story.publish(2, &[2, 3]);
    let key = format!("one/c2:{}", story.published[&2]);
    story.publish_to("r:2", 2, &[]);
    let (t, rooms) = (story.now, Some(vec![own(ROOM), own("r:2")]));
    story.event(Event::On { t, c: 1, node: 0, recovered: Some(true), rooms, refused: None });
    story.got(1, ROOM, first, &key);
    story.now += 100;
    story.publish_to("r:2", 2, &[1]);
    story.ends();
}

fn missed_after_joining_unanswered(story: &mut Story) {
    joined_unanswered(story);
    story.goes_on();
    story.publish_to("r:2", 2, &[]);
    story.publish_to("r:2", 2, &[1]);
    story.ends();
}

fn missed_after_a_reset(story: &mut Story) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.begins_anew(None);
    for c in [1, 2, 3] {
        story.reset(c);
    }
    story.publish(2, &[2, 3]);
    story.publish(2, &[1, 2, 3]);
    story.ends();
}

fn told_loss_is_counted() {
    let mut story = Story::in_which_all_is_well();
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.publish(2, &[1, 2]);
    story.publish(2, &[2]);
    story.begins_anew(Some(story.seq - 2));
    for c in [1, 2] {
        story.reset(c);
    }
    // Client 3 had seen nothing of what is lost, so it need not be told.
    story.publish(2, &[1, 2, 3]);
    story.ends();
    let verdict = check(&story.history);
    assert_eq!(verdict.total(), 0, "{}", described(&verdict));
    assert_eq!((verdict.counts.acked_lost, verdict.counts.resets), (2, 2));
}

fn acked_only(story: &mut Story) {
    story.goes_on();
    let pos = story.publish(2, &[]);
    story.log().entries.remove(&(pos.epoch, pos.seq));
    story.ends();
}

fn forbidden_loss(story: &mut Story) {
    story.goes_on();
    story.publish(2, &[1, 2, 3]);
    story.begins_anew(Some(story.seq - 1));
    for c in [1, 2, 3] {
        story.reset(c);
    }
    story.publish(2, &[1, 2, 3]);
    story.ends();
}

fn published_twice(story: &mut Story) {
    story.goes_on();
    let pos = story.entry(vec![Published { room: own(ROOM), key: own("one/c2:1"), part: WHOLE }]);
    for c in [1, 3] {
        story.got(c, ROOM, pos, "one/c2:1");
    }
    // The one without positions cannot be told apart from one that received the first twice.
    story.got(2, ROOM, pos, "one/c2:1");
    story.ends();
}

fn published_again(story: &mut Story) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    story.goes_on();
    story.publish(2, &[1]);
    let key = format!("one/c2:{}", story.published[&2]);
    story.begins_anew(Some(story.seq - 1));
    story.reset(1);
    let pos = story.entry(vec![Published { room: own(ROOM), key: key.clone(), part: WHOLE }]);
    for c in [1, 2, 3] {
        story.got(c, ROOM, pos, &key);
    }
    story.ends();
}

fn foreign(story: &mut Story) {
    let index = story.received(1, 1);
    let mut foreign = story.got_at(index).clone();
    foreign.key = own("two/c7:1");
    story.history.records.insert(index, Record::Got(foreign));
}

fn ghost(story: &mut Story) {
    let told = Some(Told { count: 3, users: vec![own("u1"), own("u2"), own("u9")] });
    story.history.presence.as_mut().unwrap()[0].told = told;
}

fn leftover_is_counted() {
    let mut story = Story::in_which_all_is_well();
    story.history.presence.as_mut().unwrap()[0].told.as_mut().unwrap().count = 4;
    assert_eq!(check(&story.history).total(), 1, "a ghost, where the time of ghosts is over");
    story.history.leftovers_counted = true;
    let verdict = check(&story.history);
    assert_eq!((verdict.total(), verdict.counts.leftovers), (0, 1), "{}", described(&verdict));
}

fn member_missing_among_leftovers(story: &mut Story) {
    story.history.leftovers_counted = true;
    ghost(story);
    story.history.presence.as_mut().unwrap()[0].told.as_mut().unwrap().count = 4;
}

fn joins_twice(story: &mut Story) {
    let data = serde_json::json!({ "room": ROOM, "user": "u3" });
    let events = ["presence:join", "presence:leave", "presence:join", "presence:join"];
    for event in events.into_iter().rev() {
        story.before_the_end(Event::Presence { c: 1, event: own(event), data: data.clone() });
    }
}

fn two_outcomes(story: &mut Story) {
    story.entry(vec![Published { room: own("flat:A-0"), key: own("v:v2:request_denied"), part: WHOLE }]);
}

fn two_answers(story: &mut Story) {
    story.before_the_end(Event::Answered { c: 3, id: own("v2"), ok: true });
}

fn timer_lost(story: &mut Story) {
    let outcome = |published: &Vec<Published>| published.iter().any(|one| one.key == "v:v1:visitor_timeout");
    story.log().entries.retain(|_, published| !outcome(published));
}

fn timer_late(story: &mut Story) {
    story.goes_on();
    let pos = Pos { epoch: 1, seq: 7, part: WHOLE };
    assert_eq!(story.log().entries[&(1, 7)][0].key, "v:v1:visitor_timeout");
    let joined = Event::Member {
        t: 0,
        c: 4,
        tenant: own("one"),
        kind: own("json"),
        node: 0,
        on: true,
        rooms: vec![own("flat:A-0")],
    };
    story.history.records.insert(0, Record::Event(joined));
    story.now += 5_000;
    story.got(4, "flat:A-0", pos, "v:v1:visitor_timeout");
    story.got(4, "flat:A-0", Pos { seq: 8, ..pos }, "v:v2:visitor_request");
    story.got(4, "flat:A-0", Pos { seq: 9, ..pos }, "v:v2:request_approved");
    story.ends();
}

fn closed(story: &mut Story) {
    let t = story.now;
    story.before_the_end(Event::Off { t, c: 1, code: own("4003"), own: false });
}

/// It had just come in when its node noticed a loss, and is sent away once more.
fn sent_away(story: &mut Story) {
    sent_away_after(story, 900);
}

fn sent_away_long_after(story: &mut Story) {
    sent_away_after(story, 1_100);
}

fn sent_away_after(story: &mut Story, after: u64) {
    story.history.allowed = Allowed { loss: true, ..Allowed::default() };
    let t = story.now;
    let (rooms, refused) = (None, None);
    story.before_the_end(Event::On { t, c: 1, node: 0, recovered: Some(false), rooms, refused });
    story.before_the_end(Event::Off { t: t + after, c: 1, code: own("4003"), own: false });
}

fn silent_node(story: &mut Story) {
    for record in &mut story.history.records {
        if let Record::Event(Event::Member { node, .. } | Event::On { node, .. }) = record {
            *node = 0;
        }
    }
}

fn refused_late(story: &mut Story) {
    let t = HEALED_AT + 11_000;
    story.before_the_end(Event::Nack { t, c: 1, what: own("publish"), code: own("engine_unavailable") });
}

fn not_recovered(story: &mut Story) {
    let t = story.now;
    let (rooms, refused) = (None, None);
    story.before_the_end(Event::On { t, c: 1, node: 0, recovered: Some(false), rooms, refused });
}

fn stale_view(story: &mut Story) {
    story.history.presence.as_mut().unwrap()[0].view = Some(vec![own("u1")]);
}

fn unchecked_is_said() {
    let mut story = Story::in_which_all_is_well();
    story.history.presence = None;
    let verdict = check(&story.history);
    assert!(verdict.unchecked.iter().any(|text| text.contains("I6")), "{:?}", verdict.unchecked);
}
