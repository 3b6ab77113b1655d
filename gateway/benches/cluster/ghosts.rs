//! How long users are still seen in a room whose node was killed.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::node::{Node, tenant, token};
use crate::redis_server::RedisServer;
use crate::socket::Client;
use crate::{CONNECTING, SETTINGS, join};

/// Members on the node that is killed.
const MEMBERS: usize = 200;
/// How often they are looked for.
const EVERY: Duration = Duration::from_millis(50);
/// After so long they count as there for good.
const NEVER: Duration = Duration::from_secs(60);
/// Nodes that are killed, one after the other.
const REPEATED: usize = 3;

pub(crate) async fn measure() {
    let redis = RedisServer::start();
    let tenants = [tenant("bench", "bench", "")];
    let stays = Node::start(&tenants, SETTINGS, Some(&redis.url()));
    let mut observer = Client::connect(stays.address, "bench", &token("bench", "observer")).await;
    join(&mut observer, "lobby:1").await;
    for _ in 0..REPEATED {
        let gone = Node::start(&tenants, SETTINGS, Some(&redis.url()));
        let member = async |n: usize| {
            let mut client = Client::connect(gone.address, "bench", &token("bench", &format!("user{n}"))).await;
            join(&mut client, "lobby:1").await;
            client
        };
        let members: Vec<Client> =
            futures_util::stream::iter(0..MEMBERS).map(member).buffer_unordered(CONNECTING).collect().await;
        assert_eq!(present(&mut observer).await, MEMBERS + 1);
        drop(gone);
        let killed = Instant::now();
        let mut first = None;
        let all = loop {
            let left = present(&mut observer).await - 1;
            if left < MEMBERS {
                first.get_or_insert(killed.elapsed());
            }
            if left == 0 {
                break killed.elapsed();
            }
            assert!(killed.elapsed() < NEVER, "{left} of {MEMBERS} are still there {NEVER:?} after their node's end");
            tokio::time::sleep(EVERY).await;
        };
        let first = first.unwrap_or(all).as_secs_f64();
        println!("{MEMBERS} members of a killed node: gone after {first:.2} to {:.2} s", all.as_secs_f64());
        drop(members);
    }
}

/// Users in the room, as the other node sees it.
async fn present(observer: &mut Client) -> usize {
    let answer = observer.ask("presence", "{\"room\":\"lobby:1\"}").await;
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let count = answer["data"]["count"].as_u64().unwrap_or_else(|| panic!("no count: {answer}"));
    usize::try_from(count).expect("a number")
}
