//! What must hold of what the members of a room received.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a client received without a gap that it may have: from when it joined until it said goodbye, or until the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stretch {
    /// Numbers of publications, as they came: to its room, and to the room of all.
    pub(crate) received: [Vec<u32>; 2],
    /// Publications begun when it had joined both rooms: later ones it must receive.
    joined: Option<u32>,
    ended: bool,
}

impl Stretch {
    /// It has joined; so many publications had begun.
    pub(crate) fn joined(&mut self, published: u32) {
        self.joined = Some(published);
    }

    /// It says goodbye: what is under way is not missed.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }
}

/// The publications to a room, by number, and which client published each, if one did.
pub(crate) type Published = BTreeMap<u32, Option<usize>>;

/// What was wrong in a room, or in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Deliveries that are missing.
    pub(crate) lost: usize,
    /// Deliveries that came again.
    pub(crate) twice: usize,
    /// Places at which a receiver's order is not that of the others, or of whoever published.
    pub(crate) disordered: usize,
    /// Deliveries of what was never published to the room.
    pub(crate) foreign: usize,
}

impl std::ops::AddAssign for Wrong {
    fn add_assign(&mut self, other: Wrong) {
        self.lost += other.lost;
        self.twice += other.twice;
        self.disordered += other.disordered;
        self.foreign += other.foreign;
    }
}

/// Looks at one room. `published` has the publications to it with whoever published them on one connection, if
/// somebody did; `stretches` what each receiver got in it. The first that was there from beginning to end says what
/// the order is.
pub(crate) fn room(published: &Published, stretches: &[&Stretch], kind: usize) -> Wrong {
    let mut wrong = Wrong::default();
    let whole = stretches.iter().find(|stretch| stretch.joined == Some(0) && !stretch.ended);
    let Some(reference) = whole else { return Wrong { lost: published.len(), ..wrong } };
    let order = once(&reference.received[kind]);
    wrong.disordered += overtaken(published, &order);
    let rank: HashMap<u32, usize> = order.iter().enumerate().map(|(rank, n)| (*n, rank)).collect();
    for stretch in stretches {
        wrong += receiver(published, stretch, kind, &order, &rank);
    }
    wrong
}

/// Without repetitions.
fn once(received: &[u32]) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    received.iter().copied().filter(|n| seen.insert(*n)).collect()
}

/// What one connection published comes in the order in which it did.
fn overtaken(published: &Published, order: &[u32]) -> usize {
    let mut latest = HashMap::new();
    let by = order.iter().filter_map(|n| Some((*n, (*published.get(n)?)?)));
    by.filter(|(n, publisher)| latest.insert(*publisher, *n).is_some_and(|before| before > *n)).count()
}

fn receiver(published: &Published, stretch: &Stretch, kind: usize, order: &[u32], rank: &HashMap<u32, usize>) -> Wrong {
    let received = &stretch.received[kind];
    let seen = once(received);
    let ranks: Vec<usize> = seen.iter().filter_map(|n| rank.get(n).copied()).collect();
    // What lies between the first and the last that it got; who has not left gets everything that followed.
    let last = if stretch.ended { ranks.iter().max().copied() } else { order.len().checked_sub(1) };
    let between = match (ranks.iter().min(), last) {
        (Some(first), Some(last)) => &order[*first..=last],
        _ => &[],
    };
    let seen_set: BTreeSet<u32> = seen.iter().copied().collect();
    let mut missing: BTreeSet<u32> = between.iter().copied().filter(|n| !seen_set.contains(n)).collect();
    if let (Some(joined), false) = (stretch.joined, stretch.ended) {
        missing.extend(published.range(joined..).map(|(n, _)| *n).filter(|n| !seen_set.contains(n)));
    }
    Wrong {
        lost: missing.len(),
        twice: received.len() - seen.len(),
        disordered: ranks.windows(2).filter(|pair| pair[0] > pair[1]).count(),
        foreign: seen.iter().filter(|n| !published.contains_key(n)).count(),
    }
}
