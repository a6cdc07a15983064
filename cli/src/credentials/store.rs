//! What keeps a token between calls.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use keyfold_core::secret::SecretBytes;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Places, TOKEN_LEN_MAX, keyring, one_token, private::PrivateFolder};
use crate::output;

/// What keeps a server's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// The kernel's keyring.
    Keyring,
    /// This file, of mode 0600. Its path was settled by `keyfold login`, since XDG_RUNTIME_DIR is not set everywhere.
    File(PathBuf),
    /// Nothing.
    None,
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// The kernel's keyring; an error where it cannot be used
    Keyring,
    /// A file of mode 0600 below XDG_RUNTIME_DIR, or else XDG_STATE_HOME
    File,
    /// Nothing: the token command runs at each call
    None,
}

impl Store {
    /// Keeps a server's first token as the operator chose: without a choice in the keyring, or, where that cannot be
    /// used, in a file, and says so.
    ///
    /// # Errors
    /// Why it cannot be kept.
    pub fn first(
        choice: Option<Choice>,
        places: &Places,
        server: &str,
        token: &SecretBytes,
    ) -> Result<Self, String> {
        let file = || Self::File(places.tokens.join(file_name(server)));
        let store = match choice {
            Some(Choice::None) => Self::None,
            Some(Choice::File) => file(),
            Some(Choice::Keyring) => Self::Keyring,
            None => match Self::Keyring.keep(server, token) {
                Ok(()) => return Ok(Self::Keyring),
                Err(reason) => {
                    let file = file();
                    output::note(&format!("{reason}: the token is kept in {}", file.place()));
                    file
                }
            },
        };
        store.keep(server, token).map(|()| store)
    }

    /// The token kept for a server, if there is one.
    ///
    /// # Errors
    /// Why it cannot be had: no keyring here; the file is not its owner's alone.
    pub fn token(&self, server: &str) -> Result<Option<SecretBytes>, String> {
        match self {
            Self::Keyring => keyring::token(server),
            Self::File(path) => {
                let (folder, name) = parts(path)?;
                let Some(folder) = PrivateFolder::open(folder)? else { return Ok(None) };
                let Some(bytes) = folder.read(name, TOKEN_LEN_MAX)? else { return Ok(None) };
                one_token(&bytes).map(Some).map_err(|reason| format!("{} {reason}", path.display()))
            }
            Self::None => Ok(None),
        }
    }

    /// Keeps a token for a server in place of the one before.
    ///
    /// # Errors
    /// Why it cannot be kept.
    pub fn keep(&self, server: &str, token: &SecretBytes) -> Result<(), String> {
        match self {
            Self::Keyring => keyring::keep(server, token),
            Self::File(path) => {
                let (folder, name) = parts(path)?;
                PrivateFolder::open_or_make(folder)?.write(name, token.expose())
            }
            Self::None => Ok(()),
        }
    }

    /// Removes the token kept for a server, if there is one.
    ///
    /// # Errors
    /// Why it cannot be removed.
    pub fn forget(&self, server: &str) -> Result<(), String> {
        match self {
            Self::Keyring => keyring::forget(server),
            Self::File(path) => {
                let (folder, name) = parts(path)?;
                PrivateFolder::open(folder)?.map_or(Ok(()), |folder| folder.remove(name))
            }
            Self::None => Ok(()),
        }
    }

    /// Where the token is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Keyring => "the kernel's keyring".into(),
            Self::File(path) => path.display().to_string(),
            Self::None => "no place".into(),
        }
    }
}

/// One for each server: addresses hold characters that file names cannot.
fn file_name(server: &str) -> String {
    format!("token-{}", hex::encode(&digest(&SHA256, server.as_bytes()).as_ref()[..16]))
}

fn parts(path: &Path) -> Result<(&Path, &OsStr), String> {
    path.parent().zip(path.file_name()).ok_or_else(|| format!("{} is not a file's path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &tempfile::TempDir) -> Places {
        Places { config: folder.path().join("config"), tokens: folder.path().join("run/keyfold") }
    }

    #[test]
    fn each_store_keeps_and_forgets() {
        let folder = tempfile::tempdir().unwrap();
        let server = format!("https://store-test:{}", std::process::id());
        let token = SecretBytes::from("kfa_abc".to_owned());
        for (choice, kept) in [
            (None, true),
            (Some(Choice::Keyring), true),
            (Some(Choice::File), true),
            (Some(Choice::None), false),
        ] {
            let store = Store::first(choice, &places(&folder), &server, &token).unwrap();
            assert_eq!(store.token(&server).unwrap().is_some_and(|found| found == token), kept, "{choice:?}");
            for _ in 0..2 {
                store.forget(&server).unwrap();
                assert!(store.token(&server).unwrap().is_none());
            }
        }
    }

    /// The kernel's limit for a key is 32767 bytes: a longer token is one that its keyring really refuses.
    #[test]
    fn what_the_keyring_does_not_take_goes_into_a_file_unless_the_keyring_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let server = format!("https://fallback-test:{}", std::process::id());
        let token = SecretBytes::new(vec![b'x'; 40_000]);
        let store = Store::first(None, &places(&folder), &server, &token).unwrap();
        assert_eq!(store, Store::File(folder.path().join("run/keyfold").join(file_name(&server))));
        assert!(store.token(&server).unwrap().is_some_and(|kept| kept == token));
        let error = Store::first(Some(Choice::Keyring), &places(&folder), &server, &token).unwrap_err();
        assert_eq!(error, "the kernel's keyring does not take a token of this length");
    }

    #[test]
    fn a_kept_file_that_holds_no_token_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::first(
            Some(Choice::File),
            &places(&folder),
            "https://a:1",
            &SecretBytes::from("x".to_owned()),
        )
        .unwrap();
        store.keep("https://a:1", &SecretBytes::from("planted value".to_owned())).unwrap();
        let Err(reason) = store.token("https://a:1") else { panic!("taken") };
        assert!(reason.ends_with("does not hold one word of visible ASCII characters"), "{reason}");
    }
}
