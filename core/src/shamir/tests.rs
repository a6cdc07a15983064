use proptest::{collection::vec, prelude::*, sample::subsequence};
use serde_json::json;

use super::*;
use crate::entropy::SystemEntropy;

/// Counts instead of being random, so that what is made can be frozen.
struct Counting(std::sync::atomic::AtomicU8);

impl Entropy for Counting {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        out.fill_with(|| self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Ok(())
    }
}

struct Failing;

impl Entropy for Failing {
    fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
        Err(EntropyError)
    }
}

/// Fails only once it has given a set's name and salt.
struct FailingLater(std::sync::atomic::AtomicU8);

impl Entropy for FailingLater {
    fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
        match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => Ok(()),
            _ => Err(EntropyError),
        }
    }
}

fn text(share: &Share) -> String {
    String::from_utf8(share.expose_text().into_vec()).unwrap()
}

fn made(shares: u32, threshold: u32) -> (Key, Vec<Share>, Commitments) {
    let key = Key::generate(&SystemEntropy).unwrap();
    let (shares, commitments) = split(&key, Scheme::new(shares, threshold).unwrap(), &SystemEntropy).unwrap();
    (key, shares, commitments)
}

fn copy(share: &Share) -> Share {
    Share::parse(&text(share)).unwrap()
}

fn frozen() -> (Vec<Share>, Commitments) {
    let key = Key::from_bytes(&[0x42; 32]);
    split(&key, Scheme::new(3, 2).unwrap(), &Counting(0.into())).unwrap()
}

fn entered(share: &Share, commitments: &Commitments) -> Result<Progress, WrongShare> {
    Collector::new(commitments.clone()).add(copy(share))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shares_of_the_threshold_give_the_key_in_any_order_and_fewer_do_not(
        (shares, threshold, chosen) in (2_u32..=20).prop_flat_map(|shares| (Just(shares), 2..=shares)).prop_flat_map(
            |(shares, threshold)| {
                let all: Vec<_> = (0..shares as usize).collect();
                (Just(shares), Just(threshold), subsequence(all, threshold as usize..=shares as usize).prop_shuffle())
            }
        )
    ) {
        let (key, all, commitments) = made(shares, threshold);
        let mut collector = Collector::new(commitments);
        for (entered, place) in chosen.iter().enumerate() {
            prop_assert_eq!(collector.combine().is_some(), entered >= threshold as usize);
            let progress = collector.add(copy(&all[*place])).unwrap();
            prop_assert_eq!(usize::from(progress.have), entered + 1);
            prop_assert_eq!(u32::from(progress.need), threshold);
        }
        prop_assert!(collector.combine().unwrap() == key);
    }

    #[test]
    fn one_share_too_few_combines_to_another_key(shares in 3_u32..=12) {
        let (key, all, _) = made(shares, shares);
        let points: Vec<_> = all[1..].iter().map(Share::point).collect();
        prop_assert!(Gf256::combine_bytes(&points[..]).unwrap() != key.expose());
    }

    #[test]
    fn arbitrary_text_is_no_share_and_breaks_nothing(text in ".{0,300}") {
        prop_assert!(Share::parse(&text).is_err());
    }

    #[test]
    fn text_in_the_form_of_a_share_is_none_without_its_checksum(
        set in "[0-9a-hjkmnp-tv-z]{8}", index in 0_u32..300, value in "[0-9a-hjkmnp-tv-z]{52}", sum in "[0-9a-z]{0,9}"
    ) {
        let text = format!("kfs1-{set}-{index}-{value}-{sum}");
        prop_assert!(Share::parse(&text).is_err());
    }

    #[test]
    fn a_share_with_characters_changed_swapped_lost_or_doubled_is_told(
        place in 0_usize..70, other in "[0-9a-hjkmnp-tv-z-]", how in 0..4
    ) {
        let (_, shares, _) = made(3, 2);
        let whole = text(&shares[1]);
        let mut changed: Vec<char> = whole.chars().collect();
        let place = place % (changed.len() - 1);
        match how {
            0 => changed[place] = other.chars().next().unwrap(),
            1 => changed.swap(place, place + 1),
            2 => drop(changed.remove(place)),
            _ => changed.insert(place, changed[place]),
        }
        let changed: String = changed.into_iter().collect();
        prop_assume!(changed != whole);
        prop_assert!(Share::parse(&changed).is_err(), "{}", changed);
    }

    #[test]
    fn base_32_reads_what_it_writes(bytes in vec(any::<u8>(), 0..40)) {
        let (mut text, mut read) = (Vec::new(), vec![0; bytes.len()]);
        base32::encode(&bytes, &mut text);
        prop_assert_eq!(text.len(), base32::chars(bytes.len()));
        prop_assert_eq!(base32::decode(&text, &mut read), Some(()));
        prop_assert_eq!(read, bytes);
    }
}

