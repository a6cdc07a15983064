use super::*;

fn finding(expected: Expected, same_answer: bool, shift: f64) -> Finding {
    let block = |at: u32| {
        let nanos = 1000.0 + f64::from(at % 7);
        Block { a: nanos, a_again: nanos, b: nanos + shift }
    };
    let blocks: Vec<_> = (0..200).map(block).collect();
    let comparison = Comparison::of(&blocks);
    Finding { pair: "", expected, answer: String::new(), same_answer, comparison }
}

#[test]
fn a_pair_that_differs_fails_the_run_and_a_control_must() {
    let alike = || finding(Expected::Alike, true, 0.0);
    let found = || finding(Expected::Differ, true, 200.0);
    assert_eq!(Outcome::of(&[alike(), found()]), Outcome::Alike);
    assert_eq!(Outcome::of(&[alike(), finding(Expected::Alike, true, 200.0), found()]), Outcome::Differ);
    assert_eq!(Outcome::of(&[alike(), finding(Expected::Differ, true, 0.0)]), Outcome::Unclear);
}

#[test]
fn answers_that_differ_fail_the_run_whatever_their_times() {
    assert_eq!(Outcome::of(&[finding(Expected::Alike, false, 0.0)]), Outcome::Differ);
}
