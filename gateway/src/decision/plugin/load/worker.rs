//! Compiling in a process of its own, which may be slow, grow large or crash without harm.
//!
//! The gateway starts its own program with `compile-component`, hands over the component's length and bytes and
//! reads the answer: one byte that says what it is, then the code or the text of an error. The worker inherits no
//! environment, binds itself by the system's limits before it reads, and ends when the gateway does:
//! then its standard input does.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, nice, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;
use wasmtime::Engine;

use super::super::failure::{MESSAGE_BYTES_MAX, tame};
use super::super::{HostSettings, engine};
use super::{LoadError, compile};

/// How the gateway starts the worker.
const SUBCOMMAND: &str = "compile-component";

/// How much the worker gives way to everything else on the machine.
const NICENESS: i32 = 10;

/// Threads of one worker: a component of a whole language runtime takes half a minute of computing.
const COMPILER_THREADS: usize = 2;

/// Files that the worker may have open.
const OPEN_FILES: u64 = 16;

/// The compiler's stack, in bytes.
const STACK_BYTES: usize = 64 << 20;

/// What is read of the worker's complaints, in bytes.
const STDERR_BYTES_MAX: u64 = 4 << 10;

/// What an answer begins with.
const CODE: u8 = b'+';
const INVALID: u8 = b'i';
const FEATURE: u8 = b'f';
const NO_CONTRACT: u8 = b'd';
const NO_CODE: u8 = b'e';
const OTHER_ENGINE: u8 = b'v';

/// Signals that say what happened: out of memory (Rust aborts), out of computing time.
const SIGABRT: i32 = 6;
const SIGXCPU: i32 = 24;
/// Signals that somebody else sends: hang-up, interrupt, kill, terminate.
const SENT: [i32; 4] = [1, 2, 9, 15];

/// What the gateway tells the worker.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Orders {
    /// What identifies the engine that the code is for.
    #[arg(long)]
    pub engine: u64,
    /// The memory that it may use, in bytes.
    #[arg(long)]
    pub memory_bytes: u64,
    /// The computing time that it may use, in milliseconds.
    #[arg(long)]
    pub time_ms: u64,
}

/// The program of this process, as it is on the disk or was when it started.
pub fn own_program() -> PathBuf {
    // The link leads to the same program also when the file has been replaced since.
    let link = PathBuf::from("/proc/self/exe");
    if link.exists() { link } else { std::env::current_exe().unwrap_or_default() }
}

