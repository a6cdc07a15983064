//! The envelope fails closed: a blob opens in its own place, under its own key, unchanged, or not at all.

use keyfold_core::entropy::{Entropy, EntropyError, SystemEntropy};
use keyfold_core::envelope::{
    AssociatedData, DekContext, KekContext, KeyRef, OVERHEAD_BYTES, OpenError, PayloadContext,
    RecoveryContext, RwkContext, SealError, key_ref, metadata_digest, open, recovery_key_id, root_key_id,
    seal,
};
use keyfold_core::secret::{Key, SecretBytes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

const KEY: [u8; 32] = [0x5A; 32];
const KEY_REF: KeyRef = KeyRef { id: Uuid::from_u128(0x77), version: 3 };
const PLAINTEXT: &[u8] = b"correct horse battery staple";

#[test]
fn attack_18_every_flipped_bit_of_a_blob_fails_closed() {
    let blob = sealed();
    for bit in 0..blob.len() * 8 {
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // The layer that refuses depends on the field: see the layout in keyfold_core::envelope.
        let refused_by = |error: &OpenError| match bit / 8 {
            0..2 => matches!(error, OpenError::NotABlob),
            2..4 => matches!(error, OpenError::UnknownSuite(_)),
            4..24 => matches!(error, OpenError::OtherKey { .. }),
            24..56 => matches!(error, OpenError::WrongKey),
            56..68 => matches!(error, OpenError::Tampered),
            68..100 => matches!(error, OpenError::WrongKey),
            _ => matches!(error, OpenError::Tampered),
        };
        let error = refusal(open(&key(), KEY_REF, &place(), &changed));
        assert!(refused_by(&error), "bit {bit}: {error}");
    }
}

#[test]
fn attack_18_every_truncation_and_any_appended_byte_fails_closed() {
    let blob = sealed();
    for len in 0..blob.len() {
        let error = refusal(open(&key(), KEY_REF, &place(), &blob[..len]));
        let expected = if len < OVERHEAD_BYTES { OpenError::NotABlob } else { OpenError::Tampered };
        assert_eq!(error, expected, "cut to {len} bytes");
    }
    for byte in 0..=255 {
        let longer = [blob.as_slice(), &[byte]].concat();
        assert_eq!(refusal(open(&key(), KEY_REF, &place(), &longer)), OpenError::Tampered);
    }
}

#[test]
fn attack_18_a_blob_opens_by_no_other_suite() {
    let mut blob = sealed();
    assert_eq!(blob[2..4], [0, 2]);
    blob[3] = 1;
    assert_eq!(refusal(open(&key(), KEY_REF, &place(), &blob)), OpenError::WrongKey);
}

#[test]
fn attack_18_another_key_is_told_by_the_commitment() {
    for byte in 0..32 {
        let mut other = KEY;
        other[byte] ^= 0x80;
        let error = refusal(open(&Key::from_bytes(&other), KEY_REF, &place(), &sealed()));
        assert_eq!(error, OpenError::WrongKey);
    }
}

#[test]
fn another_key_reference_is_refused_and_both_are_named() {
    let others = [KeyRef { version: 4, ..KEY_REF }, KeyRef { id: Uuid::from_u128(0x78), ..KEY_REF }];
    for expected in others {
        let error = refusal(open(&key(), expected, &place(), &sealed()));
        assert_eq!(error, OpenError::OtherKey { sealed_under: KEY_REF, expected });
        assert!(error.to_string().contains(&KEY_REF.to_string()));
        assert!(error.to_string().contains(&expected.to_string()));
    }
}

#[test]
fn the_key_reference_is_read_without_the_key() {
    assert_eq!(key_ref(&sealed()), Ok(KEY_REF));
    assert_eq!(key_ref(&[]), Err(OpenError::NotABlob));
    assert_eq!(key_ref(&[0; 200]), Err(OpenError::NotABlob));
}

#[test]
fn two_seals_of_one_plaintext_share_nothing_but_the_key_reference() {
    let (first, second) = (sealed(), sealed());
    assert_eq!(first[..24], second[..24]);
    for field in [24..56, 56..68, 68..100, 100..first.len() - 16, first.len() - 16..first.len()] {
        assert_ne!(first[field.clone()], second[field.clone()], "bytes {field:?}");
    }
}

#[test]
fn without_randomness_nothing_is_sealed() {
    struct Exhausted;
    impl Entropy for Exhausted {
        fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
            Err(EntropyError)
        }
    }
    assert_eq!(seal(&key(), KEY_REF, &place(), PLAINTEXT, &Exhausted), Err(SealError::Entropy(EntropyError)));
    assert_eq!(Key::generate(&Exhausted).err(), Some(EntropyError));
}

