//! Which request is which call, and what it takes to make it.

use percent_encoding::percent_decode_str;

/// Where the admin API begins.
pub(super) const BASE: &str = "/admin/v1";

/// What a token must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: no token at all.
    Nothing,
    /// Any token that holds; the call itself looks at whose it is.
    Token,
    /// Reading the tenant that the path names.
    Read,
    /// Changing the tenant that the path names.
    Change,
    /// Everything.
    Operator,
}

impl Need {
    /// The scopes that fulfil it, for people and for the document.
    pub(super) fn words(self) -> &'static str {
        match self {
            Need::Nothing => "no token",
            Need::Token => "any token",
            Need::Read => "tenant-read or tenant-admin of the tenant, or operator",
            Need::Change => "tenant-admin of the tenant, or operator",
            Need::Operator => "operator",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Document,
    WhoAmI,
    Nodes,
    Tenants,
    CreateTenant,
    Tenant,
    DeleteTenant,
    ChangeSettings,
    DisableTenant,
    EnableTenant,
    Keys,
    Key,
    PutKey,
    DeleteKey,
    Revocations,
    Revoke,
    TakeBack,
    Plugins,
    Plugin,
    PutPlugin,
    DeletePlugin,
    DisablePlugin,
    EnablePlugin,
    Versions,
    Upload,
    Activate,
    RollBack,
    PutCanary,
    DeleteCanary,
    Rollout,
    Logs,
    Usage,
    Audit,
    Tokens,
    CreateToken,
    RevokeToken,
}

/// One way of asking.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    /// Below [`BASE`]; a part in braces stands for one of the request's.
    pub(super) path: &'static str,
    pub(super) need: Need,
    pub(super) call: Call,
}

const fn route(method: &'static str, path: &'static str, need: Need, call: Call) -> Route {
    Route { method, path, need, call }
}

/// All of them. `admin/openapi.json` describes each.
pub(super) const ROUTES: &[Route] = &[
    route("GET", "/openapi.json", Need::Nothing, Call::Document),
    route("GET", "/whoami", Need::Token, Call::WhoAmI),
    route("GET", "/nodes", Need::Operator, Call::Nodes),
    route("GET", "/tenants", Need::Operator, Call::Tenants),
    route("POST", "/tenants", Need::Operator, Call::CreateTenant),
    route("GET", "/tenants/{tenant}", Need::Read, Call::Tenant),
    route("DELETE", "/tenants/{tenant}", Need::Operator, Call::DeleteTenant),
    route("PATCH", "/tenants/{tenant}/settings", Need::Change, Call::ChangeSettings),
    route("POST", "/tenants/{tenant}/disable", Need::Operator, Call::DisableTenant),
    route("POST", "/tenants/{tenant}/enable", Need::Operator, Call::EnableTenant),
    route("GET", "/tenants/{tenant}/keys", Need::Read, Call::Keys),
    route("GET", "/tenants/{tenant}/keys/{id}", Need::Read, Call::Key),
    route("PUT", "/tenants/{tenant}/keys/{id}", Need::Change, Call::PutKey),
    route("DELETE", "/tenants/{tenant}/keys/{id}", Need::Change, Call::DeleteKey),
    route("GET", "/tenants/{tenant}/revocations", Need::Read, Call::Revocations),
    route("POST", "/tenants/{tenant}/revocations", Need::Change, Call::Revoke),
    route("DELETE", "/tenants/{tenant}/revocations", Need::Change, Call::TakeBack),
    route("GET", "/tenants/{tenant}/plugins", Need::Read, Call::Plugins),
    route("GET", "/tenants/{tenant}/plugins/{plugin}", Need::Read, Call::Plugin),
    route("PUT", "/tenants/{tenant}/plugins/{plugin}", Need::Change, Call::PutPlugin),
    route("DELETE", "/tenants/{tenant}/plugins/{plugin}", Need::Change, Call::DeletePlugin),
    route("POST", "/tenants/{tenant}/plugins/{plugin}/disable", Need::Change, Call::DisablePlugin),
    route("POST", "/tenants/{tenant}/plugins/{plugin}/enable", Need::Change, Call::EnablePlugin),
    route("GET", "/tenants/{tenant}/plugins/{plugin}/versions", Need::Read, Call::Versions),
    route("POST", "/tenants/{tenant}/plugins/{plugin}/versions", Need::Change, Call::Upload),
    route("POST", "/tenants/{tenant}/plugins/{plugin}/activate", Need::Change, Call::Activate),
    route("POST", "/tenants/{tenant}/plugins/{plugin}/rollback", Need::Change, Call::RollBack),
    route("PUT", "/tenants/{tenant}/plugins/{plugin}/canary", Need::Change, Call::PutCanary),
    route("DELETE", "/tenants/{tenant}/plugins/{plugin}/canary", Need::Change, Call::DeleteCanary),
    route("GET", "/tenants/{tenant}/plugins/{plugin}/rollout", Need::Read, Call::Rollout),
    route("GET", "/tenants/{tenant}/logs", Need::Read, Call::Logs),
    route("GET", "/tenants/{tenant}/usage", Need::Read, Call::Usage),
    route("GET", "/audit", Need::Token, Call::Audit),
    route("GET", "/tokens", Need::Operator, Call::Tokens),
    route("POST", "/tokens", Need::Operator, Call::CreateToken),
    route("DELETE", "/tokens/{id}", Need::Operator, Call::RevokeToken),
];

