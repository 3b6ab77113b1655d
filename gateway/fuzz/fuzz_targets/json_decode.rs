//! A client of the JSON protocol that sends anything: `scripts/fuzz json_decode`.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use postern::connection::protocol::{Input, Message, json};

fuzz_target!(|text: &str| {
    let namespace: Arc<str> = "/".into();
    let message = Message::Text(text.to_owned());
    let Ok(objects) = json::decode(&message, &namespace) else { return };
    for object in objects {
        match object {
            Ok(Input::Event { name, data, .. }) => {
                let written = json::event("room", &name, &data, Some("1-2"));
                assert!(!written.contains('\n'), "an object is one line");
                let written = Message::Text(written);
                let mut read = json::decode(&written, &namespace).expect("one object");
                assert!(matches!(read.next(), Some(Ok(Input::Event { .. }))) && read.next().is_none());
            }
            Ok(input) => panic!("{input:?} is not part of this protocol"),
            Err(error) => drop(json::error(error.id, &error.refusal())),
        }
    }
});
