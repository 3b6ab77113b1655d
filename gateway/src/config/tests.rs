use std::num::NonZeroU32;

use tempfile::TempDir;

use super::*;
use crate::cli::token::{TokenArgs, token};
use crate::cli::{Cli, Command, check};
use crate::tenant::{KeyMaterial, Role};

const SECRET: &str = "a test secret of more than thirty-two bytes";

/// A directory with tenant files and one component.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        std::fs::create_dir(files.path("tenants")).unwrap();
        files.put("tenants/plugin.wasm", "");
        files
    }

    fn with_tenant(name: &str, text: &str) -> Files {
        let files = Files::new();
        files.put(&format!("tenants/{name}.toml"), text);
        files
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).unwrap();
    }

    fn load(&self, flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let mut flags: Flags = flags.iter().map(|(flag, value)| (*flag, (*value).to_owned())).collect();
        flags.entry("tenants").or_insert_with(|| self.path("tenants").display().to_string());
        let shorten = |mistake: &Mistake| mistake.to_string().replace(&format!("{}/", self.0.path().display()), "");
        load(&flags, &environment(env)).map_err(|mistakes| mistakes.0.iter().map(shorten).collect())
    }
}

fn environment(env: &[(&str, &str)]) -> BTreeMap<String, String> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A tenant file that is right, and what is added to it: before the tables, and after.
fn tenant_text(before: &str, after: &str) -> String {
    format!(
        "name = \"acme\"\n{before}\n[auth]\n[[auth.keys]]\nid = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n\
         [[plugins]]\nname = \"rules\"\nrole = \"authorizer\"\ncomponent = \"plugin.wasm\"\n{after}"
    )
}

/// The one tenant of this file.
fn tenant(text: &str) -> Tenant {
    Files::with_tenant("acme", text).load(&[], &[]).unwrap().tenants.remove(0)
}

/// The only mistake in this file.
fn mistake(text: &str) -> String {
    let mistakes = Files::with_tenant("acme", text).load(&[], &[]).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    mistakes.into_iter().next().unwrap()
}

fn assert_says(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "{text:?} should contain {parts:?}");
}

