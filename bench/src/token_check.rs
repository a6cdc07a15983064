//! What the check of a token costs in process: for the first time, which verifies RS256, and again, which is a SHA-256 and a
//! look-up.

use std::{path::Path, process::ExitCode, time::Instant};

use clap::Args as ClapArgs;
use fastrand::Rng;
use serde_json::json;

use crate::{
    report::{micros, profile, write_json},
    statistics::{Interval, median_interval},
    token_stand::TokenStand,
};

/// Calls before the first one that counts.
const WARM_UP: usize = 100;

/// Arguments of `keyfold-bench token-check`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Tokens, each checked for the first time once
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(200..10_000))]
    tokens: u32,
}

/// Measures, prints and writes.
///
/// # Panics
/// When a token is refused.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let stand = TokenStand::new(&[]);
    let tokens: Vec<_> = (0..args.tokens).map(|at| stand.token("payments", &format!("api-{at}"))).collect();
    let mut rng = Rng::with_seed(1);
    let (mut firsts, mut cached) = (Vec::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        let first = time(&stand, token).await;
        // Any that was checked before, not the one that the processor has just seen.
        let again = time(&stand, &tokens[rng.usize(..=at)]).await;
        if at >= WARM_UP {
            // A call checks two tokens, and the driver's comes from the cache each time.
            cached.push(again / 2.0);
            firsts.push(first - again / 2.0);
        }
    }
    let token_bytes = tokens[0].len();
    report(token_bytes, median_interval(firsts), median_interval(cached), out);
    ExitCode::SUCCESS
}

fn report(token_bytes: usize, first: Interval, cached: Interval, out: &Path) {
    let row = |what: &str, found: Interval| {
        [what.to_owned(), micros(found.median), format!("{} … {}", micros(found.low), micros(found.high))]
    };
    let rows = [row("first time (RS256, 2048 bits)", first), row("from the cache", cached)];
    print!("{}", keyfold::output::table(["CHECK", "MEDIAN", "95 %"], rows));
    let ratio = first.median / cached.median;
    println!(
        "\nThe first check of a token of {token_bytes} bytes costs {ratio:.1} times one from the cache."
    );
    let figures = json!({
        "profile": profile(), "unit": "ns", "token_bytes": token_bytes,
        "first": first, "cached": cached, "ratio": ratio,
    });
    write_json(out, "token-check.json", &figures);
}

/// How long a call takes that checks this token and the driver's, in nanoseconds.
async fn time(stand: &TokenStand, token: &str) -> f64 {
    let start = Instant::now();
    let _caller = stand.check(token).await;
    start.elapsed().as_nanos() as f64
}
