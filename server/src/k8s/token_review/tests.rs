use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde_json::{Value, json};

use super::*;

/// Recorded from Kubernetes 1.36.
const ACCEPTED: &str = include_str!("../../../../tests/fixtures/kubernetes-1.36/tokenreview/accepted.json");
const POD_DELETED: &str =
    include_str!("../../../../tests/fixtures/kubernetes-1.36/tokenreview/pod-deleted.json");
const WRONG_AUDIENCE: &str =
    include_str!("../../../../tests/fixtures/kubernetes-1.36/tokenreview/wrong-audience.json");

fn ours() -> BTreeSet<String> {
    BTreeSet::from(["keyfold".to_owned()])
}

fn recorded(reply: &str) -> TokenReviewStatus {
    status(reply.as_bytes()).unwrap()
}

/// The accepted review, after `change`.
fn changed(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
    let mut reply: Value = serde_json::from_str(ACCEPTED).unwrap();
    change(&mut reply["status"]);
    status(reply.to_string().as_bytes()).unwrap()
}

/// Judges by what the recorded token says of itself.
fn verdict(status: &TokenReviewStatus) -> Result<(), ReviewRefusal> {
    let pod = NamedUid { name: "api-7d9f4".into(), uid: "bd149297-fc0c-4827-b626-719bb0c7b2ab".into() };
    let node = NamedUid { name: "vm".into(), uid: "d9146007-b909-4c82-91d7-4157953aaaf7".into() };
    let expected = Expected {
        subject: "system:serviceaccount:payments:api",
        uid: Some("ca8d112c-34b8-4dbe-b340-a3dfaeed9b17"),
        pod: Some(&pod),
        node: Some(&node),
    };
    judge(status, &ours(), expected)
}

#[test]
fn the_recorded_replies_are_judged_as_they_were_meant() {
    assert_eq!(verdict(&recorded(ACCEPTED)), Ok(()));
    assert_eq!(verdict(&recorded(POD_DELETED)), Err(ReviewRefusal::NotAuthenticated));
    assert_eq!(verdict(&recorded(WRONG_AUDIENCE)), Err(ReviewRefusal::NotAuthenticated));
}

#[test]
fn attack_02_a_review_without_one_of_our_audiences_is_refused() {
    for audiences in [json!([]), json!(null), json!(["other"]), json!(["Keyfold", "keyfold ", ""])] {
        let status = changed(|status| status["audiences"] = audiences.clone());
        assert_eq!(verdict(&status), Err(ReviewRefusal::Audience), "{audiences}");
    }
    let status = changed(|status| drop(status.as_object_mut().unwrap().remove("audiences")));
    assert_eq!(verdict(&status), Err(ReviewRefusal::Audience));
    let status = changed(|status| status["audiences"] = json!(["other", "keyfold"]));
    assert_eq!(verdict(&status), Ok(()));
}

#[test]
fn attack_04_only_authenticated_true_without_an_error_is_a_yes() {
    let not_authenticated = Err(ReviewRefusal::NotAuthenticated);
    assert_eq!(verdict(&changed(|status| status["authenticated"] = json!(false))), not_authenticated);
    assert_eq!(verdict(&changed(|status| status["authenticated"] = json!(null))), not_authenticated);
    assert_eq!(verdict(&changed(|status| status["error"] = json!("no"))), not_authenticated);
    assert_eq!(verdict(&TokenReviewStatus::default()), not_authenticated);
    assert_eq!(verdict(&changed(|status| status["error"] = json!(""))), Ok(()));
}

#[test]
fn attack_04_a_review_of_somebody_else_is_refused() {
    let other = Err(ReviewRefusal::OtherIdentity);
    for field in ["username", "uid"] {
        assert_eq!(verdict(&changed(|status| status["user"][field] = json!("another"))), other, "{field}");
        assert_eq!(verdict(&changed(|status| status["user"][field] = json!(null))), other, "{field}");
    }
    assert_eq!(verdict(&changed(|status| status["user"] = json!(null))), other);
    for name in ["pod-name", "pod-uid", "node-name", "node-uid"] {
        let name = format!("authentication.kubernetes.io/{name}");
        let with = |value: Value| changed(|status| status["user"]["extra"][&name] = value);
        assert_eq!(verdict(&with(json!(["another"]))), other, "{name}");
        assert_eq!(verdict(&with(json!([]))), other, "{name}");
        let right = changed(|_| {}).user.unwrap().extra.unwrap()[&name][0].clone();
        assert_eq!(verdict(&with(json!([right, "another"]))), other, "{name}");
        let without = changed(|status| {
            status["user"]["extra"].as_object_mut().unwrap().remove(&name);
        });
        assert_eq!(verdict(&without), Ok(()), "{name}");
    }
}

#[test]
fn what_is_not_known_is_not_compared() {
    let subject = "system:serviceaccount:payments:api";
    let expected = Expected { subject, uid: None, pod: None, node: None };
    assert_eq!(judge(&recorded(ACCEPTED), &ours(), expected), Ok(()));
    let expected = Expected { subject: "system:serviceaccount:payments:other", ..expected };
    assert_eq!(judge(&recorded(ACCEPTED), &ours(), expected), Err(ReviewRefusal::OtherIdentity));
}

#[test]
fn what_is_no_review_has_no_status() {
    for reply in
        ["", "{}", "[]", "null", r#"{"kind":"TokenReview"}"#, r#"{"kind":"Status","status":"Failure"}"#]
    {
        assert!(status(reply.as_bytes()).is_none(), "{reply}");
    }
    let other_kind = ACCEPTED.replace(r#""TokenReview""#, r#""SubjectAccessReview""#);
    assert!(status(other_kind.as_bytes()).is_none());
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(status(format!(r#"{{"kind":"TokenReview","status":{nested}}}"#).as_bytes()).is_none());
}

#[test]
fn the_request_is_the_recorded_one() {
    let recorded: Value = serde_json::from_str(ACCEPTED).unwrap();
    let request = request("(tokens/payments-api-on-node-vm.jwt)", &ours()).unwrap();
    assert_eq!(request.method(), http::Method::POST);
    assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    for part in ["apiVersion", "kind", "spec"] {
        assert_eq!(body[part], recorded[part], "{part}");
    }
}

#[test]
fn attack_14_its_words_are_kept_without_the_token_and_its_parts() {
    let token =
        include_str!("../../../../tests/fixtures/kubernetes-1.36/tokens/payments-api-on-node-vm.jwt").trim();
    let of = |said: &str| words(&changed(|status| status["error"] = json!(said)));
    assert_eq!(of(&format!("no such token: {token}")), "no such token: TOKEN.TOKEN.TOKEN");
    let [header, payload, signature] = *token.split('.').collect::<Vec<_>>() else { panic!("three parts") };
    for part in [header, payload, signature, &signature[..100], &signature[3..]] {
        assert_eq!(of(&format!("bad part {part}, sorry")), "bad part TOKEN, sorry");
    }
    let plain = "[invalid bearer token, service account token has been invalidated for pod \
                 api-7d9f4/bd149297-fc0c-4827-b626-719bb0c7b2ab]";
    assert_eq!(of(plain), plain, "names and UIDs stay");
    assert_eq!(words(&recorded(ACCEPTED)), "");
    assert!(of(&"no ".repeat(1000)).len() <= WORDS_MAX_BYTES);
}
