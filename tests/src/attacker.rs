//! What an attacker can send: any token with any message. And what the log says of it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold::dev::{kubelet::Pod, tokens::SigningKey};
use keyfold_proto::keyfold::v1::{
    GetSecretRequest, IssueSecretsRequest, SecretReference, secret_service_client::SecretServiceClient,
    workload_service_client::WorkloadServiceClient,
};
use serde_json::{Value, json};
use tonic::{Request, Status};

use crate::{Database, World};

/// A message with this token.
///
/// # Panics
/// When the token cannot be sent.
pub fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// The claims of a token.
///
/// # Panics
/// When it is none.
pub fn claims_of(jwt: &str) -> Value {
    let payload = jwt.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64url")).expect("JSON")
}

/// A token of these claims under a key id that need not be the key's own.
///
/// # Panics
/// When there is no randomness.
pub fn signed_as(key: &SigningKey, kid: &str, claims: &Value) -> String {
    key.sign(&json!({"alg": "RS256", "kid": kid}), claims).expect("a token can be signed").to_string()
}

impl World {
    /// The token of a pod after `change`, rightly signed.
    pub fn changed_token(&self, pod: &Pod, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims_of(&self.token(pod).jwt);
        change(&mut claims);
        signed_as(&self.minter.key, self.minter.key.kid(), &claims)
    }

    /// Reads a secret as an operator with this token; gives its first value.
    ///
    /// # Errors
    /// The server's status.
    pub async fn read_with(&self, token: &str, path: &str) -> Result<String, Status> {
        let request = bearing(token, GetSecretRequest { path: path.into(), version: None });
        let found = SecretServiceClient::new(self.channel()).get_secret(request).await?.into_inner();
        Ok(String::from_utf8_lossy(&found.fields[0].value).into_owned())
    }

    /// Asks for one secret as the world's driver would for the pod with this token; gives its first value.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue_with(&self, pod_token: &str, role: &str, path: &str) -> Result<String, Status> {
        self.issue_by(&self.driver_token(), pod_token, role, path).await
    }

    /// The same by the driver with `driver_token`.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue_by(
        &self,
        driver_token: &str,
        pod_token: &str,
        role: &str,
        path: &str,
    ) -> Result<String, Status> {
        let message = IssueSecretsRequest {
            pod_token: pod_token.into(),
            role: role.into(),
            items: vec![SecretReference { path: path.into(), optional: false }],
        };
        let mut workload = WorkloadServiceClient::new(self.channel());
        let issued = workload.issue_secrets(bearing(driver_token, message)).await?.into_inner();
        Ok(String::from_utf8_lossy(&issued.secrets[0].fields[0].value).into_owned())
    }
}

impl Database {
    /// Why the newest entry's operation was refused; empty when it was not.
    pub fn last_reason(&self) -> String {
        self.sql(
            "SELECT convert_from(entry, 'UTF8')::json #>> '{outcome,reason}' FROM audit_entries
             ORDER BY index DESC LIMIT 1",
        )
    }
}
