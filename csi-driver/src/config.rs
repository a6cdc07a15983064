//! The driver's configuration: one YAML file with overrides from the environment. `deploy/keyfold-csi.yaml`
//! documents every key.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

/// Variables that begin so override keys of the file: `KEYFOLD_CSI__NODE_ID` sets `node_id`.
pub const ENV_PREFIX: &str = "KEYFOLD_CSI__";

/// Longest wait inside a publish: kubelet gives a call two minutes, and the last try needs its time as well.
const WAIT_SECS_MAX: u64 = 100;
/// Smallest volume: two generations of a few files, a page each.
const TMPFS_BYTES_MIN: u64 = 64 * 1024;
/// Longest node id, of the CSI specification (NodeGetInfoResponse).
const NODE_ID_BYTES_MAX: usize = 256;

/// Configuration of one driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How to reach Keyfold.
    pub server: ServerConfig,
    /// File with the driver's own projected ServiceAccount token. Read anew for each call.
    pub token_file: PathBuf,
    /// Name of the Kubernetes node that this driver serves.
    pub node_id: String,
    /// Kubelet's root folder, with the same path on the host and in the driver's container.
    #[serde(default = "default_kubelet_dir")]
    pub kubelet_dir: PathBuf,
    /// Where a pod's token may come from.
    #[serde(default)]
    pub token_source: TokenSource,
    /// Audience of the pods' tokens, as the CSIDriver object's `tokenRequests` names it.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// Size limit of one volume in bytes. At a change it holds the old and the new files together.
    #[serde(default = "default_tmpfs_bytes")]
    pub tmpfs_bytes: u64,
    /// Logging to standard error.
    #[serde(default)]
    pub log: LogConfig,
}

/// How to reach Keyfold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// `https://host:port`.
    pub url: String,
    /// PEM file with the authorities that may have signed the server's certificate.
    pub ca_file: PathBuf,
    /// Seconds that a first publish waits inside the call while the server is away; 0 to 100.
    #[serde(default = "default_wait_secs")]
    pub wait_secs: u64,
    /// What the driver shows of itself when it connects.
    #[serde(default)]
    pub certificate: ClientCertificate,
}

/// What the driver shows of itself when it connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificate {
    /// Nothing: its token alone proves it.
    #[default]
    None,
    /// A certificate of Keyfold's internal authority, which the driver asks for and renews by itself.
    Internal,
}

/// Where a pod's token may come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenSource {
    /// Only from the request's secrets (`serviceAccountTokenInSecrets: true`, Kubernetes 1.35 and later), which a
    /// pod's author cannot write.
    #[default]
    Secrets,
    /// From the request's secrets, else from the volume attributes as older clusters send it.
    SecretsOrContext,
}

/// Logging to standard error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Form of the lines.
    #[serde(default)]
    pub format: LogFormat,
    /// Least severe level that is written.
    #[serde(default)]
    pub level: LogLevel,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Severity of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads the file at `path` and lays the process's environment over it.
    ///
    /// # Errors
    /// When the file cannot be read, or a key is unknown, missing or out of range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let yaml = fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("cannot read {}: {error}", path.display())))?;
        // Variables that are not UTF-8 cannot be ours.
        let environment =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::parse(&yaml, environment).map_err(|error| ConfigError(format!("{}: {error}", path.display())))
    }

    /// Parses a configuration from YAML text and overrides.
    ///
    /// # Errors
    /// When a key is unknown, missing or out of range.
    pub fn parse(
        yaml: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let config: Self = keyfold_core::config::load(yaml, ENV_PREFIX, environment)
            .map_err(|error| ConfigError(error.to_string()))?;
        match config.problem() {
            Some(problem) => Err(ConfigError(problem)),
            None => Ok(config),
        }
    }

    /// How long a first publish waits while the server is away.
    pub fn server_wait(&self) -> Duration {
        Duration::from_secs(self.server.wait_secs)
    }

    /// The folder below which kubelet places every volume.
    pub fn pods_dir(&self) -> PathBuf {
        self.kubelet_dir.join("pods")
    }

    /// Path of the CSI socket, on the host as in the container.
    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet_dir.join("plugins").join(crate::DRIVER_NAME).join("csi.sock")
    }

    /// Path of the socket on which kubelet asks the driver to register.
    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet_dir.join("plugins_registry").join(format!("{}-reg.sock", crate::DRIVER_NAME))
    }

    fn problem(&self) -> Option<String> {
        if self.node_id.is_empty() || self.node_id.len() > NODE_ID_BYTES_MAX {
            return Some(format!("node_id: must have 1 to {NODE_ID_BYTES_MAX} bytes"));
        }
        if !self.kubelet_dir.is_absolute() {
            return Some("kubelet_dir: must be an absolute path".into());
        }
        if self.audience.is_empty() {
            return Some("audience: must not be empty".into());
        }
        if self.server.wait_secs > WAIT_SECS_MAX {
            return Some(format!(
                "server.wait_secs: must be at most {WAIT_SECS_MAX}, for kubelet ends a call after two minutes"
            ));
        }
        if self.tmpfs_bytes < TMPFS_BYTES_MIN {
            return Some(format!("tmpfs_bytes: must be at least {TMPFS_BYTES_MIN}"));
        }
        None
    }
}

