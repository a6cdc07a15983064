//! Sealed blobs, and the plaintext form of what they hold.

use std::sync::OnceLock;

use keyfold_core::{
    entropy::{Entropy, EntropyError},
    envelope::{AssociatedData, KeyRef, PayloadContext, key_ref, open, seal},
    payload::Fields,
    secret::{Key, SecretBytes},
};
use uuid::Uuid;

const PLAINTEXT: &[u8] = b"the plaintext of the one blob that opens";

/// The first byte says what the others are: a blob, changes to a good blob, or a payload.
pub fn blob(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => foreign(rest),
        1 => changed(rest),
        _ => payload(rest),
    }
}

/// Nobody without the key makes a blob that opens, also when it names the right key.
fn foreign(bytes: &[u8]) {
    let opened = open(&key(), KEY_REF, &place(), bytes);
    assert_eq!(opened.is_ok(), bytes == sealed(), "a foreign blob opens");
    if let Ok(named) = key_ref(bytes) {
        assert_eq!(open(&key(), named, &place(), bytes).is_ok(), bytes == sealed());
    }
}

/// Three bytes are one change: where, as two bytes, and what to XOR. Whatever was changed, the blob stays shut.
fn changed(changes: &[u8]) {
    let mut blob = sealed().to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % blob.len();
        blob[at] ^= change[2];
    }
    // An incomplete last change cuts the end off.
    blob.truncate(blob.len() - changes.chunks_exact(3).remainder().len());
    match open(&key(), KEY_REF, &place(), &blob) {
        Ok(opened) => assert!(blob == sealed() && opened.expose() == PLAINTEXT, "a changed blob opens"),
        Err(_) => assert!(blob != sealed(), "the sealed blob does not open"),
    }
    if blob == sealed() {
        let moved = PayloadContext { version: 5, ..PLACE }.associated_data();
        assert!(open(&key(), KEY_REF, &moved, &blob).is_err(), "a blob opens in another place");
    }
}

/// The same fields have one encoding.
fn payload(bytes: &[u8]) {
    if let Ok(fields) = Fields::decode(SecretBytes::new(bytes.to_vec())) {
        assert_eq!(fields.encode().expose(), bytes);
    }
}

const KEY_REF: KeyRef = KeyRef { id: Uuid::from_u128(7), version: 3 };

const PLACE: PayloadContext = PayloadContext {
    installation: Uuid::from_u128(1),
    keyspace: Uuid::from_u128(2),
    secret: Uuid::from_u128(3),
    version: 4,
    dek: Uuid::from_u128(5),
    metadata_digest: [6; 32],
};

fn key() -> Key {
    Key::from_bytes(&[0x5A; 32])
}

fn place() -> AssociatedData {
    PLACE.associated_data()
}

/// The same blob in each run, so that an input that fails once fails again.
fn sealed() -> &'static [u8] {
    static SEALED: OnceLock<Vec<u8>> = OnceLock::new();
    SEALED.get_or_init(|| seal(&key(), KEY_REF, &place(), PLAINTEXT, &Same).expect("it can be sealed"))
}

struct Same;

impl Entropy for Same {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        out.fill(0xC3);
        Ok(())
    }
}
