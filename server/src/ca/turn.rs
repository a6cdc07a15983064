//! When an authority is made, begins to sign and stops. A pure sweep over the rows: the same on every replica, so that
//! whichever comes first does what is due.

use keyfold_core::envelope::KeyRef;
use time::{Duration, OffsetDateTime};

use crate::store::ca_certificates::CaCertificate;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is none that could sign: a new one does at once.
    Create,
    /// Half of the active one's life is over: its successor is made, and trusted from now on.
    MakeNext,
    /// The next one has been trusted for long enough, and signs from now on.
    Activate {
        /// Its version.
        version: i32,
        /// Why now.
        reason: &'static str,
    },
    /// A private key lies under a key that is not the one in use.
    Rewrap {
        /// Whose.
        version: i32,
    },
    /// A row's MAC is by a key that is not the one in use.
    Remac {
        /// Whose.
        version: i32,
    },
}

/// The keys in use.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// Of purpose `internal-ca`.
    pub kek: KeyRef,
    /// The version of that of purpose `row-mac`.
    pub row_mac: u32,
}

/// What is due first. Others may be due after it, which the next look finds.
pub fn due(rows: &[CaCertificate], keys: Keys, overlap: Duration, now: OffsetDateTime) -> Option<Step> {
    let in_state = |state: &str| rows.iter().find(|row| row.state == state);
    let active = in_state("active").filter(|row| row.expires_at > now);
    let next = in_state("next").filter(|row| row.expires_at > now);
    let turn = match (active, next) {
        (None, None) => Some(Step::Create),
        (None, Some(next)) => {
            Some(Step::Activate { version: next.version, reason: "there was none that could sign" })
        }
        (Some(_), Some(next)) if next.created_at + overlap <= now => Some(Step::Activate {
            version: next.version,
            reason: "it has been trusted for as long as it must be",
        }),
        (Some(active), None) if active.created_at + (active.expires_at - active.created_at) / 2 <= now => {
            Some(Step::MakeNext)
        }
        (Some(_), _) => None,
    };
    let elsewhere = || rows.iter().find(|row| row.kek_id.is_some_and(|id| id != keys.kek.id));
    let old_mac = || rows.iter().find(|row| !row.mac.starts_with(&keys.row_mac.to_be_bytes()));
    turn.or_else(|| elsewhere().map(|row| Step::Rewrap { version: row.version }))
        .or_else(|| old_mac().map(|row| Step::Remac { version: row.version }))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::ca::AUTHORITY_LIFETIME;

    const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
    const DAY: Duration = Duration::DAY;
    const KEYS: Keys = Keys { kek: KeyRef { id: Uuid::from_u128(1), version: 1 }, row_mac: 1 };

    fn row(version: i32, state: &str, created_at: OffsetDateTime) -> CaCertificate {
        let kek = (state != "retired").then_some(KEYS.kek);
        CaCertificate {
            version,
            state: state.into(),
            certificate: Vec::new(),
            kek_id: kek.map(|kek| kek.id),
            kek_version: kek.map(|_| 1),
            wrapped_key: kek.map(|_| Vec::new()),
            created_at,
            expires_at: created_at + AUTHORITY_LIFETIME,
            activated_at: None,
            retired_at: None,
            mac: vec![0, 0, 0, 1],
        }
    }

    fn due_at(rows: &[CaCertificate], now: OffsetDateTime) -> Option<Step> {
        due(rows, KEYS, DAY, now)
    }

    #[test]
    fn the_first_authority_signs_at_once() {
        assert_eq!(due_at(&[], START), Some(Step::Create));
    }

    #[test]
    fn a_successor_is_made_at_half_of_the_life_and_signs_after_the_overlap() {
        let active = || row(1, "active", START);
        let half = START + AUTHORITY_LIFETIME / 2;
        assert_eq!(due_at(&[active()], half - DAY), None);
        assert_eq!(due_at(&[active()], half), Some(Step::MakeNext));
        let rows = [active(), row(2, "next", half)];
        assert_eq!(due_at(&rows, half + DAY - Duration::SECOND), None);
        assert!(matches!(due_at(&rows, half + DAY), Some(Step::Activate { version: 2, .. })));
        assert_eq!(due_at(&[row(1, "retired", START), row(2, "active", half)], half + DAY), None);
    }

    #[test]
    fn after_years_without_a_server_there_is_one_that_signs_again() {
        let late = START + AUTHORITY_LIFETIME;
        assert_eq!(due_at(&[row(1, "active", START)], late), Some(Step::Create));
        let rows = [row(1, "active", START), row(2, "next", late - DAY / 2)];
        assert!(matches!(due_at(&rows, late), Some(Step::Activate { version: 2, .. })));
        let both = [row(1, "active", START), row(2, "next", START)];
        assert_eq!(due_at(&both, late), Some(Step::Create));
    }

    #[test]
    fn private_keys_move_to_the_key_in_use_and_retired_ones_have_none() {
        let rows = [row(1, "retired", START), row(2, "active", START), row(3, "next", START)];
        let newer = Keys { kek: KeyRef { id: Uuid::from_u128(2), version: 2 }, ..KEYS };
        assert_eq!(due(&rows, newer, DAY, START), Some(Step::Rewrap { version: 2 }));
    }

    #[test]
    fn macs_are_made_anew_with_the_key_in_use() {
        let rows = [row(1, "retired", START), row(2, "active", START)];
        let newer = Keys { row_mac: 2, ..KEYS };
        assert_eq!(due(&rows, newer, DAY, START), Some(Step::Remac { version: 1 }));
    }

    #[test]
    fn over_ten_years_there_is_always_one_that_signs_and_leaves_never_outlive_trust() {
        let (mut rows, mut now) = (Vec::<CaCertificate>::new(), START);
        while now < START + DAY * 3650 {
            while let Some(step) = due_at(&rows, now) {
                let version = i32::try_from(rows.len()).unwrap() + 1;
                match step {
                    Step::Create => rows.push(row(version, "active", now)),
                    Step::MakeNext => rows.push(row(version, "next", now)),
                    Step::Activate { version, .. } => {
                        for row in &mut rows {
                            match row.state.as_str() {
                                "active" => row.state = "retired".into(),
                                "next" => {
                                    assert_eq!(row.version, version);
                                    row.state = "active".into();
                                }
                                _ => {}
                            }
                        }
                    }
                    Step::Rewrap { .. } | Step::Remac { .. } => unreachable!("the keys in use are the same"),
                }
            }
            let active: Vec<_> = rows.iter().filter(|row| row.state == "active").collect();
            assert_eq!(active.len(), 1);
            assert!(active[0].expires_at > now + DAY * 300, "a leaf of a day ends long before");
            now += Duration::HOUR * 6;
        }
        assert_eq!(rows.len(), 10);
    }
}
