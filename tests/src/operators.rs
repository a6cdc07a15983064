//! People: an OpenID provider, and operators who come with its tokens.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use keyfold::{
    args::{Format, Global},
    client::Client,
    dev::{
        issuer::Issuer,
        pki::Authority,
        server::{Server, Setup},
        tokens::{AUDIENCE, SigningKey},
    },
};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Cli;

/// The name of the provider's issuer object.
pub const PEOPLE: &str = "people";

/// An OpenID provider, which ends when dropped, and the issuer object `people` for it.
pub struct People {
    /// The provider.
    pub provider: Issuer,
    /// The key that signs its tokens.
    pub key: SigningKey,
    setup: Setup,
    folder: PathBuf,
}

/// Somebody with a token of the provider.
pub struct Person {
    /// What entries and approval rules call them: `people/NAME`.
    pub name: String,
    /// The file with their token, which holds for an hour.
    pub token_file: PathBuf,
    setup: Setup,
}

impl People {
    /// Starts the provider and makes it known to the server as the administrator. Token files go into `folder`.
    ///
    /// # Panics
    /// When it does not start, or the server refuses it.
    pub async fn join(server: &Server, folder: &Path) -> Self {
        let authority = Authority::new("Test provider", SystemClock.now()).expect("a CA");
        let key = SigningKey::generate().expect("an RSA key");
        let provider = Issuer::start(&authority, vec![key.jwk()]).await.expect("the provider starts");
        let spec = json!({
            "type": "oidc",
            "url": provider.url(),
            "audiences": [AUDIENCE],
            "keys": {"discovery": {"caBundle": authority.certificate_pem()}},
        });
        server.apply("Issuer", PEOPLE, &spec).await.expect("the issuer can be applied");
        let folder = folder.join("people");
        fs::create_dir(&folder).expect("a folder");
        Self { provider, key, setup: server.setup().clone(), folder }
    }

    /// A token of `subject` with these groups, good for an hour.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn token(&self, subject: &str, groups: &[&str]) -> String {
        let now = SystemClock.now().unix_timestamp();
        self.token_of(&json!({
            "iss": self.provider.url(), "aud": AUDIENCE, "sub": subject, "groups": groups,
            "iat": now, "exp": now + 3600, "jti": SystemEntropy.uuid().expect("randomness"),
        }))
    }

    /// A token of exactly these claims.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn token_of(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "kid": self.key.kid(), "typ": "JWT"});
        self.key.sign(&header, claims).expect("a token can be signed").to_string()
    }

    /// Somebody whose `sub` is `name`, with these groups.
    ///
    /// # Panics
    /// When the token's file cannot be written.
    pub fn person(&self, name: &str, groups: &[&str]) -> Person {
        let token_file = self.folder.join(format!("{name}.jwt"));
        fs::write(&token_file, self.token(name, groups)).expect("the token can be written");
        Person { name: format!("{PEOPLE}/{name}"), token_file, setup: self.setup.clone() }
    }

    /// The client of `person(name, groups)`.
    ///
    /// # Panics
    /// When the token's file cannot be written.
    pub fn operator_named(&self, name: &str, groups: &[&str]) -> Client {
        self.person(name, groups).client()
    }
}

impl Person {
    /// Their client of the server.
    ///
    /// # Panics
    /// When the server's files cannot be read.
    pub fn client(&self) -> Client {
        client(&self.setup, &self.token_file, None)
    }

    /// The same, with the approval of this plan on every call.
    ///
    /// # Panics
    /// When the server's files cannot be read.
    pub fn client_with(&self, approval: Uuid) -> Client {
        client(&self.setup, &self.token_file, Some(approval))
    }

    /// Their client of another replica, with the approval of a plan if there is one.
    ///
    /// # Panics
    /// When the server's files cannot be read.
    pub fn client_of(&self, replica: &Setup, approval: Option<Uuid>) -> Client {
        client(replica, &self.token_file, approval)
    }

    /// Their shell in `folder`.
    pub fn cli(&self, folder: &Path) -> Cli {
        Cli::nobody(&self.setup, folder).with("KEYFOLD_TOKEN_FILE", self.token_file.to_str())
    }
}

fn client(setup: &Setup, token_file: &Path, approval: Option<Uuid>) -> Client {
    Client::operator(&Global {
        server: Some(setup.url()),
        ca_file: Some(setup.ca_file()),
        token_file: Some(token_file.to_owned()),
        approval,
        output: Format::Table,
        timeout: Duration::from_secs(30),
    })
    .expect("the files are there")
}
