//! `keyfold completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    args::Cli,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  keyfold completions bash > /etc/bash_completion.d/keyfold")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "keyfold", &mut script);
    output::write(&script)?;
    Ok(Exit::Done)
}
