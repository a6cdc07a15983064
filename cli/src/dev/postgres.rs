//! A private Postgres from the system's binaries, in a temporary folder: TLS only, on 127.0.0.1 and a port of its
//! own. Nothing about it survives.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    files::{free_port, random, read_text, write_private},
    pki::{Authority, LOOPBACK},
    process::{Account, POLL, Process, bare, guarded},
};
use crate::exit::{Exit, Failure};

mod binaries;

/// The variable through which `keyfold dev postgres -- CMD` tells CMD how to reach it: [`Access`] as JSON.
pub const ACCESS_VARIABLE: &str = "KEYFOLD_TEST_POSTGRES";

/// The role that owns Keyfold's databases. It may log in over TLS with a password, and create databases.
pub const ROLE: &str = "keyfold";

/// Starting takes a second or two; a busy machine gets a lot more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Three ports lost to other processes in a row is no coincidence.
const PORT_TRIES: usize = 3;

/// How a private Postgres is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The present moment: certificates hold from then.
    pub now: OffsetDateTime,
    /// Whether commits wait for the disk. Off is faster, and safe against everything but a crash of the machine.
    pub fsync: bool,
    /// Connections at once.
    pub max_connections: u16,
    /// Where its log goes; beside its data when absent.
    pub log: Option<PathBuf>,
}

impl Options {
    /// A server that keeps its promises: commits wait for the disk.
    pub fn durable(now: OffsetDateTime) -> Self {
        Self { now, fsync: true, max_connections: 64, log: None }
    }

    /// A server that many tests share.
    pub fn for_tests(now: OffsetDateTime) -> Self {
        Self { now, fsync: false, max_connections: 400, log: None }
    }
}

/// How to reach a private Postgres, from any process of the same user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    port: u16,
    socket_dir: PathBuf,
    bin_dir: PathBuf,
    password_file: PathBuf,
    ca_file: PathBuf,
}

impl Access {
    /// What [`ACCESS_VARIABLE`] says; nothing when it is not set.
    ///
    /// # Errors
    /// When it is set to something else.
    pub fn from_environment() -> Result<Option<Self>, Failure> {
        let Some(json) = std::env::var_os(ACCESS_VARIABLE) else { return Ok(None) };
        serde_json::from_slice(json.as_encoded_bytes())
            .map(Some)
            .map_err(|error| Failure::usage(format!("cannot use {ACCESS_VARIABLE}"), error.to_string()))
    }

