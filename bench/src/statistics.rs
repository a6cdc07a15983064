//! The statistics of the timing test. No distribution is assumed: times on a shared machine have long tails and
//! several humps.

use serde::Serialize;

/// The standard normal quantile of a two-sided 95 % interval.
const Z_95: f64 = 1.96;
/// Differences below this share of the median count as none.
const NEGLIGIBLE_SHARE: f64 = 0.02;
/// Above this share of the median the noise floor hides too much for a verdict of likeness.
const BOUND_SHARE_MAX: f64 = 0.05;

/// The times of one block in nanoseconds: two requests of arm A and one of arm B, asked one after the other in random
/// order. What changes more slowly than a block takes is the same for all three.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) a: f64,
    pub(crate) a_again: f64,
    pub(crate) b: f64,
}

/// A median with its 95 % confidence interval, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Interval {
    fn is_within(&self, bound: f64) -> bool {
        -bound <= self.low && self.high <= bound
    }

    fn is_beyond(&self, bound: f64) -> bool {
        self.low > bound || self.high < -bound
    }

    fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// What is found about two arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// They take the same time, within the bound.
    Alike,
    /// They do not.
    Differ,
    /// There is too much noise to say.
    Unclear,
}

/// Two arms compared.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) blocks: usize,
    /// Of A's times.
    pub(crate) median_a: f64,
    /// Of B's times.
    pub(crate) median_b: f64,
    /// Of B − A within blocks.
    pub(crate) difference: Interval,
    /// Of A − A within blocks: what the machine alone makes of no difference.
    pub(crate) same: Interval,
    /// Largest difference that counts as none; one of this size or more is found with a probability of 97.5 %.
    pub(crate) bound: f64,
    /// Mann–Whitney's U as the probability that a request of B takes longer than one of A; ½ when nothing differs.
    pub(crate) b_longer: f64,
    /// How many standard deviations that lies from ½.
    pub(crate) z: f64,
    pub(crate) verdict: Verdict,
}

impl Comparison {
    /// Compares the arms of some hundred blocks or more.
    pub(crate) fn of(blocks: &[Block]) -> Self {
        let each = |of: fn(&Block) -> f64| blocks.iter().map(of).collect::<Vec<f64>>();
        let (a, b) = (each(|block| block.a), each(|block| block.b));
        let (b_longer, z) = mann_whitney(&a, &b);
        let (median_a, median_b) = (median_interval(a).median, median_interval(b).median);
        let difference = median_interval(each(|block| block.b - block.a));
        let same = median_interval(each(|block| block.a_again - block.a));
        // Without any difference the interval of B − A is as wide as that of A − A, and in 95 % of all runs its middle
        // lies at most half of that width off.
        let bound = f64::max(NEGLIGIBLE_SHARE * median_a, 2.0 * same.half_width());
        let verdict = verdict(&difference, &same, bound, BOUND_SHARE_MAX * median_a);
        Self { blocks: blocks.len(), median_a, median_b, difference, same, bound, b_longer, z, verdict }
    }

    /// Whether more blocks would not change what is found.
    pub(crate) fn is_settled(&self) -> bool {
        let is_fine = self.bound <= NEGLIGIBLE_SHARE * self.median_a;
        self.difference.is_beyond(self.bound) || (is_fine && self.verdict == Verdict::Alike)
    }

    /// The bound as a share of A's median.
    pub(crate) fn bound_share(&self) -> f64 {
        self.bound / self.median_a
    }
}

fn verdict(difference: &Interval, same: &Interval, bound: f64, bound_max: f64) -> Verdict {
    let excludes_zero = difference.is_beyond(0.0);
    match difference.is_within(bound) {
        true if bound <= bound_max && same.is_within(bound) => Verdict::Alike,
        false if excludes_zero => Verdict::Differ,
        _ => Verdict::Unclear,
    }
}

/// The median, with the order statistics that enclose the true one in 95 % of all samples (Conover, Practical
/// Nonparametric Statistics, section 3.2: the inversion of the sign test).
pub(crate) fn median_interval(mut values: Vec<f64>) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let count = values.len();
    let rank = ((count as f64 - Z_95 * (count as f64).sqrt()) / 2.0).floor().max(1.0) as usize;
    let median = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
    Interval { low: values[rank - 1], median, high: values[count - rank] }
}

/// Mann and Whitney's test: the share of all pairs in which `b` is larger, ties counted half, and its distance from ½
/// in standard deviations.
fn mann_whitney(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (count_a, count_b) = (a.len() as f64, b.len() as f64);
    let mut all: Vec<_> = a.iter().map(|a| (*a, false)).chain(b.iter().map(|b| (*b, true))).collect();
    all.sort_unstable_by(|(left, _), (right, _)| left.total_cmp(right));
    let (mut ranks_of_b, mut before, mut ties) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|(left, _), (right, _)| left == right) {
        let count = equal.len() as f64;
        let of_b = equal.iter().filter(|(_, is_b)| *is_b).count() as f64;
        ranks_of_b += of_b * (before + f64::midpoint(count, 1.0));
        ties += count.powi(3) - count;
        before += count;
    }
    let larger = ranks_of_b - count_b * (count_b + 1.0) / 2.0;
    let variance = count_a * count_b / 12.0 * (before + 1.0 - ties / (before * (before - 1.0)));
    let z = if variance > 0.0 { (larger - count_a * count_b / 2.0) / variance.sqrt() } else { 0.0 };
    (larger / (count_a * count_b), z)
}

#[cfg(test)]
mod tests;
