//! The arguments of events: JSON arrays kept as the text they came in.
//!
//! Nothing here builds a tree. serde_json says whether a text is JSON at all, then one look at
//! its bytes finds how deep it nests and which attachments its placeholders name.

use serde::de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How many attachments a payload may have.
pub const ATTACHMENTS_MAX: usize = 64;

/// How deep arguments may nest, their own array included. What is deeper could not be read by
/// components: serde_json stops there.
pub const ARGUMENTS_DEPTH_MAX: usize = 127;

/// Why a text cannot be the arguments of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Not JSON; the text says where, and nothing of what stood there.
    #[error("the JSON is not valid: {0}")]
    NotJson(String),
    /// JSON, but not an array.
    #[error("the arguments are not a JSON array")]
    NotAnArray,
    /// Deeper than [`ARGUMENTS_DEPTH_MAX`].
    #[error("the arguments nest deeper than {ARGUMENTS_DEPTH_MAX} levels")]
    TooDeep,
    /// More than [`ATTACHMENTS_MAX`].
    #[error("a packet has at most {ATTACHMENTS_MAX} attachments, this one has {0}")]
    TooManyAttachments(usize),
    /// A placeholder without a `num`, or with one that is no attachment's.
    #[error("the `num` of a placeholder names none of the {0} attachments")]
    DanglingPlaceholder(usize),
    /// An attachment that no placeholder stands for.
    #[error("no placeholder stands for attachment {0}")]
    UnusedAttachment(usize),
}

/// Checks that `args` is a JSON array within the limits whose placeholders name each of
/// `attachments` attachments at least once, and no other.
pub fn check(args: &str, attachments: usize) -> Result<(), ArgumentsError> {
    elements(args)?;
    check_valid(args, attachments)
}

/// As [`check`], for a text that is known to be a JSON array.
pub(crate) fn check_valid(args: &str, attachments: usize) -> Result<(), ArgumentsError> {
    if attachments > ATTACHMENTS_MAX {
        return Err(ArgumentsError::TooManyAttachments(attachments));
    }
    let named = placeholders(args, attachments)?;
    let unnamed = (!named).trailing_zeros() as usize;
    if unnamed < attachments { Err(ArgumentsError::UnusedAttachment(unnamed)) } else { Ok(()) }
}

/// The ends of a JSON array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elements<'a> {
    /// The text of the first element.
    pub(crate) first: Option<&'a str>,
    /// Are there others?
    pub(crate) more: bool,
}

/// Reads a whole JSON array, of which only the first element is wanted.
pub(crate) fn elements(array: &str) -> Result<Elements<'_>, ArgumentsError> {
    let mut json = serde_json::Deserializer::from_str(array);
    let elements = json.deserialize_seq(ElementsVisitor).map_err(|error| {
        // Only a syntax error's text is free of what the client sent.
        if error.is_data() { ArgumentsError::NotAnArray } else { ArgumentsError::NotJson(error.to_string()) }
    })?;
    json.end().map_err(|error| ArgumentsError::NotJson(error.to_string()))?;
    Ok(elements)
}

struct ElementsVisitor;

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Elements<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Elements<'de>, A::Error> {
        let first = array.next_element::<&RawValue>()?.map(RawValue::get);
        let mut more = false;
        while array.next_element::<IgnoredAny>()?.is_some() {
            more = true;
        }
        Ok(Elements { first, more })
    }
}

/// What stands between the brackets of a JSON array.
pub(crate) fn inside(array: &str) -> &str {
    let array = array.trim();
    array.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(array)
}

/// A JSON array from its first element on, or from its end if it has none.
pub(crate) fn inside_start(array: &str) -> &str {
    let array = array.trim_ascii_start();
    array.strip_prefix('[').unwrap_or(array).trim_ascii_start()
}

/// What is known of an object that is still open.
#[derive(Clone, Copy)]
struct Open {
    placeholder: bool,
    attachment: Option<u8>,
}

/// Which attachments the placeholders in a valid JSON text name, as a set of bits. A placeholder is
/// what it is to Socket.IO: an object in which `_placeholder` is `true`, whatever else it holds.
fn placeholders(json: &str, attachments: usize) -> Result<u64, ArgumentsError> {
    const NOTHING: Open = Open { placeholder: false, attachment: None };
    let bytes = json.as_bytes();
    let mut open = [NOTHING; ARGUMENTS_DEPTH_MAX + 1];
    let (mut depth, mut at, mut named) = (0, 0, 0_u64);
    let mut last_string = 0..0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = string_end(bytes, at);
                last_string = at..end;
                at = end;
                continue;
            }
            // Outside strings a colon follows a key, which is the last string there was.
            b':' => match key(&json[last_string.clone()]) {
                Key::Placeholder => open[depth].placeholder = json[at + 1..].trim_ascii_start().starts_with("true"),
                Key::Num => open[depth].attachment = attachment(&json[at + 1..]),
                Key::Other => {}
            },
            b'{' | b'[' => {
                depth += 1;
                *open.get_mut(depth).ok_or(ArgumentsError::TooDeep)? = NOTHING;
            }
            b'}' | b']' => {
                if open[depth].placeholder {
                    let attachment = open[depth].attachment.filter(|number| usize::from(*number) < attachments);
                    named |= 1 << attachment.ok_or(ArgumentsError::DanglingPlaceholder(attachments))?;
                }
                depth = depth.saturating_sub(1);
            }
            _ => {}
        }
        at += 1;
    }
    Ok(named)
}

