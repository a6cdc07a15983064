//! The payload's encoding: one for the same fields, and nothing else is read.

use std::collections::BTreeMap;

use keyfold_core::payload::{Fields, PayloadError};
use keyfold_core::secret::SecretBytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

#[test]
fn what_is_not_an_exact_payload_is_refused() {
    use PayloadError::*;
    let cases: [(&str, &[&[u8]], PayloadError); 12] = [
        ("nothing", &[], TooShort),
        ("no count", &[&[1]], TooShort),
        ("format 0", &[&[0], &len(0)], UnknownFormat(0)),
        ("format 2", &[&[2], &len(0)], UnknownFormat(2)),
        ("bytes after no field", &[&[1], &len(0), &[0]], TrailingBytes),
        ("bytes after a field", &[&[1], &len(1), &field("a", b"1"), &[0]], TrailingBytes),
        ("a field fewer than counted", &[&[1], &len(2), &field("a", b"1")], TooShort),
        ("as many fields as a u32 counts", &[&[1], &len(u32::MAX)], TooShort),
        ("a value longer than the rest", &[&[1], &len(1), &len(1), b"a", &len(u32::MAX), b"1"], TooShort),
        ("a name twice", &[&[1], &len(2), &field("a", b"1"), &field("a", b"2")], NotAscending),
        ("names out of order", &[&[1], &len(2), &field("b", b"1"), &field("a", b"2")], NotAscending),
        ("a name that is not UTF-8", &[&[1], &len(1), &len(1), &[0xFF], &len(0)], NameNotUtf8),
    ];
    for (what, parts, expected) in cases {
        assert_eq!(Fields::decode(SecretBytes::new(parts.concat())).err(), Some(expected), "{what}");
    }
}

#[test]
fn inserting_a_name_again_replaces_its_value_and_hands_back_the_old_one() {
    let mut fields = Fields::new();
    assert!(fields.is_empty());
    assert!(fields.insert("a".to_owned(), SecretBytes::new(vec![1])).is_none());
    let replaced = fields.insert("a".to_owned(), SecretBytes::new(vec![2]));
    assert!(replaced.is_some_and(|old| old.expose() == [1]));
    assert_eq!(fields.len(), 1);
    assert!(fields.iter().all(|(name, value)| name == "a" && value.expose() == [2]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn fields_survive_encoding(plain in btree_map(".{0,20}", vec(any::<u8>(), 0..100), 0..8)) {
        let encoded = fields(&plain).encode();
        let decoded = Fields::decode(encoded);
        let decoded = decoded.map(|fields| fields.into_iter().map(|(k, v)| (k, v.into_vec())).collect());
        prop_assert_eq!(decoded, Ok(plain));
    }

    #[test]
    fn encoding_allocates_exactly_once(plain in btree_map(".{0,20}", vec(any::<u8>(), 0..100), 0..8)) {
        let encoded = fields(&plain).encode().into_vec();
        prop_assert_eq!(encoded.capacity(), encoded.len());
    }

    #[test]
    fn whatever_decodes_is_the_encoding_of_its_fields(
        count in 0u32..3,
        rest in vec(prop_oneof![4 => 0u8..3, 1 => any::<u8>()], 0..40),
    ) {
        let bytes = [&[1], len(count).as_slice(), &rest].concat();
        if let Ok(fields) = Fields::decode(SecretBytes::new(bytes.clone())) {
            prop_assert_eq!(fields.encode().into_vec(), bytes);
        }
    }
}

fn fields(plain: &BTreeMap<String, Vec<u8>>) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in plain {
        fields.insert(name.clone(), SecretBytes::new(value.clone()));
    }
    fields
}

fn field(name: &str, value: &[u8]) -> Vec<u8> {
    [&len(name.len() as u32), name.as_bytes(), &len(value.len() as u32), value].concat()
}

fn len(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}
