//! The server's configuration. `deploy/keyfold-server.yaml` is the documented sample, and a test loads it.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;
use uuid::Uuid;

/// Variables with this prefix override the file: `KEYFOLD_SERVER__DATABASE__URL` sets `database.url`.
pub const ENVIRONMENT_PREFIX: &str = "KEYFOLD_SERVER__";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The serving certificate, and drivers' certificates.
    pub tls: Tls,
    /// The internal certificate authority.
    #[serde(default)]
    pub ca: Ca,
    /// Where all state lies.
    pub database: Database,
    /// The key at the root of the hierarchy, which is not in the database.
    pub root_key: RootKey,
    /// Where the root key was before, while it moves: it opens what is sealed by it, and no new root is made there.
    pub previous_root_key: Option<RootKey>,
    /// Which shares recovery takes, and what its drill needs.
    #[serde(default)]
    pub recovery: Recovery,
    /// A file whose content `keyfold init` must present. Without it nobody can initialise the installation.
    pub bootstrap_token_file: Option<PathBuf>,
    /// The folder of the JWKS files that issuers with `keys.file` name.
    pub jwks_dir: Option<PathBuf>,
    /// The folder of the kubeconfig files that issuers with `apiServer.kubeconfig` name.
    pub kubeconfig_dir: Option<PathBuf>,
    /// How it is watched that stored rows are those that servers wrote.
    #[serde(default)]
    pub integrity: Integrity,
    /// How the server works on keys.
    #[serde(default)]
    pub keys: Keys,
    /// How audit entries are committed.
    #[serde(default)]
    pub audit: Audit,
    /// What is held in memory.
    #[serde(default)]
    pub cache: Cache,
    /// Bounds on what callers can make the server hold.
    #[serde(default)]
    pub limits: Limits,
    /// What is written to standard error.
    #[serde(default)]
    pub log: Log,
    /// Prometheus metrics; absent: none are served.
    pub metrics: Option<Metrics>,
}

/// The serving certificate, in PEM, and what is asked of drivers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its chain.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// What the internal authority's certificate is for; absent: the files' certificate is served to all.
    pub internal: Option<InternalTls>,
    /// Whether pods' secrets are issued only over connections on which the driver has shown a certificate.
    #[serde(default)]
    pub require_driver_certificate: bool,
}

/// By what clients call the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InternalTls {
    /// Names.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Addresses.
    #[serde(default)]
    pub ip_addresses: Vec<IpAddr>,
}

/// The internal certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ca {
    /// How long certificates of servers and drivers hold. They are renewed after two thirds of it.
    pub certificate_secs: u64,
    /// How long a new authority is trusted before it signs.
    pub overlap_secs: u64,
}

impl Default for Ca {
    fn default() -> Self {
        Self { certificate_secs: 24 * 60 * 60, overlap_secs: 24 * 60 * 60 }
    }
}

impl Ca {
    /// Whether all drivers learn of a new authority before it signs: they ask whenever they renew.
    ///
    /// # Errors
    /// Names the keys.
    pub fn check(&self) -> Result<(), String> {
        if self.certificate_secs == 0 || self.certificate_secs > 365 * 24 * 60 * 60 {
            return Err("ca.certificate_secs: must be from 1 to 31536000, a year".into());
        }
        if self.overlap_secs < self.certificate_secs {
            return Err(
                "ca.overlap_secs: must not be less than ca.certificate_secs, within which drivers ask for \
                        new authorities"
                    .into(),
            );
        }
        Ok(())
    }
}

/// Postgres, always over TLS with the server's name checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://user@host:port/name`, without a password.
    pub url: String,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// The authority that signed the database's certificate, in PEM.
    pub ca_file: PathBuf,
    /// The most connections of this replica.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
    /// How long what operators declared is used before Postgres must confirm it.
    #[serde(default = "default_max_staleness_millis")]
    pub max_staleness_millis: u64,
}

fn default_max_staleness_millis() -> u64 {
    1000
}

fn default_max_connections() -> u32 {
    16
}

/// How it is watched that stored rows are those that servers wrote, all of them, and the newest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Integrity {
    /// How often everything is compared with the integrity head.
    pub scrub_secs: u64,
    /// Where this replica keeps how far it has seen the database come; absent: only in memory.
    pub pin_file: Option<PathBuf>,
}

impl Default for Integrity {
    fn default() -> Self {
        Self { scrub_secs: 30, pin_file: None }
    }
}

/// Who keeps the root key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RootKey {
    /// Mounted files, each 32 bytes in base64.
    File(RootKeyFiles),
    /// A token behind a PKCS#11 module: a hardware security module.
    Pkcs11(RootKeyPkcs11),
    /// A plugin that speaks the Kubernetes KMS v2 API on a Unix socket.
    KmsPlugin(RootKeyKmsPlugin),
    /// People with a share each, who enter them after every start.
    Shamir(RootKeyShamir),
}

