//! A root key that a Kubernetes KMS v2 plugin encrypts. Postgres keeps what the plugin gave; the plugin's own key stays
//! where the plugin has it. Each use makes a connection of its own, so a plugin may come and go.
//!
//! The plugin is trusted with the root key, but not to behave: its answers are held to the bounds that Kubernetes holds
//! them to (KEP-3299, and `ValidateEncryptedDEKSource`, `ValidateKeyID`, `validateAnnotations` of the API server).

use std::{collections::BTreeMap, error::Error, future::Future, io, path::PathBuf, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use keyfold_core::{
    entropy::Entropy,
    foreign_text,
    secret::{Key, SecretBytes},
};
use keyfold_proto::kms::v2::{
    DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest,
    key_management_service_client::KeyManagementServiceClient,
};
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::custody::{self, Base64Bytes};
use crate::config::RootKeyKmsPlugin;

const CIPHERTEXT_BYTES_MAX: usize = 1024;
const KEY_ID_BYTES_MAX: usize = 1024;
const ANNOTATIONS_BYTES_MAX: usize = 32 * 1024;
/// Of a whole response: all of the above, with room for what protobuf adds to many small annotations.
const RESPONSE_BYTES_MAX: usize = 128 * 1024;
/// What plugins say that serve this API; the older one is from before the API was stable, and the same on the wire.
const VERSIONS: [&str; 2] = ["v2", "v2beta1"];

pub(super) struct PluginRoot {
    socket: PathBuf,
    limit: Duration,
}

/// What the plugin gave, in Postgres.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    key_id: String,
    ciphertext: Base64Bytes,
    annotations: BTreeMap<String, Base64Bytes>,
}

impl PluginRoot {
    pub(super) fn new(config: &RootKeyKmsPlugin) -> Result<Self, String> {
        if config.timeout_millis == 0 {
            return Err("kms_plugin.timeout_millis: must be at least 1".into());
        }
        Ok(Self { socket: config.socket.clone(), limit: Duration::from_millis(config.timeout_millis) })
    }

    /// Whether the plugin can be reached and says that it is well.
    pub(super) async fn check(&self) -> Result<(), String> {
        self.in_time(async { self.connect().await?.status().await }).await
    }

    /// Has the plugin encrypt a root key, and gives what must be stored. Not without having decrypted it again.
    pub(super) async fn keep(&self, root: &Key, entropy: &dyn Entropy) -> Result<Vec<u8>, String> {
        self.in_time(async {
            let mut plugin = self.connect().await?;
            plugin.status().await?;
            let kept = plugin.encrypt(root, entropy).await?;
            if plugin.decrypt(&kept, entropy).await? != *root {
                return Err(
                    "the KMS plugin decrypts to something else than it encrypted: do not use it".into()
                );
            }
            Ok(custody::write(&kept))
        })
        .await
    }

    /// Has the plugin decrypt a root key.
    pub(super) async fn open(&self, data: &[u8], entropy: &dyn Entropy) -> Result<Key, String> {
        let kept = custody::read(data)?;
        self.in_time(async {
            let mut plugin = self.connect().await?;
            plugin.status().await?;
            plugin.decrypt(&kept, entropy).await
        })
        .await
    }

    async fn in_time<T>(&self, using: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        timeout(self.limit, using).await.unwrap_or_else(|_| {
            Err(format!(
                "the KMS plugin at {} did not answer in {} ms: see the plugin's log",
                self.socket.display(),
                self.limit.as_millis()
            ))
        })
    }

    async fn connect(&self) -> Result<Plugin, String> {
        let socket = self.socket.clone();
        let connect = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .map_err(|error| {
                format!(
                    "the KMS plugin's socket {} cannot be connected to{}: is the plugin running?",
                    self.socket.display(),
                    io_reason(&error)
                )
            })?;
        Ok(Plugin(KeyManagementServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX)))
    }
}

