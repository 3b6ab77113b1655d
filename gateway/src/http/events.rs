//! Events that a tenant's own back end raises: the same handlers run.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Answer, json_answer, refusal, same};
use crate::connection::protocol::{check_event_name, parse_namespace};
use crate::connection::upgrade;
use crate::decision::{Input, Undecided};
use crate::event::{Event, Payload};
use crate::gateway::LiveTenant;
use crate::room::ROOT_NAMESPACE;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raised<'a> {
    event: String,
    namespace: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    args: Option<Vec<&'a RawValue>>,
}

/// `POST /t/{tenant}/api/v1/events` with `{event, data | args, namespace?}`; answers what the
/// handlers replied as `{data}`.
pub(super) async fn raise(tenant: &Arc<LiveTenant>, request: Request<Incoming>) -> Answer {
    if let Some(answer) = refused(tenant, &request) {
        return answer;
    }
    if tenant.settings().disabled {
        return refusal(StatusCode::FORBIDDEN, "tenant_disabled", "the tenant is disabled");
    }
    let bytes_max = tenant.settings().limits.message_bytes;
    let body = Limited::new(request.into_body(), bytes_max).collect();
    let Ok(body) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        let text = format!("the body did not come within {} ms", BODY_TIMEOUT.as_millis());
        return refusal(StatusCode::REQUEST_TIMEOUT, "timeout", &text);
    };
    let Ok(body) = body else {
        let text = format!("the body has at most {bytes_max} bytes (setting limits.message_bytes)");
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", &text);
    };
    let event = match event(&body.to_bytes()) {
        Ok(event) => event,
        Err(message) => return refusal(StatusCode::BAD_REQUEST, "invalid", &message),
    };
    // The tenant's own back end publishes wherever it wants to.
    let input = Input::Event { event: &event, may_publish: &|_| true };
    metrics::counter!("http_events_total", "tenant" => crate::telemetry::labels::of_tenant(tenant.id.as_str()))
        .increment(1);
    match tenant.decisions.run(&tenant.pipeline.load_full(), input).await {
        Ok(decided) => {
            let position = decided.position.map(|position| position.to_string());
            let reply = decided.reply.and_then(|reply| reply.first()).unwrap_or(Value::Null);
            json_answer(StatusCode::OK, &json!({ "data": reply, "pos": position }))
        }
        Err(undecided) => {
            let status = match &undecided {
                Undecided::Refused(refused) if refused.code == "forbidden" => StatusCode::FORBIDDEN,
                Undecided::Refused(refused) if refused.code == "not_found" => StatusCode::NOT_FOUND,
                Undecided::Refused(_) | Undecided::Unauthorized(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Undecided::Failed(_) | Undecided::Later(_) | Undecided::Engine(_) | Undecided::TimerGone => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            json_answer(status, &json!({ "error": undecided.into_refusal() }))
        }
    }
}

/// The answer to a request that may not raise events here.
fn refused(tenant: &LiveTenant, request: &Request<Incoming>) -> Option<Answer> {
    let Some(expected) = &tenant.settings().backend_token else {
        let text = "this tenant takes no events over HTTP (setting backend_token)";
        return Some(refusal(StatusCode::FORBIDDEN, "forbidden", text));
    };
    let given = upgrade::token(request.headers(), None).unwrap_or_default();
    if same(given.as_bytes(), &expected.0) {
        return None;
    }
    let text = "send the tenant's backend_token as Authorization: Bearer";
    Some(refusal(StatusCode::UNAUTHORIZED, "unauthorized", text))
}

fn event(body: &[u8]) -> Result<Event, String> {
    let raised: Raised<'_> =
        serde_json::from_slice(body).map_err(|error| format!("{{event, data | args, namespace?}}: {error}"))?;
    check_event_name(&raised.event).map_err(|error| error.to_string())?;
    let namespace = raised.namespace.as_deref().unwrap_or(ROOT_NAMESPACE);
    let namespace = parse_namespace(namespace).map_err(|error| error.to_string())?;
    let args = match (raised.data, raised.args) {
        (Some(_), Some(_)) => return Err("give data (one argument) or args (a list), not both".into()),
        (Some(one), None) => format!("[{}]", one.get()),
        (None, list) => {
            let list: Vec<&str> = list.unwrap_or_default().into_iter().map(RawValue::get).collect();
            format!("[{}]", list.join(","))
        }
    };
    let data = Payload { args: args.into(), attachments: Vec::new() };
    Ok(Event { name: raised.event.into(), namespace: namespace.into(), data, sender: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_with_one_argument_or_several() {
        let one = event(br#"{"event":"visitor_create","data":{"a":1}}"#).unwrap();
        assert_eq!((&*one.name, &*one.data.args, &*one.namespace), ("visitor_create", r#"[{"a":1}]"#, "/"));
        assert_eq!(&*event(br#"{"event":"e","args":[1,"x"],"namespace":"/n"}"#).unwrap().data.args, r#"[1,"x"]"#);
        assert_eq!(&*event(br#"{"event":"e"}"#).unwrap().data.args, "[]");
    }

    #[test]
    fn what_is_no_event_is_refused_with_the_reason() {
        for (body, reason) in [
            (&b"nonsense"[..], "expected"),
            (br#"{"event":"e","data":1,"args":[]}"#, "not both"),
            (br#"{"event":"connect"}"#, "reserved"),
            (br#"{"event":"e","namespace":"x"}"#, "start with"),
            (br#"{"event":"e","evnt":1}"#, "unknown field"),
        ] {
            let error = event(body).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
