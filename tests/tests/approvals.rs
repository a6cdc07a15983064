//! The two-person rule as it is meant to be used.

use keyfold_core::{
    object::PublicKey,
    plan::{Plan, PlanHash},
};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, DeleteObjectRequest, GetSecretRequest, ListKeysRequest, ListPlansRequest, Object,
    RollbackSecretRequest, RotateKeyRequest,
};
use keyfold_tests::two_persons::{TwoPersons, apply, asked, destroy, plan, public, sign, unfit};
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

/// The newest entry of an operation.
async fn entry(two: &TwoPersons, operation: &str) -> Value {
    let entries = two.world.audit().await;
    entries.into_iter().rfind(|entry| entry["operation"]["name"] == operation).expect("an entry")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_person_lets_a_secret_be_destroyed() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let id = two.ask(&[1]).await;
    let refused = entry(&two, "secret.destroy").await;
    assert_eq!(refused["actor"]["name"], "people/alice");
    assert_eq!(refused["outcome"]["reason"], "approval-needed");
    let message = refused["outcome"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("have one of people/bob sign plan {id}")), "{message}");
    assert_eq!(two.destroyed(), "0");

    sign(&two.bob.client(), &two.bobs_key, id).await.unwrap();
    let signed = entry(&two, "approval.sign").await;
    assert_eq!(signed["actor"]["name"], "people/bob");
    assert_eq!(signed["operation"]["plan"], id.to_string());
    assert_eq!(signed["operation"]["operation"], "secret.destroy");

    assert_eq!(destroy(&two.alice.client_with(id), &[1]).await.unwrap(), [1]);
    assert_eq!(two.destroyed(), "1");
    let done = entry(&two, "secret.destroy").await;
    assert_eq!(done["outcome"]["result"], "allowed");
    check_offline(&two, &done["approval"], id).await;
    assert_eq!(done["approval"]["hash"], signed["operation"]["hash"]);
    two.world.database.check_audit_log();
}

/// As a reviewer would, with the entry and the plan alone.
async fn check_offline(two: &TwoPersons, approval: &Value, id: Uuid) {
    let text = |name: &str| approval[name].as_str().unwrap_or_else(|| panic!("{approval}"));
    let kept = plan(&two.carol.client(), id).await.unwrap();
    let hash = PlanHash::of(&kept.plan);
    assert_eq!((text("plan"), text("hash")), (&*id.to_string(), &*hash.to_string()));
    assert_eq!(text("signed_by"), "people/bob");
    let key = PublicKey::try_from(text("public_key").to_owned()).unwrap();
    assert_eq!(text("public_key"), public(&two.bobs_key));
    let signature = base64_decoded(text("signature"));
    assert!(hash.is_signed(&key, &signature));
    let read = Plan::parse(&kept.plan).unwrap();
    assert_eq!(read.requested_by, "people/alice");
}

