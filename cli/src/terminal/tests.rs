use super::*;

/// C0, DEL, C1, bidirectional marks, embeddings, overrides and isolates, zero-width, separators, tags.
const STEERING: &str = "\0\u{7}\u{8}\t\r\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9d}\u{ad}\u{61c}\u{180e}\u{200b}\u{200d}\
    \u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\
    \u{feff}\u{fff9}\u{e0001}\u{e0041}";

#[test]
fn each_steering_character_becomes_a_space() {
    for character in STEERING.chars().chain(['\n']) {
        assert_eq!(one_line(&format!("a{character}b")), "a b", "{character:?}");
    }
    assert_eq!(one_line(&format!("{STEERING}a{STEERING}b{STEERING}")), "a b");
}

#[test]
fn letters_of_every_script_stay() {
    for text in ["pässe/db", "שלום", "مرحبا", "支払い", "🔑", "a  b\u{a0}c", "e\u{301}"] {
        assert_eq!(one_line(text), text);
        assert_eq!(*escaped(text, Notation::Json), text);
    }
}

#[test]
fn escaped_json_reads_as_before() {
    let text = serde_json::to_string_pretty(&[STEERING, "a\n\"b\""]).unwrap();
    let shown = escaped(&text, Notation::Json);
    assert!(is_plain(&shown) && !is_plain(&text), "{shown:?}");
    assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [STEERING, "a\n\"b\""]);
    assert_eq!(*escaped("\u{202e}\u{e0041}", Notation::Json), r"\u202e\udb40\udc41");
}

#[test]
fn the_escaped_text_never_grows_out_of_its_buffer() {
    for notation in [Notation::Json, Notation::Yaml] {
        for worst in ["\u{7f}", "\u{9b}", "\u{202e}", "\u{e0041}"] {
            let text = worst.repeat(1000);
            let escaped = escaped(&text, notation);
            assert_eq!(escaped.capacity(), text.len() + 12_000, "{worst:?}");
        }
    }
}
