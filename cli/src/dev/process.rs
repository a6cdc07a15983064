//! Child processes that never outlive this one.
//!
//! Each child runs under `setpriv --pdeathsig`, so the kernel ends it even when this process is killed with -9.
//! The kernel sends that signal when the *thread* that started the child ends (prctl(2), PR_SET_PDEATHSIG), so all
//! children are started by one thread that lives as long as the process.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::exit::{Exit, Failure};

/// How often a wait looks again: short enough not to be felt, long enough to cost nothing.
pub const POLL: Duration = Duration::from_millis(10);

/// A system account to run a child as.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A command that runs `program` with nothing of this process's environment but PATH: `PGHOST`, `KEYFOLD_SERVER`
/// and their like would mislead it.
pub fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// A command that runs `program` with `death_signal` (such as `TERM`) sent to it when this process ends.
pub fn guarded(program: &Path, death_signal: &str, account: Option<Account>) -> Command {
    let mut command = bare(Path::new("setpriv"));
    command.args(["--pdeathsig", death_signal]);
    if let Some(Account { uid, gid }) = account {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    }
    command.arg("--").arg(program);
    command
}

/// The same in a user namespace of its own, where this user counts as root, with a mount namespace of its own.
pub fn guarded_in_user_namespace(program: &Path, death_signal: &str) -> Command {
    let mut command = bare(Path::new("unshare"));
    // setpriv stands inside because entering a user namespace clears the death signal.
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--",
        "setpriv",
        "--pdeathsig",
        death_signal,
        "--",
    ]);
    command.arg(program);
    command
}

/// A child process whose output goes to a log file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own, so that Ctrl-C in a terminal reaches this process alone and
    /// the parts can be stopped in order. Its standard output and error are added to `log` (created with mode 0600).
    ///
    /// # Errors
    /// When the program or the log cannot be opened.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, Failure> {
        let started = open_log(log).and_then(|(out, err)| {
            command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
            spawn(command)
        });
        let child = started.map_err(|error| Failure::io(format!("cannot start {name}"), &error))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The child's process id. The wrappers replace themselves with the program, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the child runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// A failure when the child has ended: how it ended, and the last lines of its log.
    ///
    /// # Errors
    /// When the child has ended.
    pub fn ensure_running(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(Failure::io(format!("cannot watch {}", self.name), &error)),
        }
    }

    /// Waits until the child has ended by itself.
    ///
    /// # Errors
    /// When it ends with a failure; with the end of its log.
    pub fn wait_for_success(&mut self) -> Result<(), Failure> {
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.ended(status)),
            Err(error) => Err(Failure::io(format!("cannot watch {}", self.name), &error)),
        }
    }

    /// Waits until `is_ready` answers true.
    ///
    /// # Errors
    /// When the child ends before that, or `patience` runs out; with the end of its log.
    pub async fn ready(
        &mut self,
        patience: Duration,
        is_ready: impl AsyncFn() -> bool,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        while !is_ready().await {
            self.check(start, patience)?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The same for a thread that may be blocked.
    ///
    /// # Errors
    /// As for [`Process::ready`].
    pub fn ready_blocking(&mut self, patience: Duration, is_ready: impl Fn() -> bool) -> Result<(), Failure> {
        let start = Instant::now();
        while !is_ready() {
            self.check(start, patience)?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn check(&mut self, start: Instant, patience: Duration) -> Result<(), Failure> {
        self.ensure_running()?;
        if start.elapsed() > patience {
            return Err(self.failure(format!("it was not ready after {} s", patience.as_secs())));
        }
        Ok(())
    }

    /// Sends `signal` and waits until the child has ended; kills it when `patience` runs out.
    pub fn stop(&mut self, signal: Signal, patience: Duration) {
        self.signal(signal);
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > patience {
                return self.kill();
            }
            thread::sleep(POLL);
        }
    }

    /// Kills the child at once (SIGKILL).
    pub fn kill(&mut self) {
        // Both fail only when the child has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends `signal` to the child, if it runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.child.id().cast_signed())
        {
            // A child that ends this very moment needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        self.failure(format!("it ended with {status}"))
    }

    fn failure(&self, why: String) -> Failure {
        let lines = last_lines(&self.log, 5);
        let why = if lines.is_empty() { why } else { format!("{why}; its log ends: {lines}") };
        Failure::new(Exit::Internal, format!("{} does not run", self.name), why)
            .advise(format!("The whole log is {}", self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn open_log(path: &Path) -> io::Result<(File, File)> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    Ok((log.try_clone()?, log))
}

/// The last `count` lines of the file at `path`; empty when there is none.
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

type Request = (Command, Sender<io::Result<Child>>);

fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = channel();
    STARTER.get_or_init(start_starter).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

fn start_starter() -> Sender<Request> {
    let (sender, requests) = channel::<Request>();
    thread::spawn(move || {
        for (mut command, reply) in requests {
            // The one who asked waits for the answer; nothing is lost when it does not.
            let _ = reply.send(command.spawn());
        }
    });
    sender
}

#[cfg(test)]
mod tests;
