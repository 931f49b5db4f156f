//! Words of a peer, made fit for a terminal and a log: one line of bounded length in which nothing is obeyed.
//!
//! A host's refusals, reasons for closing, and names that a client asks for are written by somebody else. Raw they could move the cursor,
//! write lines into a log that look like ours, or fill it.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::{Deserialize, Deserializer};

/// Longest words of a peer that are shown, in characters: the longest refusal of our own has some 400.
pub const PEER_CHARS_MAX: usize = 1_000;

/// A peer's words as one line of at most [`PEER_CHARS_MAX`] characters.
pub fn of_peer(text: &str) -> Cow<'_, str> {
    line(text, PEER_CHARS_MAX)
}

/// Text as one line of at most `chars_max` characters: what is longer ends in `…`, and what a terminal would obey, or what would
/// turn or hide the text around it, is written as an escape.
pub fn line(text: &str, chars_max: usize) -> Cow<'_, str> {
    if text.len() <= chars_max && !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut chars) = (String::new(), 0);
    for letter in text.chars() {
        let before = shown.len();
        if is_obeyed(letter) {
            let _ = write!(shown, "{}", letter.escape_default());
            chars += shown.len() - before;
        } else {
            shown.push(letter);
            chars += 1;
        }
        if chars > chars_max {
            shown.truncate(before);
            shown.push('…');
            break;
        }
    }
    Cow::Owned(shown)
}

/// Control characters, the ends of lines and paragraphs of Unicode, and what turns the direction of text or has no width.
fn is_obeyed(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// For serde: a text of a peer.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(match of_peer(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => shown,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{ErrorCode, Reply, WireError, decode_body, encode_frame};

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        for (text, shown) in [
            ("no such export \"films\"", "no such export \"films\""),
            ("für Änne", "für Änne"),
            ("\u{1b}[2Jroot# ", "\\u{1b}[2Jroot# "),
            ("no\nwormhole: mounted\r\t", "no\\nwormhole: mounted\\r\\t"),
            ("a\u{202e}b\u{2028}c\u{feff}", "a\\u{202e}b\\u{2028}c\\u{feff}"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
        ] {
            assert_eq!(line(text, 100), shown);
        }
        assert_eq!(line("äbcdef", 6), "äbcdef");
        assert_eq!(line("äbcdefg", 6), "äbcdef…");
        assert_eq!(line("abc\n", 4), "abc…", "no half escape");
    }

    #[test]
    fn a_hosts_refusal_is_made_fit_where_it_is_read() {
        let text = format!("\u{1b}]0;title\u{7}\n{}", "x".repeat(10_000));
        let said: Result<Reply, WireError> = Err(WireError::new(ErrorCode::Refused, text));
        let frame = encode_frame(&said);
        let heard: Result<Reply, WireError> = decode_body(&frame[4..]).unwrap();
        let words = heard.unwrap_err().to_string();
        assert!(words.starts_with("\\u{1b}]0;title\\u{7}\\nxxx") && words.ends_with('…'), "{words}");
        assert_eq!(words.chars().count(), PEER_CHARS_MAX + 1);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_second_line_or_is_too_long(text in any::<String>(), chars_max in 0..40_usize) {
            let shown = line(&text, chars_max);
            prop_assert!(!shown.contains(is_obeyed));
            prop_assert!(shown.chars().count() <= chars_max + 1);
            prop_assert_eq!(line(&shown, chars_max + 1), shown.as_ref());
        }
    }
}