#[test]
fn a_share_reads_in_capitals_with_spaces_and_with_letters_for_the_digits_they_look_like() {
    let (_, shares, commitments) = made(5, 3);
    for share in &shares {
        let text = text(share);
        let spaced = text
            .as_bytes()
            .chunks(9)
            .map(|part| String::from_utf8_lossy(part))
            .collect::<Vec<_>>()
            .join(" \n");
        let (prefix, rest) = text.split_once('-').unwrap();
        let (set, rest) = rest.split_once('-').unwrap();
        let (index, rest) = rest.split_once('-').unwrap();
        let alike = format!("{prefix}-{set}-{index}-{}", rest.replace('0', "O").replace('1', "l"));
        for written in [text.to_uppercase(), spaced, alike] {
            assert!(commitments.verify(&Share::parse(&written).unwrap()).is_ok(), "{written}");
        }
    }
}

#[test]
fn a_share_has_one_number_and_one_length() {
    let (shares, _) = frozen();
    let text = text(&shares[0]);
    for other in [
        text.replace("-1-", "-01-"),
        text.replace("-1-", "-+1-"),
        text.replace("-1-", "--"),
        text.replace("-1-", "-0-"),
    ] {
        assert_eq!(Share::parse(&other).err(), Some(ShareError::Miscopied), "{other}");
    }
    for other in ["", "kfs1", &text.replace("kfs1", "kfs2"), &format!("{text}-0"), &" ".repeat(300)] {
        assert_eq!(Share::parse(other).err(), Some(ShareError::NotAShare), "{other}");
    }
}

#[test]
fn the_same_share_twice_counts_once() {
    let (_, shares, commitments) = made(5, 3);
    let mut collector = Collector::new(commitments);
    for _ in 0..4 {
        assert_eq!(collector.add(copy(&shares[4])).unwrap(), Progress { have: 1, need: 3 });
    }
    assert!(collector.combine().is_none());
}

#[test]
fn attack_11_a_wrong_share_is_refused_at_once_and_spoils_nothing() {
    let (key, shares, commitments) = made(5, 3);
    let (_, others, _) = made(5, 3);
    let mut collector = Collector::new(commitments.clone());
    collector.add(copy(&shares[0])).unwrap();

    let foreign = collector.add(copy(&others[1])).unwrap_err();
    assert_eq!(foreign, WrongShare::OtherSet { set: others[1].set(), expected: commitments.set() });
    // Whoever knows the set's name can make a text with a good checksum, but not a share.
    for index in [1, 2, 5, 6, 255] {
        let invented = Share::at(commitments.set(), &[&[index][..], &[7; 32]].concat());
        assert_eq!(collector.add(copy(&invented)).unwrap_err(), WrongShare::NotOfTheSet { index });
    }
    let renumbered = Share::at(commitments.set(), &[&[2][..], shares[2].value()].concat());
    assert_eq!(collector.add(renumbered).unwrap_err(), WrongShare::NotOfTheSet { index: 2 });

    assert_eq!(collector.progress(), Progress { have: 1, need: 3 });
    collector.add(copy(&shares[1])).unwrap();
    collector.add(copy(&shares[4])).unwrap();
    assert!(collector.combine().unwrap() == key);
}

