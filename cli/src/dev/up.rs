//! `keyfold dev`: starts the environment, keeps it up, and stops it on Ctrl-C or when a part ends.

use std::{path::PathBuf, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use super::{demo, stack::Stack};
use crate::{
    exit::{Exit, Failure},
    output,
};

/// How often the parts are looked at while the environment is up.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Starts the environment in `dir`, or in a temporary folder; then shows the demonstration, or stays up.
///
/// # Errors
/// When a part does not start or ends by itself, or a step of the demonstration fails.
pub async fn run(dir: Option<PathBuf>, demo: bool) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::new()?;
    let folder = Folder::new(dir)?;
    if demo {
        return demo::run(folder.path(), &mut interrupts).await;
    }
    output::write(b"Starting Postgres, the issuer, keyfold-server and keyfold-csi ...\n")?;
    let programs = programs()?;
    let mut stack = tokio::select! {
        started = Stack::start(folder.path(), &programs) => started?,
        _ = interrupts.next() => return Ok(Exit::Done),
    };
    let mut outcome = output::write(guide(&stack).as_bytes());
    if outcome.is_ok() {
        outcome = tokio::select! {
            failure = first_to_end(&mut stack) => Err(failure),
            _ = interrupts.next() => Ok(()),
        };
    }
    stack.stop().await;
    outcome?;
    output::write(b"Stopped.\n")?;
    Ok(Exit::Done)
}

async fn first_to_end(stack: &mut Stack) -> Failure {
    loop {
        if let Err(failure) = stack.ensure_running() {
            return failure;
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// The folder of this program, where `keyfold-server` and `keyfold-csi` are too.
///
/// # Errors
/// When the system does not tell.
pub fn programs() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::io("cannot find the programs", &error))?;
    Ok(program.parent().map(PathBuf::from).unwrap_or_default())
}

/// The environment's folder: the user's, or a temporary one that goes at the end.
enum Folder {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn new(dir: Option<PathBuf>) -> Result<Self, Failure> {
        match dir {
            Some(dir) => Ok(Self::Kept(dir)),
            None => tempfile::Builder::new()
                .prefix("keyfold-dev-")
                .tempdir()
                .map(Self::Temporary)
                .map_err(|error| Failure::io("cannot create a temporary folder", &error)),
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// The signals that end `keyfold dev`: Ctrl-C, SIGTERM, and the terminal that closes.
pub struct Interrupts {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Interrupts {
    /// Takes the signals over: from now on they do not kill this process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::io("cannot listen for signals", &error));
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(listen);
        Ok(Self { signals: [interrupt?, terminate?, hangup?] })
    }

    /// Waits for the next one, and tells which it is.
    pub async fn next(&mut self) -> Signal {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        }
    }
}

fn guide(stack: &Stack) -> String {
    let (dir, file) = (stack.dir().display(), stack.dev_file());
    let (ca, token) = (file.ca.display(), file.admin_token_file.display());
    format!(
        "\n\
        Keyfold is up in {dir}. Ctrl-C stops it.\n\
        {}\n\
        \x20 server      {}\n\
        \x20 issuer      {}\n\
        \x20 database    {}\n\
        \x20 CSI socket  {}\n\
        \x20 logs        {dir}/logs\n\
        \n\
        To work with it, in another terminal:\n\
        \n\
        \x20 export KEYFOLD_SERVER={} KEYFOLD_CA_FILE={ca} KEYFOLD_TOKEN_FILE={token}\n\
        \x20 keyfold status\n\
        \x20 keyfold dev token --dir {dir} --namespace payments --service-account api\n\
        \x20 keyfold dev token --dir {dir} --operator alice --groups platform\n\
        \x20 keyfold dev mount --dir {dir} --role ROLE --secrets FILE my-volume\n",
        namespace_note(stack),
        file.server,
        file.issuer,
        file.database_url,
        file.csi_socket.display(),
        file.server,
    )
}

/// What is different without root; empty with it.
pub fn namespace_note(stack: &Stack) -> String {
    if stack.driver.mounts_on_host() {
        return String::new();
    }
    format!(
        "\nThis is not root, or root without the right to mount. So the driver mounts in a user namespace of its own: \
         its files are seen below {}, and an fsGroup cannot be given.\n",
        stack.driver.mount_root().display()
    )
}
