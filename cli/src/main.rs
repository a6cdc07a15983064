//! Wiring only: arguments, the runtime, the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use keyfold::{
    args::Cli,
    commands,
    exit::{Exit, Failure},
};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start", &error))?
        .block_on(commands::run(cli))
}
