//! The server's configuration. `deploy/keyfold-server.yaml` is the documented sample, and a test loads it.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

/// Variables with this prefix override the file: `KEYFOLD_SERVER__DATABASE__URL` sets `database.url`.
pub const ENVIRONMENT_PREFIX: &str = "KEYFOLD_SERVER__";

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The serving certificate.
    pub tls: Tls,
    /// Where all state lies.
    pub database: Database,
    /// The key at the root of the hierarchy, which is not in the database.
    pub root_key: RootKey,
    /// A file whose content `keyfold init` must present. Without it nobody can initialise the installation.
    pub bootstrap_token_file: Option<PathBuf>,
    /// The folder of the JWKS files that issuers with `keys.file` name.
    pub jwks_dir: Option<PathBuf>,
    /// The folder of the kubeconfig files that issuers with `apiServer.kubeconfig` name.
    pub kubeconfig_dir: Option<PathBuf>,
    /// Bounds on what callers can make the server hold.
    #[serde(default)]
    pub limits: Limits,
    /// What is written to standard error.
    #[serde(default)]
    pub log: Log,
    /// Prometheus metrics; absent: none are served.
    pub metrics: Option<Metrics>,
}

/// The serving certificate, in PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its chain.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
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

/// Where the root key comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RootKey {
    /// Mounted files, each 32 bytes in base64.
    File(RootKeyFiles),
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

/// Bounds on what callers can make the server hold. A call beyond one gets RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest request message.
    pub request_bytes: usize,
    /// Requests in work at once, of all callers; a call that finds no place is refused.
    pub concurrent_requests: usize,
    /// Those of one network address among them, whoever calls.
    pub requests_per_peer: usize,
    /// Those of one driver among them: of one node's pods together.
    pub requests_per_driver: usize,
    /// Those of one pod among them.
    pub requests_per_pod: usize,
    /// Those of one operator among them.
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
        assert_eq!(config.database.max_connections, default_max_connections());
    }

    #[test]
    fn the_sample_file_documents_every_key() {
        for key in [
            "listen",
            "tls",
            "certificate_file",
            "key_file",
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
            "bootstrap_token_file",
            "jwks_dir",
            "kubeconfig_dir",
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
    fn the_environment_overrides_the_sample() {
        let variables = [("KEYFOLD_SERVER__DATABASE__MAX_CONNECTIONS".to_owned(), "3".to_owned())];
        let config: Config = keyfold_core::config::load(SAMPLE, ENVIRONMENT_PREFIX, variables).unwrap();
        assert_eq!(config.database.max_connections, 3);
    }
}
