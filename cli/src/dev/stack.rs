//! The whole development environment: Postgres, issuer, server and driver, started and stopped in order.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use keyfold_core::clock::{Clock as _, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    driver::{self, Driver, Mounts},
    files::{private_folder, read_text, remove_if_there, write_private},
    issuer::Issuer,
    kubelet::{csi_socket, registration_socket},
    pki::Authority,
    postgres::{Options, Postgres},
    server::{self, Server},
    tokens::{AUDIENCE, Minter, SigningKey},
};
use crate::exit::{Exit, Failure};

/// The database of the environment's server.
const DATABASE: &str = "keyfold";
/// The name of the environment's issuer object.
pub const ISSUER: &str = "dev";
/// The name of the issuer object for people.
pub const PEOPLE: &str = "people";
/// Longest path of a Unix socket (`sun_path` of unix(7), less its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// What `DIR/dev.json` says about a running environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DevFile {
    /// The server's URL.
    pub server: String,
    /// File of the CA (PEM) that signed the server's certificate.
    pub ca: PathBuf,
    /// File with the administrator's token.
    pub admin_token_file: PathBuf,
    /// The driver's CSI socket.
    pub csi_socket: PathBuf,
    /// The driver's registration socket.
    pub registration_socket: PathBuf,
    /// The issuer's URL, as tokens carry it.
    pub issuer: String,
    /// The URL of the OpenID provider for people.
    pub people: String,
    /// The database's URL, without the password.
    pub database_url: String,
    /// The folder below which the driver's mounts are seen: `/`, or `/proc/PID/root` when it has a namespace of its
    /// own.
    pub mount_root: PathBuf,
}

impl DevFile {
    /// Reads the file of the environment in `dir`.
    ///
    /// # Errors
    /// When none is up there.
    pub fn load(dir: &Path) -> Result<Self, Failure> {
        let not_up = |why: String| {
            Failure::usage(format!("no development environment is up in {}", dir.display()), why)
                .advise(format!("Start one with `keyfold dev --dir {}`", dir.display()))
        };
        let path = dir.join("dev.json");
        let text = read_text(&path).map_err(|failure| not_up(failure.to_string()))?;
        serde_json::from_str(&text).map_err(|error| not_up(format!("{}: {error}", path.display())))
    }

    fn write(&self, dir: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Failure::new(Exit::Internal, "cannot write dev.json", error.to_string()))?;
        write_private(&dir.join("dev.json"), format!("{json}\n").as_bytes())
    }
}

/// The key of the environment's issuer, in its folder.
pub fn issuer_key_file(dir: &Path) -> PathBuf {
    dir.join("issuer.key")
}

/// Kubelet's folder of the environment in `dir`.
pub fn kubelet_dir(dir: &Path) -> PathBuf {
    dir.join("kubelet")
}

/// A running environment. `stop` ends it in order; dropping it ends it all the same, without asking anyone.
pub struct Stack {
    /// The CSI driver.
    pub driver: Driver,
    /// The server.
    pub server: Server,
    /// The issuer.
    pub issuer: Issuer,
    /// The OpenID provider for people, with the issuer's key.
    pub people: Issuer,
    /// The database.
    pub postgres: Postgres,
    /// Mints the issuer's tokens.
    pub minter: Arc<Minter>,
    token_refresh: JoinHandle<()>,
    dir: PathBuf,
    dev_file: DevFile,
    // Kept while the environment is up: the lock goes with the open file.
    _lock: File,
}

impl Stack {
    /// Starts everything in `dir`, with the programs in `bin_dir`.
    ///
    /// # Errors
    /// When a part does not start (with the end of its log), or another environment is up in `dir`.
    pub async fn start(dir: &Path, bin_dir: &Path) -> Result<Self, Failure> {
        let dir = prepare(dir)?;
        let lock = lock(&dir)?;
        let programs = Programs::find(bin_dir)?;
        let mounts = Mounts::possible()?;
        clear(&dir)?;

        let (postgres, key) = start_postgres_and_load_key(&dir).await?;
        let authority = Authority::new("Keyfold development issuer", SystemClock.now())?;
        let issuer = Issuer::start(&authority, vec![key.jwk()]).await?;
        let people = Issuer::start(&authority, vec![key.jwk()]).await?;
        let minter = Arc::new(Minter { issuer: issuer.url().to_owned(), key });

        let server = start_server(&dir, &programs.server, &postgres).await?;
        server.apply("Issuer", ISSUER, &issuer_spec(&issuer, &authority)).await?;
        server.apply("Issuer", PEOPLE, &people_spec(&people, &authority)).await?;
        let (driver, token_refresh) =
            start_driver(&dir, &programs.driver, mounts, server.setup(), &minter).await?;

        let dev_file = describe(&dir, &server, &driver, [&issuer, &people], &postgres);
        dev_file.write(&dir)?;
        Ok(Self {
            driver,
            server,
            issuer,
            people,
            postgres,
            minter,
            token_refresh,
            dir,
            dev_file,
            _lock: lock,
        })
    }

    /// The environment's folder, as an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How to reach the parts.
    pub fn dev_file(&self) -> &DevFile {
        &self.dev_file
    }

    /// A failure when a part has ended by itself; with the end of its log.
    ///
    /// # Errors
    /// When one has.
    pub fn ensure_running(&mut self) -> Result<(), Failure> {
        self.postgres.ensure_running()?;
        self.server.process.ensure_running()?;
        self.driver.process.ensure_running()
    }

