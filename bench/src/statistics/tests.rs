use fastrand::Rng;

use super::*;

/// Times around a millisecond as a busy machine gives them: skewed, with now and then one that takes many times as long.
fn time(rng: &mut Rng, spread: f64) -> f64 {
    let bell: f64 = (0..12).map(|_| rng.f64() - 0.5).sum();
    let pause = if rng.f64() < 0.02 { 1.0 + 10.0 * rng.f64() } else { 1.0 };
    1_000_000.0 * (spread * bell).exp() * pause
}

/// Blocks of which `shift` gives B's extra nanoseconds, on a machine that slows down to a third over the run.
fn blocks(rng: &mut Rng, count: usize, spread: f64, shift: f64) -> Vec<Block> {
    let mut block = |at: usize| {
        let drift = 1.0 + 2.0 * at as f64 / count as f64;
        let mut time = || drift * time(rng, spread);
        Block { a: time(), a_again: time(), b: time() + shift }
    };
    (0..count).map(&mut block).collect()
}

fn judged(count: usize, spread: f64, shift: f64) -> Comparison {
    Comparison::of(&blocks(&mut Rng::with_seed(7), count, spread, shift))
}

#[test]
fn the_interval_of_a_median_has_the_ranks_of_the_tables() {
    let of = |count: u32| median_interval((1..=count).rev().map(f64::from).collect());
    assert_eq!(of(100), Interval { low: 40.0, median: 50.5, high: 61.0 });
    assert_eq!(of(25), Interval { low: 7.0, median: 13.0, high: 19.0 });
    assert_eq!(of(1), Interval { low: 1.0, median: 1.0, high: 1.0 });
}

#[test]
fn the_interval_holds_the_true_median_in_95_of_100_samples() {
    let mut rng = Rng::with_seed(1);
    let mut sample = || median_interval((0..400).map(|_| rng.f64()).collect());
    let held = (0..2000).map(|_| sample()).filter(|found| found.low <= 0.5 && 0.5 <= found.high).count();
    assert!((1880..=1960).contains(&held), "{held} of 2000");
}

#[test]
fn mann_and_whitneys_test_is_as_by_hand() {
    let (larger, z) = mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]);
    assert!(larger == 1.0 && (z - 1.9640).abs() < 1e-4, "{larger} {z}");
    // Eight of nine pairs, with ties counted half; the variance is 9/12 · (7 − (24 + 6)/30) = 4.5.
    let (larger, z) = mann_whitney(&[1.0, 2.0, 2.0], &[2.0, 3.0, 3.0]);
    assert!((larger - 8.0 / 9.0).abs() < 1e-12 && (z - 3.5 / 4.5_f64.sqrt()).abs() < 1e-12, "{larger} {z}");
    assert_eq!(mann_whitney(&[1.0, 1.0], &[1.0, 1.0]), (0.5, 0.0));
}

#[test]
fn what_is_the_same_is_alike_and_settled() {
    let found = judged(4000, 0.1, 0.0);
    assert!(found.verdict == Verdict::Alike && found.is_settled(), "{found:?}");
    assert!((found.bound_share() - NEGLIGIBLE_SHARE).abs() < 1e-9, "{found:?}");
}

#[test]
fn a_difference_is_found_whatever_its_sign() {
    for shift in [100_000.0, -100_000.0] {
        let found = judged(4000, 0.1, shift);
        assert!(found.verdict == Verdict::Differ && found.is_settled(), "{found:?}");
        assert!((found.difference.median - shift).abs() < 20_000.0, "{found:?}");
        assert!((found.b_longer - 0.5) * shift > 0.0 && found.z * shift > 0.0, "{found:?}");
    }
}

#[test]
fn noise_is_neither_likeness_nor_difference() {
    let found = judged(100, 1.0, 0.0);
    assert_eq!(found.verdict, Verdict::Unclear, "{found:?}");
    assert!(!found.is_settled(), "{found:?}");
}

#[test]
fn a_lopsided_measurement_gives_no_verdict_of_likeness() {
    let mut blocks = blocks(&mut Rng::with_seed(3), 4000, 0.1, 0.0);
    blocks.iter_mut().for_each(|block| block.a_again *= 1.1);
    assert_eq!(Comparison::of(&blocks).verdict, Verdict::Unclear);
}

#[test]
fn false_alarms_are_rare_and_a_difference_of_the_bound_is_found() {
    let mut rng = Rng::with_seed(5);
    let mut differing = 0;
    let mut missed = 0;
    for _ in 0..200 {
        let alike = Comparison::of(&blocks(&mut rng, 1000, 0.1, 0.0));
        differing += usize::from(alike.verdict == Verdict::Differ);
        let shifted = Comparison::of(&blocks(&mut rng, 1000, 0.1, alike.bound));
        missed += usize::from(shifted.verdict == Verdict::Alike && shifted.bound <= alike.bound);
    }
    assert!(differing <= 20 && missed <= 20, "{differing} false alarms, {missed} missed, of 200 each");
}
