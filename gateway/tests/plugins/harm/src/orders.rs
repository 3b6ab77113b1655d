//! The orders, as the tests send them: the event's name and its first argument.

use serde_json::Value;

/// Log lines of `log_flood` when it is not told how many.
const LOG_LINES_DEFAULT: usize = 500;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Order {
    Loop,
    Trap,
    Memory,
    Flood,
    Stack,
    Nest,
    LogFlood { lines: usize },
    HugeReply { bytes: usize },
    ManyPublications { count: usize },
    SlowRead,
    Count,
    CountAdd,
    SetTimer { name: String, after_ms: u64 },
    Refuse,
    Retry,
    Fatal,
    PublishThenTrap,
    PublishThenRefuse,
    WriteOther { key: String, value: String },
    Read { key: String },
    JoinMe { room: String },
    Kick { room: String },
    Whisper { room: String },
    HugeLog { bytes: usize },
    Escapes,
    DeepJson { depth: usize },
    SlowMemory,
    FillState { keys: usize, bytes: usize },
    ManyTimers { count: usize },
    Breed,
    Settings { name: String },
    Keep,
}

impl Order {
    /// Reads an order. A number or a key may be the argument itself or its field `n` or `key`.
    ///
    /// # Errors
    /// When there is no such order, or its argument is missing.
    pub fn read(event: &str, args: &str) -> Result<Order, String> {
        let args: Vec<Value> = serde_json::from_str(args).map_err(|error| error.to_string())?;
        let data = args.into_iter().next().unwrap_or_default();
        let text = |field: &str| match data.get(field).unwrap_or(&data) {
            Value::String(text) => Ok(text.clone()),
            _ => Err(format!("`{event}` needs `{field}`")),
        };
        let number =
            |field: &str| data.get(field).unwrap_or(&data).as_u64().ok_or_else(|| format!("`{event}` needs `{field}`"));
        Ok(match event {
            "loop" => Order::Loop,
            "trap" => Order::Trap,
            "memory" => Order::Memory,
            "flood" => Order::Flood,
            "stack" => Order::Stack,
            "nest" => Order::Nest,
            "log_flood" => Order::LogFlood { lines: number("n").map_or(LOG_LINES_DEFAULT, |n| n as usize) },
            "huge_reply" => Order::HugeReply { bytes: number("n")? as usize },
            "many_publications" => Order::ManyPublications { count: number("n")? as usize },
            "slow_read" => Order::SlowRead,
            "count" => Order::Count,
            "count_add" => Order::CountAdd,
            "set_timer" => Order::SetTimer { name: text("name")?, after_ms: number("after_ms")? },
            "refuse" => Order::Refuse,
            "retry" => Order::Retry,
            "fatal" => Order::Fatal,
            "publish_then_trap" => Order::PublishThenTrap,
            "publish_then_refuse" => Order::PublishThenRefuse,
            "write_other" => {
                let value = data.get("value").map_or_else(|| "written".into(), plain);
                Order::WriteOther { key: text("key")?, value }
            }
            "read" => Order::Read { key: text("key")? },
            "join_me" => Order::JoinMe { room: text("room")? },
            "kick" => Order::Kick { room: text("room")? },
            "whisper" => Order::Whisper { room: text("room")? },
            "huge_log" => Order::HugeLog { bytes: number("n")? as usize },
            "escapes" => Order::Escapes,
            "deep_json" => Order::DeepJson { depth: number("n")? as usize },
            "slow_memory" => Order::SlowMemory,
            "fill_state" => Order::FillState { keys: number("keys")? as usize, bytes: number("bytes")? as usize },
            "many_timers" => Order::ManyTimers { count: number("n")? as usize },
            "breed" => Order::Breed,
            "settings" => Order::Settings { name: text("name")? },
            "keep" => Order::Keep,
            other => return Err(format!("no order {other:?}")),
        })
    }
}

/// `loop` of `loop:1` and of `/events#loop:1`.
pub fn room_type(room: &str) -> &str {
    let name = if room.starts_with('/') { room.split_once('#').map_or("", |(_, name)| name) } else { room };
    name.split_once(':').map_or(name, |(room_type, _)| room_type)
}

/// The room of one connection.
pub fn connection_room(namespace: &str, connection: &str) -> String {
    if namespace == "/" { format!("connection:{connection}") } else { format!("{namespace}#connection:{connection}") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_from_the_events_name_and_first_argument() {
        for (event, args, order) in [
            ("loop", "[]", Order::Loop),
            ("huge_reply", "[70]", Order::HugeReply { bytes: 70 }),
            ("many_publications", r#"[{"n":3}]"#, Order::ManyPublications { count: 3 }),
            ("set_timer", r#"[{"name":"t","after_ms":5}]"#, Order::SetTimer { name: "t".into(), after_ms: 5 }),
            ("read", r#"["/shared"]"#, Order::Read { key: "/shared".into() }),
            ("write_other", r#"[{"key":"k","value":7}]"#, Order::WriteOther { key: "k".into(), value: "7".into() }),
            ("log_flood", "[]", Order::LogFlood { lines: LOG_LINES_DEFAULT }),
        ] {
            assert_eq!(Order::read(event, args), Ok(order), "{event}");
        }
    }

    #[test]
    fn orders_that_do_not_exist_or_lack_their_argument_are_errors() {
        for (event, args) in [("sing", "[]"), ("kick", "[]"), ("huge_reply", r#"["x"]"#), ("loop", "{")] {
            assert!(Order::read(event, args).is_err(), "{event}");
        }
    }

    #[test]
    fn rooms_of_a_namespace_have_the_same_types() {
        assert_eq!(room_type("loop:1"), "loop");
        assert_eq!(room_type("/events#no:1"), "no");
        assert_eq!(connection_room("/", "x"), "connection:x");
        assert_eq!(connection_room("/events", "x"), "/events#connection:x");
    }
}
