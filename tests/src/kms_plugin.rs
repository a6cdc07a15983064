//! The KMS plugin of the tests, as a process that can be rotated, killed, frozen, started again and made to misbehave.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bin_dir;

/// A plugin with a socket and keys of its own. Ends when dropped.
pub struct KmsPlugin {
    folder: TempDir,
    running: Option<(Child, BufReader<ChildStdout>)>,
}

impl KmsPlugin {
    /// Starts one, and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> Self {
        let mut plugin = Self { folder: tempfile::tempdir().expect("a folder can be made"), running: None };
        plugin.start_again();
        plugin
    }

    /// Where it serves.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("kms.sock")
    }

    /// What goes under `root_key` in a server's configuration.
    pub fn root_key(&self) -> Value {
        json!({"kms_plugin": {"socket": self.socket()}})
    }

    /// Starts it after [`kill`](Self::kill), with the same keys and socket.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&mut self) {
        let program = bin_dir().join("keyfold-kms-plugin");
        let mut child = Command::new(&program)
            .args([self.socket(), self.folder.path().join("keys"), self.folder.path().join("mood")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let stdout = BufReader::new(child.stdout.take().expect("the output is a pipe"));
        self.running = Some((child, stdout));
        self.wait_for("serving");
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Has it make a new key, and waits until it is in use.
    pub fn rotate(&mut self) {
        self.signal(Signal::HUP);
        self.wait_for("rotated");
    }

    /// Stops it where it is.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Makes it misbehave in a way that its source names; an empty one ends that.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set_mood(&self, mood: &str) {
        fs::write(self.folder.path().join("mood"), mood).expect("the mood can be written");
    }

    fn signal(&self, signal: Signal) {
        let (child, _) = self.running.as_ref().expect("the plugin runs");
        kill_process(Pid::from_child(child), signal).expect("the plugin is there");
    }

    fn wait_for(&mut self, said: &str) {
        let (_, stdout) = self.running.as_mut().expect("the plugin runs");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the plugin says something");
        assert_eq!(line.trim_end(), said, "the plugin");
    }
}

impl Drop for KmsPlugin {
    fn drop(&mut self) {
        self.kill();
    }
}