/// What the path of a request names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) tenant: String,
    pub(super) plugin: String,
    pub(super) id: String,
}

/// What a request comes to.
#[derive(Debug)]
pub(super) enum Found {
    /// A call.
    Route(&'static Route, Names),
    /// The address takes these methods.
    Methods(Vec<&'static str>),
    /// There is no such address.
    Nothing,
}

/// Looks a request up.
pub(super) fn find(method: &str, path: &str) -> Found {
    let Some(path) = path.strip_prefix(BASE) else { return Found::Nothing };
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(names) = names(route.path, path) else { continue };
        if route.method == method {
            return Found::Route(route, names);
        }
        methods.push(route.method);
    }
    if methods.is_empty() { Found::Nothing } else { Found::Methods(methods) }
}

fn names(pattern: &str, path: &str) -> Option<Names> {
    let mut names = Names::default();
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        let (wanted, given) = match (wanted.next(), given.next()) {
            (None, None) => return Some(names),
            (Some(wanted), Some(given)) => (wanted, given),
            _ => return None,
        };
        let name = match wanted {
            "{tenant}" => &mut names.tenant,
            "{plugin}" => &mut names.plugin,
            "{id}" => &mut names.id,
            _ if wanted == given => continue,
            _ => return None,
        };
        *name = percent_decode_str(given).decode_utf8().ok().filter(|name| !name.is_empty())?.into_owned();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_request_is_found_by_method_and_path_with_the_names_in_it() {
        let Found::Route(route, names) = find("POST", "/admin/v1/tenants/acme/plugins/word-filter/activate") else {
            panic!("not found")
        };
        assert_eq!(route.call, Call::Activate);
        assert_eq!((&*names.tenant, &*names.plugin), ("acme", "word-filter"));
        let Found::Route(_, names) = find("DELETE", "/admin/v1/tenants/acme/keys/2025%2F02") else {
            panic!("not found")
        };
        assert_eq!(names.id, "2025/02");
        let Found::Methods(methods) = find("PUT", "/admin/v1/tenants") else { panic!("it is there") };
        assert_eq!(methods, ["GET", "POST"]);
        for nothing in ["/admin/v1", "/admin/v1/", "/admin/v2/whoami", "/admin/v1/tenants/", "/admin/v1/tenants/%ff"] {
            assert!(matches!(find("GET", nothing), Found::Nothing), "{nothing}");
        }
    }

    /// Method, path and needed scopes of each operation that the document describes.
    fn described() -> BTreeSet<(String, String, String)> {
        let document: Value = serde_json::from_str(super::super::DOCUMENT).expect("the document is JSON");
        assert_eq!(document["servers"][0]["url"], BASE);
        let paths = document["paths"].as_object().expect("paths");
        paths
            .iter()
            .flat_map(|(path, item)| {
                let operations = item.as_object().expect("operations");
                operations.iter().filter(|(method, _)| *method != "parameters").map(|(method, operation)| {
                    let needs = operation["x-needs"].as_str().unwrap_or_default();
                    (method.to_uppercase(), path.clone(), needs.to_owned())
                })
            })
            .collect()
    }

    #[test]
    fn every_route_is_in_the_document_with_its_scopes_and_the_other_way_round() {
        let routes: BTreeSet<_> = ROUTES
            .iter()
            .map(|route| (route.method.to_owned(), route.path.to_owned(), route.need.words().to_owned()))
            .collect();
        assert_eq!(routes, described());
        assert_eq!(routes.len(), ROUTES.len(), "a route is there twice");
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