/// What the system said, if it was the system.
fn io_reason(error: &tonic::transport::Error) -> String {
    let mut chain = std::iter::successors(error.source(), |error| (*error).source());
    chain
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map_or_else(String::new, |error| format!(" ({})", error.kind()))
}

/// A plugin that is connected to.
struct Plugin(KeyManagementServiceClient<Channel>);

impl Plugin {
    async fn status(&mut self) -> Result<(), String> {
        let status =
            self.0.status(StatusRequest {}).await.map_err(|error| failed("tell its status", &error))?;
        let status = status.into_inner();
        if !VERSIONS.contains(&status.version.as_str()) {
            let version = foreign_text::quoted(&status.version);
            return Err(format!("the KMS plugin serves the API in version {version}, not in v2"));
        }
        if status.healthz != "ok" {
            let healthz = foreign_text::quoted(&status.healthz);
            return Err(format!("the KMS plugin says that it is not well ({healthz}): see the plugin's log"));
        }
        check_key_id(&status.key_id)
    }

    async fn encrypt(&mut self, root: &Key, entropy: &dyn Entropy) -> Result<Kept, String> {
        let request = EncryptRequest { plaintext: root.expose().to_vec(), uid: uid(entropy)? };
        let encrypted = self.0.encrypt(request).await.map_err(|error| failed("encrypt", &error))?;
        Kept::checked(encrypted.into_inner())
    }

    async fn decrypt(&mut self, kept: &Kept, entropy: &dyn Entropy) -> Result<Key, String> {
        let request = DecryptRequest {
            ciphertext: kept.ciphertext.0.clone(),
            uid: uid(entropy)?,
            key_id: kept.key_id.clone(),
            annotations: kept
                .annotations
                .iter()
                .map(|(name, value)| (name.clone(), value.0.clone()))
                .collect(),
        };
        let decrypted = self.0.decrypt(request).await.map_err(|error| failed("decrypt", &error))?;
        let plaintext = SecretBytes::new(std::mem::take(&mut decrypted.into_inner().plaintext));
        Key::try_from(plaintext.expose())
            .map_err(|_| "the KMS plugin decrypts to something that is no key".into())
    }
}

impl Kept {
    fn checked(response: EncryptResponse) -> Result<Self, String> {
        check_key_id(&response.key_id)?;
        if !(1..=CIPHERTEXT_BYTES_MAX).contains(&response.ciphertext.len()) {
            return Err(format!(
                "the KMS plugin gives a ciphertext that is empty or above {CIPHERTEXT_BYTES_MAX} bytes"
            ));
        }
        let annotations_bytes: usize =
            response.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        if annotations_bytes > ANNOTATIONS_BYTES_MAX {
            return Err(format!("the KMS plugin gives annotations above {ANNOTATIONS_BYTES_MAX} bytes"));
        }
        if let Some(name) = response.annotations.keys().find(|name| !is_domain_name(name)) {
            let name = foreign_text::quoted(name);
            return Err(format!(
                "the KMS plugin gives an annotation {name}, which is not a full domain name"
            ));
        }
        let annotations = response.annotations.into_iter().map(|(name, value)| (name, Base64Bytes(value)));
        Ok(Self {
            key_id: response.key_id,
            ciphertext: Base64Bytes(response.ciphertext),
            annotations: annotations.collect(),
        })
    }
}

fn check_key_id(key_id: &str) -> Result<(), String> {
    match key_id.len() {
        1..=KEY_ID_BYTES_MAX => Ok(()),
        _ => Err(format!("the KMS plugin gives a key_id that is empty or above {KEY_ID_BYTES_MAX} bytes")),
    }
}

/// Fully qualified, in the letters of RFC 1123, with or without the dot at the end.
fn is_domain_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

/// The plugin's own words stay out: they are for its log.
fn failed(what: &str, status: &tonic::Status) -> String {
    format!("the KMS plugin failed to {what} ({:?}): see the plugin's log", status.code())
}

fn uid(entropy: &dyn Entropy) -> Result<String, String> {
    entropy.uuid().map(|id| id.to_string()).map_err(|error| error.to_string())
}