/// Root keys in files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKeyFiles {
    /// The key in use.
    pub current: PathBuf,
    /// The key before it, while it is being replaced.
    pub previous: Option<PathBuf>,
}

/// A key on a PKCS#11 token, which encrypts the root key and never leaves the token.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKeyPkcs11 {
    /// The module, a shared library of the token's maker.
    pub module: PathBuf,
    /// The label of the token, which no other token of the module may have.
    pub token_label: String,
    /// A file with the user's PIN, read at each login.
    pub pin_file: PathBuf,
    /// The label of the keys that are made on the token.
    pub key_label: String,
    /// How long one use of the token may take, the wait for an earlier one included.
    #[serde(default = "default_pkcs11_timeout_millis")]
    pub timeout_millis: u64,
}

fn default_pkcs11_timeout_millis() -> u64 {
    5000
}

/// A KMS plugin, which encrypts the root key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKeyKmsPlugin {
    /// The plugin's Unix socket.
    pub socket: PathBuf,
    /// How long one use of the plugin may take.
    #[serde(default = "default_kms_timeout_millis")]
    pub timeout_millis: u64,
}

/// As long as Kubernetes gives a KMS plugin by default.
fn default_kms_timeout_millis() -> u64 {
    3000
}

/// How the next root key is split.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKeyShamir {
    /// Shares in all, at most 255.
    pub shares: u32,
    /// Shares that give the key again, at least 2.
    pub threshold: u32,
}

/// For the day when the root key is lost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// The recovery key whose shares are taken: whoever can write to Postgres could put one of their own there. Absent:
    /// none are.
    pub key_id: Option<Uuid>,
    /// Where backups are restored for drills; absent: there are none.
    pub drill_database: Option<DrillDatabase>,
}

/// A scratch database, over TLS like the other one. A drill only reads it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillDatabase {
    /// `postgres://user@host:port/name`, without a password.
    pub url: String,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// The authority that signed the database's certificate, in PEM.
    pub ca_file: PathBuf,
}

/// Bounds on what callers can make the server hold. A call beyond one gets RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest request message.
    pub request_bytes: usize,
    /// Requests in work at once, of all callers; a call that finds no place is refused.
    pub concurrent_requests: usize,
    /// Requests worked on at once, while the others of them wait for their turn; 0 for 16 for each processor.
    pub working_requests: usize,
    /// How long a request may wait for its turn in a burst. Once all places have been taken for as long, a request waits
    /// for as long as requests take at present, and then it is refused.
    pub wait_millis: u64,
    /// Requests in work of one network address, whoever calls.
    pub requests_per_peer: usize,
    /// Those of one driver: of one node's pods together.
    pub requests_per_driver: usize,
    /// Those of one pod.
    pub requests_per_pod: usize,
    /// Those of one operator.
    pub requests_per_operator: usize,
    /// Requests in work at once on one connection.
    pub streams_per_connection: u32,
    /// Open connections, those that are still in their TLS handshake included.
    pub connections: usize,
    /// Open connections of one network address.
    pub connections_per_peer: usize,
    /// How long a TLS handshake may take.
    pub handshake_secs: u64,
    /// How long a request may take.
    pub request_secs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 1024 * 1024,
            concurrent_requests: 256,
            working_requests: 0,
            wait_millis: 200,
            requests_per_peer: 128,
            requests_per_driver: 64,
            requests_per_pod: 16,
            requests_per_operator: 32,
            streams_per_connection: 64,
            connections: 4096,
            connections_per_peer: 64,
            handshake_secs: 10,
            request_secs: 60,
        }
    }
}

/// How the server works on keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// The most data keys that this replica wraps anew in a second; 0 for as many as it can.
    pub rewrap_per_second: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { rewrap_per_second: 20_000 }
    }
}

/// How audit entries are committed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Most entries of one commit.
    pub group_entries_max: usize,
    /// How long a commit goes on gathering callers, at most, while more of them come. One caller alone never waits.
    pub group_wait_micros: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { group_entries_max: 512, group_wait_micros: 2000 }
    }
}

impl Audit {
    /// Whether anything can be committed at all.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<(), String> {
        if self.group_entries_max == 0 || self.group_entries_max > 10_000 {
            return Err("audit.group_entries_max: must be from 1 to 10000".into());
        }
        if self.group_wait_micros > 1_000_000 {
            return Err("audit.group_wait_micros: must be at most 1000000, a second".into());
        }
        Ok(())
    }

    pub(crate) fn group_wait(&self) -> Duration {
        Duration::from_micros(self.group_wait_micros)
    }
}

