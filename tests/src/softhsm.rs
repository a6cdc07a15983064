//! A PKCS#11 token in software: SoftHSM 2, with a configuration and tokens of its own.
//!
//! SoftHSM finds its configuration by the environment of its process. A server under test gets [`SoftHsm::environment`]; a
//! test that calls the module itself runs again as a child that has it: [`SoftHsm::of_this_process`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The module, where Debian's package has it.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// The label of the token that [`SoftHsm::new`] makes.
pub const TOKEN: &str = "keyfold";
/// Its user's PIN.
pub const PIN: &str = "PIN-4711-canary";
/// Of the keys that are made.
pub const KEY_LABEL: &str = "keyfold-root";

const CONFIGURATION: &str = "SOFTHSM2_CONF";
/// Names the folder in a child that is the test again.
const FOLDER: &str = "KEYFOLD_TESTS_SOFTHSM";

/// A SoftHSM with one token to begin with.
pub struct SoftHsm {
    folder: PathBuf,
    /// Removed on drop, save in a child, whose parent owns it.
    _owned: Option<TempDir>,
}

impl SoftHsm {
    /// A fresh one.
    ///
    /// # Panics
    /// When SoftHSM is not installed.
    #[allow(clippy::new_without_default)] // It starts programs.
    pub fn new() -> Self {
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing: install SoftHSM with `make setup`");
        let owned = tempfile::tempdir().expect("a folder can be made");
        let hsm = Self { folder: owned.path().to_owned(), _owned: Some(owned) };
        fs::create_dir(hsm.tokens()).expect("a folder can be made");
        let configuration = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            hsm.tokens().display()
        );
        fs::write(hsm.folder.join("softhsm2.conf"), configuration).expect("a file can be written");
        fs::write(hsm.pin_file(), format!("{PIN}\n")).expect("a file can be written");
        hsm.add_token(TOKEN);
        hsm
    }

    /// The SoftHSM of a process that has it in its environment. Where it is not there, the test `name` runs again in a
    /// child that has a fresh one, and there is nothing left to do: `None`.
    ///
    /// # Panics
    /// When the child fails.
    pub fn of_this_process(name: &str) -> Option<Self> {
        if let Some(folder) = std::env::var_os(FOLDER) {
            return Some(Self { folder: folder.into(), _owned: None });
        }
        let hsm = Self::new();
        let status = Command::new(std::env::current_exe().expect("a program knows its own path"))
            .args([name, "--exact", "--nocapture"])
            .envs(hsm.environment())
            .env(FOLDER, &hsm.folder)
            .status()
            .expect("the test can run again");
        assert!(status.success(), "{name} failed in its child");
        None
    }

    /// What a process needs in its environment to see these tokens.
    pub fn environment(&self) -> [(&'static str, PathBuf); 1] {
        [(CONFIGURATION, self.folder.join("softhsm2.conf"))]
    }

    /// What goes under `root_key` in a server's configuration.
    pub fn root_key(&self) -> Value {
        json!({"pkcs11": {"module": MODULE, "token_label": TOKEN, "pin_file": self.pin_file(), "key_label": KEY_LABEL}})
    }

    /// A file with the PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.folder.join("pin")
    }

    /// The folder with one folder for each token.
    pub fn tokens(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    /// Makes a token with that label and the usual PIN.
    ///
    /// # Panics
    /// When SoftHSM refuses.
    pub fn add_token(&self, label: &str) {
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "so-pin-0815"])
            .envs(self.environment())
            .output()
            .expect("softhsm2-util can be started: install SoftHSM with `make setup`");
        assert!(made.status.success(), "softhsm2-util: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Takes all tokens out of their slots.
    ///
    /// # Panics
    /// When their folder cannot be moved.
    pub fn take_out(&self) {
        fs::rename(self.tokens(), self.folder.join("taken-out")).expect("a folder can be moved");
        fs::create_dir(self.tokens()).expect("a folder can be made");
    }

    /// Puts them back.
    ///
    /// # Panics
    /// When their folder cannot be moved.
    pub fn put_back(&self) {
        fs::remove_dir_all(self.tokens()).expect("a folder can be removed");
        fs::rename(self.folder.join("taken-out"), self.tokens()).expect("a folder can be moved");
    }
}
