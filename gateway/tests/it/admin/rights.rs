//! Who may do what.

use serde_json::{Value, json};

use super::{OPERATOR, ask, command, eventually, node, operate, settings, text};
use crate::support::node::{Node, Settings};
use crate::support::{BACKEND_TOKEN, SECRET, open};

/// Each operation of the document: method, path with names of nothing that there is, and what it needs.
fn operations(node: &Node) -> Vec<(String, String, String)> {
    let (status, document) = ask(node, "", "GET", "/openapi.json", None);
    assert_eq!(status, 200, "the document needs no token");
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{tenant}", "ghost").replace("{plugin}", "nothing").replace("{id}", "none");
        for (method, operation) in item.as_object().unwrap() {
            if let Some(needs) = operation["x-needs"].as_str() {
                operations.push((method.to_uppercase(), path.clone(), needs.to_owned()));
            }
        }
    }
    assert!(operations.len() > 30);
    operations
}

#[test]
fn every_route_takes_the_scopes_that_its_document_names_and_no_others() {
    let config = format!("admin_token = \"{OPERATOR}\"\n[admin]\nwrong_tokens_per_minute = 1000\n");
    let node = Node::with(Settings { config, ..settings(Vec::new(), None) });
    for name in ["ghost", "other"] {
        operate(&node, "POST", "/tenants", json!({ "name": name }));
    }
    let make = |name: &str, scope: &str, tenant: Option<&str>| {
        let made = operate(&node, "POST", "/tokens", json!({ "name": name, "scope": scope, "tenant": tenant }));
        made["secret"].as_str().unwrap().to_owned()
    };
    let tokens = [
        ("operator", make("operator", "operator", None)),
        ("tenant-admin", make("own-admin", "tenant-admin", Some("ghost"))),
        ("tenant-read", make("own-reader", "tenant-read", Some("ghost"))),
        ("another's admin", make("other-admin", "tenant-admin", Some("other"))),
        ("another's reader", make("other-reader", "tenant-read", Some("other"))),
    ];
    let mut operations = operations(&node);
    // With the tenant its tokens go.
    operations.sort_by_key(|(method, path, _)| method == "DELETE" && path == "/tenants/ghost");
    for (method, path, needs) in operations {
        if needs == "no token" {
            continue;
        }
        let (status, refusal) = ask(&node, "", &method, &path, Some(&json!({})));
        assert_eq!(
            (status, &refusal["error"]["code"]),
            (401, &json!("unauthorized")),
            "{method} {path} without a token"
        );
        let (status, _) = ask(&node, "postern_00000000000000000000nothing", &method, &path, Some(&json!({})));
        assert_eq!(status, 401, "{method} {path} with a token that is none");
        // The operator last: what is refused to the others is done by then.
        for (scope, token) in tokens.iter().rev() {
            let (status, refusal) = ask(&node, token, &method, &path, Some(&json!({})));
            let may = needs == "any token" || needs.split([' ', ',']).any(|word| word == *scope);
            if may {
                // What is named is not there, and the body says nothing: but not for want of a right.
                assert!(![401, 403].contains(&status), "{scope} may not {method} {path}: {status} {refusal}");
            } else {
                assert_eq!(
                    (status, &refusal["error"]["code"]),
                    (403, &json!("forbidden")),
                    "{scope} may {method} {path}"
                );
                let message = refusal["error"]["message"].as_str().unwrap();
                assert!(message.contains(&needs), "it does not say what is needed: {message}");
            }
        }
    }
}

