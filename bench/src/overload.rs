//! What the server does with more than it can serve: twice its capacity from many nodes, one caller's flood beside others,
//! and readers who do not take their answers.

use std::{collections::BTreeMap, path::Path, process::ExitCode, sync::Arc, time::Duration};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value, json};

use self::cluster::{Cluster, NODES, ask};
use crate::{
    compare::{
        self,
        load::{self, Outcome, Pace},
        workload::{Caller, Source, Workload},
    },
    report::{profile, write_json},
};

pub(crate) mod cluster;
mod readers;

/// Callers of the closed loop that shows the capacity.
const CAPACITY_CALLERS: usize = 32;
/// Callers of all nodes: more than ever wait at one time, or requests would wait here instead of there.
const CALLERS: usize = 2048;
/// Calls at once of the one who floods, over several connections.
const FLOOD: [usize; 4] = [64; 4];
/// The nodes of the others, whose pods ask meanwhile.
const OTHERS: std::ops::Range<usize> = 1..9;
/// What they ask for, as a share of the capacity.
const OTHERS_SHARE: f64 = 0.1;
/// Times are looked at in windows of this length to see when they are back.
const WINDOW_SECS: f64 = 0.25;

/// Arguments of `keyfold-bench overload`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Secrets stored
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    stored: u32,
    /// Length of the overload; of the other phases half of it
    #[arg(long, default_value_t = 20, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(2..=600))]
    phase_secs: u64,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "overload,floods,readers", value_name = "PARTS")]
    parts: Vec<Part>,
    /// A top-level key of Keyfold's configuration, with its value in JSON
    #[arg(long, value_name = "KEY=JSON", value_parser = compare::setting)]
    keyfold_setting: Vec<(String, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Twice the capacity
    Overload,
    /// One caller's flood
    Floods,
    /// Readers who do not read
    Readers,
}

/// One phase as its callers saw it.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    /// Requests a second that fell due; none in a closed loop.
    offered: Option<f64>,
    served: f64,
    /// Share of all requests that were served.
    served_share: f64,
    /// How many were told to try again, by the code.
    shed: BTreeMap<String, usize>,
    p50_ms: f64,
    p99_ms: f64,
    /// Of those that were told to try again.
    shed_p99_ms: f64,
    /// To the p99 of the phase that it is compared with.
    p99_ratio: Option<f64>,
    rss_mb: f64,
    /// Processors taken by server, Postgres and this program.
    cpus: [f64; 3],
}

/// Measures, prints and writes.
///
/// # Panics
/// When a part does not start, or an answer is wrong.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let cluster = Cluster::start(&args.keyfold_setting, args.stored).await;
    let long = Duration::from_secs(args.phase_secs);
    let bench = Bench { cluster: &cluster, phase: long / 2 };
    let mut figures = json!({
        "profile": profile(), "stored": args.stored, "nodes": NODES, "settings": args.keyfold_setting,
    });
    let capacity = bench.capacity().await;
    println!("Capacity: {capacity:.0} issues a second");
    figures["capacity"] = json!(capacity);
    if args.parts.contains(&Part::Overload) {
        figures["overload"] = bench.overload(capacity, long).await;
    }
    if args.parts.contains(&Part::Floods) {
        figures["floods"] = bench.floods(capacity * OTHERS_SHARE).await;
    }
    if args.parts.contains(&Part::Readers) {
        figures["readers"] = readers::measure(&bench, capacity * OTHERS_SHARE).await;
    }
    write_json(out, "overload.json", &figures);
    ExitCode::SUCCESS
}

/// The server, and how long a phase is.
struct Bench<'a> {
    cluster: &'a Cluster,
    phase: Duration,
}

