//! The check of the two tokens of one request. The driver's comes from the cache, as it does for all requests but one
//! an hour.

use divan::{Bencher, black_box, counter::ItemsCount};
use keyfold_core::object::Algorithm;

use crate::pod::{MORE_KEYS, RUNTIME, STAND, new_token};

const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// The pod's token is new: read, its signature verified, its claims checked.
#[divan::bench(args = ALGORITHMS)]
fn first_time(bencher: Bencher, algorithm: Algorithm) {
    bencher
        .counter(ItemsCount::new(1u32))
        .with_inputs(|| MORE_KEYS.signed_anew(new_token(), algorithm))
        .bench_local_refs(|token| drop(black_box(RUNTIME.block_on(STAND.check(black_box(token))))));
}

/// The pod's token was verified before.
#[divan::bench(args = ALGORITHMS)]
fn from_the_cache(bencher: Bencher, algorithm: Algorithm) {
    let token = MORE_KEYS.signed_anew(new_token(), algorithm);
    RUNTIME.block_on(STAND.check(&token));
    bencher
        .counter(ItemsCount::new(1u32))
        .bench_local(|| drop(black_box(RUNTIME.block_on(STAND.check(black_box(&token))))));
}