    /// Stops the parts in order: volumes and driver first, Postgres last.
    pub async fn stop(mut self) {
        self.driver.stop().await;
        self.server.stop();
        self.issuer.stop();
        self.people.stop();
        self.postgres.stop();
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.token_refresh.abort();
        // A folder that is gone already has nothing to tell.
        let _ = remove_if_there(&self.dir.join("dev.json"));
    }
}

struct Programs {
    server: PathBuf,
    driver: PathBuf,
}

impl Programs {
    fn find(bin_dir: &Path) -> Result<Self, Failure> {
        let find = |name: &str| {
            let path = bin_dir.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Failure::usage(format!("cannot start {name}"), format!("{} does not exist", path.display()))
                .advise("Build all programs first: `make build`"))
        };
        Ok(Self { server: find("keyfold-server")?, driver: find("keyfold-csi")? })
    }
}

/// Creates the folder; gives its absolute path.
fn prepare(dir: &Path) -> Result<PathBuf, Failure> {
    private_folder(dir)?;
    private_folder(&dir.join("logs"))?;
    let dir =
        dir.canonicalize().map_err(|error| Failure::io(format!("cannot use {}", dir.display()), &error))?;
    let socket = registration_socket(&kubelet_dir(&dir));
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        let why =
            format!("{} is longer than the {SOCKET_PATH_MAX} bytes of a socket's path", socket.display());
        return Err(Failure::usage(format!("cannot use the folder {}", dir.display()), why)
            .advise("Choose a folder with a shorter path, such as one below /tmp"));
    }
    Ok(dir)
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let failed = |error| Failure::io(format!("cannot lock {}", path.display()), &error);
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let what = format!("cannot start a development environment in {}", dir.display());
            Err(Failure::usage(what, "another one is up there").advise("Stop it, or choose another --dir"))
        }
    }
}

/// Clears away what an environment that was killed left in `dir`: its word that it is up, and its mounts.
fn clear(dir: &Path) -> Result<(), Failure> {
    let dev_file = dir.join("dev.json");
    remove_if_there(&dev_file)
        .map_err(|error| Failure::io(format!("cannot remove {}", dev_file.display()), &error))?;
    driver::detach_mounts(&kubelet_dir(dir));
    Ok(())
}

fn log_file(dir: &Path, part: &str) -> PathBuf {
    dir.join(format!("logs/{part}.log"))
}

/// Both take a second or so of one core each, so they run side by side.
async fn start_postgres_and_load_key(dir: &Path) -> Result<(Postgres, SigningKey), Failure> {
    let (log, key_file) = (log_file(dir, "postgres"), issuer_key_file(dir));
    let postgres = tokio::task::spawn_blocking(move || {
        let options = Options { log: Some(log), ..Options::durable(SystemClock.now()) };
        let postgres = Postgres::start(&options)?;
        postgres.access().create_database(DATABASE, None)?;
        Ok(postgres)
    });
    let key = tokio::task::spawn_blocking(move || SigningKey::load_or_generate(&key_file));
    let ended = |error: tokio::task::JoinError| {
        Failure::new(Exit::Internal, "cannot start the development environment", error.to_string())
    };
    let (postgres, key) = tokio::join!(postgres, key);
    Ok((postgres.map_err(ended)??, key.map_err(ended)??))
}

async fn start_server(dir: &Path, program: &Path, postgres: &Postgres) -> Result<Server, Failure> {
    let (folder, database) = (dir.join("server"), (postgres.access(), DATABASE));
    let log = log_file(dir, "server");
    let setup = server::Setup::write(program, &folder, &log, database, SystemClock.now())?;
    setup.migrate()?;
    let mut server = Server::start(&setup).await?;
    server.initialise().await?;
    Ok(server)
}

async fn start_driver(
    dir: &Path,
    program: &Path,
    mounts: Mounts,
    server: &server::Setup,
    minter: &Arc<Minter>,
) -> Result<(Driver, JoinHandle<()>), Failure> {
    let (folder, log, kubelet_dir) = (dir.join("csi"), log_file(dir, "csi"), kubelet_dir(dir));
    let setup = driver::Setup::write(program, &folder, &log, &kubelet_dir, mounts, server)?;
    let token_refresh = driver::keep_token_fresh(Arc::clone(minter), setup.token_file())?;
    Ok((Driver::start(&setup).await?, token_refresh))
}

fn issuer_spec(issuer: &Issuer, authority: &Authority) -> Value {
    json!({
        "type": "kubernetes",
        "url": issuer.url(),
        "audiences": [AUDIENCE],
        "algorithms": ["RS256"],
        "keys": {"discovery": {"caBundle": authority.certificate_pem()}},
        "drivers": [{"namespace": driver::NAMESPACE, "serviceAccount": driver::SERVICE_ACCOUNT}],
        "maxTokenLifetime": "24h",
    })
}

fn people_spec(people: &Issuer, authority: &Authority) -> Value {
    json!({
        "type": "oidc",
        "url": people.url(),
        "audiences": [AUDIENCE],
        "keys": {"discovery": {"caBundle": authority.certificate_pem()}},
    })
}

fn describe(
    dir: &Path,
    server: &Server,
    driver: &Driver,
    [issuer, people]: [&Issuer; 2],
    postgres: &Postgres,
) -> DevFile {
    let kubelet_dir = kubelet_dir(dir);
    DevFile {
        server: server.setup().url(),
        ca: server.setup().ca_file(),
        admin_token_file: server.setup().admin_token_file(),
        csi_socket: csi_socket(&kubelet_dir),
        registration_socket: registration_socket(&kubelet_dir),
        issuer: issuer.url().to_owned(),
        people: people.url().to_owned(),
        database_url: postgres.access().database_url(DATABASE),
        mount_root: driver.mount_root(),
    }
}

#[cfg(test)]
mod tests;
