//! What one caller who proves nothing can do to the others: take connections, streams, memory and room in the log, up to
//! a bound each, and the others are served meanwhile.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use keyfold::client::Client;
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{
    GetSecretRequest, GetStatusRequest, ListKeysRequest, key_service_client::KeyServiceClient,
    system_service_client::SystemServiceClient,
};
use keyfold_tests::{
    Installation, Recorded,
    faults::{channel, operator_of, until, within},
    tls::channel_from,
};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status, codegen::Bytes, transport::Channel};
use tower::{Service as _, ServiceExt as _};

/// Where the flood comes from, while others call from 127.0.0.1.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Far more than the server may need for what is held against it here.
const GROWTH_KIB_MAX: u64 = 200 * 1024;
/// A little below `limits.connections_per_peer`.
const CONNECTIONS: usize = 60;
/// A little below `limits.streams_per_connection`.
const STREAMS: usize = 60;
const MIB: usize = 1024 * 1024;

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const CHECK: &str = "grpc.health.v1.Health/Check";
const WATCH: &str = "grpc.health.v1.Health/Watch";
const PUT: &str = "keyfold.v1.SecretService/PutSecret";
const ISSUE: &str = "keyfold.v1.WorkloadService/IssueSecrets";

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_streams_that_announce_large_messages_hold_little_memory() {
    let installation = with_secret().await;
    let (before, mut held) = (resident_kib(&installation), Held::default());
    for _ in 0..CONNECTIONS {
        let channel = channel_from(ELSEWHERE, installation.setup());
        // As much as each of them takes.
        for (rpc, announced) in
            [(REFLECTION, 16_000), (CHECK, 16_000), (WATCH, 16_000), (ISSUE, 120_000), (PUT, MIB - 1024)]
        {
            held.open(&channel, rpc, message_begun(announced, 1), STREAMS / 5);
        }
    }
    held.until_sent().await;
    for _ in 0..20 {
        assert_serves(&installation).await;
        assert_growth(&installation, before);
    }
    let codes = held.until_ended().await;
    assert!(codes.contains(&Code::ResourceExhausted) && codes.contains(&Code::DeadlineExceeded), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_that_arrive_in_part_hold_little_memory_and_leave_room_for_others() {
    let installation = with_secret().await;
    installation.cli.write("large.json", format!(r#"{{"password": "{}"}}"#, "x".repeat(500 * 1024)));
    let (before, mut held) = (resident_kib(&installation), Held::default());
    // The large ones fill what there is, the small ones the rest of it.
    for sent in [MIB - 2048, MIB - 2048, MIB - 2048, 1024, 32] {
        let channel = channel_from(ELSEWHERE, installation.setup());
        held.open(&channel, PUT, message_begun(MIB - 1024, sent), STREAMS);
    }
    held.until_sent().await;
    for _ in 0..20 {
        assert_serves(&installation).await;
        installation.cli.ok("secret put payments/large --json large.json");
        assert_growth(&installation, before);
    }
    let codes = held.until_ended().await;
    assert!(codes.contains(&Code::ResourceExhausted) && codes.contains(&Code::DeadlineExceeded), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_requests_whose_messages_never_come_take_nobodys_place_and_are_given_up() {
    let installation = with_secret().await;
    let mut held = Held::default();
    for _ in 0..8 {
        let channel = channel_from(ELSEWHERE, installation.setup());
        held.open(&channel, PUT, Bytes::new(), STREAMS);
    }
    // More than `limits.concurrent_requests`.
    assert_eq!(held.until_sent().await, 480);
    for _ in 0..20 {
        assert_serves(&installation).await;
    }
    let codes = held.until_ended().await;
    assert!(codes.iter().all(|code| *code == Code::DeadlineExceeded), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_one_peer_cannot_take_every_connection() {
    let world = Recorded::configured(SystemClock.now(), |config| {
        config.limits.connections_per_peer = 20;
        config.limits.handshake_secs = 120;
    })
    .await;
    let address = world.setup.url().replace("https://", "");
    let status = async |from: Ipv4Addr| {
        let mut system = SystemServiceClient::new(channel_from(from, &world.setup));
        system.get_status(GetStatusRequest {}).await.map(drop)
    };
    let mut silent: Vec<TcpStream> = Vec::new();
    while status(Ipv4Addr::LOCALHOST).await.is_ok() {
        assert!(silent.len() < 1000, "every place of this peer is taken by a silent connection");
        silent.extend((0..20).map(|_| TcpStream::connect(&address).unwrap()));
    }
    status(ELSEWHERE).await.expect("another peer is served");
    silent.clear();
    until("a place to be given back", async || status(Ipv4Addr::LOCALHOST).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_flood_of_bad_tokens_has_few_entries_and_each_call_is_counted() {
    const CALLERS: u64 = 8;
    const CALLS: u64 = 150;
    let installation = with_secret().await;
    let first = installation.database.check_audit_log();
    let (start, mut flood) = (Instant::now(), JoinSet::new());
    for _ in 0..CALLERS {
        let keys = KeyServiceClient::new(channel(installation.setup()));
        flood.spawn(async move {
            for _ in 0..CALLS {
                let mut request = Request::new(ListKeysRequest::default());
                request.metadata_mut().insert("authorization", "Bearer kfa_wrong".parse().unwrap());
                let refused = keys.clone().list_keys(request).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
            }
        });
    }
    flood.join_all().await;
    let seconds = start.elapsed().as_secs() + 1;
    let counted = || {
        let entries = installation.database.entries("key.list");
        let of = |entry: &Value| entry["outcome"]["folded"].as_u64();
        let (folded, alone): (Vec<_>, Vec<_>) = entries.iter().map(of).partition(Option::is_some);
        (alone.len() as u64, folded.into_iter().flatten().collect::<Vec<_>>())
    };
    until("every refusal to be counted", async || {
        let (alone, folded) = counted();
        alone + folded.iter().sum::<u64>() == CALLERS * CALLS
    })
    .await;
    let (alone, folded) = counted();
    assert!(alone <= 16 * seconds, "{alone} entries in {seconds} s");
    assert!(!folded.is_empty() && folded.len() as u64 <= seconds, "{folded:?} in {seconds} s");
    assert_eq!(installation.database.check_audit_log(), first + alone + folded.len() as u64);

    let listed =
        installation.cli.ok("audit list -o json --operation key.list --outcome refused --limit 1000");
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len() as u64, alone + folded.len() as u64);
    assert!(listed.iter().all(|entry| {
        entry["from"] == "127.0.0.1"
            && entry["actor"]["kind"] == "unknown"
            && entry["outcome"]["reason"] == "operator-token"
    }));
}

/// With `payments/db`, which `assert_serves` reads.
async fn with_secret() -> Installation {
    let installation = Installation::with_payments().await;
    installation.cli.write("db.json", r#"{"password": "first"}"#);
    installation.cli.ok("secret put payments/db --json db.json");
    installation
}

/// A call on a new connection from 127.0.0.1 is answered.
async fn assert_serves(installation: &Installation) {
    let read =
        within(Duration::from_secs(15), "another's call", read(&operator_of(&installation.server))).await;
    assert_eq!(read.unwrap(), b"first");
}

async fn read(operator: &Client) -> Result<Vec<u8>, Status> {
    let request = GetSecretRequest { path: "payments/db".into(), version: None };
    Ok(operator.secrets().get_secret(request).await?.into_inner().fields[0].value.clone())
}

/// Memory of the server's process (VmRSS of proc(5)).
fn resident_kib(installation: &Installation) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", installation.server.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn assert_growth(installation: &Installation, before: u64) {
    let growth = resident_kib(installation).saturating_sub(before);
    assert!(growth < GROWTH_KIB_MAX, "the server grew by {growth} KiB");
}

/// The beginning of a gRPC message that is `announced` bytes long, with `sent` of them.
fn message_begun(announced: usize, sent: usize) -> Bytes {
    let length = u32::try_from(announced).unwrap().to_be_bytes();
    [&[0], &length[..], &vec![0x0a; sent]].concat().into()
}

/// Calls that are not finished.
#[derive(Default)]
struct Held {
    calls: JoinSet<Code>,
    opened: usize,
    sent: Arc<AtomicUsize>,
}

impl Held {
    /// Begins `count` calls of `rpc` on one connection: each sends `bytes`, and never its end.
    fn open(&mut self, channel: &Channel, rpc: &str, bytes: Bytes, count: usize) {
        for _ in 0..count {
            let body = Unfinished { bytes: Some(bytes.clone()), sent: Arc::clone(&self.sent) };
            let request = http::Request::post(format!("http://127.0.0.1/{rpc}"))
                .version(http::Version::HTTP_2)
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(tonic::body::Body::new(body))
                .unwrap();
            self.calls.spawn(answer(channel.clone(), request));
            self.opened += 1;
        }
    }

    /// Waits until all have sent what they send, or are refused. Gives how many there are.
    async fn until_sent(&self) -> usize {
        until("the calls to be on their way", async || self.sent.load(Ordering::Relaxed) == self.opened)
            .await;
        self.opened
    }

    /// Waits until the server has ended them all. Gives how.
    async fn until_ended(self) -> Vec<Code> {
        within(Duration::from_secs(60), "the server's patience", self.calls.join_all()).await
    }
}

async fn answer(mut channel: Channel, request: http::Request<tonic::body::Body>) -> Code {
    let answer = match channel.ready().await.unwrap().call(request).await {
        Ok(answer) => answer,
        Err(error) => return Status::from_error(error.into()).code(),
    };
    let (head, body) = answer.into_parts();
    let trailers = match body.collect().await {
        Ok(body) => body.trailers().cloned().unwrap_or(head.headers),
        Err(status) => return status.code(),
    };
    Status::from_header_map(&trailers).map_or(Code::Unknown, |status| status.code())
}

/// A body that has an end in sight and never comes to it.
struct Unfinished {
    bytes: Option<Bytes>,
    sent: Arc<AtomicUsize>,
}

impl Body for Unfinished {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Pending };
        self.sent.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
