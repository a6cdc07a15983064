//! Root keys in files: 32 bytes in base64, never in the database.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::{envelope::root_key_id, secret::Key};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{config, error::Error};

/// The root keys that the files hold now: the one in use, and the one before it while it is being replaced.
pub struct RootKeys {
    current: Key,
    previous: Option<Key>,
}

impl RootKeys {
    /// Reads the files.
    ///
    /// # Errors
    /// `Sealed`, naming the file, when one cannot be read or does not hold 32 bytes in base64.
    pub fn load(config: &config::RootKey) -> Result<Self, Error> {
        let config::RootKey::File(files) = config;
        let previous = files.previous.as_deref().map(read).transpose()?;
        Ok(Self { current: read(&files.current)?, previous })
    }

    /// The key in use, with its id.
    pub fn current(&self) -> (&Key, Uuid) {
        (&self.current, root_key_id(&self.current))
    }

    /// The key of that id.
    ///
    /// # Errors
    /// `Sealed` when no file holds it.
    pub fn by_id(&self, id: Uuid) -> Result<&Key, Error> {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| root_key_id(key) == id)
            .ok_or_else(|| {
                Error::Sealed(format!(
                    "no configured root key has the id {}: check the root_key files",
                    id.simple()
                ))
            })
    }
}

fn read(path: &Path) -> Result<Key, Error> {
    let text = fs::read(path).map(Zeroizing::new).map_err(|error| {
        Error::Sealed(format!("the root key file {} cannot be read: {error}", path.display()))
    })?;
    let wrong =
        || Error::Sealed(format!("the root key file {} must hold 32 bytes in base64", path.display()));
    // Decoding into a buffer of fixed size leaves no copy behind in a grown one.
    let mut bytes = Zeroizing::new([0; Key::LEN_BYTES + 1]);
    match STANDARD.decode_slice(text.trim_ascii(), &mut bytes[..]) {
        Ok(Key::LEN_BYTES) => Key::try_from(&bytes[..Key::LEN_BYTES]).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(current: &str, previous: Option<&str>) -> Result<RootKeys, String> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let files = config::RootKeyFiles {
            current: write("current", current),
            previous: previous.map(|text| write("previous", text)),
        };
        RootKeys::load(&config::RootKey::File(files)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_found_by_the_id_computed_from_it() {
        let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
        let keys = load(&format!("{one}\n"), Some(&two)).unwrap();
        let id = root_key_id(&Key::from_bytes(&[2; 32]));
        assert_eq!(keys.by_id(id).ok().unwrap().expose(), &[2; 32]);
        assert_eq!(keys.current().1, root_key_id(&Key::from_bytes(&[1; 32])));
        assert!(keys.by_id(Uuid::nil()).is_err());
    }

    #[test]
    fn attack_14_a_file_that_is_not_a_key_is_refused_without_showing_it() {
        for text in
            ["", "c2hvcnQ=", "not base64 at all, but long enough to be a key", &STANDARD.encode([0; 33])]
        {
            let error = load(text, None).err().unwrap();
            assert!(error.contains("must hold 32 bytes in base64"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }
}
