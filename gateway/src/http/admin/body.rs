//! What requests carry, read within bounds of size and time.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
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

impl Bounds {
    fn of_component(bytes_max: usize) -> Bounds {
        let setting = "plugins.component_bytes_max";
        Bounds { bytes_max, setting, time: UPLOAD_TIMEOUT, idle: UPLOAD_IDLE_TIMEOUT }
    }
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
    whole(body, &Bounds::of_component(bytes_max)).await
}

async fn whole<B>(mut body: B, bounds: &Bounds) -> Result<Bytes, Denied>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// A body of `pieces` bytes, one after each pause.
    fn trickling(pieces: usize, pause: Duration) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(Box::pin(futures_util::stream::unfold(pieces, move |left| async move {
            let left = left.checked_sub(1)?;
            tokio::time::sleep(pause).await;
            Some((Ok(Frame::data(Bytes::from_static(b"x"))), left))
        })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_trickles_is_taken_for_as_long_as_it_may_take_and_no_longer() {
        let bounds = Bounds::of_component(1 << 20);
        let pause = UPLOAD_IDLE_TIMEOUT - Duration::from_secs(1);
        assert_eq!(whole(trickling(10, pause), &bounds).await.unwrap().len(), 10);
        for (body, says, after) in [
            (trickling(1_000, pause), "the body may take 180 s", UPLOAD_TIMEOUT),
            (trickling(2, UPLOAD_IDLE_TIMEOUT * 2), "the body may stand still for 15 s", UPLOAD_IDLE_TIMEOUT),
        ] {
            let began = Instant::now();
            let denied = whole(body, &bounds).await.unwrap_err();
            assert_eq!(denied.status, StatusCode::REQUEST_TIMEOUT);
            assert!(format!("{denied:?}").contains(says), "{denied:?}");
            assert_eq!(began.elapsed().as_secs(), after.as_secs());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_component_that_does_not_say_how_large_it_is_is_measured_while_it_comes() {
        let denied = whole(trickling(100, Duration::ZERO), &Bounds::of_component(10)).await.unwrap_err();
        assert_eq!(denied.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(format!("{denied:?}").contains("plugins.component_bytes_max"), "{denied:?}");
    }
}
