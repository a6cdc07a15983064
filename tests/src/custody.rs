//! Keepers of root keys, as a server is configured for them: each can be taken away and given back.

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold::dev::server::{Server, Setup};
use keyfold_core::entropy::{Entropy as _, SystemEntropy};
use keyfold_proto::keyfold::v1::{
    GetRootRequest, InitializeRequest, InitializeResponse, UnsealRequest, UnsealResponse,
    root_service_client::RootServiceClient, system_service_client::SystemServiceClient,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Status;

use crate::{
    faults::{channel, operator_of},
    kms_plugin::KmsPlugin,
    softhsm::SoftHsm,
};

/// Who keeps a root key.
pub enum Keeper {
    /// Files in a folder: `current`, and `previous` once the key was turned.
    File(TempDir),
    /// A token in software.
    Pkcs11(SoftHsm),
    /// A plugin's process.
    KmsPlugin(KmsPlugin),
    /// People: three of five.
    Shamir,
}

impl Keeper {
    /// A new one.
    ///
    /// # Panics
    /// When there is no such custody, or it cannot be set up.
    pub fn new(custody: &str) -> Self {
        match custody {
            "file" => {
                let folder = tempfile::tempdir().expect("a folder");
                fs::write(folder.path().join("current"), key()).expect("a file can be written");
                Self::File(folder)
            }
            "pkcs11" => Self::Pkcs11(SoftHsm::new()),
            "kms-plugin" => Self::KmsPlugin(KmsPlugin::start()),
            "shamir" => Self::Shamir,
            other => panic!("there is no custody {other}"),
        }
    }

    /// The custody's name.
    pub fn custody(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Pkcs11(_) => "pkcs11",
            Self::KmsPlugin(_) => "kms-plugin",
            Self::Shamir => "shamir",
        }
    }

    /// What goes under `root_key` in a server's configuration.
    pub fn root_key(&self) -> Value {
        match self {
            Self::File(folder) => {
                let (current, previous) = (folder.path().join("current"), folder.path().join("previous"));
                json!({"file": {"current": current, "previous": previous}})
            }
            Self::Pkcs11(hsm) => hsm.root_key(),
            Self::KmsPlugin(plugin) => plugin.root_key(),
            Self::Shamir => json!({"shamir": {"shares": 5, "threshold": 3}}),
        }
    }

    /// Has a server make its roots here from the next start on.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    pub fn configure(&self, setup: &mut Setup) {
        setup.configure("root_key", self.root_key()).expect("the configuration can be written");
        self.set_variables(setup);
    }

    /// Has a server open roots here, but make none.
    ///
    /// # Panics
    /// When the configuration cannot be written.
    pub fn configure_previous(&self, setup: &mut Setup) {
        setup.configure("previous_root_key", self.root_key()).expect("the configuration can be written");
        self.set_variables(setup);
    }

    fn set_variables(&self, setup: &mut Setup) {
        if let Self::Pkcs11(hsm) = self {
            for (name, value) in hsm.environment() {
                setup.set_variable(name, Some(value.into()));
            }
        }
    }

    /// Puts a new key into the current file, and the one that was there into the previous one.
    ///
    /// # Panics
    /// When it is no file, or cannot be written.
    pub fn turn_file(&self) {
        let Self::File(folder) = self else { panic!("{} is no file", self.custody()) };
        let path = |name: &str| folder.path().join(name);
        fs::rename(path("current"), path("previous")).expect("a file can be moved");
        fs::write(path("current"), key()).expect("a file can be written");
    }

    /// Takes it away from the server.
    ///
    /// # Panics
    /// When people keep the key, or it is away.
    pub fn take_away(&mut self) {
        match self {
            Self::File(folder) => {
                fs::rename(folder.path().join("current"), hidden(folder)).expect("a file can be moved");
            }
            Self::Pkcs11(hsm) => hsm.take_out(),
            Self::KmsPlugin(plugin) => plugin.kill(),
            Self::Shamir => panic!("people cannot be taken away"),
        }
    }

    /// Gives it back.
    ///
    /// # Panics
    /// When it is there.
    pub fn give_back(&mut self) {
        match self {
            Self::File(folder) => {
                fs::rename(hidden(folder), folder.path().join("current")).expect("a file can be moved");
            }
            Self::Pkcs11(hsm) => hsm.put_back(),
            Self::KmsPlugin(plugin) => plugin.start_again(),
            Self::Shamir => panic!("people cannot be given back"),
        }
    }
}

fn hidden(folder: &TempDir) -> PathBuf {
    folder.path().join("hidden")
}

fn key() -> String {
    let mut key = [0; 32];
    SystemEntropy.fill(&mut key).expect("randomness");
    STANDARD.encode(key)
}

/// Initialises the installation and writes the administrator's token to its file; gives the answer.
///
/// # Panics
/// When the server refuses.
pub async fn initialise(server: &Server) -> InitializeResponse {
    let setup = server.setup();
    let bootstrap_token = fs::read_to_string(setup.bootstrap_token_file()).expect("a bootstrap token");
    let mut system = SystemServiceClient::new(channel(setup));
    let answer = system.initialize(InitializeRequest { bootstrap_token }).await;
    let answer = answer.expect("the installation can be initialised").into_inner();
    fs::write(setup.admin_token_file(), &answer.admin_token).expect("the token can be written");
    answer
}

/// Has a server take the shares of the recovery key that it shows, from the next start on: what an operator does after
/// `recovery create`.
///
/// # Panics
/// When there is none, or the configuration cannot be written.
pub async fn name_recovery_key(server: &Server) {
    let root = operator_of(server).root().get_root(GetRootRequest {}).await.expect("the root's status");
    let recovery = root.into_inner().recovery.expect("a recovery key");
    let section = json!({"key_id": recovery.recovery_key_id});
    server.setup().configure("recovery", section).expect("the configuration can be written");
}

/// Enters a share, as anybody may.
///
/// # Errors
/// The server's status.
pub async fn unseal(server: &Server, share: &str) -> Result<UnsealResponse, Status> {
    let mut root = RootServiceClient::new(channel(server.setup()));
    Ok(root.unseal(UnsealRequest { share: share.into() }).await?.into_inner())
}

/// Enters as many of the shares as it takes.
///
/// # Panics
/// When the server refuses one, or does not serve afterwards.
pub async fn unseal_with(server: &Server, shares: &[String]) {
    for share in shares {
        let done = unseal(server, share).await.expect("the share is taken");
        if done.unsealed {
            return;
        }
    }
    panic!("{} shares do not unseal the server", shares.len());
}
