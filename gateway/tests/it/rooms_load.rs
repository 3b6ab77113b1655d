//! The load test of a trading and chat back end in small, and its checker against planted violations.
//! In full: `cargo bench --bench rooms_load`.

#[path = "../../benches/rooms_load/load.rs"]
mod load;

use std::time::Duration;

use load::check::{Published, Stretch, Wrong, room};
use load::{Plan, run};

#[test]
fn clients_of_both_protocols_on_two_nodes_lose_nothing_in_shared_rooms_while_some_leave_and_come_back() {
    let plan = Plan {
        connections: 200,
        rooms: 5,
        during: Duration::from_secs(3),
        rooms_per_second: 50,
        all_per_second: 10,
        connects_per_second: 400,
        churn_percent: 10,
        grace_ms: 300,
        lease_ms: 3_000,
    };
    let report = run(plan).unwrap();
    assert!(report.is_right(), "{report}");
    assert!(report.churned >= 15 && report.publications >= 150, "too little happened: {report}");
    assert!(report.deliveries() > report.publications * 40, "too little was delivered: {report}");
}

/// Five publications, of which one client published the first, third and fifth.
fn published() -> Published {
    [(0, Some(7)), (1, None), (2, Some(7)), (3, None), (4, Some(7))].into()
}

fn got(received: &[u32], joined: u32, ended: bool) -> Stretch {
    let mut stretch = Stretch::default();
    stretch.received[0].extend(received);
    stretch.joined(joined);
    if ended {
        stretch.ended();
    }
    stretch
}

#[track_caller]
fn is_found(stretches: &[Stretch], wanted: Wrong) {
    assert_eq!(room(&published(), &stretches.iter().collect::<Vec<_>>(), 0), wanted);
}

fn reference() -> Stretch {
    got(&[0, 2, 1, 3, 4], 0, false)
}

#[test]
fn one_order_without_a_gap_is_right_also_for_who_left_or_came_later() {
    let others =
        [got(&[0, 2, 1, 3, 4], 0, false), got(&[2, 1], 0, true), got(&[1, 3, 4], 3, false), got(&[], 5, false)];
    is_found(&[vec![reference()], others.to_vec()].concat(), Wrong::default());
}

#[test]
fn what_is_missing_is_found_at_the_beginning_in_the_middle_and_at_the_end() {
    let lost = |lost| Wrong { lost, ..Wrong::default() };
    is_found(&[reference(), got(&[2, 1, 3, 4], 0, false)], lost(1));
    is_found(&[reference(), got(&[0, 2, 4], 0, false)], lost(2));
    is_found(&[reference(), got(&[0, 2, 1], 0, false)], lost(2));
    is_found(&[reference(), got(&[0, 1], 0, true)], lost(1));
    is_found(&[reference(), got(&[4], 3, false)], lost(1));
    is_found(&[reference(), got(&[], 0, false)], lost(5));
    is_found(&[got(&[0, 2, 4], 0, false)], lost(2));
    is_found(&[got(&[0], 0, true)], lost(5));
}

#[test]
fn what_comes_twice_or_was_not_published_to_the_room_is_found() {
    is_found(&[reference(), got(&[0, 2, 1, 2, 3, 4], 0, false)], Wrong { twice: 1, ..Wrong::default() });
    is_found(&[reference(), got(&[0, 2, 1, 9, 3, 4], 0, false)], Wrong { foreign: 1, ..Wrong::default() });
}

#[test]
fn another_order_than_the_others_or_than_the_publishers_is_found() {
    let disordered = Wrong { disordered: 1, ..Wrong::default() };
    is_found(&[reference(), got(&[0, 2, 3, 1, 4], 0, false)], disordered);
    is_found(&[got(&[0, 4, 1, 2, 3], 0, false)], disordered);
}