#[test]
fn a_tenants_own_token_sees_and_changes_only_its_tenant_and_not_its_limits() {
    let node = node(Vec::new());
    for name in ["acme", "other"] {
        operate(&node, "POST", "/tenants", json!({ "name": name }));
    }
    let made = operate(&node, "POST", "/tokens", json!({ "name": "ci", "scope": "tenant-admin", "tenant": "acme" }));
    let token = made["secret"].as_str().unwrap();
    for setting in ["limits", "call_limits", "hosts", "signature_keys", "require_signature"] {
        let (status, refusal) = ask(&node, token, "PATCH", "/tenants/acme/settings", Some(&json!({ setting: null })));
        assert_eq!(status, 403);
        let message = refusal["error"]["message"].as_str().unwrap();
        assert!(message.contains(setting) && message.contains("operator"), "{message}");
    }
    assert_eq!(ask(&node, token, "PATCH", "/tenants/acme/settings", Some(&json!({ "relay": ["a"] }))).0, 200);
    assert_eq!(ask(&node, token, "PATCH", "/tenants/other/settings", Some(&json!({ "relay": ["a"] }))).0, 403);
    let own = ask(&node, token, "GET", "/audit", None).1;
    let tenants: Vec<_> = own["entries"].as_array().unwrap().iter().map(|entry| &entry["tenant"]).collect();
    assert!(!tenants.is_empty() && tenants.iter().all(|tenant| *tenant == "acme"), "{tenants:?}");
    assert_eq!(ask(&node, token, "GET", "/audit?tenant=other", None).0, 403);
}

#[test]
fn whoever_may_only_read_sees_no_value_of_a_plugins_settings() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme" }));
    let [admin, read] = ["tenant-admin", "tenant-read"].map(|scope| {
        let made = operate(&node, "POST", "/tokens", json!({ "name": scope, "scope": scope, "tenant": "acme" }));
        made["secret"].as_str().unwrap().to_owned()
    });
    let plugin = json!({ "role": "handler", "settings": { "words": "hunter2", "hook": "https://u:hunter3@h/x" } });
    assert_eq!(ask(&node, &admin, "PUT", "/tenants/acme/plugins/echo", Some(&plugin)).0, 200);
    let shown = |token: &str| ask(&node, token, "GET", "/tenants/acme/plugins/echo", None).1["settings"].clone();
    assert_eq!(shown(&admin), json!({ "words": "hunter2", "hook": "https://(secret)@h/x" }));
    assert_eq!(shown(&read), json!({ "words": "(set)", "hook": "(set)" }));
    let (status, _) =
        ask(&node, &admin, "PUT", "/tenants/acme/plugins/echo", Some(&json!({ "settings": shown(&admin) })));
    assert_eq!(status, 422, "what was shown instead of a secret would replace it");
    let audit = ask(&node, OPERATOR, "GET", "/audit", None).1;
    let put = audit["entries"].as_array().unwrap().iter().find(|entry| entry["what"] == "plugin.put").unwrap();
    assert_eq!(put["after"]["settings"], json!({ "words": "(set)", "hook": "(set)" }));
    assert!(!audit.to_string().contains("hunter"), "{audit}");
}

#[test]
fn nobody_takes_a_host_or_a_name_that_is_in_use() {
    let node = node(Vec::new());
    operate(&node, "POST", "/tenants", json!({ "name": "acme", "settings": { "hosts": ["chat.acme.example"] } }));
    operate(&node, "POST", "/tenants", json!({ "name": "other" }));
    let hosts = json!({ "hosts": ["Chat.Acme.example"] });
    let patched = || ask(&node, OPERATOR, "PATCH", "/tenants/other/settings", Some(&hosts));
    eventually("the node knows the host", || patched().0 == 409);
    assert!(patched().1["error"]["message"].as_str().unwrap().contains("acme"));
    let token = |name: &str| {
        let new = json!({ "name": name, "scope": "tenant-read", "tenant": "acme" });
        ask(&node, OPERATOR, "POST", "/tokens", Some(&new)).0
    };
    for name in ["admin_token", "breaker", "Gateway", "roll-out", "api-key:shop"] {
        assert_eq!(token(name), 422, "{name}");
    }
    assert_eq!((token("ci"), token("ci")), (201, 409));
}

