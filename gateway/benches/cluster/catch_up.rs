//! Thousands of clients whose node is killed while others go on publishing: they come back to another node, and every
//! event must reach every client, once, in order. The clients are bare sockets in this process.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::node::{Node, tenant, token};
use crate::process::Cpu;
use crate::redis_server::RedisServer;
use crate::socket::Client;
use crate::times::Times;
use crate::{CONNECTING, SETTINGS, join};

/// Clients, if this process may open as many files.
const CLIENTS_MAX: usize = 10_000;
/// Open files beside those of the clients.
const FILES_SPARE: usize = 500;
/// Tenants that share them.
const TENANTS: usize = 20;
/// Rooms of a tenant; each client is in one.
const ROOMS: usize = 10;
/// Publications a second, over all tenants.
const PER_SECOND: u32 = 400;
/// How long everything is quiet but for those, before the cut.
const BEFORE: Duration = Duration::from_secs(3);
/// The clients come back after a time of their own, up to this: what a client's back-off comes to.
const SPREAD: Duration = Duration::from_secs(10);
/// How long there is publishing after the last has begun to come back.
const AFTER: Duration = Duration::from_secs(5);
/// What a client waits at least before it tries again; doubled each time, so often at most.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_DOUBLINGS_MAX: u32 = 5;
/// How long everything may take from the cut on.
const NEVER: Duration = Duration::from_secs(120);

/// With so many clients, or [`CLIENTS_MAX`].
pub(crate) async fn measure(clients: Option<usize>) {
    let clients_max = clients.unwrap_or(CLIENTS_MAX);
    let clients = clients_max.min(open_files().saturating_sub(FILES_SPARE)) / TENANTS * TENANTS;
    if clients < clients_max / TENANTS * TENANTS {
        println!("{clients} clients only: a process may open {} files here (ulimit -Hn)", open_files());
    }
    let redis = RedisServer::start();
    let tenants: Vec<_> = (0..TENANTS).map(|n| tenant(&name(n), "bench", "")).collect();
    let [goes, stays] = [(); 2].map(|()| Node::start(&tenants, SETTINGS, Some(&redis.url())));
    let crowd = Rc::new(Crowd::new(clients, goes.address, stays.address));
    let (cut, was_cut) = watch::channel(None);
    let begun = Instant::now();
    let lives: Vec<_> = futures_util::stream::iter(0..clients)
        .map(|n| crowd.clone().first_life(n, was_cut.clone()))
        .buffer_unordered(CONNECTING)
        .map(tokio::task::spawn_local)
        .collect()
        .await;
    println!(
        "{clients} clients of {TENANTS} tenants, {} to a room, in {:.1} s; {PER_SECOND} publications a second",
        clients / TENANTS / ROOMS,
        begun.elapsed().as_secs_f64()
    );
    let mut publishers = publishers(stays.address).await;
    publishers.run(BEFORE, false).await;
    let before = (Cpu::of(stays.process()), redis.used());
    drop(goes);
    let killed = Instant::now();
    cut.send_replace(Some(killed));
    publishers.run(SPREAD, false).await;
    publishers.run(AFTER, true).await;
    let done = async {
        for life in lives {
            life.await.expect("a client's life");
        }
    };
    let complete = tokio::time::timeout(NEVER, done).await.is_ok();
    crowd.report(killed, complete, publishers.sent);
    ended_by(stays.address).await;
    let used = Cpu::of(stays.process()).since(before.0).total().as_secs_f64();
    let redis_used = (redis.used().cpu_us - before.1.cpu_us) / 1e6;
    println!("  computing from the cut to the end: {used:.1} s of the gateway, {redis_used:.1} s of Redis");
}

/// Says which connections the node has ended, and why, as its metrics have it.
async fn ended_by(node: SocketAddr) {
    let mut stream = TcpStream::connect(node).await.expect("the node accepts");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {node}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    for line in answer.lines().filter(|line| line.starts_with("ws_disconnections_total")) {
        println!("  {line}");
    }
}

/// How many files this process may have open: as many as it may ask for.
fn open_files() -> usize {
    let own = std::process::id().to_string();
    // Of util-linux, as there is no call for it in the standard library. Where it is missing, what is set holds.
    let _ =
        std::process::Command::new("sh").args(["-c", "prlimit --pid \"$0\" --nofile=\"$(ulimit -Hn)\"", &own]).status();
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux says");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("it is listed");
    files.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX)
}

fn name(tenant: usize) -> String {
    format!("tenant-{tenant}")
}