/// What identifies an engine: code of one runs on another with the same number, and on no other.
pub(in super::super) fn code_hash(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// Validates and compiles a component in a worker.
pub(super) async fn compile(
    program: PathBuf,
    settings: HostSettings,
    engine: u64,
    component: Bytes,
) -> Result<Vec<u8>, LoadError> {
    let gateway = |error: &std::io::Error| LoadError::Gateway(format!("its compiler process: {error}"));
    let (time_ms, memory_bytes) = (settings.compile_ms_max, settings.compile_memory_bytes_max);
    let mut worker = Command::new(program)
        .arg0("postern")
        .arg(SUBCOMMAND)
        .args([format!("--engine={engine}"), format!("--memory-bytes={memory_bytes}"), format!("--time-ms={time_ms}")])
        .env_clear()
        .env("RAYON_NUM_THREADS", COMPILER_THREADS.to_string())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| gateway(&error))?;
    let (Some(mut input), Some(output), Some(complaints)) =
        (worker.stdin.take(), worker.stdout.take(), worker.stderr.take())
    else {
        return Err(LoadError::Gateway("its compiler process has no pipes".into()));
    };
    let (mut answer, mut said) = (Vec::new(), Vec::new());
    let work = async {
        let give = async {
            // A worker that has ended says why by its status.
            let _ = input.write_all(&(component.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(&component).await;
            let _ = input.flush().await;
        };
        let mut output = output.take(memory_bytes as u64 + 1);
        let take = output.read_to_end(&mut answer);
        let listen = async {
            let mut complaints = complaints;
            let _ = (&mut complaints).take(STDERR_BYTES_MAX).read_to_end(&mut said).await;
            let _ = tokio::io::copy(&mut complaints, &mut tokio::io::sink()).await;
        };
        let ((), taken, ()) = tokio::join!(give, take, listen);
        taken?;
        // Only now: without its input it would believe that we are gone.
        drop(input);
        worker.wait().await
    };
    match timeout(Duration::from_millis(time_ms), work).await {
        Ok(Ok(status)) => verdict(status, answer, &said, &settings),
        Ok(Err(error)) => Err(gateway(&error)),
        // The worker is killed as it is dropped.
        Err(_) => Err(LoadError::CompileTime { limit_ms: time_ms }),
    }
}

fn verdict(
    status: ExitStatus,
    mut answer: Vec<u8>,
    said: &[u8],
    settings: &HostSettings,
) -> Result<Vec<u8>, LoadError> {
    let limit = settings.compile_memory_bytes_max;
    if answer.len() > limit {
        return Err(LoadError::CompileMemory { limit });
    }
    let said = tame(&String::from_utf8_lossy(said), MESSAGE_BYTES_MAX);
    match (status.code(), status.signal()) {
        (Some(0), _) if !answer.is_empty() => {
            if answer[0] == CODE {
                answer.remove(0);
                return Ok(answer);
            }
            let text = tame(&String::from_utf8_lossy(&answer[1..]), MESSAGE_BYTES_MAX);
            Err(match answer[0] {
                INVALID => LoadError::NotAComponent(text),
                FEATURE => LoadError::Feature(text),
                NO_CONTRACT => LoadError::Contract(text),
                NO_CODE if text.contains("annot allocate memory") => LoadError::CompileMemory { limit },
                NO_CODE => LoadError::Compile(text),
                OTHER_ENGINE => LoadError::Gateway("the program was replaced while it runs: restart it".into()),
                _ => LoadError::Gateway("its compiler process answered something else".into()),
            })
        }
        (_, Some(SIGXCPU)) => Err(LoadError::CompileTime { limit_ms: settings.compile_ms_max }),
        (_, Some(SIGABRT)) => Err(LoadError::CompileMemory { limit }),
        (_, Some(signal)) if SENT.contains(&signal) => {
            Err(LoadError::Gateway("its compiler process was killed".into()))
        }
        (_, Some(signal)) => Err(LoadError::Compile(format!("the compiler crashed at it (signal {signal})"))),
        (Some(PANICKED), _) if said.contains("annot allocate memory") => Err(LoadError::CompileMemory { limit }),
        (Some(PANICKED), _) => Err(LoadError::Compile(format!("the compiler failed at it: {said}"))),
        (code, _) => Err(LoadError::Gateway(format!("its compiler process ended with {code:?}: {said}"))),
    }
}

/// What a Rust program that panicked ends with.
const PANICKED: i32 = 101;

/// The worker's whole life. Reads one component from standard input and answers on standard output.
///
/// # Errors
/// What kept it from answering at all.
pub fn serve(orders: Orders) -> Result<(), String> {
    bind(orders).map_err(|error| format!("cannot bound itself: {error}"))?;
    let component = read().map_err(|error| format!("cannot read the component: {error}"))?;
    std::thread::Builder::new()
        .spawn(end_with_the_gateway)
        .map_err(|error| format!("cannot watch the gateway: {error}"))?;
    let compiler = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || answer(orders, &component))
        .map_err(|error| format!("cannot start the compiler: {error}"))?;
    let Ok((kind, bytes)) = compiler.join() else {
        // What it said stands on standard error.
        std::process::exit(PANICKED);
    };
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&[kind]).and_then(|()| out.write_all(&bytes)).and_then(|()| out.flush());
    written.map_err(|error| format!("cannot answer: {error}"))
}

fn answer(orders: Orders, component: &[u8]) -> (u8, Vec<u8>) {
    let engine = match engine::compiler() {
        Ok(engine) if code_hash(&engine) == orders.engine => engine,
        Ok(_) => return (OTHER_ENGINE, Vec::new()),
        Err(error) => return (NO_CODE, error.to_string().into_bytes()),
    };
    match compile::judge(&engine, component) {
        Ok(code) => (CODE, code),
        Err(LoadError::NotAComponent(why)) => (INVALID, why.into_bytes()),
        Err(LoadError::Feature(which)) => (FEATURE, which.into_bytes()),
        Err(LoadError::Contract(differences)) => (NO_CONTRACT, differences.into_bytes()),
        Err(LoadError::Compile(why)) => (NO_CODE, why.into_bytes()),
        Err(other) => (NO_CODE, other.to_string().into_bytes()),
    }
}

/// No more memory and time than ordered, no file written, no core dumped.
fn bind(orders: Orders) -> std::io::Result<()> {
    let seconds = orders.time_ms.saturating_mul(COMPILER_THREADS as u64).div_ceil(1_000).max(1);
    for (resource, limit) in [
        (Resource::As, orders.memory_bytes),
        (Resource::Cpu, seconds),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, OPEN_FILES),
    ] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    nice(NICENESS)?;
    Ok(())
}

fn read() -> std::io::Result<Vec<u8>> {
    let mut input = std::io::stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut component = Vec::new();
    input.take(length).read_to_end(&mut component)?;
    if component.len() as u64 == length { Ok(component) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// The gateway keeps the worker's input open as long as it waits for the answer.
fn end_with_the_gateway() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    std::process::exit(0);
}
