//! `keyfold-csi` as a child process, on a kubelet folder of its own.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use keyfold_core::clock::{Clock as _, SystemClock};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::Signal,
    thread::{CapabilitySet, capabilities},
};
use serde_json::json;
use tokio::task::JoinHandle;

use super::{
    files::{private_folder, write_private, write_yaml},
    kubelet::{Kubelet, registration_socket},
    process::{Process, guarded, guarded_in_user_namespace},
    server,
    tokens::{AUDIENCE, Minter, TokenRequest},
};
use crate::exit::{Exit, Failure};

/// The namespace of the driver's service account.
pub const NAMESPACE: &str = "keyfold-system";
/// The driver's service account.
pub const SERVICE_ACCOUNT: &str = "keyfold-csi";
/// The node of the development environment.
pub const NODE: &str = "dev-node";

const PATIENCE: Duration = Duration::from_secs(30);
/// How long the driver's token holds, as its DaemonSet would ask for.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Kubelet replaces a projected token at four fifths of its lifetime.
const TOKEN_REFRESH: Duration = Duration::from_secs(3600 / 5 * 4);

/// How a driver mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// On the machine itself: this process has CAP_SYS_ADMIN.
    OnHost,
    /// In a user and mount namespace of the driver's own.
    InUserNamespace,
}

impl Mounts {
    /// What this machine allows this process.
    ///
    /// # Errors
    /// When it allows neither.
    pub fn possible() -> Result<Self, Failure> {
        let own = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
        if own.contains(CapabilitySet::SYS_ADMIN) {
            return Ok(Self::OnHost);
        }
        let probe = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
        let why = match probe {
            Ok(output) if output.status.success() => return Ok(Self::InUserNamespace),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        let what = "cannot mount: this is not root, and a user namespace is not to be had";
        Err(Failure::new(Exit::Internal, what, why).advise(
            "Run this as root, or let users create user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)",
        ))
    }
}

/// The files of a driver.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    kubelet_dir: PathBuf,
    mounts: Mounts,
}

impl Setup {
    /// Writes the driver's configuration into `folder`. `program` is `keyfold-csi`; its output goes to `log`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(
        program: &Path,
        folder: &Path,
        log: &Path,
        kubelet_dir: &Path,
        mounts: Mounts,
        server: &server::Setup,
    ) -> Result<Self, Failure> {
        private_folder(folder)?;
        // Kubelet creates these three before any driver starts.
        for name in ["plugins", "plugins_registry", "pods"] {
            private_folder(&kubelet_dir.join(name))?;
        }
        let setup = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            log: log.to_owned(),
            kubelet_dir: kubelet_dir.to_owned(),
            mounts,
        };
        let config = json!({
            "server": {"url": server.url(), "ca_file": server.ca_file(), "wait_secs": 100},
            "token_file": setup.token_file(),
            "node_id": NODE,
            "kubelet_dir": kubelet_dir,
            "token_source": "secrets",
            "audience": AUDIENCE,
        });
        write_yaml(&setup.config_file(), &config)?;
        Ok(setup)
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// The driver's own projected token.
    pub fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    fn launch(&self) -> Result<Process, Failure> {
        let mut command = match self.mounts {
            Mounts::OnHost => guarded(&self.program, "TERM", None),
            Mounts::InUserNamespace => guarded_in_user_namespace(&self.program, "TERM"),
        };
        command.arg("--config").arg(self.config_file());
        Process::start("keyfold-csi", command, &self.log)
    }
}

/// A running `keyfold-csi`, registered with the development kubelet. Dropping it kills it.
pub struct Driver {
    setup: Setup,
    /// The driver's process.
    pub process: Process,
    kubelet: Kubelet,
}

impl Driver {
    /// Starts the driver, waits until it serves, and registers it.
    ///
    /// # Errors
    /// When it ends instead, or says that it is another driver.
    pub async fn start(setup: &Setup) -> Result<Self, Failure> {
        let (process, kubelet) = start_process(setup).await?;
        Ok(Self { setup: setup.clone(), process, kubelet })
    }

    /// The development kubelet, connected to this driver.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// Whether the driver mounts on the machine itself, and so may use any group.
    pub fn mounts_on_host(&self) -> bool {
        self.setup.mounts == Mounts::OnHost
    }

