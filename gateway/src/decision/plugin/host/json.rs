//! Is this JSON what the contract says it is? One pass, nothing allocated.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Checks the arguments of a payload: a JSON array whose placeholders stand for attachments
/// that are there.
pub(in super::super) fn check_args(args: &str, attachments: usize) -> Result<(), String> {
    if !args.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('[') {
        return Err("the arguments of a payload are a JSON array".into());
    }
    let mut json = serde_json::Deserializer::from_str(args);
    let walked = Walk { attachments }.deserialize(&mut json).and_then(|_| json.end());
    walked.map_err(|error| format!("the arguments of a payload are not valid: {error}"))
}

/// Checks that a text is JSON.
pub(in super::super) fn check(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| format!("not valid JSON: {error}"))
}

/// Walks over a value, looking for `{"_placeholder":true,"num":N}`.
#[derive(Clone, Copy)]
struct Walk {
    attachments: usize,
}

/// As much of a value as the object around it needs to know.
#[derive(PartialEq, Eq)]
enum Seen {
    True,
    Number(u64),
    Other,
}

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = Seen;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Seen, E> {
        Ok(if value { Seen::True } else { Seen::Other })
    }

    fn visit_u64<E>(self, value: u64) -> Result<Seen, E> {
        Ok(Seen::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(Seen::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Seen, A::Error> {
        let (mut placeholder, mut number) = (false, Seen::Other);
        while let Some(key) = fields.next_key_seed(Key)? {
            let value = fields.next_value_seed(self)?;
            match key {
                Name::Placeholder => placeholder = value == Seen::True,
                Name::Number => number = value,
                Name::Other => {}
            }
        }
        let stands = matches!(number, Seen::Number(n) if usize::try_from(n).is_ok_and(|n| n < self.attachments));
        if placeholder && !stands {
            let attachments = self.attachments;
            return Err(serde::de::Error::custom(format_args!(
                "a placeholder stands for an attachment that is not there; there are {attachments}"
            )));
        }
        Ok(Seen::Other)
    }
}

struct Key;

enum Name {
    Placeholder,
    Number,
    Other,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Name;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            "_placeholder" => Name::Placeholder,
            "num" => Name::Number,
            _ => Name::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_an_array() {
        for ok in
            ["[]", " [1,\"a\",null,-2,1.5,{\"a\":[true]}]", "[{\"num\":7}]", "[{\"_placeholder\":false,\"num\":7}]"]
        {
            assert_eq!(check_args(ok, 0), Ok(()), "{ok}");
        }
        for bad in ["", "{}", "1", "[", "[1,]", "[1]x", "[\"\u{1}\"]", "[\"\\ud800\"]"] {
            assert!(check_args(bad, 0).is_err(), "{bad}");
        }
        assert!(check_args(&"[".repeat(100_000), 0).is_err());
    }

    #[test]
    fn placeholders_stand_for_attachments_that_are_there() {
        let one = r#"[{"deep":[{"num":1,"_placeholder":true}]}]"#;
        assert!(check_args(one, 2).is_ok());
        assert!(check_args(one, 1).unwrap_err().contains("there are 1"));
        for bad in [
            r#"[{"_placeholder":true}]"#,
            r#"[{"_placeholder":true,"num":-1}]"#,
            r#"[{"_placeholder":true,"num":"0"}]"#,
            r#"[{"\u005fplaceholder":true,"num":3}]"#,
        ] {
            assert!(check_args(bad, 1).is_err(), "{bad}");
        }
    }
}
