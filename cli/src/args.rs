//! The command line as a whole. Each command's own arguments stand with the command.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::{commands, dev, exit::EXIT_CODES};

/// Secrets broker and key rotation for Kubernetes: the operators' command line.
#[derive(Debug, Parser)]
#[command(name = "keyfold", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What every command that talks to a server needs.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the server is, who asks, and how the answer is shown.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The server's address, such as https://keyfold.example:8443
    #[arg(long, global = true, env = "KEYFOLD_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// File of the CA certificates (PEM) that the server's certificate must chain to
    #[arg(long, global = true, env = "KEYFOLD_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File that holds the operator's token; a token is never an argument or a variable itself
    #[arg(long, global = true, env = "KEYFOLD_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Plan that a second person has signed, for an operation that needs one: see `keyfold approval`
    #[arg(long, global = true, value_name = "ID")]
    pub approval: Option<Uuid>,
    /// How results are printed
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// How long to wait for each answer of the server, such as 30s or 2m
    #[arg(long, global = true, default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// The form of printed results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For programs
    Json,
    /// For files
    Yaml,
    /// For code-scanning services: findings of `lint`
    #[value(hide = true)]
    Sarif,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create the installation: its keys and its first administrator; works once
    Init(commands::init::Args),
    /// Show whether the server serves, and what it is
    Status(commands::status::Args),
    /// Sign in to a server: from now on commands get their token by themselves
    Login(commands::login::Args),
    /// Sign out: remove the kept token and what `login` was told
    Logout(commands::logout::Args),
    /// Show who you are to the server, and what you may do
    Whoami(commands::whoami::Args),
    /// Say why a workload may have a secret or not, step by step; exit code 1 when it may not
    Explain(commands::explain::Args),
    /// Revoke the initial administrator
    Admin(commands::admin::Args),
    /// Check Kubernetes manifests before they are deployed; exit code 1 when something cannot work
    Lint(commands::lint::Args),
    /// Make keyspaces, issuers, roles and approval rules as files declare them
    Apply(commands::apply::ApplyArgs),
    /// Show what `apply` would change, field by field; exit code 1 when there is a change
    Diff(commands::apply::DiffArgs),
    /// Show objects; with -o yaml as documents that `apply` takes back
    Get(commands::get::GetArgs),
    /// Delete an object
    Delete(commands::get::DeleteArgs),
    /// Write, read and remove secrets
    Secret(commands::secret::Args),
    /// Look at app roles
    Role(commands::role::Args),
    /// Try out the conditions of app roles
    Policy(commands::policy::Args),
    /// Look at and sign what needs a second person
    Approval(commands::approval::Args),
    /// Look at, turn and destroy key-encryption keys
    Key(commands::key::Args),
    /// Look at, turn and move the root key
    Root(commands::root::Args),
    /// Enter shares of a root key that people hold; needs no token
    Unseal(commands::unseal::Args),
    /// Make and drill a second way to the keys, held by people
    Recovery(commands::recovery::Args),
    /// Look at and turn the internal certificate authority
    Ca(commands::ca::Args),
    /// Read the audit log
    Audit(commands::audit::Args),
    /// Print a completion script for a shell
    Completions(commands::completions::Args),
    /// Development environment: server, driver, issuer and database on this machine
    Dev(dev::Args),
}

/// A length of time such as `90s`, `5m` or `1h30m`, above zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("must be longer than zero".into()),
        Ok(time) => Ok(time),
        Err(_) => Err("must be a time such as 90s, 5m or 1h30m".into()),
    }
}

#[cfg(test)]
mod tests;
