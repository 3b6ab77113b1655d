//! What a cluster says who holds which slots.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use ::redis::aio::MultiplexedConnection;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::backoff::{Backoff, jitter};
use super::dial::Dialer;
use super::router::Router;
use super::url::Address;

/// How often a cluster is asked although nobody doubts what it said.
const ASK_EVERY: Duration = Duration::from_secs(8);

/// What is added to that, at most, so that nodes do not ask together.
const ASK_JITTER: Duration = Duration::from_secs(4);

/// The least time between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one server may take to answer, dialling included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Keeps the table as the cluster says, without end.
pub(super) async fn follow(router: Arc<Router>, dialer: Dialer) {
    let mut backoff = Backoff::new();
    loop {
        match ask_any(&router, &dialer).await {
            Ok(stretches) => {
                router.install(&dialer, &stretches);
                backoff.reset();
                sleep(PAUSE + jitter(PAUSE)).await;
                tokio::select! {
                    () = sleep(ASK_EVERY + jitter(ASK_JITTER)) => {}
                    () = router.doubted() => {}
                }
            }
            Err(why) => {
                warn!(why, "the cluster does not say who holds its slots");
                sleep(PAUSE + backoff.next()).await;
            }
        }
    }
}

/// A stretch of slots, from and to included, and its master.
type Stretch = (u16, u16, Address);

/// Asks the masters that there is a connection to, then the servers that the URL names, until one is found
/// that sees the cluster whole: one that was cut off from the others names masters of the past.
async fn ask_any(router: &Router, dialer: &Dialer) -> Result<Vec<Stretch>, String> {
    let mut failed = "nobody can be asked".to_owned();
    for master in router.masters() {
        let Some(link) = master.commands.present() else { continue };
        let address = link.server.address.clone();
        match timeout(ANSWER_TIMEOUT, ask(&mut link.connection(), &address)).await {
            Ok(Ok(stretches)) => return Ok(stretches),
            Ok(Err(why)) => failed = format!("{address}: {why}"),
            Err(_) => failed = format!("{address}: no answer within {ANSWER_TIMEOUT:?}"),
        }
    }
    for address in &dialer.target.servers {
        let answer = async {
            let mut connection = dialer.ask(address).await.map_err(|error| error.to_string())?;
            ask(&mut connection, address).await
        };
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(stretches)) => return Ok(stretches),
            Ok(Err(why)) => failed = format!("{address}: {why}"),
            Err(_) => failed = format!("{address}: no answer within {ANSWER_TIMEOUT:?}"),
        }
    }
    Err(failed)
}

async fn ask(connection: &mut MultiplexedConnection, asked: &Address) -> Result<Vec<Stretch>, String> {
    let mut questions = ::redis::pipe();
    questions.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    let (state, slots): (String, Value) = questions.query_async(connection).await.map_err(|e| e.to_string())?;
    if !state.lines().any(|line| line.trim_end() == "cluster_state:ok") {
        return Err("it does not see the whole cluster".into());
    }
    stretches(slots, asked).ok_or_else(|| "CLUSTER SLOTS was answered in another form".into())
}

/// Reads `[[from, to, [host, port, …], replicas …] …]`. A server that does not know its own host gives none:
/// it is the one that was asked.
fn stretches(answer: Value, asked: &Address) -> Option<Vec<Stretch>> {
    let Value::Array(stretches) = answer else { return None };
    let mut read = Vec::with_capacity(stretches.len());
    for stretch in stretches {
        let Value::Array(parts) = stretch else { return None };
        let mut parts = parts.into_iter();
        let (Value::Int(from), Value::Int(to), Value::Array(master)) = (parts.next()?, parts.next()?, parts.next()?)
        else {
            return None;
        };
        let mut master = master.into_iter();
        let host = match master.next()? {
            Value::BulkString(host) => String::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            Value::Nil => String::new(),
            _ => return None,
        };
        let Value::Int(port) = master.next()? else { return None };
        let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
        let address = Address { host, port: u16::try_from(port).ok()? };
        read.push((u16::try_from(from).ok()?, u16::try_from(to).ok()?, address));
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn masters_are_read_and_replicas_are_not() {
        let node = |host, port| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        let answer = Value::Array(vec![
            Value::Array(vec![Value::Int(0), Value::Int(99), node(text("10.0.0.1"), 7_000), node(text("10.0.0.2"), 1)]),
            Value::Array(vec![Value::Int(100), Value::Int(16_383), node(Value::Nil, 7_001)]),
        ]);
        let asked = Address { host: "seed".into(), port: 9 };
        let expected = vec![
            (0, 99, Address { host: "10.0.0.1".into(), port: 7_000 }),
            (100, 16_383, Address { host: "seed".into(), port: 7_001 }),
        ];
        assert_eq!(stretches(answer, &asked), Some(expected));
    }

    #[test]
    fn another_form_is_no_answer() {
        let asked = Address { host: "seed".into(), port: 9 };
        for answer in [Value::Nil, Value::Array(vec![Value::Int(1)]), Value::Array(vec![Value::Array(vec![])])] {
            assert_eq!(stretches(answer, &asked), None);
        }
    }
}