#[test]
fn a_tenants_origins_are_not_the_admin_apis_under_its_host() {
    let node = node(vec![open("filed", "hosts = [\"chat.example\"]\norigins = [\"https://app.example\"]\n")]);
    let asked = |path: &str| {
        let headers = [("host", "chat.example"), ("origin", "https://app.example")];
        let mut stream = std::net::TcpStream::connect(node.address).unwrap();
        let head: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        std::io::read_to_string(stream).unwrap().to_ascii_lowercase()
    };
    assert!(asked("/health").contains("access-control-allow-origin: https://app.example"));
    let of_admin = asked("/admin/v1/whoami");
    assert!(of_admin.starts_with("http/1.1 403") && !of_admin.contains("access-control-allow-origin"), "{of_admin}");
}

#[test]
fn a_tenant_of_a_file_is_shown_without_its_secrets_and_changed_by_nobody() {
    let node = node(vec![open("filed", "")]);
    for (method, path, body) in [
        ("PATCH", "/tenants/filed/settings", json!({ "relay": [] })),
        ("DELETE", "/tenants/filed", json!({})),
        ("POST", "/tenants/filed/disable", json!({})),
        ("POST", "/tenants", json!({ "name": "filed" })),
        ("PUT", "/tenants/filed/keys/k", json!({ "algorithm": "HS256", "secret": SECRET })),
        ("PUT", "/tenants/filed/plugins/more", json!({ "role": "handler" })),
        ("DELETE", "/tenants/filed/plugins/echo", json!({})),
        ("POST", "/tenants/filed/plugins/echo/versions", json!({})),
        ("POST", "/tenants/filed/plugins/echo/activate", json!({ "version": 1 })),
        ("POST", "/tenants/filed/plugins/echo/rollback", json!({})),
        ("PUT", "/tenants/filed/plugins/echo/canary", json!({ "version": 1, "percent": 5 })),
    ] {
        let (status, refusal) = ask(&node, OPERATOR, method, path, Some(&body));
        assert_eq!((status, &refusal["error"]["code"]), (409, &json!("read_only")), "{method} {path}: {refusal}");
        let message = refusal["error"]["message"].as_str().unwrap();
        assert!(message.contains("filed.toml"), "the file is not named: {message}");
    }
    let shown = ask(&node, OPERATOR, "GET", "/tenants/filed", None).1;
    assert_eq!((&shown["source"], &shown["settings"]["relay"]), (&json!("file"), &json!(["echo_relay"])));
    let plugins = ask(&node, OPERATOR, "GET", "/tenants/filed/plugins", None).1;
    assert_eq!(plugins["plugins"].as_array().unwrap().len(), 2);
    let keys = ask(&node, OPERATOR, "GET", "/tenants/filed/keys", None).1;
    assert_eq!(keys["keys"][0]["kind"], "secret");
    for shown in [shown, plugins, keys] {
        assert!(!shown.to_string().contains(SECRET) && !shown.to_string().contains(BACKEND_TOKEN), "{shown}");
    }
}

#[test]
fn tenants_of_files_and_of_the_api_are_listed_together_page_by_page() {
    let node = node(vec![open("b-file", ""), open("e-file", "")]);
    for name in ["a-api", "c-api", "d-api"] {
        operate(&node, "POST", "/tenants", json!({ "name": name }));
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = ask(&node, OPERATOR, "GET", &format!("/tenants?limit=2&after={after}"), None).1;
        let tenants = page["tenants"].as_array().unwrap().clone();
        assert!(tenants.len() <= 2);
        names.extend(
            tenants
                .iter()
                .map(|tenant| format!("{} {}", tenant["name"].as_str().unwrap(), tenant["source"].as_str().unwrap())),
        );
        if page["more"] != true {
            break;
        }
        tenants.last().unwrap()["name"].as_str().unwrap().clone_into(&mut after);
    }
    assert_eq!(names, ["a-api api", "b-file file", "c-api api", "d-api api", "e-file file"]);
    for (query, wrong) in [("limit=0", "limit"), ("limit=x", "limit"), ("limit=501", "limit")] {
        let (status, refusal) = ask(&node, OPERATOR, "GET", &format!("/tenants?{query}"), None);
        assert_eq!(status, 422);
        assert!(refusal["error"]["message"].as_str().unwrap().contains(wrong), "{refusal}");
    }
}

