//! What is answered.

/// What `describe.info` says.
pub const INFO: &str = concat!(r#"{"name":"bench","version":""#, env!("CARGO_PKG_VERSION"), r#"","events":["echo"]}"#);

/// Is the event answered with its own data?
pub fn is_echoed(event: &str) -> bool {
    event == "echo"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_it_declares_is_the_one_it_answers() {
        assert!(INFO.contains(r#""events":["echo"]"#));
        assert!(is_echoed("echo"));
        assert!(!is_echoed("echo2"));
    }
}