fn base64_decoded(text: &str) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(text).expect("base64")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_what_was_signed() {
    let two = TwoPersons::guarding(&["config.apply"]).await;
    let role = |path: &str| {
        json!({
            "bind": [{"issuer": "dev", "namespaces": ["web"], "serviceAccounts": ["web"]}],
            "grants": [{"path": path, "allow": ["read"]}],
        })
    };
    let id = asked(apply(&two.alice.client(), "AppRole", "web", &role("payments/web")).await);
    let read = Plan::parse(&plan(&two.bob.client(), id).await.unwrap().plan).unwrap();
    assert_eq!(read.objects.len(), 1);
    assert!(read.objects[0].spec.to_json().contains("payments/web"));
    sign(&two.bob.client(), &two.bobs_key, id).await.unwrap();

    let wider = apply(&two.alice.client_with(id), "AppRole", "web", &role("payments/*")).await;
    assert!(unfit(wider).contains("something else"));
    let other = apply(&two.alice.client_with(id), "AppRole", "other", &role("payments/web")).await;
    assert!(unfit(other).contains("something else"));
    apply(&two.alice.client_with(id), "AppRole", "web", &role("payments/web")).await.unwrap();
    let spec = two.world.database.sql("SELECT spec FROM objects WHERE name = 'web'");
    assert_eq!(spec, read.objects[0].spec.to_json());
    assert_eq!(entry(&two, "config.apply").await["approval"]["signed_by"], "people/bob");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_that_a_rule_can_name_is_guarded_and_no_plan_holds_a_value() {
    let guarded = [
        "secret.get",
        "secret.rollback",
        "secret.delete",
        "secret.destroy",
        "key.rotate",
        "config.apply",
        "config.delete",
    ];
    let two = TwoPersons::guarding(&guarded).await;
    two.world.put("payments/db", &[("password", "canary-value")]).await;
    let client = two.alice.client();
    let path = || "payments/db".to_owned();
    let request = GetSecretRequest { path: path(), version: None };
    asked(client.secrets().get_secret(request).await);
    asked(client.secrets().rollback_secret(RollbackSecretRequest { path: path(), version: 1 }).await);
    let versions = || keyfold_proto::keyfold::v1::ChangeVersionsRequest { path: path(), versions: vec![1] };
    asked(client.secrets().delete_versions(versions()).await);
    asked(client.secrets().destroy_versions(versions()).await);
    asked(
        client
            .keys()
            .rotate_key(RotateKeyRequest { keyspace: "payments".into(), ..Default::default() })
            .await,
    );
    asked(apply(&client, "Keyspace", "new", &json!({})).await);
    let request = DeleteObjectRequest { kind: "AppRole".into(), name: "payments-api".into() };
    asked(client.config().delete_object(request).await);
    // What no rule can name is not: bringing back, writing, and looking.
    client.secrets().undelete_versions(versions()).await.unwrap();

    let answer = client.approvals().list_plans(ListPlansRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = answer.plans.iter().rev().map(|plan| plan.operation.as_str()).collect();
    assert_eq!(names, guarded);
    for listed in answer.plans {
        let kept = plan(&client, listed.id.parse().unwrap()).await.unwrap().plan;
        assert!(!String::from_utf8(kept).unwrap().contains("canary-value"), "{}", listed.operation);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_what_could_get_round_a_rule_is_guarded_by_it_too() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let administrator = two.world.operator();
    let issuer = two.world.database.sql("SELECT spec FROM objects WHERE kind = 'Issuer' AND name = 'people'");
    let issuer: Value = serde_json::from_str(&issuer).unwrap();
    let changed = {
        let mut spec = issuer.clone();
        spec["leeway"] = json!("1s");
        spec
    };
    let role = json!({"builtIn": "admin", "bind": [{"issuer": "people", "claims": {"sub": ["mallory"]}}]});
    let weaker = two.rule(&["secret.get"]);
    for client in [&two.alice.client(), &administrator] {
        for (kind, name, spec) in [
            ("ApprovalRule", "two-persons", &weaker),
            ("ApprovalRule", "another", &weaker),
            ("OperatorRole", "mallory", &role),
            ("Issuer", "people", &changed),
            ("Issuer", "mallorys", &changed),
        ] {
            asked(apply(client, kind, name, spec).await);
        }
        for (kind, name) in
            [("ApprovalRule", "two-persons"), ("OperatorRole", "platform"), ("Issuer", "people")]
        {
            let request = DeleteObjectRequest { kind: kind.into(), name: name.into() };
            asked(client.config().delete_object(request).await);
        }
    }
    // The rest is as free as without the rule, and so is what changes nothing.
    apply(&administrator, "Issuer", "people", &issuer).await.unwrap();
    apply(&administrator, "ApprovalRule", "two-persons", &two.rule(&["secret.destroy"])).await.unwrap();
    apply(&administrator, "Keyspace", "new", &json!({})).await.unwrap();
    let object = Object {
        kind: "OperatorRole".into(),
        name: "mallory".into(),
        spec_json: role.to_string(),
        ..Default::default()
    };
    let dry = ApplyObjectsRequest { objects: vec![object], dry_run: true };
    administrator.config().apply_objects(dry).await.unwrap();
    let none = DeleteObjectRequest { kind: "OperatorRole".into(), name: "none".into() };
    assert_eq!(administrator.config().delete_object(none).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_come_first_and_then_whether_the_request_makes_sense() {
    let two = TwoPersons::guarding(&["secret.destroy", "config.apply"]).await;
    let nobody = two.people.operator_named("dave", &["staff"]);
    assert_eq!(destroy(&nobody, &[1]).await.unwrap_err().code(), Code::PermissionDenied);
    let bad = json!({"description": 7});
    let refused = apply(&two.alice.client(), "Keyspace", "new", &bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("Keyspace new: spec.description"), "{refused:?}");
    assert_eq!(two.world.database.sql("SELECT count(*) FROM plans"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_leaves_its_plan_unused() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let id = two.ask_and_sign(&[3]).await;
    let missing = destroy(&two.alice.client_with(id), &[3]).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert_eq!(two.world.database.sql("SELECT count(*) FROM plans WHERE used_at IS NOT NULL"), "0");
    two.world.put("payments/db", &[("password", "third")]).await;
    assert_eq!(destroy(&two.alice.client_with(id), &[3]).await.unwrap(), [3]);
}

/// A server that is killed leaves all of these or none.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_kept_and_used_in_the_transaction_of_its_entry() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let of_one_transaction = "SELECT p.xmin = e.xmin FROM plans p, audit_entries e
                              WHERE e.operation = 'secret.destroy' ORDER BY e.index DESC LIMIT 1";
    let id = two.ask(&[1]).await;
    assert_eq!(two.world.database.sql(of_one_transaction), "t");
    sign(&two.bob.client(), &two.bobs_key, id).await.unwrap();
    assert_eq!(two.world.database.sql(of_one_transaction), "f");
    destroy(&two.alice.client_with(id), &[1]).await.unwrap();
    assert_eq!(two.world.database.sql(of_one_transaction), "t");
    let secret = "SELECT p.xmin = v.xmin FROM plans p, secret_versions v WHERE v.version = 1";
    assert_eq!(two.world.database.sql(secret), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_equal_and_a_rule_guards_on_all_at_once() {
    let two = TwoPersons::without_rule().await;
    let replica = two.world.second_replica().await;
    let elsewhere = replica.setup();
    let there = two.alice.client_of(elsewhere, None);
    there.keys().list_keys(ListKeysRequest::default()).await.unwrap();
    let rule = two.rule(&["secret.destroy", "secret.get"]);
    two.world.server.apply("ApprovalRule", "two-persons", &rule).await.unwrap();
    asked(there.secrets().get_secret(GetSecretRequest { path: "payments/db".into(), version: None }).await);

    let id = two.ask(&[1]).await;
    sign(&two.bob.client_of(elsewhere, None), &two.bobs_key, id).await.unwrap();
    assert_eq!(destroy(&two.alice.client_of(elsewhere, Some(id)), &[1]).await.unwrap(), [1]);
    assert!(unfit(destroy(&two.alice.client_with(id), &[1]).await).contains("used before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_leads_two_persons_through_it() {
    let two = TwoPersons::without_rule().await;
    let folder = |name: &str| {
        let folder = two.world.folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (alice, bob) = (two.alice.cli(&folder("alice")), two.bob.cli(&folder("bob")));
    let alices_public = alice.ok("approval keygen --out my.key");
    let bobs_public = bob.ok("approval keygen --out my.key");
    let rule = json!({
        "operations": ["secret.destroy"],
        "approvers": [
            {"operator": "people/alice", "publicKey": alices_public.trim()},
            {"operator": "people/bob", "publicKey": bobs_public.trim()},
        ],
    });
    two.world.server.apply("ApprovalRule", "two-persons", &rule).await.unwrap();

    let refused = alice.fails("secret destroy payments/db --versions 1,2 --yes");
    assert!(refused.starts_with("5 "), "{refused}");
    let (_, id) = refused.split_once("--approval ").unwrap();
    let id = &id[..36];
    let listed = bob.ok("approval list");
    assert!(
        listed.contains(id) && listed.contains("secret.destroy") && listed.contains("people/alice"),
        "{listed}"
    );
    let shown = bob.ok(&format!("approval show {id}"));
    assert!(shown.contains("path: payments/db\n") && shown.contains("requested by  people/alice"), "{shown}");

    let unasked = bob.run(&format!("approval sign {id} --key my.key"));
    assert_eq!(unasked.code, 2);
    assert!(unasked.err.contains("not a terminal"), "{}", unasked.err);
    let as_json = bob.fails(&format!("approval sign {id} --key my.key -o json"));
    assert!(as_json.contains("not shown as a table"), "{as_json}");
    let own = alice.run(&format!("approval sign {id} --key my.key --yes"));
    assert_eq!(own.code, 5);
    assert!(own.err.contains("nobody signs a plan of their own"), "{}", own.err);
    let early = alice.fails(&format!("secret destroy payments/db --versions 1,2 --yes --approval {id}"));
    assert!(early.contains("nobody has signed the plan yet"), "{early}");

    let signed = bob.ok(&format!("approval sign {id} --key my.key --yes"));
    assert!(signed.contains("path: payments/db\n"), "{signed}");
    assert!(signed.ends_with(&format!("can now run the same again with --approval {id}\n")), "{signed}");
    assert!(bob.ok("approval list").contains("people/bob"));
    let done = alice.ok(&format!("secret destroy payments/db --versions 1,2 --yes --approval {id}"));
    assert_eq!(done, "payments/db: versions 1, 2 now destroyed\n");
    assert!(!bob.ok("approval list").contains(id));
    let shown: Value = serde_json::from_str(&alice.ok(&format!("approval show {id} -o json"))).unwrap();
    assert_eq!(shown["signed_by"], "people/bob");
    assert_eq!(shown["plan"]["operation"]["versions"], json!([1, 2]));
}
