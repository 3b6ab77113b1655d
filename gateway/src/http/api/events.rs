//! Events that a tenant's own back end raises: the same handlers run as for a client's.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Asked, Denied, Done, body, namespace};
use crate::decision::Input;
use crate::event::Event;

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

/// `{event, data | args, namespace?}` → what the handlers replied as `data`, and where it is in the log.
pub(super) async fn raise(mut asked: Asked) -> Done {
    let body = body::whole(&mut asked).await?;
    let once = asked.once(&body)?;
    let event = event(&body)?;
    // The tenant's own back end publishes wherever it wants to.
    let input = Input::Event { event: &event, may_publish: &|_| true };
    let tenant = &asked.tenant;
    let decided = tenant.decisions.run_once(&tenant.pipeline.load_full(), input, once.as_ref()).await?;
    let position = decided.position.map(|position| position.to_string());
    let reply = decided.reply.and_then(|reply| reply.first()).unwrap_or(Value::Null);
    Ok(json!({ "data": reply, "pos": position }))
}

fn event(bytes: &[u8]) -> Result<Event, Denied> {
    let raised: Raised<'_> = body::read(bytes, "{event, data | args, namespace?}")?;
    body::event_name(&raised.event)?;
    let namespace = namespace(raised.namespace.as_deref())?;
    let data = body::payload(raised.data, raised.args.as_deref())?;
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
        assert_eq!(&*event(b"{\"event\":\"e\",\"data\":{\n\"a\": 1}}").unwrap().data.args, "[{ \"a\": 1}]");
    }

    #[test]
    fn what_is_no_event_is_refused_with_the_reason() {
        for (body, reason) in [
            (&b"nonsense"[..], "expected"),
            (br#"{"event":"e","data":1,"args":[]}"#, "not both"),
            (br#"{"event":"connect"}"#, "reserved"),
            (br#"{"event":""}"#, "has a name"),
            (br#"{"event":"e","namespace":"x"}"#, "start with"),
            (br#"{"event":"e","evnt":1}"#, "unknown field"),
            (br#"{"event":"e","data":{"_placeholder":true,"num":0}}"#, "attachment"),
        ] {
            let error = format!("{:?}", event(body).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