#[test]
fn without_settings_the_documented_defaults_hold() {
    let config = Files::with_tenant("acme", &tenant_text("", "")).load(&[], &[]).unwrap();
    assert_eq!(config.listen, "0.0.0.0:3000".parse().unwrap());
    assert_eq!((config.data_dir, config.max_connections), (PathBuf::from("data"), 10_000));
    assert_eq!((config.ping_interval.as_secs(), config.ping_timeout.as_secs()), (25, 20));
    assert_eq!((config.handshake_timeout.as_secs(), config.shutdown_grace.as_secs()), (10, 10));
    assert_eq!((config.redis_url, config.default_tenant, config.durability), (None, None, Durability::Immediate));
    assert_eq!((config.origins, config.demo, config.log.as_str()), (Vec::new(), false, "info"));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn presence_is_as_the_settings_say() {
    let meant = tenant(&tenant_text("", ""));
    assert_eq!((meant.presence_grace.as_secs(), meant.presence_events.len()), (10, 0));
    let meant = tenant(&tenant_text("presence_events = [\"flat\", \"task\"]\npresence_grace_ms = 0", ""));
    assert_eq!((meant.presence_grace.as_millis(), &*meant.presence_events), (0, &["flat".into(), "task".into()][..]));
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    let config = files.load(&[], &[]).unwrap();
    assert_eq!((config.presence_view, config.node_lease.as_secs()), (true, 12));
    files.put("postern.toml", "presence_view = false\nnode_lease_ms = 999");
    let path = files.path("postern.toml").display().to_string();
    assert_says(
        &files.load(&[("config", &path)], &[]).unwrap_err().join(" "),
        &["node_lease_ms", "from 1000 to 120000"],
    );
    files.put("postern.toml", "presence_view = false\nnode_lease_ms = 5000");
    let config = files.load(&[("config", &path)], &[]).unwrap();
    assert_eq!((config.presence_view, config.node_lease.as_secs()), (false, 5));
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    files.put("postern.toml", "port = 1\nhost = \"127.0.0.1\"\nmax_connections = 1\norigins = [\"https://file\"]");
    let config = files.path("postern.toml").display().to_string();
    let env = [("POSTERN_CONFIG", config.as_str()), ("PORT", "2"), ("MAX_CONNECTIONS", "2"), ("HOST", "")];
    let meant = files.load(&[("port", "3")], &env).unwrap();
    assert_eq!(meant.listen, "127.0.0.1:3".parse().unwrap());
    assert_eq!(meant.max_connections, 2);
    assert_eq!(meant.origins, ["https://file"]);
    let meant = files.load(&[], &[("CORS_ORIGIN", "https://a, https://b:8443,")]).unwrap();
    assert_eq!(meant.origins, ["https://a", "https://b:8443"]);
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    files.put("postern.toml", "data_dir = \"d\"\ntenants_dir = \"tenants\"\nplugins_dir = \"tenants\"");
    let flags = Flags::from([("config", files.path("postern.toml").display().to_string()), ("data", "e".into())]);
    let config = load(&flags, &environment(&[])).unwrap();
    assert_eq!((config.tenants_dir, config.data_dir), (files.path("tenants"), PathBuf::from("e")));
    assert_eq!(config.tenants[0].plugins[0].component, files.path("tenants/plugin.wasm"));
}

#[test]
fn all_mistakes_of_all_files_are_reported_at_once_with_their_places() {
    let files = Files::with_tenant(
        "acme",
        "name = \"acme\"\nnmae = 1\n[limits]\nconnections = 0\nmessages_per_minute = \"lots\"",
    );
    files.put("tenants/Bad.toml", "");
    files.put("tenants/syntax.toml", "name = \n[auth\n");
    files.put("postern.toml", "prot = 1\n\nping_interval_ms = 1\ndefault_tenant = \"A\"\ndurability = \"maybe\"");
    let config = files.path("postern.toml").display().to_string();
    let env = [("PORT", "http"), ("REDIS_URL", "http://user:hunter2@r"), ("CORS_ORIGIN", "https://a/,x")];
    let mistakes = files.load(&[("config", &config), ("log", "=,=")], &env).unwrap_err();
    let text = mistakes.join("\n");
    for expected in [
        "environment: PORT: must be an integer from 0 to 65535, not \"http\"",
        "environment: REDIS_URL: must be a URL of Redis (not shown): it must be redis://[user:password@]host[:port][/database], \
             redis+sentinel://[user:password@]host[:port],…/service[/database], \
             redis+cluster://[user:password@]host[:port],…, or rediss instead of redis for TLS",
        "environment: CORS_ORIGIN: must be `*` or an origin",
        "command line: --log: must be a log filter",
        "postern.toml:1: prot: there is no setting `prot` here; there are admin, admin_token, ",
        "postern.toml:3: ping_interval_ms: must be an integer from 100 to 600000, not 1",
        "postern.toml:4: default_tenant: a tenant's name is",
        "postern.toml:5: durability: must be \"immediate\" or \"relaxed\", not \"maybe\"",
        "tenants/Bad.toml: the file's name says the tenant's",
        "tenants/acme.toml:2: nmae: there is no setting `nmae` here",
        "tenants/acme.toml: auth: is missing",
        "tenants/acme.toml:4: limits.connections: must be an integer from 1 to 10000000, not 0",
        "tenants/acme.toml:5: limits.messages_per_minute: must be an integer from 1 to 4294967295 or the word \"unlimited\", not \"lots\"",
        "tenants/syntax.toml:1: ",
        "tenants/syntax.toml:2: ",
    ] {
        assert!(text.contains(expected), "{expected}\nis not in\n{text}");
    }
    assert!(!text.contains("hunter2"));
}

#[test]
fn files_that_are_not_there_are_named() {
    let files = Files::new();
    let mistakes = files.load(&[("tenants", "/nowhere/t"), ("config", "/nowhere/c.toml")], &[]).unwrap_err();
    assert_says(&mistakes[0], &["/nowhere/c.toml: cannot read"]);
    assert_says(&mistakes[1], &["/nowhere/t: cannot read", "--tenants"]);
    assert_says(&files.load(&[], &[]).unwrap().warnings[0], &["no tenant file"]);
}

#[test]
fn the_default_tenant_must_be_one() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    files.put("postern.toml", "default_tenant = \"acne\"");
    let config = files.path("postern.toml").display().to_string();
    assert_says(
        &files.load(&[("config", &config)], &[]).unwrap_err()[0],
        &["postern.toml:1: default_tenant", "no tenant acne"],
    );
    files.put("postern.toml", "default_tenant = \"acme\"");
    assert_eq!(files.load(&[("config", &config)], &[]).unwrap().default_tenant.unwrap().as_str(), "acme");
}

