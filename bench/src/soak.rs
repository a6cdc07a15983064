//! Whether a load that lasts makes the server grow: its memory, its files, its threads, its connections to Postgres.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    compare::{
        self,
        load::{Outcome, Pace},
        workload::Workload,
    },
    overload::cluster::{Cluster, NODES, ask},
    report::{profile, write_json},
};

/// The load's share of what the server can do.
const LOAD_SHARE: f64 = 0.7;
/// Callers of each kind when that is looked for.
const CAPACITY_CALLERS: usize = 10;
/// Callers of each kind afterwards.
const CALLERS: usize = 256;
const KINDS: [Workload; 3] = [Workload::Issue, Workload::Read, Workload::Write];
/// How often the server is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// The share of the time in which caches and pools fill: 2 of 10 minutes.
const SETTLING_SHARE: f64 = 0.2;
/// Growth of memory after that which noise cannot explain.
const GROWTH_MAX: f64 = 0.05;

/// Arguments of `keyfold-bench soak`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// How long the load lasts
    #[arg(long, default_value_t = 10.0, value_name = "MINUTES")]
    minutes: f64,
    /// Secrets stored
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    stored: u32,
    /// A top-level key of Keyfold's configuration, with its value in JSON
    #[arg(long, value_name = "KEY=JSON", value_parser = compare::setting)]
    keyfold_setting: Vec<(String, Value)>,
}

/// The server at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    secs: f64,
    rss_mb: f64,
    files: usize,
    threads: usize,
    postgres_connections: usize,
}

/// What the samples come to.
#[derive(Debug, PartialEq, Serialize)]
struct Verdict {
    /// By a straight line through the samples after settling, as a share of where that begins.
    rss_growth: f64,
    files_grow: bool,
    threads_grow: bool,
    connections_grow: bool,
}

impl Verdict {
    fn is_steady(&self) -> bool {
        self.rss_growth <= GROWTH_MAX && !self.files_grow && !self.threads_grow && !self.connections_grow
    }
}

/// Measures, prints and writes.
///
/// # Panics
/// When a part does not start, or an answer is wrong.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    // One operator stands for many.
    let limits = ("limits".to_owned(), json!({"requests_per_operator": 256}));
    let settings = [&[limits], &args.keyfold_setting[..]].concat();
    let cluster = Cluster::start(&settings, args.stored).await;
    let rates = capacity(&cluster).await.map(|rate| rate * LOAD_SHARE);
    let [issues, reads, writes] = rates;
    println!("{issues:.0} issues, {reads:.0} reads and {writes:.0} writes fall due each second");
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let (outcomes, samples) = tokio::join!(load(&cluster, rates, time), watch(&cluster, time));
    let verdict = verdict(&samples, time.as_secs_f64());
    print(&outcomes, &verdict);
    let kind = |(workload, outcome): (Workload, &Outcome)| {
        json!({
            "name": workload.name(), "served": outcome.count(), "shed": outcome.shed_count(),
            "p50_ms": outcome.quantile(0.5), "p99_ms": outcome.quantile(0.99),
        })
    };
    let kinds: Vec<_> = KINDS.into_iter().zip(&outcomes).map(kind).collect();
    let figures = json!({
        "profile": profile(), "minutes": args.minutes, "stored": args.stored, "rates": rates,
        "workloads": kinds, "samples": samples, "verdict": verdict,
    });
    write_json(out, "soak.json", &figures);
    if verdict.is_steady() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Requests a second of each kind, all kinds together in a closed loop.
async fn capacity(cluster: &Cluster) -> [f64; 3] {
    let closed = async |workload| {
        let mut callers = cluster.callers(CAPACITY_CALLERS, 0..NODES).await;
        let source = cluster.requests(workload, 0..NODES, usize::MAX);
        ask(&mut callers, &source, Pace::Closed, Duration::from_secs(3)).await;
        ask(&mut callers, &source, Pace::Closed, Duration::from_secs(5)).await.per_second()
    };
    let [issue, read, write] = KINDS;
    let (issues, reads, writes) = tokio::join!(closed(issue), closed(read), closed(write));
    [issues, reads, writes]
}

async fn load(cluster: &Cluster, rates: [f64; 3], time: Duration) -> [Outcome; 3] {
    let open = async |workload, rate| {
        let mut callers = cluster.callers(CALLERS, 0..NODES).await;
        let source = cluster.requests(workload, 0..NODES, usize::MAX);
        ask(&mut callers, &source, Pace::Open(rate), time).await
    };
    let [(issue, issues), (read, reads), (write, writes)] = [0, 1, 2].map(|at| (KINDS[at], rates[at]));
    let (issues, reads, writes) = tokio::join!(open(issue, issues), open(read, reads), open(write, writes));
    [issues, reads, writes]
}