/// All clients, and what became of them.
struct Crowd {
    clients: usize,
    goes: SocketAddr,
    stays: SocketAddr,
    /// From accept to the last event that was missed.
    caught_up: RefCell<Vec<Duration>>,
    /// The same from the first attempt, refusals and waiting included.
    back_after: RefCell<Vec<Duration>>,
    last_caught_up: Cell<Option<Instant>>,
    missed: Cell<u64>,
    received: Cell<u64>,
    lost: Cell<u64>,
    twice: Cell<u64>,
    not_recovered: Cell<usize>,
    /// Attempts to come back that the node refused or did not answer.
    refused: Cell<usize>,
    /// Connections that the node that stays has ended.
    ended_again: Cell<usize>,
    /// Clients that have received the last event.
    done: Cell<usize>,
}

/// One client: who it is, and how far it has come.
struct Life {
    n: usize,
    tenant: String,
    token: String,
    session: String,
    pos: String,
    /// The number of the next event in its room.
    next: u64,
    /// It has received the last one.
    finished: bool,
}

impl Crowd {
    fn new(clients: usize, goes: SocketAddr, stays: SocketAddr) -> Crowd {
        Crowd {
            clients,
            goes,
            stays,
            caught_up: RefCell::default(),
            back_after: RefCell::default(),
            last_caught_up: Cell::default(),
            missed: Cell::default(),
            received: Cell::default(),
            lost: Cell::default(),
            twice: Cell::default(),
            not_recovered: Cell::default(),
            refused: Cell::default(),
            ended_again: Cell::default(),
            done: Cell::default(),
        }
    }

    /// Connects and joins; what comes back is the rest of the client's life.
    async fn first_life(self: Rc<Self>, n: usize, cut: watch::Receiver<Option<Instant>>) -> impl Future<Output = ()> {
        let tenant = name(n % TENANTS);
        let token = token(&tenant, &format!("user{n}"));
        let stream = TcpStream::connect(self.goes).await.expect("the node accepts");
        let (mut client, welcome) = Client::greeted(stream, &tenant, "", &token).await.expect("the node answers");
        let welcome: Value = serde_json::from_str(&welcome).expect("JSON");
        let text = |key: &str| welcome["data"][key].as_str().unwrap_or_else(|| panic!("{welcome}")).to_owned();
        let (session, pos) = (text("session"), text("pos"));
        join(&mut client, &room(n / TENANTS % ROOMS)).await;
        let life = Life { n, tenant, token, session, pos, next: 0, finished: false };
        async move { self.rest(life, client, cut).await }
    }

    async fn rest(&self, mut life: Life, mut client: Client, mut cut: watch::Receiver<Option<Instant>>) {
        while let Some(text) = client.next().await {
            self.heard(&mut life, &text);
        }
        drop(client);
        let cut = cut.wait_for(Option::is_some).await.expect("it is cut").expect("there is a time");
        // Evenly spread, and not in the order in which they came.
        let share = life.n.wrapping_mul(7_919) % self.clients;
        tokio::time::sleep_until((cut + SPREAD * share as u32 / self.clients as u32).into()).await;
        let begun = Instant::now();
        client = self.back(&mut life).await;
        self.back_after.borrow_mut().push(begun.elapsed());
        while !life.finished {
            match client.next().await {
                Some(text) => drop(self.heard(&mut life, &text)),
                // The node that stays has ended it, too: it comes back there again.
                None => {
                    self.ended_again.set(self.ended_again.get() + 1);
                    client = self.back(&mut life).await;
                }
            }
        }
        self.done.set(self.done.get() + 1);
    }

    /// Comes back, however often it has to try.
    async fn back(&self, life: &mut Life) -> Client {
        let mut tried = 0;
        loop {
            if let Some(client) = self.come_back(life).await {
                return client;
            }
            self.refused.set(self.refused.get() + 1);
            tried = (tried + 1).min(BACK_OFF_DOUBLINGS_MAX);
            let back_off = BACK_OFF_MIN * 2_u32.pow(tried);
            // Jitter: another part of it for each client and each time.
            let share = (life.n.wrapping_mul(7_919) + self.refused.get() * 104_729) % 1_000;
            tokio::time::sleep(back_off / 2 + back_off * share as u32 / 2_000).await;
        }
    }

