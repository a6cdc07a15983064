//! OpenBao as a child process: its configuration, start and initialisation.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hyper::{StatusCode, header::HeaderValue};
use keyfold::dev::{
    files::{free_port, random, write_private},
    pki::{Authority, LOOPBACK},
    postgres::{Postgres, ROLE},
    process::{Process, guarded},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{PeerCaller, TokenKind, declare};
use crate::compare::{database, http::Address, meter::Meter};

const DATABASE: &str = "openbao";
const RAFT_FOLDER: &str = "raft";
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections to Postgres, all kept: with fewer kept than used, each peak opens new ones, with a TLS handshake each.
const POOL: u32 = 64;

/// Where the peer keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::compare) enum Storage {
    /// A Postgres of its own, set up like Keyfold's.
    Postgres,
    /// Its own log and B-tree, in a folder.
    Raft,
}

/// Which of two copies of all that is stored.
#[derive(Clone, Copy)]
enum Where {
    Work,
    Kept,
}

impl Where {
    fn database(self) -> &'static str {
        match self {
            Self::Work => DATABASE,
            Self::Kept => "openbao_kept",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Work => RAFT_FOLDER,
            Self::Kept => "raft-kept",
        }
    }
}

/// What a peer is started with.
pub(in crate::compare) struct Setup<'a> {
    /// The program `bao`.
    pub(in crate::compare) program: &'a Path,
    pub(in crate::compare) storage: Storage,
    /// Whether callers talk HTTP/2.
    pub(in crate::compare) http2: bool,
    /// The public key of the pods' issuer (PEM), and the issuer's name.
    pub(in crate::compare) issuer: (&'a str, &'a str),
}

/// A peer that serves; stopped when dropped.
pub(crate) struct Peer {
    process: Mutex<Process>,
    pid: std::sync::Mutex<u32>,
    program: PathBuf,
    address: Address,
    operators: [HeaderValue; 2],
    postgres: Option<Postgres>,
    folder: TempDir,
}

/// What `bao version` says.
///
/// # Panics
/// When it does not run.
pub(in crate::compare) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("version").output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}; run make bench-setup", program.display()));
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    line.split(" (").next().unwrap_or_default().to_owned()
}

impl Peer {
    /// Starts it, initialises it and declares everything.
    ///
    /// # Panics
    /// When it does not start or refuses.
    pub(in crate::compare) async fn start(setup: &Setup<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let postgres = (setup.storage == Storage::Postgres).then(|| database::start(DATABASE));
        let port = free_port().expect("a port");
        let ca_pem = write_files(folder.path(), port, postgres.as_ref());
        let address = Address::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &ca_pem, setup.http2);
        let process = launch(setup.program, folder.path());
        let pid = std::sync::Mutex::new(process.pid());
        let process = Mutex::new(process);
        let none = || HeaderValue::from_static("");
        let mut peer = Self {
            process,
            pid,
            program: setup.program.to_owned(),
            address,
            operators: [none(), none()],
            postgres,
            folder,
        };
        let root_token = peer.initialise().await;
        let mut connection = peer.address.connect().await.expect("the peer listens");
        peer.operators = declare::all(&mut connection, &root_token, setup.issuer).await;
        peer
    }

    /// Gives the root token.
    async fn initialise(&self) -> HeaderValue {
        let is_listening = async || self.health().await.is_some();
        self.process.lock().await.ready(PATIENCE, is_listening).await.expect("the peer starts");
        let mut connection = self.address.connect().await.expect("the peer listens");
        let shares = json!({"recovery_shares": 1, "recovery_threshold": 1}).to_string();
        let body = connection.ok("PUT", "sys/init", None, shares).await.expect("it can be initialised");
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        self.until_serving().await;
        HeaderValue::from_str(answer["root_token"].as_str().expect("a token")).expect("ASCII")
    }

    async fn until_serving(&self) {
        let is_active = async || self.health().await == Some(StatusCode::OK);
        self.process.lock().await.ready(PATIENCE, is_active).await.expect("the peer serves");
    }

    async fn health(&self) -> Option<StatusCode> {
        let mut connection = self.address.connect().await.ok()?;
        Some(connection.call("GET", "sys/health", None, String::new()).await.ok()?.0)
    }

    /// Where its figures come from.
    pub(in crate::compare) fn meter(&self) -> Meter {
        let postgres = self.postgres.as_ref();
        let postgres = postgres.map(|of| (database::pid(of), of.access().clone(), DATABASE));
        Meter { server: *self.pid.lock().expect("nobody panicked"), postgres }
    }

    /// Stops it in order.
    pub(in crate::compare) async fn stop(&self) {
        self.process.lock().await.stop(Signal::TERM, PATIENCE);
    }

    /// Starts it again, on the same port; does not wait until it serves.
    pub(in crate::compare) async fn launch(&self) {
        let mut process = self.process.lock().await;
        *process = launch(&self.program, self.folder.path());
        *self.pid.lock().expect("nobody panicked") = process.pid();
    }

    /// Keeps a copy of all that is stored.
    ///
    /// # Panics
    /// When the copy cannot be made, or the peer does not serve again.
    pub(in crate::compare) async fn keep(&self) {
        self.stop().await;
        self.copy(Where::Work, Where::Kept);
        self.launch().await;
        self.until_serving().await;
    }

    /// Goes back to that copy, with a new process. Each login leaves a lease, in memory and in the database: without this
    /// each cell would find more of them than the one before, and a long run more than a cluster has pods. To revoke them
    /// takes longer than to make them.
    ///
    /// # Panics
    /// As for `keep`.
    pub(in crate::compare) async fn go_back(&self) {
        self.stop().await;
        self.copy(Where::Kept, Where::Work);
        self.launch().await;
        self.until_serving().await;
    }

    fn copy(&self, from: Where, to: Where) {
        if let Some(postgres) = &self.postgres {
            let access = postgres.access();
            access.drop_database(to.database()).expect("Postgres does as asked");
            // Through WAL: copied as files, Postgres would make a checkpoint, and the peer's next writes whole pages.
            let (to, from) = (to.database(), from.database());
            let sql = format!("CREATE DATABASE {to} OWNER {ROLE} TEMPLATE {from} STRATEGY wal_log");
            access.sql("postgres", &sql).expect("a database can be copied");
        } else {
            let (to, from) = (self.folder.path().join(to.folder()), self.folder.path().join(from.folder()));
            if to.exists() {
                fs::remove_dir_all(&to).expect("a folder can be removed");
            }
            let copied = Command::new("cp").arg("--recursive").args([&from, &to]).status();
            assert!(copied.expect("cp runs").success(), "{} cannot be copied", from.display());
        }
    }

    /// So many callers, each with a connection.
    ///
    /// # Errors
    /// When one cannot connect.
    pub(in crate::compare) async fn callers(
        &self,
        count: usize,
        tokens: TokenKind,
    ) -> Result<Vec<PeerCaller>, String> {
        let mut callers = Vec::with_capacity(count);
        for _ in 0..count {
            let connection = self.address.connect().await?;
            callers.push(PeerCaller {
                connection,
                operator: self.operators[tokens as usize].clone(),
                tokens,
            });
        }
        Ok(callers)
    }
}

