//! Measurements of Keyfold on real parts. Each prints a table and writes a JSON file; `docs/performance.md` says what
//! the figures mean.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

mod compare;
mod overload;
mod report;
mod rotation;
mod soak;
mod statistics;
mod timing;
mod token_check;

use overload::cluster::{Half, run_on};
mod token_stand;

/// Measures Keyfold
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
    /// Folder for the JSON file
    #[arg(long, global = true, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Test whether the time of a refusal tells what exists. Exits with 1 when it does, with 2 when that cannot be told
    Timing(timing::Args),
    /// Measure the check of a token, for the first time and from the cache
    TokenCheck(token_check::Args),
    /// Measure the turn of a key: rewrap, re-encryption, and what pods notice of it
    Rotation(rotation::Args),
    /// Measure Keyfold beside OpenBao: the same work on both, in turn
    Compare(compare::Args),
    /// Measure what becomes of more requests than can be served, of one caller's flood, and of answers that nobody reads
    Overload(overload::Args),
    /// Look for growth of memory, files and connections under a load that lasts. Exits with 1 when there is some
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut runtime = match cli.measurement {
        Measurement::Compare(_) | Measurement::Overload(_) | Measurement::Soak(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        // One thread: then no wake-up of another one adds to what is measured.
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    if let Measurement::Overload(_) | Measurement::Soak(_) = cli.measurement {
        runtime.on_thread_start(|| run_on(Half::Asking));
    }
    let runtime = runtime.enable_all().build().expect("a runtime");
    match cli.measurement {
        Measurement::Timing(args) => runtime.block_on(timing::run(&args, &cli.out)),
        Measurement::Rotation(args) => runtime.block_on(rotation::run(&args, &cli.out)),
        Measurement::Compare(args) => runtime.block_on(compare::run(&args, &cli.out)),
        Measurement::Overload(args) => runtime.block_on(overload::run(&args, &cli.out)),
        Measurement::Soak(args) => runtime.block_on(soak::run(&args, &cli.out)),
        Measurement::TokenCheck(args) => runtime.block_on(token_check::run(&args, &cli.out)),
    }
}
