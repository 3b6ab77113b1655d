//! Misbehaves on demand: the gateway's tests send it an order and see what becomes of it.

pub mod orders;

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package postern:harm;
            world harm {
                include postern:plugin/authorizer@0.1.0;
                include postern:plugin/full-handler@0.1.0;
            }
        ",
        path: "../../../../wit",
        generate_all,
    });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin with_types_in self);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}

use std::cell::Cell;
use std::hint::black_box;

use bindings::exports::postern::plugin::authorization::{Admission, Membership};
use bindings::exports::postern::plugin::events::Event;
use bindings::exports::postern::plugin::timer_events::Timer;
use bindings::exports::postern::plugin::{authorization, connection_events, describe, events, timer_events};
use bindings::postern::plugin::types::{Client, Failure, Grant, HostError, Payload, Refusal};
use bindings::postern::plugin::{config, log, rooms, state, timers};
use orders::Order;
use serde_json::{Value, json};

/// One step of the order `memory`, in bytes.
const MEMORY_STEP_BYTES: usize = 1 << 20;
/// One step of the order `slow_memory`, in bytes, and how long it computes before the next.
const SLOW_STEP_BYTES: usize = 4 << 10;
const SLOW_STEP_TURNS: u64 = 100_000;
/// What one level of the order `stack` puts on the stack, in bytes.
const STACK_STEP_BYTES: usize = 1 << 10;

const FULL: Grant = Grant { publish: true, presence: true, history: true };

/// The component.
pub struct Plugin;

impl describe::Guest for Plugin {
    fn info() -> String {
        format!(r#"{{"name":"test-harm","version":"{}","events":["*"]}}"#, env!("CARGO_PKG_VERSION"))
    }
}

impl authorization::Guest for Plugin {
    fn connect(who: Client) -> Result<Vec<Membership>, Refusal> {
        match who.subject.as_str() {
            "bad-connect" => trap(),
            "loop-connect" => endless(),
            "memory-connect" => fill_memory(),
            "refused-connect" => Err(refusal("refused", "as ordered")),
            "forger" => Ok(["user:somebody", "everyone", "connection:x", "public"]
                .map(|room| Membership { room: room.into(), grant: FULL })
                .into()),
            _ => Ok(Vec::new()),
        }
    }

    fn join(_who: Client, room: String, _params: Option<Payload>) -> Result<Admission, Refusal> {
        match orders::room_type(&room) {
            "loop" => endless(),
            "trap" => trap(),
            "memory" => fill_memory(),
            "stack" => Err(refusal("deep", &black_box(recurse(0)).to_string())),
            "nest" => Err(refusal("deep", &black_box(nest(black_box(0))).to_string())),
            "flood" => flood(),
            "no" => Err(refusal("refused", "as ordered")),
            "write" => match state::put("written-while-authorizing", b"", None) {
                Ok(()) => Err(refusal("written", "an authorizer could write")),
                Err(error) => Err(named(&error)),
            },
            _ => Ok(Admission { grant: FULL, cache_for: 0 }),
        }
    }
}

impl connection_events::Guest for Plugin {
    fn connected(who: Client, handshake: String) -> Result<(), Failure> {
        let handshake: Value = serde_json::from_str(&handshake).map_err(|error| Failure::Fatal(error.to_string()))?;
        tell("came", &json!({ "subject": who.subject, "address": handshake["address"] }))
    }

