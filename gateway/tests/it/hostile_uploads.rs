//! Uploads that mean harm: what stops each, with which words, and that the gateway goes on.
//!
//! Everything goes through `Host::check` with the compiler in a process of its own, as the admin API does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern::cli::plugin_build::contract;
use postern::client::{Client, ConnectionId, Identity};
use postern::commit::CommitId;
use postern::decision::plugin::{
    CallError, Checked, CodeCache, Compiler, Host, HostSettings, Invocation, LoadError, Plugin, Signature, Transaction,
    UploadPolicy, inspect, public_key, sign,
};
use postern::engine::embedded::{EmbeddedEngine, Options};
use postern::event::{Event, Payload};
use postern::tenant::{CallLimits, PluginSettings, Role, SignatureKey, TenantId};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::bombs::{
    COMPONENT, CORE, body, branches, component_of, core, described, jumps, leb, tangle, with_section,
};

pub(crate) const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----";
pub(crate) const PUBLIC_KEY: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

fn good() -> Bytes {
    std::fs::read(crate::support::components().join("bench.wasm")).unwrap().into()
}

fn worker() -> Compiler {
    Compiler::Worker(PathBuf::from(env!("CARGO_BIN_EXE_postern")))
}

fn small() -> HostSettings {
    HostSettings { threads: 2, instances: 16, compiler: worker(), ..HostSettings::default() }
}

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn plugin_settings(name: &str) -> PluginSettings {
    PluginSettings {
        name: name.into(),
        role: Role::Handler,
        component: "".into(),
        events: None,
        settings: Default::default(),
        instances: Default::default(),
        limits: Default::default(),
    }
}

async fn check(host: &Arc<Host>, bytes: impl Into<Bytes>) -> Result<Checked, LoadError> {
    let policy = UploadPolicy {
        plugin: &plugin_settings("rules"),
        limits: &CallLimits::default(),
        signature_keys: &[],
        require_signature: false,
        signature: None,
    };
    host.check(&acme(), &policy, bytes.into()).await
}

async fn load(host: &Arc<Host>, tenant: &str, bytes: Bytes) -> Result<Arc<Plugin>, LoadError> {
    host.load(&TenantId::parse(tenant).unwrap(), &plugin_settings("rules"), &CallLimits::default(), bytes).await
}

/// A host on which a neighbour's plugin runs.
struct Neighbourhood {
    host: Arc<Host>,
    neighbour: Arc<Plugin>,
}

impl Neighbourhood {
    async fn new(settings: HostSettings) -> Neighbourhood {
        let host = Host::new(settings).unwrap();
        let neighbour = load(&host, "neighbour", good()).await.unwrap();
        Neighbourhood { host, neighbour }
    }

    /// Why the upload is not taken; the neighbour's plugin answers afterwards as before.
    async fn refusal(&self, bytes: impl Into<Bytes>) -> LoadError {
        let error = check(&self.host, bytes).await.unwrap_err();
        answers(&self.neighbour).await;
        error
    }
}

async fn answers(plugin: &Plugin) {
    assert_eq!(echoed(plugin).await, Ok(Some(json!("hello"))));
}

/// What it answers to an `echo` of `hello`.
async fn echoed(plugin: &Plugin) -> Result<Option<Value>, CallError> {
    let engine = EmbeddedEngine::in_memory(Options::default()).unwrap();
    let invocation = Invocation { id: CommitId::random(), attempt: 1, now: 1_700_000_000_000 };
    let mut tx = Transaction::new(engine, plugin.tenant.clone(), Arc::new(CallLimits::default()), invocation);
    let sender = Client {
        connection: ConnectionId::from("c1"),
        identity: Identity { subject: "bob".into(), claims: "{}".into(), expires_at_s: None, key: None },
        namespace: "/".into(),
    };
    let event =
        Event { name: "echo".into(), namespace: "/".into(), data: Payload::one(&json!("hello")), sender: Some(sender) };
    plugin.handle(&mut tx, &event).await?;
    Ok(tx.into_parts().reply.and_then(|reply| reply.first()))
}

