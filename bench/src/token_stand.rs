//! An authenticator with an issuer that it trusts, and tokens of pods.

use std::{fs, sync::Arc};

use keyfold::dev::{
    kubelet::Pod,
    tokens::{AUDIENCE, Minter, SigningKey},
};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    name::ObjectName,
    object::{Kind, Spec},
};
use keyfold_server::authn::{Authenticator, IssuerRecord, PodCaller};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The issuer's URL; nothing is asked there.
const URL: &str = "https://kubernetes.default.svc";

/// An authenticator, and who mints what it accepts.
pub(crate) struct TokenStand {
    authenticator: Authenticator,
    issuers: [IssuerRecord; 1],
    /// Signs with RS256 and 2048 bits.
    pub(crate) minter: Minter,
    driver_token: String,
    /// Holds the issuer's keys.
    _folder: TempDir,
}

impl TokenStand {
    /// With an issuer whose keys are a new one for RS256, and `more`, in the form of a JWKS.
    ///
    /// # Panics
    /// When there is no randomness, or no temporary folder.
    pub(crate) fn new(more: &[Value]) -> Self {
        let minter = Minter { issuer: URL.into(), key: SigningKey::generate().expect("an RSA key") };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut keys = vec![minter.key.jwk()];
        keys.extend_from_slice(more);
        fs::write(folder.path().join("jwks.json"), json!({ "keys": keys }).to_string())
            .expect("the keys can be written");
        let spec = json!({
            "type": "kubernetes", "url": URL, "audiences": [AUDIENCE], "keys": {"file": "jwks.json"},
            "algorithms": ["RS256", "ES256", "EdDSA"],
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
        });
        let Ok(Spec::Issuer(spec)) = Spec::parse(Kind::Issuer, &spec.to_string()) else {
            panic!("the issuer is not accepted: {spec}");
        };
        let name = ObjectName::try_from("dev").expect("a name");
        let clock = Arc::new(SystemClock);
        let authenticator =
            Authenticator::new(clock, Some(folder.path().to_owned())).expect("one backend of signatures");
        let issuers = [IssuerRecord { name, generation: 1, spec }];
        let mut stand = Self { authenticator, issuers, minter, driver_token: String::new(), _folder: folder };
        stand.driver_token = stand.token("keyfold-system", "keyfold-csi");
        stand
    }

    /// A token of a pod; its service account has the name of the pod's application.
    ///
    /// # Panics
    /// When there is no randomness.
    pub(crate) fn token(&self, namespace: &str, name: &str) -> String {
        let service_account = if name.starts_with("api-") { "api" } else { name };
        let pod = Pod {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
            node: "dev-node".into(),
            fs_group: None,
        };
        let token = self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted");
        token.jwt.to_string()
    }

    /// Checks a pod's token and the driver's.
    ///
    /// # Panics
    /// When one is refused.
    pub(crate) async fn check(&self, token: &str) -> PodCaller {
        let caller = self.authenticator.pod_caller(token, &self.driver_token, &self.issuers).await;
        caller.expect("the token is accepted")
    }
}
