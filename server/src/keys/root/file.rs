//! Root keys in mounted files: 32 bytes in base64, read anew at each use, so that a changed mount counts at once.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::{envelope::root_key_id, secret::Key};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::config::RootKeyFiles;

pub(super) struct FileRoot(RootKeyFiles);

impl FileRoot {
    pub(super) fn new(files: &RootKeyFiles) -> Self {
        Self(files.clone())
    }

    pub(super) async fn current(&self) -> Result<Key, String> {
        read(&self.0.current).await
    }

    /// The key of that id, of either file. One that cannot be read does not keep the other from serving.
    pub(super) async fn open(&self, id: Uuid) -> Result<Key, String> {
        let mut unreadable = None;
        for path in [Some(&self.0.current), self.0.previous.as_ref()].into_iter().flatten() {
            match read(path).await {
                Ok(key) if root_key_id(&key) == id => return Ok(key),
                Ok(_) => {}
                Err(reason) => unreadable = unreadable.or(Some(reason)),
            }
        }
        let why = unreadable.unwrap_or_else(|| "check the root key's files".to_owned());
        Err(format!("no configured root key file holds the key {}: {why}", id.simple()))
    }
}

async fn read(path: &Path) -> Result<Key, String> {
    let text = tokio::fs::read(path)
        .await
        .map(Zeroizing::new)
        .map_err(|error| format!("the root key file {} cannot be read: {error}", path.display()))?;
    let wrong = || format!("the root key file {} must hold 32 bytes in base64", path.display());
    // Decoding into a buffer of fixed size leaves no copy behind in a grown one.
    let mut bytes = Zeroizing::new([0; Key::LEN_BYTES + 1]);
    match STANDARD.decode_slice(text.trim_ascii(), &mut bytes[..]) {
        Ok(Key::LEN_BYTES) => Key::try_from(&bytes[..Key::LEN_BYTES]).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}