    /// The folder below which this process finds the driver's mounts: `/`, or the root of the driver's namespace.
    pub fn mount_root(&self) -> PathBuf {
        match self.setup.mounts {
            Mounts::OnHost => PathBuf::from("/"),
            Mounts::InUserNamespace => PathBuf::from(format!("/proc/{}/root", self.process.pid())),
        }
    }

    /// Where this process sees what the driver mounted on `target`.
    pub fn seen(&self, target: &Path) -> PathBuf {
        self.mount_root().join(target.strip_prefix("/").unwrap_or(target))
    }

    /// The volumes that are mounted now, as the kernel tells it.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let process = if self.mounts_on_host() { "self".to_owned() } else { self.process.pid().to_string() };
        mounts_below(&self.setup.kubelet_dir, &process)
    }

    /// Unmounts every volume and stops the driver. What the driver cannot unmount any more is detached.
    pub async fn stop(&mut self) {
        for volume in self.kubelet.volumes() {
            if self.process.is_running() {
                // A volume that stays is detached below, and its files are gone with it.
                let _ = self.kubelet.unpublish(&volume).await;
            }
        }
        self.process.stop(Signal::TERM, PATIENCE);
        detach_mounts(&self.setup.kubelet_dir);
    }

    /// Starts it again after a stop or a kill, with its volumes as they are.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn restart(&mut self) -> Result<(), Failure> {
        self.process.stop(Signal::TERM, PATIENCE);
        // Only these two are replaced: dropping a whole `Driver` detaches its volumes.
        (self.process, self.kubelet) = start_process(&self.setup).await?;
        Ok(())
    }
}

async fn start_process(setup: &Setup) -> Result<(Process, Kubelet), Failure> {
    let kubelet = Kubelet::new(&setup.kubelet_dir, NODE);
    let registration = registration_socket(&setup.kubelet_dir);
    let mut process = setup.launch()?;
    // The socket's file alone says nothing: a killed driver may have left it, or the new one not listen yet.
    let is_ready = async || kubelet.is_driver_ready().await && UnixStream::connect(&registration).is_ok();
    process.ready(PATIENCE, is_ready).await?;
    kubelet.register().await?;
    Ok((process, kubelet))
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.process.kill();
        detach_mounts(&self.setup.kubelet_dir);
    }
}

/// Detaches every mount below `folder` that this process sees and may detach.
pub fn detach_mounts(folder: &Path) {
    for target in mounts_below(folder, "self") {
        // Only a mount of somebody else's is left, and is theirs to keep.
        let _ = unmount(&target, UnmountFlags::DETACH);
    }
}

/// The mounts below `folder` that `process` (a process id, or `self`) sees, innermost first.
fn mounts_below(folder: &Path, process: &str) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    // The fifth word is the mount point, with space, tab, line break and backslash in octal (proc(5)).
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = targets.filter(|target| target.starts_with(folder)).collect();
    below.reverse();
    below
}

fn unescape(word: &str) -> PathBuf {
    // The backslash comes last, so that one which was escaped begins no code.
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(codes.iter().fold(word.to_owned(), |text, (code, character)| text.replace(code, character)))
}

/// Writes the driver's token to `file` now, and again whenever kubelet would. Ends when aborted.
///
/// # Errors
/// When the first one cannot be minted or written.
pub fn keep_token_fresh(minter: Arc<Minter>, file: PathBuf) -> Result<JoinHandle<()>, Failure> {
    write_token(&minter, &file)?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::time::sleep(TOKEN_REFRESH).await;
            if let Err(failure) = write_token(&minter, &file) {
                eprintln!("keyfold: {failure}");
            }
        }
    }))
}

fn write_token(minter: &Minter, file: &Path) -> Result<(), Failure> {
    let request = TokenRequest {
        namespace: NAMESPACE.into(),
        service_account: SERVICE_ACCOUNT.into(),
        pod: Some("keyfold-csi-dev".into()),
        node: Some(NODE.into()),
        audience: AUDIENCE.into(),
        ttl: TOKEN_TTL,
    };
    let token = minter.mint(&request, SystemClock.now())?;
    write_private(file, token.jwt.as_bytes())
}

#[cfg(test)]
mod tests;
