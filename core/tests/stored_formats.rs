//! Frozen vectors of every stored format. Installations hold data in these formats: a test that fails here says
//! that their data would no longer open. The expected values come from an independent implementation,
//! `vectors/compute.py`.

use std::sync::Mutex;

use keyfold_core::entropy::{Entropy, EntropyError};
use keyfold_core::envelope::{
    AssociatedData, CaKeyContext, DekContext, KekContext, KeyRef, PayloadContext, RecoveryContext,
    RwkContext, metadata_digest, open, recovery_key_id, root_key_id, seal,
};
use keyfold_core::key::{Check, CheckName, DestructionCertificate, certificate};
use keyfold_core::payload::Fields;
use keyfold_core::row_mac::{Row, RowEncoder, RowMac};
use keyfold_core::secret::{Key, SecretBytes};
use serde_json::Value;
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

#[test]
fn blobs_of_both_suites_open_as_frozen_and_are_sealed_as_the_newer_one_is() {
    for (suite, is_sealed) in [("blobs", false), ("blobs_of_suite_2", true)] {
        let blobs = vectors()[suite].as_array().unwrap().clone();
        assert_eq!(blobs.len(), 7);
        for vector in blobs {
            let key = Key::try_from(bytes(&vector["key"]).as_slice()).unwrap();
            let key_ref = KeyRef {
                id: vector["key_id"].as_str().unwrap().parse().unwrap(),
                version: vector["key_version"].as_u64().unwrap().try_into().unwrap(),
            };
            let place = associated_data(vector["place"].as_str().unwrap());
            let (plaintext, blob) = (bytes(&vector["plaintext"]), bytes(&vector["blob"]));

            let entropy = RecordedEntropy(Mutex::new(bytes(&vector["salt_and_nonce"])));
            let sealed = seal(&key, key_ref, &place, &plaintext, &entropy).unwrap();
            assert_eq!(sealed == blob, is_sealed, "{vector}");
            let opened = open(&key, key_ref, &place, &blob).unwrap();
            assert_eq!(opened.expose(), plaintext, "{vector}");
        }
    }
}

#[test]
fn associated_data_of_each_place_is_as_frozen() {
    for (place, expected) in vectors()["associated_data"].as_object().unwrap() {
        assert_eq!(associated_data(place).as_bytes(), bytes(expected), "{place}");
    }
}

#[test]
fn ids_of_keys_and_metadata_digest_are_as_frozen() {
    let vectors = vectors();
    assert_eq!(recovery_id().to_string(), vectors["recovery_key_id"].as_str().unwrap());
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

#[test]
fn macs_of_rows_are_as_frozen() {
    let vector = &vectors()["row_mac"];
    let key = Key::try_from(bytes(&vector["key"]).as_slice()).unwrap();
    let row = Row::of("keks", id(0x10))
        .uuid(id(0x50))
        .option(None, RowEncoder::uuid)
        .str("data")
        .i64(-7)
        .bool(true)
        .bool(false)
        .bytes("\0ü".as_bytes())
        .time(OffsetDateTime::from_unix_timestamp_nanos(1_750_000_000_123_456_000).unwrap())
        .finish();
    assert_eq!(RowMac::new(&key).tag(&row).as_slice(), bytes(&vector["tag"]));
    assert_eq!(RowMac::new(&key).verify(&row, &bytes(&vector["tag"])), Ok(()));
}

#[test]
fn destruction_certificates_are_signed_and_verified_as_frozen() {
    let vector = &vectors()["certificate"];
    let check =
        |(at, name): (usize, CheckName)| Check { name, found: format!("{at} für {}", name.as_str()) };
    let certificate = DestructionCertificate {
        v: 1,
        installation: id(0x10),
        keyspace: Some("payments".into()),
        keyspace_id: Some(id(0x20)),
        purpose: "data".into(),
        kek: id(0x50),
        version: 3,
        created_at: datetime!(2026-01-02 03:04:05.000006 UTC),
        deactivated_at: Some(datetime!(2026-04-02 03:04:05 UTC)),
        destroyed_at: datetime!(2026-05-09 03:04:05.123456 UTC),
        wrapped_sha256: "00e988677eecf94c0bb9233371c7c0d6f4db8ebdcdecb7c5ebaa666f17249227".into(),
        checks: CheckName::ALL.into_iter().enumerate().map(check).collect(),
        does_not_reach: "backups".into(),
        requested_by: "people/jürgen".into(),
        requested_at: datetime!(2026-05-02 03:04:05 UTC),
    };
    let body = vector["body"].as_str().unwrap();
    assert_eq!(String::from_utf8(certificate.to_bytes()).unwrap(), body);

    let seed = Key::try_from(bytes(&vector["seed"]).as_slice()).unwrap();
    let file = vector["file"].as_str().unwrap();
    let signed = certificate.sign(&seed, id(0x50));
    assert_eq!(signed.to_text(), file);
    assert_eq!(certificate::verify(file, &signed.public_key), Ok(certificate));
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
        "rwk-recovery" => RecoveryContext { installation, rwk, rwk_version, recovery_key_id: recovery_id() }
            .rwk_associated_data(),
        "recovery-key" => RecoveryContext { installation, rwk, rwk_version, recovery_key_id: recovery_id() }
            .recovery_key_associated_data(),
        "ca-key" => CaKeyContext { installation, ca_version: version, kek, kek_version }.associated_data(),
        other => panic!("no such place: {other}"),
    }
}

fn root_id() -> Uuid {
    root_key_id(&Key::from_bytes(&std::array::from_fn(|i| i as u8)))
}

fn recovery_id() -> Uuid {
    recovery_key_id(&Key::from_bytes(&std::array::from_fn(|i| 0xE0_u8.wrapping_add(i as u8))))
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