#[test]
fn a_tenant_file_says_everything_about_a_tenant() {
    let before = "relay = [\"typing\", \"cursor:*\"]\nbroadcast = [\"notice\"]\norigins = [\"https://app.example\"]\nhistory_on_join = 9\nsocketio_recovery = true\nbackend_token_env = \"BACKEND\"";
    let after = "[[plugins]]\nname = \"chat\"\nrole = \"handler\"\ncomponent = \"plugin.wasm\"\nevents = [\"chat:*\"]\n\
        settings = { text = \"t\", number = 7, fraction = 1.50, truth = true }\n\
        [limits]\nmessages_per_minute = \"unlimited\"\nconnections = 7\n\
        user_events_per_minute = { send_message = \"unlimited\", ping = 5 }\n[call_limits]\ncpu_ms = 5\n";
    let files = Files::with_tenant("acme", &tenant_text(before, after));
    let tenant = files.load(&[], &[("BACKEND", SECRET)]).unwrap().tenants.remove(0);
    assert_eq!(tenant.relay, [crate::tenant::Pattern("typing".into()), crate::tenant::Pattern("cursor:*".into())]);
    assert_eq!(tenant.broadcast, [crate::tenant::Pattern("notice".into())]);
    assert_eq!((tenant.origins, tenant.history_on_join), (vec!["https://app.example".to_owned()], 9));
    assert!(tenant.socketio_recovery);
    assert_eq!(tenant.backend_token.unwrap().0, SECRET.as_bytes());
    assert_eq!(
        (tenant.limits.messages_per_minute, tenant.limits.connections, tenant.limits.connections_per_user),
        (None, 7, 5)
    );
    assert_eq!(tenant.limits.user_events_per_minute, BTreeMap::from([("ping".into(), NonZeroU32::new(5).unwrap())]));
    assert_eq!((tenant.call_limits.cpu_ms, tenant.call_limits.wall_ms), (5, 5_000));
    let chat = &tenant.plugins[1];
    assert_eq!((&*chat.name, chat.role, &chat.component), ("chat", Role::Handler, &files.path("tenants/plugin.wasm")));
    assert_eq!(chat.events.as_deref(), Some(&[crate::tenant::Pattern("chat:*".into())][..]));
    let settings: Vec<_> = chat.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(settings, [("fraction", "1.50"), ("number", "7"), ("text", "t"), ("truth", "true")]);
}

