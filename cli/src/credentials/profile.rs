//! What `keyfold login` was told, for each server: in one file, without any token.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Places, TokenCommand, private::PrivateFolder, store::Store};
use crate::exit::{Exit, Failure};

const FILE: &str = "profiles.yaml";

/// Longest file that is read: hundreds of profiles with an authority or two each.
const FILE_LEN_MAX: usize = 1024 * 1024;

/// How the operator signs in to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The server's address, as `--server` takes it.
    pub server: String,
    /// The authorities that its certificate must chain to, in PEM: those of signing in. A file's path would give the
    /// token to whoever replaces the file.
    pub ca_pem: String,
    /// What gives a token.
    pub source: Source,
    /// What keeps it between calls.
    pub store: Store,
}

/// What gives a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A command that prints one.
    Command(TokenCommand),
    /// A file that somebody else keeps fresh; absolute.
    File(PathBuf),
    /// Standard input of `keyfold login`: there is no other than the kept one.
    Stdin,
}

/// All profiles of the user.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    profiles: Vec<Profile>,
}

impl Profiles {
    /// Reads them; there are none where there is no file.
    ///
    /// # Errors
    /// When the file is damaged, or somebody else may have written it: it names commands that are run.
    pub fn load(places: &Places) -> Result<Self, Failure> {
        match PrivateFolder::open(&places.config).map_err(unreadable)? {
            Some(folder) => Self::read(&folder, &places.config),
            None => Ok(Self::default()),
        }
    }

    /// The profile of a server.
    pub fn of(&self, server: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| same_server(&profile.server, server))
    }

    /// All of them, in the order of signing in.
    pub fn all(&self) -> &[Profile] {
        &self.profiles
    }

    /// Reads them, and keeps other processes from changing them, and tokens with them, until this is dropped.
    ///
    /// # Errors
    /// As for `load`, or when there can be no such folder.
    pub fn lock(places: &Places) -> Result<LockedProfiles, Failure> {
        let folder = PrivateFolder::open_or_make(&places.config).map_err(unreadable)?;
        folder.lock().map_err(unreadable)?;
        let profiles = Self::read(&folder, &places.config)?;
        Ok(LockedProfiles { folder, profiles })
    }

    fn take(&mut self, server: &str) -> Option<Profile> {
        let place = self.profiles.iter().position(|profile| same_server(&profile.server, server))?;
        Some(self.profiles.remove(place))
    }

    fn read(folder: &PrivateFolder, path: &Path) -> Result<Self, Failure> {
        let Some(yaml) = folder.read(OsStr::new(FILE), FILE_LEN_MAX).map_err(unreadable)? else {
            return Ok(Self::default());
        };
        serde_saphyr::from_slice(&yaml).map_err(|error| {
            let reason = error.to_string();
            let first = reason.lines().next().unwrap_or_default();
            unreadable(format!("{} is damaged: {first}", path.join(FILE).display()))
        })
    }
}

/// All profiles of the user, which no other process changes meanwhile.
pub struct LockedProfiles {
    folder: PrivateFolder,
    profiles: Profiles,
}

impl LockedProfiles {
    /// As they are.
    pub fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Puts a profile in the place of the one for the same server, which it gives back.
    ///
    /// # Errors
    /// When the file cannot be written, or would be too long to be read again.
    pub fn put(&mut self, profile: Profile) -> Result<Option<Profile>, Failure> {
        let before = self.profiles.take(&profile.server);
        self.profiles.profiles.push(profile);
        self.write().map(|()| before)
    }

    /// Removes the profile of a server.
    ///
    /// # Errors
    /// As for `put`.
    pub fn remove(&mut self, server: &str) -> Result<(), Failure> {
        self.profiles.take(server);
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let yaml = serde_saphyr::to_string(&self.profiles).map_err(|error| unwritable(&error.to_string()))?;
        if yaml.len() > FILE_LEN_MAX {
            let why = format!("they would be longer than {} KiB", FILE_LEN_MAX / 1024);
            return Err(
                unwritable(&why).advise("Sign in with a CA file of the server's own authorities alone")
            );
        }
        self.folder.write(OsStr::new(FILE), yaml.as_bytes()).map_err(|reason| unwritable(&reason))
    }
}

/// Whether two addresses are one server's: host names know no case.
pub fn same_server(a: &str, b: &str) -> bool {
    a.trim_end_matches('/').eq_ignore_ascii_case(b.trim_end_matches('/'))
}

