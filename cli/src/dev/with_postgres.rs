//! `keyfold dev postgres -- CMD`: a private Postgres for as long as a command runs, so that all its tests share one.

use std::{ffi::OsString, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use keyfold_core::clock::{Clock as _, SystemClock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::{
    postgres::{ACCESS_VARIABLE, Access, Options, Postgres},
    up::Interrupts,
};
use crate::exit::{Exit, Failure};

/// What the command finds in its environment.
pub const HELP: &str = "\
The command finds in its environment:
  KEYFOLD_TEST_POSTGRES  how to reach Postgres over TLS and over its socket, as JSON
  PGHOST, PGPORT, PGUSER the socket, port and superuser, as psql reads them

Commits do not wait for the disk. `keyfold` ends with the command's exit code.";

/// Starts Postgres, runs `command`, stops Postgres, and ends this process with the command's exit code.
///
/// # Errors
/// When Postgres or the command does not start.
pub async fn run(command: Vec<OsString>) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::new()?;
    let start = tokio::task::spawn_blocking(|| Postgres::start(&Options::for_tests(SystemClock.now())));
    let failed = |why: String| Failure::new(Exit::Internal, "cannot start Postgres", why);
    let postgres = tokio::select! {
        started = start => started.map_err(|error| failed(error.to_string()))??,
        // The runtime waits for the start, and what was started is dropped.
        _ = interrupts.next() => return Err(failed("it was interrupted".into())),
    };
    let status = run_with(postgres.access(), &command, &mut interrupts).await?;
    drop(postgres);
    match exit_code(status) {
        0 => Ok(Exit::Done),
        // Another program's code has no name among ours. Nothing is left to drop here.
        code => std::process::exit(code),
    }
}

async fn run_with(
    access: &Access,
    command: &[OsString],
    interrupts: &mut Interrupts,
) -> Result<ExitStatus, Failure> {
    let name = command.first().cloned().unwrap_or_default();
    let failed = |error| Failure::io(format!("cannot run {}", name.display()), &error);
    let json = serde_json::to_string(access).map_err(|error| failed(error.into()))?;
    let mut child = Command::new(&name)
        .args(&command[1..])
        .env(ACCESS_VARIABLE, json)
        .env("PGHOST", access.socket_dir())
        .env("PGPORT", access.port().to_string())
        .env("PGUSER", "postgres")
        .spawn()
        .map_err(failed)?;
    wait(&mut child, interrupts).await.map_err(failed)
}

/// Waits for the child. Ctrl-C reaches it without us, as the terminal's foreground; other signals are passed on.
async fn wait(child: &mut Child, interrupts: &mut Interrupts) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            signal = interrupts.next() => if signal != Signal::INT { pass_on(child, signal) },
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // A child that ended this very moment needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// The code as a shell tells it: 128 and the signal for a command that was killed.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}
