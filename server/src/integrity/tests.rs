use keyfold_core::{row_mac::RowEncoder, secret::Key};
use proptest::{collection::vec, prelude::*};

use super::{
    row_macs::{Guarded, RowMacKey, RowMacs},
    *,
};

struct Row(i64);

impl Guarded for Row {
    const TABLE: &'static str = "rows";

    fn which(&self) -> String {
        self.0.to_string()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.i64(self.0)
    }
}

fn macs(versions: &[(u32, u8)], active: u32) -> RowMacs {
    let macs = RowMacs::new(Uuid::from_u128(1));
    let keys: Vec<_> =
        versions.iter().map(|(version, byte)| (*version, Key::from_bytes(&[*byte; 32]))).collect();
    macs.load(keys.iter().map(|(version, key)| RowMacKey {
        version: *version,
        key,
        is_active: *version == active,
    }));
    macs
}

#[test]
fn a_mac_names_its_key_and_fits_its_row_alone() {
    let old = macs(&[(1, 7)], 1);
    let mac = old.seal(&Row(5)).unwrap();
    assert_eq!((mac.len(), &mac[..4]), (36, &[0, 0, 0, 1][..]));
    old.check(&Row(5), &mac).unwrap();
    assert!(old.check(&Row(6), &mac).is_err());
    for cut in [0, 3, 4, 35] {
        assert!(old.check(&Row(5), &mac[..cut]).is_err(), "{cut} bytes");
    }
    assert!(macs(&[(2, 7)], 2).check(&Row(5), &mac).is_err(), "a key that is not there");
    assert!(macs(&[(1, 8)], 1).check(&Row(5), &mac).is_err(), "another key of that version");
}

#[test]
fn an_older_keys_macs_fit_and_are_made_anew() {
    let (old, both) = (macs(&[(1, 7)], 1), macs(&[(1, 7), (2, 8)], 2));
    let mac = old.seal(&Row(5)).unwrap();
    both.check(&Row(5), &mac).unwrap();
    let anew = both.reseal(&Row(5), &mac).unwrap().unwrap();
    macs(&[(2, 8)], 2).check(&Row(5), &anew).unwrap();
    assert_eq!(both.reseal(&Row(5), &anew).unwrap(), None, "nothing to do");
    assert!(both.reseal(&Row(6), &mac).is_err(), "what does not fit is not made to fit");
}

fn change() -> impl Strategy<Value = RowChange> {
    let mac = || proptest::option::of(vec(any::<u8>(), 36..37));
    (0..6u128, mac(), mac()).prop_map(|(id, before, after)| RowChange {
        id: Uuid::from_u128(id),
        before,
        after,
    })
}

/// Rows after a change, as Postgres would have them.
fn apply(rows: &mut Macs, change: &RowChange) {
    if let Some(before) = &change.before {
        assert!(rows.remove(&(change.id, before.clone())));
    }
    rows.extend(change.after.clone().map(|after| (change.id, after)));
}

proptest! {
    #[test]
    fn changes_carry_the_digest_forward(changes in vec(change(), 0..12)) {
        let (mut rows, mut digest) = (Macs::new(), digest_of(&Macs::new()));
        for mut change in changes {
            let current = rows.iter().find(|(id, _)| *id == change.id).map(|(_, mac)| mac.clone());
            change.before = current;
            apply(&mut rows, &change);
            digest = digest_after("rows", rows.clone(), &[change], &digest).unwrap();
            prop_assert_eq!(digest, digest_of(&rows));
        }
    }

    #[test]
    fn attack_18_a_change_covers_up_nothing(rows in vec(vec(any::<u8>(), 36..37), 2..8), lost in any::<usize>()) {
        let id = |n: usize| Uuid::from_u128(n as u128);
        let all: Macs = rows.iter().enumerate().map(|(n, mac)| (id(n), mac.clone())).collect();
        let before = digest_of(&all);
        let added = RowChange::added(id(100), &[1; 36]);
        let mut now = all.clone();
        apply(&mut now, &added);
        prop_assert!(digest_after("rows", now.clone(), std::slice::from_ref(&added), &before).is_ok());
        // Somebody took a row away, before the change or while it was under way.
        let taken = now.iter().nth(lost % all.len()).cloned().unwrap();
        let mut fewer = now.clone();
        fewer.remove(&taken);
        prop_assert!(digest_after("rows", fewer, std::slice::from_ref(&added), &before).is_err());
        // Somebody put another in its own row's place.
        let mut other = now;
        other.remove(&(id(100), vec![1; 36]));
        other.insert((id(100), vec![2; 36]));
        prop_assert!(digest_after("rows", other, &[added], &before).is_err());
    }
}
