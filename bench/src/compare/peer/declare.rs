//! What the peer is told: the KV engine, policies, the pods' issuer and roles, and the operators' tokens.

use std::time::Duration;

use hyper::header::HeaderValue;
use keyfold::dev::tokens::AUDIENCE;
use serde_json::{Value, json};

use super::{MOUNT, TokenKind};
use crate::compare::{
    http::Connection,
    stored::KEYSPACE,
    tokens::{APPS, service_account},
};

/// Longer than any run: nothing is revoked while something is measured, which would be work of the peer's alone.
const TOKEN_TTL: &str = "12h";
/// For a mount, which upgrades itself in the background.
const TRIES: usize = 100;

/// The peer as one of its administrators sees it.
struct Admin<'a> {
    connection: &'a mut Connection,
    token: &'a HeaderValue,
}

/// Declares everything. Gives the operators' tokens: service, batch.
///
/// # Panics
/// When the peer refuses.
pub(super) async fn all(
    connection: &mut Connection,
    token: &HeaderValue,
    (public_key, issuer): (&str, &str),
) -> [HeaderValue; 2] {
    let mut admin = Admin { connection, token };
    admin.post(&format!("sys/mounts/{MOUNT}"), json!({"type": "kv", "options": {"version": "2"}})).await;
    admin.until_upgraded().await;
    let rights = format!(
        r#"path "{MOUNT}/data/{KEYSPACE}/*" {{ capabilities = ["create", "read", "update"] }}
           path "{MOUNT}/metadata/{KEYSPACE}" {{ capabilities = ["list", "scan"] }}
           path "{MOUNT}/metadata/{KEYSPACE}/*" {{ capabilities = ["list", "scan"] }}"#
    );
    admin.post("sys/policies/acl/operator", json!({"policy": rights})).await;
    admin.post("sys/auth/jwt", json!({"type": "jwt"})).await;
    let keys = json!({"jwt_validation_pubkeys": [public_key], "bound_issuer": issuer});
    admin.post("auth/jwt/config", keys).await;
    for app in (0..APPS).map(service_account) {
        admin.role(&app).await;
    }
    [admin.operator(TokenKind::Service).await, admin.operator(TokenKind::Batch).await]
}

/// The name of an application's role that gives such tokens.
pub(super) fn role(app: &str, tokens: TokenKind) -> String {
    format!("{app}-{}", tokens.name())
}

impl Admin<'_> {
    async fn post(&mut self, path: &str, body: Value) -> Value {
        let body = self.connection.ok("POST", path, Some(self.token), body.to_string()).await;
        let body = body.unwrap_or_else(|failure| panic!("the peer does as asked: {failure}"));
        if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") }
    }

    async fn until_upgraded(&mut self) {
        let path = format!("{MOUNT}/config");
        for _ in 0..TRIES {
            if self.connection.ok("GET", &path, Some(self.token), String::new()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the KV engine is not ready");
    }

    /// One policy and one role of each kind of token, bound to the application's service account.
    async fn role(&mut self, app: &str) {
        let rights = format!(r#"path "{MOUNT}/data/{KEYSPACE}/*" {{ capabilities = ["read"] }}"#);
        self.post(&format!("sys/policies/acl/{app}"), json!({"policy": rights})).await;
        for tokens in [TokenKind::Service, TokenKind::Batch] {
            let spec = json!({
                "role_type": "jwt", "user_claim": "sub", "bound_audiences": [AUDIENCE],
                "bound_subject": format!("system:serviceaccount:{KEYSPACE}:{app}"),
                "token_policies": [app], "token_no_default_policy": true,
                "token_ttl": TOKEN_TTL, "token_type": tokens.name(),
            });
            self.post(&format!("auth/jwt/role/{}", role(app, tokens)), spec).await;
        }
    }

    async fn operator(&mut self, tokens: TokenKind) -> HeaderValue {
        let spec = json!({
            "policies": ["operator"], "no_default_policy": true, "ttl": TOKEN_TTL, "type": tokens.name(),
        });
        let answer = self.post("auth/token/create", spec).await;
        HeaderValue::from_str(answer["auth"]["client_token"].as_str().expect("a token")).expect("ASCII")
    }
}