#[test]
fn what_cannot_stand_in_a_tenant_file_is_explained() {
    for (before, after, parts) in [
        ("", "[limits]\noutbox_bytes = 65536", &["limits: outbox_bytes (65536) must be at least message_bytes"][..]),
        ("", "[call_limits]\ncpu_ms = 9000", &["wall_ms (5000) must be at least cpu_ms (9000)"]),
        ("", "[limits]\nconnections = -1", &["acme.toml:13: limits.connections", "not -1"]),
        ("relay = [\"a*b\"]", "", &["acme.toml:2: relay[0]", "must be an event's name", "\"a*b\""]),
        ("relay = \"a\"", "", &["relay: must be an array"]),
        ("broadcast = [\"a*b\"]", "", &["acme.toml:2: broadcast[0]", "must be an event's name", "\"a*b\""]),
        ("origins = [\"https://a.example/path\"]", "", &["origins[0]", "origin"]),
        ("presence_grace_ms = 140001", "", &["presence_grace_ms", "from 0 to 140000", "140001"]),
        ("presence_events = [\"flat:a1\"]", "", &["presence_events[0]", "a type of rooms", "\"flat:a1\""]),
        ("presence_events = [\"user\"]", "", &["presence_events[0]", "gateway's own", "\"user\""]),
        ("history_on_join = 1001", "", &["history_on_join", "from 0 to 200", "1001"]),
        ("socketio_recovery = \"maybe\"", "", &["socketio_recovery: must be true or false"]),
        ("backend_token = \"short\"", "", &["backend_token: the secret has 5 bytes; at least 32"]),
        ("backend_token_env = \"NOT_SET\"", "", &["backend_token_env", "`NOT_SET` is not set"]),
        ("limits = 1", "", &["limits: must be a table"]),
        ("", "[[plugins]]\nname = \"x\"\nrole = \"handler\"", &["plugins[1]: `component` is missing"]),
        (
            "",
            "[[plugins]]\nname = \"x\"\nrole = \"boss\"\ncomponent = \"plugin.wasm\"",
            &["plugins[1].role", "\"boss\""],
        ),
        (
            "",
            "[[plugins]]\nname = \"X\"\nrole = \"handler\"\ncomponent = \"plugin.wasm\"",
            &["plugins[1].name", "\"X\""],
        ),
        (
            "",
            "[[plugins]]\nname = \"x\"\nrole = \"handler\"\ncomponent = \"no.wasm\"",
            &["plugins[1].component", "no.wasm", "built"],
        ),
        (
            "",
            "[[plugins]]\nname = \"rules\"\nrole = \"handler\"\ncomponent = \"plugin.wasm\"",
            &["\"rules\" is given twice"],
        ),
        ("", "[[plugins]]\nname = \"x\"\nrole = \"authorizer\"\ncomponent = \"plugin.wasm\"", &["a second authorizer"]),
        ("", "events = [\"a\"]", &["plugins[0].events: only a handler has events"]),
        ("", "settings = { a = [1, { b = inf }] }", &["plugins[0].settings.a", "that JSON has", "an array"]),
        ("", "settings = { a = 2026-11-22 }", &["plugins[0].settings.a", "no date"]),
    ] {
        assert_says(&mistake(&tenant_text(before, after)), parts);
    }
    let files = Files::with_tenant("other", &tenant_text("", ""));
    assert_says(&files.load(&[], &[]).unwrap_err()[0], &["other.toml:1: name: must be \"other\"", "not \"acme\""]);
}

