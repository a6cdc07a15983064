use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::secret::Key;

fn certificate() -> DestructionCertificate {
    let check = |name: CheckName| Check { name, found: "deks: 0, ca_keys: 0".into() };
    DestructionCertificate {
        v: VERSION,
        installation: Uuid::from_u128(1),
        keyspace: Some("payments".into()),
        keyspace_id: Some(Uuid::from_u128(2)),
        purpose: "data".into(),
        kek: Uuid::from_u128(3),
        version: 4,
        created_at: datetime!(2026-01-02 03:04:05 UTC),
        deactivated_at: None,
        destroyed_at: datetime!(2026-05-09 03:04:05.123456 UTC),
        wrapped_sha256: "00".repeat(32),
        checks: CheckName::ALL.map(check).to_vec(),
        does_not_reach: DOES_NOT_REACH.into(),
        requested_by: "people/alice".into(),
        requested_at: datetime!(2026-05-02 03:04:05 UTC),
    }
}

fn seed() -> Key {
    Key::from_bytes(&[7; 32])
}

fn signed() -> SignedCertificate {
    certificate().sign(&seed(), Uuid::from_u128(9))
}

/// Signs bytes that the type would not make.
fn signed_bytes(bytes: Vec<u8>) -> SignedCertificate {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed().expose()).unwrap();
    let signature = pair.sign(&signed_message(Uuid::from_u128(9), &bytes)).as_ref().try_into().unwrap();
    SignedCertificate { certificate: bytes, signature, ..signed() }
}

#[test]
fn a_certificate_is_verified_from_its_text_and_the_public_key_alone() {
    let text = signed().to_text();
    let key = signed().public_key;
    assert_eq!(verify(&text, &key), Ok(certificate()));
    assert_eq!(verify(&format!("\n{text}\n"), &key), Ok(certificate()), "as an editor may leave it");
    assert!(text.is_ascii() && !text.contains('\n'));
}

#[test]
fn a_certificate_by_another_key_is_refused() {
    let forged = certificate().sign(&Key::from_bytes(&[8; 32]), Uuid::from_u128(9));
    let refused = verify(&forged.to_text(), &signed().public_key).unwrap_err();
    assert!(matches!(refused, CertificateError::OtherKey { .. }), "{refused}");
    // It does not help to claim the expected key.
    let forged = SignedCertificate { public_key: signed().public_key, ..forged };
    let refused = verify(&forged.to_text(), &signed().public_key);
    assert_eq!(refused, Err(CertificateError::WrongSignature));
}

#[test]
fn a_signature_for_another_purpose_does_not_fit() {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed().expose()).unwrap();
    let bytes = certificate().to_bytes();
    for message in [bytes.clone(), digest(&SHA256, &bytes).as_ref().to_vec()] {
        let signature = pair.sign(&message).as_ref().try_into().unwrap();
        let other = SignedCertificate { signature, ..signed() };
        assert_eq!(other.verify(&signed().public_key), Err(CertificateError::WrongSignature));
    }
}

#[test]
fn a_certificate_must_hold_all_five_proofs() {
    let key = signed().public_key;
    let changes: [fn(&mut Vec<Check>); 4] = [
        |checks| drop(checks.pop()),
        |checks| checks.swap(0, 1),
        |checks| checks.push(checks[0].clone()),
        Vec::clear,
    ];
    for change in changes {
        let mut unproven = certificate();
        change(&mut unproven.checks);
        let refused = unproven.sign(&seed(), Uuid::from_u128(9)).verify(&key).unwrap_err();
        assert!(matches!(refused, CertificateError::Unproven { .. }), "{refused}");
    }
}

#[test]
fn what_is_signed_must_be_a_certificate_of_this_form() {
    let key = signed().public_key;
    let newer = DestructionCertificate { v: 2, ..certificate() }.sign(&seed(), Uuid::from_u128(9));
    assert_eq!(newer.verify(&key), Err(CertificateError::OtherVersion { v: 2 }));

    let text = String::from_utf8(certificate().to_bytes()).unwrap();
    for changed in [
        text.replacen('{', "{\"note\":\"harmless\",", 1),
        text.replacen(':', ": ", 1),
        text.replace("\"deactivated_at\":null,", ""),
        text.replace("quarantine", "quarantined"),
        String::new(),
    ] {
        let refused = signed_bytes(changed.into_bytes()).verify(&key).unwrap_err();
        assert!(matches!(refused, CertificateError::NotRead(_)), "{refused}");
    }
}

#[test]
fn a_text_that_is_no_certificates_file_is_told_so() {
    let key = signed().public_key;
    let text = signed().to_text();
    for changed in [
        String::new(),
        "{}".into(),
        text.replacen('{', "{ ", 1),
        text.replacen('{', "{\"more\":1,", 1),
        text.replace("\"signature\":\"", "\"signature\":\"AAAA"),
        text[..text.len() - 1].to_owned(),
    ] {
        let refused = verify(&changed, &key).unwrap_err();
        assert!(matches!(refused, CertificateError::NotAFile(_)), "{refused}");
    }
}

#[test]
fn every_flipped_bit_of_a_file_fails() {
    let (text, key) = (signed().to_text(), signed().public_key);
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            // Bytes that are no text cannot even be handed in.
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(verify(&changed, &key).is_err(), "bit {bit} of byte {at}");
        }
    }
}

proptest! {
    #[test]
    fn no_change_of_a_files_bytes_is_overlooked(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        let (text, key) = (signed().to_text(), signed().public_key);
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.remove(at);
        }
        let changed = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert_eq!(verify(&changed, &key).is_ok(), changed == text);
    }

    #[test]
    fn no_text_makes_the_verifier_panic(text in "\\PC{0,200}") {
        prop_assert!(verify(&text, &signed().public_key).is_err());
    }
}