    /// The URL of `database` for the role `keyfold`, without the password.
    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The file with the password of the role `keyfold`, without a line break.
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// The certificate (PEM) of the authority that signed the server's certificate.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// The folder of the Unix socket, on which the superuser `postgres` needs no password.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Creates the database `name` for the role `keyfold`: empty, or a copy of `template`, to which nobody may be
    /// connected then.
    ///
    /// # Errors
    /// When a name is not of `[a-z0-9_]`, or Postgres refuses.
    pub fn create_database(&self, name: &str, template: Option<&str>) -> Result<(), Failure> {
        let (name, template) = (identifier(name)?, identifier(template.unwrap_or("template0"))?);
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}")).map(drop)
    }

    /// Drops the database `name`, and whatever is connected to it. One that is not there is fine.
    ///
    /// # Errors
    /// When the name is not of `[a-z0-9_]`, or Postgres refuses.
    pub fn drop_database(&self, name: &str) -> Result<(), Failure> {
        self.sql("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name)?)).map(drop)
    }

    /// Runs `sql`, one statement or several, in `database` as the superuser. Gives the rows as `psql -At` prints
    /// them: one a line, columns parted by `|`.
    ///
    /// # Errors
    /// When Postgres cannot be reached or refuses a statement; those before it stand.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, Failure> {
        let mut psql = bare(&self.bin_dir.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"])
            .arg(format!("--host={}", self.socket_dir.display()))
            .args([format!("--port={}", self.port), format!("--dbname={database}")])
            .arg("--username=postgres");
        let output = run(psql, "psql", sql)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

/// A running private Postgres. Dropping it stops it and removes its folder.
#[derive(Debug)]
pub struct Postgres {
    access: Access,
    account: Option<Account>,
    log: PathBuf,
    // The process goes before its folder: fields are dropped in this order.
    process: Process,
    folder: TempDir,
}

impl Postgres {
    /// Creates and starts one. It takes a second or two.
    ///
    /// # Errors
    /// When there is no Postgres 15 or later on this machine, or it does not start.
    pub fn start(options: &Options) -> Result<Self, Failure> {
        let bin_dir = binaries::newest()?;
        let account = binaries::account()?;
        let folder = own_folder(account)?;
        initialise(folder.path(), &bin_dir, account, options)?;
        let log = options.log.clone().unwrap_or_else(|| folder.path().join("postgres.log"));
        let (port, process) = start_on_a_free_port(folder.path(), &bin_dir, account, &log)?;
        let access = Access {
            port,
            socket_dir: folder.path().to_owned(),
            bin_dir,
            password_file: folder.path().join("password"),
            ca_file: folder.path().join("ca.crt"),
        };
        let postgres = Self { access, account, log, process, folder };
        postgres.create_role()?;
        Ok(postgres)
    }

    /// How to reach it.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The folder of its data: where a leak would be found.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its log.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Whether it runs, as far as its main process is concerned.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// A failure with the end of the log when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn ensure_running(&mut self) -> Result<(), Failure> {
        self.process.ensure_running()
    }

    /// Kills every process of it with SIGKILL, as a crash of its machine would.
    pub fn kill(&mut self) {
        let backends = children(self.process.pid());
        self.process.kill();
        for pid in &backends {
            // One that noticed and ended by itself is what is wanted.
            let _ = kill_process(*pid, Signal::KILL);
        }
        while backends.iter().any(|pid| is_alive(*pid)) {
            thread::sleep(POLL);
        }
    }

    /// Stops it in order: open connections are cut, what was committed is on disk.
    pub fn stop(&mut self) {
        self.process.stop(Signal::INT, PATIENCE);
    }

    /// Starts it again on the same data and port, stopped or killed before.
    ///
    /// # Errors
    /// When it does not start, because another process took its port for example.
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.stop();
        let bin_dir = &self.access.bin_dir;
        self.process = launch(self.folder.path(), bin_dir, self.account, &self.log, self.access.port)?;
        Ok(())
    }

    fn create_role(&self) -> Result<(), Failure> {
        let password = Zeroizing::new(read_text(&self.access.password_file)?);
        let sql = Zeroizing::new(format!("CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{}'", *password));
        self.access.sql("postgres", &sql).map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown: the folder goes in the next moment.
        self.process.stop(Signal::QUIT, Duration::from_secs(10));
        remove_shared_memory(&self.data_dir());
    }
}

/// A Postgres that was killed leaves the small System V segment that guards its data folder; its id is the second
/// word of the seventh line of `postmaster.pid`. One that was stopped has removed both.
fn remove_shared_memory(data: &Path) {
    let Ok(lines) = fs::read_to_string(data.join("postmaster.pid")) else { return };
    if let Some(id) = lines.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        // What cannot be removed is 56 bytes until the next boot.
        let _ = Command::new("ipcrm").args(["--shmem-id", id]).stderr(Stdio::null()).status();
    }
}

