//! Tokens as those of operators.

use super::*;
use crate::identity::OperatorIdentity;

const PROVIDER_URL: &str = "https://id.example";

fn provider() -> IssuerSpec {
    IssuerSpec { kind: IssuerKind::Oidc, url: PROVIDER_URL.into(), ..issuer() }
}

/// As an OpenID provider writes it, with a group.
fn person() -> Value {
    let now = NOW.unix_timestamp();
    json!({
        "iss": PROVIDER_URL, "aud": "keyfold", "sub": "248289761001", "iat": now, "exp": now + 600,
        "email": "alice@example.com", "groups": ["platform", "on-call"],
    })
}

fn operator(claims: &Value, spec: &IssuerSpec) -> Result<OperatorIdentity, TokenRefusal> {
    let token = token_of(&header().to_string(), &claims.to_string());
    let parsed = UnverifiedToken::parse(&token)?;
    let issuer = ObjectName::try_from("people").expect("a name");
    check_claims(&parsed, &issuer, spec, NOW)?.operator()
}

fn refusal(claims: &Value, spec: &IssuerSpec) -> &'static str {
    operator(claims, spec).expect_err("this token must be refused").code()
}

#[test]
fn a_person_is_known_by_issuer_and_subject_with_all_claims() {
    let identity = operator(&person(), &provider()).expect("a good token");
    assert_eq!(identity.name(), "people/248289761001");
    assert_eq!(identity.claims["groups"], json!(["platform", "on-call"]));
    assert_eq!(identity.claims["sub"], "248289761001");
    assert_eq!(identity.expires_at, NOW + Duration::from_secs(600));
    assert_eq!(identity.credential_id, None);
}

#[test]
fn claims_are_not_written_where_an_identity_is_logged() {
    let shown = format!("{:?}", operator(&person(), &provider()).expect("a good token"));
    assert!(shown.contains("people/248289761001") && !shown.contains("alice@"), "{shown}");
}

#[test]
fn a_service_account_is_an_operator_without_a_pod() {
    let unbound = with(with(claims(), "/kubernetes.io/pod", Value::Null), "/kubernetes.io/node", Value::Null);
    let identity = operator(&unbound, &issuer()).expect("a good token");
    assert_eq!(identity.name(), "people/system:serviceaccount:payments:api");
    assert!(operator(&claims(), &issuer()).is_ok(), "nor need it be without one");
}

#[test]
fn a_service_accounts_subject_must_agree_also_for_an_operator() {
    for (at, value, code) in [
        ("/sub", json!("system:serviceaccount:kube-system:api"), "token-subject"),
        ("/kubernetes.io/namespace", json!("kube-system"), "token-subject"),
        ("/kubernetes.io/serviceaccount/name", json!("admin"), "token-subject"),
        ("/kubernetes.io", Value::Null, "token-claim-missing"),
    ] {
        assert_eq!(refusal(&with(claims(), at, value.clone()), &issuer()), code, "{at} {value}");
    }
}

#[test]
fn attack_02_a_providers_token_for_others_too_is_refused_unless_they_are_trusted() {
    let trusting = IssuerSpec { audiences: ["keyfold", "console"].map(String::from).into(), ..provider() };
    let cases = [
        (json!(["keyfold"]), None, None),
        (json!(["keyfold", "console"]), Some("token-audience-shared"), None),
        (json!(["keyfold", "mail"]), Some("token-audience-shared"), Some("token-audience-shared")),
        (json!(["mail"]), Some("token-audience"), Some("token-audience")),
        (json!([]), Some("token-claim-malformed"), Some("token-claim-malformed")),
        (Value::Null, Some("token-claim-missing"), Some("token-claim-missing")),
    ];
    for (audience, strict, lenient) in cases {
        for azp in [Value::Null, json!("keyfold"), json!("mail")] {
            let claims = with(with(person(), "/aud", audience.clone()), "/azp", azp);
            let code = |spec| operator(&claims, spec).err().map(|refusal| refusal.code());
            assert_eq!((code(&provider()), code(&trusting)), (strict, lenient), "{claims}");
        }
    }
}

#[test]
fn a_subject_that_could_not_be_a_name_is_refused() {
    for good in ["a", "auth0|5f7c8ec7", "repo:org/repo:environment:My Env", &"a".repeat(255)] {
        assert!(operator(&with(person(), "/sub", json!(good)), &provider()).is_ok(), "{good}");
    }
    let bad = [
        "",
        " ",
        " alice",
        "alice ",
        "alice\n",
        "al\u{1b}[2Jice",
        "alice\0",
        "al\u{7f}ice",
        "\u{430}lice",
        "alic\u{e9}",
        "\u{202e}ecila",
        &"a".repeat(256),
    ];
    for bad in bad {
        assert_eq!(
            refusal(&with(person(), "/sub", json!(bad)), &provider()),
            "token-claim-malformed",
            "{bad:?}"
        );
    }
    assert_eq!(refusal(&with(person(), "/sub", json!(7)), &provider()), "token-claim-malformed");
    assert_eq!(refusal(&with(person(), "/sub", Value::Null), &provider()), "token-claim-missing");
}

#[test]
fn attack_05_a_providers_token_never_proves_a_pod() {
    let mut disguised = claims();
    disguised["iss"] = json!(PROVIDER_URL);
    for claims in [person(), disguised] {
        let token = token_of(&header().to_string(), &claims.to_string());
        let refusal = read(&token, &provider(), NOW).expect_err("not a pod's");
        assert_eq!(refusal.code(), "token-not-of-a-cluster");
    }
}
