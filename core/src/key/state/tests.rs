use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const MOVES: [Move; 8] = [
    Move::Activate,
    Move::Deactivate,
    Move::Compromise,
    Move::ScheduleDestruction,
    Move::CancelDestruction { to: Restored::Deactivated },
    Move::CancelDestruction { to: Restored::Compromised },
    Move::Destroy,
    Move::Abandon,
];

#[test]
fn the_legal_moves_are_these_and_no_others() {
    let mut legal = BTreeSet::new();
    for from in KeyState::ALL {
        for change in MOVES {
            if let Ok(to) = from.next(change) {
                legal.insert(format!("{from} -> {to}"));
            }
        }
    }
    let legal: Vec<_> = legal.iter().map(String::as_str).collect();
    assert_eq!(
        legal,
        [
            "active -> compromised",
            "active -> deactivated",
            "compromised -> destroy-scheduled",
            "deactivated -> compromised",
            "deactivated -> destroy-scheduled",
            "destroy-scheduled -> compromised",
            "destroy-scheduled -> deactivated",
            "destroy-scheduled -> destroyed",
            "pre-active -> active",
            "pre-active -> destroy-scheduled",
        ]
    );
}

#[test]
fn what_a_state_may_do_is_as_the_table_says() {
    let table = KeyState::ALL
        .map(|state| (state.as_str(), state.wraps(), state.unwraps(), state.unwraps_for_rewrap()));
    assert_eq!(
        table,
        [
            ("pre-active", false, false, false),
            ("active", true, true, true),
            ("deactivated", false, true, true),
            ("compromised", false, false, true),
            ("destroy-scheduled", false, false, false),
            ("destroyed", false, false, false),
        ]
    );
}