#[test]
fn attack_18_a_payload_opens_in_no_other_place() {
    let original = PayloadContext {
        installation: id(1),
        keyspace: id(2),
        secret: id(3),
        version: 4,
        dek: id(5),
        metadata_digest: metadata_digest("payments/db", 6, "admin"),
    };
    let moved_digest =
        |path, micros, by| PayloadContext { metadata_digest: metadata_digest(path, micros, by), ..original };
    let moved = [
        PayloadContext { installation: id(9), ..original },
        PayloadContext { keyspace: id(9), ..original },
        PayloadContext { secret: id(9), ..original },
        PayloadContext { version: 5, ..original },
        PayloadContext { dek: id(9), ..original },
        PayloadContext { keyspace: original.secret, secret: original.keyspace, ..original },
        moved_digest("payments/dB", 6, "admin"),
        moved_digest("payments/db", 7, "admin"),
        moved_digest("payments/db", 6, "admin2"),
    ];
    opens_only_in(original.associated_data(), moved.map(|place| place.associated_data()));
}

#[test]
fn attack_18_a_wrapped_dek_opens_in_no_other_place() {
    let original = DekContext {
        installation: id(1),
        keyspace: id(2),
        secret: id(3),
        version: 4,
        dek: id(5),
        kek: id(6),
        kek_version: 7,
    };
    let moved = [
        DekContext { installation: id(9), ..original },
        DekContext { keyspace: id(9), ..original },
        DekContext { secret: id(9), ..original },
        DekContext { version: 5, ..original },
        DekContext { dek: id(9), ..original },
        DekContext { kek: id(9), ..original },
        DekContext { kek_version: 8, ..original },
        DekContext { version: original.kek_version, kek_version: original.version, ..original },
        DekContext { dek: original.kek, kek: original.dek, ..original },
    ];
    opens_only_in(original.associated_data(), moved.map(|place| place.associated_data()));
}

#[test]
fn attack_18_a_wrapped_kek_opens_in_no_other_place() {
    let original = KekContext {
        installation: id(1),
        keyspace: id(2),
        purpose: "data",
        kek: id(3),
        kek_version: 4,
        root_key_id: id(5),
    };
    let moved = [
        KekContext { installation: id(9), ..original },
        KekContext { keyspace: id(9), ..original },
        KekContext { purpose: "row-mac", ..original },
        KekContext { purpose: "datb", ..original },
        KekContext { purpose: "", ..original },
        KekContext { kek: id(9), ..original },
        KekContext { kek_version: 5, ..original },
        KekContext { root_key_id: id(9), ..original },
    ];
    opens_only_in(original.associated_data(), moved.map(|place| place.associated_data()));
}

#[test]
fn attack_18_the_root_wrapping_key_opens_in_no_other_place() {
    let original = RwkContext { installation: id(1), rwk: id(2), rwk_version: 3, root_key_id: id(4) };
    let moved = [
        RwkContext { installation: id(9), ..original },
        RwkContext { rwk: id(9), ..original },
        RwkContext { rwk_version: 4, ..original },
        RwkContext { root_key_id: id(9), ..original },
    ];
    opens_only_in(original.associated_data(), moved.map(|place| place.associated_data()));
}

#[test]
fn attack_18_what_recovery_rests_on_opens_in_no_other_place() {
    let original =
        RecoveryContext { installation: id(1), rwk: id(2), rwk_version: 3, recovery_key_id: id(4) };
    let moved = [
        RecoveryContext { installation: id(9), ..original },
        RecoveryContext { rwk: id(9), ..original },
        RecoveryContext { rwk_version: 4, ..original },
        RecoveryContext { recovery_key_id: id(9), ..original },
    ];
    opens_only_in(original.rwk_associated_data(), moved.map(|place| place.rwk_associated_data()));
    let moved = moved.map(|place| place.recovery_key_associated_data());
    opens_only_in(original.recovery_key_associated_data(), moved);
}

#[test]
fn nothing_opens_in_a_place_of_another_kind() {
    let (installation, keyspace, root_key_id) = (id(1), id(2), id(3));
    let payload = PayloadContext { installation, keyspace, ..payload_place() };
    let PayloadContext { secret, version, dek, .. } = payload;
    let recovery = RecoveryContext { installation, rwk: id(6), rwk_version: 7, recovery_key_id: root_key_id };
    let places = [
        payload.associated_data(),
        DekContext { installation, keyspace, secret, version, dek, kek: id(6), kek_version: 7 }
            .associated_data(),
        KekContext { installation, keyspace, purpose: "data", kek: id(6), kek_version: 7, root_key_id }
            .associated_data(),
        RwkContext { installation, rwk: id(6), rwk_version: 7, root_key_id }.associated_data(),
        recovery.rwk_associated_data(),
        recovery.recovery_key_associated_data(),
    ];
    for sealed_in in 0..places.len() {
        let mut others = places.to_vec();
        let original = others.remove(sealed_in);
        opens_only_in(original, others);
    }
}

