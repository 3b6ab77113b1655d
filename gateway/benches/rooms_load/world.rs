//! What everybody of the load shares: the nodes, what was published, and what came of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::check::{self, Published, Stretch, Wrong};
use super::http::Http;
use super::member::Member;
use super::node::Node;
use super::plan::Plan;

/// The tenant of everybody.
pub(crate) const TENANT: &str = "floor";
/// With which its back end calls.
pub(crate) const BACKEND_TOKEN: &str = "bench-backend-token-of-nobody-0123456789";
/// What is broadcast.
pub(crate) const EVENT: &str = "quote";
/// The room in which everybody is.
pub(crate) const ALL_ROOM: &str = "market:all";
/// Faults that are told word by word.
const FAULTS_TOLD_MAX: usize = 20;

/// A shared room's name.
pub(crate) fn room_name(room: usize) -> String {
    format!("desk:{room}")
}

/// One of what was published, numbered from 0.
pub(crate) struct Publication {
    /// `None`: to all.
    pub(crate) room: Option<usize>,
    /// The client that published it; `None`: the back end.
    pub(crate) publisher: Option<usize>,
    /// When it was to be sent. What follows too late because something hung counts as late.
    pub(crate) due: Instant,
    /// Whether clients were leaving and coming back.
    pub(crate) churn: bool,
}

/// All of it.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) http: Vec<Http>,
    pub(crate) publications: RefCell<Vec<Publication>>,
    /// Publications whose answer has not come.
    pub(crate) under_way: Cell<usize>,
    /// Whether clients are leaving and coming back.
    pub(crate) churn: Cell<bool>,
    /// From when a publication was due until a client had it: to shared rooms and to all, without churn and with it.
    pub(crate) latencies: RefCell<[[Vec<Duration>; 2]; 2]>,
    /// Deliveries of what was published before the client came back.
    pub(crate) caught_up: Cell<usize>,
    faults: RefCell<(usize, Vec<String>)>,
}

impl World {
    pub(crate) fn new(plan: Plan, nodes: Vec<Node>) -> World {
        World {
            plan,
            http: nodes.iter().map(|node| Http::new(node.address)).collect(),
            nodes,
            publications: RefCell::default(),
            under_way: Cell::new(0),
            churn: Cell::new(false),
            latencies: RefCell::default(),
            caught_up: Cell::new(0),
            faults: RefCell::default(),
        }
    }

    /// Something that must not be.
    pub(crate) fn fault(&self, what: String) {
        let mut faults = self.faults.borrow_mut();
        faults.0 += 1;
        if faults.1.len() < FAULTS_TOLD_MAX {
            faults.1.push(what);
        }
    }

    /// How many faults there were, and the first of them.
    pub(crate) fn faults(&self) -> (usize, Vec<String>) {
        self.faults.borrow().clone()
    }

    /// How many publications were begun.
    pub(crate) fn published(&self) -> u32 {
        u32::try_from(self.publications.borrow().len()).expect("fewer than four billion publications")
    }

    /// A member got an event.
    pub(crate) fn received(&self, member: &Member, text: &str) {
        let number = text.find("\"n\":").map(|at| &text[at + 4..]);
        let number = number.and_then(|text| text.split([',', '}']).next()?.parse::<u32>().ok());
        let publications = self.publications.borrow();
        let found = number.and_then(|number| Some((number, publications.get(number as usize)?)));
        let Some((number, publication)) = found else {
            return self.fault(format!("{} got what nobody published: {text}", member.user));
        };
        let kind = usize::from(publication.room.is_none());
        if publication.room.is_some_and(|room| room != member.room) {
            self.fault(format!("{} of room {} got an event of another room: {text}", member.user, member.room));
        }
        if let Some(stretch) = member.stretches.borrow_mut().last_mut() {
            stretch.received[kind].push(number);
        }
        // What it missed while it was away waited for it.
        if member.entered.get().is_some_and(|entered| publication.due < entered) {
            self.caught_up.set(self.caught_up.get() + 1);
            return;
        }
        self.latencies.borrow_mut()[kind][usize::from(publication.churn)].push(publication.due.elapsed());
    }

    /// Publications to each shared room, and to all.
    fn published_by_room(&self) -> (Vec<Published>, Published) {
        let (mut rooms, mut all) = (vec![Published::new(); self.plan.rooms], Published::new());
        for (number, publication) in (0..).zip(self.publications.borrow().iter()) {
            match publication.room {
                Some(room) => rooms[room].insert(number, publication.publisher),
                None => all.insert(number, publication.publisher),
            };
        }
        (rooms, all)
    }

    /// Whether everybody who was there all the time has what they are to get.
    pub(crate) fn settled(&self, members: &[Rc<Member>]) -> bool {
        let (rooms, all) = self.published_by_room();
        let has_all = |member: &Member| match member.stretches.borrow().as_slice() {
            [only] => only.received[0].len() >= rooms[member.room].len() && only.received[1].len() >= all.len(),
            _ => true,
        };
        members.iter().all(|member| has_all(member))
    }

    /// Looks at everything that was received.
    pub(crate) fn check(&self, members: &[Rc<Member>]) -> Wrong {
        let stretches: Vec<Vec<Stretch>> = members.iter().map(|member| member.stretches.borrow().clone()).collect();
        let (rooms, all) = self.published_by_room();
        let mut wrong = check::room(&all, &stretches.iter().flatten().collect::<Vec<_>>(), 1);
        for (room, published) in rooms.iter().enumerate() {
            let inside = members.iter().zip(&stretches).filter(|(member, _)| member.room == room);
            wrong += check::room(published, &inside.flat_map(|(_, stretches)| stretches).collect::<Vec<_>>(), 0);
        }
        wrong
    }
}