async fn watch(cluster: &Cluster, time: Duration) -> Vec<Sample> {
    let start = Instant::now();
    let mut samples = Vec::new();
    println!(
        "{:>8} {:>12} {:>6} {:>8} {:>22}",
        "SECONDS", "RESIDENT", "FILES", "THREADS", "POSTGRES CONNECTIONS"
    );
    while start.elapsed() < time {
        tokio::time::sleep(SAMPLE_INTERVAL.min(time.saturating_sub(start.elapsed()))).await;
        let sample = sample(cluster, start.elapsed().as_secs_f64());
        let Sample { secs, rss_mb, files, threads, postgres_connections } = sample;
        println!("{secs:>8.0} {rss_mb:>8.1} MiB {files:>6} {threads:>8} {postgres_connections:>22}");
        samples.push(sample);
    }
    samples
}

fn sample(cluster: &Cluster, secs: f64) -> Sample {
    let meter = cluster.meter();
    let count =
        |what: &str| fs::read_dir(format!("/proc/{}/{what}", meter.server)).expect("the server runs").count();
    Sample {
        secs,
        rss_mb: meter.rss_mb(),
        files: count("fd"),
        threads: count("task"),
        postgres_connections: meter.postgres_connections(),
    }
}

fn verdict(samples: &[Sample], secs: f64) -> Verdict {
    let from = secs * SETTLING_SHARE;
    let settled: Vec<_> = samples.iter().filter(|sample| sample.secs >= from).collect();
    let line = |of: fn(&Sample) -> f64| Line::through(settled.iter().map(|sample| (sample.secs, of(sample))));
    // By less than one, which is what comes and goes.
    let grows = |of: fn(&Sample) -> f64| {
        let line = line(of);
        line.at(secs) - line.at(from) >= 1.0
    };
    let rss = line(|sample| sample.rss_mb);
    Verdict {
        rss_growth: rss.at(secs) / rss.at(from) - 1.0,
        files_grow: grows(|sample| sample.files as f64),
        threads_grow: grows(|sample| sample.threads as f64),
        connections_grow: grows(|sample| sample.postgres_connections as f64),
    }
}

/// A straight line.
struct Line {
    slope: f64,
    start: f64,
}

impl Line {
    /// That with the least squares (Legendre). Level where there are too few points for a slope.
    fn through(points: impl Iterator<Item = (f64, f64)> + Clone) -> Self {
        let count = points.clone().count().max(1) as f64;
        let mean_x = points.clone().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points.clone().map(|(_, y)| y).sum::<f64>() / count;
        let across = points.clone().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>();
        let along = points.map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>();
        let slope = if along > 0.0 { across / along } else { 0.0 };
        Self { slope, start: mean_y - slope * mean_x }
    }

    fn at(&self, x: f64) -> f64 {
        self.start + self.slope * x
    }
}

fn print(outcomes: &[Outcome; 3], verdict: &Verdict) {
    let rows = KINDS.into_iter().zip(outcomes).map(|(workload, outcome)| {
        [
            workload.name(),
            outcome.count().to_string(),
            outcome.shed_count().to_string(),
            format!("{:.1} ms", outcome.quantile(0.5)),
            format!("{:.1} ms", outcome.quantile(0.99)),
        ]
    });
    println!("\n{}", keyfold::output::table(["WORKLOAD", "SERVED", "SHED", "P50", "P99"], rows));
    let grows = |grows: bool| if grows { "grow" } else { "do not grow" };
    println!(
        "Memory: {:+.1} % after settling; files {}, threads {}, connections {}",
        verdict.rss_growth * 100.0,
        grows(verdict.files_grow),
        grows(verdict.threads_grow),
        grows(verdict.connections_grow)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rss_mb: fn(f64) -> f64, files: fn(f64) -> usize) -> Vec<Sample> {
        let sample = |at: u32| {
            let secs = f64::from(at) * 10.0;
            Sample { secs, rss_mb: rss_mb(secs), files: files(secs), threads: 4, postgres_connections: 16 }
        };
        (1..=60).map(sample).collect()
    }

    #[test]
    fn what_fills_at_first_and_then_only_varies_is_steady() {
        let rss = |secs: f64| if secs < 110.0 { secs } else { 110.0 + (secs / 10.0) % 2.0 };
        let verdict = verdict(&samples(rss, |secs| 100 + (secs / 10.0) as usize % 3), 600.0);
        assert!(verdict.is_steady(), "{verdict:?}");
    }

    #[test]
    fn what_grows_slowly_is_found() {
        let leaks = verdict(&samples(|secs| 100.0 + secs / 60.0, |_| 100), 600.0);
        assert!((0.07..0.09).contains(&leaks.rss_growth) && !leaks.is_steady(), "{leaks:?}");
        let leaks = verdict(&samples(|_| 100.0, |secs| 100 + (secs / 100.0) as usize), 600.0);
        assert!(leaks.files_grow && !leaks.is_steady(), "{leaks:?}");
    }
}