/// What is held in memory, so that Postgres is not asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Current versions of secrets, encrypted as they are stored: as many bytes together.
    pub secret_bytes: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self { secret_bytes: 20 * 1024 * 1024 }
    }
}

/// What is written to standard error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// One line of text or one JSON object an event.
    pub format: LogFormat,
    /// A level, or directives such as `info,keyfold_server=debug`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prometheus metrics over plain HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics` is served.
    pub listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../deploy/keyfold-server.yaml");

    #[test]
    fn the_sample_file_loads() {
        let config: Config = keyfold_core::config::load(SAMPLE, ENVIRONMENT_PREFIX, []).unwrap();
        assert_eq!(config.limits, Limits::default(), "the sample names the defaults");
        assert_eq!(config.keys, Keys::default());
        assert_eq!(config.integrity, Integrity::default());
        assert_eq!(config.ca, Ca::default(), "the sample names the defaults");
        assert_eq!(config.database.max_connections, default_max_connections());
    }

    #[test]
    fn the_sample_file_documents_every_key() {
        for key in [
            "listen",
            "tls",
            "certificate_file",
            "key_file",
            "internal",
            "dns_names",
            "ip_addresses",
            "require_driver_certificate",
            "ca",
            "certificate_secs",
            "overlap_secs",
            "database",
            "url",
            "password_file",
            "ca_file",
            "max_connections",
            "max_staleness_millis",
            "root_key",
            "file",
            "current",
            "previous",
            "pkcs11",
            "module",
            "token_label",
            "pin_file",
            "key_label",
            "timeout_millis",
            "kms_plugin",
            "socket",
            "shamir",
            "shares",
            "threshold",
            "previous_root_key",
            "recovery",
            "key_id",
            "drill_database",
            "bootstrap_token_file",
            "jwks_dir",
            "kubeconfig_dir",
            "integrity",
            "scrub_secs",
            "pin_file",
            "keys",
            "rewrap_per_second",
            "limits",
            "request_bytes",
            "concurrent_requests",
            "requests_per_peer",
            "requests_per_driver",
            "requests_per_pod",
            "requests_per_operator",
            "streams_per_connection",
            "connections",
            "connections_per_peer",
            "handshake_secs",
            "request_secs",
            "log",
            "format",
            "level",
            "metrics",
        ] {
            let documented = SAMPLE
                .lines()
                .any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key}:")));
            assert!(documented, "{key} is not in the sample file");
        }
    }

    #[test]
    fn each_root_key_of_the_sample_loads_with_the_defaults_that_it_names() {
        let custodies: [fn(&RootKey) -> bool; 3] = [
            |key| matches!(key, RootKey::Pkcs11(key) if key.timeout_millis == default_pkcs11_timeout_millis()),
            |key| matches!(key, RootKey::KmsPlugin(key) if key.timeout_millis == default_kms_timeout_millis()),
            |key| matches!(key, RootKey::Shamir(_)),
        ];
        for (name, is_it) in ["pkcs11", "kms_plugin", "shamir"].into_iter().zip(custodies) {
            let (before, rest) = SAMPLE.split_once("root_key:\n  file:").unwrap();
            let (_, block) = rest.split_once(&format!("\n# root_key:\n#   {name}:")).unwrap();
            let block: String = block
                .lines()
                .take_while(|line| line.is_empty() || line.starts_with("#     "))
                .map(|line| format!("\n{}", line.trim_start_matches("# ")))
                .collect();
            let (_, after) = rest.split_once("\n# What `keyfold init`").unwrap();
            let yaml = format!("{before}root_key:\n  {name}:{block}\n#{after}");
            let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).unwrap();
            assert!(is_it(&config.root_key), "{yaml}");
        }
    }

    #[test]
    fn an_authority_that_signs_before_all_drivers_have_asked_for_it_is_refused() {
        assert_eq!(Ca::default().check(), Ok(()));
        assert_eq!(Ca { certificate_secs: 60, overlap_secs: 60 }.check(), Ok(()));
        for (certificate_secs, overlap_secs, key) in [
            (61, 60, "ca.overlap_secs"),
            (0, 60, "ca.certificate_secs"),
            (u64::MAX, u64::MAX, "ca.certificate_secs"),
        ] {
            let refused = Ca { certificate_secs, overlap_secs }.check().unwrap_err();
            assert!(refused.starts_with(key), "{refused}");
        }
    }

    #[test]
    fn the_environment_overrides_the_sample() {
        let variables = [("KEYFOLD_SERVER__DATABASE__MAX_CONNECTIONS".to_owned(), "3".to_owned())];
        let config: Config = keyfold_core::config::load(SAMPLE, ENVIRONMENT_PREFIX, variables).unwrap();
        assert_eq!(config.database.max_connections, 3);
    }
}
