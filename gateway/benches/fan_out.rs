//! What a delivery costs the gateway and how long it takes: one publication to the members of a room
//! over real sockets, beside a bare server that does nothing but write the same bytes to the
//! same number of them. And what an idle connection takes of the gateway's memory.
//! `cargo bench --bench fan_out`; with `-- 1x1000` or `-- idle` only that.

#[path = "fan_out/floor.rs"]
mod floor;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;
#[path = "support/socket.rs"]
mod socket;
#[path = "support/times.rs"]
mod times;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use floor::Floor;
use futures_util::StreamExt;
use node::{Node, tenant, token};
use process::Cpu;
use socket::Client;
use times::Times;
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// Rooms, and members of each.
const SHAPES: [(usize, usize); 3] = [(1, 1_000), (100, 100), (10, 10)];
/// Deliveries a second when the rate is steady.
const STEADY_PER_SECOND: usize = 20_000;
/// Publications that may be under way when it is not.
const UNDER_WAY: u64 = 8;
/// How long one measurement takes.
const MEASURED: Duration = Duration::from_secs(3);
/// Measurements of the same; the one with the least computing time counts.
const REPEATED: usize = 3;
/// Connections whose memory is measured.
const IDLE: usize = 5_000;
/// Clients that connect at the same time.
const CONNECTING: usize = 16;
/// What makes a frame as long as those of the floors in the design: 187 bytes.
const PADDING: usize = 84;
/// Bytes of a page of memory.
const PAGE_BYTES: u64 = 4_096;
/// No heartbeats while this runs, and room for all.
const SETTINGS: &str = "ping_interval_ms = 600000\nmax_connections = 30000\n";

fn main() {
    if std::env::args().any(|argument| argument == floor::ARGUMENT) {
        return floor::serve();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    for (rooms, members) in SHAPES.into_iter().filter(|(rooms, members)| wanted(&format!("{rooms}x{members}"))) {
        println!("{rooms} rooms of {members}");
        let floor = Floor::start();
        let bare = LocalSet::new().block_on(&runtime, fan_out(Target::Floor(&floor), rooms, members));
        drop(floor);
        let node = Node::start(&[tenant("bench", "bench", "")], SETTINGS, None);
        let ours = LocalSet::new().block_on(&runtime, fan_out(Target::Node(&node), rooms, members));
        for ((pace, bare), ours) in ["steady", "as fast as it goes"].into_iter().zip(bare).zip(ours) {
            println!("  {pace}: {ours}\n    bare writes: {bare}\n    ratio {:.2}", ours.cpu_us / bare.cpu_us);
        }
    }
    if wanted("idle") {
        runtime.block_on(idle());
    }
}

/// Who is measured.
#[derive(Clone, Copy)]
enum Target<'a> {
    Node(&'a Node),
    Floor(&'a Floor),
}

/// What came of one pace.
struct Figures {
    /// Computing time of the server per delivery, in microseconds.
    cpu_us: f64,
    /// As much of it in user space.
    user_us: f64,
    per_second: f64,
    latency: Times,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { cpu_us, user_us, per_second, latency } = self;
        write!(f, "{cpu_us:.2} µs CPU a delivery ({user_us:.2} user), {per_second:.0} a second, {latency}")
    }
}

/// The members of all rooms, as one.
struct Crowd {
    started: Instant,
    /// Members of a room.
    members: u64,
    received: Cell<u64>,
    latencies: RefCell<Vec<Duration>>,
    /// Somebody received what completes a publication, or nearly.
    progress: Notify,
}

impl Crowd {
    async fn member(self: Rc<Self>, mut client: Client) {
        while let Some(text) = client.reader.next(&client.writer).await {
            let Some(at) = text.windows(4).position(|window| window == b"\"t\":") else { continue };
            let digits = text[at + 4..].iter().take_while(|byte| byte.is_ascii_digit());
            let sent_ns = digits.fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
            self.latencies.borrow_mut().push(self.started.elapsed().saturating_sub(Duration::from_nanos(sent_ns)));
            self.received.set(self.received.get() + 1);
            if self.received.get().is_multiple_of(self.members) {
                self.progress.notify_one();
            }
        }
    }

    /// Waits until at most `left` publications of `sent` are under way.
    async fn settled(&self, sent: u64, left: u64) {
        while sent * self.members > self.received.get() + left * self.members {
            self.progress.notified().await;
        }
    }
}

async fn fan_out(target: Target<'_>, rooms: usize, members: usize) -> [Figures; 2] {
    let crowd = Rc::new(Crowd {
        started: Instant::now(),
        members: members as u64,
        received: Cell::new(0),
        latencies: RefCell::default(),
        progress: Notify::new(),
    });
    let coming = (0..rooms * members).map(|n| target.member(n, n % rooms));
    futures_util::stream::iter(coming)
        .buffer_unordered(CONNECTING)
        .for_each(async |client| drop(tokio::task::spawn_local(crowd.clone().member(client))))
        .await;
    let mut publisher = Publisher { client: target.publisher(rooms).await, target, crowd, rooms, sent: 0 };
    let steady = Some(Duration::from_secs_f64(members as f64 / STEADY_PER_SECOND as f64));
    publisher.publish(None, MEASURED / 3).await;
    let (mut even, mut fast) = (Vec::new(), Vec::new());
    for _ in 0..REPEATED {
        even.push(publisher.publish(steady, MEASURED).await);
        fast.push(publisher.publish(None, MEASURED).await);
    }
    [even, fast].map(|mut runs| {
        runs.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
        runs.swap_remove(0)
    })
}

impl Target<'_> {
    fn process(self) -> u32 {
        match self {
            Target::Node(node) => node.process(),
            Target::Floor(floor) => floor.process(),
        }
    }

    async fn member(self, n: usize, room: usize) -> Client {
        match self {
            Target::Node(node) => {
                let mut client = Client::connect(node.address, "bench", &token("bench", &format!("user{n}"))).await;
                join(&mut client, room).await;
                client
            }
            Target::Floor(floor) => floor.member(room).await,
        }
    }

    async fn publisher(self, rooms: usize) -> Client {
        match self {
            Target::Node(node) => {
                let mut client = Client::connect(node.address, "bench", &token("bench", "publisher")).await;
                for room in 0..rooms {
                    join(&mut client, room).await;
                }
                client
            }
            Target::Floor(floor) => floor.publisher().await,
        }
    }
}

