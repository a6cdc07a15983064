//! Sealing and opening.

use std::{hint, sync::Arc};

use divan::{Bencher, black_box, counter::BytesCount};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    entropy::SystemEntropy,
    envelope::{AssociatedData, KeyRef, PayloadContext, metadata_digest, open, root_key_id, seal},
    key::Purpose,
    payload::Fields,
    secret::{Key, SecretBytes, wiping_stack},
};
use keyfold_server::{
    keys::{
        keyring::{Keyring, VersionPlace, micros},
        root::{Custody, CustodyKind, NewRoot},
        rwk::Rwk,
    },
    store::secret_versions::StoredVersion,
};
use uuid::Uuid;

use crate::pod::{PATHS, SECRET_BYTES};

/// A payload under its DEK.
#[divan::bench]
fn seal_1_kib(bencher: Bencher) {
    let (dek, key_ref, place) = payload();
    let plaintext = vec![7; SECRET_BYTES];
    bencher.counter(BytesCount::new(SECRET_BYTES)).bench_local(|| {
        drop(black_box(seal(&dek, key_ref, &place, black_box(&plaintext), &SystemEntropy)));
    });
}

/// A payload under its DEK.
#[divan::bench]
fn open_1_kib(bencher: Bencher) {
    let (dek, key_ref, place) = payload();
    let blob = seal(&dek, key_ref, &place, &[7; SECRET_BYTES], &SystemEntropy).expect("randomness");
    bencher.counter(BytesCount::new(SECRET_BYTES)).bench_local(|| {
        drop(black_box(open(&dek, key_ref, &place, black_box(&blob)).expect("it opens")));
    });
}

/// The part of both that wipes the stack behind them.
#[divan::bench]
fn wipe_the_stack() {
    wiping_stack(|| hint::black_box(()));
}

/// What a request does for each of its secrets: the KEK is at hand, the DEK is unwrapped, the payload opened, its
/// fields read.
#[divan::bench]
fn open_a_stored_version(bencher: Bencher) {
    let (keyring, version) = stored_version();
    bencher.counter(BytesCount::new(SECRET_BYTES)).bench_local(|| {
        let fields = keyring.open_by_held_key(black_box(&version)).expect("the KEK is held");
        drop(black_box(fields.expect("it opens")));
    });
}

fn payload() -> (Key, KeyRef, AssociatedData) {
    let dek = Uuid::from_u128(1);
    let place = PayloadContext {
        installation: Uuid::from_u128(2),
        keyspace: Uuid::from_u128(3),
        secret: Uuid::from_u128(4),
        version: 1,
        dek,
        metadata_digest: metadata_digest(PATHS[0], 0, "admin"),
    };
    let key = Key::generate(&SystemEntropy).expect("randomness");
    (key, KeyRef { id: dek, version: 1 }, place.associated_data())
}

/// A secret as Postgres would hold it, and who can open it.
fn stored_version() -> (Keyring, StoredVersion) {
    let now = SystemClock.now_micros();
    let (keyspace, secret) = (Uuid::from_u128(3), Uuid::from_u128(4));
    let (_, rwk) =
        Rwk::make(Uuid::from_u128(2), 1, &root(), now, &SystemEntropy).expect("a root-wrapping key");
    let keyring = Keyring::new(Arc::new(rwk));
    let kek = keyring.new_kek(Some(keyspace), Purpose::Data, 1, &SystemEntropy).expect("randomness");
    let mut fields = Fields::new();
    fields.insert("value".into(), SecretBytes::new(vec![7; SECRET_BYTES]));
    let (path, created_by) = (PATHS[0], "admin");
    let place =
        VersionPlace { keyspace, secret, version: 1, path, created_at_micros: micros(now), created_by };
    let (payload, dek) = keyring.seal_version(&place, &kek, &fields, &SystemEntropy).expect("it is sealed");
    let version = StoredVersion {
        path: path.into(),
        secret_id: secret,
        keyspace_id: keyspace,
        version: 1,
        payload,
        created_at: now,
        created_by: created_by.into(),
        dek_id: dek.id,
        kek_id: kek.id,
        kek_version: kek.version,
        kek_state: "active".into(),
        wrapped_dek: dek.wrapped,
    };
    (keyring, version)
}

fn root() -> NewRoot {
    let key = Key::generate(&SystemEntropy).expect("randomness");
    let custody = Custody { kind: CustodyKind::File, data: Vec::new() };
    NewRoot { id: root_key_id(&key), key, custody, shares: Vec::new() }
}