#[test]
fn a_setting_that_is_no_text_is_handed_to_the_plugin_as_json() {
    let written = "[plugins.settings]\ntext = \"a [b]\"\nnumber = 0x10\nlarge = 1_000\nreal = 1.5\ntruth = true\n\
                   list = [1, \"two\", [3.5, false]]\ncolors = { a = 1, \"b c\" = { d = [] } }\n";
    let settings = tenant(&tenant_text("", written)).plugins.remove(0).settings;
    for (name, text) in [
        ("text", "a [b]"),
        ("number", "16"),
        ("large", "1000"),
        ("real", "1.5"),
        ("truth", "true"),
        ("list", r#"[1,"two",[3.5,false]]"#),
        ("colors", r#"{"a":1,"b c":{"d":[]}}"#),
    ] {
        assert_eq!(settings[name], text);
    }
}

/// A tenant file with these keys.
fn keys(keys: &str) -> String {
    format!(
        "name = \"acme\"\n[auth]\n{keys}\n[[plugins]]\nname = \"rules\"\nrole = \"authorizer\"\ncomponent = \"plugin.wasm\""
    )
}

#[test]
fn keys_that_cannot_verify_anything_are_mistakes_and_show_no_secret() {
    let public = include_str!("../../tests/keys/p256.public.pem");
    let private = include_str!("../../tests/keys/p256.private.pem");
    for (text, parts) in [
        (
            "[[auth.keys]]\nalgorithm = \"HS256\"".into(),
            &["acme.toml:3: auth.keys[0]: give exactly one of secret,"][..],
        ),
        (format!("[[auth.keys]]\nsecret = \"{SECRET}\""), &["`algorithm` is missing: one of HS256,"]),
        (
            format!("[[auth.keys]]\nalgorithm = \"none\"\nsecret = \"{SECRET}\""),
            &["auth.keys[0].algorithm", "must be one of HS256", "\"none\""],
        ),
        (
            format!("[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\npem_file = \"x\""),
            &["exactly one", "there are 2"],
        ),
        (
            "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"hunter2\"".into(),
            &["the secret has 7 bytes; at least 32 are needed"],
        ),
        ("[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = 7".into(), &["must be a text", "not shown"]),
        ("[[auth.keys]]\nalgorithm = \"HS256\"\nsecret_env = \"NOT_SET\"".into(), &["`NOT_SET` is not set"]),
        (
            format!("[[auth.keys]]\nalgorithm = \"RS256\"\npem = '''{public}'''"),
            &["not a PEM of the public key that RS256 needs"],
        ),
        (format!("[[auth.keys]]\nalgorithm = \"ES256\"\npem = '''{private}'''"), &["this is a private key"]),
        ("[[auth.keys]]\nalgorithm = \"ES256\"\npem_file = \"no.pem\"".into(), &["pem_file: cannot read", "no.pem"]),
        ("[[auth.keys]]\njwk = '{\"kty\":\"oct\",\"k\":'".into(), &["auth.keys[0].jwk: not a JSON Web Key"]),
        ("jwks_file = \"no.json\"".into(), &["auth.jwks_file: cannot read", "no.json"]),
        ("jwks_url = \"http://id.example/jwks\"".into(), &["auth.jwks_url: must be https", "only for this machine"]),
        ("jwks_url = \"https://hunter2@id.example/jwks\"".into(), &["auth.jwks_url", "no user and no password"]),
        ("jwks_url = \"id.example\"".into(), &["auth.jwks_url: must be"]),
        ("jwks_url = \"ftp://id.example/x\"".into(), &["auth.jwks_url: must be https"]),
        ("jwks_url = \"https://id.example/x\"\njwks_refresh_ms = 1".into(), &["auth.jwks_refresh_ms", "from 1000"]),
        ("subject_claim = \"\"\nanonymous = true".into(), &["auth.subject_claim", "name of a claim"]),
        ("leeway_s = 601\nanonymous = true".into(), &["auth.leeway_s", "from 0 to 600"]),
        (String::new(), &["auth: no key can be used"]),
        (
            format!("[[auth.keys]]\nid = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n").repeat(2),
            &["auth.keys[1]: the key id \"k\" is given twice"],
        ),
        (
            ["k", "l"]
                .map(|id| format!("[[auth.keys]]\nid = \"{id}\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"))
                .concat(),
            &["auth.keys[1]: is the same key as that of the id \"k\""],
        ),
    ] {
        let mistake = mistake(&keys(&text));
        assert_says(&mistake, parts);
        assert!(!mistake.contains("hunter2") && !mistake.contains(SECRET) && !mistake.contains("MIG"), "{mistake}");
    }
}

#[test]
fn keys_come_from_texts_files_sets_and_the_environment() {
    let set = format!(
        r#"{{"keys":[{{"kty":"oct","kid":"set","k":"{}"}},{{"kty":"AKP","kid":"new"}},{{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"}}]}}"#,
        "A".repeat(64)
    );
    let files = Files::with_tenant(
        "acme",
        &keys(
            "jwks_file = \"set.json\"\n[[auth.keys]]\nalgorithm = \"HS512\"\nsecret_env = \"ACME\"\n\
             [[auth.keys]]\nid = \"pem\"\nalgorithm = \"ES256\"\npem_file = \"p256.pem\"",
        ),
    );
    files.put("tenants/set.json", &set);
    files.put("tenants/p256.pem", include_str!("../../tests/keys/p256.public.pem"));
    let config = files.load(&[], &[("ACME", SECRET)]).unwrap();
    let keys: Vec<_> =
        config.tenants[0].auth.all_keys().map(|key| (key.id.as_deref(), format!("{:?}", key.algorithm))).collect();
    assert_eq!(keys, [(None, "HS512".into()), (Some("pem"), "ES256".into()), (Some("set"), "HS256".into())]);
    assert!(
        matches!(&config.tenants[0].auth.keys[0].material, KeyMaterial::Secret(secret) if secret.0 == SECRET.as_bytes())
    );
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert_says(&config.warnings[0], &["acme.toml: auth.jwks_file: keys[1] is left out", "kty"]);
}

#[test]
fn a_key_set_behind_a_url_is_fetched_later_and_its_query_is_not_shown() {
    for url in
        ["https://id.example/jwks?key=hunter2", "http://127.0.0.1:1/jwks", "http://localhost/jwks", "http://[::1]/"]
    {
        let text = keys(&format!("jwks_url = \"{url}\"\njwks_refresh_ms = 60000\njwks_ends_connections = true"));
        let config = Files::with_tenant("acme", &text).load(&[], &[]).unwrap();
        let auth = &config.tenants[0].auth;
        assert!(auth.all_keys().next().is_none() && auth.key_sets_end_connections);
        assert_eq!((auth.key_set_refresh.as_secs(), auth.key_sets.len()), (60, 1));
        assert!(!format!("{auth:?} {}", auth.key_sets[0].source).contains("hunter2"));
    }
}

#[test]
fn what_is_allowed_but_dangerous_is_warned_of() {
    let text = keys("anonymous = true\n[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"weak\"")
        .replace("name = \"acme\"", "name = \"acme\"\norigins = [\"*\"]")
        .replace("\"authorizer\"", "\"handler\"");
    let files = Files::with_tenant("acme", &text);
    assert_eq!(files.load(&[], &[]).unwrap_err().len(), 1);
    let warnings = files.load(&[], &[("POSTERN_DEMO", "1")]).unwrap().warnings.join("\n");
    assert_says(
        &warnings,
        &["the tenant acme lets clients in without a token", "4 bytes", "every web page", "no authorizer"],
    );

    let files =
        Files::with_tenant("acme", &tenant_text("", "").replace(SECRET, "demo-only-and-longer-than-thirty-two-bytes"));
    assert_says(&files.load(&[], &[]).unwrap().warnings.join("\n"), &["public secret of an example"]);
    assert_eq!(files.load(&[("demo", "true")], &[]).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn no_debug_output_shows_a_secret() {
    let files = Files::with_tenant("acme", &tenant_text(&format!("backend_token = \"{SECRET}\""), ""));
    let config = files.load(&[("redis-url", "redis://:hunter2@r")], &[]).unwrap();
    assert_eq!(config.redis_url.as_ref().unwrap().as_str(), "redis://:hunter2@r");
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains(SECRET));
    assert!(!shown.contains(&format!("{:?}", SECRET.as_bytes())));
}

/// A copy of the example tenants beside empty components.
fn examples() -> Files {
    let files = Files::new();
    std::fs::create_dir_all(files.path("target/components")).unwrap();
    std::fs::create_dir_all(files.path("examples/tenants")).unwrap();
    for plugin in
        ["room-authorization", "visitor-approvals", "task-updates", "typing-status", "chat", "event-routing", "bench"]
    {
        files.put(&format!("target/components/{plugin}.wasm"), "");
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tenants");
    for path in tenant::files(&dir).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap();
        files.put(&format!("examples/tenants/{name}"), &std::fs::read_to_string(&path).unwrap());
    }
    files
}

#[test]
fn the_examples_are_right_and_check_says_what_is_in_them() {
    let files = examples();
    let flags =
        Flags::from([("tenants", files.path("examples/tenants").display().to_string()), ("demo", "true".into())]);
    let config = load(&flags, &environment(&[])).unwrap();
    let summary = check::summary(&config);
    assert_says(
        &summary,
        &["all is well: 4 tenants, 11 plugins", "tenant green-valley: keys HS256", "handler visitor-approvals"],
    );
    assert!(!summary.contains("warning"), "{summary}");
    let told = check::check(&flags, &environment(&[])).unwrap_err().to_string();
    assert_says(&told, &["bench.toml", "plugins.bench-handler.component", "this is not a WebAssembly component"]);
    let bench = config.tenants.iter().find(|tenant| tenant.id.as_str() == "bench").unwrap();
    assert_eq!((bench.limits.messages_per_minute, bench.limits.connections_per_user), (None, 100_000));
}

/// The arguments of `postern token`, as the command line reads them.
fn token_args(files: &Files, more: &[&str]) -> TokenArgs {
    use clap::Parser as _;
    let tenants = files.path("examples/tenants").display().to_string();
    let args = ["postern", "token", "--tenants", &tenants];
    match Cli::try_parse_from(args.iter().chain(more)).unwrap().command {
        Command::Token(args) => args,
        _ => panic!("not token"),
    }
}

#[test]
fn a_token_made_on_the_command_line_lets_its_bearer_in() {
    let files = examples();
    let args = [
        "--tenant",
        "green-valley",
        "--sub",
        "42",
        "--claim",
        "role=resident",
        "--claim",
        "flats=[\"A-101\"]",
        "--ttl",
        "15m",
    ];
    let issued = token(&token_args(&files, &args), &environment(&[]), 1_000).unwrap();
    assert_eq!(issued.refusal, None);
    let flags = Flags::from([("tenants", files.path("examples/tenants").display().to_string())]);
    let tenant =
        load_tenant(&flags, &environment(&[]), &crate::tenant::TenantId::parse("green-valley").unwrap()).unwrap();
    let verifier = crate::decision::token::Verifier::new(&tenant.id, &tenant.auth).unwrap();
    let identity = verifier.verify(&issued.token, 1_000).unwrap();
    let expected = serde_json::json!({
        "sub": "42", "tenant": "green-valley", "role": "resident", "flats": ["A-101"], "iat": 1_000, "exp": 1_900,
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&identity.claims).unwrap(), expected);
}

#[test]
fn a_token_that_cannot_be_made_or_would_be_refused_says_why() {
    let files = examples();
    let make = |more: &[&str]| token(&token_args(&files, more), &environment(&[]), 1_000_000);
    let failure = |more: &[&str]| make(more).unwrap_err().to_string();
    assert_says(&failure(&["--tenant", "nobody", "--sub", "a"]), &["nobody.toml: cannot read"]);
    assert_says(&failure(&["--tenant", "Nobody", "--sub", "a"]), &["tenant's name"]);
    assert_says(&failure(&["--tenant", "bench", "--sub", "a", "--key", "x"]), &["no shared secret", "\"x\""]);
    assert_says(&failure(&["--tenant", "bench", "--sub", "a", "--claim", "tenant=x"]), &["--tenant"]);
    let past = make(&["--tenant", "bench", "--sub", "a", "--claim", "exp=7"]).unwrap();
    assert_says(&past.refusal.unwrap(), &["expired"]);
}

#[test]
fn tenants_can_be_read_again() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    let config = files.load(&[], &[]).unwrap();
    assert_eq!(tenant(&tenant_text("", "")).id, config.tenants[0].id);
    files.put("tenants/second.toml", &tenant_text("", "").replace("\"acme\"", "\"second\""));
    assert_eq!(load_tenants(&config, &environment(&[])).unwrap().0.len(), 2);
    files.put("tenants/second.toml", "name = 7");
    assert!(load_tenants(&config, &environment(&[])).is_err());
}

#[test]
fn an_operators_token_that_can_be_guessed_is_refused_and_never_shown() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    let mistakes = files.load(&[], &[("POSTERN_ADMIN_TOKEN", "hunter2")]).unwrap_err();
    assert_says(&mistakes[0], &["environment: POSTERN_ADMIN_TOKEN", "32 or more", "has 7 bytes"]);
    assert!(!mistakes[0].contains("hunter2"));
    let config = files.load(&[], &[("POSTERN_ADMIN_TOKEN", TOKEN)]).unwrap();
    assert_eq!(config.admin_token.as_ref().map(|token| token.0.as_slice()), Some(TOKEN.as_bytes()));
    assert!(!format!("{config:?}").contains(TOKEN));
}

#[test]
fn signature_keys_are_read_in_both_forms_and_mistakes_are_named() {
    const RAW: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----";
    let key = |id: &str, key: &str| format!("[[signature_keys]]\nid = \"{id}\"\npublic_key = \"\"\"{key}\"\"\"\n");
    let both = tenant(&tenant_text("require_signature = true", &(key("ci", RAW) + &key("by.hand", pem))));
    assert!(both.require_signature);
    assert_eq!(both.signature_keys.iter().map(|key| &*key.id).collect::<Vec<_>>(), ["ci", "by.hand"]);
    assert_eq!(both.signature_keys[0].public_key, both.signature_keys[1].public_key);
    assert!(!tenant(&tenant_text("", "")).require_signature);
    for (keys, parts) in [
        (key("ci", RAW) + &key("ci", RAW), &["signature_keys[1]", "\"ci\" is given twice"][..]),
        (key("c i", RAW), &["signature_keys[0].id", "letters, digits"]),
        (key("ci", "AAAA"), &["signature_keys[0].public_key", "these are not 32"]),
        ("[[signature_keys]]\nid = \"ci\"".into(), &["signature_keys[0]: `id` and `public_key` are needed"]),
    ] {
        assert_says(&mistake(&tenant_text("", &keys)), parts);
    }
}

#[test]
fn what_tenants_may_do_over_the_admin_api_is_read() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    assert_eq!(files.load(&[], &[]).unwrap().admin, AdminLimits::default());
    let path = files.path("postern.toml").display().to_string();
    files.put(
        "postern.toml",
        "[admin]\nchanges_per_minute = 7\nuploads_per_hour = 5\nwrong_tokens_per_minute = 9\ncomponent_bytes_per_tenant = 1048576\n",
    );
    let admin = files.load(&[("config", &path)], &[]).unwrap().admin;
    assert_eq!((admin.changes_per_minute.get(), admin.uploads_per_hour.get()), (7, 5));
    assert_eq!(admin.wrong_tokens_per_minute.get(), 9);
    assert_eq!(admin.component_bytes_per_tenant, 1 << 20);
    files.put("postern.toml", "[admin]\nuploads_per_hour = 0\nuploads = 3\n");
    let mistakes = files.load(&[("config", &path)], &[]).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes[0].contains("admin.uploads_per_hour: must be an integer from 1 to 100000"), "{mistakes:?}");
}

