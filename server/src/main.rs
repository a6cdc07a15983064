//! `keyfold-server`: wiring.

use std::{fs, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use keyfold_core::clock::SystemClock;
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
    Serve,
    /// Bring the database's schema to this server's version, then exit.
    Migrate,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyfold-server: {error}");
            ExitCode::FAILURE
        }
    }
}

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
    let bound = serve::bind(config, Arc::new(SystemClock)).await?;
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
