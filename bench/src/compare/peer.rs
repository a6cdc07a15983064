//! The peer's side: OpenBao as a process, and callers that ask it over HTTPS.

mod declare;
mod process;

use hyper::header::HeaderValue;
use serde::Deserialize;

pub(super) use self::process::{Peer, Setup, Storage, version};
use super::{
    http::Connection,
    stored::{self, FIELD},
    tokens::{PodToken, service_account},
};

/// Which kind of token the peer gives for a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Stored, with a lease.
    Service,
    /// Encrypted and carried by the caller; nothing is stored.
    Batch,
}

impl TokenKind {
    /// As the peer calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Batch => "batch",
        }
    }
}

/// Where the KV engine is mounted.
const MOUNT: &str = "secret";

/// Who asks the peer, over a connection of its own.
pub(crate) struct PeerCaller {
    connection: Connection,
    /// For reads and writes.
    operator: HeaderValue,
    tokens: TokenKind,
}

#[derive(Deserialize)]
struct Login<'a> {
    #[serde(borrow)]
    auth: Auth<'a>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    client_token: &'a str,
}

#[derive(Deserialize)]
struct Secret<'a> {
    #[serde(borrow)]
    data: Version<'a>,
}

#[derive(Deserialize)]
struct Version<'a> {
    #[serde(borrow)]
    data: Fields<'a>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    value: &'a str,
}

#[derive(Deserialize)]
struct Written {
    data: WrittenVersion,
}

#[derive(Deserialize)]
struct WrittenVersion {
    version: u32,
}

#[derive(Deserialize)]
struct Listing {
    data: Keys,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

impl PeerCaller {
    /// What a pod's start asks for: a login and one read for each secret, one after the other.
    ///
    /// # Errors
    /// Says what failed or what is wrong with the answer.
    pub(super) async fn issue(&mut self, token: &PodToken, secrets: &[u32]) -> Result<(), String> {
        let token = self.login(token).await?;
        for secret in secrets {
            self.read_as(&token, *secret).await?;
        }
        Ok(())
    }

    /// A login with a pod's token. Gives the token that the peer answers with.
    ///
    /// # Errors
    /// As for `issue`.
    pub(super) async fn login(&mut self, token: &PodToken) -> Result<HeaderValue, String> {
        let role = declare::role(&service_account(token.app), self.tokens);
        let body = format!(r#"{{"role":"{role}","jwt":"{}"}}"#, token.jwt);
        let body = self.connection.ok("POST", "auth/jwt/login", None, body).await?;
        let login: Login<'_> = parse(&body)?;
        HeaderValue::from_str(login.auth.client_token).map_err(|_| "a token that is not ASCII".into())
    }

    /// Reads one secret.
    ///
    /// # Errors
    /// As for `issue`.
    pub(super) async fn read(&mut self, secret: u32) -> Result<(), String> {
        let operator = self.operator.clone();
        self.read_as(&operator, secret).await
    }

    async fn read_as(&mut self, token: &HeaderValue, secret: u32) -> Result<(), String> {
        let path = format!("{MOUNT}/data/{}", stored::path(secret));
        let body = self.connection.ok("GET", &path, Some(token), String::new()).await?;
        let answer: Secret<'_> = parse(&body)?;
        if stored::is_value(secret, answer.data.data.value.as_bytes()) {
            return Ok(());
        }
        Err(format!("{path} has another value than was written"))
    }

    /// Writes one secret.
    ///
    /// # Errors
    /// As for `issue`.
    pub(super) async fn write(&mut self, secret: u32) -> Result<(), String> {
        let path = format!("{MOUNT}/data/{}", stored::path(secret));
        let body = format!(r#"{{"data":{{"{FIELD}":"{}"}}}}"#, stored::value(secret));
        let body = self.connection.ok("POST", &path, Some(&self.operator), body).await?;
        let written: Written = parse(&body)?;
        if written.data.version > 0 { Ok(()) } else { Err("a write without a version".into()) }
    }

    /// How many secrets there are below a prefix, by one call: `LIST` for a folder, `SCAN` for all below it.
    ///
    /// # Errors
    /// As for `issue`.
    pub(super) async fn list(&mut self, prefix: &str, is_folder: bool) -> Result<usize, String> {
        let method = if is_folder { "LIST" } else { "SCAN" };
        let path = format!("{MOUNT}/metadata/{prefix}");
        let body = self.connection.ok(method, &path, Some(&self.operator), String::new()).await?;
        let listing: Listing = parse(&body)?;
        Ok(listing.data.keys.len())
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("an answer of another shape: {error}"))
}
