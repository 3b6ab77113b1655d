//! What requests carry, read within bounds of size and time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::denied::Denied;

/// The largest JSON document that is taken, in bytes.
pub(super) const JSON_BYTES_MAX: usize = 256 << 10;

/// How long a JSON document may take to arrive.
const JSON_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a component may take to arrive.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(180);

/// How long an upload may stand still.
const UPLOAD_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How much one body may have, and how long it may take.
struct Bounds {
    bytes_max: usize,
    /// What the bound is called where it is set.
    setting: &'static str,
    time: Duration,
    /// Between two pieces.
    idle: Duration,
}

/// A JSON document of a known form; all that is not known is refused.
pub(super) async fn json<T: DeserializeOwned>(body: Incoming) -> Result<T, Denied> {
    let bounds =
        Bounds { bytes_max: JSON_BYTES_MAX, setting: "JSON_BYTES_MAX", time: JSON_TIMEOUT, idle: JSON_TIMEOUT };
    let bytes = whole(body, &bounds).await?;
    // An absent body is as good as an empty object: `POST …/rollback` needs none.
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| Denied::invalid(format!("the body: {error}")))
}

/// A component of at most `bytes_max`.
pub(super) async fn upload(body: Incoming, bytes_max: usize) -> Result<Bytes, Denied> {
    let setting = "plugins.component_bytes_max";
    whole(body, &Bounds { bytes_max, setting, time: UPLOAD_TIMEOUT, idle: UPLOAD_IDLE_TIMEOUT }).await
}

async fn whole(mut body: Incoming, bounds: &Bounds) -> Result<Bytes, Denied> {
    let Bounds { bytes_max, setting, time, idle } = *bounds;
    let too_large = |bytes: u64| {
        let text = format!("the body has {bytes} bytes or more; at most {bytes_max} are taken ({setting})");
        Denied::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
    };
    // What says that it is too large is not read at all.
    let announced = body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(too_large(announced));
    }
    let deadline = Instant::now() + time;
    let mut bytes = BytesMut::new();
    loop {
        let until = deadline.min(Instant::now() + idle);
        let Ok(frame) = tokio::time::timeout_at(until, body.frame()).await else {
            let (what, limit) = if until == deadline { ("take", time) } else { ("stand still for", idle) };
            let text = format!("the body may {what} {} s", limit.as_secs());
            return Err(Denied::new(StatusCode::REQUEST_TIMEOUT, "too_slow", text));
        };
        let piece = match frame {
            None => return Ok(bytes.freeze()),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(Denied::invalid(format!("the body broke off: {error}"))),
        };
        if bytes.len() + piece.len() > bytes_max {
            return Err(too_large((bytes.len() + piece.len()) as u64));
        }
        bytes.extend_from_slice(&piece);
    }
}