fn unreadable(reason: String) -> Failure {
    Failure::usage("cannot read the profiles of keyfold login", reason)
        .advise("Put it right or remove it, or give --server, --ca-file and --token-file")
}

fn unwritable(reason: &str) -> Failure {
    Failure::new(Exit::Internal, "cannot write the profiles of keyfold login", reason)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;

    fn places(folder: &tempfile::TempDir) -> Places {
        Places { config: folder.path().join("config/keyfold"), tokens: folder.path().join("run/keyfold") }
    }

    fn profile(server: &str, source: Source, store: Store) -> Profile {
        Profile { server: server.into(), ca_pem: "BEGIN\nMIIB\nEND\n".into(), source, store }
    }

    fn put(places: &Places, profile: Profile) -> Result<Option<Profile>, Failure> {
        Profiles::lock(places).and_then(|mut locked| locked.put(profile))
    }

    fn command() -> Source {
        Source::Command(TokenCommand::parse("get-token --for 'a b'", Duration::from_secs(120)).unwrap())
    }

    #[test]
    fn profiles_are_kept_one_for_each_server() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(&folder);
        assert!(Profiles::load(&places).unwrap().all().is_empty());
        let a = profile("https://a:8443", command(), Store::Keyring);
        let b = profile("https://b:8443", Source::File("/run/token".into()), Store::None);
        let newer = profile("https://A:8443/", Source::Stdin, Store::File("/run/keyfold/x".into()));
        assert_eq!(put(&places, a.clone()).unwrap(), None);
        assert_eq!(put(&places, b.clone()).unwrap(), None);
        assert_eq!(Profiles::load(&places).unwrap().of("https://a:8443"), Some(&a));
        assert_eq!(put(&places, newer.clone()).unwrap(), Some(a));
        let loaded = Profiles::load(&places).unwrap();
        assert_eq!(loaded.all(), [b, newer]);
        assert_eq!(loaded.of("https://c:8443"), None);
        insta::assert_snapshot!(fs::read_to_string(places.config.join(FILE)).unwrap(), @r"
        profiles:
        - server: https://b:8443
          ca_pem: |
            BEGIN
            MIIB
            END
          source:
            file: /run/token
          store: none
        - server: https://A:8443/
          ca_pem: |
            BEGIN
            MIIB
            END
          source: stdin
          store:
            file: /run/keyfold/x
        ");
        for _ in 0..2 {
            Profiles::lock(&places).unwrap().remove("https://a:8443").unwrap();
            assert_eq!(Profiles::load(&places).unwrap().all().len(), 1);
        }
    }

    #[test]
    fn signing_in_to_many_servers_at_once_loses_none() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(&folder);
        std::thread::scope(|scope| {
            for n in 0..16 {
                let places = &places;
                scope.spawn(move || {
                    put(places, profile(&format!("https://{n}:1"), Source::Stdin, Store::None)).unwrap()
                });
            }
        });
        assert_eq!(Profiles::load(&places).unwrap().all().len(), 16);
    }

    #[test]
    fn profiles_that_could_not_be_read_again_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(&folder);
        put(&places, profile("https://a:1", Source::Stdin, Store::None)).unwrap();
        let mut long = profile("https://b:1", Source::Stdin, Store::None);
        long.ca_pem = "A".repeat(FILE_LEN_MAX);
        insta::assert_snapshot!(put(&places, long).unwrap_err(), @"cannot write the profiles of keyfold login: they would be longer than 1024 KiB. Sign in with a CA file of the server's own authorities alone.");
        assert_eq!(Profiles::load(&places).unwrap().all().len(), 1);
    }

    #[test]
    fn profiles_that_others_may_have_written_or_that_are_damaged_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(&folder);
        put(&places, profile("https://a:1", command(), Store::None)).unwrap();
        let file = places.config.join(FILE);
        let refusal = || {
            let text = Profiles::load(&places).unwrap_err().to_string();
            text.replace(folder.path().to_str().unwrap(), "")
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let open = refusal();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "profiles: [{server: x}]").unwrap();
        insta::assert_snapshot!(format!("{open}\n{}", refusal()), @r"
        cannot read the profiles of keyfold login: /config/keyfold/profiles.yaml is open to others: its mode is 0644 where it must be 0600. Put it right or remove it, or give --server, --ca-file and --token-file.
        cannot read the profiles of keyfold login: /config/keyfold/profiles.yaml is damaged: error: line 1 column 13: missing field `ca_pem`. Put it right or remove it, or give --server, --ca-file and --token-file.
        ");
    }
}
