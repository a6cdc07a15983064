//! Whether the time of a refusal tells what exists: two arms that get the same answer are asked in turn, in random
//! order, and their times compared.

use std::{path::Path, process::ExitCode, time::Instant};

use clap::Args as ClapArgs;
use fastrand::Rng;
use serde::Serialize;

use self::{
    pairs::{Arm, Expected, Pair},
    stand::Stand,
};
use crate::{
    report::{micros, profile, write_json},
    statistics::{Block, Comparison, Verdict},
};

mod pairs;
mod probe;
mod stand;

pub(crate) use probe::bearing;

/// Arguments of `keyfold-bench timing`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Blocks of three requests in a round
    #[arg(long, default_value_t = 4000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    blocks: u32,
    /// Most rounds of a pair: another one follows while the noise is too high
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only the pairs whose names contain this
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
    /// Seed of names and orders
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// What is found about one pair.
#[derive(Serialize)]
struct Finding {
    pair: &'static str,
    expected: Expected,
    /// What A's first request is answered.
    answer: String,
    /// Whether both arms are answered the same, but for the names that they asked with.
    same_answer: bool,
    #[serde(flatten)]
    comparison: Comparison,
}

impl Finding {
    fn verdict(&self) -> Verdict {
        if self.same_answer { self.comparison.verdict } else { Verdict::Differ }
    }
}

/// Runs all pairs, prints and writes what is found. Gives 1 when a pair differs that must not; otherwise 2 when noise
/// hides one, or the test does not find a difference that is there.
///
/// # Panics
/// When a part does not start, or does not answer.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let mut rng = Rng::with_seed(args.seed);
    let (stand, pairs) = Stand::start(&mut rng).await;
    let mut findings = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.name.contains(&args.only)) {
        eprintln!("{} …", pair.name);
        findings.push(find(&stand, pair, args, &mut rng).await);
    }
    print!("{}", table(&findings));
    let outcome = Outcome::of(&findings);
    println!("\n{}", outcome.text());
    let figures = serde_json::json!({
        "profile": profile(), "seed": args.seed, "unit": "ns", "outcome": outcome, "pairs": findings,
    });
    write_json(out, "timing.json", &figures);
    ExitCode::from(outcome as u8)
}

async fn find(stand: &Stand, pair: &Pair, args: &Args, rng: &mut Rng) -> Finding {
    // Connection, caches and statements are warm afterwards.
    let (of_a, of_b) = (answers(stand, &pair.a).await, answers(stand, &pair.b).await);
    let same_answer = of_a == of_b || pair.expected == Expected::Differ;
    let answer = of_a.into_iter().next().unwrap_or_default();
    let mut blocks = Vec::new();
    for _ in 0..args.rounds {
        for _ in 0..args.blocks {
            blocks.push(block(stand, pair, rng).await);
        }
        if Comparison::of(&blocks).is_settled() {
            break;
        }
    }
    let comparison = Comparison::of(&blocks);
    Finding { pair: pair.name, expected: pair.expected, answer, same_answer, comparison }
}

/// The different answers that an arm gets, each once.
async fn answers(stand: &Stand, arm: &Arm) -> Vec<String> {
    let mut answers = Vec::new();
    for probe in &arm.probes {
        let answer = stand.answer(probe).await;
        if !answers.contains(&answer) {
            answers.push(answer);
        }
    }
    answers
}

async fn block(stand: &Stand, pair: &Pair, rng: &mut Rng) -> Block {
    let arms = [&pair.a, &pair.a, &pair.b];
    let mut order = [0, 1, 2];
    rng.shuffle(&mut order);
    let mut nanos = [0.0; 3];
    for at in order {
        nanos[at] = time(stand, arms[at], rng).await;
    }
    let [a, a_again, b] = nanos;
    Block { a, a_again, b }
}

/// How long one request of the arm takes, in nanoseconds.
async fn time(stand: &Stand, arm: &Arm, rng: &mut Rng) -> f64 {
    let call = stand.prepare(&arm.probes[rng.usize(..arm.probes.len())]);
    let start = Instant::now();
    while start.elapsed() < arm.delay {
        std::hint::spin_loop();
    }
    let answer = call.send().await;
    let nanos = start.elapsed().as_nanos() as f64;
    drop(answer);
    nanos
}

/// The end of a run, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
enum Outcome {
    Alike = 0,
    Differ = 1,
    Unclear = 2,
}

impl Outcome {
    fn of(findings: &[Finding]) -> Self {
        let refusals = || findings.iter().filter(|finding| finding.expected == Expected::Alike);
        let controls = || findings.iter().filter(|finding| finding.expected == Expected::Differ);
        if refusals().any(|finding| finding.verdict() == Verdict::Differ) {
            Self::Differ
        } else if refusals().any(|finding| finding.verdict() == Verdict::Unclear)
            || controls().any(|finding| finding.verdict() != Verdict::Differ)
        {
            Self::Unclear
        } else {
            Self::Alike
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Alike => "No refusal tells by its time what exists, and every control was found.",
            Self::Differ => "A refusal tells what exists.",
            Self::Unclear => {
                "This run cannot tell: noise hides a pair, or a control was not found. Try a quieter machine."
            }
        }
    }
}

fn table(findings: &[Finding]) -> String {
    let header = [
        "PAIR",
        "BLOCKS",
        "MEDIAN",
        "B − A (95 %)",
        "A − A (95 %)",
        "FOUND FROM",
        "B LONGER",
        "Z",
        "VERDICT",
    ];
    keyfold::output::table(header, findings.iter().map(row))
}

fn row(finding: &Finding) -> [String; 9] {
    let Comparison { blocks, median_a, difference, same, bound, b_longer, z, .. } = &finding.comparison;
    let range = |low: f64, high: f64| format!("{:+.1} … {:+.1} µs", low / 1000.0, high / 1000.0);
    let verdict = match (finding.expected, finding.verdict()) {
        (_, Verdict::Unclear) => "unclear",
        (Expected::Alike, Verdict::Alike) => "alike",
        (Expected::Alike, Verdict::Differ) if !finding.same_answer => "TOLD BY THE ANSWER",
        (Expected::Alike, Verdict::Differ) => "DIFFER",
        (Expected::Differ, Verdict::Differ) => "found",
        (Expected::Differ, Verdict::Alike) => "NOT FOUND",
    };
    [
        finding.pair.to_owned(),
        blocks.to_string(),
        micros(*median_a),
        range(difference.low, difference.high),
        range(same.low, same.high),
        format!("{} ({:.1} %)", micros(*bound), 100.0 * finding.comparison.bound_share()),
        format!("{:.1} %", 100.0 * b_longer),
        format!("{z:+.1}"),
        verdict.to_owned(),
    ]
}

#[cfg(test)]
mod tests;