fn own_folder(account: Option<Account>) -> Result<TempDir, Failure> {
    let failed = |error| Failure::io("cannot create a temporary folder for Postgres", &error);
    let folder = tempfile::Builder::new()
        .prefix("keyfold-postgres-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(failed)?;
    if let Some(Account { uid, gid }) = account {
        chown(folder.path(), Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(folder)
}

/// Writes certificates, the password and the data folder.
fn initialise(
    folder: &Path,
    bin_dir: &Path,
    account: Option<Account>,
    options: &Options,
) -> Result<(), Failure> {
    let authority = Authority::new("Keyfold development database", options.now)?;
    let serving = authority.serving(&LOOPBACK)?;
    write_private(&folder.join("ca.crt"), authority.certificate_pem().as_bytes())?;
    write_private(&folder.join("password"), URL_SAFE_NO_PAD.encode(*random()?).as_bytes())?;
    let (certificate, key) = (folder.join("server.crt"), folder.join("server.key"));
    serving.write(&certificate, &key)?;
    for path in [&certificate, &key] {
        chown(path, account.map(|a| a.uid), account.map(|a| a.gid))
            .map_err(|error| Failure::io("cannot hand a certificate to Postgres", &error))?;
    }
    initdb(folder, bin_dir, account)?;
    overwrite(&folder.join("data/postgresql.conf"), &settings(folder, options))?;
    overwrite(&folder.join("data/pg_hba.conf"), HBA)
}

/// Writes into the file as it stands, since that belongs to Postgres's account.
fn overwrite(path: &Path, content: &str) -> Result<(), Failure> {
    fs::write(path, content).map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))
}

const HBA: &str = "\
local   all  postgres               trust
hostssl all  keyfold   127.0.0.1/32 scram-sha-256
";

fn initdb(folder: &Path, bin_dir: &Path, account: Option<Account>) -> Result<(), Failure> {
    let mut command = guarded(&bin_dir.join("initdb"), "KILL", account);
    command
        .current_dir(folder)
        .args(["--username=postgres", "--auth=reject", "--encoding=UTF8", "--locale=C", "--no-sync"])
        .arg("--no-instructions")
        .arg("--pgdata")
        .arg(folder.join("data"));
    run(command, "initdb", "").map(drop)
}

fn settings(folder: &Path, options: &Options) -> String {
    let folder = folder.display();
    let (fsync, max_connections) = (if options.fsync { "on" } else { "off" }, options.max_connections);
    format!(
        "\
        listen_addresses = '127.0.0.1'\n\
        unix_socket_directories = '{folder}'\n\
        unix_socket_permissions = 0700\n\
        max_connections = {max_connections}\n\
        shared_buffers = 64MB\n\
        ssl = on\n\
        ssl_min_protocol_version = 'TLSv1.3'\n\
        ssl_cert_file = '{folder}/server.crt'\n\
        ssl_key_file = '{folder}/server.key'\n\
        password_encryption = 'scram-sha-256'\n\
        logging_collector = off\n\
        log_timezone = 'UTC'\n\
        timezone = 'UTC'\n\
        fsync = {fsync}\n\
        full_page_writes = {fsync}\n"
    )
}

fn start_on_a_free_port(
    folder: &Path,
    bin_dir: &Path,
    account: Option<Account>,
    log: &Path,
) -> Result<(u16, Process), Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let port = free_port()?;
        match launch(folder, bin_dir, account, log, port) {
            Ok(process) => return Ok((port, process)),
            Err(failure) if tries == PORT_TRIES => return Err(failure),
            Err(_) => {}
        }
    }
}

fn launch(
    folder: &Path,
    bin_dir: &Path,
    account: Option<Account>,
    log: &Path,
    port: u16,
) -> Result<Process, Failure> {
    let data = folder.join("data");
    // SIGQUIT is Postgres's immediate shutdown, which ends its own children too.
    let mut command = guarded(&bin_dir.join("postgres"), "QUIT", account);
    command.current_dir(folder).arg("-D").arg(&data).args(["-p", &port.to_string()]);
    let mut process = Process::start("Postgres", command, log)?;
    let pid = process.pid().to_string();
    process.ready_blocking(PATIENCE, || is_ready(&data, &pid))?;
    Ok(process)
}

/// Whether `postmaster.pid` says `ready` in its eighth line, which is what `pg_ctl --wait` looks for.
fn is_ready(data: &Path, pid: &str) -> bool {
    let Ok(file) = fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let lines: Vec<&str> = file.lines().collect();
    lines.first() == Some(&pid) && lines.get(7).is_some_and(|status| status.trim() == "ready")
}

fn children(pid: u32) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)).collect()
}

/// Whether the process runs still; one that nobody has waited for (state Z in proc(5)) does not.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// `name`, if it needs no quotes in SQL.
fn identifier(name: &str) -> Result<&str, Failure> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || name.as_bytes()[0].is_ascii_digit() {
        let why = "use at most 63 of a to z, 0 to 9 and _, not beginning with a digit";
        return Err(Failure::usage(format!("cannot name a database {name:?}"), why));
    }
    Ok(name)
}

fn run(mut command: Command, name: &str, input: &str) -> Result<Output, Failure> {
    let failed = |error| Failure::io(format!("cannot run {name}"), &error);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(output);
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(Exit::Internal, format!("{name} failed"), why))
}

#[cfg(test)]
mod tests;
