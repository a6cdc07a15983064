//! Attempts to do alone what needs two, each refused for its own reason.

use futures_util::future::join_all;
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    plan::PlanHash,
};
use keyfold_proto::keyfold::v1::{
    CompromiseKeyRequest, GetObjectRequest, RotateKeyRequest, ScheduleKeyDestructionRequest,
};
use keyfold_tests::{
    faults::until,
    two_persons::{RULE, TwoPersons, apply, asked, destroy, new_key, plan, public, sign, sign_with, unfit},
};
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_signs_a_plan_of_their_own() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let id = two.ask(&[1]).await;
    assert_eq!(
        unfit(sign(&two.alice.client(), &two.alices_key, id).await),
        "nobody signs a plan of their own"
    );
    assert!(unfit(destroy(&two.alice.client_with(id), &[1]).await).contains("nobody has signed"));
}

/// The same person of the same provider, under two issuer objects for two audiences.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_signs_a_plan_of_their_own_under_another_issuers_name() {
    let two = TwoPersons::without_rule().await;
    let request = GetObjectRequest { kind: "Issuer".into(), name: "people".into() };
    let people =
        two.world.operator().config().get_object(request).await.unwrap().into_inner().object.unwrap();
    let mut other: Value = serde_json::from_str(&people.spec_json).unwrap();
    other["audiences"] = json!(["other"]);
    two.world.server.apply("Issuer", "other", &other).await.unwrap();
    let bind = json!([{"issuer": "other", "claims": {"sub": ["alice"]}}]);
    two.world
        .server
        .apply("OperatorRole", "other", &json!({"builtIn": "admin", "bind": bind}))
        .await
        .unwrap();
    let mut rule = two.rule(&["secret.destroy"]);
    rule["approvers"][1] = json!({"operator": "other/alice", "publicKey": public(&two.bobs_key)});
    two.world.server.apply("ApprovalRule", RULE, &rule).await.unwrap();

    let id = two.ask(&[1]).await;
    let now = SystemClock.now().unix_timestamp();
    let claims = json!({
        "iss": two.people.provider.url(), "aud": "other", "sub": "alice", "iat": now, "exp": now + 600,
    });
    let mut alice_again = two.people.person("alice-again", &[]);
    std::fs::write(&alice_again.token_file, two.people.token_of(&claims)).unwrap();
    alice_again.name = "other/alice".into();
    let refused = unfit(sign(&alice_again.client(), &two.bobs_key, id).await);
    assert_eq!(refused, "nobody signs a plan of their own");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whom_the_rule_names_and_who_may_sign_does() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let id = two.ask(&[1]).await;
    // With everything but a place in the rule, even with the right key.
    assert!(unfit(sign(&two.carol.client(), &two.bobs_key, id).await).contains("names its signer"));
    assert!(
        unfit(sign(&two.world.operator(), &two.bobs_key, id).await)
            .contains("the initial administrator signs")
    );
    // With a place in the rule, but without the right: bob's groups are gone.
    let signature = {
        let hash = PlanHash::of(&plan(&two.carol.client(), id).await.unwrap().plan);
        two.bobs_key.sign(&hash.signed_message())
    };
    let former = two.people.operator_named("bob", &["staff"]);
    let refused = sign_with(&former, id, signature.as_ref()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(two.world.database.sql("SELECT count(signed_by) FROM plans"), "0");
    // The same signature by who is both.
    sign_with(&two.people.operator_named("bob", &["platform"]), id, signature.as_ref()).await.unwrap();
    sign(&two.people.operator_named("bob", &["platform"]), &two.bobs_key, id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_signature_is_refused() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let (id, other) = (two.ask(&[1]).await, two.ask(&[2]).await);
    let bob = two.bob.client();
    let hash = PlanHash::of(&plan(&bob, id).await.unwrap().plan);
    let other_hash = PlanHash::of(&plan(&bob, other).await.unwrap().plan);
    let right = two.bobs_key.sign(&hash.signed_message());
    let bare = two.bobs_key.sign(hash.to_string().as_bytes());
    let mut flipped = right.as_ref().to_vec();
    flipped[40] ^= 1;
    for (what, signature) in [
        ("another key's", new_key().sign(&hash.signed_message()).as_ref().to_vec()),
        ("alice's", two.alices_key.sign(&hash.signed_message()).as_ref().to_vec()),
        ("on another plan", two.bobs_key.sign(&other_hash.signed_message()).as_ref().to_vec()),
        ("without the purpose", bare.as_ref().to_vec()),
        ("with a bit flipped", flipped),
        ("cut", right.as_ref()[..63].to_vec()),
        ("none", Vec::new()),
    ] {
        let refused = unfit(sign_with(&bob, id, &signature).await);
        assert!(refused.contains("not one by the key"), "{what}: {refused}");
    }
    assert!(unfit(destroy(&two.alice.client_with(id), &[1]).await).contains("nobody has signed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_a_plan_is_worth_nothing_but_what_it_says() {
    let two = TwoPersons::guarding(&["secret.destroy", "secret.delete"]).await;
    let id = two.ask_and_sign(&[1]).await;
    let alice = two.alice.client_with(id);
    for versions in [&[2][..], &[1, 2], &[1, 1]] {
        assert!(unfit(destroy(&alice, versions).await).contains("something else"), "{versions:?}");
    }
    let request =
        keyfold_proto::keyfold::v1::ChangeVersionsRequest { path: "payments/db".into(), versions: vec![1] };
    assert!(unfit(alice.secrets().delete_versions(request).await).contains("something else"));
    let theirs = two.bob.client_with(id);
    assert!(unfit(destroy(&theirs, &[1]).await).contains("another operator asked"));
    assert!(unfit(destroy(&two.carol.client_with(id), &[1]).await).contains("another operator asked"));
    let unknown = two.alice.client_with(Uuid::from_u128(7));
    assert!(unfit(destroy(&unknown, &[1]).await).contains("there is no such plan"));
    assert_eq!(two.destroyed(), "0");
    assert_eq!(destroy(&alice, &[1]).await.unwrap(), [1]);
    assert_eq!(unfit(destroy(&alice, &[1]).await), "the plan was used before");
    assert_eq!(unfit(sign(&two.bob.client(), &two.bobs_key, id).await), "the plan was used before");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_of_many_uses_at_once_on_two_replicas_one_counts() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let replica = two.world.second_replica().await;
    for version in [1, 2] {
        let id = two.ask_and_sign(&[version]).await;
        let clients = (0..12).map(|n| match n % 2 {
            0 => two.alice.client_with(id),
            _ => two.alice.client_of(replica.setup(), Some(id)),
        });
        let uses = clients.map(|client| async move { destroy(&client, &[version]).await });
        let (done, refused): (Vec<_>, Vec<_>) = join_all(uses).await.into_iter().partition(Result::is_ok);
        assert_eq!((done.len(), refused.len()), (1, 11));
        for refused in refused {
            assert_eq!(unfit(refused), "the plan was used before");
        }
    }
    let used = "SELECT count(*), count(DISTINCT convert_from(entry, 'UTF8')::jsonb #>> '{approval,plan}')
                FROM audit_entries WHERE operation = 'secret.destroy' AND outcome = 'allowed'";
    assert_eq!(two.world.database.sql(used), "2|2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_ends_with_its_time() {
    let two = TwoPersons::without_rule().await;
    let with_ttl = |ttl: &str, operations: &[&str]| {
        let mut rule = two.rule(operations);
        rule["ttl"] = json!(ttl);
        rule
    };
    two.world.server.apply("ApprovalRule", "longer", &with_ttl("2h", &["secret.destroy"])).await.unwrap();
    // Long enough to sign one in time.
    let shorter = with_ttl("10s", &["secret.destroy", "secret.get"]);
    two.apply_together("ApprovalRule", "shorter", &shorter).await;
    let (signed, unsigned) = (two.ask_and_sign(&[1]).await, two.ask(&[2]).await);
    let ttl = "SELECT DISTINCT expires_at - requested_at FROM plans WHERE operation = 'secret.destroy'";
    assert_eq!(two.world.database.sql(ttl), "00:00:10", "the shortest of all rules that guard it");
    let waiting = format!("SELECT count(*) FROM plans WHERE id = '{unsigned}' AND expires_at >= now()");
    until("both expire", async || two.world.database.sql(&waiting) == "0").await;
    assert_eq!(unfit(destroy(&two.alice.client_with(signed), &[1]).await), "the plan expired");
    assert_eq!(unfit(sign(&two.bob.client(), &two.bobs_key, unsigned).await), "the plan expired");
    // What a refused call has locked is passed over, and it lets go after its reply.
    let locked = "SELECT (SELECT count(*) FROM plans) - count(*) FROM (SELECT FROM plans FOR UPDATE SKIP LOCKED) AS free";
    until("no plan is locked", async || two.world.database.sql(locked) == "0").await;
    // The next plan takes those away that ended unused.
    let new = two.ask(&[1]).await;
    let unused = "SELECT id FROM plans WHERE used_at IS NULL";
    assert_eq!(two.world.database.sql(unused), new.to_string());
    assert!(unfit(destroy(&two.alice.client_with(signed), &[1]).await).contains("there is no such plan"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_approver_or_key_signed_counts_no_more() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let (first, second) = (two.ask_and_sign(&[1]).await, two.ask_and_sign(&[2]).await);
    let new = new_key();
    let mut rule = two.rule(&["secret.destroy"]);
    rule["approvers"][1]["publicKey"] = json!(public(&new));
    two.apply_together("ApprovalRule", RULE, &rule).await;
    assert!(unfit(destroy(&two.alice.client_with(first), &[1]).await).contains("not one by the key"));

    // Bob goes, and carol comes; bob agrees to it with his new key.
    rule["approvers"][1] = json!({"operator": "people/carol", "publicKey": public(&new_key())});
    let id = asked(apply(&two.alice.client(), "ApprovalRule", RULE, &rule).await);
    sign(&two.bob.client(), &new, id).await.unwrap();
    apply(&two.alice.client_with(id), "ApprovalRule", RULE, &rule).await.unwrap();
    assert!(unfit(destroy(&two.alice.client_with(second), &[2]).await).contains("names its signer"));
    assert!(unfit(sign(&two.bob.client(), &new, two.ask(&[1]).await).await).contains("names its signer"));
    assert_eq!(two.destroyed(), "0");
}

/// Who writes to Postgres can take plans away, but make none out of another.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_plan_that_was_changed_in_postgres_is_refused() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let other = two.ask_and_sign(&[2]).await;
    let of_other =
        format!("(signature, public_key) = (SELECT signature, public_key FROM plans WHERE id = '{other}')");
    for (change, versions) in [
        ("plan = convert_to(replace(convert_from(plan, 'UTF8'), '[1]', '[2]'), 'UTF8')", &[2][..]),
        ("plan = convert_to(replace(convert_from(plan, 'UTF8'), '[1]', '[2]'), 'UTF8')", &[1]),
        ("expires_at = expires_at + interval '1 day'", &[1]),
        ("requested_at = requested_at - interval '1 day'", &[1]),
        ("requested_by = 'people/carol'", &[1]),
        ("signed_by = 'people/carol'", &[1]),
        ("public_key = sha256('x')", &[1]),
        ("signature = sha256('x') || sha256('y')", &[1]),
        ("signed_by = NULL, public_key = NULL, signature = NULL", &[1]),
        (&of_other, &[1]),
    ] {
        let id = two.ask_and_sign(&[1]).await;
        // What a superuser may, whom no trigger stops.
        two.world.database.sql(&format!(
            "SET session_replication_role = replica; UPDATE plans SET {change} WHERE id = '{id}'"
        ));
        let refused = destroy(&two.alice.client_with(id), versions).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss, "{change}: {refused:?}");
        two.world.database.sql(&format!("DELETE FROM plans WHERE id = '{id}'"));
    }
    assert_eq!(two.destroyed(), "0");
    assert_eq!(
        destroy(&two.alice.client_with(other), &[2]).await.unwrap(),
        [2],
        "what nobody changed counts"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_has_a_hundred_plans_waiting_at_most() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let first = two.ask(&[1]).await;
    for _ in 1..100 {
        two.ask(&[1]).await;
    }
    let refused = destroy(&two.alice.client(), &[1]).await.unwrap_err();
    assert!(refused.message().starts_with("100 plans of people/alice wait"), "{refused:?}");
    assert_eq!(two.world.database.sql("SELECT count(*) FROM plans"), "100");
    let entries = two.world.audit().await;
    let last = entries.iter().rfind(|entry| entry["operation"]["name"] == "secret.destroy").unwrap();
    assert_eq!(last["outcome"]["reason"], "conflict");
    // Others have their own, and one that is used makes room.
    asked(destroy(&two.carol.client(), &[1]).await);
    sign(&two.bob.client(), &two.bobs_key, first).await.unwrap();
    destroy(&two.alice.client_with(first), &[1]).await.unwrap();
    two.ask(&[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_a_rotation_policy_turns_and_destroys_no_key_that_a_rule_guards() {
    let two = TwoPersons::guarding(&["key.schedule-destruction"]).await;
    let administrator = two.world.operator();
    let hostile = json!({"rotation": {"every": "1m", "keepDeactivated": "0s", "destroyAfter": "1s"}});
    for client in [&two.alice.client(), &administrator] {
        asked(apply(client, "Keyspace", "payments", &hostile).await);
        asked(apply(client, "Keyspace", "new", &hostile).await);
    }
    // What leaves policies as they are needs nobody.
    apply(&administrator, "Keyspace", "payments", &json!({})).await.unwrap();
    apply(&administrator, "Keyspace", "new", &json!({})).await.unwrap();
    let weekly = json!({"rotation": {"every": "7d"}});
    two.apply_together("Keyspace", "payments", &weekly).await;
    apply(&two.alice.client(), "Keyspace", "payments", &weekly).await.unwrap();
    asked(apply(&two.alice.client(), "Keyspace", "payments", &json!({})).await);
    // In quotes: some approver's key may have these letters.
    let stored = "SELECT count(*) FROM objects WHERE spec LIKE '%\"1m\"%'";
    assert_eq!(two.world.database.sql(stored), "0");

    // Rules about something else leave it free.
    two.apply_together("ApprovalRule", RULE, &two.rule(&["secret.destroy"])).await;
    apply(&two.alice.client(), "Keyspace", "payments", &json!({})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_a_plan_about_a_key_leaves_nothing_for_the_server_to_choose() {
    let two = TwoPersons::guarding(&["key.compromise", "key.schedule-destruction"]).await;
    let alice = two.alice.client();
    let rotate = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    alice.keys().rotate_key(rotate).await.unwrap();
    let compromise = |version| CompromiseKeyRequest { keyspace: "payments".into(), version };
    let schedule = |delay_seconds| ScheduleKeyDestructionRequest {
        keyspace: "payments".into(),
        version: 1,
        delay_seconds,
        ..Default::default()
    };
    let unnamed = alice.keys().compromise_key(compromise(0)).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument, "{unnamed:?}");
    assert!(
        unnamed.message().ends_with("the request must name the key's version (--key-version)"),
        "{unnamed:?}"
    );
    let unnamed = alice.keys().schedule_key_destruction(schedule(None)).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument, "{unnamed:?}");
    assert!(unnamed.message().ends_with("the request must name the delay (--after)"), "{unnamed:?}");
    assert_eq!(two.world.database.sql("SELECT count(*) FROM plans"), "0");

    let id = asked(alice.keys().schedule_key_destruction(schedule(Some(86_400))).await);
    sign(&two.bob.client(), &two.bobs_key, id).await.unwrap();
    let approved = two.alice.client_with(id);
    assert!(
        unfit(approved.keys().schedule_key_destruction(schedule(Some(1))).await).contains("something else")
    );
    let of_installation = ScheduleKeyDestructionRequest {
        keyspace: String::new(),
        purpose: "row-mac".into(),
        ..schedule(Some(86_400))
    };
    assert!(
        unfit(approved.keys().schedule_key_destruction(of_installation).await).contains("something else")
    );
    approved.keys().schedule_key_destruction(schedule(Some(86_400))).await.unwrap();
    let id = asked(alice.keys().compromise_key(compromise(2)).await);
    sign(&two.bob.client(), &two.bobs_key, id).await.unwrap();
    two.alice.client_with(id).keys().compromise_key(compromise(2)).await.unwrap();
}