#[tokio::test]
async fn a_good_upload_is_described_and_loads() {
    let host = Host::new(small()).unwrap();
    let bytes = good();
    let checked = check(&host, bytes.clone()).await.unwrap();
    assert_eq!((checked.digest.len(), checked.bytes, checked.signed_by), (64, bytes.len(), None));
    assert!(checked.exports.contains(&"postern:plugin/events@0.1.0".to_owned()), "{:?}", checked.exports);
    assert!(checked.imports.iter().all(|import| import.starts_with("postern:plugin/")), "{:?}", checked.imports);
    assert_eq!(checked.description.name, "bench");
    answers(&load(&host, "acme", bytes).await.unwrap()).await;
}

#[tokio::test]
async fn what_is_cut_short_anywhere_is_refused() {
    let host = Host::new(small()).unwrap();
    let whole = good();
    for twentieth in 0..20 {
        let cut = whole.slice(..whole.len() * twentieth / 20);
        let error = check(&host, cut).await.unwrap_err();
        assert!(matches!(error, LoadError::NotAComponent(_)), "{twentieth}: {error}");
    }
    answers(&load(&host, "neighbour", whole).await.unwrap()).await;
}

/// Uploads with one bit flipped.
const FLIPS: usize = 40;

#[tokio::test]
async fn flipped_bits_are_refused_or_make_another_component_and_never_break_the_host() {
    let host = Host::new(HostSettings { compilations: 2, ..small() }).unwrap();
    let whole = good();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let (mut refused, mut taken, mut answered) = (0, 0, 0);
    for _ in 0..FLIPS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut bytes = whole.to_vec();
        let at = usize::try_from(seed % whole.len() as u64).unwrap();
        bytes[at] ^= 1 << (seed >> 60 & 7);
        match check(&host, bytes.clone()).await {
            Err(error) => {
                assert!(
                    !matches!(error, LoadError::Gateway(_)),
                    "bit of byte {at}: it is not the gateway's fault: {error}"
                );
                assert!(!error.to_string().is_empty(), "bit of byte {at} is refused without a reason");
                refused += 1;
            }
            Ok(_) => {
                let plugin = load(&host, "flipped", bytes.into()).await.unwrap_or_else(|error| panic!("{at}: {error}"));
                let call = tokio::time::timeout(Duration::from_secs(10), echoed(&plugin)).await.expect("a call ends");
                answered += usize::from(call == Ok(Some(json!("hello"))));
                taken += 1;
            }
        }
    }
    println!(
        "of {FLIPS} uploads with a flipped bit {refused} were refused, {taken} load, of which {answered} answer as before"
    );
    // About half: what is taken is code that does something else, and data and names that nobody looks at. Were nothing
    // looked at but the beginning, nearly all would load; were digests compared, none.
    assert!(refused >= FLIPS / 4 && taken >= FLIPS / 8 && refused + taken == FLIPS, "{refused} refused, {taken} taken");
    answers(&load(&host, "neighbour", whole).await.unwrap()).await;
}

