//! The audit entry of an issue of five secrets.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use divan::{Bencher, black_box, counter::BytesCount};
use keyfold_core::{
    audit::{Actor, Entry, IssuedItem, Operation, Outcome, Record, leaf_hash},
    clock::{Clock as _, SystemClock},
};
use keyfold_server::authn::PodCaller;
use uuid::Uuid;

use crate::pod::{PATHS, ROLE, caller};

/// Out of what is known of the request.
#[divan::bench]
fn build(bencher: Bencher) {
    let (caller, now) = (caller(), SystemClock.now());
    bencher.bench_local(|| {
        let record = record(black_box(&caller));
        drop(black_box(Entry::new(black_box(now), &record, &Outcome::Allowed)));
    });
}

/// The exact bytes that are hashed and stored.
#[divan::bench]
fn encode(bencher: Bencher) {
    let record = record(&caller());
    let entry = Entry::new(SystemClock.now(), &record, &Outcome::Allowed);
    let bytes = entry.to_bytes().len();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| drop(black_box(black_box(&entry).to_bytes())));
}

/// SHA-256 of those.
#[divan::bench]
fn hash(bencher: Bencher) {
    let bytes = Entry::new(SystemClock.now(), &record(&caller()), &Outcome::Allowed).to_bytes();
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| leaf_hash(black_box(&bytes)));
}

fn record(caller: &PodCaller) -> Record {
    let item = |path: &str| IssuedItem {
        path: path.to_owned(),
        version: Some(3),
        rule: Some("payments/**".to_owned()),
    };
    Record {
        request_id: Uuid::from_u128(1),
        from: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        actor: Actor::Pod(Arc::clone(caller.identity())),
        driver: Some(Arc::clone(caller.driver())),
        operation: Operation::SecretIssue {
            role: Some(ROLE.to_owned()),
            items: PATHS.iter().map(|path| item(path)).collect(),
            lease_expires_at: None,
        },
        approval: None,
        generation: None,
    }
}
