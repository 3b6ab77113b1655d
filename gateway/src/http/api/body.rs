//! What requests carry, read within bounds of size and time.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Asked;
use super::denied::Denied;
use crate::connection::protocol::check_event_name;
use crate::event::{Payload, arguments};

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole body, of at most the size of one of the tenant's messages.
pub(super) async fn whole(asked: &mut Asked) -> Result<Bytes, Denied> {
    let Some(body) = asked.body.take() else { return Ok(Bytes::new()) };
    let bytes_max = asked.tenant.settings().limits.message_bytes;
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await;
    let body = body.map_err(|_| {
        let text = format!("the body did not come within {} ms", BODY_TIMEOUT.as_millis());
        Denied::new(StatusCode::REQUEST_TIMEOUT, "timeout", text)
    })?;
    let body = body.map_err(|_| {
        let text = format!("the body has at most {bytes_max} bytes (setting limits.message_bytes)");
        Denied::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", text)
    })?;
    Ok(body.to_bytes())
}

/// A JSON document of a known form; all that is not known is refused.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8], form: &str) -> Result<T, Denied> {
    serde_json::from_slice(body).map_err(|error| Denied::invalid(format!("{form}: {error}")))
}

/// An event's name, if it can be one.
pub(super) fn event_name(name: &str) -> Result<(), Denied> {
    if name.is_empty() {
        return Err(Denied::invalid("an event has a name"));
    }
    check_event_name(name).map_err(|error| Denied::invalid(error.to_string()))
}

/// `data` (one argument) or `args` (a list).
pub(super) fn payload(data: Option<&RawValue>, args: Option<&[&RawValue]>) -> Result<Payload, Denied> {
    let args = match (data, args) {
        (Some(_), Some(_)) => return Err(Denied::invalid("give data (one argument) or args (a list), not both")),
        (Some(one), None) => format!("[{}]", one.get()),
        (None, list) => {
            let list: Vec<&str> = list.unwrap_or_default().iter().map(|value| value.get()).collect();
            format!("[{}]", list.join(","))
        }
    };
    // Line breaks between values are valid JSON, but separate messages on the wire.
    let args = if args.contains(['\n', '\r']) { args.replace(['\n', '\r'], " ") } else { args };
    arguments::check(&args, 0).map_err(|error| Denied::invalid(error.to_string()))?;
    Ok(Payload { args: args.into(), attachments: Vec::new() })
}
