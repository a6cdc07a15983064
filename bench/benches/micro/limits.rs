//! What the machine can do at best: the cryptography alone, and the disk.

use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _};

use aes_gcm::{
    Aes256Gcm,
    aead::{AeadInOut as _, KeyInit as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};
use ring::{
    digest,
    hkdf::{Algorithm, HKDF_SHA256, HKDF_SHA512, KeyType, Salt},
    signature::{
        ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};

use crate::{
    pod::{MORE_KEYS, SECRET_BYTES, STAND, new_token},
    tls::Tls,
};

/// As Postgres writes its log.
const PAGE: [u8; 8192] = [7; 8192];

/// Over what a token signs.
#[divan::bench]
fn rsa_2048_verify(bencher: Bencher) {
    let jwk = STAND.minter.key.jwk();
    let part = |name: &str| decoded(jwk[name].as_str().expect("a part of the key"));
    let key = RsaPublicKeyComponents { n: part("n"), e: part("e") };
    let token = new_token();
    let (message, signature) = token.rsplit_once('.').expect("a token has three parts");
    let signature = decoded(signature);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        key.verify(&RSA_PKCS1_2048_8192_SHA256, black_box(message.as_bytes()), black_box(&signature))
            .expect("it is the signature");
    });
}

/// The same claims.
#[divan::bench]
fn es256_verify(bencher: Bencher) {
    let token = new_token();
    let (message, _) = token.rsplit_once('.').expect("a token has three parts");
    let signature = MORE_KEYS.sign_p256(message.as_bytes());
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, MORE_KEYS.p256_public());
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        key.verify(black_box(message.as_bytes()), black_box(&signature)).expect("it is the signature");
    });
}

fn decoded(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

/// With a key that is ready.
#[divan::bench]
fn aes_256_gcm_1_kib(bencher: Bencher) {
    let cipher = Aes256Gcm::new(&[1; 32].into());
    let mut buffer = vec![7; SECRET_BYTES];
    bencher.counter(BytesCount::new(SECRET_BYTES)).bench_local(|| encrypt(black_box(&cipher), &mut buffer));
}

/// With a key of its own, as each blob has one.
#[divan::bench]
fn aes_256_gcm_1_kib_new_key(bencher: Bencher) {
    let mut buffer = vec![7; SECRET_BYTES];
    bencher.counter(BytesCount::new(SECRET_BYTES)).bench_local(|| {
        let cipher = Aes256Gcm::new(black_box(&[1; 32].into()));
        encrypt(&cipher, &mut buffer);
    });
}

fn encrypt(cipher: &Aes256Gcm, buffer: &mut [u8]) {
    let tag = cipher.encrypt_inout_detached(&[2; 12].into(), b"", black_box(buffer).into());
    black_box(tag.expect("it is short"));
}

struct Key256;

impl KeyType for Key256 {
    fn len(&self) -> usize {
        32
    }
}

/// One key out of one that is ready.
#[divan::bench]
fn hkdf_sha256_expand(bencher: Bencher) {
    let key = Salt::new(HKDF_SHA256, &[1; 32]).extract(&[2; 32]);
    bencher.bench_local(|| {
        let mut out = [0; 32];
        let okm = black_box(&key).expand(&[b"key"], Key256).expect("it is short");
        okm.fill(&mut out).expect("as long as said");
        out
    });
}

/// What one blob of suite 1 needs: extract, and two keys.
#[divan::bench]
fn hkdf_sha512_of_a_blob(bencher: Bencher) {
    bencher.bench_local(|| keys_of_a_blob(HKDF_SHA512));
}

/// The same of suite 2.
#[divan::bench]
fn hkdf_sha256_of_a_blob(bencher: Bencher) {
    bencher.bench_local(|| keys_of_a_blob(HKDF_SHA256));
}

fn keys_of_a_blob(hash: Algorithm) -> [[u8; 32]; 2] {
    let key = Salt::new(hash, black_box(&[1; 32])).extract(black_box(&[2; 32]));
    [b"encryption-key", b"commitment-key"].map(|info| {
        let mut out = [0; 32];
        let info = [info.as_slice()];
        let okm = key.expand(&info, Key256).expect("it is short");
        okm.fill(&mut out).expect("as long as said");
        out
    })
}

/// In the form that a token's look-up and an entry's hash have it.
#[divan::bench]
fn sha_256_1_kib(bencher: Bencher) {
    let bytes = vec![7; 1024];
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| digest::digest(&digest::SHA256, black_box(&bytes)));
}

/// Both sides together, each with a certificate.
#[divan::bench]
fn tls_handshake(bencher: Bencher) {
    let tls = Tls::new();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| drop(black_box(tls.shake_hands())));
}

/// The file grows, so that its length is written as well.
#[divan::bench]
fn fdatasync_8_kib_appended(bencher: Bencher) {
    let mut file = file();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        file.write_all(&PAGE).and_then(|()| file.sync_data()).expect("it can be written");
    });
}

/// Over what is there, as Postgres writes its log.
#[divan::bench]
fn fdatasync_8_kib_in_place(bencher: Bencher) {
    let mut file = file();
    file.write_all(&PAGE).and_then(|()| file.sync_all()).expect("it can be written");
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        file.write_all_at(&PAGE, 0).and_then(|()| file.sync_data()).expect("it can be written");
    });
}

/// In `target/`, where the measurements' databases are.
fn file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary file")
}