#[test]
fn shares_of_two_splits_of_one_key_do_not_mix() {
    let key = Key::generate(&SystemEntropy).unwrap();
    let scheme = Scheme::new(3, 2).unwrap();
    let (first, _) = split(&key, scheme, &SystemEntropy).unwrap();
    let (_, second) = split(&key, scheme, &SystemEntropy).unwrap();
    assert!(matches!(entered(&first[0], &second), Err(WrongShare::OtherSet { .. })));
}

#[test]
fn a_scheme_needs_two_and_has_no_more_than_255() {
    for (shares, threshold) in [(2, 2), (5, 3), (255, 255), (255, 2)] {
        let scheme = Scheme::new(shares, threshold).unwrap();
        assert_eq!((u32::from(scheme.shares()), u32::from(scheme.threshold())), (shares, threshold));
    }
    for (shares, threshold) in [(0, 0), (1, 1), (5, 1), (5, 0), (2, 3), (256, 2), (u32::MAX, 2), (5, 258)] {
        assert_eq!(Scheme::new(shares, threshold), Err(SchemeError { shares, threshold }));
    }
    let (key, shares, commitments) = made(255, 255);
    let mut collector = Collector::new(commitments);
    shares.into_iter().for_each(|share| assert!(collector.add(share).is_ok()));
    assert!(collector.combine().unwrap() == key);
}

#[test]
fn without_randomness_nothing_is_split() {
    let (key, scheme) = (Key::from_bytes(&[1; 32]), Scheme::new(3, 2).unwrap());
    assert!(split(&key, scheme, &Failing).is_err());
    assert!(split(&key, scheme, &FailingLater(0.into())).is_err());
}

#[test]
fn the_text_of_a_share_and_its_commitments_are_frozen() {
    let (shares, commitments) = frozen();
    let texts: Vec<_> = shares.iter().map(text).collect();
    assert_eq!(
        texts,
        [
            "kfs1-000g40r4-1-cxnpywvqfdzg61rb1w9he6rz4ckjpbsk6wxkzgy7sf7x7nyvvzhg-a45gv4ha",
            "kfs1-000g40r4-2-1081g81860wc1j6gv3gehw7rg2491650n2rbgptk9d1qpwvbccdg-f0ea1e4p",
            "kfs1-000g40r4-3-5mwka48x142r33csjprvvad5w7pzkxehvq4wbppprb7ensqjztx0-myp93eg7",
        ]
    );
    let stored = serde_json::to_value(&commitments).unwrap();
    assert_eq!(
        stored,
        json!({
            "set": "000g40r4",
            "threshold": 2,
            "salt": "BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ=",
            "digests": [
                "QTU7HUOY88E/7FobDTbQXVhcG8Ho54u54F83XjzONXc=",
                "ukltBVSiu8NxccbXIAJA5WvMx60dumBJ+vZWKCTxfLI=",
                "rfcXoccdrQCPpzQo9KF7AFC4xKPTkC+jJjg7WxdMLwE=",
            ],
        })
    );
    assert_eq!(serde_json::from_value::<Commitments>(stored).unwrap(), commitments);
}

#[test]
fn commitments_that_cannot_be_are_refused() {
    let stored = serde_json::to_value(frozen().1).unwrap();
    for (field, value) in [
        ("threshold", json!(1)),
        ("threshold", json!(4)),
        ("set", json!("0001")),
        ("salt", json!("AAAA")),
        ("digests", json!([])),
        ("digests", json!(["AAAA", "AAAA", "AAAA"])),
    ] {
        let mut changed = stored.clone();
        changed[field] = value;
        assert!(serde_json::from_value::<Commitments>(changed).is_err(), "{field}");
    }
}
