//! Garbage, truncated and huge messages on every socket, and names that would lead out of a volume. Whatever comes in,
//! the part answers or hangs up, serves the next caller, and changes nothing.

use std::{net::Ipv4Addr, time::Duration};

use http_body_util::{BodyExt as _, Full};
use keyfold::dev::kubelet::{csi_socket, registration_socket};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    DESCRIPTORS,
    csi::v1::{NodeUnpublishVolumeRequest, node_client::NodeClient},
    keyfold::v1::{
        Field, IssueSecretsRequest, IssueSecretsResponse, PutSecretRequest, SecretReference, State,
    },
};
use keyfold_tests::{
    PAYMENTS_SECRETS, Recorded, World,
    faults::{channel, status, unix_channel, within},
    tls::{H2, connect_from},
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tonic::{Code, body::Body, codegen::Bytes, transport::Channel};
use tower::{Service as _, ServiceExt as _};

/// The longest that a part may take to answer or to hang up.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const HUGE: usize = 10 * 1024 * 1024;
/// What every HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn attack_24_field_names_that_would_lead_out_of_a_volume_are_refused_and_nothing_is_written() {
    let world = World::start().await.with_payments().await;
    let long = "a".repeat(300);
    for name in ["../../etc/passwd", "..data", "", long.as_str()] {
        for path in ["payments/db", "payments/new"] {
            let good = Field { name: "good".into(), value: b"planted-value".into() };
            let bad = Field { name: name.into(), value: b"planted-value".into() };
            let request =
                PutSecretRequest { path: path.into(), fields: vec![good, bad], expected_version: None };
            let status = world.operator().secrets().put_secret(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            let named = &name[..name.len().min(64)];
            assert!(
                status.message().contains(named) && status.message().contains("field name"),
                "{status:?}"
            );
            assert!(!status.message().contains("planted-value"), "{status:?}");
        }
    }
    let stored = world.database.sql("SELECT path, newest_version FROM secrets");
    assert_eq!(stored, "payments/db|1");
    assert_eq!(world.put("payments/db", &[("password", "second")]).await, 2, "no version number was used up");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_garbage_on_the_servers_port_is_hung_up_on_and_others_are_served() {
    let world = World::start().await.with_payments().await;
    let address = world.server.setup().url().replace("https://", "");
    let mut tls_hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    tls_hello.extend([7; 100]);
    for (what, bytes) in garbage().into_iter().chain([("half a TLS hello", tls_hello)]) {
        let stream = TcpStream::connect(&address).await.unwrap();
        let answer = provoke(what, stream, &bytes).await;
        assert!(answer.len() < 100, "{what}: {answer:?}");
        assert_serves(&world).await;
    }
    // The same inside TLS, and over TLS without HTTP/2.
    for alpn in [&[H2][..], &[]] {
        for (what, bytes) in garbage() {
            let stream = connect_from(Ipv4Addr::LOCALHOST, world.server.setup(), alpn).await.unwrap();
            provoke(what, stream, &bytes).await;
            assert_serves(&world).await;
        }
    }
    let refused = connect_from(Ipv4Addr::LOCALHOST, world.server.setup(), &[b"http/1.1"]).await;
    assert!(refused.is_err(), "HTTP/1 is not spoken");
    assert_unharmed(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_client_that_goes_silent_before_it_speaks_http2_loses_its_connection() {
    let now = SystemClock.now();
    let world = Recorded::configured(now, |config| config.limits.handshake_secs = 1).await;
    for sent in [&b""[..], &PREFACE[..10]] {
        let mut stream = connect_from(Ipv4Addr::LOCALHOST, &world.setup, &[H2]).await.unwrap();
        stream.write_all(sent).await.unwrap();
        // Nothing is shut down: only the server can end this.
        let ended = within(ANSWER_MAX, "hanging up", stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_err() || ended.is_ok_and(|length| length == 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_garbage_on_the_drivers_sockets_is_hung_up_on_and_kubelet_is_served() {
    let world = World::start().await.with_payments().await;
    let dir = world.driver.kubelet().dir();
    for socket in [csi_socket(dir), registration_socket(dir)] {
        for (what, bytes) in garbage() {
            provoke(what, UnixStream::connect(&socket).await.unwrap(), &bytes).await;
            world.driver.kubelet().register().await.unwrap_or_else(|failure| panic!("{what}: {failure}"));
        }
    }
    assert_unharmed(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_malformed_truncated_and_huge_messages_to_every_rpc_get_an_error_status() {
    let world = World::start().await.with_payments().await;
    let dir = world.driver.kubelet().dir();
    let sockets = [
        ("keyfold.v1.", channel(world.server.setup())),
        ("csi.v1.", unix_channel(&csi_socket(dir))),
        ("pluginregistration.", unix_channel(&registration_socket(dir))),
    ];
    let entries = world.database.check_audit_log();
    for (package, mut channel) in sockets {
        let rpcs = rpcs(package);
        assert!(!rpcs.is_empty(), "{package}");
        for rpc in rpcs {
            for (what, body, codes) in messages() {
                let call = call(&mut channel, &rpc, body);
                let answer = within(ANSWER_MAX, what, call).await;
                assert!(
                    codes.contains(&answer.code),
                    "{what} to {rpc}: {:?} {}",
                    answer.code,
                    answer.message
                );
                assert_plain(&answer);
            }
        }
        let answer = call(&mut channel, "/keyfold.v1.SystemService/Nothing", frame(&[])).await;
        assert_eq!(answer.code, Code::Unimplemented);
    }
    assert_eq!(world.database.check_audit_log(), entries, "nothing was done");
    assert_unharmed(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_headers_of_a_hundred_kilobytes_are_refused() {
    let world = World::start().await.with_payments().await;
    let mut channel = channel(world.server.setup());
    let request = http::Request::post("http://localhost/keyfold.v1.SystemService/GetStatus")
        .header("content-type", "application/grpc")
        .header("authorization", format!("Bearer {}", "x".repeat(100 * 1024)))
        .body(Body::new(Full::new(Bytes::from(frame(&[])))))
        .unwrap();
    let answer = within(ANSWER_MAX, "the call", channel.ready().await.unwrap().call(request)).await;
    // A reset stream, or the status that RFC 6585 has for it.
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    assert_unharmed(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_requests_with_flipped_bits_get_what_the_pod_may_have_or_an_error_and_never_more() {
    let world = World::start().await.with_payments().await;
    world.server.apply("Keyspace", "other", &serde_json::json!({})).await.unwrap();
    world.put("other/db", &[("password", "planted-other")]).await;
    let (asking, mounting) =
        (world.pod("payments", "api", "asking"), world.pod("payments", "api", "mounting"));
    let issue = IssueSecretsRequest {
        pod_token: world.token(&asking).jwt.to_string(),
        role: "payments-api".into(),
        items: vec![SecretReference { path: "payments/db".into(), optional: false }],
    };
    let (issue, publish) = (issue.encode_to_vec(), world.publish_request(&mounting).encode_to_vec());
    let mut server = channel(world.server.setup());
    let mut driver = unix_channel(&csi_socket(world.driver.kubelet().dir()));
    let (bearer, mut random) = (format!("Bearer {}", world.driver_token()), Random(20_261_123));
    let mut issued = 0;
    for _ in 0..200 {
        let request = frame(&random.mutate(&issue));
        let call_server =
            call_as(Some(&bearer), &mut server, "/keyfold.v1.WorkloadService/IssueSecrets", request);
        let answer = within(ANSWER_MAX, "IssueSecrets", call_server).await;
        assert_plain(&answer);
        if answer.code == Code::Ok {
            let reply = IssueSecretsResponse::decode(&answer.body[5..]).unwrap();
            let paths: Vec<_> = reply.secrets.iter().map(|secret| secret.path.as_str()).collect();
            assert!(paths.is_empty() || paths == ["payments/db"], "{paths:?}");
            issued += 1;
        }
        let request = frame(&random.mutate(&publish));
        let call_driver = call(&mut driver, "/csi.v1.Node/NodePublishVolume", request);
        assert_plain(&within(ANSWER_MAX, "NodePublishVolume", call_driver).await);
        // A flipped bit can make another name of the target's, which is kubelet's to choose, but none elsewhere.
        for target in world.driver.mounts() {
            assert!(target.starts_with(world.driver.kubelet().dir().join("pods")), "{}", target.display());
        }
    }
    let entries = world.database.entries("secret.issue");
    let stated = entries
        .iter()
        .filter(|entry| entry["actor"]["pod"]["name"] == "asking" && entry["outcome"]["result"] == "allowed");
    assert_eq!(stated.count(), issued);
    let mut driver = NodeClient::new(driver);
    for target in world.driver.mounts() {
        let target_path = target.display().to_string();
        let unpublish = NodeUnpublishVolumeRequest { target_path, ..world.unpublish_request(&mounting) };
        driver.node_unpublish_volume(unpublish).await.unwrap();
    }
    assert_unharmed(&world).await;
}

/// What is no conversation at all.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let mut random = Random(1);
    let noise: Vec<u8> = (0..4096).map(|_| random.byte()).collect();
    let huge: Vec<u8> = (0..HUGE).map(|_| random.byte()).collect();
    let frames = |bytes: &[u8]| [PREFACE, bytes].concat();
    // Length of 24 bits, type, flags, stream of 31 bits: RFC 9113, section 4.1.
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let huge_frame: &[u8] = &[255, 255, 255, 0, 0, 0, 0, 0, 1];
    let cut_headers: &[u8] = &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x82, 0x86];
    vec![
        ("nothing", Vec::new()),
        ("noise", noise.clone()),
        ("ten megabytes of noise", huge.clone()),
        ("HTTP/1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("half a preface", PREFACE[..10].to_vec()),
        ("a preface and noise", frames(&noise)),
        ("a preface and ten megabytes of noise", frames(&huge)),
        ("a frame of 16 MiB", frames(&[settings, huge_frame, &[0; 1000]].concat())),
        ("headers that are cut off", frames(&[settings, cut_headers].concat())),
    ]
}

/// Bodies that are no message, and what may be said to them.
fn messages() -> Vec<(&'static str, Vec<u8>, &'static [Code])> {
    // Field 1 of 100 bytes, of which three are there.
    let truncated: &[u8] = &[0x0a, 100, b'a', b'b', b'c'];
    let noise: &[u8] = &[0xff; 64];
    let malformed = &[Code::Internal, Code::InvalidArgument, Code::Unimplemented];
    let too_long = &[Code::OutOfRange, Code::ResourceExhausted, Code::Unimplemented];
    vec![
        ("no message", Vec::new(), malformed),
        ("half a length", vec![0, 0, 0], malformed),
        ("a cut off message", frame(truncated)[..8].to_vec(), malformed),
        ("a cut off field", frame(truncated), malformed),
        ("noise", frame(noise), malformed),
        ("an unknown compression", [&[1], &frame(truncated)[1..]].concat(), malformed),
        ("a length of 4 GiB", [&[0, 255, 255, 255, 255], noise].concat(), too_long),
        ("ten megabytes", frame(&vec![0x0a; HUGE]), too_long),
    ]
}

/// A message as gRPC frames it: not compressed, its length, its bytes.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// Every RPC of the services whose full names begin with `package`, as HTTP paths.
fn rpcs(package: &str) -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let mut rpcs = Vec::new();
    for file in &files {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            if name.starts_with(package) {
                rpcs.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
            }
        }
    }
    rpcs
}

/// An answer to a call.
struct Answer {
    code: Code,
    message: String,
    /// The framed reply.
    body: Bytes,
}

/// Sends `body` to `rpc` as it is, without a token.
async fn call(channel: &mut Channel, rpc: &str, body: Vec<u8>) -> Answer {
    call_as(None, channel, rpc, body).await
}

/// The same with this `authorization`.
async fn call_as(authorization: Option<&str>, channel: &mut Channel, rpc: &str, body: Vec<u8>) -> Answer {
    let mut request = http::Request::post(format!("http://localhost{rpc}"))
        .version(http::Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let request = request.body(Body::new(Full::new(Bytes::from(body)))).unwrap();
    let channel = channel.ready().await.unwrap();
    let answer = channel.call(request).await.unwrap_or_else(|error| panic!("{rpc}: {error:?}"));
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or(head.headers);
    let status =
        tonic::Status::from_header_map(&trailers).unwrap_or_else(|| panic!("{rpc}: {:?}", head.status));
    Answer { code: status.code(), message: status.message().to_owned(), body: body.to_bytes() }
}

/// The message tells its reader what is wrong, and nothing of the program or of a secret.
fn assert_plain(answer: &Answer) {
    let Answer { code, message, .. } = answer;
    assert!(!matches!(code, Code::Unknown | Code::Unavailable | Code::DataLoss), "{code:?} {message}");
    assert!(*code == Code::Ok || !message.is_empty(), "{code:?} without a message");
    for inner in ["src/", "panicked", "keyfold_", "sqlx", "planted-", "eyJ"] {
        assert!(!message.contains(inner), "{code:?} {message}");
    }
}

/// Sends `bytes`, says that nothing follows, and gives what comes back until the other side hangs up.
async fn provoke(what: &str, stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        // It may well be hung up on before the end.
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let read = async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        answer
    };
    within(ANSWER_MAX, what, async { tokio::join!(write, read).1 }).await
}

async fn assert_serves(world: &World) {
    let told = within(ANSWER_MAX, "GetStatus", status(&world.server)).await.unwrap();
    assert_eq!(told.state(), State::Serving, "{}", told.message);
}

/// Server and driver still do their main work, and neither panicked on the way.
async fn assert_unharmed(world: &World) {
    assert!(world.driver.mounts().is_empty());
    let pod = world.pod("payments", "api", "after");
    let files = world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(std::fs::read(files.join("db/password")).unwrap(), b"first");
    world.driver.kubelet().unpublish(&world.volume(&pod)).await.unwrap();
    assert!(world.driver.mounts().is_empty());
    let log = world.logs();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("planted-") && !log.contains("eyJ"), "a value or a token is in a log");
    world.database.check_audit_log();
}

/// Marsaglia's xorshift: the same bytes in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % end
    }

    /// `message` with one to four bits flipped, and now and then cut off.
    fn mutate(&mut self, message: &[u8]) -> Vec<u8> {
        let mut mutated = message.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(mutated.len());
            mutated[at] ^= 1 << self.below(8);
        }
        if self.below(8) == 0 {
            mutated.truncate(self.below(message.len()));
        }
        mutated
    }
}