#[test]
fn names_parse_back_and_others_do_not() {
    for state in KeyState::ALL {
        assert_eq!(KeyState::parse(state.as_str()), Some(state));
    }
    for purpose in crate::key::Purpose::ALL {
        assert_eq!(crate::key::Purpose::parse(purpose.as_str()), Some(purpose));
    }
    for name in ["", "Active", "active ", "preactive"] {
        assert_eq!(KeyState::parse(name), None, "{name:?}");
        assert_eq!(crate::key::Purpose::parse(name), None, "{name:?}");
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let mut keys = Keyset::new();
    assert_eq!(
        keys.schedule_destruction(1).unwrap_err().to_string(),
        "a key that is active cannot be scheduled for destruction: rotate the key first, so that another takes its place"
    );
    assert_eq!(
        keys.compromise(1).unwrap_err().to_string(),
        "version 1 is active and has no successor yet: a new key must be pre-active first"
    );
    assert_eq!(keys.destroy(7).unwrap_err().to_string(), "version 7 does not exist");
    assert_eq!(keys, Keyset::new(), "a refused move changes nothing");
}

#[test]
fn a_compromised_active_key_is_replaced_in_the_same_step() {
    let mut keys = Keyset::new();
    let successor = keys.create().unwrap();
    keys.compromise(1).unwrap();
    assert_eq!(keys.state(1), Some(KeyState::Compromised));
    assert_eq!(keys.active(), successor);
}

#[test]
fn a_cancelled_destruction_gives_back_what_the_key_was() {
    let mut keys = Keyset::new();
    for _ in 0..2 {
        let next = keys.create().unwrap();
        keys.activate(next).unwrap();
    }
    keys.compromise(1).unwrap();
    for (version, was) in [(1, KeyState::Compromised), (2, KeyState::Deactivated)] {
        keys.schedule_destruction(version).unwrap();
        keys.cancel_destruction(version).unwrap();
        assert_eq!(keys.state(version), Some(was));
    }
}

#[test]
fn an_abandoned_key_is_destroyed_and_never_comes_back() {
    let mut keys = Keyset::new();
    let unwanted = keys.create().unwrap();
    keys.abandon(unwanted).unwrap();
    assert_eq!(keys.cancel_destruction(unwanted), Err(KeysetError::Abandoned { version: unwanted }));
    keys.destroy(unwanted).unwrap();
    assert_eq!(keys.create(), Ok(unwanted + 1));
}

#[test]
fn rows_that_are_no_keyset_are_refused() {
    let key = |version, state| KeyVersion { version, state, restored: None };
    let cases = [
        (vec![], "0 active keys"),
        (vec![key(1, KeyState::Deactivated)], "0 active keys"),
        (vec![key(1, KeyState::Active), key(2, KeyState::Active)], "2 active keys"),
        (vec![key(1, KeyState::Active), key(1, KeyState::Destroyed)], "version 1 twice"),
        (
            vec![key(1, KeyState::Active), key(2, KeyState::PreActive), key(3, KeyState::PreActive)],
            "2 pre-active keys",
        ),
    ];
    for (rows, reason) in cases {
        let refused = Keyset::load(rows).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let later_first = [key(2, KeyState::Active), key(1, KeyState::Destroyed)];
    assert_eq!(Keyset::load(later_first).unwrap().next_version(), 3);
}

/// One call of a keyset's operations, chosen at random; most of them are refused.
fn operate(keys: &mut Keyset, (operation, version): (u8, u32)) -> Result<(), KeysetError> {
    match operation {
        0 | 1 => keys.create().map(drop),
        2 | 3 => keys.activate(version),
        4 => keys.compromise(version),
        5 => keys.schedule_destruction(version),
        6 => keys.cancel_destruction(version),
        7 => keys.destroy(version),
        _ => keys.abandon(version),
    }
}

proptest! {
    #[test]
    fn no_sequence_of_moves_breaks_a_keyset(
        moves in prop::collection::vec((0u8..9, 1u32..12), 0..200)
    ) {
        let mut keys = Keyset::new();
        let mut handed_out = BTreeSet::from([1]);
        let mut destroyed = BTreeSet::new();
        for step in moves {
            let before = keys.clone();
            let highest = keys.versions().iter().map(|key| key.version).max();
            if operate(&mut keys, step).is_err() {
                prop_assert_eq!(&keys, &before, "a refused move changes nothing");
            }

            // The checks count for themselves and do not trust the keyset's own methods.
            let states: BTreeMap<u32, KeyState> =
                keys.versions().iter().map(|key| (key.version, key.state)).collect();
            prop_assert_eq!(states.len(), keys.versions().len(), "no version twice");
            let count = |wanted| states.values().filter(|state| **state == wanted).count();
            prop_assert_eq!(count(KeyState::Active), 1);
            prop_assert!(count(KeyState::PreActive) <= 1);
            prop_assert_eq!(states.values().filter(|state| state.wraps()).count(), 1);
            for version in states.keys() {
                if Some(*version) > highest {
                    prop_assert!(handed_out.insert(*version), "version {} was used before", version);
                }
            }
            prop_assert!(handed_out.iter().all(|version| states.contains_key(version)), "none is forgotten");
            for version in &destroyed {
                let state = states[version];
                prop_assert!(!state.unwraps() && !state.unwraps_for_rewrap() && !state.wraps());
            }
            destroyed.extend(states.iter().filter(|(_, state)| **state == KeyState::Destroyed).map(|(v, _)| *v));
            prop_assert_eq!(Keyset::load(keys.versions().to_vec()).unwrap(), keys.clone());
        }
    }

    #[test]
    fn a_compromised_key_is_never_anything_better_again(moves in prop::collection::vec((0u8..9, 1u32..6), 0..200)) {
        let mut keys = Keyset::new();
        let mut compromised = BTreeSet::new();
        for step in moves {
            let _ = operate(&mut keys, step);
            for key in keys.versions() {
                if key.state == KeyState::Compromised {
                    compromised.insert(key.version);
                }
                prop_assert!(!compromised.contains(&key.version) || !key.state.unwraps());
            }
        }
    }
}
