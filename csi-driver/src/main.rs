//! `keyfold-csi --config FILE`

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use keyfold_csi::config::Config;
use keyfold_memory::WipingAllocator;
use tokio::signal::unix::{SignalKind, signal};

/// Keyfold's CSI driver of one node.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; KEYFOLD_CSI__… variables override its keys.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() -> ExitCode {
    // Before the runtime, which starts threads.
    keyfold_memory::keep_little_free_memory();
    match keyfold_memory::harden().map_err(Into::into).and_then(|()| run(Arguments::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyfold-csi: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(&arguments.config)?;
    keyfold_csi::log::start(&config.log);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(keyfold_csi::run(config, shutdown).await?)
}