async fn join(client: &mut Client, room: usize) {
    let answer = client.ask("join_room", &format!("{{\"room\":\"fan:{room}\"}}")).await;
    assert!(answer.contains("room_name"), "{answer}");
}

/// Whoever publishes, to one room after the other.
struct Publisher<'a> {
    client: Client,
    target: Target<'a>,
    crowd: Rc<Crowd>,
    rooms: usize,
    sent: u64,
}

impl Publisher<'_> {
    /// Publishes every so often, or as fast as [`UNDER_WAY`] lets it, and waits for all deliveries.
    async fn publish(&mut self, every: Option<Duration>, during: Duration) -> Figures {
        self.crowd.latencies.borrow_mut().clear();
        let (received, before) = (self.crowd.received.get(), Cpu::of(self.target.process()));
        let begun = Instant::now();
        let mut beat = tokio::time::interval(every.unwrap_or(during));
        while begun.elapsed() < during {
            match every {
                Some(_) => drop(beat.tick().await),
                None => self.crowd.settled(self.sent, UNDER_WAY - 1).await,
            }
            self.send().await;
        }
        self.crowd.settled(self.sent, 0).await;
        let (elapsed, cpu) = (begun.elapsed(), Cpu::of(self.target.process()).since(before));
        let deliveries = (self.crowd.received.get() - received) as f64;
        Figures {
            cpu_us: cpu.total().as_secs_f64() * 1e6 / deliveries,
            user_us: cpu.user.as_secs_f64() * 1e6 / deliveries,
            per_second: deliveries / elapsed.as_secs_f64(),
            latency: Times::new(self.crowd.latencies.take()),
        }
    }

    async fn send(&mut self) {
        let room = self.sent as usize % self.rooms;
        let (now_ns, padding) = (self.crowd.started.elapsed().as_nanos(), "x".repeat(PADDING));
        let data = format!("{{\"t\":{now_ns},\"pad\":\"{padding}\"}}");
        match self.target {
            Target::Node(_) => {
                let publish = format!("{{\"room\":\"fan:{room}\",\"event\":\"tick\",\"data\":{data},\"echo\":false}}");
                self.client.send(&format!("{{\"event\":\"publish\",\"data\":{publish}}}")).await;
            }
            Target::Floor(_) => {
                let pos = format!("1790000000000-{}", 10_000 + self.sent % 10_000);
                let text = format!("{{\"event\":\"tick\",\"room\":\"fan:{room}\",\"data\":{data},\"pos\":\"{pos}\"}}");
                floor::publish(&mut self.client, room, &text).await;
            }
        }
        self.sent += 1;
    }
}

/// What the process grows by when so many clients connect and say nothing.
async fn idle() {
    let node = Node::start(&[tenant("bench", "bench", "")], SETTINGS, None);
    let connect = |n: usize| {
        let address = node.address;
        async move { Client::connect(address, "bench", &token("bench", &format!("user{n}"))).await }
    };
    // What the first connections bring into being is not of every connection.
    let mut clients: Vec<Client> =
        futures_util::stream::iter((0..100).map(connect)).buffer_unordered(CONNECTING).collect().await;
    let before = resident_bytes(node.process());
    let coming = futures_util::stream::iter((100..100 + IDLE).map(connect)).buffer_unordered(CONNECTING);
    clients.extend(coming.collect::<Vec<_>>().await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = resident_bytes(node.process()).saturating_sub(before) as f64 / IDLE as f64;
    println!("{IDLE} idle connections: {grown:.0} bytes of the gateway's memory each");
    drop(clients);
}

/// Resident memory of a process, in bytes.
fn resident_bytes(process: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("the process runs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * PAGE_BYTES
}