#[test]
fn the_plugin_hosts_settings_are_read_and_the_cache_lies_beside_the_data() {
    let files = Files::with_tenant("acme", &tenant_text("", ""));
    let config = files.load(&[("data", "/var/lib/postern")], &[]).unwrap().plugins;
    let cache = config.code_cache.clone().unwrap();
    assert_eq!((cache.dir, cache.bytes_max), ("/var/lib/postern/code-cache".into(), 1 << 30));
    let settings = "[plugins]\ncomponent_bytes_max = 1048576\ncompile_ms_max = 5000\ncompilations = 2\n\
        compile_memory_bytes_max = 536870912\ninstances = 10\nmemory_bytes_max = 33554432\ncode_cache_bytes = 0\n";
    files.put("postern.toml", settings);
    let path = files.path("postern.toml").display().to_string();
    let config = files.load(&[("config", &path)], &[]).unwrap().plugins;
    assert_eq!((config.component_bytes_max, config.compile_ms_max, config.compilations), (1 << 20, 5_000, 2));
    assert_eq!((config.compile_memory_bytes_max, config.instances, config.memory_bytes_max), (512 << 20, 10, 32 << 20));
    assert_eq!(config.code_cache, None);
    files.put("postern.toml", "[plugins]\ncode_cache_dir = \"cache\"\n");
    let config = files.load(&[("config", &path)], &[]).unwrap().plugins;
    assert_eq!(config.code_cache.unwrap().dir, files.path("cache"));
    files.put("postern.toml", "[plugins]\ncompilations = 0\nfast = true\n");
    let mistakes = files.load(&[("config", &path)], &[]).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes[0].contains("plugins.compilations: must be an integer from 1 to 64"), "{mistakes:?}");
    assert!(mistakes[1].contains("there is no setting `fast` here"), "{mistakes:?}");
}