fn launch(program: &Path, folder: &Path) -> Process {
    let mut command = guarded(program, "TERM", None);
    command.arg("server").arg(format!("-config={}", folder.join("config.hcl").display()));
    Process::start("OpenBao", command, &folder.join("openbao.log")).expect("OpenBao can be started")
}

/// Writes certificate, unseal key and configuration. Gives the certificate's authority.
fn write_files(folder: &Path, port: u16, postgres: Option<&Postgres>) -> String {
    let authority = Authority::new("Peer", SystemClock.now()).expect("a CA");
    let serving = authority.serving(&LOOPBACK).expect("a certificate");
    serving.write(&folder.join("tls.crt"), &folder.join("tls.key")).expect("it can be written");
    let unseal = random().expect("randomness");
    write_private(&folder.join("unseal.key"), &*unseal).expect("the key can be written");
    let storage = match postgres {
        Some(postgres) => in_postgres(postgres),
        None => in_raft(folder),
    };
    let config = config(folder, port, &storage);
    write_private(&folder.join("config.hcl"), config.as_bytes()).expect("it can be written");
    authority.certificate_pem()
}

/// It unseals itself with a key from a file, which is how Keyfold is set up here as well.
fn config(folder: &Path, port: u16, storage: &str) -> String {
    let (folder, cluster_port) = (folder.display(), free_port().expect("a port"));
    format!(
        r#"{storage}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_cert_file = "{folder}/tls.crt"
  tls_key_file = "{folder}/tls.key"
}}
seal "static" {{
  current_key_id = "1"
  current_key = "file://{folder}/unseal.key"
}}
audit "file" "bench" {{
  options {{
    file_path = "{folder}/audit.log"
  }}
}}
api_addr = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
log_level = "warn"
"#
    )
}

fn in_postgres(postgres: &Postgres) -> String {
    let access = postgres.access();
    let password = fs::read_to_string(access.password_file()).expect("the password can be read");
    let (url, ca) = (access.database_url(DATABASE), access.ca_file().display());
    // The password is of base64url's characters, which stand for themselves in a URL.
    let url = url.replacen('@', &format!(":{password}@"), 1);
    format!(
        r#"storage "postgresql" {{
  connection_url = "{url}?sslmode=verify-full&sslrootcert={ca}"
  max_parallel = "{POOL}"
  max_idle_connections = "{POOL}"
}}"#
    )
}

fn in_raft(folder: &Path) -> String {
    let data = folder.join(RAFT_FOLDER);
    fs::create_dir(&data).expect("a folder");
    // The multiplier is what its documentation advises for production; it shortens elections after a start.
    format!(
        r#"storage "raft" {{
  path = "{}"
  node_id = "bench"
  performance_multiplier = 1
}}"#,
        data.display()
    )
}