    /// `None`: not now.
    async fn come_back(&self, life: &mut Life) -> Option<Client> {
        let stream = TcpStream::connect(self.stays).await.ok()?;
        let accepted = Instant::now();
        let query = format!("session={}&pos={}", life.session, life.pos);
        let (mut client, welcome) = match Client::greeted(stream, &life.tenant, &query, &life.token).await {
            Ok(greeted) => greeted,
            Err(error) => {
                self.first(&error.to_string().into());
                return None;
            }
        };
        let welcome: Value = serde_json::from_str(&welcome).expect("JSON");
        if welcome["event"] != "connected" {
            self.first(&welcome);
            return None;
        }
        let mut answer = welcome["data"].clone();
        let session = answer["session"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        let mut missed = 0;
        if answer["recovered"].is_null() {
            // A build that is to be asked.
            let resume = format!("{{\"session\":\"{}\",\"pos\":\"{}\"}}", life.session, life.pos);
            client.try_send(&format!("{{\"id\":1,\"event\":\"resume\",\"data\":{resume}}}")).await.ok()?;
            // Until the answer says so, what comes is not what was missed.
            let mut held = Vec::new();
            answer = loop {
                let text = client.next().await?;
                if text.starts_with("{\"id\":1,") {
                    break serde_json::from_str(&text).expect("JSON");
                }
                held.push(text);
            };
            if answer["error"].is_object() {
                self.first(&answer);
                return None;
            }
            for text in held {
                missed += u64::from(self.heard(life, &text));
            }
            answer = answer["data"].take();
        }
        life.session = session;
        if answer["recovered"] != true {
            self.not_recovered.set(self.not_recovered.get() + 1);
            self.first(&answer);
        }
        while missed < answer["missed"].as_u64().unwrap_or(0) {
            let text = client.next().await?;
            missed += u64::from(self.heard(life, &text));
        }
        self.missed.set(self.missed.get() + missed);
        self.caught_up.borrow_mut().push(accepted.elapsed());
        self.last_caught_up.set(Some(Instant::now()));
        Some(client)
    }

    /// Says what the first client that did not come back was told.
    fn first(&self, told: &Value) {
        if self.not_recovered.get() <= 1 && self.refused.get() == 0 {
            println!("  the first that is not back: {told}");
        }
    }

    /// Takes a message; is it an event of the room?
    fn heard(&self, life: &mut Life, text: &str) -> bool {
        let message: Value = serde_json::from_str(text).expect("JSON");
        let Some(number) = message["data"]["n"].as_u64().filter(|_| message["event"] == "tick") else { return false };
        if let Some(pos) = message["pos"].as_str() {
            life.pos.replace_range(.., pos);
        }
        self.received.set(self.received.get() + 1);
        match number.checked_sub(life.next) {
            Some(skipped) => {
                self.lost.set(self.lost.get() + skipped);
                life.next = number + 1;
            }
            None => self.twice.set(self.twice.get() + 1),
        }
        life.finished |= message["data"]["last"] == true;
        true
    }

    fn report(&self, killed: Instant, complete: bool, published: u64) {
        let (times, after) = (Times::new(self.caught_up.take()), Times::new(self.back_after.take()));
        let last = self.last_caught_up.get().map_or(f64::NAN, |last| (last - killed).as_secs_f64());
        let expected = published * (self.clients / TENANTS / ROOMS) as u64;
        let received = self.received.get() - self.twice.get();
        println!(
            "  killed: back within {} s each; from accept to caught up {times}, from the first attempt {after}; \
             all of them {last:.1} s after the cut\n  \
             {:.3} % delivered ({received} of {expected}, {} of them by catching up), {} lost, {} twice, {} not recovered, \
             {} attempts refused, {} ended again; {} of {} clients have the last event{}",
            SPREAD.as_secs(),
            100.0 * received as f64 / expected as f64,
            self.missed.get(),
            self.lost.get(),
            self.twice.get(),
            self.not_recovered.get(),
            self.refused.get(),
            self.ended_again.get(),
            self.done.get(),
            self.clients,
            if complete { "" } else { " when there was no more waiting" }
        );
    }
}

fn room(n: usize) -> String {
    format!("room:{n}")
}

/// One client a tenant on the node that stays, which publishes to all rooms in turn.
struct Publishers {
    clients: Vec<Client>,
    /// Publications so far.
    sent: u64,
}

async fn publishers(stays: SocketAddr) -> Publishers {
    let mut clients = Vec::new();
    for n in 0..TENANTS {
        let mut client = Client::connect(stays, &name(n), &token(&name(n), "publisher")).await;
        for n in 0..ROOMS {
            join(&mut client, &room(n)).await;
        }
        clients.push(client);
    }
    Publishers { clients, sent: 0 }
}

impl Publishers {
    /// Publishes for so long, whole rounds of all rooms of all tenants; with `last`, says so in one more round.
    async fn run(&mut self, during: Duration, last: bool) {
        let begun = Instant::now();
        let mut beat = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        while begun.elapsed() < during {
            self.round(&mut beat, false).await;
        }
        if last {
            self.round(&mut beat, true).await;
        }
    }

    async fn round(&mut self, beat: &mut tokio::time::Interval, last: bool) {
        let number = self.sent / (TENANTS * ROOMS) as u64;
        for room_number in 0..ROOMS {
            for client in &mut self.clients {
                beat.tick().await;
                let data = format!("{{\"n\":{number},\"last\":{last}}}");
                let room = room(room_number);
                let publish = format!("{{\"room\":\"{room}\",\"event\":\"tick\",\"data\":{data},\"echo\":false}}");
                client.send(&format!("{{\"event\":\"publish\",\"data\":{publish}}}")).await;
                self.sent += 1;
            }
        }
    }
}
