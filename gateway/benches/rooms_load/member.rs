//! One client: how it connects, what it is told, how it goes and comes back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::check::Stretch;
use super::node::token;
use super::wire::{Inbox, Socket};
use super::world::{ALL_ROOM, EVENT, TENANT, World, room_name};

/// How long the answer to a request may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// With a goodbye; who comes back is new.
    Goodbye,
    /// The line breaks; who comes back has missed nothing.
    Break,
}

/// A client of the load.
pub(crate) struct Member {
    pub(crate) user: String,
    pub(crate) room: usize,
    /// The node on which it is, while it is connected.
    pub(crate) node: Cell<Option<usize>>,
    /// When it began to connect, the last time.
    pub(crate) entered: Cell<Option<Instant>>,
    /// What it received: a stretch for each life that nothing connects with the one before.
    pub(crate) stretches: RefCell<Vec<Stretch>>,
    /// Whether it keeps the list of who is in its room by what it is told.
    observes: bool,
    /// That list.
    pub(crate) present: RefCell<BTreeSet<String>>,
    socket_io: bool,
    token: String,
    socket: RefCell<Option<Rc<Socket>>>,
    asked: RefCell<HashMap<u64, oneshot::Sender<String>>>,
    next_id: Cell<u64>,
    session: RefCell<String>,
    /// How far it has come, where somebody may come back.
    reached: RefCell<Option<String>>,
    keeps_place: bool,
    listening: RefCell<Option<AbortHandle>>,
}

impl Member {
    /// The client with this number, not connected. Every tenth is a second device of the user before.
    pub(crate) fn new(world: &World, n: usize) -> Member {
        let plan = &world.plan;
        let of_user = if n % 10 == 9 { n - 1 } else { n };
        let user = format!("user{of_user}");
        Member {
            token: token(TENANT, &user),
            user,
            room: plan.room_of(n),
            node: Cell::new(None),
            entered: Cell::new(None),
            stretches: RefCell::default(),
            observes: n % plan.members() < 4 && !plan.churns(n),
            present: RefCell::default(),
            socket_io: (n / 2).is_multiple_of(2),
            socket: RefCell::default(),
            asked: RefCell::default(),
            next_id: Cell::new(1),
            session: RefCell::default(),
            reached: RefCell::default(),
            keeps_place: plan.churns(n),
            listening: RefCell::default(),
        }
    }

    /// Whether it knows by itself who is in its room.
    pub(crate) fn observes(&self) -> bool {
        self.observes
    }

    /// Connects as somebody new, and joins its room and that of all. The time is that until it was welcomed.
    pub(crate) async fn connect(self: &Rc<Self>, world: &Rc<World>, node: usize) -> Result<Duration, String> {
        let begun = Instant::now();
        self.stretches.borrow_mut().push(Stretch::default());
        self.enter(world, node, None).await?;
        let connected = begun.elapsed();
        for room in [room_name(self.room), ALL_ROOM.into()] {
            let answer = self.ask("join_room", &json!({ "room": room })).await?;
            if !answer.contains("room_name") {
                return Err(format!("{} does not join {room}: {answer}", self.user));
            }
        }
        self.stretches.borrow_mut().last_mut().expect("it has begun").joined(world.published());
        if self.observes {
            self.ask_who_is_there().await?;
        }
        Ok(connected)
    }

    async fn ask_who_is_there(&self) -> Result<(), String> {
        let answer = self.ask("presence", &json!({ "room": room_name(self.room) })).await?;
        let start = answer.find('{').ok_or_else(|| format!("no presence: {answer}"))?;
        let told = serde_json::Deserializer::from_str(&answer[start..]).into_iter::<Value>().next();
        let told = told.and_then(Result::ok).ok_or_else(|| format!("no presence: {answer}"))?;
        self.present.borrow_mut().extend(names(&told["users"]));
        Ok(())
    }

