use std::{fs, thread};

use keyfold_core::secret::{Key, KeyMaterial as _};

use super::*;

fn locked(byte: u8) -> LockedKey {
    LockedKey::lock(Key::from_bytes(&[byte; 32])).ok().expect("tests may lock memory")
}

#[test]
fn keys_keep_what_they_are_given_and_have_a_place_each_beyond_one_chunk() {
    let keys: Vec<_> = (0..=u8::MAX).cycle().take(3 * CHUNK_BYTES / 32).map(locked).collect();
    for (key, byte) in keys.iter().zip((0..=u8::MAX).cycle()) {
        assert_eq!(key.expose(), &[byte; 32]);
    }
    let places: std::collections::BTreeSet<_> =
        keys.iter().map(|key| key.expose().as_ptr() as usize).collect();
    assert_eq!(places.len(), keys.len());
}

#[test]
fn a_dropped_keys_slot_is_wiped() {
    let (kept, dropped) = (locked(7), locked(8));
    drop(dropped);
    assert!(arena().free.iter().all(|slot| **slot == [0; 32]));
    assert_eq!(kept.expose(), &[7; 32]);
}

#[test]
fn threads_share_the_arena() {
    let of = |byte: u8| {
        for _ in 0..1000 {
            let key = locked(byte);
            assert_eq!(key.expose(), &[byte; 32]);
        }
    };
    thread::scope(|scope| (1..5).for_each(|byte| drop(scope.spawn(move || of(byte)))));
}

#[test]
fn a_key_lies_in_a_locked_map_that_no_dump_and_no_child_gets_between_pages_that_fault() {
    let key = locked(9);
    let address = key.expose().as_ptr() as usize;
    let smaps = fs::read_to_string("/proc/self/smaps").expect("a process may read its own maps");
    let maps: Vec<_> = smaps.split_inclusive("VmFlags:").collect();
    let mut found = None;
    let mut before = String::new();
    for (map, flags) in maps.iter().zip(maps.iter().skip(1)) {
        // A map begins after the previous one's flags, which are the rest of their line.
        let header = map.lines().find(|line| line.split(' ').next().is_some_and(|range| range.contains('-')));
        let Some(header) = header.map(ToOwned::to_owned) else { continue };
        let (from, to) = header.split(' ').next().unwrap().split_once('-').unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        if (hex(from)..hex(to)).contains(&address) {
            found = Some((before.clone(), flags.lines().next().unwrap().to_owned()));
        }
        before = header;
    }
    let (before, flags) = found.expect("the key is in a map");
    let flags: Vec<_> = flags.split_whitespace().collect();
    for flag in ["lo", "dd", "wf"] {
        assert!(flags.contains(&flag), "{flag} {flags:?}");
    }
    assert!(before.contains("---p"), "{before}");
}
