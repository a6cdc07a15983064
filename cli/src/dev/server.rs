//! `keyfold-server` as a child process, with everything that it needs in a folder.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use keyfold_proto::keyfold::v1::{ApplyObjectsRequest, GetStatusRequest, InitializeRequest, Object, State};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    files::{free_port, private_folder, random, read_text, write_private, write_yaml},
    pki::{Authority, LOOPBACK},
    postgres::Access,
    process::{Process, guarded},
};
use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The files of a server, and where it listens.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    port: u16,
    variables: BTreeMap<String, OsString>,
}

impl Setup {
    /// Writes configuration, certificate, root key and bootstrap token into `folder`, for a server on `database`.
    /// `program` is `keyfold-server`; its output goes to `log`.
    ///
    /// # Errors
    /// When a file cannot be written, or there is no free port.
    pub fn write(
        program: &Path,
        folder: &Path,
        log: &Path,
        database: (&Access, &str),
        now: OffsetDateTime,
    ) -> Result<Self, Failure> {
        private_folder(folder)?;
        let setup = Self {
            program: program.into(),
            folder: folder.into(),
            log: log.into(),
            port: free_port()?,
            variables: BTreeMap::new(),
        };
        let authority = Authority::new("Keyfold development server", now)?;
        write_private(&setup.ca_file(), authority.certificate_pem().as_bytes())?;
        authority.serving(&LOOPBACK)?.write(&folder.join("tls.crt"), &folder.join("tls.key"))?;
        write_private(&folder.join("root.key"), STANDARD.encode(*random()?).as_bytes())?;
        write_private(&setup.bootstrap_token_file(), URL_SAFE_NO_PAD.encode(*random()?).as_bytes())?;
        write_yaml(&setup.config_file(), &setup.config(database))?;
        Ok(setup)
    }

    fn config(&self, (postgres, database): (&Access, &str)) -> Value {
        json!({
            "listen": format!("127.0.0.1:{}", self.port),
            "tls": {
                "certificate_file": self.folder.join("tls.crt"),
                "key_file": self.folder.join("tls.key"),
            },
            "database": {
                "url": postgres.database_url(database),
                "password_file": postgres.password_file(),
                "ca_file": postgres.ca_file(),
                "max_connections": 16,
            },
            "root_key": {"file": {"current": self.folder.join("root.key")}},
            "bootstrap_token_file": self.bootstrap_token_file(),
        })
    }

    /// Sets a top-level key of the configuration, for the next start; `null` removes it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn configure(&self, key: &str, value: Value) -> Result<(), Failure> {
        let file = self.config_file();
        let mut config: BTreeMap<String, Value> =
            serde_saphyr::from_str(&read_text(&file)?).map_err(|error| {
                Failure::new(Exit::Internal, format!("cannot read {}", file.display()), error.to_string())
            })?;
        match value {
            Value::Null => config.remove(key),
            value => config.insert(key.to_owned(), value),
        };
        write_yaml(&file, &json!(config))
    }

    /// Gives its processes a variable besides PATH, from the next start on; `None` takes it away.
    pub fn set_variable(&mut self, name: &str, value: Option<OsString>) {
        match value {
            Some(value) => self.variables.insert(name.to_owned(), value),
            None => self.variables.remove(name),
        };
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The certificate (PEM) of the authority that signed the server's.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// Proof, for `keyfold init`, of running the server.
    pub fn bootstrap_token_file(&self) -> PathBuf {
        self.folder.join("bootstrap-token")
    }

    /// The administrator's token, once the server is initialised.
    pub fn admin_token_file(&self) -> PathBuf {
        self.folder.join("admin-token")
    }

    /// Brings the database to the server's schema (`keyfold-server migrate`).
    ///
    /// # Errors
    /// When that fails; with the end of its log.
    pub fn migrate(&self) -> Result<(), Failure> {
        self.launch(&["migrate"])?.wait_for_success()
    }

    fn launch(&self, arguments: &[&str]) -> Result<Process, Failure> {
        let mut command = guarded(&self.program, "TERM", None);
        command.envs(&self.variables).arg("--config").arg(self.config_file()).args(arguments);
        Process::start("keyfold-server", command, &self.log)
    }

    fn client(&self, token_file: Option<PathBuf>) -> Result<Client, Failure> {
        let global = Global {
            server: Some(self.url()),
            ca_file: Some(self.ca_file()),
            token_file,
            approval: None,
            output: Format::Table,
            timeout: PATIENCE,
        };
        if global.token_file.is_some() { Client::operator(&global) } else { Client::nobody(&global) }
    }
}

/// A running `keyfold-server`. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    /// The server's process.
    pub process: Process,
}

impl Server {
    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead; with the end of its log.
    pub async fn start(setup: &Setup) -> Result<Self, Failure> {
        Self::start_with(setup, &[]).await
    }

    /// The same with arguments behind the configuration file.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn start_with(setup: &Setup, arguments: &[&str]) -> Result<Self, Failure> {
        let mut process = setup.launch(arguments)?;
        let port = setup.port;
        process.ready(PATIENCE, async || TcpStream::connect(("127.0.0.1", port)).is_ok()).await?;
        Ok(Self { setup: setup.clone(), process })
    }

    /// Its files and address.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The same, to be changed for the next start.
    pub fn setup_mut(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Initialises the installation, and writes the administrator's token to its file.
    ///
    /// # Errors
    /// When the server refuses, or does not serve afterwards.
    pub async fn initialise(&mut self) -> Result<(), Failure> {
        let client = self.setup.client(None)?;
        let bootstrap_token = read_text(&self.setup.bootstrap_token_file())?;
        let request = InitializeRequest { bootstrap_token };
        let answer = client.call("cannot initialise the server", client.system().initialize(request)).await?;
        write_private(&self.setup.admin_token_file(), answer.admin_token.as_bytes())?;
        self.until_serving().await
    }

    /// Waits until the server, initialised before, says that it serves.
    ///
    /// # Errors
    /// When it ends, or does not within half a minute.
    pub async fn until_serving(&mut self) -> Result<(), Failure> {
        let client = self.setup.client(None)?;
        let is_serving = async || {
            let status = client.system().get_status(GetStatusRequest {}).await;
            status.is_ok_and(|status| status.get_ref().state() == State::Serving)
        };
        self.process.ready(PATIENCE, is_serving).await
    }

    /// Applies one object as the administrator. `spec` is its specification.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<(), Failure> {
        let client = self.setup.client(Some(self.setup.admin_token_file()))?;
        let object = Object {
            kind: kind.to_owned(),
            name: name.to_owned(),
            spec_json: spec.to_string(),
            ..Object::default()
        };
        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        let what = format!("cannot apply {kind} {name}");
        client.call(&what, client.config().apply_objects(request)).await.map(drop)
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        self.process.stop(Signal::TERM, PATIENCE);
    }

    /// Starts it again after `stop` or a kill, on the same port.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn restart(&mut self) -> Result<(), Failure> {
        self.stop();
        *self = Self::start(&self.setup).await?;
        Ok(())
    }
}
