//! What is measured: a server on Postgres, a cluster's issuer and a provider, and what is declared and stored there.

use std::fs;

use fastrand::Rng;
use keyfold::dev::{
    issuer::Issuer,
    kubelet::Pod,
    pki::Authority,
    server::Server,
    tokens::{AUDIENCE, Minter, SigningKey},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    channel,
    keyfold::v1::{Field, PutSecretRequest, secret_service_client::SecretServiceClient},
};
use keyfold_tests::{Database, PEOPLE, People, server_setup};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::{
    pairs::{self, Pair},
    probe::{Prepared, Probe, bearing},
};

/// How many names exist, and how many others do not. So many that none is refused more than 16 times a second: beyond
/// that refusals are folded, and arm A, which is asked twice as often, would be the faster one.
const NAMES: usize = 256;
/// The driver's node, and that of pods that it serves.
pub(super) const NODE: &str = "dev-node";

/// Real parts, stopped when dropped.
pub(crate) struct Stand {
    pub(super) minter: Minter,
    pub(super) people: People,
    pub(super) admin_token: String,
    pub(super) database: Database,
    channel: Channel,
    server: Server,
    _issuer: Issuer,
    _folder: TempDir,
}

/// Random names of one length, half of which stand for roles, secrets and subjects that exist.
pub(super) struct Names {
    pub(super) existing: Vec<String>,
    pub(super) missing: Vec<String>,
}

impl Stand {
    /// Starts everything, and gives the pairs to compare.
    ///
    /// # Panics
    /// When a part does not start or refuses.
    pub(crate) async fn start(rng: &mut Rng) -> (Self, Vec<Pair>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Database::shared();
        let setup = server_setup(folder.path(), "server", &database);
        let mut server = Server::start(&setup).await.expect("the server starts");
        server.initialise().await.expect("the installation can be initialised");

        let authority = Authority::new("Issuer", SystemClock.now()).expect("a CA");
        let key = SigningKey::generate().expect("an RSA key");
        let issuer = Issuer::start(&authority, vec![key.jwk()]).await.expect("the issuer starts");
        let minter = Minter { issuer: issuer.url().to_owned(), key };
        let spec = json!({
            "type": "kubernetes",
            "url": issuer.url(),
            "audiences": [AUDIENCE],
            "keys": {"discovery": {"caBundle": authority.certificate_pem()}},
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
        });
        server.apply("Issuer", "dev", &spec).await.expect("the issuer can be applied");
        let people = People::join(&server, folder.path()).await;

        let ca = fs::read(setup.ca_file()).expect("the CA can be read");
        let channel = channel::connect_lazy(&setup.url(), &ca).expect("the URL is good");
        let admin_token = fs::read_to_string(setup.admin_token_file()).expect("the token can be read");
        let stand =
            Self { minter, people, admin_token, database, channel, server, _issuer: issuer, _folder: folder };
        let names = names(rng);
        stand.declare(&names.existing).await;
        let pairs = pairs::all(&stand, &names);
        (stand, pairs)
    }

    /// The pods `own/own*` may read `own/*` under the role `own`; each of `names` is a secret `shop/NAME`, and a role for the
    /// service account `others/NAME`. The provider's subjects `own` and NAME may read `own/*`.
    async fn declare(&self, names: &[String]) {
        for keyspace in ["own", "shop"] {
            self.apply("Keyspace", keyspace, json!({})).await;
        }
        self.put("own/db").await;
        self.apply("AppRole", "own", app_role("own", "own*", "own/*")).await;
        for name in names {
            self.put(&format!("shop/{name}")).await;
            self.apply("AppRole", name, app_role("others", name, "shop/*")).await;
        }
        let subjects: Vec<_> = names.iter().map(String::as_str).chain(["own"]).collect();
        let operators = json!({
            "bind": [{"issuer": PEOPLE, "claims": {"sub": subjects}}],
            "grants": [{"path": "own/*", "allow": ["read"]}],
        });
        self.apply("OperatorRole", "own", operators).await;
    }

    async fn apply(&self, kind: &str, name: &str, spec: Value) {
        self.server.apply(kind, name, &spec).await.expect("the object can be applied");
    }

    async fn put(&self, path: &str) {
        let field = Field { name: "password".into(), value: b"one".to_vec() };
        let message = PutSecretRequest { path: path.into(), fields: vec![field], expected_version: None };
        let request = bearing(&self.admin_token, message);
        SecretServiceClient::new(self.channel.clone())
            .put_secret(request)
            .await
            .expect("the secret can be written");
    }

    /// The token of a pod with this service account.
    ///
    /// # Panics
    /// When there is no randomness.
    pub(super) fn pod_token(&self, namespace: &str, service_account: &str, node: &str) -> String {
        let pod = Pod {
            namespace: namespace.into(),
            name: format!("{service_account}-0"),
            service_account: service_account.into(),
            node: node.into(),
            fs_group: None,
        };
        let token = self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted");
        token.jwt.to_string()
    }

    /// The request, built.
    pub(crate) fn prepare(&self, probe: &Probe) -> Prepared {
        probe.prepare(&self.channel)
    }

    /// What a probe is answered, without its name.
    pub(crate) async fn answer(&self, probe: &Probe) -> String {
        match self.prepare(probe).send().await {
            Ok(()) => "granted".into(),
            Err(status) => format!("{:?}: {}", status.code(), status.message().replace(&probe.name, "NAME")),
        }
    }
}

fn app_role(namespace: &str, service_account: &str, path: &str) -> Value {
    json!({
        "bind": [{"issuer": "dev", "namespaces": [namespace], "serviceAccounts": [service_account]}],
        "grants": [{"path": path, "allow": ["read"]}],
    })
}

fn names(rng: &mut Rng) -> Names {
    let mut found: Vec<String> = Vec::new();
    while found.len() < 2 * NAMES {
        let name: String = (0..12).map(|_| rng.lowercase()).collect();
        if !found.contains(&name) {
            found.push(name);
        }
    }
    let missing = found.split_off(NAMES);
    Names { existing: found, missing }
}
