//! `keyfold-server`: wiring.

use std::{fs, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use keyfold_core::clock::SystemClock;
use keyfold_memory::WipingAllocator;
use keyfold_server::{
    config::{Config, ENVIRONMENT_PREFIX},
    open_files, serve, store, telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The Keyfold server. It needs no arguments beyond its configuration file.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (YAML); variables KEYFOLD_SERVER__… override its keys.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (the default).
    Serve {
        /// Take, once, a database that is older than the configuration's integrity.pin_file says, such as one that was
        /// restored on purpose. That goes into the audit log. What was changed since is gone: read docs/operating.md.
        #[arg(long)]
        accept_older_database: bool,
    },
    /// Bring the database's schema to this server's version, then exit.
    Migrate,
}

#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() -> ExitCode {
    // Before the runtime, which starts threads.
    keyfold_memory::keep_little_free_memory();
    match keyfold_memory::harden().and_then(|()| run(Arguments::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyfold-server: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> Result<(), String> {
    let file = arguments.config;
    let yaml = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    // Variables that are not UTF-8 cannot be ours.
    let environment =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, environment)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    telemetry::init_log(&config.log)?;
    if let Some(Command::Migrate) = arguments.command {
        return store::Store::new(&config.database)?.migrate().await;
    }
    if let Some(metrics) = &config.metrics {
        telemetry::serve_metrics(metrics)?;
    }
    open_files::raise_limit(&config);
    keyfold_memory::reserve().map_err(|error| error.to_string())?;
    let accept_older = matches!(arguments.command, Some(Command::Serve { accept_older_database: true }));
    let bound = serve::bind(config, Arc::new(SystemClock), accept_older).await?;
    tracing::info!(address = %bound.address()?, "listening");
    bound.serve(stop_on_signal()?).await
}

fn stop_on_signal() -> Result<CancellationToken, String> {
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(stop)
}
