//! What others wrote must not steer the operator's terminal, nor change how the text around it reads: escape
//! sequences, line breaks, reversed and invisible writing. Secrets' paths, tokens' claims and refused requests
//! come from anyone.

use std::fmt::Write as _;

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};
use zeroize::Zeroizing;

/// How strings name a character that is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// Its UTF-16 units, such as `\u202e` (RFC 8259, section 7).
    Json,
    /// Its code point, such as `\U0000202E` (YAML 1.2.2, section 5.7).
    Yaml,
}

/// `text` with every run of steering characters as one space.
pub fn one_line(text: &str) -> String {
    let pieces: Vec<&str> = text.split(steers).filter(|piece| !piece.trim().is_empty()).collect();
    pieces.join(" ")
}

/// Whether no character of `text` but its line breaks and tabs steers.
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(must_be_escaped)
}

/// `text` with every steering character but line breaks and tabs in this notation. Sound where those stand within
/// double-quoted strings only, as they do in JSON.
pub fn escaped(text: &str, notation: Notation) -> Zeroizing<String> {
    let steering = text.chars().filter(|character| must_be_escaped(*character)).count();
    // Two UTF-16 units of six characters are the longest. Growing would leave a copy of what may be a secret.
    let mut out = Zeroizing::new(String::with_capacity(text.len() + steering * 12));
    for character in text.chars() {
        // Writing to a string does not fail.
        let _ = match notation {
            _ if !must_be_escaped(character) => out.write_char(character),
            Notation::Yaml => write!(out, "\\U{:08X}", u32::from(character)),
            Notation::Json => {
                let mut units = [0; 2];
                character.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
            }
        };
    }
    out
}

fn must_be_escaped(character: char) -> bool {
    steers(character) && !matches!(character, '\n' | '\t')
}

/// Whether a character acts on the text around it instead of showing itself: C0 and C1 controls, and Unicode's
/// format characters (bidirectional, zero-width, tags) and separators of lines and paragraphs.
fn steers(character: char) -> bool {
    matches!(
        character.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    )
}

#[cfg(test)]
mod tests;