impl Bench<'_> {
    /// Issues a second in a closed loop.
    async fn capacity(&self) -> f64 {
        let mut callers = self.cluster.callers(CAPACITY_CALLERS, 0..NODES).await;
        let source = self.cluster.requests(Workload::Issue, 0..NODES, usize::MAX);
        ask(&mut callers, &source, Pace::Closed, self.phase / 2).await;
        ask(&mut callers, &source, Pace::Closed, self.phase / 2).await.per_second()
    }

    async fn overload(&self, capacity: f64, long: Duration) -> Value {
        let mut callers = self.cluster.callers(CALLERS, 0..NODES).await;
        let source = self.cluster.requests(Workload::Issue, 0..NODES, usize::MAX);
        let mut at = async |name, share: f64, time| {
            self.phase(name, &mut callers, &source, Pace::Open(capacity * share), time).await
        };
        at("warm-up", 0.5, self.phase / 2).await;
        let (unloaded, _) = at("unloaded", 0.2, self.phase).await;
        let (half, _) = at("half", 0.5, self.phase).await;
        let (overload, _) = at("twice", 2.0, long).await;
        let (after, outcome) = at("half again", 0.5, self.phase).await;
        let back = back_after(&outcome, 2.0 * half.p99_ms);
        let p99 = unloaded.p99_ms;
        let phases = [unloaded, half, overload, after].map(|phase| phase.beside(p99));
        print(&phases);
        match back {
            Some(secs) => println!("p99 was back within {secs} s"),
            None => println!("p99 did not come back"),
        }
        json!({"phases": phases, "back_within_secs": back})
    }

    async fn floods(&self, rate: f64) -> Value {
        let cluster = self.cluster;
        let mut others = cluster.callers(CALLERS / 8, OTHERS).await;
        let modest = cluster.requests(Workload::Issue, OTHERS, usize::MAX);
        let (quiet, _) = self.phase("quiet", &mut others, &modest, Pace::Open(rate), self.phase).await;
        let p99 = quiet.p99_ms;
        let mut phases = vec![quiet];
        let floods = [
            ("others, one pod floods", "the pod", Workload::Issue, 1),
            ("others, one driver floods", "the driver", Workload::Issue, usize::MAX),
            ("others, one operator floods", "the operator", Workload::Read, 1),
        ];
        for (name, flooder, workload, pods_max) in floods {
            let mut flood = Vec::new();
            for count in FLOOD {
                flood.extend(cluster.callers(count, 0..1).await);
            }
            let source = cluster.requests(workload, 0..1, pods_max);
            let ((beside, _), (itself, _)) = tokio::join!(
                self.phase(name, &mut others, &modest, Pace::Open(rate), self.phase),
                self.phase(flooder, &mut flood, &source, Pace::Closed, self.phase),
            );
            phases.extend([beside, itself]);
        }
        let phases: Vec<_> = phases.into_iter().map(|phase| phase.beside(p99)).collect();
        print(&phases);
        json!(phases)
    }

    async fn phase(
        &self,
        name: &'static str,
        callers: &mut Vec<Caller>,
        source: &Arc<Source>,
        pace: Pace,
        time: Duration,
    ) -> (Phase, Outcome) {
        let meter = self.cluster.meter();
        let before = meter.now();
        let outcome = ask(callers, source, pace, time).await;
        let (used, secs) = (meter.since(before), time.as_secs_f64());
        let mut shed: Vec<_> = outcome.shed.values().flatten().copied().collect();
        shed.sort_unstable_by(f64::total_cmp);
        let phase = Phase {
            name,
            offered: match pace {
                Pace::Closed => None,
                Pace::Open(rate) => Some(rate),
            },
            served: outcome.per_second(),
            served_share: outcome.count() as f64 / (outcome.count() + outcome.shed_count()) as f64,
            shed: outcome.shed.iter().map(|(code, shed)| (code.clone(), shed.len())).collect(),
            p50_ms: outcome.quantile(0.5),
            p99_ms: outcome.quantile(0.99),
            shed_p99_ms: load::quantile(&shed, 0.99),
            p99_ratio: None,
            rss_mb: meter.rss_mb(),
            cpus: [used.server_secs, used.postgres_secs.unwrap_or_default(), used.generator_secs]
                .map(|used| used / secs),
        };
        (phase, outcome)
    }
}

impl Phase {
    fn beside(self, p99_ms: f64) -> Self {
        Self { p99_ratio: Some(self.p99_ms / p99_ms), ..self }
    }
}

/// The end of the first window whose p99 is within the bound.
fn back_after(outcome: &Outcome, p99_max_ms: f64) -> Option<f64> {
    let mut windows = BTreeMap::<usize, Vec<f64>>::new();
    for (due_secs, millis) in &outcome.served {
        windows.entry((due_secs / WINDOW_SECS) as usize).or_default().push(*millis);
    }
    windows.into_iter().find_map(|(window, mut millis)| {
        millis.sort_unstable_by(f64::total_cmp);
        (load::quantile(&millis, 0.99) <= p99_max_ms).then_some((window + 1) as f64 * WINDOW_SECS)
    })
}

fn print(phases: &[Phase]) {
    let or_dash = |of: f64, unit: &str| if of.is_finite() { format!("{of:.1}{unit}") } else { "-".into() };
    let rows = phases.iter().map(|phase| {
        let codes: Vec<_> = phase.shed.iter().map(|(code, count)| format!("{code} {count}")).collect();
        [
            phase.name.to_owned(),
            phase.offered.map_or_else(|| "-".into(), |offered| format!("{offered:.0}")),
            format!("{:.0}", phase.served),
            or_dash(phase.served_share * 100.0, " %"),
            if codes.is_empty() { "-".into() } else { codes.join(", ") },
            or_dash(phase.shed_p99_ms, " ms"),
            or_dash(phase.p50_ms, " ms"),
            or_dash(phase.p99_ms, " ms"),
            or_dash(phase.p99_ratio.unwrap_or(f64::NAN), ""),
            format!("{:.0} MiB", phase.rss_mb),
            phase.cpus.map(|cpus| format!("{cpus:.2}")).join(" "),
        ]
    });
    let header = [
        "PHASE", "OFFERED", "SERVED", "SHARE", "SHED", "SHED P99", "P50", "P99", "RATIO", "RESIDENT", "CPUS",
    ];
    println!("\n{}", keyfold::output::table(header, rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_back_with_the_first_window_that_is() {
        let served = |slow_until: f64| {
            let at = (0..400).map(|at| f64::from(at) / 100.0);
            at.map(|due| (due, if due < slow_until { 50.0 } else { 1.0 })).collect()
        };
        let outcome = |slow_until| Outcome::of_served(served(slow_until), 4.0);
        assert_eq!(back_after(&outcome(0.0), 5.0), Some(0.25));
        assert_eq!(back_after(&outcome(1.1), 5.0), Some(1.5));
        assert_eq!(back_after(&outcome(9.0), 5.0), None);
    }
}
