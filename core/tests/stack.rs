//! What sealing and opening leave on the stack. Read by another thread, since reading would itself write over it.

use std::{
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use keyfold_core::{
    entropy::SystemEntropy,
    envelope::{self, KeyRef, RwkContext},
    secret::{Key, wiping_stack},
};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use uuid::Uuid;

/// Deeper than anything here goes, and less than a thread of a test has.
const DEPTH_BYTES: usize = 512 * 1024;
/// Where a blob has its salt.
const SALT: std::ops::Range<usize> = 24..56;

const MARKER: [u8; 32] = *b"a marker that is left on a stack";

/// What lies below this function's frame after `work`.
fn stack_after(work: impl FnOnce()) -> Vec<u8> {
    let here = 0_u8;
    let bottom = (&raw const here as usize - DEPTH_BYTES) as u64;
    let (wanted, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (begin, end) = (Arc::clone(&wanted), Arc::clone(&read));
    let reader = thread::spawn(move || {
        let memory = File::open("/proc/self/mem").expect("a process may read its own memory");
        while !begin.load(Ordering::Acquire) {}
        let mut stack = vec![0; DEPTH_BYTES];
        memory.read_exact_at(&mut stack, bottom).expect("the stack is there");
        end.store(true, Ordering::Release);
        stack
    });
    work();
    wanted.store(true, Ordering::Release);
    while !read.load(Ordering::Acquire) {}
    reader.join().expect("the reader does not fail")
}

fn has(stack: &[u8], half: &[u8]) -> bool {
    stack.windows(half.len()).any(|window| window == half)
}

#[inline(never)]
fn leave_marker() {
    // In front of more bytes than the frames need of what waits for the reader.
    let mut left = [0; 4096];
    left[..MARKER.len()].copy_from_slice(&MARKER);
    black_box(&left);
}

#[test]
fn what_work_leaves_is_found_and_is_wiped_where_that_is_asked_for() {
    assert!(has(&stack_after(leave_marker), &MARKER), "what is left is found");
    assert!(!has(&stack_after(|| wiping_stack(leave_marker)), &MARKER));
}

#[test]
fn neither_a_key_nor_what_is_derived_from_it_stays_on_the_stack() {
    let (key, id) = (Key::generate(&SystemEntropy).unwrap(), Uuid::from_u128(7));
    let key_ref = KeyRef { id, version: 1 };
    let place = RwkContext { installation: id, rwk: id, rwk_version: 1, root_key_id: id }.associated_data();
    let mut blob = Vec::new();
    let sealing =
        stack_after(|| blob = envelope::seal(&key, key_ref, &place, &[1; 32], &SystemEntropy).unwrap());
    let opening = stack_after(|| drop(envelope::open(&key, key_ref, &place, &blob).ok().unwrap()));
    let naming = stack_after(|| _ = envelope::root_key_id(&key));

    let derived = encryption_key(&key, &blob);
    for stack in [sealing, opening, naming] {
        for half in key.expose().chunks(16).chain(derived.chunks(16)) {
            assert!(!has(&stack, half));
        }
    }
}

/// As `core/src/envelope/suite.rs` derives it.
fn encryption_key(key: &Key, blob: &[u8]) -> [u8; 32] {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            32
        }
    }
    let mut derived = [0; 32];
    let prk = Salt::new(HKDF_SHA256, &blob[SALT]).extract(key.expose());
    prk.expand(&[b"keyfold/v1/suite-2/encryption-key"], Length).unwrap().fill(&mut derived).unwrap();
    derived
}
