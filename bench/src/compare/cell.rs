//! One cell: one workload with a number of callers and of stored secrets, on all sides in turn.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    load::{self, Outcome, Pace},
    meter::Used,
    sample::{Sample, median, ratio, summary},
    tokens::{Mint, PodToken},
    workload::{Caller, Column, Feed, Side, Source, Workload, nodes},
};

/// The share of a throughput at which times are measured: a server at its limit has a queue that grows with the run.
const LOAD_SHARE: f64 = 0.7;
/// Tokens for the first phase, which warms up and shows how many a phase will take.
const WARM_UP_TOKENS: usize = 2000;

/// What all cells have in common.
pub(super) struct Plan {
    pub(super) pairs: usize,
    pub(super) phase: Duration,
    /// Most tokens that one phase takes.
    pub(super) tokens_max: usize,
    pub(super) mint: Arc<Mint>,
}

/// A cell, and what it has come to.
pub(super) struct Cell {
    pub(super) workload: Workload,
    pub(super) callers: usize,
    pub(super) stored: u32,
}

/// One side within a cell.
struct Arm<'a> {
    column: &'a Column,
    callers: Vec<Caller>,
    samples: Vec<Sample>,
}

/// How many tokens each phase of a pair may take.
#[derive(Clone, Copy)]
struct Shares {
    closed: usize,
    open: usize,
    own: usize,
}

impl Cell {
    /// Measures all columns, the first of which is Keyfold, the second the peer if it is there. Gives the report's entry.
    ///
    /// # Panics
    /// When an answer is wrong.
    pub(super) async fn measure(&self, plan: &Plan, columns: &[&Column]) -> Value {
        let mut arms = Vec::new();
        for &column in columns {
            arms.push(Arm { column, callers: column.callers(self.callers).await, samples: Vec::new() });
        }
        let shares = self.warm_up(plan, &mut arms).await;
        let mut rates = Vec::new();
        for _ in 0..plan.pairs {
            rates.push(self.pair(plan, &mut arms, shares).await);
        }
        self.entry(&arms, median(rates))
    }

    async fn warm_up(&self, plan: &Plan, arms: &mut [Arm<'_>]) -> Shares {
        let count = if self.workload.takes_new_tokens() { WARM_UP_TOKENS } else { self.callers };
        let tokens = plan.mint.tokens(count, nodes(self.callers)).await;
        let mut fastest = Vec::new();
        for arm in arms {
            let source = self.source(&tokens, 0..count);
            fastest.push(arm.run(&source, Pace::Closed, plan.phase / 2).await.per_second());
        }
        let (ours, theirs) = (fastest[0], fastest.get(1).copied().unwrap_or(f64::MAX));
        let most = fastest.into_iter().fold(0.0, f64::max);
        // Half as many again, because the first phase is the slowest.
        let of = |rate: f64| ((rate * 1.5 * plan.phase.as_secs_f64()) as usize + 100).min(plan.tokens_max);
        Shares { closed: of(most), open: of(ours.min(theirs) * LOAD_SHARE), own: of(ours * LOAD_SHARE) }
    }

    /// Gives the rate of the open loop.
    async fn pair(&self, plan: &Plan, arms: &mut [Arm<'_>], shares: Shares) -> f64 {
        let tokens = self.tokens(plan, shares).await;
        let Shares { closed, open, own } = shares;
        for arm in arms.iter_mut() {
            let sample = arm.throughput(&self.source(&tokens, 0..closed), plan.phase).await;
            arm.samples.push(sample);
        }
        let throughput = |arm: &Arm<'_>| arm.samples.last().map_or(f64::NAN, |sample| sample["ops"]);
        // Of the slower one of the two: both can serve it.
        let rate = arms.iter().take(2).map(throughput).fold(f64::MAX, f64::min) * LOAD_SHARE;
        for arm in arms.iter_mut() {
            let source = self.source(&tokens, closed..closed + open);
            let outcome = arm.run(&source, Pace::Open(rate), plan.phase).await;
            arm.add([("p50_ms", outcome.quantile(0.5)), ("p99_ms", outcome.quantile(0.99))]);
        }
        let own_rate = throughput(&arms[0]) * LOAD_SHARE;
        let source = self.source(&tokens, closed + open..closed + open + own);
        let outcome = arms[0].run(&source, Pace::Open(own_rate), plan.phase).await;
        let (p50, p99) = (outcome.quantile(0.5), outcome.quantile(0.99));
        arms[0].add([("own_rate", own_rate), ("own_rate_p50_ms", p50), ("own_rate_p99_ms", p99)]);
        rate
    }

    /// New ones, or one for each caller.
    async fn tokens(&self, plan: &Plan, Shares { closed, open, own }: Shares) -> Arc<Vec<PodToken>> {
        let count = if self.workload.takes_new_tokens() { closed + open + own } else { self.callers };
        plan.mint.tokens(count, nodes(self.callers)).await
    }

    fn source(&self, tokens: &Arc<Vec<PodToken>>, range: std::ops::Range<usize>) -> Arc<Source> {
        let is_new = self.workload.takes_new_tokens();
        let feed = if is_new { Feed::once(tokens, range) } else { Feed::ring(tokens) };
        Arc::new(Source { workload: self.workload, stored: self.stored, feed })
    }

    fn entry(&self, arms: &[Arm<'_>], rate: f64) -> Value {
        let mut entry = json!({
            "name": self.workload.name(), "callers": self.callers, "stored": self.stored,
            "open_rate": rate.round(),
        });
        let ours = &arms[0].samples;
        for arm in arms {
            entry[arm.column.key] = summary(&arm.samples);
            if let Side::Peer(..) = arm.column.side {
                entry[arm.column.key.replace("peer", "ratio")] = ratio(ours, &arm.samples);
            }
        }
        entry
    }
}

impl Arm<'_> {
    async fn run(&mut self, source: &Arc<Source>, pace: Pace, phase: Duration) -> Outcome {
        load::run(&mut self.callers, source, pace, tokio::time::sleep(phase)).await
    }

    async fn throughput(&mut self, source: &Arc<Source>, phase: Duration) -> Sample {
        let meter = self.column.meter();
        let before = meter.now();
        let outcome = self.run(source, Pace::Closed, phase).await;
        let used = meter.since(before);
        let mut sample = Sample::from([
            ("ops", outcome.per_second()),
            ("closed_p50_ms", outcome.quantile(0.5)),
            ("closed_p99_ms", outcome.quantile(0.99)),
            ("rss_mb", meter.rss_mb()),
        ]);
        sample.extend(per_operation(&used, outcome.count() as f64));
        sample
    }

    fn add<const N: usize>(&mut self, figures: [(&'static str, f64); N]) {
        if let Some(sample) = self.samples.last_mut() {
            sample.extend(figures);
        }
    }
}

fn per_operation(used: &Used, count: f64) -> impl Iterator<Item = (&'static str, f64)> {
    let figures = [
        ("server_cpu_ms", Some(used.server_secs * 1000.0)),
        ("postgres_cpu_ms", used.postgres_secs.map(|secs| secs * 1000.0)),
        ("generator_cpu_ms", Some(used.generator_secs * 1000.0)),
        ("wal_bytes", used.wal_bytes),
        ("postgres_bytes", used.database_bytes),
    ];
    figures.into_iter().filter_map(move |(name, figure)| Some((name, figure? / count)))
}
