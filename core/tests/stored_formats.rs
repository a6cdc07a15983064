//! Frozen vectors of every stored format. Installations hold data in these formats: a test that fails here says
//! that their data would no longer open. The expected values come from an independent implementation,
//! `vectors/compute.py`.

use std::sync::Mutex;

use keyfold_core::entropy::{Entropy, EntropyError};
use keyfold_core::envelope::{
    AssociatedData, DekContext, KekContext, KeyRef, PayloadContext, RwkContext, metadata_digest, open,
    root_key_id, seal,
};
use keyfold_core::payload::Fields;
use keyfold_core::secret::{Key, SecretBytes};
use serde_json::Value;
use uuid::Uuid;

#[test]
fn blobs_seal_and_open_as_frozen() {
    let blobs = vectors()["blobs"].as_array().unwrap().clone();
    assert_eq!(blobs.len(), 5);
    for vector in blobs {
        let key = Key::try_from(bytes(&vector["key"]).as_slice()).unwrap();
        let key_ref = KeyRef {
            id: vector["key_id"].as_str().unwrap().parse().unwrap(),
            version: vector["key_version"].as_u64().unwrap().try_into().unwrap(),
        };
        let place = associated_data(vector["place"].as_str().unwrap());
        let (plaintext, blob) = (bytes(&vector["plaintext"]), bytes(&vector["blob"]));

        let entropy = RecordedEntropy(Mutex::new(bytes(&vector["salt_and_nonce"])));
        assert_eq!(seal(&key, key_ref, &place, &plaintext, &entropy).unwrap(), blob, "{vector}");
        let opened = open(&key, key_ref, &place, &blob).unwrap();
        assert_eq!(opened.expose(), plaintext, "{vector}");
    }
}

#[test]
fn associated_data_of_each_place_is_as_frozen() {
    for (place, expected) in vectors()["associated_data"].as_object().unwrap() {
        assert_eq!(associated_data(place).as_bytes(), bytes(expected), "{place}");
    }
}

#[test]
fn root_key_id_and_metadata_digest_are_as_frozen() {
    let vectors = vectors();
    assert_eq!(root_id().to_string(), vectors["root_key_id"].as_str().unwrap());
    assert_eq!(digest().as_slice(), bytes(&vectors["metadata_digest"]));
}

#[test]
fn payload_encoding_is_as_frozen() {
    let expected = &vectors()["payload_encoding"];
    assert_eq!(Fields::new().encode().expose(), bytes(&expected["no_fields"]));

    let mut fields = Fields::new();
    fields.insert("password".to_owned(), SecretBytes::from("correct horse".to_owned()));
    fields.insert("CA.crt".to_owned(), SecretBytes::new(vec![0, 255, 10]));
    fields.insert("empty".to_owned(), SecretBytes::new(Vec::new()));
    assert_eq!(fields.encode().expose(), bytes(&expected["three_fields"]));

    let decoded =
        Fields::decode(SecretBytes::new(bytes(&expected["three_fields"]))).unwrap_or_else(|e| panic!("{e}"));
    assert!(decoded.iter().eq(fields.iter()));
}

fn associated_data(place: &str) -> AssociatedData {
    let (installation, keyspace, secret) = (id(0x10), id(0x20), id(0x30));
    let (dek, kek, rwk) = (id(0x40), id(0x50), id(0x60));
    let (version, kek_version, rwk_version) = (0x0102_0304, 0x0506_0708, 0x090A_0B0C);
    let root_key_id = root_id();
    match place {
        "payload" => {
            let metadata_digest = digest();
            PayloadContext { installation, keyspace, secret, version, dek, metadata_digest }.associated_data()
        }
        "dek" => {
            DekContext { installation, keyspace, secret, version, dek, kek, kek_version }.associated_data()
        }
        "kek" => {
            let purpose = "data";
            KekContext { installation, keyspace, purpose, kek, kek_version, root_key_id }.associated_data()
        }
        "rwk" => RwkContext { installation, rwk, rwk_version, root_key_id }.associated_data(),
        other => panic!("no such place: {other}"),
    }
}

fn root_id() -> Uuid {
    root_key_id(&Key::from_bytes(&std::array::from_fn(|i| i as u8)))
}

fn digest() -> [u8; 32] {
    metadata_digest("payments/db", 1_750_000_000_123_456, "jürgen@example.com")
}

/// Bytes that count up from `start`.
fn id(start: u8) -> Uuid {
    Uuid::from_bytes(std::array::from_fn(|i| start + i as u8))
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/stored_formats.json")).unwrap()
}

fn bytes(hex_text: &Value) -> Vec<u8> {
    hex::decode(hex_text.as_str().unwrap()).unwrap()
}

/// Gives out recorded bytes, in order, once.
struct RecordedEntropy(Mutex<Vec<u8>>);

impl Entropy for RecordedEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        let mut recorded = self.0.lock().unwrap();
        let rest = recorded.split_off(out.len());
        out.copy_from_slice(&std::mem::replace(&mut *recorded, rest));
        Ok(())
    }
}
