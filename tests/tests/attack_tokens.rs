//! Tokens that were forged, borrowed, or kept for too long, end to end: rows 02 to 05 and 09 of docs/attacks.md.

use std::{fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold::dev::{
    kubelet::Pod,
    pki::Authority,
    tokens::{Minter, SigningKey, uid},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::GetObjectRequest;
use keyfold_tests::{
    People, World,
    api_server::ApiServer,
    attacker::{claims_of, signed_as},
};
use ring::hmac;
use serde_json::{Value, json};
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const DB: &str = "payments/db";

/// Operators of group `platform` may read every secret.
async fn people(world: &World) -> People {
    let people = People::join(&world.server, world.folder.path()).await;
    let role = json!({
        "bind": [{"issuer": "people", "claims": {"groups": ["platform"]}}],
        "grants": [{"path": "payments/*", "allow": ["read"]}],
    });
    world.server.apply("OperatorRole", "platform", &role).await.unwrap();
    people
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

/// Refused as unproven, for this reason.
fn assert_refused(world: &World, what: &str, answer: Result<String, Status>, reason: &str) {
    let status = answer.expect_err(what);
    assert_eq!(
        (status.code(), world.database.last_reason().as_str()),
        (Code::Unauthenticated, reason),
        "{what}"
    );
}

/// Refused although proven, for this reason.
fn assert_forbidden(world: &World, what: &str, answer: Result<String, Status>, reason: &str) {
    let status = answer.expect_err(what);
    assert_eq!(
        (status.code(), world.database.last_reason().as_str()),
        (Code::PermissionDenied, reason),
        "{what}"
    );
}

/// `HEADER.PAYLOAD` as they are sent.
fn signing_input(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_03_an_operators_token_that_nobody_signed_is_refused() {
    let world = World::start().await.with_payments().await;
    let people = people(&world).await;
    let good = people.token("alice", &["platform"]);
    world.read_with(&good, DB).await.expect("the token that the others are made of");
    let (claims, kid, jwk) = (claims_of(&good), people.key.kid(), people.key.jwk());

    let none = signing_input(&json!({"alg": "none", "kid": kid}), &claims);
    let signature = good.rsplit('.').next().unwrap();
    for token in [format!("{none}."), format!("{none}.{signature}"), none.clone() + ".AA"] {
        assert_refused(&world, "alg none", world.read_with(&token, DB).await, "token-algorithm");
    }
    for alg in ["None", "NONE", "HS256", "HS512", "rs256", "RS1"] {
        let token = format!("{}.{signature}", signing_input(&json!({"alg": alg, "kid": kid}), &claims));
        assert_refused(&world, alg, world.read_with(&token, DB).await, "token-algorithm");
    }
    let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
    for secret in [modulus, jwk.to_string().into_bytes(), jwk["n"].as_str().unwrap().as_bytes().to_vec()] {
        let input = signing_input(&json!({"alg": "HS256", "kid": kid}), &claims);
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), input.as_bytes());
        let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(mac));
        assert_refused(
            &world,
            "HMAC with the public key",
            world.read_with(&token, DB).await,
            "token-algorithm",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_03_an_operators_token_signed_by_somebody_elses_key_is_refused() {
    let world = World::start().await.with_payments().await;
    let people = people(&world).await;
    let claims = claims_of(&people.token("alice", &["platform"]));
    let (kid, own) = (people.key.kid(), SigningKey::generate().unwrap());
    for (name, value) in [
        ("jwk", own.jwk()),
        ("jku", json!("https://127.0.0.1/keys")),
        ("x5u", json!("https://127.0.0.1/chain")),
        ("x5c", json!(["MIIB"])),
    ] {
        let mut header = json!({"alg": "RS256", "kid": kid, "typ": "JWT"});
        header[name] = value;
        let by_people = people.key.sign(&header, &claims).unwrap();
        assert_refused(&world, name, world.read_with(&by_people, DB).await, "token-embedded-key");
        let by_own = own.sign(&header, &claims).unwrap();
        assert_refused(&world, name, world.read_with(&by_own, DB).await, "token-embedded-key");
    }
    // The cluster's key is good for the cluster's tokens.
    for key in [&own, &world.minter.key] {
        let token = signed_as(key, kid, &claims);
        assert_refused(&world, "another key", world.read_with(&token, DB).await, "token-signature");
        let token = signed_as(key, key.kid(), &claims);
        assert_refused(&world, "another kid", world.read_with(&token, DB).await, "token-key-unknown");
    }
    let url = people.provider.url();
    for iss in
        [world.issuer.url(), &format!("{url}/"), &url.to_uppercase(), &format!("{url}#"), &format!(" {url}")]
    {
        let token = signed_as(&people.key, kid, &with(&claims, "iss", json!(iss)));
        let reason = if iss == world.issuer.url() { "token-key-unknown" } else { "token-issuer" };
        assert_refused(&world, iss, world.read_with(&token, DB).await, reason);
    }
    world.read_with(&signed_as(&people.key, kid, &claims), DB).await.expect("signed as it should be");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_02_an_operators_token_for_another_audience_is_refused() {
    let world = World::start().await.with_payments().await;
    let people = people(&world).await;
    let claims = claims_of(&people.token("alice", &["platform"]));
    for (aud, reason) in [
        (json!("grafana"), "token-audience"),
        (json!("Keyfold"), "token-audience"),
        (json!("keyfold "), "token-audience"),
        (json!("keyfold,grafana"), "token-audience"),
        (json!(["grafana"]), "token-audience"),
        (json!(["keyfold", "grafana"]), "token-audience-shared"),
        (json!(""), "token-claim-malformed"),
        (json!([]), "token-claim-malformed"),
        (json!(["keyfold", 7]), "token-claim-malformed"),
        (json!([["keyfold"]]), "token-claim-malformed"),
        (json!({"keyfold": true}), "token-claim-malformed"),
        (json!(null), "token-claim-malformed"),
    ] {
        let token = people.token_of(&with(&claims, "aud", aud.clone()));
        assert_refused(&world, &aud.to_string(), world.read_with(&token, DB).await, reason);
    }
    let mut without = claims.clone();
    without.as_object_mut().unwrap().remove("aud");
    let without = world.read_with(&people.token_of(&without), DB).await;
    assert_refused(&world, "no audience", without, "token-claim-missing");
    for aud in [json!("keyfold"), json!(["keyfold"])] {
        world.read_with(&people.token_of(&with(&claims, "aud", aud)), DB).await.expect("our audience");
    }
}

/// The same subject at two issuers is two operators.
#[tokio::test(flavor = "multi_thread")]
async fn attack_02_a_subject_of_one_issuer_has_no_right_of_its_namesake_at_another() {
    let world = World::start().await.with_payments().await;
    let people = people(&world).await;
    let subject = "system:serviceaccount:payments:api";
    let of_the_pod = world.token(&world.pod("payments", "api", "api-0")).jwt.to_string();
    let of_the_person = people.token(subject, &[]);
    for (issuer, good, bad) in [("people", &of_the_person, &of_the_pod), ("dev", &of_the_pod, &of_the_person)]
    {
        let role = json!({
            "bind": [{"issuer": issuer, "claims": {"sub": [subject]}}],
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        world.server.apply("OperatorRole", "automation", &role).await.unwrap();
        assert_eq!(world.read_with(good, DB).await.unwrap(), "first", "{issuer}");
        assert_forbidden(&world, issuer, world.read_with(bad, DB).await, "operator-not-bound");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_05_each_kind_of_token_proves_nothing_in_anothers_place() {
    let world = World::start().await.with_payments().await;
    let people = people(&world).await;
    // Rights that tokens of the wrong kind must not come to.
    let subjects = json!(["system:serviceaccount:keyfold-system:keyfold-csi"]);
    let role = json!({"builtIn": "admin", "bind": [{"issuer": "dev", "claims": {"sub": subjects}}]});
    world.server.apply("OperatorRole", "drivers", &role).await.unwrap();

    let api = world.pod("payments", "api", "api-0");
    let (pod, driver) = (world.token(&api).jwt.to_string(), world.driver_token());
    let person = people.token("alice", &["platform"]);
    let administrator = fs::read_to_string(world.server.setup().admin_token_file()).unwrap();
    let unbound = world.changed_token(&api, |claims| {
        claims["kubernetes.io"].as_object_mut().unwrap().remove("pod");
    });
    world.read_with(&person, DB).await.expect("a person is an operator");
    world.issue_by(&driver, &pod, ROLE, DB).await.expect("a driver brings a pod's token");

    let as_operator = world.read_with(&driver, DB).await;
    assert_forbidden(&world, "a driver as an operator", as_operator, "driver-as-operator");
    let as_operator = world.read_with(&pod, DB).await;
    assert_forbidden(&world, "a pod as an operator", as_operator, "operator-not-bound");
    for (what, token, reason) in [
        ("a person as a pod", person.as_str(), "token-not-of-a-cluster"),
        ("an administrator as a pod", administrator.trim(), "token-malformed"),
        ("a service account's as a pod", &unbound, "token-not-bound-to-a-pod"),
    ] {
        assert_refused(&world, what, world.issue_by(&driver, token, ROLE, DB).await, reason);
        let as_driver = world.issue_by(token, &pod, ROLE, DB).await;
        assert_refused(&world, what, as_driver, reason);
    }
    let as_driver = world.issue_by(&pod, &pod, ROLE, DB).await;
    assert_forbidden(&world, "a pod as a driver", as_driver, "not-a-driver");
    let as_pod = world.issue_by(&driver, &driver, ROLE, DB).await;
    assert_forbidden(&world, "a driver as a pod", as_pod, "driver-as-pod");
}

/// A node that was made anew under its name is another node; a token that does not say which is refused.
#[tokio::test(flavor = "multi_thread")]
async fn attack_05_a_pod_is_served_on_its_very_node_only() {
    let world = World::start().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    let node = claims_of(&world.token(&pod).jwt)["kubernetes.io"]["node"].clone();
    let ask = async |node: Value| {
        let token = world.changed_token(&pod, |claims| claims["kubernetes.io"]["node"] = node);
        world.issue_with(&token, ROLE, DB).await
    };
    ask(node.clone()).await.expect("the driver's own node");
    let another = ask(json!({"name": node["name"], "uid": uid("Node", "", "another")})).await;
    assert_forbidden(&world, "a namesake of the node", another, "node-mismatch");
    let another = ask(json!({"name": "another", "uid": node["uid"]})).await;
    assert_forbidden(&world, "another name", another, "node-mismatch");
    for (half, reason) in [
        (json!({"name": node["name"]}), "token-claim-missing"),
        (json!({"name": node["name"], "uid": ""}), "token-claim-malformed"),
        (json!(null), "token-claim-malformed"),
        (json!([node]), "token-claim-malformed"),
    ] {
        assert_refused(&world, &half.to_string(), ask(half.clone()).await, reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_04_a_service_account_made_anew_under_its_name_is_another() {
    let world = World::start().await.with_payments().await;
    let pinned = async |uid: &str| {
        let bind = json!([{
            "issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"], "serviceAccountUid": uid,
        }]);
        let role = json!({"bind": bind, "grants": [{"path": "payments/*", "allow": ["read"]}]});
        world.server.apply("AppRole", ROLE, &role).await.unwrap();
    };
    let pod = world.pod("payments", "api", "api-0");
    let (first, second) =
        (uid("ServiceAccount", "payments", "api"), uid("ServiceAccount", "payments", "anew"));
    let old = world.token(&pod).jwt.to_string();
    let new =
        world.changed_token(&pod, |claims| claims["kubernetes.io"]["serviceaccount"]["uid"] = json!(second));
    pinned(&first).await;
    world.issue_with(&old, ROLE, DB).await.expect("the service account that is pinned");
    assert_forbidden(&world, "its namesake", world.issue_with(&new, ROLE, DB).await, "role-not-bound");
    let unnamed = world.issue_with(&new, "", DB).await;
    assert_forbidden(&world, "its namesake, which names no role", unnamed, "role-missing");
    // The old one's token was verified before, and does not live on by that.
    pinned(&second).await;
    assert_forbidden(&world, "the one before", world.issue_with(&old, ROLE, DB).await, "role-not-bound");
    world.issue_with(&new, ROLE, DB).await.expect("the service account that is pinned now");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_04_automation_whose_pod_is_gone_is_no_operator_any_more() {
    let kubeconfigs = tempfile::tempdir().unwrap();
    let yaml = format!("kubeconfig_dir: {}\n", kubeconfigs.path().display());
    let world = World::configured(&yaml, "").await.with_payments().await;
    let api_server = ApiServer::start(&Authority::new("a cluster", SystemClock.now()).unwrap()).await;
    api_server.write_kubeconfig(kubeconfigs.path(), "dev.yaml");
    let request = GetObjectRequest { kind: "Issuer".into(), name: "dev".into() };
    let issuer = world.operator().config().get_object(request).await.unwrap().into_inner().object.unwrap();
    let mut spec: Value = serde_json::from_str(&issuer.spec_json).unwrap();
    spec["apiServer"] = json!({"kubeconfig": "dev.yaml"});
    spec["verify"] = json!("tokenReview");
    world.server.apply("Issuer", "dev", &spec).await.unwrap();
    let bind = json!([{"issuer": "dev", "claims": {"sub": ["system:serviceaccount:ci:deployer"]}}]);
    let role = json!({"bind": bind, "grants": [{"path": "payments/*", "allow": ["read"]}]});
    world.server.apply("OperatorRole", "automation", &role).await.unwrap();

    let (living, gone) = (world.pod("ci", "deployer", "job-1"), world.pod("ci", "deployer", "job-2"));
    api_server.delete_pod(&gone.uid());
    world.read_with(&world.token(&living).jwt, DB).await.expect("the API server vouches for it");
    let refused = world.read_with(&world.token(&gone).jwt, DB).await;
    assert_refused(&world, "its pod is gone", refused, "review-not-authenticated");
    let pod = world.pod("payments", "api", "api-9");
    api_server.delete_pod(&pod.uid());
    let refused = world.issue_with(&world.token(&pod).jwt, ROLE, DB).await;
    assert_refused(&world, "so it is for pods", refused, "review-not-authenticated");
}

/// Two clusters that know nothing of each other: equal namespaces, service accounts, drivers, and key ids.
struct Tenants {
    world: World,
    minters: [Minter; 2],
    _jwks: tempfile::TempDir,
}

impl Tenants {
    /// Issuers `tenant-a` and `tenant-b` at these URLs, each with a keyspace of its name, a role that reads it, and one
    /// role for both.
    async fn at(urls: [&str; 2]) -> Self {
        let jwks = tempfile::tempdir().unwrap();
        let world = World::configured(&format!("jwks_dir: {}\n", jwks.path().display()), "").await;
        let minters = urls.map(|url| Minter { issuer: url.into(), key: SigningKey::generate().unwrap() });
        for (name, minter) in ["tenant-a", "tenant-b"].into_iter().zip(&minters) {
            let mut jwk = minter.key.jwk();
            jwk["kid"] = json!("key");
            fs::write(jwks.path().join(format!("{name}.json")), json!({"keys": [jwk]}).to_string()).unwrap();
            let issuer = json!({
                "type": "kubernetes", "url": minter.issuer, "audiences": ["keyfold"],
                "keys": {"file": format!("{name}.json")},
                "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
            });
            world.server.apply("Issuer", name, &issuer).await.unwrap();
            world.server.apply("Keyspace", name, &json!({})).await.unwrap();
            world.put(&format!("{name}/db"), &[("password", name)]).await;
            let bind = json!([{"issuer": name, "namespaces": ["payments"], "serviceAccounts": ["api"]}]);
            let role = json!({"bind": bind, "grants": [{"path": format!("{name}/*"), "allow": ["read"]}]});
            world.server.apply("AppRole", &format!("{name}-api"), &role).await.unwrap();
        }
        world.server.apply("Keyspace", "shared", &json!({})).await.unwrap();
        let bind = ["tenant-a", "tenant-b"]
            .map(|name| json!({"issuer": name, "namespaces": ["*"], "serviceAccounts": ["*"]}));
        let role = json!({"bind": bind, "grants": [{"path": "shared/{issuer}/*", "allow": ["read"]}]});
        world.server.apply("AppRole", "both", &role).await.unwrap();
        for name in ["tenant-a", "tenant-b"] {
            world.put(&format!("shared/{name}/db"), &[("password", name)]).await;
        }
        Self { world, minters, _jwks: jwks }
    }

    /// A token of a pod of one tenant, and of its driver.
    fn tokens(&self, tenant: usize) -> [String; 2] {
        let driver = self.world.pod("keyfold-system", "keyfold-csi", "keyfold-csi-0");
        [self.world.pod("payments", "api", "api-0"), driver].map(|pod| self.token(tenant, &pod))
    }

    fn token(&self, tenant: usize, pod: &Pod) -> String {
        let minter = &self.minters[tenant];
        let minted = minter.mint(&pod.token_request(), SystemClock.now()).unwrap();
        signed_as(&minter.key, "key", &claims_of(&minted.jwt))
    }

    /// Everything that a tenant has and has not, asked for by tokens that are the same each time.
    async fn check(&self, tokens: &[[String; 2]; 2]) {
        let names = ["tenant-a", "tenant-b"];
        for (own, other) in [(0, 1), (1, 0)] {
            let [pod, driver] = &tokens[own];
            let ask = async |role: &str, path: &str| self.world.issue_by(driver, pod, role, path).await;
            let (own, other) = (names[own], names[other]);
            assert_eq!(ask(&format!("{own}-api"), &format!("{own}/db")).await.unwrap(), own);
            assert_eq!(ask("both", &format!("shared/{own}/db")).await.unwrap(), own);
            let refused = ask(&format!("{other}-api"), &format!("{other}/db")).await;
            assert_forbidden(&self.world, "the other's role", refused, "role-not-bound");
            let refused = ask(&format!("{own}-api"), &format!("{other}/db")).await;
            assert_forbidden(&self.world, "the other's secret", refused, "not-granted");
            let refused = ask("both", &format!("shared/{other}/db")).await;
            assert_forbidden(&self.world, "the other's value of {issuer}", refused, "not-granted");
        }
        let crossed = self.world.issue_by(&tokens[1][1], &tokens[0][0], "tenant-a-api", "tenant-a/db").await;
        assert_forbidden(&self.world, "the other's driver", crossed, "issuer-mismatch");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_two_tenants_with_equal_names_and_key_ids_never_get_each_others() {
    let tenants = Tenants::at(["https://a.example", "https://b.example"]).await;
    let tokens = [tenants.tokens(0), tenants.tokens(1)];
    // The second time, all tokens were verified before.
    for _ in 0..2 {
        tenants.check(&tokens).await;
    }
    let mut claims = claims_of(&tokens[0][0]);
    claims["iss"] = json!("https://b.example");
    let forged = signed_as(&tenants.minters[0].key, "key", &claims);
    let refused = tenants.world.issue_by(&tokens[1][1], &forged, "tenant-b-api", "tenant-b/db").await;
    assert_refused(&tenants.world, "signed by the other's key of that id", refused, "token-signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_two_tenants_at_one_url_are_told_apart_by_their_keys() {
    let tenants = Arc::new(Tenants::at(["https://one.example"; 2]).await);
    let tokens = [tenants.tokens(0), tenants.tokens(1)];
    for _ in 0..2 {
        tenants.check(&tokens).await;
    }
}
