//! Pages of what was said: the numbers of a channel's messages have no holes, so a page is a
//! stretch of them behind an end that the client names.

use std::ops::Range;

use serde_json::{Value, json};

use super::{Channel, Message, MessageId, Refused};

/// Messages of a page when the client does not say how many; what joining shows.
pub const LIMIT_DEFAULT: u64 = 50;
/// Messages of a page, at most.
pub const LIMIT_MAX: u64 = 100;
/// The messages of a page together, as JSON, in bytes; at least one is always on it.
pub const PAGE_BYTES_MAX: usize = 512 << 10;

/// Which page somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Only messages before this number.
    pub before: u64,
    /// Of those, so many of the latest are passed over.
    pub offset: u64,
    /// How many at most.
    pub limit: u64,
}

impl Asked {
    /// What `before` (the id of a message, or its number), `offset` and `limit` say; without `before` the page
    /// is counted from the latest message there is now.
    ///
    /// # Errors
    /// `invalid` when they are none, or too large.
    pub fn read(channel: &Channel, data: &Value, last: u64) -> Result<Asked, Refused> {
        let number = |field: &str, otherwise: u64| match data.get(field) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(value) => {
                value.as_u64().ok_or_else(|| Refused::invalid(format!("`{field}` must be a whole number, 0 or more")))
            }
        };
        let limit = number("limit", LIMIT_DEFAULT)?;
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Refused::invalid(format!("`limit` must be 1 to {LIMIT_MAX}, not {limit}")));
        }
        let before = match data.get("before") {
            None | Some(Value::Null) => last + 1,
            Some(Value::String(text)) => {
                let number = match MessageId::parse(&channel.namespace, text) {
                    Some(id) => Some(id).filter(|id| id.channel == *channel).map(|id| id.number),
                    None => text.parse().ok(),
                };
                number.ok_or_else(|| Refused::invalid("`before` must be a message of this channel"))?
            }
            Some(_) => number("before", last + 1)?,
        };
        Ok(Asked { before: before.min(last + 1), offset: number("offset", 0)?, limit })
    }

    /// The numbers on the page.
    pub fn numbers(&self) -> Range<u64> {
        let end = self.before.saturating_sub(self.offset).max(1);
        end.saturating_sub(self.limit).max(1)..end
    }
}

/// A page.
#[derive(Debug, PartialEq)]
pub struct Page {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Where the next, older page ends, if there is one: its [`Asked::before`].
    pub before: Option<u64>,
    /// Where this page was counted from: pages by offset name it, so that they fit together.
    pub upto: u64,
}

impl Page {
    /// Of what is stored under the numbers that were asked for, each with its size in bytes. What is older than one
    /// that is gone is gone, too.
    pub fn of(asked: &Asked, stored: Vec<Option<(usize, Message)>>) -> Page {
        let numbers = asked.numbers();
        let mut before = Some(numbers.start).filter(|start| *start > 1);
        let (mut messages, mut bytes) = (Vec::with_capacity(stored.len()), 0);
        for (number, found) in numbers.rev().zip(stored.into_iter().rev()) {
            let Some((size, message)) = found else {
                before = None;
                break;
            };
            bytes += size;
            if bytes > PAGE_BYTES_MAX && !messages.is_empty() {
                before = Some(number + 1);
                break;
            }
            messages.push(message);
        }
        messages.reverse();
        Page { messages, before, upto: asked.before }
    }

    /// As clients see it.
    pub fn shown(&self, channel: &Channel) -> Value {
        json!({
            "room": format!("channel:{}", channel.id), "channelId": channel.id, "messages": self.messages,
            "more": self.before.is_some(), "before": self.before.map(|number| number.to_string()),
            "upto": self.upto.to_string(),
        })
    }
}