#[tokio::test]
async fn what_is_not_a_component_of_our_contract_is_refused_with_advice() {
    let host = Neighbourhood::new(small()).await;
    let machine_code = wasmtime::Engine::default().precompile_component(&good()).unwrap();
    let nested = with_section(COMPONENT, 4, &with_section(COMPONENT, 1, CORE));
    let future = String::from_utf8_lossy(&good()).into_owned();
    assert!(future.contains("postern:plugin/events@0.1.0"));
    let future = replaced(&good(), b"@0.1.0", b"@0.9.0");
    let wasi = "package wasi:clocks@0.2.0;
        interface wall { now: func(a: u32, b: u32); }
        interface describe { info: func() -> string; }
        world w { import wall; export describe; }";
    let wasi =
        component_of(wasi, &core(Some(("wasi:clocks/wall@0.2.0", "now")), "wasi:clocks/describe@0.2.0#info", &[]));
    for (upload, words) in [
        (machine_code, &["precompiled machine code", "upload the component it was made from"][..]),
        (CORE.to_vec(), &["core module", "postern plugin build"]),
        (nested, &["composed of several components", "each as a plugin of its own"]),
        (b"\x7fELF, or so".to_vec(), &["not a WebAssembly component"]),
        (b"{\"json\": true}".to_vec(), &["not a WebAssembly component"]),
        (future, &["built for postern:plugin@0.9.0", "this gateway speaks 0.1", "bring the gateway up to date"]),
        (wasi, &["imports `wasi:clocks/wall@0.2.0`", "there is no WASI here", "wasm32-unknown-unknown"]),
    ] {
        let error = host.refusal(upload).await.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from) {
        at += found;
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[tokio::test]
async fn a_function_that_differs_from_the_contract_is_named_with_both_signatures() {
    let host = Neighbourhood::new(small()).await;
    let own = "package postern:plugin@0.1.0; interface describe { info: func() -> u32; } world w { export describe; }";
    let upload = component_of(own, &core(None, "postern:plugin/describe@0.1.0#info", &[]));
    let error = host.refusal(upload).await;
    assert_eq!(
        error.to_string(),
        "it does not keep the contract (postern:plugin@0.1.0): postern:plugin/describe@0.1.0: the function `info` is \
         `func() -> u32`, the contract says `func() -> string`"
    );
    let own = "package postern:plugin@0.1.0;
        interface log { log: func(a: u32, b: u32); }
        interface describe { info: func() -> string; }
        world w { import log; export describe; }";
    let upload = core(Some(("postern:plugin/log@0.1.0", "log")), "postern:plugin/describe@0.1.0#info", &[]);
    let error = host.refusal(component_of(own, &upload)).await.to_string();
    assert!(error.contains("postern:plugin/log@0.1.0: the function `log` is `func(a: u32, b: u32)`"), "{error}");
    assert!(error.contains("the contract says `func("), "{error}");
}

#[test]
fn a_type_that_would_fill_the_memory_if_it_were_written_out_is_compared_at_once() {
    let mut own = String::from("package postern:plugin@0.1.0; interface log { record t0 { a: u8, b: u8 }\n");
    let field = "x".repeat(20_000);
    for n in 1..17 {
        own += &format!("record t{n} {{ {field}: t{}, b: t{} }}\n", n - 1, n - 1);
    }
    own += "write: func(all: list<t16>); }
        interface describe { info: func() -> string; }
        world w { import log; export describe; }";
    let bomb = component_of(
        &own,
        &core(Some(("postern:plugin/log@0.1.0", "write")), "postern:plugin/describe@0.1.0#info", &[]),
    );
    let started = Instant::now();
    let differences = contract::check(&bomb).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let told: usize = differences.iter().map(String::len).sum();
    assert!((1..100_000).contains(&told), "{told} bytes are told of it");
}

#[tokio::test]
async fn bombs_are_refused_before_they_are_parsed_and_the_limit_is_named() {
    let host = Neighbourhood::new(HostSettings { component_bytes_max: 32 << 20, ..small() }).await;
    let deep_types: Vec<u8> = std::iter::once(1).chain((0..3_000_000).flat_map(|_| [0x42, 1, 1])).collect();
    let deep_components = (0..1_000).fold(COMPONENT.to_vec(), |inside, _| with_section(COMPONENT, 4, &inside));
    let functions = 300_000_usize;
    let functions = [leb(functions), vec![0; functions]].concat();
    for (upload, words) in [
        (vec![0; (32 << 20) + 1], &["33554433 bytes", "plugins.component_bytes_max = 33554432"][..]),
        (
            with_section(COMPONENT, 0, &vec![0; 20 << 20]),
            &["20971520 bytes of custom sections", "at most 16777216", "strip"],
        ),
        (
            (0..5_000).fold(COMPONENT.to_vec(), |mut all, _| {
                all.extend([0, 2, 1, b'x']);
                all
            }),
            &["custom sections", "at most 2000"],
        ),
        (with_section(COMPONENT, 7, &deep_types), &["types in each other", "at most 256"]),
        (deep_components, &["components in each other", "at most 5"]),
        (with_section(COMPONENT, 1, &with_section(CORE, 3, &functions)), &["300000 functions", "at most 200000"]),
        (described(&[body(0, &vec![0x01; 2 << 20])]), &["bytes in one function", "at most 1048576", "split"]),
        (branches(1, 1_000, true), &["1000 parameters or results of one function", "at most 128", "in memory"]),
    ] {
        let started = Instant::now();
        let error = host.refusal(upload).await.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20), "{error} after {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn what_takes_too_long_or_too_much_memory_to_compile_is_stopped_and_the_setting_is_named() {
    let slow = Host::new(HostSettings { compile_ms_max: 400, ..small() }).unwrap();
    let many: Vec<Vec<u8>> = (0..20).map(|_| tangle(200_000)).collect();
    let tables: Vec<Vec<u8>> = (0..20).map(|_| jumps(2_000, 200)).collect();
    for (what, bomb) in [
        ("one huge function", described(&[tangle(1_000_000)])),
        ("many functions", described(&many)),
        ("tables of jumps", described(&tables)),
    ] {
        let started = Instant::now();
        let error = check(&slow, bomb).await.unwrap_err();
        assert_eq!(error, LoadError::CompileTime { limit_ms: 400 }, "{what}");
        assert!(error.to_string().contains("plugins.compile_ms_max = 400"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: {:?}", started.elapsed());
    }
    let narrow = HostSettings { compile_memory_bytes_max: 300 << 20, ..small() };
    let error = check(&Host::new(narrow).unwrap(), described(&many)).await.unwrap_err();
    assert_eq!(error, LoadError::CompileMemory { limit: 300 << 20 });
    assert!(error.to_string().contains("plugins.compile_memory_bytes_max = 314572800"), "{error}");
    let host = Host::new(small()).unwrap();
    answers(&load(&host, "neighbour", good()).await.unwrap()).await;
}

#[tokio::test]
async fn code_that_is_slow_to_validate_is_stopped_like_code_that_is_slow_to_compile() {
    let slow = Host::new(HostSettings { compile_ms_max: 400, ..small() }).unwrap();
    for holds in [true, false] {
        let started = Instant::now();
        let error = check(&slow, branches(12, 128, holds)).await.unwrap_err();
        assert_eq!(error, LoadError::CompileTime { limit_ms: 400 }, "holds: {holds}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_compilers_place_to_the_next() {
    let host = Host::new(HostSettings { compilations: 1, ..small() }).unwrap();
    let bomb: Bytes = branches(40, 128, true).into();
    let left = tokio::time::timeout(Duration::from_secs(2), check(&host, bomb)).await;
    assert!(left.is_err(), "it was not slow: {left:?}");
    let next = tokio::time::timeout(Duration::from_secs(20), check(&host, good())).await;
    next.expect("the place is free").unwrap();
}

#[tokio::test]
async fn an_upload_that_takes_long_to_compile_holds_up_nobodys_roll_out() {
    let host = Host::new(HostSettings { compilations: 1, ..small() }).unwrap();
    let bomb: Bytes = branches(40, 128, true).into();
    tokio::select! {
        ended = check(&host, bomb) => panic!("it was not slow: {ended:?}"),
        loaded = load(&host, "neighbour", good()) => answers(&loaded.unwrap()).await,
    }
}

/// The arguments of a worker of this process, found by one of them.
fn worker_with(argument: &str) -> Option<Vec<String>> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok()).find_map(|line| {
        let line = String::from_utf8_lossy(&line).into_owned();
        let arguments: Vec<String> = line.split('\0').map(Into::into).collect();
        arguments.iter().any(|given| given == argument).then_some(arguments)
    })
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_worker_ends_with_whoever_waits_for_it_and_with_the_gateway() {
    let argument = "--time-ms=59321";
    let host = Host::new(HostSettings { compile_ms_max: 59_321, ..small() }).unwrap();
    let bomb: Bytes = described(&(0..10).map(|_| tangle(1_000_000)).collect::<Vec<_>>()).into();
    #[expect(clippy::disallowed_methods, reason = "the caller whose going is the test")]
    let waiting = tokio::spawn({
        let (host, bomb) = (host.clone(), bomb.clone());
        async move { check(&host, bomb).await }
    });
    let mut arguments = None;
    eventually("the worker starts", || {
        assert!(!waiting.is_finished(), "it compiles");
        arguments = worker_with(argument);
        arguments.is_some()
    })
    .await;
    waiting.abort();
    eventually("the worker ends with its caller", || worker_with(argument).is_none()).await;

    // The gateway is gone when the worker's input ends.
    let arguments = arguments.unwrap();
    let mut worker = std::process::Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(arguments[1..].iter().filter(|argument| !argument.is_empty()))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = worker.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &(bomb.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut input, &bomb).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(worker.try_wait().unwrap().is_none(), "it compiles");
    drop(input);
    eventually("the worker ends with the gateway", || worker.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn a_worker_that_is_no_worker_is_the_gateways_fault_and_not_the_components() {
    for program in ["/no/such/program", "/bin/true", "/bin/cat"] {
        let host = Host::new(HostSettings { compiler: Compiler::Worker(program.into()), ..small() }).unwrap();
        let error = check(&host, good()).await.unwrap_err();
        assert!(matches!(error, LoadError::Gateway(_)) && error.is_passing(), "{program}: {error}");
    }
}

#[tokio::test]
async fn signatures_are_asked_for_and_hold_for_one_tenant_plugin_and_component() {
    let host = Host::new(small()).unwrap();
    let keys = [SignatureKey { id: "ci".into(), public_key: public_key(PUBLIC_KEY).unwrap() }];
    let digest = check(&host, good()).await.unwrap().digest;
    let signed = |tenant: &str, plugin: &str, digest: &str| {
        sign(PRIVATE_KEY, "ci", &TenantId::parse(tenant).unwrap(), plugin, digest).unwrap()
    };
    let upload = async |signature: Option<Signature>| {
        let plugin = plugin_settings("rules");
        let policy = UploadPolicy {
            plugin: &plugin,
            limits: &CallLimits::default(),
            signature_keys: &keys,
            require_signature: true,
            signature: signature.as_ref(),
        };
        host.check(&acme(), &policy, good()).await.map(|checked| checked.signed_by).map_err(|error| error.to_string())
    };
    assert_eq!(upload(Some(signed("acme", "rules", &digest))).await, Ok(Some("ci".into())));
    let other_digest = "0".repeat(64);
    for (signature, words) in [
        (None, "signed components only (require_signature = true)"),
        (Some(signed("evil", "rules", &digest)), "another tenant"),
        (Some(signed("acme", "other", &digest)), "another plugin"),
        (Some(signed("acme", "rules", &other_digest)), "made for other bytes"),
        (Some(Signature { key: "who".into(), ..signed("acme", "rules", &digest) }), "no signature key \"who\""),
        (Some(Signature { key: "ci".into(), bytes: [0; 64] }), "does not hold"),
    ] {
        let error = upload(signature).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

/// A program that can be taken away.
fn lent_worker(dir: &std::path::Path) -> (Compiler, PathBuf) {
    let program = dir.join("postern");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_postern"), &program).unwrap();
    (Compiler::Worker(program.clone()), program)
}

#[tokio::test]
async fn a_component_is_compiled_once_for_all_tenants_that_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let (compiler, program) = lent_worker(dir.path());
    let host = Host::new(HostSettings { compiler, ..small() }).unwrap();
    let first = load(&host, "one", good()).await.unwrap();
    std::fs::remove_file(program).unwrap();
    let second = load(&host, "two", good()).await.unwrap();
    answers(&second).await;
    drop((first, second));
    let error = load(&host, "three", good()).await.unwrap_err();
    assert!(matches!(error, LoadError::Gateway(_)), "nobody holds the code any more: {error}");
}

#[tokio::test]
async fn compiled_code_survives_a_restart_and_code_that_was_touched_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Some(CodeCache { dir: dir.path().join("code-cache"), bytes_max: 1 << 30 });
    let first = Host::new(HostSettings { code_cache: cache.clone(), ..small() }).unwrap();
    check(&first, good()).await.unwrap();
    first.shutdown();

    let without = HostSettings { compiler: Compiler::Worker("/no/such/program".into()), code_cache: cache, ..small() };
    let second = Host::new(without.clone()).unwrap();
    answers(&load(&second, "acme", good()).await.unwrap()).await;
    second.shutdown();

    let files = std::fs::read_dir(dir.path().join("code-cache")).unwrap().map(|entry| entry.unwrap().path());
    let code: Vec<PathBuf> = files.filter(|path| path.extension().is_some()).collect();
    let [file] = &code[..] else { panic!("{code:?}") };
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
    let third = Host::new(without.clone()).unwrap();
    let error = load(&third, "acme", good()).await.unwrap_err();
    assert!(matches!(error, LoadError::Gateway(_)), "spoilt code was not used: {error}");
    assert!(!file.exists());
    let fourth = Host::new(HostSettings { compiler: worker(), ..without }).unwrap();
    answers(&load(&fourth, "acme", good()).await.unwrap()).await;
    assert!(file.exists(), "compiled again and kept");
}

/// One change to the bytes of a component.
#[derive(Debug, Clone)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, u16),
    Repeat(prop::sample::Index, u16, u8),
    Swap(prop::sample::Index, prop::sample::Index, u8),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let span = |at: usize, length: usize, bytes: &Vec<u8>| at..(at + length).min(bytes.len());
        match self {
            Mutation::Set(at, byte) => *at.get_mut(bytes) = *byte,
            Mutation::Insert(at, more) => {
                drop(bytes.splice(at.index(bytes.len())..at.index(bytes.len()), more.clone()))
            }
            Mutation::Remove(at, length) => drop(bytes.drain(span(at.index(bytes.len()), (*length).into(), bytes))),
            Mutation::Repeat(at, length, times) => {
                let at = at.index(bytes.len());
                let piece = bytes[span(at, (*length).into(), bytes)].repeat((*times).into());
                bytes.splice(at..at, piece);
            }
            Mutation::Swap(a, b, length) => {
                let (a, b) = (a.index(bytes.len()), b.index(bytes.len()));
                let piece = bytes[span(a, (*length).into(), bytes)].to_vec();
                bytes.splice(span(b, (*length).into(), bytes), piece);
            }
        }
    }
}

/// What sections, types and names begin with: more of it makes better nonsense.
fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    let telling = prop::sample::select(vec![
        0_u8, 1, 2, 3, 4, 5, 7, 0x0b, 0x0e, 0x3f, 0x40, 0x41, 0x42, 0x50, 0x60, 0x70, 0x7f, 0x80, 0xff,
    ]);
    let piece = prop::collection::vec(prop_oneof![telling.clone(), any::<u8>()], 1..12);
    prop_oneof![
        (index(), prop_oneof![telling, any::<u8>()]).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (index(), piece).prop_map(|(at, more)| Mutation::Insert(at, more)),
        (index(), 1..200_u16).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (index(), 1..64_u16, 1..40_u8).prop_map(|(at, length, times)| Mutation::Repeat(at, length, times)),
        (index(), index(), any::<u8>()).prop_map(|(a, b, length)| Mutation::Swap(a, b, length)),
    ]
}

/// The smallest component there is, which leaves more of a mutation's chance to the interesting parts.
fn least() -> &'static [u8] {
    static LEAST: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    LEAST.get_or_init(|| described(&[]))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn looking_at_an_upload_never_fails_and_never_takes_long(
        mutations in prop::collection::vec(mutation(), 1..12), large in prop::bool::weighted(0.1),
    ) {
        let mut bytes = if large { good().to_vec() } else { least().to_vec() };
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        let started = Instant::now();
        if let Ok(surface) = inspect(&bytes, 64 << 20) {
            prop_assert!(surface.imports.iter().chain(&surface.exports).all(|name| name.starts_with("postern:plugin/")));
            let _ = contract::check(&bytes);
        }
        prop_assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
