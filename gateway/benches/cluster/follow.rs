//! How long a node that serves thousands of tenants needs until it has what was committed to all of them, when Redis
//! has cut the connection on which it hears of it. The nodes are engines of this process.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use postern::commit::{Commit, Publication};
use postern::engine::redis::{Options, RedisEngine, connect};
use postern::engine::{Engine, Feed, Follower};
use postern::event::Payload;
use postern::room::Room;
use postern::tenant::TenantId;
use serde_json::json;
use tokio::sync::Notify;

use crate::redis_server::RedisServer;
use crate::times::Times;

/// Tenants that are followed.
const TENANTS: usize = 5_000;
/// Calls in flight.
const CONCURRENT: usize = 64;
/// Cuts.
const REPEATED: usize = 3;
/// After so long it counts as never.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) async fn measure() {
    let server = RedisServer::start();
    // One follows, the other commits: what is cut is of the first only.
    let engine = connect(&server.url(), Options::default()).await.expect("an engine");
    let other = connect(&server.url(), Options::default()).await.expect("an engine");
    let tenants: Vec<TenantId> =
        (0..TENANTS).map(|n| TenantId::parse(&format!("tenant-{n}")).expect("a name")).collect();
    let begun = Instant::now();
    let followers = futures_util::stream::iter(&tenants)
        .map(async |tenant| engine.follow(tenant).await.expect("a feed"))
        .buffer_unordered(CONCURRENT)
        .collect::<Vec<_>>()
        .await;
    println!("redis, to follow {TENANTS} tenants: {:.2} s", begun.elapsed().as_secs_f64());
    let heard = Heard::of(followers);
    let (without, _) = round(&heard, &other, &tenants, || ()).await;
    println!("  a commit to each, {CONCURRENT} at once, is at the other node after {:.2} s", without.as_secs_f64());
    for _ in 0..REPEATED {
        let (all, times) = round(&heard, &other, &tenants, || cut(&server)).await;
        println!(
            "  the same from the moment that Redis cuts the pub/sub connections: {:.2} s, each {times}; ratio {:.2}",
            all.as_secs_f64(),
            all.as_secs_f64() / without.as_secs_f64()
        );
    }
}

/// What the feeds have carried.
struct Heard {
    entries: Cell<usize>,
    resets: Cell<usize>,
    last: Cell<Instant>,
    more: Notify,
    /// Since the beginning of a round, one for each entry.
    times: std::cell::RefCell<Vec<Duration>>,
    begun: Cell<Instant>,
}

impl Heard {
    fn of(followers: Vec<Follower>) -> Rc<Heard> {
        let heard = Rc::new(Heard {
            entries: Cell::new(0),
            resets: Cell::new(0),
            last: Cell::new(Instant::now()),
            more: Notify::new(),
            times: std::cell::RefCell::default(),
            begun: Cell::new(Instant::now()),
        });
        for mut follower in followers {
            let heard = heard.clone();
            tokio::task::spawn_local(async move {
                while let Some(feed) = follower.feed.recv().await {
                    match feed {
                        Feed::Entry(_) => heard.entry(),
                        Feed::Reset(_) => heard.resets.set(heard.resets.get() + 1),
                        _ => {}
                    }
                }
            });
        }
        heard
    }

    fn entry(&self) {
        self.entries.set(self.entries.get() + 1);
        self.last.set(Instant::now());
        self.times.borrow_mut().push(self.begun.get().elapsed());
        self.more.notify_one();
    }
}

/// One commit to each tenant, with something that happens just before.
async fn round(
    heard: &Heard,
    other: &Arc<RedisEngine>,
    tenants: &[TenantId],
    before: impl FnOnce(),
) -> (Duration, Times) {
    let entries = heard.entries.get();
    heard.times.borrow_mut().clear();
    before();
    let begun = Instant::now();
    heard.begun.set(begun);
    futures_util::stream::iter(tenants)
        .map(async |tenant| drop(other.commit(tenant, commit()).await.expect("a commit")))
        .buffer_unordered(CONCURRENT)
        .collect::<Vec<()>>()
        .await;
    let all = async {
        while heard.entries.get() < entries + tenants.len() {
            heard.more.notified().await;
        }
    };
    if tokio::time::timeout(NEVER, all).await.is_err() {
        panic!("{} of {} are not there after {NEVER:?}", entries + tenants.len() - heard.entries.get(), tenants.len());
    }
    assert_eq!(heard.entries.get(), entries + tenants.len(), "an entry came twice");
    assert_eq!(heard.resets.get(), 0, "entries are said to be lost");
    (heard.last.get() - begun, Times::new(heard.times.take()))
}

/// Redis ends all connections that subscribe.
fn cut(server: &RedisServer) {
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_connection().expect("Redis answers");
    let cut: usize = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).query(&mut connection).expect("an answer");
    assert!(cut > 0, "nobody subscribed");
}

fn commit() -> Arc<Commit> {
    Arc::new(Commit::publish(Publication {
        room: Room::parse("flat:a1").expect("a room"),
        event: "visitor_request".into(),
        data: Payload::one(&json!({ "flat_id": "a1", "visitor_name": "Asha" })),
        except: None,
    }))
}
