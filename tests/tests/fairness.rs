//! One caller's flood is refused clearly and to a bound, and others are served meanwhile.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use keyfold::dev::{kubelet::Pod, tokens::Minter};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{
    GetSecretRequest, GetStatusRequest, IssueSecretsRequest, ListKeysRequest, SecretReference,
    key_service_client::KeyServiceClient, secret_service_client::SecretServiceClient,
    system_service_client::SystemServiceClient, workload_service_client::WorkloadServiceClient,
};
use keyfold_tests::{
    Recorded, World,
    faults::{Gate, channel, operator_of, within},
    faulty_issuer::driver_token,
    fixture,
    tls::channel_from,
};
use time::{OffsetDateTime, macros::datetime};
use tokio::task::JoinSet;
use tonic::{Code, Request, Status, transport::Channel};

const RECORDED: OffsetDateTime = datetime!(2026-11-23 05:45:00 UTC);
/// Where floods come from, while others call from 127.0.0.1.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A flood, sent at once.
const FLOOD: usize = 1000;
/// Enough connections for a flood with 64 streams on each.
const CONNECTIONS: usize = 16;
/// `limits.requests_per_driver`.
const DRIVER_MAX: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_driver_that_asks_a_thousand_times_at_once_leaves_others_served() {
    let world = World::start().await.with_payments().await;
    let channels = connections(&world).await;
    let (driver, pods) = (world.driver_token(), pod_tokens(&world.minter, "dev-node"));
    let asked = |at: usize| {
        let channel = channels[at % CONNECTIONS].clone();
        issue(channel, pods[at % pods.len()].clone(), driver.clone())
    };
    for _ in 0..3 {
        let flood: JoinSet<_> = (0..FLOOD).map(&asked).collect();
        let answers = while_others_are_served(&world, flood).await;
        assert!(answers.iter().any(Result::is_ok), "the flood's own first requests are served");
        assert_served_or_told_to_try_again(&answers);
    }
    // Every place came back: the driver has all of its own once more.
    let whole: JoinSet<_> = (0..DRIVER_MAX).map(&asked).collect();
    let answers = whole.join_all().await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_an_operator_who_asks_a_thousand_times_at_once_leaves_others_served() {
    let world = World::start().await.with_payments().await;
    let channels = connections(&world).await;
    let token = std::fs::read_to_string(world.server.setup().admin_token_file()).unwrap();
    let asked = |at: usize| read(channels[at % CONNECTIONS].clone(), token.clone());
    let flood: JoinSet<_> = (0..FLOOD).map(&asked).collect();
    let pods = pod_tokens(&world.minter, "other-node");
    let other = driver_token(&world.minter, "other-node");
    let served = flood_and(flood, async |at| {
        let channel = channel(world.server.setup());
        issue(channel, pods[at % pods.len()].clone(), other.clone()).await.expect("a pod is served");
    });
    let answers = served.await;
    assert!(answers.iter().any(Result::is_ok), "the flood's own first requests are served");
    assert_served_or_told_to_try_again(&answers);
    let whole: JoinSet<_> = (0..32).map(&asked).collect();
    let answers = whole.join_all().await;
    assert!(answers.iter().all(Result::is_ok), "every place came back: {answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_thousand_requests_at_once_that_prove_nothing_leave_others_served() {
    let world = World::start().await.with_payments().await;
    let channels = connections(&world).await;
    let pod = pod_tokens(&world.minter, "dev-node").remove(0);
    let flood: JoinSet<_> = (0..FLOOD)
        .map(|at| issue(channels[at % CONNECTIONS].clone(), pod.clone(), "no.to.ken".into()))
        .collect();
    let answers = while_others_are_served(&world, flood).await;
    let told: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap_err().code()).collect();
    assert!(told.contains(&Code::Unauthenticated), "the first ones are looked at");
    assert!(
        told.iter().all(|code| matches!(code, Code::Unauthenticated | Code::ResourceExhausted)),
        "{told:?}"
    );
    let after = issue(channels[0].clone(), pod, world.driver_token()).await;
    after.expect("the places came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_in_work_of_one_driver_are_bounded() {
    let world = Recorded::configured(RECORDED, |config| config.limits.requests_per_driver = 2).await;
    let flood = || recorded(&world, ELSEWHERE, "vm");
    let other = recorded(&world, ELSEWHERE, "b");
    assert_bounded(&world, flood, other, Code::Ok, "the driver has 2 requests in work already: try again")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_in_work_of_one_pod_are_bounded() {
    let world = Recorded::configured(RECORDED, |config| config.limits.requests_per_pod = 2).await;
    let flood = || recorded(&world, ELSEWHERE, "vm");
    let other = recorded(&world, ELSEWHERE, "b");
    assert_bounded(&world, flood, other, Code::Ok, "the pod has 2 requests in work already: try again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_in_work_of_one_operator_are_bounded() {
    let world = Recorded::configured(RECORDED, |config| config.limits.requests_per_operator = 2).await;
    let token = std::fs::read_to_string(world.setup.admin_token_file()).unwrap();
    let flood = || read(channel_from(ELSEWHERE, &world.setup), token.clone());
    let other = recorded(&world, ELSEWHERE, "vm");
    let message = "the operator has 2 requests in work already: try again";
    assert_bounded(&world, flood, other, Code::Ok, message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_in_work_of_one_address_are_bounded_before_anybody_is_known() {
    let world = Recorded::configured(RECORDED, |config| config.limits.requests_per_peer = 2).await;
    let flood = || {
        let mut keys = KeyServiceClient::new(channel_from(ELSEWHERE, &world.setup));
        async move { keys.list_keys(bearer(ListKeysRequest::default(), "kfa_wrong")).await.map(drop) }
    };
    let other = recorded(&world, Ipv4Addr::LOCALHOST, "vm");
    let message = "the network address has 2 requests in work already: try again";
    assert_bounded(&world, flood, other, Code::Unauthenticated, message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_callers_who_hang_up_in_the_middle_give_their_places_back() {
    let world = Recorded::configured(RECORDED, |config| config.limits.requests_per_driver = 2).await;
    let gate = Gate::at_appends_of_entries(&world.database);
    for _ in 0..3 {
        gate.close();
        let held = recorded(&world, ELSEWHERE, "vm");
        let held = [tokio::spawn(held), tokio::spawn(recorded(&world, ELSEWHERE, "vm"))];
        gate.until_held().await;
        held.iter().for_each(tokio::task::JoinHandle::abort);
        gate.open();
        let again = async {
            while let Err(status) = recorded(&world, ELSEWHERE, "vm").await {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            }
        };
        within(Duration::from_secs(30), "the places to come back", again).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_pods_beyond_what_is_worked_on_at_once_is_served_and_nobody_is_refused() {
    let world = Recorded::configured(RECORDED, |config| config.limits.working_requests = 2).await;
    let node = |at: usize| if at.is_multiple_of(2) { "vm" } else { "b" };
    // From many addresses, and no more at once than one driver or pod may have.
    let from = |at: usize| Ipv4Addr::new(127, 0, 0, 2 + u8::try_from(at).unwrap());
    for _ in 0..5 {
        let burst: JoinSet<_> = (0..30).map(|at| recorded(&world, from(at), node(at))).collect();
        let answers = burst.join_all().await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_more_than_can_be_served_is_refused_before_its_tokens_are_looked_at() {
    let world = Recorded::configured(RECORDED, |config| {
        config.limits.working_requests = 1;
        config.limits.wait_millis = 0;
    })
    .await;
    let gate = Gate::at_appends_of_entries(&world.database);
    gate.close();
    let held = tokio::spawn(recorded(&world, ELSEWHERE, "vm"));
    gate.until_held().await;
    // Who is worked on for long gives its place up, so some of these are looked at, and found wanting.
    let wrong = |at: u8| {
        let pod = fixture("tokens/payments-api-on-node-b.jwt").trim().to_owned();
        issue(channel_from(Ipv4Addr::new(127, 0, 1, at), &world.setup), pod, "no.to.ken".into())
    };
    let mut flood: JoinSet<_> = (0..64).map(wrong).collect();
    let mut told = Vec::new();
    while told.iter().all(|status: &Status| status.code() != Code::ResourceExhausted) {
        let answer = flood.join_next().await.expect("one of them is refused early");
        told.push(answer.unwrap().unwrap_err());
    }
    gate.open();
    told.extend(flood.join_all().await.into_iter().map(Result::unwrap_err));
    let (early, looked_at): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|status| status.code() == Code::ResourceExhausted);
    assert!(early.iter().all(|status| status.message().ends_with(": try again")), "{early:?}");
    assert!(looked_at.iter().all(|status| status.code() == Code::Unauthenticated), "{looked_at:?}");
    held.await.unwrap().expect("what is worked on is served");
    recorded(&world, ELSEWHERE, "vm").await.expect("afterwards all is as before");
}

/// Of eight calls at once, two are in work and end with `served`, six are refused at once with `message`; `other` is
/// served meanwhile, and then all of it once more.
async fn assert_bounded<F>(
    world: &Recorded,
    flood: impl Fn() -> F,
    other: impl Future<Output = Result<(), Status>> + Send + 'static,
    served: Code,
    message: &str,
) where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    // Who appends an entry is in work until the gate opens.
    let gate = Gate::at_appends_of_entries(&world.database);
    let mut other = Some(other);
    for _ in 0..2 {
        gate.close();
        let mut calls: JoinSet<_> = (0..8).map(|_| flood()).collect();
        for _ in 0..6 {
            let refused = calls.join_next().await.unwrap().unwrap().unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, message));
        }
        let other = other.take().map(tokio::spawn);
        gate.until_held().await;
        gate.open();
        if let Some(other) = other {
            other.await.unwrap().expect("another caller is served");
        }
        let ended = calls
            .join_all()
            .await
            .into_iter()
            .map(|call| call.err().map_or(Code::Ok, |status| status.code()));
        assert_eq!(ended.collect::<Vec<_>>(), [served; 2]);
    }
    assert_eq!(flood().await.err().map_or(Code::Ok, |status| status.code()), served);
}

/// A call of the recorded pod on `node`, by the recorded driver there, from `address`.
fn recorded(
    world: &Recorded,
    address: Ipv4Addr,
    node: &str,
) -> impl Future<Output = Result<(), Status>> + Send + use<> {
    let [pod, driver] = ["payments-api", "driver"]
        .map(|who| fixture(&format!("tokens/{who}-on-node-{node}.jwt")).trim().to_owned());
    issue(channel_from(address, &world.setup), pod, driver)
}

/// The flood's answers. While it lasts, another node's pods and the operator are served, each of them.
async fn while_others_are_served(
    world: &World,
    flood: JoinSet<Result<(), Status>>,
) -> Vec<Result<(), Status>> {
    let pods = pod_tokens(&world.minter, "other-node");
    let other = driver_token(&world.minter, "other-node");
    flood_and(flood, async |at| {
        let channel = channel(world.server.setup());
        let issued = issue(channel, pods[at % pods.len()].clone(), other.clone()).await;
        issued.expect("another node's pod is served");
        let request = GetSecretRequest { path: "payments/db".into(), version: None };
        let read = operator_of(&world.server).secrets().get_secret(request).await;
        read.expect("an operator is served");
    })
    .await
}

/// The flood's answers, once `others` was done again and again until it was over.
async fn flood_and(
    flood: JoinSet<Result<(), Status>>,
    others: impl AsyncFn(usize),
) -> Vec<Result<(), Status>> {
    let flood = tokio::spawn(flood.join_all());
    for at in 0.. {
        others(at).await;
        if at >= 20 && flood.is_finished() {
            break;
        }
    }
    flood.await.unwrap()
}

fn assert_served_or_told_to_try_again(answers: &[Result<(), Status>]) {
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let message = refused.message();
        assert!(message.ends_with(": try again") && !message.starts_with("the server"), "{message}");
    }
}

/// Connections from elsewhere that are open, so that each keeps to the streams that it may have.
async fn connections(world: &World) -> Vec<Channel> {
    let channels: Vec<_> = (0..CONNECTIONS).map(|_| channel_from(ELSEWHERE, world.server.setup())).collect();
    for channel in &channels {
        SystemServiceClient::new(channel.clone()).get_status(GetStatusRequest {}).await.unwrap();
    }
    channels
}

/// Tokens of many pods on one node.
fn pod_tokens(minter: &Arc<Minter>, node: &str) -> Vec<String> {
    let token = |number: usize| {
        let pod = Pod {
            namespace: "payments".into(),
            name: format!("api-{node}-{number}"),
            service_account: "api".into(),
            node: node.into(),
            fs_group: None,
        };
        minter.mint(&pod.token_request(), SystemClock.now()).unwrap().jwt.to_string()
    };
    (0..DRIVER_MAX).map(token).collect()
}

async fn issue(channel: Channel, pod_token: String, driver: String) -> Result<(), Status> {
    let items = vec![SecretReference { path: "payments/db".into(), optional: false }];
    let message = IssueSecretsRequest { pod_token, role: "payments-api".into(), items };
    WorkloadServiceClient::new(channel).issue_secrets(bearer(message, &driver)).await.map(drop)
}

async fn read(channel: Channel, token: String) -> Result<(), Status> {
    let message = GetSecretRequest { path: "payments/db".into(), version: None };
    SecretServiceClient::new(channel).get_secret(bearer(message, &token)).await.map(drop)
}

fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}
