//! `keyfold dev`: the whole of Keyfold on this machine, for development, demonstration and tests.
//!
//! The parts are real: a private Postgres, `keyfold-server` with TLS, `keyfold-csi` on its socket, and an issuer
//! that mints tokens shaped like Kubernetes' own. Only kubelet is played ([`kubelet`]). Every part can be started
//! alone, which is what the tests do.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Subcommand};

use crate::{
    args::duration,
    exit::{Exit, Failure},
};

mod demo;
pub mod driver;
pub mod files;
pub mod issuer;
pub mod kubelet;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod server;
pub mod stack;
pub mod tokens;
mod up;
mod volumes;
mod with_postgres;

/// Arguments of `keyfold dev`.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_value_name = "COMMAND")]
pub struct Args {
    /// What to do instead of starting an environment.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    up: UpArgs,
}

/// Starts the environment and keeps it up until Ctrl-C.
#[derive(Debug, ClapArgs)]
struct UpArgs {
    /// Folder for sockets, configuration, logs and dev.json; without it, a temporary one that goes at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Show the main path step by step, then stop everything
    #[arg(long)]
    demo: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a token like those that Kubernetes projects into pods, or an operator's (--operator)
    Token(TokenArgs),
    /// Publish a volume as kubelet does, again with a fresh token if it is there already; print its path
    Mount(MountArgs),
    /// Unpublish a volume as kubelet does
    Unmount(UnmountArgs),
    /// Run a command with a private Postgres, which goes when the command ends
    Postgres(PostgresArgs),
}

/// Whom a token is for.
#[derive(Debug, ClapArgs)]
struct TokenArgs {
    #[command(flatten)]
    dir: DirArg,
    #[command(flatten)]
    pod: PodArgs,
    /// A person instead of a pod, whose token the environment's OpenID provider gives: the claim `sub`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["namespace", "service_account", "pod", "node"])]
    operator: Option<String>,
    /// The person's groups: the claim `groups`
    #[arg(long, value_name = "G", value_delimiter = ',', requires = "operator")]
    groups: Vec<String>,
    /// Who shall accept the token
    #[arg(long, default_value = tokens::AUDIENCE, value_name = "A")]
    audience: String,
    /// How long it holds, such as 10m or 1h
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "T")]
    ttl: Duration,
}

/// A volume to publish.
#[derive(Debug, ClapArgs)]
struct MountArgs {
    #[command(flatten)]
    dir: DirArg,
    #[command(flatten)]
    pod: PodArgs,
    /// The app role, as the volume's attribute `role` names it
    #[arg(long, value_name = "R")]
    role: String,
    /// File with the volume's attribute `secrets`: a YAML list of items such as `- path: payments/db`
    #[arg(long, value_name = "FILE")]
    secrets: PathBuf,
    /// The pod's fsGroup: files get this group
    #[arg(long, value_name = "G")]
    fs_group: Option<u32>,
    /// The volume's name in its pod (a plain word), or a whole path DIR/kubelet/pods/UID/volumes/kubernetes.io~csi/NAME/mount
    target: PathBuf,
}

/// A volume to unpublish.
#[derive(Debug, ClapArgs)]
struct UnmountArgs {
    #[command(flatten)]
    dir: DirArg,
    /// The volume's name (a plain word), or the path that `mount` printed
    target: PathBuf,
}

/// Which environment.
#[derive(Debug, ClapArgs)]
struct DirArg {
    /// The folder of a running environment
    #[arg(long = "dir", value_name = "DIR")]
    path: PathBuf,
}

/// Which pod.
#[derive(Debug, ClapArgs)]
struct PodArgs {
    /// The pod's namespace
    #[arg(long, default_value = "default", value_name = "N")]
    namespace: String,
    /// The pod's service account
    #[arg(long, default_value = "default", value_name = "S")]
    service_account: String,
    /// The pod's name
    #[arg(long, default_value = "demo", value_name = "P")]
    pod: String,
    /// The node that runs the pod
    #[arg(long, default_value = driver::NODE, value_name = "M")]
    node: String,
}

/// A command that needs a Postgres.
#[derive(Debug, ClapArgs)]
#[command(after_help = with_postgres::HELP)]
struct PostgresArgs {
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

/// Runs `keyfold dev` and its commands.
///
/// # Errors
/// When a part does not start, a step of the demonstration fails, or a call is refused.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        None => up::run(args.up.dir, args.up.demo).await,
        Some(Command::Token(args)) => volumes::token(&args),
        Some(Command::Mount(args)) => volumes::mount(&args).await,
        Some(Command::Unmount(args)) => volumes::unmount(&args).await,
        Some(Command::Postgres(args)) => with_postgres::run(args.command).await,
    }
}
