//! A Socket.IO client that sends anything: `scripts/fuzz socketio_decode`.
//!
//! The input is messages with 0xFF between them, which is in no UTF-8 text: what is UTF-8 is sent as
//! text, anything else as binary.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use postern::connection::protocol::socketio::{self, Decoder};
use postern::connection::protocol::{Input, Message};

/// Small, so that the limit is met as well.
const LIMIT_BYTES: usize = 4 << 10;

fuzz_target!(|input: &[u8]| {
    let mut decoder = Decoder::new(LIMIT_BYTES);
    for message in input.split(|byte| *byte == 0xff) {
        let message = match std::str::from_utf8(message) {
            Ok(text) => Message::Text(text.to_owned()),
            Err(_) => Message::Binary(Bytes::copy_from_slice(message)),
        };
        let Ok(decoded) = decoder.decode(message) else { return };
        if let Some(Input::Event { namespace, name, data, .. }) = decoded {
            read_back(&namespace, &name, &data);
        }
    }
});

/// What one client may send, another can read.
fn read_back(namespace: &str, name: &str, data: &postern::event::Payload) {
    let mut decoder = Decoder::new(usize::MAX);
    let mut read = None;
    for message in socketio::event(namespace, name, data, None).into_messages() {
        read = decoder.decode(message).expect("what was decoded is encoded so that it can be decoded");
    }
    let Some(Input::Event { data: read, .. }) = read else { panic!("the packet is not whole") };
    assert_eq!(read.attachments, data.attachments);
}