/// The place after the closing quote of the string that starts at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        at += 1;
        match bytes.get(at) {
            Some(b'\\') => at += 1,
            Some(b'"') => return at + 1,
            Some(_) => {}
            None => return bytes.len(),
        }
    }
}

enum Key {
    Placeholder,
    Num,
    Other,
}

/// What a key, quotes included, says; `\u005fplaceholder` says `_placeholder`.
fn key(quoted: &str) -> Key {
    match quoted {
        "\"_placeholder\"" => Key::Placeholder,
        "\"num\"" => Key::Num,
        _ if quoted.contains('\\') => match serde_json::from_str::<String>(quoted).as_deref() {
            Ok("_placeholder") => Key::Placeholder,
            Ok("num") => Key::Num,
            _ => Key::Other,
        },
        _ => Key::Other,
    }
}

/// The attachment number with which a text starts, if it is one that can be.
fn attachment(text: &str) -> Option<u8> {
    let text = text.trim_ascii_start();
    let end = text.bytes().position(|b| matches!(b, b',' | b'}') || b.is_ascii_whitespace())?;
    text[..end].parse().ok().filter(|number| usize::from(*number) < ATTACHMENTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arguments_are_json_arrays_and_nothing_else() {
        for args in ["[]", " [ ] ", "[1,\"a\",{\"b\":[null]}]", r#"["\ud800"]"#, "[1e999]"] {
            assert_eq!(check(args, 0), Ok(()), "{args}");
        }
        for args in ["{}", "1", "\"secret\"", "null"] {
            assert_eq!(check(args, 0), Err(ArgumentsError::NotAnArray), "{args}");
        }
        for args in ["", "[", "[1,]", "[] []", "[\"\u{1}\"]", "[nul]", "[{]}", "[\"a]"] {
            assert!(matches!(check(args, 0), Err(ArgumentsError::NotJson(_))), "{args}");
        }
    }

    #[test]
    fn nesting_ends_where_components_could_not_read_it_any_more() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for levels in [ARGUMENTS_DEPTH_MAX, ARGUMENTS_DEPTH_MAX + 1, 100_000] {
            let readable = serde_json::from_str::<serde_json::Value>(&nested(levels)).is_ok();
            assert_eq!(check(&nested(levels), 0).is_ok(), readable, "{levels}");
        }
        assert_eq!(check(&nested(128), 0), Err(ArgumentsError::TooDeep));
        assert_eq!(check(&format!("[\"{}\"]", "[".repeat(500)), 0), Ok(()), "brackets in strings do not nest");
    }

    #[test]
    fn placeholders_and_attachments_must_match() {
        use ArgumentsError::{DanglingPlaceholder, TooManyAttachments, UnusedAttachment};
        for (args, attachments, expected) in [
            (r#"[{"_placeholder":true,"num":0}]"#, 1, Ok(())),
            (r#"[{ "num" : 1 , "x":{"y":[]}, "_placeholder" : true },{"_placeholder":true,"num":0}]"#, 2, Ok(())),
            (r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#, 1, Ok(())),
            (r#"[{"_placeholder":false,"num":7},{"_placeholder":"true"},{"num":9}]"#, 0, Ok(())),
            (r#"["{\"_placeholder\":true,\"num\":0}"]"#, 0, Ok(())),
            (r#"[{"_placeholder":true,"num":0}]"#, 0, Err(DanglingPlaceholder(0))),
            (r#"[{"_placeholder":true,"num":1}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"\u005fplaceholder":true,"n\u0075m":1}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true,"num":-1}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true,"num":"0"}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true,"num":64}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true,"num":99999999999999999999}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true,"x":{"num":0}}]"#, 1, Err(DanglingPlaceholder(1))),
            (r#"[{"_placeholder":true}]"#, 1, Err(DanglingPlaceholder(1))),
            ("[1]", 1, Err(UnusedAttachment(0))),
            (r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":2}]"#, 3, Err(UnusedAttachment(1))),
            ("[]", 65, Err(TooManyAttachments(65))),
        ] {
            assert_eq!(check(args, attachments), expected, "{args}");
        }
        let all: Vec<String> = (0..64).map(|n| format!(r#"{{"_placeholder":true,"num":{n}}}"#)).collect();
        assert_eq!(check(&format!("[{}]", all.join(",")), 64), Ok(()));
    }

    #[test]
    fn an_error_says_nothing_of_what_was_sent() {
        for args in ["\"hunter2\"", "[hunter2]", "{\"hunter2\":1}", "[\"hunter2\" 7]"] {
            let error = check(args, 0).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_check_panic(text in "[\\[\\]{}:,\"\\\\ tn0u1_]{0,40}", attachments in 0_usize..70) {
            let _ = check(&text, attachments);
            let _ = check_valid(&text, attachments);
            let _ = inside(&text);
        }
    }
}