fn default_kubelet_dir() -> PathBuf {
    "/var/lib/kubelet".into()
}

fn default_audience() -> String {
    "keyfold".into()
}

fn default_tmpfs_bytes() -> u64 {
    16 * 1024 * 1024
}

fn default_wait_secs() -> u64 {
    WAIT_SECS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../deploy/keyfold-csi.yaml");
    const LEAST: &str = "server: {url: 'https://k:8443', ca_file: /ca}\ntoken_file: /t\nnode_id: vm";

    fn parse(yaml: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::parse(yaml, environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_file_loads_and_shows_the_defaults() {
        let sample = parse(SAMPLE, &[("KEYFOLD_CSI__NODE_ID", "worker-1")]).unwrap();
        let least = parse(LEAST, &[]).unwrap();
        assert_eq!(sample.node_id, "worker-1");
        assert_eq!(sample.kubelet_dir, least.kubelet_dir);
        assert_eq!(sample.token_source, least.token_source);
        assert_eq!(sample.audience, least.audience);
        assert_eq!(sample.tmpfs_bytes, least.tmpfs_bytes);
        assert_eq!(sample.server.wait_secs, least.server.wait_secs);
        assert_eq!(sample.server.certificate, least.server.certificate);
        assert_eq!(sample.log.format, least.log.format);
        assert_eq!(sample.log.level, least.log.level);
    }

    #[test]
    fn the_sample_file_documents_every_key() {
        for key in [
            "server:",
            "  url:",
            "  ca_file:",
            "  wait_secs:",
            "  certificate:",
            "token_file:",
            "node_id:",
            "kubelet_dir:",
            "token_source:",
            "audience:",
            "tmpfs_bytes:",
            "log:",
            "  format:",
            "  level:",
        ] {
            let lines: Vec<_> = SAMPLE.lines().collect();
            let at = lines.iter().position(|line| line.starts_with(key));
            let at = at.unwrap_or_else(|| panic!("{key} is not in the sample"));
            assert!(at > 0 && lines[at - 1].trim_start().starts_with('#'), "{key} has no comment above it");
        }
    }

    #[test]
    fn sockets_lie_where_kubelet_looks_for_them() {
        let config = parse(LEAST, &[]).unwrap();
        assert_eq!(config.csi_socket(), Path::new("/var/lib/kubelet/plugins/csi.keyfold.dev/csi.sock"));
        assert_eq!(
            config.registration_socket(),
            Path::new("/var/lib/kubelet/plugins_registry/csi.keyfold.dev-reg.sock")
        );
    }

    #[test]
    fn a_wrong_key_or_value_is_refused_by_name() {
        let refused = |yaml: &str, key: &str| {
            let error = parse(yaml, &[]).unwrap_err();
            assert!(error.contains(key), "{yaml}: {error}");
        };
        refused(&format!("{LEAST}\nnodeid: x"), "nodeid");
        refused(&LEAST.replace("node_id: vm", "node_id: ''"), "node_id");
        refused(&LEAST.replace("ca_file: /ca", "ca_file: /ca, wait_secs: 101"), "server.wait_secs");
        refused(&LEAST.replace("ca_file: /ca", "ca_file: /ca, certificate: own"), "server.certificate");
        refused(&format!("{LEAST}\nkubelet_dir: var/lib"), "kubelet_dir");
        refused(&format!("{LEAST}\naudience: ''"), "audience");
        refused(&format!("{LEAST}\ntmpfs_bytes: 4096"), "tmpfs_bytes");
        refused(&format!("{LEAST}\ntoken_source: context"), "token_source");
        refused("node_id: vm\ntoken_file: /t", "server");
    }
}
