//! Which request is which call, and what a key must be good for to make it.

use percent_encoding::percent_decode_str;

use crate::tenant::ApiRight;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Document,
    Raise,
    Publish,
    PublishBatch,
    Connection,
    SendToConnection,
    EndConnection,
    UserConnections,
    EndUserConnections,
    Room,
    History,
    Join,
    Leave,
    Revocations,
    Revoke,
    TakeBack,
}

/// One way of asking.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    /// Below `/api/v1`; a part in braces stands for one of the request's.
    pub(super) path: &'static str,
    /// `None`: no key at all.
    pub(super) right: Option<ApiRight>,
    pub(super) call: Call,
}

const fn route(method: &'static str, path: &'static str, right: ApiRight, call: Call) -> Route {
    Route { method, path, right: Some(right), call }
}

/// All of them. `openapi.json` describes each, `docs/http-api.md` has an example of each.
pub(super) const ROUTES: &[Route] = &[
    Route { method: "GET", path: "/openapi.json", right: None, call: Call::Document },
    route("POST", "/events", ApiRight::Events, Call::Raise),
    route("POST", "/publish", ApiRight::Publish, Call::Publish),
    route("POST", "/publish/batch", ApiRight::Publish, Call::PublishBatch),
    route("GET", "/connections/{connection}", ApiRight::Read, Call::Connection),
    route("POST", "/connections/{connection}", ApiRight::Publish, Call::SendToConnection),
    route("DELETE", "/connections/{connection}", ApiRight::Connections, Call::EndConnection),
    route("GET", "/users/{user}/connections", ApiRight::Read, Call::UserConnections),
    route("DELETE", "/users/{user}/connections", ApiRight::Connections, Call::EndUserConnections),
    route("GET", "/rooms/{room}", ApiRight::Read, Call::Room),
    route("GET", "/rooms/{room}/history", ApiRight::Read, Call::History),
    route("POST", "/rooms/{room}/members", ApiRight::Connections, Call::Join),
    route("DELETE", "/rooms/{room}/members", ApiRight::Connections, Call::Leave),
    route("GET", "/revocations", ApiRight::Read, Call::Revocations),
    route("POST", "/revocations", ApiRight::Connections, Call::Revoke),
    route("DELETE", "/revocations", ApiRight::Connections, Call::TakeBack),
];

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Found {
    /// A call, and what its path names, decoded.
    Route(&'static Route, String),
    /// The address takes these methods.
    Methods(Vec<&'static str>),
    /// There is no such address.
    Nothing,
}

/// Looks a request up by the part of its path below `/api/v1`.
pub(super) fn find(method: &str, path: &str) -> Found {
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(name) = name(route.path, path) else { continue };
        if route.method == method {
            return Found::Route(route, name);
        }
        methods.push(route.method);
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
}

fn name(pattern: &str, path: &str) -> Option<String> {
    let mut name = String::new();
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(name),
            (Some(wanted), Some(given)) if wanted.starts_with('{') => {
                name = percent_decode_str(given).decode_utf8().ok().filter(|name| !name.is_empty())?.into_owned();
            }
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_request_is_found_by_method_and_path_with_the_name_in_it() {
        let Found::Route(route, name) = find("GET", "/rooms/%2Fevents%23lobby/history") else { panic!("it is there") };
        assert_eq!((route.call, name.as_str()), (Call::History, "/events#lobby"));
        let Found::Methods(methods) = find("PUT", "/connections/x") else { panic!("it is there") };
        assert_eq!(methods, ["GET", "POST", "DELETE"]);
        for nothing in ["", "/", "/rooms", "/rooms/", "/rooms/%ff", "/events/", "/publish/batch/x"] {
            assert!(matches!(find("GET", nothing), Found::Nothing), "{nothing}");
        }
    }

    fn all() -> BTreeSet<(String, String, String)> {
        let row = |route: &Route| {
            let right = route.right.map_or("", ApiRight::word);
            (route.method.to_owned(), route.path.to_owned(), right.to_owned())
        };
        ROUTES.iter().map(row).collect()
    }

    #[test]
    fn every_route_is_in_the_document_with_its_right_and_the_other_way_round() {
        let document: Value = serde_json::from_str(super::super::DOCUMENT).expect("the document is JSON");
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations").iter().filter(|(m, _)| *m != "parameters")
            {
                let right = operation["x-right"].as_str().unwrap_or_default();
                described.insert((method.to_uppercase(), path.clone(), right.to_owned()));
            }
        }
        assert_eq!(all(), described);
        assert_eq!(all().len(), ROUTES.len(), "a route is there twice");
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        fn visit(document: &Value, value: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
                        let pointer = reference.strip_prefix('#').expect("references stay in the document");
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    object.values().for_each(|value| visit(document, value));
                }
                Value::Array(items) => items.iter().for_each(|value| visit(document, value)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(super::super::DOCUMENT).expect("the document is JSON");
        visit(&document, &document);
    }
}
