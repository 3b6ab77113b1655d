//! What the Sentinels say who the master is.

use std::collections::HashMap;
use std::time::Duration;

use ::redis::{FromRedisValue as _, Value};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::dial::Dialer;
use super::url::Address;

/// How long one Sentinel may take to answer, dialling included.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

/// Asks all Sentinels and believes the one that knows the latest fail-over: one that was cut off names a
/// master of the past.
pub(super) async fn master(dialer: &Dialer, service: &str) -> Result<Address, String> {
    let answers = dialer.target.servers.iter().map(|sentinel| async move {
        match timeout(ANSWER_TIMEOUT, ask(dialer, sentinel, service)).await {
            Ok(answer) => answer.map_err(|why| format!("the Sentinel {sentinel}: {why}")),
            Err(_) => Err(format!("the Sentinel {sentinel}: no answer within {ANSWER_TIMEOUT:?}")),
        }
    });
    let mut latest: Option<(u64, Address)> = None;
    let mut failed = String::new();
    for answer in join_all(answers).await {
        match answer {
            Ok((epoch, address)) if latest.as_ref().is_none_or(|(latest, _)| *latest < epoch) => {
                latest = Some((epoch, address));
            }
            Ok(_) => {}
            Err(why) => failed = why,
        }
    }
    latest.map(|(_, address)| address).ok_or(failed)
}

/// The configuration's number and the master's address.
async fn ask(dialer: &Dialer, sentinel: &Address, service: &str) -> Result<(u64, Address), String> {
    let mut connection = dialer.ask_sentinel(sentinel).await.map_err(|e| e.to_string())?;
    let mut questions = ::redis::pipe();
    questions.cmd("SENTINEL").arg("MASTER").arg(service);
    questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let (state, address): (Value, Option<(String, u16)>) =
        questions.query_async(&mut connection).await.map_err(|e| e.to_string())?;
    let state = HashMap::<String, String>::from_redis_value(state).map_err(|e| e.to_string())?;
    let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let (host, port) = address.ok_or("it does not know the service")?;
    Ok((epoch, Address { host, port }))
}
