//! What happens where little memory may be locked. A program of its own: the limit counts for all of a process.

use keyfold_core::secret::{Key, KeyMaterial as _};
use keyfold_memory::{LockedKey, reserve};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

/// As much as the first chunk.
const LIMIT_BYTES: u64 = 16 * 1024;

fn may_lock(bytes: u64) {
    // Who has CAP_IPC_LOCK knows no limit. mlock(2) asks for the capability of the calling thread.
    let mut own = capabilities(None).expect("a thread may read its own capabilities");
    own.effective.remove(CapabilitySet::IPC_LOCK);
    own.permitted.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, own).expect("a thread may give up a capability");
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Memlock, limit).expect("the limit can be lowered");
}

fn key(byte: u8) -> Key {
    Key::from_bytes(&[byte; 32])
}

#[test]
fn keys_beyond_what_may_be_locked_come_back_and_places_that_become_free_are_used_again() {
    assert!(rustix::param::page_size() as u64 <= LIMIT_BYTES, "this test is for pages of at most 16 KiB");
    may_lock(LIMIT_BYTES);
    reserve().expect("the first chunk fits");
    let mut kept = Vec::new();
    let refused = loop {
        match LockedKey::lock(key(kept.len() as u8)) {
            Ok(locked) => kept.push(locked),
            Err(key) => break key,
        }
    };
    assert_eq!(kept.len() as u64, LIMIT_BYTES / 32);
    assert_eq!(refused.expose(), &[kept.len() as u8; 32], "the key itself comes back");
    assert!(reserve().unwrap_err().to_string().contains("RLIMIT_MEMLOCK of this process is 16384 bytes"));

    kept.swap_remove(7);
    let locked = LockedKey::lock(key(99)).ok().expect("a place is free");
    assert_eq!(locked.expose(), &[99; 32]);
    assert!(LockedKey::lock(key(100)).is_err());
}