    /// Comes back as the session that it was; it has its rooms and gets what it missed.
    pub(crate) async fn come_back(self: &Rc<Self>, world: &Rc<World>, node: usize) -> Result<(), String> {
        let (session, reached) = (self.session.take(), self.reached.borrow().clone().unwrap_or_default());
        self.enter(world, node, Some((&session, &reached))).await
    }

    /// Opens a connection, with or without what it was before, and listens.
    async fn enter(self: &Rc<Self>, world: &Rc<World>, node: usize, back: Option<(&str, &str)>) -> Result<(), String> {
        self.entered.set(Some(Instant::now()));
        let failed = |error: std::io::Error| format!("{} cannot connect: {error}", self.user);
        let address = world.nodes[node].address;
        let (socket, mut inbox) = if self.socket_io {
            let path = format!("/t/{TENANT}/socket.io/?EIO=4&transport=websocket");
            let (socket, mut inbox) = Socket::open(address, &path, None).await.map_err(failed)?;
            socket.next(&mut inbox).await.map_err(failed)?;
            let mut auth = json!({ "token": self.token });
            if let Some((pid, offset)) = back {
                (auth["pid"], auth["offset"]) = (pid.into(), offset.into());
            }
            socket.send(&format!("40{auth}")).await.map_err(failed)?;
            (socket, inbox)
        } else {
            let query = back.map(|(session, pos)| format!("?session={session}&pos={pos}")).unwrap_or_default();
            let path = format!("/t/{TENANT}/ws{query}");
            Socket::open(address, &path, Some(&self.token)).await.map_err(failed)?
        };
        let welcome = socket.next(&mut inbox).await.map_err(failed)?;
        self.welcomed(welcome, back)?;
        let socket = Rc::new(socket);
        self.socket.replace(Some(socket.clone()));
        self.node.set(Some(node));
        let listening = tokio::task::spawn_local(self.clone().listen(world.clone(), socket, inbox));
        self.listening.replace(Some(listening.abort_handle()));
        Ok(())
    }

    /// Takes the first word of the gateway.
    fn welcomed(&self, welcome: &str, back: Option<(&str, &str)>) -> Result<(), String> {
        let unexpected = || format!("{} is not welcome: {welcome}", self.user);
        let start = welcome.find('{').ok_or_else(unexpected)?;
        let told: Value = serde_json::from_str(&welcome[start..]).map_err(|_| unexpected())?;
        let (session, recovered) = if self.socket_io {
            let pid = told["pid"].as_str();
            (pid, pid == back.map(|(session, _)| session))
        } else {
            (told["data"]["session"].as_str(), told["data"]["recovered"] == true)
        };
        self.session.replace(session.ok_or_else(unexpected)?.to_owned());
        if back.is_some() && !recovered {
            return Err(format!("{} comes back and is somebody new: {welcome}", self.user));
        }
        // An offset of no event is not known to Socket.IO clients; JSON clients begin with that of the welcome.
        if let (None, Some(pos)) = (back, told["data"]["pos"].as_str()) {
            self.reached.replace(Some(pos.to_owned()));
        }
        Ok(())
    }