#[test]
fn without_any_token_the_api_is_off_and_says_how_to_switch_it_on() {
    let node = Node::start(Vec::new());
    let (status, refusal) = ask(&node, "", "GET", "/whoami", None);
    assert_eq!((status, &refusal["error"]["code"]), (403, &json!("admin_disabled")));
    assert!(refusal["error"]["message"].as_str().unwrap().contains("POSTERN_ADMIN_TOKEN"), "{refusal}");
    let (status, refusal) = ask(&node, OPERATOR, "GET", "/whoami", None);
    assert_eq!((status, &refusal["error"]["code"]), (403, &json!("admin_disabled")), "no token is good here");
}

#[test]
fn every_refusal_on_the_command_line_says_what_to_do_next_and_has_an_exit_code() {
    let node = node(vec![open("filed", "")]);
    for (token, args, code, next) in [
        ("", &["admin", "nodes"][..], 1, "POSTERN_ADMIN_TOKEN"),
        ("wrong", &["admin", "nodes"], 1, "ask an operator"),
        (OPERATOR, &["plugin", "list"], 64, "--tenant"),
        (OPERATOR, &["plugin", "list", "--tenant", "ghost"], 1, "postern tenant list"),
        (OPERATOR, &["tenant", "set", "filed", "relay=[]"], 1, "change the file"),
        (OPERATOR, &["tenant", "create", "acme", "limits.connections=0"], 1, "nothing was changed"),
        (OPERATOR, &["tenant", "create", "acme", "limits"], 64, "KEY=VALUE"),
        (OPERATOR, &["plugin", "push", "p", "/nowhere.wasm", "--tenant", "acme"], 1, "postern plugin build"),
        (OPERATOR, &["admin", "nodes", "--url", "http://127.0.0.1:1"], 1, "POSTERN_URL"),
        (OPERATOR, &["admin", "nodes", "--url", "nonsense"], 64, "POSTERN_URL"),
        (OPERATOR, &["tenant", "delete", "acme"], 64, "--yes"),
    ] {
        let output = command(&node, token, args).output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(next), "{args:?} does not say {next:?}: {told}");
    }
    let output = command(&node, "wrong", &["admin", "nodes", "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stderr).expect("the error is JSON");
    assert_eq!((output.status.code(), &told["error"]["code"]), (Some(1), &json!("unauthorized")));
    assert!(told["error"]["advice"].is_string());
}

#[test]
fn whoever_guesses_tokens_is_slowed_down_and_locks_nobody_out() {
    let config = format!("admin_token = \"{OPERATOR}\"\n[admin]\nwrong_tokens_per_minute = 5\n");
    let node = Node::with(Settings { config, ..settings(Vec::new(), None) });
    let created = operate(&node, "POST", "/tokens", json!({ "name": "ci", "scope": "operator" }));
    let ci = created["secret"].as_str().unwrap();
    assert_eq!(ask(&node, ci, "GET", "/whoami", None).0, 200);
    for n in 0..5 {
        assert_eq!(ask(&node, &format!("guess-{n}"), "GET", "/whoami", None).0, 401);
    }
    let (status, refused) = ask(&node, "guess-5", "GET", "/whoami", None);
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("rate_limit")), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("admin.wrong_tokens_per_minute = 5"), "{refused}");
    for good in [ci, OPERATOR] {
        assert_eq!(ask(&node, good, "GET", "/whoami", None).0, 200, "from the same address");
    }
}
