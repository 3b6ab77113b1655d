//! One call: its instance, its limits, and what is made of its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use wasmtime::component::InstancePre;
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store, Trap, UpdateDeadline, WasmBacktrace};

use super::admission::{Admitted, slowed_down};
use super::bindings::{self, Answer, Ending, Input, Links};
use super::engine::{STACK_BYTES, TABLE_ELEMENTS_MAX};
use super::failure::{CallError, Failure, FailureKind, MESSAGE_BYTES_MAX, tame};
use super::gate::{Gate, Metered};
use super::host::Call;
use super::warm::{Seat, WarmPool};
use crate::tenant::CallLimits;

/// What one call to the gateway may carry beyond `output_bytes`, in bytes, so that a little too
/// much is answered and only a lot too much ends the call.
const OUTPUT_SLACK_BYTES: usize = 64 << 10;

/// Handles of the component model that an instance may hold; the contract has none.
const HANDLES_MAX: usize = 64;

/// Table elements, over all tables of an instance.
const TABLE_ELEMENTS_ALL_MAX: usize = 2 * TABLE_ELEMENTS_MAX;

/// Parts of the names of functions that only carry a panic out: what comes before them is what panicked.
const PANICKING: [&str; 6] =
    ["rust_abort", "rust_panic", "rust_begin_unwind", "rust_start_panic", "core::panicking::", "std::panicking::"];

/// The longest name of a function in the message of a trap, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Functions named in the message of a trap.
const FRAMES_TOLD: usize = 4;

/// Keeps an instance's memory within bounds, and remembers when it had to.
#[derive(Debug)]
pub(super) struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    table_elements: usize,
    granted: usize,
    refused: Option<Refused>,
}

#[derive(Debug, Clone, Copy)]
enum Refused {
    Memory(usize),
    Table(usize),
}

impl Limiter {
    pub(super) fn new(memory_bytes_max: usize) -> Limiter {
        Limiter { memory_bytes_max, memory_bytes: 0, table_elements: 0, granted: 0, refused: None }
    }

    /// Goes on with what an instance has already.
    pub(super) fn take_over(&mut self, before: &Limiter) {
        self.memory_bytes = before.memory_bytes;
        self.table_elements = before.table_elements;
    }

    /// All linear memories together, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        self.granted = desired.saturating_sub(current);
        let total = self.memory_bytes.saturating_add(self.granted);
        if total > self.memory_bytes_max {
            self.granted = 0;
            self.refused = Some(Refused::Memory(total));
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= std::mem::take(&mut self.granted);
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        if total > TABLE_ELEMENTS_ALL_MAX {
            self.refused = Some(Refused::Table(total));
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        64
    }

    fn memories(&self) -> usize {
        16
    }
}

/// The computing time is spent.
#[derive(Debug, thiserror::Error)]
#[error("the computing time is spent")]
struct OutOfTime;

/// One call to the gateway too many.
#[derive(Debug, thiserror::Error)]
#[error("too many calls to the gateway")]
pub(super) struct Flood;

/// What is the same for every call of a plugin.
pub(super) struct Prepared {
    pub(super) pre: InstancePre<Call>,
    pub(super) links: Links,
    /// The largest memory that it starts with, in bytes.
    pub(super) memory_bytes: u64,
}

/// Where calls of a plugin run.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) prepared: Arc<Prepared>,
    pub(super) gate: Arc<Gate>,
    /// Where instances are kept, if they are.
    pub(super) warm: Option<Arc<WarmPool>>,
}

/// Runs one call, in an instance of its own or in one that was kept. Belongs on the decision runtime. The instance is
/// gone or idle when this returns, whatever happened; what the call did is in the `Call`.
pub(super) async fn run(
    place: Place,
    mut call: Call,
    input: Input,
    wall: Duration,
    admitted: Admitted,
) -> (Call, Result<Answer, CallError>) {
    let Place { prepared, gate, warm } = place;
    let limits = call.work.limits.clone();
    let (tenant, meter, purse) = (call.work.tenant.clone(), call.meter.clone(), call.purse.take());
    let mut seat = match warm.as_ref().and_then(|warm| warm.take()) {
        Some(mut seat) => {
            seat.begin(call);
            seat
        }
        None => Seat::new(store(&prepared, call)),
    };
    set_limits(&mut seat.store, &limits);
    let mut started = seat.instance.is_some();
    let work = Box::pin(async {
        let instance = match seat.instance {
            Some(instance) => instance,
            None => {
                let instance = prepared.pre.instantiate_async(&mut seat.store).await?;
                seat.born(instance);
                started = true;
                instance
            }
        };
        bindings::invoke(&prepared.links, &mut seat.store, &instance, input).await
    });
    let end = timeout(wall, Metered::new(work, &gate, &tenant, &meter, purse)).await;
    let (tenant_place, pool) = admitted.into_parts();
    let mut call = match &warm {
        Some(warm) if matches!(end, Ok(Ok(_))) => warm.put_back(seat, pool),
        _ => {
            let call = seat.store.into_data();
            drop(pool);
            call
        }
    };
    drop(tenant_place);
    let result = match end {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(ending))) => Err(said(&call, ending)),
        Ok(Err(error)) => Err(broke(&call, &limits, started, &error)),
        Err(_) => Err(too_late(&call, &limits, wall)),
    };
    // A call that ended badly after the engine had failed it is not to blame.
    call.work.waiting_since = None;
    let result = match (result, call.work.engine_error.take()) {
        (Err(_), Some(error)) => Err(CallError::EngineUnavailable(error)),
        (result, _) => result,
    };
    (call, result)
}

