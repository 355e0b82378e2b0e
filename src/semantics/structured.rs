//! Strings, tokens and byte sequences of structured fields (RFC 9651): no more of them is needed.

use super::fields::is_token_byte;

/// The String at the beginning of `text` (RFC 9651 §4.2.5), and what follows it.
pub fn string(text: &[u8]) -> Option<(String, &[u8])> {
    let [b'"', rest @ ..] = text else { return None };
    let (mut rest, mut string) = (rest, String::new());
    loop {
        let (byte, after) = match rest {
            [b'"', after @ ..] => return Some((string, after)),
            [b'\\', byte @ (b'"' | b'\\'), after @ ..] => (*byte, after),
            [byte @ (b' '..=b'[' | b']'..=b'~'), after @ ..] => (*byte, after),
            _ => return None,
        };
        string.push(char::from(byte));
        rest = after;
    }
}

/// A member of a List that is a String; its parameters are not looked at (RFC 9651 §3.1).
pub fn string_member(member: &[u8]) -> Option<String> {
    let (string, rest) = string(member)?;
    matches!(rest, [] | [b';', ..]).then_some(string)
}

/// Byte Sequences as members of a List (RFC 9651 §4.1.1, §4.1.8).
pub fn byte_sequences<'a>(members: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut list = sfv::ListSerializer::new();
    for member in members {
        let _ = list.bare_item(member); // parameters would follow
    }
    list.finish().unwrap_or_default()
}

/// Where text is written to, piece by piece.
pub trait Text {
    fn put(&mut self, piece: &[u8]);
}

impl Text for Vec<u8> {
    fn put(&mut self, piece: &[u8]) {
        self.extend_from_slice(piece);
    }
}

/// Writes a Token where the text is one, else a String (RFC 9651 §3.3.3, §3.3.4).
pub fn write_item(text: &str, out: &mut impl Text) {
    if is_token(text.as_bytes()) { out.put(text.as_bytes()) } else { write_string(text, out) }
}

fn is_token(text: &[u8]) -> bool {
    let starts = matches!(text.first(), Some(b'*' | b'a'..=b'z' | b'A'..=b'Z'));
    starts && text.iter().all(|byte| is_token_byte(*byte) || matches!(byte, b':' | b'/'))
}

/// Writes a String: `"` and `\` are escaped, what is not printable ASCII is percent-encoded.
pub fn write_string(text: &str, out: &mut impl Text) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.put(b"\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.put(&[b'\\', byte]),
            b' '..=b'~' => out.put(&[byte]),
            _ => out.put(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    out.put(b"\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strings_end_at_the_first_quote_that_is_not_escaped() {
        for (text, want) in [
            (r#""a""#, Some("a")),
            (r#""a\"b\\";x=1"#, Some(r#"a"b\"#)),
            (r#""""#, Some("")),
            (r#""a""b""#, None),
            (r#""a" b"#, None),
            (r#""a\b""#, None),
            (r#""a"#, None),
            (r#""a\""#, None),
            ("a", None),
            ("\"\u{e9}\"", None),
            ("\"\t\"", None),
        ] {
            assert_eq!(string_member(text.as_bytes()).as_deref(), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "[ -~]{0,20}") {
            let mut written = Vec::new();
            write_string(&text, &mut written);
            prop_assert_eq!(string_member(&written), Some(text));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let quoted = [b"\"", &bytes[..]].concat();
            for text in [&bytes, &quoted] {
                if let Some((string, rest)) = string(text) {
                    prop_assert!(string.len() + rest.len() + 2 <= text.len() && string.is_ascii());
                }
            }
        }
    }
}
