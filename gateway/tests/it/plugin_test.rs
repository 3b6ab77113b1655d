//! `postern plugin test`, as a developer of plugins uses it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::first_plugin::{SCENARIOS, blocks};
use crate::support::{components, root};

/// What a run said.
pub(crate) struct Tested {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Tested {
    fn says(&self, text: &str) {
        assert!(self.out.contains(text) || self.err.contains(text), "{text:?} is not said:\n{self:?}");
    }

    fn ends(&self, code: i32) -> &Tested {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

impl std::fmt::Debug for Tested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {:?}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.out, self.err)
    }
}

/// Runs `postern plugin test`.
pub(crate) fn tested(args: &[&str]) -> Tested {
    let mut postern = Command::new(env!("CARGO_BIN_EXE_postern"));
    postern.args(["plugin", "test"]).args(args).current_dir(root());
    let output = postern.output().expect("postern runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Tested { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// The whole scenarios of the page about them, each with the plugin that it is of.
pub(crate) fn scenarios_of_the_page() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(root().join(SCENARIOS)).unwrap();
    let whole = blocks(&page).into_iter();
    whole.filter_map(|(info, text)| Some((info.strip_prefix("toml ")?.to_owned(), text))).collect()
}

/// Scenario files that are gone with it.
struct Files {
    dir: TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    fn new() -> Files {
        Files { dir: tempfile::tempdir().unwrap(), paths: Vec::new() }
    }

    fn add(&mut self, name: &str, text: &str) -> &mut Files {
        let path = self.dir.path().join(format!("{name}.scenario.toml"));
        std::fs::write(&path, text).unwrap();
        self.paths.push(path);
        self
    }

    fn run(&self, component: &str, args: &[&str]) -> Tested {
        let component = components().join(format!("{component}.wasm"));
        let scenarios = self.paths.iter().flat_map(|path| ["--scenario", path.to_str().unwrap()]);
        let all: Vec<_> =
            [component.to_str().unwrap()].into_iter().chain(scenarios).chain(args.iter().copied()).collect();
        tested(&all)
    }
}

/// Runs one scenario with the plugin that misbehaves on demand.
fn harm(text: &str, args: &[&str]) -> Tested {
    let mut files = Files::new();
    files.add("one", text).run("test-harm", &[&["--role", "handler"], args].concat())
}

/// A scenario of asha and ravi.
fn scenario(steps: &str) -> String {
    format!("[users.asha]\n[users.ravi]\n{steps}")
}

#[test]
fn a_visitor_has_one_outcome_however_time_passes() {
    let mut files = Files::new();
    files.paths.push(root().join("plugins/visitor-approvals/tests/timeout.scenario.toml"));
    let told = files.run("visitor-approvals", &[]);
    told.ends(0).says("ok     visitor-approvals: timeout: 10 steps, ");
    told.says(" of 16 MiB");
    told.says("1 scenario, all as expected");
}

#[test]
fn every_expectation_that_does_not_hold_is_told_with_the_difference() {
    let count = "[[steps]]\nuser = \"asha\"\nevent = \"count\"\n";
    let timer = "[[steps]]\nuser = \"asha\"\nevent = \"set_timer\"\ndata = { name = \"t\", after_ms = 1000 }\n";
    let join = "[[steps]]\nuser = \"asha\"\nevent = \"join_me\"\ndata = { room = \"red\" }\n";
    let order = |event: &str| format!("[[steps]]\nuser = \"asha\"\nevent = \"{event}\"\n");
    let pass = format!("{timer}[[steps]]\nadvance = \"1s\"\n");
    let cases = [
        ("reply", format!("{count}expect.reply = 2"), vec!["- 2", "+ 1"]),
        ("reply", format!("{count}expect.no_reply = true"), vec!["- (nothing)", "+ 1"]),
        (
            "published",
            format!("{pass}expect.published = [{{ room = \"everyone\", event = \"other\" }}]"),
            vec![r#"- {"event":"other","room":"everyone"}"#, r#"+ {"data":{"name":"t"},"event":"fired""#],
        ),
        ("published", format!("{pass}expect.published = []"), vec!["- (nothing)", "+ {\"data\""]),
        (
            "joined",
            format!("{join}expect.joined = [{{ user = \"asha\", room = \"blue\" }}]"),
            vec![r#"- {"room":"blue","user":"asha"}"#, r#""room":"red","user":"asha"}"#],
        ),
        (
            "left",
            format!("{join}[[steps]]\nuser = \"asha\"\nleave = \"red\"\nexpect.left = []"),
            vec!["- (nothing)", r#"+ {"room":"red","user":"asha"}"#],
        ),
        (
            "disconnected",
            format!("{}data = {{ room = \"user:ravi\" }}\nexpect.disconnected = [\"asha\"]", order("kick")),
            vec![r#"- {"user":"asha"}"#, r#"+ {"code":"kicked","message":"as ordered","user":"ravi"}"#],
        ),
        (
            "refused",
            format!("{}expect.refused = \"full\"", order("refuse")),
            vec![r#"- {"code":"full"}"#, r#"+ {"code":"refused","message":"as ordered"}"#],
        ),
        ("refused", format!("{count}expect.refused = \"full\""), vec![r#"- {"code":"full"}"#, r#"+ "ok""#]),
        (
            "failed",
            format!("{}expect.failed = \"memory\"", order("trap")),
            vec![r#"- "memory""#, r#"+ {"failed":"trap""#],
        ),
        ("fired", format!("{pass}expect.fired = [\"u\"]"), vec![r#"- "u""#, r#"+ "t""#]),
        ("state", format!("{count}expect.state = {{ n = 2 }}"), vec![r#"- {"n":2}"#, r#"+ {"n":1}"#]),
        ("state_absent", format!("{count}expect.state_absent = [\"n\"]"), vec![r#"+ {"n":1}"#]),
        ("timers", format!("{timer}expect.timers = {{}}"), vec!["- {}", r#"+ {"t":"1s"}"#]),
        ("timers", format!("{timer}expect.timers = {{ t = \"2s\" }}"), vec![r#"- {"t":"2s"}"#, r#"+ {"t":"1s"}"#]),
        (
            "logged",
            format!("{}data = {{ n = 1 }}\nexpect.logged = [\"line 1\"]", order("log_flood")),
            vec![r#"- "line 1""#, r#"+ "info: line 0""#],
        ),
        ("runs", format!("{count}expect.runs = 2"), vec!["- 2", "+ 1"]),
        ("conflict", format!("{}conflict = 1", order("count_add")), vec!["- 1", "nothing else was committed"]),
        ("keep", format!("{count}keep.id = \"/id\""), vec![r#"- "/id""#, "+ 1"]),
        // What nobody said anything of is not overlooked either.
        ("ended", order("refuse"), vec![r#"- "ok""#, r#"+ {"refused":{"code":"refused""#]),
        (
            "ended",
            order("fatal"),
            vec![r#"- "ok""#, r#"+ {"failed":"fatal""#, "logged    error: the gateway: plugin `"],
        ),
        ("ended", "[[steps]]\nhttp = \"unheard of\"\n".to_owned(), vec![r#"- "ok""#, r#"+ {"failed":"fatal""#]),
    ];
    let mut files = Files::new();
    for (index, (_, steps, _)) in cases.iter().enumerate() {
        files.add(&format!("case-{index:02}"), &scenario(steps));
    }
    let told = files.run("test-harm", &["--role", "handler"]);
    told.ends(1).says(&format!("{0} of {0} scenarios failed", cases.len()));
    for (index, (aspect, steps, differences)) in cases.iter().enumerate() {
        let (_, rest) =
            told.out.split_once(&format!("FAILED test-harm: case-{index:02}: ")).expect("each has its line");
        let own = rest.split("FAILED").next().unwrap();
        let line = own.lines().nth(1).unwrap();
        assert!(line.ends_with(&format!(": {aspect}")), "{steps}\n{own}");
        assert!(line.contains(&format!("case-{index:02}.scenario.toml:")) && line.contains("step "), "{own}");
        for difference in differences {
            assert!(own.contains(difference), "{difference:?} is not told\n{steps}\n{own}");
        }
    }
}

#[test]
fn a_component_that_loops_fills_memory_or_traps_is_stopped_as_in_production() {
    let told = harm(
        &scenario(
            r#"
            [call_limits]
            cpu_ms = 20
            [[steps]]
            user = "asha"
            event = "loop"
            expect.failed = "cpu_time"
            expect.logged = ["call_limits.cpu_ms = 20"]
            [[steps]]
            user = "asha"
            event = "memory"
            expect.failed = "memory"
            expect.logged = ["call_limits.memory_bytes"]
            [[steps]]
            http = "publish_then_trap"
            expect.failed = "trap"
            expect.published = []
            "#,
        ),
        &[],
    );
    told.ends(0);
    // It had all of what an instance may have.
    told.says(", 16 of 16 MiB");
}

#[test]
fn timers_fire_when_they_are_due_also_those_that_timers_set_and_no_more_than_so_many() {
    let breed = r#"
        [[steps]]
        user = "asha"
        event = "breed"
        expect.timers = { breed-a = "1ms", breed-b = "1ms" }
        [[steps]]
        advance = "2ms"
        expect.fired = ["breed-a", "breed-b", "breed-a-a", "breed-a-b", "breed-b-a", "breed-b-b"]
        expect.state = { fired = 6 }
        "#;
    harm(&scenario(breed), &[]).ends(0);
    let told = harm(&scenario(&format!("{breed}[[steps]]\nadvance = \"1d\"\n")), &[]);
    told.ends(1).says("more than 1000 timers fired while the clock was moved once");
}

#[test]
fn a_timer_whose_handler_fails_is_tried_again_in_virtual_time_and_given_up() {
    let told = harm(
        &scenario(
            r#"
            [[steps]]
            user = "asha"
            event = "set_timer"
            data = { name = "trap-1", after_ms = 1000 }
            [[steps]]
            advance = "1s"
            expect.fired = ["trap-1"]
            expect.failed = "trap"
            [[steps]]
            advance = "999ms"
            expect.fired = []
            [[steps]]
            advance = "1h"
            expect.fired = ["trap-1", "trap-1", "trap-1", "trap-1"]
            expect.failed = "trap"
            expect.timers = {}
            "#,
        ),
        &[],
    );
    told.ends(0);
}

#[test]
fn a_handler_whose_reads_have_changed_runs_again_and_comes_to_the_same() {
    let steps = |conflicts: u32, runs: u32| {
        let text = "[[steps]]\nuser = \"asha\"\nevent = \"count\"\n";
        scenario(&format!("{text}conflict = {conflicts}\nexpect = {{ reply = 1, state = {{ n = 1 }}, runs = {runs} }}"))
    };
    let mut files = Files::new();
    files.add("none", &steps(0, 1)).add("two", &steps(2, 3));
    // The last attempt of those that there may be.
    files.add("seven", &steps(7, 8));
    let gave_up = "[[steps]]\nuser = \"asha\"\nevent = \"count\"\nconflict = 8\n";
    files.add(
        "eight",
        &scenario(&format!("{gave_up}expect = {{ refused = \"conflict\", state_absent = [\"n\"], runs = 8 }}")),
    );
    files.run("test-harm", &["--role", "handler"]).ends(0);
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once_with_their_lines() {
    let mut files = Files::new();
    files.add(
        "first",
        "[users.asha]\n[call_limits]\nbreaker = {}\n[[steps]]\nuser = \"asha\"\nevnt = \"x\"\n\
         [[steps]]\nuser = \"eve\"\nevent = \"x\"\n[[steps]]\nadvance = \"soon\"\n",
    );
    files.add(
        "second",
        "now = \"today\"\n[users.asha]\n[[steps]]\nuser = \"asha\"\nevent = \"join_room\"\n\
         [[steps]]\nhttp = \"x\"\ndata_json = \"{\"\nexpect = { rply = 1 }\n\
         [[steps]]\nuser = \"asha\"\nevent = \"x\"\ndata = \"${id}\"\nevent_json = 1\nexpect.failed = \"loop\"\n",
    );
    let told = files.run("test-harm", &["--role", "handler"]);
    told.ends(2);
    for mistake in [
        "first.scenario.toml:3: call_limits.breaker: counts by the clock on the wall",
        "first.scenario.toml:4: steps[0]: a step does one thing: one of event, http, connect",
        "first.scenario.toml:6: steps[0].evnt: there is no setting `evnt` here",
        "first.scenario.toml:8: steps[1].user: must be one of [users], which are: asha, not \"eve\"",
        "first.scenario.toml:11: steps[2].advance: must be a time of ten years at most",
        "second.scenario.toml:1: now: must be a point in time",
        "second.scenario.toml:5: steps[0].event: must be an event of the tenant's",
        "second.scenario.toml:8: steps[1].data_json: must be JSON",
        "second.scenario.toml:9: steps[1].expect.rply: there is no setting `rply` here",
        "second.scenario.toml:10: steps[2]: `${id}` is not kept by an earlier step",
        "second.scenario.toml:14: steps[2].event_json: there is no setting",
        "second.scenario.toml:15: steps[2].expect.failed: must be one of trap, fatal, cpu_time,",
        "12 mistakes",
    ] {
        told.says(mistake);
    }
    assert_eq!(told.out, "", "nothing is run");
}

#[test]
fn a_scenario_comes_to_the_same_each_time_but_for_what_is_measured() {
    let mut files = Files::new();
    files.paths.push(root().join("plugins/visitor-approvals/tests/timeout.scenario.toml"));
    let run = || {
        let told = files.run("visitor-approvals", &["--json"]);
        let mut played: Value = serde_json::from_str(told.ends(0).out.trim()).unwrap();
        let measured = played["measured"].take();
        assert!(measured["cpu_us"].as_u64().unwrap() > 0 && measured["memory_peak_bytes"].as_u64().unwrap() > 0);
        played.to_string()
    };
    let first = run();
    assert_eq!(first, run());
    assert!(first.contains(r#""passed":true"#) && first.contains(r#""at_ms":1767258120000"#), "{first}");
}

#[test]
fn everything_that_happens_can_be_seen_also_that_a_room_is_empty() {
    let told = harm(
        &scenario(
            r#"
            [[steps]]
            user = "asha"
            join = "red"
            [[steps]]
            user = "asha"
            event = "whisper"
            data = { room = "red" }
            [[steps]]
            user = "asha"
            event = "whisper"
            data = { room = "rde" }
            expect.published = [{ room = "rde", event = "whispered", data = 1, ephemeral = true }]
            "#,
        ),
        &["--print"],
    );
    told.ends(0);
    for line in [
        ": ravi comes in\n  published came to watch:1: ",
        "  joined    asha: red\n",
        "  published whispered to red: 1 (ephemeral)\n",
        "  published whispered to rde: 1 (ephemeral) (nobody is in it)\n",
    ] {
        told.says(line);
    }
}

#[test]
fn an_authorizer_is_asked_who_may_come_and_join() {
    let mut files = Files::new();
    files.add(
        "doors",
        r#"
        relay = ["note"]
        [users.asha]
        teams = ["red"]
        [users.gita]
        role = "guard"
        society_id = "gv"
        [[steps]]
        user = "asha"
        connect = true
        expect.joined = [{ user = "asha", room = "team:red", publish = true }]
        [[steps]]
        user = "asha"
        join = "team:blue"
        expect.refused = { code = "forbidden", message = "the token does not list this team" }
        [[steps]]
        user = "asha"
        join = "task:7"
        data = { project_id = "p1" }
        expect.refused = "forbidden"
        [[steps]]
        user = "asha"
        event = "note"
        data = { room = "team:red", text = "hello" }
        expect.published = [{ room = "team:red", event = "note" }]
        [[steps]]
        user = "asha"
        event = "note"
        data = { room = "society:gv", text = "hello" }
        expect.refused = "forbidden"
        [[steps]]
        user = "asha"
        leave = "team:red"
        [[steps]]
        user = "asha"
        event = "note"
        data = { room = "team:red", text = "hello" }
        expect.refused = "forbidden"
        "#,
    );
    files.run("room-authorization", &[]).ends(0);
}

#[test]
fn plugins_beside_the_tested_one_are_those_of_a_tenants_file() {
    let access = components().join("room-authorization.wasm");
    let told = harm(
        &format!(
            r#"
            [users.asha]
            channels = ["general"]
            [[plugins]]
            name = "access"
            role = "authorizer"
            component = {access:?}
            [[steps]]
            user = "asha"
            join = "channel:general"
            expect.joined = [{{ user = "asha", room = "channel:general", publish = true }}]
            [[steps]]
            user = "asha"
            join = "channel:secret"
            expect.refused = "forbidden"
            "#
        ),
        &[],
    );
    told.ends(0);
}

#[test]
fn a_router_says_which_of_the_plugins_beside_it_sees_an_event() {
    let harm = components().join("test-harm.wasm");
    let mut files = Files::new();
    files.add(
        "routes",
        &format!(
            r#"
            [settings.routes]
            count = "one"
            refuse = ["other", "one"]
            note = "broadcast"
            [users.asha]
            [[plugins]]
            name = "one"
            role = "handler"
            component = {harm:?}
            [[plugins]]
            name = "other"
            role = "handler"
            component = {harm:?}
            [[steps]]
            user = "asha"
            event = "count"
            expect.reply = 1
            [[steps]]
            user = "asha"
            event = "note"
            data = "hello"
            expect.published = [{{ room = "everyone", event = "note", data = "hello" }}]
            [[steps]]
            user = "asha"
            event = "refuse"
            expect.refused = "refused"
            [[steps]]
            user = "asha"
            event = "trap"
            expect.refused = "unknown_event"
            "#
        ),
    );
    files.run("event-routing", &[]).ends(0);
}

#[test]
fn an_event_that_nothing_handles_is_told_with_those_that_are_handled() {
    let mut files = Files::new();
    files.add("slip", "[users.asha]\n[[steps]]\nuser = \"asha\"\nevent = \"visit_aproved\"\n");
    let told = files.run("visitor-approvals", &[]);
    told.ends(1).says("nothing handles the event \\\"visit_aproved\\\"");
    told.says("of events, visitor-approvals handles \"");
}

#[test]
fn a_component_can_be_told_that_the_state_is_not_there() {
    let told = harm(
        &scenario(
            r#"
            [[steps]]
            user = "asha"
            event = "count"
            unavailable = true
            expect = { failed = "engine_unavailable", state_absent = ["n"] }
            [[steps]]
            user = "asha"
            event = "count"
            expect.reply = 1
            "#,
        ),
        &[],
    );
    told.ends(0);
}

#[test]
fn who_comes_and_goes_is_told_to_handlers_that_want_to_know() {
    let told = harm(
        &scenario(
            r#"
            [[steps]]
            user = "asha"
            join = "watch:1"
            [[steps]]
            user = "ravi"
            disconnect = "connection_lost"
            expect.published = []
            [[steps]]
            advance = "119s"
            expect.published = []
            [[steps]]
            advance = "1s"
            expect.published = [{ room = "watch:1", event = "went", data = { subject = "ravi", reason = "connection_lost" } }]
            [[steps]]
            user = "ravi"
            event = "count"
            expect.failed = "impossible"
            "#,
        ),
        &[],
    );
    // Connected from the beginning are those whom no step brings in.
    let late = scenario(
        "[[steps]]\nuser = \"ravi\"\nconnect = true\nexpect.published = [{ room = \"watch:1\", event = \"came\" }]\n",
    );
    told.ends(0);
    harm(&late, &[]).ends(0);
    // As what it exports first.
    let mut files = Files::new();
    files.add("refused", "[users.refused-connect]\n[[steps]]\nadvance = \"1s\"\n");
    files.run("test-harm", &[]).ends(1).says("refused-connect comes in before the first step; `connect` is the step");
}

#[test]
fn what_the_page_about_scenarios_shows_holds() {
    // The others are tried where their plugins are built.
    for plugin in ["room-authorization", "visitor-approvals"] {
        let (_, text) = scenarios_of_the_page().into_iter().find(|(of, _)| of == plugin).expect("it has one");
        let mut files = Files::new();
        files.add("page", &text).run(plugin, &[]).ends(0);
    }
}

#[test]
fn every_key_that_can_be_expected_is_on_the_page_about_scenarios() {
    let page = std::fs::read_to_string(root().join(SCENARIOS)).unwrap();
    let told = harm(&scenario("[[steps]]\nadvance = \"1s\"\nexpect = { none = 1 }\n"), &[]);
    let (_, known) = told.ends(2).err.split_once("there are ").unwrap();
    let known: Vec<_> = known.lines().next().unwrap().split(", ").collect();
    assert!(known.len() >= 15 && known.contains(&"published"), "{known:?}");
    for key in known {
        assert!(
            page.contains(&format!("`{key}`")) || page.contains(&format!("`{key} = ")),
            "`{key}` is not on the page"
        );
    }
}

#[test]
fn what_cannot_be_tested_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("text.wasm"), "no component").unwrap();
    let told = tested(&[&path("text.wasm"), "--scenario", &path("none.scenario.toml")]);
    told.ends(2).says("does not keep the contract");
    let harm = components().join("test-harm.wasm").display().to_string();
    let told = tested(&[&harm, "--role", "handler", "--scenario", &path("none.scenario.toml")]);
    told.ends(2).says("none.scenario.toml");
    told.says("1 mistake");
    assert!(!told.err.contains("1 mistakes") && !told.err.contains("[[steps]]"), "{}", told.err);
    tested(&[&harm]).ends(64).says("there is no scenario; write tests/NAME.scenario.toml");
    let no_plugin = Path::new(&path("text.wasm")).parent().unwrap().display().to_string();
    tested(&[&no_plugin]).ends(1).says("is no plugin");
    let twice = path("twice.scenario.toml");
    std::fs::write(&twice, "[[steps]]\nadvance = \"1s\"\n").unwrap();
    let told = tested(&[&harm, "--role", "handler", "--scenario", &twice, "--scenario", &twice]);
    told.ends(2).says("another scenario of the run has the same name");
    let small = "[call_limits]\nmemory_bytes = 65536\n[[steps]]\nadvance = \"1s\"\n";
    let told = self::harm(small, &[]);
    told.ends(2).says("it starts with");
    told.says("call_limits.memory_bytes = 65536");
}