    fn disconnected(who: Client, reason: String) -> Result<(), Failure> {
        tell("went", &json!({ "subject": who.subject, "reason": reason }))
    }
}

/// Tells whoever watches the comings and goings.
fn tell(event: &str, data: &Value) -> Result<(), Failure> {
    let payload = Payload { args: json!([data]).to_string(), attachments: Vec::new() };
    rooms::publish("watch:1", event, &payload).map_err(|error| Failure::Fatal(format!("{error:?}")))
}

impl events::Guest for Plugin {
    fn handle(event: Event) -> Result<(), Failure> {
        let order = Order::read(&event.name, &event.data.args).map_err(Failure::Fatal)?;
        obey(order, event.sender.as_ref())
    }
}

impl timer_events::Guest for Plugin {
    fn fire(timer: Timer) -> Result<(), Failure> {
        match timer.name.split('-').next() {
            Some("trap") => trap(),
            Some("loop") => endless(),
            Some("breed") => breed(&timer.name)?,
            _ => {}
        }
        state::add("fired", 1)?;
        publish("everyone", "fired", &json!({ "name": timer.name }))
    }
}

fn obey(order: Order, sender: Option<&Client>) -> Result<(), Failure> {
    match order {
        Order::Loop => endless(),
        Order::Trap => trap(),
        Order::Memory => fill_memory(),
        Order::Flood => flood(),
        Order::Stack => {
            black_box(recurse(0));
            Ok(())
        }
        Order::Nest => {
            black_box(nest(black_box(0)));
            Ok(())
        }
        Order::LogFlood { lines } => {
            for line in 0..lines {
                log::log(log::Level::Info, &format!("line {line}"));
            }
            reply(&json!(lines))
        }
        Order::HugeReply { bytes } => reply(&Value::String("x".repeat(bytes))),
        Order::ManyPublications { count } => {
            for n in 0..count {
                publish("everyone", "one_of_many", &json!(n))?;
            }
            reply(&json!(count))
        }
        Order::SlowRead => reply(&stored("n")?),
        Order::Count => {
            let next = stored("n")?.as_str().and_then(|n| n.parse::<i64>().ok()).unwrap_or(0) + 1;
            state::put("n", next.to_string().as_bytes(), None)?;
            reply(&json!(next))
        }
        Order::CountAdd => Ok(state::add("n", 1)?),
        Order::SetTimer { name, after_ms } => Ok(timers::set(&name, after_ms, "{}")?),
        Order::Refuse => Err(Failure::Refused(refusal("refused", "as ordered"))),
        Order::Retry => Err(Failure::Retry("as ordered".into())),
        Order::Fatal => Err(Failure::Fatal("as ordered".into())),
        Order::PublishThenTrap => {
            publish("everyone", "never", &json!(null))?;
            trap()
        }
        Order::PublishThenRefuse => {
            publish("everyone", "never", &json!(null))?;
            Err(Failure::Refused(refusal("refused", "as ordered")))
        }
        Order::WriteOther { key, value } => Ok(state::put(&key, value.as_bytes(), None)?),
        Order::Read { key } => reply(&stored(&key)?),
        Order::JoinMe { room } => match sender {
            Some(who) => Ok(rooms::join(&orders::connection_room(&who.namespace, &who.connection), &room, FULL)?),
            None => Err(Failure::Fatal("nobody sent this".into())),
        },
        Order::Whisper { room } => Ok(rooms::publish_ephemeral(&room, "whispered", &payload(&json!(1)), None)?),
        Order::Kick { room } => Ok(rooms::disconnect(&room, &refusal("kicked", "as ordered"))?),
        Order::HugeLog { bytes } => {
            log::log(log::Level::Info, &"x".repeat(bytes));
            reply(&json!(bytes))
        }
        Order::Escapes => {
            log::log(log::Level::Warn, "\u{1b}]0;owned\u{7}\u{1b}[2J\r\nlevel=ERROR forged=line");
            Err(Failure::Fatal("\u{1b}[31mred\r\nand a line of its own".into()))
        }
        Order::DeepJson { depth } => {
            let args = format!("[{}{}]", "[".repeat(depth), "]".repeat(depth));
            Ok(rooms::reply(&Payload { args, attachments: Vec::new() })?)
        }
        Order::SlowMemory => fill_slowly(),
        Order::FillState { keys, bytes } => {
            for key in 0..keys {
                state::put(&format!("fill/{key}"), &vec![b'x'; bytes], None)?;
            }
            reply(&json!(keys))
        }
        Order::ManyTimers { count } => {
            for n in 0..count {
                timers::set(&format!("far-{n}"), 3_600_000, "{}")?;
            }
            reply(&json!(count))
        }
        Order::Breed => Ok(breed("breed")?),
        Order::Settings { name } => reply(&json!(config::get(&name))),
        Order::Keep => reply(&json!(KEPT.replace(KEPT.get() + 1))),
    }
}

thread_local! {
    /// What an instance keeps from one call to the next: nothing, unless it is warm.
    static KEPT: Cell<u32> = const { Cell::new(0) };
}

/// Each timer sets two more.
fn breed(name: &str) -> Result<(), HostError> {
    timers::set(&format!("{name}-a"), 1, "{}")?;
    timers::set(&format!("{name}-b"), 1, "{}")
}

fn flood() -> ! {
    loop {
        // Answered or not, it goes on asking.
        drop(black_box(state::get("n")));
    }
}

fn fill_slowly() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(black_box(vec![1; SLOW_STEP_BYTES]));
        for turn in 0..SLOW_STEP_TURNS {
            black_box(turn);
        }
    }
}

fn endless() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn trap() -> ! {
    panic!("as ordered")
}

fn fill_memory() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(black_box(vec![1; MEMORY_STEP_BYTES]));
    }
}

#[expect(unconditional_recursion, reason = "it ends where the stack does")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; STACK_STEP_BYTES / 8]);
    recurse(depth + 1).wrapping_add(frame[0])
}

/// Calls without end whose frames hold nothing in memory: the calls themselves are too deep first.
#[inline(never)]
fn nest(depth: u64) -> u64 {
    if depth == u64::MAX { 0 } else { nest(depth + 1).rotate_left(7) ^ depth }
}

fn stored(key: &str) -> Result<Value, Failure> {
    let value = state::get(key)?;
    Ok(value.map_or(Value::Null, |bytes| Value::String(String::from_utf8_lossy(&bytes).into_owned())))
}

fn publish(room: &str, event: &str, data: &Value) -> Result<(), Failure> {
    Ok(rooms::publish(room, event, &payload(data))?)
}

fn reply(data: &Value) -> Result<(), Failure> {
    Ok(rooms::reply(&payload(data))?)
}

fn payload(argument: &Value) -> Payload {
    Payload { args: format!("[{argument}]"), attachments: Vec::new() }
}

fn refusal(code: &str, message: &str) -> Refusal {
    Refusal { code: code.into(), message: message.into() }
}

/// The refusal whose code is the case of the error, so that tests see which it was.
fn named(error: &HostError) -> Refusal {
    match error {
        HostError::Denied => refusal("denied", ""),
        HostError::Invalid(why) => refusal("invalid", why),
        HostError::TooLarge(limit) => refusal("too-large", &limit.to_string()),
        HostError::Quota(what) => refusal("quota", what),
        HostError::Unavailable => refusal("unavailable", ""),
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Failure {
        Failure::Refused(named(&error))
    }
}