    async fn listen(self: Rc<Self>, world: Rc<World>, socket: Rc<Socket>, mut inbox: Inbox) {
        // What is still read after it has left, it does not get any more.
        let here = || self.socket.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, &socket));
        let ended = loop {
            match socket.next(&mut inbox).await {
                // Engine.IO's ping.
                Ok("2") if self.socket_io => drop(socket.send("3").await),
                Ok(text) if here() => self.heard(&world, text),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        if here() {
            self.node.set(None);
            world.fault(format!("{} was connected: {ended}", self.user));
        }
    }

    fn heard(&self, world: &World, text: &str) {
        let (name, rest) = match self.socket_io {
            true => match text.strip_prefix("42[\"") {
                Some(event) => event.split_once('"').unwrap_or_default(),
                None => return self.answered(text.strip_prefix("43").unwrap_or_default(), '['),
            },
            false => match text.strip_prefix("{\"event\":\"") {
                Some(event) => event.split_once('"').unwrap_or_default(),
                None => return self.answered(text.strip_prefix("{\"id\":").unwrap_or_default(), ','),
            },
        };
        match name {
            EVENT => {
                if self.keeps_place {
                    self.keep_place(rest);
                }
                world.received(self, rest);
            }
            "presence:join" | "presence:leave" | "presence:update" if self.observes => self.presence(name, rest),
            "error" | "reset" => world.fault(format!("{} was told: {text}", self.user)),
            _ => {}
        }
    }

    /// An answer: its id, and what follows it from `mark` on.
    fn answered(&self, text: &str, mark: char) {
        let Some((id, _)) = text.split_once(mark) else { return };
        let waiting = id.parse().ok().and_then(|id| self.asked.borrow_mut().remove(&id));
        // Whoever does not wait any more has told so.
        waiting.and_then(|waiting| waiting.send(text.to_owned()).ok());
    }

    /// Position or offset: the last string of the message.
    fn keep_place(&self, text: &str) {
        let mut quotes = text.rmatch_indices('"');
        if let (Some((end, _)), Some((start, _))) = (quotes.next(), quotes.next()) {
            self.reached.replace(Some(text[start + 1..end].to_owned()));
        }
    }

    fn presence(&self, name: &str, rest: &str) {
        let Some(start) = rest.find('{') else { return };
        let told = serde_json::Deserializer::from_str(&rest[start..]).into_iter::<Value>().next();
        let Some(Ok(told)) = told else { return };
        let mut present = self.present.borrow_mut();
        let one = told["user"].as_str().map(str::to_owned);
        match name {
            "presence:join" => present.extend(one),
            "presence:leave" => present.retain(|user| one.as_ref() != Some(user)),
            _ => {
                let left: BTreeSet<String> = names(&told["left"]).collect();
                present.extend(names(&told["joined"]));
                present.retain(|user| !left.contains(user));
            }
        }
    }

    /// Sends an event; what comes back waits for its answer.
    pub(crate) async fn request(
        &self,
        event: &str,
        data: &Value,
    ) -> Result<impl Future<Output = Result<String, String>> + use<>, String> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let text = match self.socket_io {
            true => format!("42{id}{}", json!([event, data])),
            false => json!({ "id": id, "event": event, "data": data }).to_string(),
        };
        let socket = self.socket.borrow().clone().ok_or_else(|| format!("{} is not connected", self.user))?;
        let (sender, answer) = oneshot::channel();
        self.asked.borrow_mut().insert(id, sender);
        socket.send(&text).await.map_err(|error| format!("{} cannot send: {error}", self.user))?;
        let what = format!("{} asked {event}", self.user);
        Ok(async move {
            let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
            answer.map_err(|_| format!("{what}, no answer in {ANSWER_MAX:?}"))?.map_err(|_| format!("{what} and ended"))
        })
    }

    async fn ask(&self, event: &str, data: &Value) -> Result<String, String> {
        self.request(event, data).await?.await
    }

    /// Goes.
    pub(crate) async fn leave(&self, leaving: Leaving) {
        self.node.set(None);
        let (socket, listening) = (self.socket.take(), self.listening.take());
        match (leaving, socket, listening) {
            (Leaving::Goodbye, Some(socket), _) => {
                if let Some(stretch) = self.stretches.borrow_mut().last_mut() {
                    stretch.ended();
                }
                if self.socket_io {
                    drop(socket.send("41").await);
                }
                drop(socket.close().await);
            }
            // The socket is dropped with whoever listens.
            (Leaving::Break, _, Some(listening)) => listening.abort(),
            _ => {}
        }
    }
}

/// The texts of a list.
fn names(list: &Value) -> impl Iterator<Item = String> + '_ {
    list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned))
}
