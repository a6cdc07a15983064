//! Operators under an approval rule, and their keys.

use keyfold::client::Client;
use keyfold_core::{
    entropy::{Entropy as _, SystemEntropy},
    object::PublicKey,
    plan::PlanHash,
};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ApplyObjectsResponse, ChangeVersionsRequest, GetPlanRequest, Object, Plan,
    SignPlanRequest,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{People, Person, World};

/// The name of the approval rule.
pub const RULE: &str = "two-persons";

/// A world whose operators alice, bob and carol may do everything, while alice and bob approve each other.
pub struct TwoPersons {
    /// With `payments/db` in versions 1 and 2.
    pub world: World,
    /// The provider of the operators' tokens.
    pub people: People,
    /// An approver.
    pub alice: Person,
    /// An approver.
    pub bob: Person,
    /// No approver.
    pub carol: Person,
    /// Alice's.
    pub alices_key: Ed25519KeyPair,
    /// Bob's.
    pub bobs_key: Ed25519KeyPair,
}

impl TwoPersons {
    /// With an approval rule for these operations.
    ///
    /// # Panics
    /// When a part does not start, or the server refuses.
    pub async fn guarding(operations: &[&str]) -> Self {
        let two = Self::without_rule().await;
        two.world.server.apply("ApprovalRule", RULE, &two.rule(operations)).await.expect("a rule");
        two
    }

    /// Without an approval rule yet.
    ///
    /// # Panics
    /// When a part does not start, or the server refuses.
    pub async fn without_rule() -> Self {
        let world = World::start().await.with_payments().await;
        world.put("payments/db", &[("password", "second")]).await;
        let people = People::join(&world.server, world.folder.path()).await;
        let bind = json!([{"issuer": "people", "claims": {"groups": ["platform"]}}]);
        let role = json!({"builtIn": "admin", "bind": bind});
        world.server.apply("OperatorRole", "platform", &role).await.expect("a role");
        let person = |name| people.person(name, &["platform"]);
        let (alice, bob, carol) = (person("alice"), person("bob"), person("carol"));
        Self { world, people, alice, bob, carol, alices_key: new_key(), bobs_key: new_key() }
    }

    /// The spec of a rule for these operations.
    pub fn rule(&self, operations: &[&str]) -> Value {
        let approver = |person: &Person, key| json!({"operator": person.name, "publicKey": public(key)});
        json!({
            "operations": operations,
            "approvers": [approver(&self.alice, &self.alices_key), approver(&self.bob, &self.bobs_key)],
        })
    }

    /// Alice applies an object, which needs bob, who agrees.
    ///
    /// # Panics
    /// When it does not go that way.
    pub async fn apply_together(&self, kind: &str, name: &str, spec: &Value) {
        let id = asked(apply(&self.alice.client(), kind, name, spec).await);
        sign(&self.bob.client(), &self.bobs_key, id).await.expect("bob signs");
        apply(&self.alice.client_with(id), kind, name, spec).await.expect("it is applied");
    }

    /// Alice asks to destroy versions of `payments/db`; gives the plan's id.
    ///
    /// # Panics
    /// When that does not need a second person.
    pub async fn ask(&self, versions: &[u32]) -> Uuid {
        asked(destroy(&self.alice.client(), versions).await)
    }

    /// The same, and bob signs.
    ///
    /// # Panics
    /// When he may not.
    pub async fn ask_and_sign(&self, versions: &[u32]) -> Uuid {
        let id = self.ask(versions).await;
        sign(&self.bob.client(), &self.bobs_key, id).await.expect("bob signs");
        id
    }

    /// How many versions of `payments/db` are destroyed.
    pub fn destroyed(&self) -> String {
        self.world.database.sql("SELECT count(*) FROM secret_versions WHERE destroyed_at IS NOT NULL")
    }
}

/// A key of an approver.
///
/// # Panics
/// Without randomness.
pub fn new_key() -> Ed25519KeyPair {
    let mut seed = [0; 32];
    SystemEntropy.fill(&mut seed).expect("randomness");
    Ed25519KeyPair::from_seed_unchecked(&seed).expect("a key")
}

/// The public half, as rules name it.
///
/// # Panics
/// Never: an Ed25519 key has 32 bytes.
pub fn public(key: &Ed25519KeyPair) -> String {
    PublicKey(key.public_key().as_ref().try_into().expect("32 bytes")).into()
}

/// Destroys versions of `payments/db`; gives those that changed.
///
/// # Errors
/// The server's status.
pub async fn destroy(client: &Client, versions: &[u32]) -> Result<Vec<u32>, Status> {
    let request = ChangeVersionsRequest { path: "payments/db".into(), versions: versions.to_vec() };
    Ok(client.secrets().destroy_versions(request).await?.into_inner().changed)
}

/// Applies one object.
///
/// # Errors
/// The server's status.
pub async fn apply(
    client: &Client,
    kind: &str,
    name: &str,
    spec: &Value,
) -> Result<ApplyObjectsResponse, Status> {
    let object =
        Object { kind: kind.into(), name: name.into(), spec_json: spec.to_string(), ..Default::default() };
    let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
    Ok(client.config().apply_objects(request).await?.into_inner())
}

/// One plan.
///
/// # Errors
/// The server's status.
///
/// # Panics
/// When the answer holds none.
pub async fn plan(client: &Client, id: Uuid) -> Result<Plan, Status> {
    let answer = client.approvals().get_plan(GetPlanRequest { id: id.to_string() }).await?;
    Ok(answer.into_inner().plan.expect("a plan"))
}

/// Signs a plan as the server shows it.
///
/// # Errors
/// The server's status.
pub async fn sign(client: &Client, key: &Ed25519KeyPair, id: Uuid) -> Result<(), Status> {
    let hash = PlanHash::of(&plan(client, id).await?.plan);
    sign_with(client, id, key.sign(&hash.signed_message()).as_ref()).await
}

/// Presents these bytes as a signature.
///
/// # Errors
/// The server's status.
pub async fn sign_with(client: &Client, id: Uuid, signature: &[u8]) -> Result<(), Status> {
    let request = SignPlanRequest { id: id.to_string(), signature: signature.to_vec() };
    client.approvals().sign_plan(request).await.map(drop)
}

/// The plan that a refusal says it needs a second person for.
///
/// # Panics
/// When it is no such refusal.
pub fn asked<T>(answer: Result<T, Status>) -> Uuid {
    let Err(status) = answer else { panic!("it needed nobody") };
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let (_, rest) = status.message().split_once("sign plan ").unwrap_or_else(|| panic!("{status:?}"));
    rest[..36].parse().expect("a plan's id")
}

/// Why an approval does not fit.
///
/// # Panics
/// When it does.
pub fn unfit<T>(answer: Result<T, Status>) -> String {
    let Err(status) = answer else { panic!("it fitted") };
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let why = status.message().strip_prefix("the approval does not fit: ");
    why.unwrap_or_else(|| panic!("{status:?}")).to_owned()
}
