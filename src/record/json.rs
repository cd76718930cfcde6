//! JSON as text: free-form JSON travels and is shown as the text it came in, with the white space
//! between tokens taken out, so that no dependency can reorder its keys or round its numbers.

use crate::error::{Error, Result};
use serde::de::IgnoredAny;
use std::fmt::Write as _;

/// A valid JSON value in compact form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Takes any JSON text. Key order, numbers and escapes stay as they are.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str::<IgnoredAny>(text)
            .map_err(|e| Error::misuse(format!("not valid JSON: {e}")))?;
        Ok(Self(compact(text)))
    }

    /// Takes anything that serializes; a struct's fields come in their order.
    pub fn of(value: &impl serde::Serialize) -> Result<Self> {
        let text = serde_json::to_string(value).map_err(|e| Error::misuse(format!("no JSON: {e}")))?;
        Ok(Self(text))
    }

    /// `{}`.
    pub fn empty() -> Self {
        Self("{}".to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The members of an object in their order; `None` where it is none.
    pub fn members(&self) -> Option<Vec<(String, Box<serde_json::value::RawValue>)>> {
        serde_json::from_str::<Members>(&self.0).ok().map(|m| m.0)
    }

    /// The same text as a value to embed in other JSON.
    pub fn raw(&self) -> Box<serde_json::value::RawValue> {
        // Checked when it was made, so the other arm is never taken.
        serde_json::value::RawValue::from_string(self.0.clone()).unwrap_or_default()
    }
}

struct Members(Vec<(String, Box<serde_json::value::RawValue>)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Takes white space out from between the tokens of valid JSON.
fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if !matches!(c, ' ' | '\t' | '\n' | '\r') {
            in_string = c == '"';
            out.push(c);
        }
    }
    out
}

/// Whether a character could move a cursor, change what is shown around it, or end a line.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Shows text on one line: backslashes doubled, and everything that could forge a line, move the
/// cursor or reorder what is shown, written as an escape. Distinct texts stay distinct.
pub fn escape_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// The same for JSON text, where such characters can only stand within strings and have an escape
/// of their own, so that it stays the same JSON.
pub(crate) fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_keeps_order_numbers_and_escapes() {
        let text = JsonText::parse(" { \"b\" : 1.10 , \"a\": [ 12345678901234567890123 , \"x \\\" y\" ] } ")
            .unwrap();
        assert_eq!(text.as_str(), r#"{"b":1.10,"a":[12345678901234567890123,"x \" y"]}"#);
        assert!(JsonText::parse("{} {}").is_err());
        assert!(JsonText::parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn a_line_stays_one_line_and_can_be_told_apart(a in ".*", b in ".*") {
            let shown = escape_line(&a);
            prop_assert!(!shown.chars().any(is_unsafe));
            prop_assert_eq!(a == b, shown == escape_line(&b));
        }

        #[test]
        fn escaped_json_is_the_same_json(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let back: String = serde_json::from_str(&escape_json(&json)).unwrap();
            prop_assert_eq!(text, back);
        }
    }
}
