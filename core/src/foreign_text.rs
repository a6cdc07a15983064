//! Text that others wrote (a pod's author, the server, kubelet), made fit for events, terminals and logs.

/// Most characters of one quoted name or value.
const QUOTED_CHARS_MAX: usize = 64;

/// `text` with each character escaped that does not simply show as itself: control characters of C0 and C1, which
/// steer terminals, line separators, and Unicode's format characters, which hide text or turn its direction. What was
/// escaped before stays as it is, and so do quotes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            // The rule of `{:?}`: what Unicode's general category makes not printable.
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

/// A name or value for a message: in quotes, escaped, and at most 64 characters of it.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every control and format character (general categories Cc, Cf, Zl and Zp) up to the tags, which end them.
    fn steering() -> impl Iterator<Item = char> {
        let ranges = [
            '\0'..='\u{1f}',
            '\u{7f}'..='\u{9f}',
            '\u{ad}'..='\u{ad}',
            '\u{600}'..='\u{605}',
            '\u{61c}'..='\u{61c}',
            '\u{180e}'..='\u{180e}',
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{2064}',
            '\u{2066}'..='\u{206f}',
            '\u{feff}'..='\u{feff}',
            '\u{fff9}'..='\u{fffb}',
            '\u{1d173}'..='\u{1d17a}',
            '\u{e0001}'..='\u{e0001}',
            '\u{e0020}'..='\u{e007f}',
        ];
        ranges.into_iter().flatten()
    }

    #[test]
    fn what_steers_a_terminal_or_hides_text_is_escaped() {
        for c in steering() {
            for shown in [escaped(&format!("a{c}b")), quoted(&format!("a{c}b"))] {
                assert!(shown.is_ascii() && !shown.contains(c), "{c:?}: {shown:?}");
            }
        }
        assert_eq!(escaped("\u{1b}[2J\u{9b}1m\u{202e}x\r\n"), r"\u{1b}[2J\u{9b}1m\u{202e}x\r\n");
    }

    #[test]
    fn ordinary_text_and_what_was_escaped_before_stay_as_they_are() {
        for text in ["it's \"payments/db\"", "äöü 漢字", r"a \u{1b} b\n", ""] {
            assert_eq!(escaped(text), text);
        }
    }

    #[test]
    fn a_quoted_text_is_short() {
        assert_eq!(quoted("a\"b"), r#""a\"b""#);
        assert_eq!(quoted(&"ä".repeat(70)), format!("\"{}\"…", "ä".repeat(64)));
    }

    proptest! {
        #[test]
        fn an_escaped_text_holds_nothing_to_escape(text in "\\PC{0,20}|.{0,20}|[\\x00-\\u{a0}\u{202e}]{0,20}") {
            let once = escaped(&text);
            prop_assert!(!once.contains(char::is_control));
            prop_assert_eq!(escaped(&once), once);
        }
    }
}