fn store(prepared: &Prepared, call: Call) -> Store<Call> {
    let mut store = Store::new(prepared.pre.engine(), call);
    store.limiter(|call| &mut call.limiter);
    store.set_max_component_handles(HANDLES_MAX);
    store.epoch_deadline_callback(|store| {
        let call = store.data();
        if call.meter.spent() >= Duration::from_millis(call.work.limits.cpu_ms.into()) {
            return Err(OutOfTime.into());
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}

/// What holds for the next call.
fn set_limits(store: &mut Store<Call>, limits: &CallLimits) {
    store.set_hostcall_fuel(limits.output_bytes.saturating_add(OUTPUT_SLACK_BYTES));
    store.set_epoch_deadline(1);
}

/// The wall time is over. If most of it went by in one wait for the engine, because the tenant had used up its
/// computing time, or in the line for a turn at computing, that is to blame.
fn too_late(call: &Call, limits: &CallLimits, wall: Duration) -> CallError {
    let text = format!("took longer than {} ms: call_limits.wall_ms = {}", limits.wall_ms, limits.wall_ms);
    match call.work.waiting_since {
        Some(since) if since.elapsed() >= wall / 2 => {
            CallError::EngineUnavailable(format!("no answer for {} ms; {text}", since.elapsed().as_millis()))
        }
        _ if call.meter.slowed() >= wall / 2 => slowed_down(limits),
        _ if call.meter.queued() >= wall / 2 => CallError::Overloaded(format!(
            "waited {} ms for its turns at computing, behind others; {text}",
            call.meter.queued().as_millis()
        )),
        _ => failed(call, FailureKind::WallTime, text),
    }
}

fn said(call: &Call, ending: Ending) -> CallError {
    match ending {
        Ending::Refused(refusal) => CallError::Refused(refusal),
        Ending::Retry(text) => CallError::Retry(tame(&text, MESSAGE_BYTES_MAX)),
        Ending::Fatal(text) => failed(call, FailureKind::Fatal, tame(&text, MESSAGE_BYTES_MAX)),
    }
}

pub(super) fn failed(call: &Call, kind: FailureKind, message: String) -> CallError {
    let plugin = call.source.plugin.clone();
    CallError::Failed(Failure { plugin, hook: call.source.hook, kind, message, input: None })
}

/// What a broken call is to be called.
fn broke(call: &Call, limits: &CallLimits, started: bool, error: &wasmtime::Error) -> CallError {
    if error.is::<PoolConcurrencyLimitError>() {
        return CallError::Overloaded(format!("no place for another instance (plugins.instances): {error:#}"));
    }
    let (kind, text) = kind(call, limits, started, error);
    failed(call, kind, text)
}

fn kind(call: &Call, limits: &CallLimits, started: bool, error: &wasmtime::Error) -> (FailureKind, String) {
    if error.is::<OutOfTime>() {
        let text = format!("computed longer than {} ms: call_limits.cpu_ms = {}", limits.cpu_ms, limits.cpu_ms);
        return (FailureKind::CpuTime, text);
    }
    if error.is::<Flood>() {
        let limit = limits.host_calls;
        let text = format!("called the gateway more than {limit} times: call_limits.host_calls = {limit}");
        return (FailureKind::HostCalls, text);
    }
    if let Some(refused) = call.limiter.refused {
        let text = match refused {
            Refused::Memory(wanted) => {
                let limit = limits.memory_bytes;
                format!("wanted {wanted} bytes of memory: call_limits.memory_bytes = {limit}")
            }
            Refused::Table(wanted) => {
                format!("wanted {wanted} table elements; a component has at most {TABLE_ELEMENTS_ALL_MAX}")
            }
        };
        return (FailureKind::Memory, text);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => {
            (FailureKind::Stack, format!("its calls nest deeper than {STACK_BYTES} bytes of stack{}", place(error)))
        }
        Some(trap) => (FailureKind::Trap, format!("{trap}{}", place(error))),
        None if is_out_of_fuel(error) => {
            let limit = limits.output_bytes;
            let text = format!("handed over more than {limit} bytes at once: call_limits.output_bytes = {limit}");
            (FailureKind::Output, text)
        }
        None if !started => (FailureKind::Start, tame(&format!("{error:#}"), MESSAGE_BYTES_MAX)),
        None => (FailureKind::BadAnswer, tame(&format!("{error:#}"), MESSAGE_BYTES_MAX)),
    }
}

/// wasmtime does not name this error's type.
fn is_out_of_fuel(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| cause.to_string().contains("fuel allocated for hostcalls"))
}

/// Where it trapped: the innermost functions that have a name.
fn place(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return String::new();
    };
    let names: Vec<String> = backtrace
        .frames()
        .iter()
        .filter_map(|frame| frame.func_name())
        .map(readable)
        .skip_while(|name| PANICKING.iter().any(|part| name.contains(part)))
        .map(|name| tame(&name, NAME_BYTES_MAX))
        .take(FRAMES_TOLD)
        .collect();
    if names.is_empty() { String::new() } else { format!(" in {}", names.join(" < ")) }
}

/// A function's name as its source has it.
fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_functions_are_those_of_the_source() {
        assert_eq!(readable("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(readable("_ZN7harmful4trap17h0123456789abcdefE"), "harmful::trap");
        assert_eq!(readable("handle plugin.py:7"), "handle plugin.py:7");
    }

    #[test]
    fn memory_is_counted_over_all_memories_and_given_back_when_growing_fails() {
        let mut limiter = Limiter::new(1_000);
        assert!(limiter.memory_growing(0, 600, None).unwrap());
        assert!(!limiter.memory_growing(0, 600, None).unwrap());
        assert!(matches!(limiter.refused, Some(Refused::Memory(1_200))));
        assert!(limiter.memory_growing(0, 400, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert_eq!(limiter.memory_bytes(), 600);
    }
}
