//! What reading and writing a small event costs, in both protocols: nanoseconds, median over batches.
//! `cargo bench --bench codec`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern::commit::{Cursor, Position};
use postern::connection::protocol::{Message, json, socketio};
use postern::connection::socket::text_frame;
use postern::event::Payload;

/// Batches whose median counts.
const BATCHES: usize = 101;
/// How long one batch takes at least.
const BATCH_MIN: Duration = Duration::from_millis(2);
/// As `limits.message_bytes`.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

const DATA: &str = r#"{"flat_id":"a1","visitor_name":"Asha","purpose":"delivery","vehicle":null,"count":2}"#;

fn main() {
    let namespace: Arc<str> = "/".into();
    let plain = format!(r#"{{"id":7,"event":"visitor_request","data":{DATA}}}"#);
    report("decode json", plain.len(), || {
        cost(
            || Message::Text(plain.clone()),
            |message| json::decode(&message, &namespace).expect("a message").next().expect("an object"),
        )
    });
    let packet = format!(r#"427["visitor_request",{DATA}]"#);
    let mut decoder = socketio::Decoder::new(MESSAGE_BYTES_MAX);
    report("decode socket.io", packet.len(), || {
        cost(|| Message::Text(packet.clone()), |message| decoder.decode(message).expect("a packet"))
    });

    let payload = Payload { args: format!("[{DATA}]").into(), attachments: Vec::new() };
    let cursor = Cursor { position: Position { epoch: 1_790_000_000_000, seq: 123_456 }, part: None };
    let encode = || {
        let pos = cursor.to_string();
        text_frame(&json::event("flat:a1", "visitor_request", &payload, Some(&pos)))
    };
    report("encode json, with its position and frame", encode().len(), || cost(|| (), |()| encode()));
    let encode = || text_frame(&socketio::event("/", "visitor_request", &payload, None).text);
    report("encode socket.io, with its frame", encode().len(), || cost(|| (), |()| encode()));
}

/// What one operation costs, in nanoseconds: the median and the minimum over batches.
#[derive(Debug, Clone, Copy)]
struct Cost {
    median_ns: f64,
    min_ns: f64,
}

/// Measures an operation. `prepare` makes what one operation uses up, outside the measured time.
fn cost<T, R>(mut prepare: impl FnMut() -> T, mut operation: impl FnMut(T) -> R) -> Cost {
    let mut size = 16;
    while batch(size, &mut prepare, &mut operation) < BATCH_MIN {
        size *= 2;
    }
    let mut each: Vec<f64> =
        (0..BATCHES).map(|_| batch(size, &mut prepare, &mut operation).as_secs_f64() * 1e9 / size as f64).collect();
    each.sort_by(f64::total_cmp);
    Cost { median_ns: each[BATCHES / 2], min_ns: each[0] }
}

fn batch<T, R>(size: usize, prepare: &mut impl FnMut() -> T, operation: &mut impl FnMut(T) -> R) -> Duration {
    let inputs: Vec<T> = (0..size).map(|_| prepare()).collect();
    let mut outputs = Vec::with_capacity(size);
    let begun = Instant::now();
    for input in inputs {
        outputs.push(std::hint::black_box(operation(std::hint::black_box(input))));
    }
    begun.elapsed()
}

fn report(what: &str, bytes: usize, mut measure: impl FnMut() -> Cost) {
    let cost = measure();
    println!("{what} ({bytes} bytes): median {:.0} ns, minimum {:.0} ns", cost.median_ns, cost.min_ns);
}
