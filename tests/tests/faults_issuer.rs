//! Issuers that misbehave, end to end: they stop nobody's tokens but their own, send the server nowhere, and are believed
//! again once they answer well.

use std::{fs, sync::Arc, time::Duration};

use keyfold::dev::{
    kubelet::Pod,
    pki::{Authority, LOOPBACK},
    tokens::{Minter, SigningKey},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{
    DeleteObjectRequest, IssueSecretsRequest, SecretReference, workload_service_client::WorkloadServiceClient,
};
use keyfold_tests::{
    World,
    faults::{until, within},
    faulty_issuer::{Answer, DOCUMENT, FaultyIssuer, KEYS, PlainService, driver_token, signing_key},
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Request, Status, transport::Channel};

/// In every wrong answer: nothing of an answer may reach a caller or an audit entry.
const PLANTED: &str = "planted-in-the-answer";
/// The longest that a driver waits for one answer: a caller must be told before.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// Far less than what the issuer offers.
const GROWTH_KIB_MAX: u64 = 32 * 1024;
/// How often an issuer may be asked because of what callers send.
const ATTEMPT_INTERVAL_SECS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_issuers_that_answer_rubbish_stop_only_their_own_tokens_until_they_answer_well() {
    let setting = Setting::new().await;
    let html = || Answer::Body(format!("<html>{PLANTED}</html>"));
    let other_document = json!({"issuer": format!("https://{PLANTED}"), "jwks_uri": "https://127.0.0.1:1/"});
    let other_keys = json!({"keys": [{"kty": "RSA", "kid": PLANTED, "n": 1}, 7], "more": PLANTED});
    let one_kid_twice = json!({"keys": [setting.key.jwk(), setting.key.jwk()]});
    let faults = [
        ("document-is-html", DOCUMENT, html()),
        ("document-is-not-there", DOCUMENT, Answer::Status(404)),
        ("document-is-no-http", DOCUMENT, Answer::Raw([PLANTED.as_bytes(), &[0, 0xff]].concat())),
        ("document-is-empty", DOCUMENT, Answer::Raw(Vec::new())),
        ("document-of-another", DOCUMENT, Answer::Body(other_document.to_string())),
        ("keys-are-html", KEYS, html()),
        ("keys-fail", KEYS, Answer::Status(503)),
        (
            "keys-are-half",
            KEYS,
            Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"keys\":[".to_vec()),
        ),
        ("keys-have-one-kid-twice", KEYS, Answer::Body(one_kid_twice.to_string())),
    ];
    let mut issuers = Vec::new();
    for (name, path, answer) in faults {
        let issuer = setting.issuer(name).await;
        issuer.answer(path, answer);
        issuers.push(issuer);
    }
    // Keys that are none: not an outage, and no key of it is believed.
    let keyless = setting.issuer("keys-are-none").await;
    keyless.answer(KEYS, Answer::Body(other_keys.to_string()));
    issuers.push(keyless);
    setting.declare(&issuers).await;
    for issuer in &issuers[..9] {
        assert_unavailable(&setting.ask(issuer).await.unwrap_err(), issuer.name());
        setting.assert_serves_others().await;
    }
    let refused = setting.ask(&issuers[9]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(!refused.message().contains(PLANTED), "{refused:?}");
    setting.assert_told_in_the_log(&issuers[..9]);
    setting.assert_nothing_planted_was_kept();

    issuers.iter().for_each(FaultyIssuer::answer_well);
    for issuer in &issuers {
        setting.until_accepted(issuer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_hundred_mebibytes_from_an_issuer_are_not_read() {
    let setting = Setting::new().await;
    for (name, path) in [("huge-document", DOCUMENT), ("huge-keys", KEYS)] {
        let issuer = setting.issuer(name).await;
        issuer.answer(path, Answer::Mebibytes(100));
        let process = setting.world.server.process.pid();
        // From here on VmHWM is the highest of VmRSS (proc(5)).
        fs::write(format!("/proc/{process}/clear_refs"), "5").expect("tests may watch their own processes");
        let before = memory_kib(process, "VmRSS");
        setting.declare(std::slice::from_ref(&issuer)).await;
        assert_unavailable(&setting.ask(&issuer).await.unwrap_err(), name);
        let growth = memory_kib(process, "VmHWM").saturating_sub(before);
        assert!(growth < GROWTH_KIB_MAX, "the server grew by {growth} KiB");
        let sent = issuer.body_bytes_sent();
        assert!(sent < 50 * 1024 * 1024, "the server hung up, and still {sent} bytes were taken");
        setting.assert_told_in_the_log(std::slice::from_ref(&issuer));
        setting.assert_serves_others().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_slow_issuer_is_given_up_and_others_are_served_meanwhile() {
    const CALLERS: usize = 100;
    let setting = Setting::new().await;
    for (name, path) in [("slow-document", DOCUMENT), ("slow-keys", KEYS)] {
        let issuer = setting.issuer(name).await;
        issuer.answer(path, Answer::Slow(PLANTED.repeat(10)));
        setting.declare(std::slice::from_ref(&issuer)).await;
        let channels = [setting.world.channel(), setting.world.channel()];
        let mut callers: JoinSet<_> = (0..CALLERS)
            .map(|number| {
                let (channel, minter) =
                    (channels[number % 2].clone(), setting.minter(issuer.url(), "issuer"));
                async move {
                    within(ATTEMPT_MAX, "a caller of a slow issuer", ask(channel, &minter, number)).await
                }
            })
            .collect();
        until("the issuer to be asked", async || issuer.requests().iter().any(|head| head.contains(path)))
            .await;
        let mut told = 0;
        while told < CALLERS {
            setting.assert_serves_others().await;
            while let Some(answer) = callers.try_join_next() {
                assert_unavailable(&answer.unwrap().unwrap_err(), name);
                told += 1;
            }
        }
        let asked = issuer.requests().iter().filter(|head| head.contains(path)).count();
        assert_eq!(asked, 1, "all callers waited for one attempt");
    }
    setting.assert_nothing_planted_was_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_23_an_issuer_without_a_certificate_that_holds_is_sent_no_request() {
    let setting = Setting::new().await;
    let long_ago = Authority::new("Long ago", SystemClock.now() - time::Duration::days(60)).unwrap();
    let folder = setting.world.folder.path();
    let expired = FaultyIssuer::start("expired", &long_ago, folder).await;
    let of_another = setting.issuer("of-another-authority").await;
    let another = Authority::new("Another", SystemClock.now()).unwrap();
    of_another.present(&another.serving(&LOOPBACK).unwrap());
    let of_another_name = setting.issuer("of-another-name").await;
    of_another_name.present(&setting.authority.serving(&["issuer.example"]).unwrap());

    let issuers = [expired, of_another, of_another_name];
    setting.declare(&issuers).await;
    for issuer in &issuers {
        assert_unavailable(&setting.ask(issuer).await.unwrap_err(), issuer.name());
        assert!(issuer.connections() > 0 && issuer.requests().is_empty(), "{:?}", issuer.requests());
    }
    setting.assert_told_in_the_log(&issuers);
    setting.assert_serves_others().await;
    let [_, mended @ ..] = &issuers;
    for issuer in mended {
        issuer.present(&setting.authority.serving(&LOOPBACK).unwrap());
        setting.until_accepted(issuer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_23_no_redirect_of_an_issuer_is_followed() {
    let setting = Setting::new().await;
    // All is well there, so that whoever follows is served.
    let elsewhere = setting.issuer("elsewhere").await;
    let names = ["moved-301", "moved-302", "moved-303", "moved-307", "moved-308"];
    let mut issuers = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        let issuer = setting.issuer(name).await;
        let status = name.trim_start_matches("moved-").parse().unwrap();
        let path = if at % 2 == 0 { KEYS } else { DOCUMENT };
        issuer.answer(path, Answer::Redirect(status, format!("{}{path}", elsewhere.url())));
        issuers.push(issuer);
    }
    setting.declare(&issuers).await;
    for issuer in &issuers {
        assert_unavailable(&setting.ask(issuer).await.unwrap_err(), issuer.name());
    }
    assert_eq!(elsewhere.connections(), 0, "nobody went there");
    setting.assert_told_in_the_log(&issuers);
}

/// An issuer chooses where its keys are. What keeps it from using the server against others: only TLS, only to
/// authorities that the issuer object trusts, nothing sent but GET, and nothing of an answer told.
#[tokio::test(flavor = "multi_thread")]
async fn attack_23_an_issuer_that_names_other_hosts_for_its_keys_learns_nothing_and_reaches_nothing() {
    let setting = Setting::new().await;
    let metadata =
        PlainService::start(b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\nplanted-in-the-answer").await;
    let unseen = PlainService::start(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let other = setting.issuer("other").await;
    let with_password = other.url().replace("https://", "https://user:password@");
    let addresses = [
        ("keys-by-https-where-there-is-none", format!("https://{}/latest/meta-data/", metadata.address)),
        ("keys-by-http", format!("http://{}/latest/meta-data/", unseen.address)),
        ("keys-with-a-password", format!("{with_password}{KEYS}")),
        ("keys-in-a-file", "file:///etc/passwd".to_owned()),
    ];
    let mut issuers = Vec::new();
    for (name, address) in &addresses {
        let issuer = setting.issuer(name).await;
        issuer.answer_with_keys_at(address);
        issuers.push(issuer);
    }
    setting.declare(&issuers).await;
    for issuer in &issuers {
        let asked = within(ATTEMPT_MAX, issuer.name(), setting.ask(issuer)).await;
        assert_unavailable(&asked.unwrap_err(), issuer.name());
    }
    let handshake = 0x16;
    let received = metadata.received();
    assert!(
        !received.is_empty() && received.iter().all(|bytes| bytes.first() == Some(&handshake)),
        "{received:?}"
    );
    assert!(unseen.received().is_empty(), "nothing is sent without TLS: {:?}", unseen.received());
    assert_eq!(other.connections(), 0, "an address with a password is not used");
    setting.assert_told_in_the_log(&issuers);
    setting.assert_nothing_planted_was_kept();

    // Nobody's credentials go to an issuer that answers well either.
    setting.declare(std::slice::from_ref(&other)).await;
    setting.ask(&other).await.unwrap();
    for head in other.requests() {
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get ") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(["authorization", "cookie", "proxy-"].iter().all(|name| !head.contains(name)), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_an_issuers_keys_refuses_no_pod_whose_key_is_published() {
    let setting = Setting::new().await;
    let issuer = Arc::new(setting.issuer("turning").await);
    setting.declare(std::slice::from_ref(&*issuer)).await;
    setting.ask(&issuer).await.unwrap();
    let [second, third] = ["second", "third"].map(|name| setting.minter(issuer.url(), name));

    // Traffic under the first key, of new tokens all the time.
    let stop = tokio_util::sync::CancellationToken::new();
    let (stopped, channel, asked) = (stop.clone(), setting.world.channel(), Arc::clone(&issuer));
    let traffic = tokio::spawn(async move {
        let mut calls = 0;
        while !stopped.is_cancelled() {
            ask(channel.clone(), &asked.minter, calls).await.expect("the first key is published");
            calls += 1;
        }
        calls
    });
    issuer.publish(&[&issuer.minter.key, &second.key]);
    until("the second key to count", async || setting.knows(&second).await).await;
    stop.cancel();
    assert!(traffic.await.unwrap() > 0);

    issuer.publish(&[&second.key]);
    until("the first key to count no more", async || {
        // Who asks for a third makes the server look.
        let unknown = ask(setting.world.channel(), &third, 0).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unauthenticated, "{unknown:?}");
        !setting.knows(&issuer.minter).await
    })
    .await;
    ask(setting.world.channel(), &second, 0).await.expect("the second key is published");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_stops_no_known_key_and_is_not_asked_for_each_caller() {
    const CALLERS: usize = 40;
    let setting = Setting::new().await;
    let issuer = setting.issuer("away").await;
    setting.declare(std::slice::from_ref(&issuer)).await;
    setting.ask(&issuer).await.unwrap();
    issuer.hang_up();
    let (start, asked_before) = (Instant::now(), issuer.connections());
    let new_key = setting.minter(issuer.url(), "second");
    let attempts = || (issuer.connections() - asked_before) as u64;
    // Until it was asked, and then for as long again.
    while attempts() < 2 {
        let known_to_be_away = attempts() > 0;
        let unknown: JoinSet<_> = (0..CALLERS)
            .map(|number| {
                let (channel, minter) = (setting.world.channel(), setting.minter(issuer.url(), "second"));
                async move { ask(channel, &minter, number).await }
            })
            .collect();
        for refused in unknown.join_all().await {
            let refused = refused.unwrap_err();
            // Before the issuer was asked again, it has just said that it has no such key.
            if known_to_be_away || refused.code() != Code::Unauthenticated {
                assert_unavailable(&refused, "away");
            }
        }
        for number in 0..5 {
            ask(setting.world.channel(), &issuer.minter, number).await.expect("its key is known");
        }
        let elapsed_secs = start.elapsed().as_secs();
        assert!(elapsed_secs < 60, "the issuer is never asked again");
        assert!(attempts() <= elapsed_secs / ATTEMPT_INTERVAL_SECS + 1, "{} in {elapsed_secs} s", attempts());
    }

    issuer.present(&setting.authority.serving(&LOOPBACK).unwrap());
    issuer.publish(&[&issuer.minter.key, &new_key.key]);
    until("the new key to count", async || match ask(setting.world.channel(), &new_key, 0).await {
        Ok(()) => true,
        Err(refused) => {
            assert_unavailable(&refused, "away");
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_issuer_stops_at_once_on_both_replicas() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let servers = [&world.server, &replica];
    let pod = world.pod("payments", "api", "api-0");
    for server in servers {
        world.workloads(server).issue(&pod, &["payments/db"]).await.unwrap();
    }
    let workloads = servers.map(|server| world.workloads(server));
    let issuer = DeleteObjectRequest { kind: "Issuer".into(), name: "dev".into() };
    world.operator().config().delete_object(issuer).await.unwrap();
    for workloads in &workloads {
        for _ in 0..20 {
            let refused = workloads.issue(&pod, &["payments/db"]).await.map(drop).unwrap_err();
            // A replica that has not heard of it finds out when it appends the entry.
            assert!(matches!(refused.code(), Code::Unauthenticated | Code::Aborted), "{refused:?}");
        }
        until("the reason to be told", async || {
            let refused = workloads.issue(&pod, &["payments/db"]).await.map(drop).unwrap_err();
            refused.code() == Code::Unauthenticated
                && refused.message().contains("is not among the configured issuers")
        })
        .await;
    }
    let entries = world.database.entries("secret.issue");
    let allowed = entries.iter().filter(|entry| entry["outcome"]["result"] == "allowed").count();
    assert_eq!(allowed, 2, "only those before");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_may_be_apart_by_the_issuers_leeway_and_no_more() {
    let setting = Setting::new().await;
    let (strict, lenient) = (setting.issuer("strict").await, setting.issuer("lenient").await);
    setting.declare(std::slice::from_ref(&strict)).await;
    let mut spec = lenient.spec();
    spec["leeway"] = json!("5m");
    setting.declare_as(&lenient, &spec).await;
    setting.bind(&["strict", "lenient"]).await;
    spec["leeway"] = json!("5m1s");
    setting.world.server.apply("Issuer", "lenient", &spec).await.expect_err("five minutes are the most");

    // The issuer's clock is ahead by five minutes, or behind: its token expired 290 s ago.
    for (offset_secs, reason) in [(300, "token-not-yet-valid"), (-3600 - 290, "token-expired")] {
        setting
            .ask_at(&lenient, offset_secs)
            .await
            .unwrap_or_else(|status| panic!("{offset_secs}: {status:?}"));
        setting.ask_at(&strict, offset_secs).await.unwrap_err();
        assert_eq!(setting.last_reason(), reason);
    }
    // Within the default leeway of ten seconds.
    setting.ask_at(&strict, 10).await.unwrap();

    setting.ask_at(&lenient, -3600 - 301).await.unwrap_err();
    assert_eq!(setting.last_reason(), "token-expired");
    // Such a token begins to count within a second, so only an answer that came before tells anything.
    let refused = loop {
        let begins_to_count = SystemClock.now().unix_timestamp() + 1;
        let answer = setting.ask_at(&lenient, 301).await;
        if SystemClock.now().unix_timestamp() < begins_to_count {
            break answer.unwrap_err();
        }
    };
    assert!(
        refused.message().starts_with("the pod's token was refused: it is not valid before"),
        "{refused:?}"
    );
    assert_eq!(setting.last_reason(), "token-not-yet-valid");
}

/// A world whose own issuer is well, and an authority for others.
struct Setting {
    world: World,
    authority: Authority,
    /// That of all issuers here.
    key: SigningKey,
}

impl Setting {
    async fn new() -> Self {
        let world = World::start().await.with_payments().await;
        let authority = Authority::new("Faulty issuers", SystemClock.now()).unwrap();
        let key = signing_key(world.folder.path(), "issuer");
        Self { world, authority, key }
    }

    /// An issuer that answers well. It is not declared yet.
    async fn issuer(&self, name: &'static str) -> FaultyIssuer {
        FaultyIssuer::start(name, &self.authority, self.world.folder.path()).await
    }

    fn minter(&self, url: &str, key: &str) -> Minter {
        Minter { issuer: url.to_owned(), key: signing_key(self.world.folder.path(), key) }
    }

    /// Makes them issuers of pods that app role `faulty-api` binds.
    async fn declare(&self, issuers: &[FaultyIssuer]) {
        for issuer in issuers {
            self.declare_as(issuer, &issuer.spec()).await;
        }
        let names: Vec<_> = issuers.iter().map(FaultyIssuer::name).collect();
        self.bind(&names).await;
    }

    async fn declare_as(&self, issuer: &FaultyIssuer, spec: &serde_json::Value) {
        self.world.server.apply("Issuer", issuer.name(), spec).await.unwrap();
    }

    async fn bind(&self, issuers: &[&str]) {
        let binding =
            |name: &&str| json!({"issuer": name, "namespaces": ["payments"], "serviceAccounts": ["api"]});
        let role = json!({
            "bind": issuers.iter().map(binding).collect::<Vec<_>>(),
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        self.world.server.apply("AppRole", "faulty-api", &role).await.unwrap();
    }

    /// Asks for a secret with tokens of this issuer, of now.
    fn ask(&self, issuer: &FaultyIssuer) -> impl Future<Output = Result<(), Status>> + Send + use<> {
        let (channel, minter) = (self.world.channel(), self.minter(issuer.url(), "issuer"));
        async move { ask(channel, &minter, 0).await }
    }

    /// The same with a pod's token that was issued at another time.
    async fn ask_at(&self, issuer: &FaultyIssuer, offset_secs: i64) -> Result<(), Status> {
        let at = SystemClock.now() + time::Duration::seconds(offset_secs);
        ask_at(self.world.channel(), &issuer.minter, 0, at).await
    }

    async fn until_accepted(&self, issuer: &FaultyIssuer) {
        until(issuer.name(), async || self.ask(issuer).await.is_ok()).await;
    }

    /// Whether a token of this key is accepted; otherwise it is refused because the key is not known.
    async fn knows(&self, minter: &Minter) -> bool {
        let Err(refused) = ask(self.world.channel(), minter, 0).await else { return true };
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        assert!(refused.message().contains("the issuer publishes no key"), "{refused:?}");
        false
    }

    /// A pod of the issuer that is well gets its secret.
    async fn assert_serves_others(&self) {
        let (pod, driver) = (self.world.token(&pod(0)).jwt, self.world.driver_token());
        let issued = self.world.issue(&pod, &driver, "payments-api", &[("payments/db", false)]);
        assert_eq!(within(ATTEMPT_MAX, "another's call", issued).await.unwrap().secrets.len(), 1);
    }

    /// The operator finds the reason in the server's log.
    fn assert_told_in_the_log(&self, issuers: &[FaultyIssuer]) {
        let logs = self.world.logs();
        for issuer in issuers {
            let told = logs.lines().any(|line| line.contains("reason=") && line.contains(issuer.name()));
            assert!(told, "{}: {logs}", issuer.name());
        }
        assert!(!logs.contains("panicked"), "{logs}");
    }

    /// Neither in the audit log nor in what the driver writes.
    fn assert_nothing_planted_was_kept(&self) {
        let kept = "SELECT count(*) FROM audit_entries WHERE position('planted'::bytea IN entry) > 0";
        assert_eq!(self.world.database.sql(kept), "0");
    }

    /// Why the last request was refused.
    fn last_reason(&self) -> String {
        let entries = self.world.database.entries("secret.issue");
        entries.last().unwrap()["outcome"]["reason"].as_str().unwrap_or("allowed").to_owned()
    }
}

/// Retryable, and not a word of what the issuer answered.
fn assert_unavailable(refused: &Status, issuer: &str) {
    let message = format!(
        "the keys of issuer {issuer} cannot be fetched, so its tokens cannot be checked: try again, or see the \
         server's log"
    );
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, message.as_str()));
}

async fn ask(channel: Channel, minter: &Minter, number: usize) -> Result<(), Status> {
    ask_at(channel, minter, number, SystemClock.now()).await
}

async fn ask_at(channel: Channel, minter: &Minter, number: usize, at: OffsetDateTime) -> Result<(), Status> {
    let pod_token = minter.mint(&pod(number).token_request(), at).unwrap().jwt.to_string();
    let items = vec![SecretReference { path: "payments/db".into(), optional: false }];
    let mut request = Request::new(IssueSecretsRequest { pod_token, role: "faulty-api".into(), items });
    let bearer = format!("Bearer {}", driver_token(minter, "dev-node"));
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    WorkloadServiceClient::new(channel).issue_secrets(request).await.map(drop)
}

fn pod(number: usize) -> Pod {
    Pod {
        namespace: "payments".into(),
        name: format!("api-{number}"),
        service_account: "api".into(),
        node: "dev-node".into(),
        fs_group: None,
    }
}

/// A number of /proc/PID/status.
fn memory_kib(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}
