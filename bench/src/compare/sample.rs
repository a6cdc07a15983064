//! Figures by name, and what becomes of those of several pairs.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What was measured of one side in one pair. The unit stands last in each name.
pub(super) type Sample = BTreeMap<&'static str, f64>;

/// Ratios in the report, and the figure that each is made of. Of throughput more is better, of all others less.
const RATIOS: [(&str, &str); 8] = [
    ("ops", "ops"),
    ("p50", "p50_ms"),
    ("p99", "p99_ms"),
    ("closed_p50", "closed_p50_ms"),
    ("rss", "rss_mb"),
    ("ready", "ready_ms"),
    ("server_cpu", "server_cpu_ms"),
    ("wal", "wal_bytes"),
];

/// The middle value; of an even number, the mean of both.
///
/// # Panics
/// When there is none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// Medians of all pairs, with the least and the greatest of each under `spread`.
pub(super) fn summary(samples: &[Sample]) -> Value {
    let mut summary = Map::new();
    let mut spread = Map::new();
    for name in names(samples) {
        let (median, low, high) = spread_of(samples.iter().filter_map(|sample| sample.get(name).copied()));
        summary.insert(name.into(), json!(rounded(median)));
        spread.insert(name.into(), json!([rounded(low), rounded(high)]));
    }
    summary.insert("spread".into(), Value::Object(spread));
    Value::Object(summary)
}

/// How much better ours is than theirs: the median of the ratios within each pair, with the least and the greatest under
/// `spread`. Above 1 is better.
pub(super) fn ratio(ours: &[Sample], theirs: &[Sample]) -> Value {
    let mut ratios = Map::new();
    let mut spread = Map::new();
    for (name, figure) in RATIOS {
        let pairs = ours.iter().zip(theirs).filter_map(|(ours, theirs)| {
            let (ours, theirs) = (*ours.get(figure)?, *theirs.get(figure)?);
            let ratio = if figure == "ops" { ours / theirs } else { theirs / ours };
            ratio.is_finite().then_some(ratio)
        });
        let pairs: Vec<_> = pairs.collect();
        if pairs.is_empty() {
            continue;
        }
        let (median, low, high) = spread_of(pairs.into_iter());
        ratios.insert(name.into(), json!(rounded(median)));
        spread.insert(name.into(), json!([rounded(low), rounded(high)]));
    }
    ratios.insert("spread".into(), Value::Object(spread));
    Value::Object(ratios)
}

fn names(samples: &[Sample]) -> Vec<&'static str> {
    samples.first().map(|sample| sample.keys().copied().collect()).unwrap_or_default()
}

fn spread_of(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let values: Vec<_> = values.collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (median(values), low, high)
}

/// Four significant digits: no measurement here has more.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ops: f64, p50_ms: f64) -> Sample {
        Sample::from([("ops", ops), ("p50_ms", p50_ms)])
    }

    #[test]
    fn a_ratio_is_the_median_of_those_within_pairs_and_above_one_is_better() {
        let ours = [sample(100.0, 1.0), sample(400.0, 2.0), sample(90.0, 1.0)];
        let theirs = [sample(50.0, 4.0), sample(100.0, 4.0), sample(30.0, 1.0)];
        let ratio = ratio(&ours, &theirs);
        assert_eq!(ratio["ops"], 3.0);
        assert_eq!(ratio["p50"], 2.0);
        assert_eq!(ratio["spread"], json!({"ops": [2.0, 4.0], "p50": [1.0, 4.0]}));
    }

    #[test]
    fn a_figure_that_one_side_lacks_has_no_ratio() {
        let ours = [Sample::from([("ops", 1.0), ("wal_bytes", 10.0)])];
        let ratio = ratio(&ours, &[sample(1.0, 1.0)]);
        assert_eq!(ratio.as_object().expect("an object").keys().collect::<Vec<_>>(), ["ops", "spread"]);
    }

    #[test]
    fn a_summary_has_medians_and_extremes() {
        let summary = summary(&[sample(3.0, 1.0), sample(1.0, 1.0), sample(2.0, 1.12345)]);
        assert_eq!(
            summary,
            json!({"ops": 2.0, "p50_ms": 1.0, "spread": {"ops": [1.0, 3.0], "p50_ms": [1.0, 1.123]}})
        );
    }
}
