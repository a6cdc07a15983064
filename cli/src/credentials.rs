//! Where the operator's token comes from: a file, a command, or what `keyfold login` was given on standard input. What
//! `login` was told stands in a profile; the tokens themselves are kept elsewhere (see [`Store`]).

mod command;
mod jwt;
mod keyring;
pub(crate) mod private;
mod profile;
mod store;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use etcetera::{BaseStrategy as _, base_strategy::Xdg};
use keyfold_core::{clock::Clock, secret::SecretBytes};
use zeroize::Zeroizing;

pub use self::{
    command::TokenCommand,
    profile::{Profile, Profiles, Source, same_server},
    store::{Choice, Store},
};
use crate::{
    exit::{Exit, Failure, io_reason},
    output,
};

/// Longest token that is read. Kubernetes' projected tokens and those of OIDC providers have 1 to 4 KiB.
pub const TOKEN_LEN_MAX: usize = 64 * 1024;

const NO_CLIENT: &str = "cannot call the server";
const NO_TOKEN: &str = "cannot get the operator's token";

/// The folders of the user whose tokens these are (XDG Base Directory Specification 0.8).
#[derive(Clone, Debug)]
pub struct Places {
    /// Holds the profiles.
    pub config: PathBuf,
    /// Holds tokens that are kept in files.
    pub tokens: PathBuf,
}

impl Places {
    /// `keyfold` below `$XDG_CONFIG_HOME`, and below `$XDG_RUNTIME_DIR`, which goes when the user signs out, or
    /// `$XDG_STATE_HOME` where there is no such folder.
    ///
    /// # Errors
    /// When the user has no home folder.
    pub fn of_user() -> Result<Self, Failure> {
        let user = Xdg::new().map_err(|error| Failure::new(Exit::Internal, NO_CLIENT, error.to_string()))?;
        let runtime = user.runtime_dir().filter(|folder| folder.is_dir());
        let state = || user.state_dir().unwrap_or_else(|| user.home_dir().join(".local/state"));
        Ok(Self {
            config: user.config_dir().join("keyfold"),
            tokens: runtime.unwrap_or_else(state).join("keyfold"),
        })
    }
}

/// A token to call with.
pub struct Obtained {
    /// The token.
    pub token: SecretBytes,
    /// How to get a newer one, should the server refuse this one.
    pub renewal: Option<Renewal>,
}

/// The way to a newer token than one that was kept from an earlier call.
pub struct Renewal {
    places: Places,
    profile: Profile,
    command: TokenCommand,
}

impl Renewal {
    /// Runs the token command, and keeps the token that it gives where the profile says. A token that cannot be kept
    /// is good for this call all the same.
    ///
    /// # Errors
    /// When the command gives no token.
    pub fn run(&self) -> Result<SecretBytes, Failure> {
        let token = self.command.run()?;
        if let Err(reason) = self.keep(&token) {
            output::note(&format!("warning: the new token is not kept: {reason}"));
        }
        Ok(token)
    }

    /// Only where the profile still stands: the command may have taken minutes, and a token that is kept after
    /// `logout` would stay.
    fn keep(&self, token: &SecretBytes) -> Result<(), String> {
        let Profile { server, store, .. } = &self.profile;
        if *store == Store::None {
            return Ok(());
        }
        let locked = Profiles::lock(&self.places).map_err(|failure| failure.to_string())?;
        if locked.profiles().of(server) != Some(&self.profile) {
            return Err("you signed out, or in anew, while it was fetched".into());
        }
        store.keep(server, token)
    }
}

impl Profile {
    /// A token from this profile's source: the kept one while it is of use.
    ///
    /// # Errors
    /// When the source gives none, or the file that keeps it is not as it must be.
    pub fn token(&self, places: &Places, clock: &dyn Clock) -> Result<Obtained, Failure> {
        match &self.source {
            Source::File(file) => Ok(Obtained { token: read_token(file)?, renewal: None }),
            Source::Command(command) => {
                let (places, profile) = (places.clone(), self.clone());
                let renewal = Renewal { places, profile, command: command.clone() };
                match self.kept_token(clock)? {
                    Some(token) => Ok(Obtained { token, renewal: Some(renewal) }),
                    None => Ok(Obtained { token: renewal.run()?, renewal: None }),
                }
            }
            Source::Stdin => match self.kept_token(clock)? {
                Some(token) => Ok(Obtained { token, renewal: None }),
                None => {
                    let why = "the token that login was given is over, or is no longer kept";
                    let what = format!("not signed in to {} any more", self.server);
                    Err(Failure::new(Exit::Refused, what, why)
                        .advise("Run keyfold login, or give --token-file"))
                }
            },
        }
    }

    /// The kept token, unless its end has come or is near.
    fn kept_token(&self, clock: &dyn Clock) -> Result<Option<SecretBytes>, Failure> {
        let kept = match self.store.token(&self.server) {
            Ok(kept) => kept,
            // A keyring is not everywhere where its user is, such as in a container. A file that is not as it was
            // left has been tampered with.
            Err(reason) if self.store == Store::Keyring => {
                output::note(&format!("warning: the kept token cannot be read: {reason}"));
                None
            }
            Err(reason) => {
                let advice = "See who changed it, remove it, and run keyfold login";
                return Err(Failure::usage(NO_TOKEN, reason).advise(advice));
            }
        };
        Ok(kept.filter(|token| jwt::is_fresh(token, clock.now())))
    }
}

/// The token in a file, without white space around it.
///
/// # Errors
/// When the file cannot be read, is empty, or does not hold a token: one word of visible ASCII characters.
pub fn read_token(file: &Path) -> Result<SecretBytes, Failure> {
    if file == Path::new("-") {
        return Err(Failure::usage(NO_CLIENT, "a token is not read from standard input")
            .advise("Name a file in --token-file"));
    }
    let bytes = File::open(file).and_then(read_bounded).map_err(|error| {
        let reason = format!("the token file {} cannot be read: {}", file.display(), io_reason(&error));
        Failure::usage(NO_CLIENT, reason)
    })?;
    one_token(&bytes)
        .map_err(|reason| Failure::usage(NO_CLIENT, format!("the token file {} {reason}", file.display())))
}

/// The token on standard input, read to its end.
///
/// # Errors
/// As for [`read_token`].
pub fn token_on_stdin() -> Result<SecretBytes, Failure> {
    let bytes = read_bounded(io::stdin())
        .map_err(|error| Failure::io("cannot read a token from standard input", &error))?;
    one_token(&bytes).map_err(|reason| Failure::usage(NO_TOKEN, format!("standard input {reason}")))
}

/// At most one byte more than a token may have. The buffer does not grow: that would leave a copy.
fn read_bounded(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_LEN_MAX + 1));
    from.take(TOKEN_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The one token in what a source gave.
fn one_token(bytes: &[u8]) -> Result<SecretBytes, &'static str> {
    let token = bytes.trim_ascii();
    if token.is_empty() {
        Err("is empty")
    } else if bytes.len() > TOKEN_LEN_MAX {
        Err("is longer than 64 KiB")
    } else if !token.iter().all(u8::is_ascii_graphic) {
        Err("does not hold one word of visible ASCII characters")
    } else {
        Ok(SecretBytes::new(token.to_vec()))
    }
}

#[cfg(test)]
mod tests;