#[test]
fn metadata_cannot_shift_between_its_fields() {
    assert_ne!(metadata_digest("ab", 0, "c"), metadata_digest("a", 0, "bc"));
    assert_ne!(metadata_digest("", 0, "ab"), metadata_digest("ab", 0, ""));
}

#[test]
fn a_root_key_is_named_by_its_material() {
    let named = root_key_id(&key());
    assert_eq!(named, root_key_id(&key()));
    assert_ne!(named, root_key_id(&Key::from_bytes(&[0x5B; 32])));
    assert_eq!(named.get_version_num(), 8);
    assert_ne!(named, recovery_key_id(&key()), "the same material in another part");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_sealed_opens_again(
        key: [u8; 32],
        id: u128,
        version: u32,
        secret: u128,
        plaintext in vec(any::<u8>(), 0..2000),
    ) {
        let (key, key_ref) = (Key::from_bytes(&key), KeyRef { id: Uuid::from_u128(id), version });
        let place = PayloadContext { secret: Uuid::from_u128(secret), ..payload_place() }.associated_data();
        let blob = seal(&key, key_ref, &place, &plaintext, &SystemEntropy).unwrap();
        prop_assert_eq!(blob.len(), plaintext.len() + OVERHEAD_BYTES);
        prop_assert_eq!(blob.capacity(), blob.len());
        let opened = open(&key, key_ref, &place, &blob);
        prop_assert!(opened.is_ok_and(|opened| opened.expose() == plaintext));
    }

    #[test]
    fn a_changed_blob_never_opens(
        plaintext in vec(any::<u8>(), 0..500),
        at in any::<Index>(),
        change in 1u8..,
        cut in any::<Index>(),
    ) {
        let blob = seal(&key(), KEY_REF, &place(), &plaintext, &SystemEntropy).unwrap();
        let mut changed = blob.clone();
        changed[at.index(blob.len())] ^= change;
        prop_assert!(open(&key(), KEY_REF, &place(), &changed).is_err());
        prop_assert!(open(&key(), KEY_REF, &place(), &blob[..cut.index(blob.len())]).is_err());
    }

    #[test]
    fn foreign_bytes_are_refused_without_a_panic(
        well_formed_start in prop_oneof![Just(&b"KF\x00\x01"[..]), Just(&b"KF\x00\x02"[..]), Just(&b""[..])],
        rest in vec(any::<u8>(), 0..300),
    ) {
        let bytes = [well_formed_start, &rest].concat();
        let named = key_ref(&bytes).unwrap_or(KEY_REF);
        prop_assert!(open(&key(), named, &place(), &bytes).is_err());
    }

    #[test]
    fn the_ciphertext_of_one_blob_never_opens_under_the_header_of_another(
        first in vec(any::<u8>(), 0..100),
        second in vec(any::<u8>(), 0..100),
    ) {
        let first = seal(&key(), KEY_REF, &place(), &first, &SystemEntropy).unwrap();
        let second = seal(&key(), KEY_REF, &place(), &second, &SystemEntropy).unwrap();
        let header_bytes = OVERHEAD_BYTES - 16;
        let mixed = [&first[..header_bytes], &second[header_bytes..]].concat();
        prop_assert_eq!(open(&key(), KEY_REF, &place(), &mixed).err(), Some(OpenError::Tampered));
    }
}

fn opens_only_in(original: AssociatedData, moved: impl IntoIterator<Item = AssociatedData>) {
    let blob = seal(&key(), KEY_REF, &original, PLAINTEXT, &SystemEntropy).unwrap();
    assert!(open(&key(), KEY_REF, &original, &blob).is_ok_and(|opened| opened.expose() == PLAINTEXT));
    for (index, elsewhere) in moved.into_iter().enumerate() {
        let error = refusal(open(&key(), KEY_REF, &elsewhere, &blob));
        assert_eq!(error, OpenError::Tampered, "place {index}");
    }
}

fn sealed() -> Vec<u8> {
    seal(&key(), KEY_REF, &place(), PLAINTEXT, &SystemEntropy).unwrap()
}

fn key() -> Key {
    Key::from_bytes(&KEY)
}

fn place() -> AssociatedData {
    payload_place().associated_data()
}

fn payload_place() -> PayloadContext {
    PayloadContext {
        installation: id(1),
        keyspace: id(2),
        secret: id(3),
        version: 4,
        dek: id(5),
        metadata_digest: [6; 32],
    }
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn refusal(result: Result<SecretBytes, OpenError>) -> OpenError {
    result.err().expect("must not open")
}
