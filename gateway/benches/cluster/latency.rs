//! An event's way from a client on one node to the members of a room on another, beside its way to members on the
//! same node: what is between them is Redis and nothing else.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::Notify;

use crate::node::{Node, tenant, token};
use crate::process::Cpu;
use crate::redis_server::RedisServer;
use crate::socket::Client;
use crate::times::Times;
use crate::{CONNECTING, SETTINGS, join};

/// Publications a second: quiet, and as loud as the figure says.
const PER_SECOND: [u32; 2] = [200, 2_000];
/// Rooms, and members of each.
const ROOMS: usize = 24;
const MEMBERS: usize = 10;
/// Whoever publishes: the inputs of one connection run one after the other.
const PUBLISHERS: usize = 8;
/// How long one measurement takes.
const MEASURED: Duration = Duration::from_secs(5);
/// Measurements of the same; the one with the least p99 counts.
const REPEATED: usize = 3;
/// How long the last deliveries may take.
const SETTLE_MAX: Duration = Duration::from_secs(20);

pub(crate) async fn measure() {
    let redis = RedisServer::start();
    let tenants = [tenant("bench", "bench", "")];
    let nodes = [(); 2].map(|()| Node::start(&tenants, SETTINGS, Some(&redis.url())));
    for per_second in PER_SECOND {
        println!("{per_second} publications a second to rooms of {MEMBERS}, through Redis");
        let here = best(&nodes, &nodes[0], per_second).await;
        println!("  members on the publisher's node: {here}");
        let there = best(&nodes, &nodes[1], per_second).await;
        println!("  members on the other node: {there}");
        let ratio = |percent| there.percentile_ms(percent) / here.percentile_ms(percent);
        println!("  ratio p50 {:.2}, p99 {:.2}", ratio(50), ratio(99));
    }
}

struct Crowd {
    started: Instant,
    received: Cell<usize>,
    latencies: RefCell<Vec<Duration>>,
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
            self.progress.notify_one();
        }
    }
}

async fn best(nodes: &[Node], members_on: &Node, per_second: u32) -> Times {
    let crowd = Rc::new(Crowd {
        started: Instant::now(),
        received: Cell::new(0),
        latencies: RefCell::default(),
        progress: Notify::new(),
    });
    let member = async |n: usize| {
        let mut client = Client::connect(members_on.address, "bench", &token("bench", &format!("user{n}"))).await;
        join(&mut client, &format!("near:{}", n % ROOMS)).await;
        client
    };
    let members: Vec<Client> =
        futures_util::stream::iter(0..ROOMS * MEMBERS).map(member).buffer_unordered(CONNECTING).collect().await;
    let tasks: Vec<_> =
        members.into_iter().map(|client| tokio::task::spawn_local(crowd.clone().member(client))).collect();
    let mut publishers = Vec::new();
    for n in 0..PUBLISHERS {
        let mut client = Client::connect(nodes[0].address, "bench", &token("bench", &format!("publisher{n}"))).await;
        // Each has rooms of its own, so that without echoes it is told nothing.
        for room in (n..ROOMS).step_by(PUBLISHERS) {
            join(&mut client, &format!("near:{room}")).await;
        }
        publishers.push(client);
    }
    let mut runs = Vec::new();
    for _ in 0..=REPEATED {
        let before: Vec<Cpu> = nodes.iter().map(|node| Cpu::of(node.process())).collect();
        runs.push(run(&crowd, &mut publishers, per_second).await);
        let used = nodes.iter().zip(before).map(|(node, before)| Cpu::of(node.process()).since(before).total());
        let busy: Vec<_> = used.map(|used| format!("{:.2}", used.as_secs_f64() / MEASURED.as_secs_f64())).collect();
        println!("    cores busy: {}", busy.join(" and "));
    }
    tasks.iter().for_each(|task| task.abort());
    // The first warmed up.
    runs.remove(0);
    runs.sort_by(|a, b| a.percentile_ms(99).total_cmp(&b.percentile_ms(99)));
    runs.swap_remove(0)
}

async fn run(crowd: &Crowd, publishers: &mut [Client], per_second: u32) -> Times {
    crowd.latencies.borrow_mut().clear();
    let received = crowd.received.get();
    let begun = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut sent = 0;
    while begun.elapsed() < MEASURED {
        beat.tick().await;
        let (now_ns, room) = (crowd.started.elapsed().as_nanos(), sent % ROOMS);
        let data =
            format!("{{\"room\":\"near:{room}\",\"event\":\"tick\",\"data\":{{\"t\":{now_ns}}},\"echo\":false}}");
        publishers[room % PUBLISHERS].send(&format!("{{\"event\":\"publish\",\"data\":{data}}}")).await;
        sent += 1;
    }
    let all = received + sent * MEMBERS;
    let settled = async {
        while crowd.received.get() < all {
            crowd.progress.notified().await;
        }
    };
    tokio::time::timeout(SETTLE_MAX, settled).await.expect("every event reaches every member");
    assert_eq!(crowd.received.get(), all, "an event came twice");
    Times::new(crowd.latencies.take())
}
