//! A server alone, for tests of the command line.

use std::fs;

use keyfold::dev::server::{Server, Setup};
use tempfile::TempDir;

use crate::{Cli, Database, server_setup};

/// A server alone, and its administrator's shell: for tests of the command line. Stopped when dropped.
pub struct Installation {
    /// The administrator's shell.
    pub cli: Cli,
    /// The server.
    pub server: Server,
    /// The database.
    pub database: Database,
    _folder: TempDir,
}

impl Installation {
    /// A server on an empty database.
    ///
    /// # Panics
    /// When it does not start, or refuses.
    pub async fn uninitialised() -> Self {
        let (database, folder) = (Database::shared(), tempfile::tempdir().expect("a temporary folder"));
        let setup = server_setup(folder.path(), "server", &database);
        let server = Server::start(&setup).await.expect("the server does as asked");
        fs::create_dir(folder.path().join("shell")).expect("a folder");
        let cli = Cli::administrator(&setup, &folder.path().join("shell"));
        Self { cli, server, database, _folder: folder }
    }

    /// An initialised one.
    ///
    /// # Panics
    /// When it does not start, or refuses.
    pub async fn new() -> Self {
        let mut installation = Self::uninitialised().await;
        installation.server.initialise().await.expect("the server does as asked");
        installation
    }

    /// With a keyspace `payments`, and an app role `payments-api` of an issuer that does not exist.
    ///
    /// # Panics
    /// When it does not start, or refuses.
    pub async fn with_payments() -> Self {
        let installation = Self::new().await;
        installation.cli.write("payments.yaml", OBJECTS);
        installation.cli.ok("apply -f payments.yaml");
        installation
    }

    /// The server's files.
    pub fn setup(&self) -> &Setup {
        self.server.setup()
    }

    /// The shell of somebody without a token, in the same folder.
    pub fn nobody(&self) -> Cli {
        Cli::nobody(self.setup(), &self.cli.folder)
    }
}

/// What `Installation::with_payments` declares.
pub const OBJECTS: &str = "\
apiVersion: keyfold.dev/v1
kind: Keyspace
metadata: {name: payments}
---
apiVersion: keyfold.dev/v1
kind: AppRole
metadata: {name: payments-api}
spec:
  bind: [{issuer: prod, namespaces: [payments], serviceAccounts: [api, worker]}]
  grants: [{path: payments/*, allow: [read]}, {path: \"shared/{namespace}/**\", allow: [read]}]
";

/// Times, ids and tokens replaced by as many other characters, so that columns stay where they are.
pub fn masked(text: &str) -> String {
    let is_time = |word: &str| word.len() == 20 && word.as_bytes()[10] == b'T' && word.ends_with('Z');
    let is_uuid = |word: &str| word.len() == 36 && word.matches('-').count() == 4;
    let is_key_id = |word: &str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mask = |word: &str| match word.trim_end_matches(['.', '}', '\n']) {
        time if is_time(time) => word.replace(time, "2026-01-31T00:00:00Z"),
        id if is_uuid(id) => word.replace(id, "00000000-0000-0000-0000-000000000000"),
        id if is_key_id(id) => word.replace(id, "00000000000000000000000000000000"),
        _ => word.to_owned(),
    };
    text.split_inclusive(' ')
        .flat_map(|part| part.split_inclusive('\n'))
        .map(|word| {
            let (word, space) = word.split_at(word.trim_end_matches(' ').len());
            mask(word) + space
        })
        .collect()
}
