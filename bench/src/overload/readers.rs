//! Callers who ask for as much as one answer may hold, and do not read it.

use std::{sync::Arc, time::Duration};

use keyfold_proto::keyfold::v1::{
    Field, IssueSecretsRequest, IssueSecretsResponse, PutSecretRequest, SecretReference,
    secret_service_client::SecretServiceClient,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tonic::{Code, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{Bench, CALLERS, OTHERS, Phase, print};
use crate::{
    compare::{
        load::Pace,
        stored::{FIELD, KEYSPACE},
        tokens::service_account,
        workload::Workload,
    },
    timing::bearing,
};

/// Connections whose answers are not read.
const READERS: usize = 200;
/// Nodes that they come from, the first of them, and how many connections each has.
const FIRST_NODE: usize = 100;
const READERS_PER_NODE: usize = 10;
/// Secrets of one answer: close to the 8 MiB that a volume may have.
const LARGE: usize = 16;
const LARGE_BYTES: usize = 500 * 1024;
/// What a client takes before it reads: the least that HTTP/2 begins with.
const WINDOW_BYTES: u32 = 65_535;
/// A reader asks again so often when it is told to.
const TRIES: usize = 10;

/// An answer that nobody reads.
type Unread = Streaming<IssueSecretsResponse>;

/// Others' times and the server's memory, before and while the answers wait.
///
/// # Panics
/// When an answer is wrong.
pub(super) async fn measure(bench: &Bench<'_>, rate: f64) -> Value {
    write_large(bench).await;
    let mut others = bench.cluster.callers(CALLERS / 8, OTHERS).await;
    let source = bench.cluster.requests(Workload::Issue, OTHERS, usize::MAX);
    let pace = Pace::Open(rate);
    let (quiet, _) = bench.phase("quiet", &mut others, &source, pace, bench.phase).await;
    let p99 = quiet.p99_ms;
    let unread = Arc::new(Mutex::new(Vec::new()));
    let ((asking, _), codes) = tokio::join!(
        bench.phase("others, readers ask", &mut others, &source, pace, bench.phase),
        ask_all(bench, &unread)
    );
    let (waiting, _) = bench.phase("others, nobody reads", &mut others, &source, pace, bench.phase).await;
    let held = unread.lock().await.len();
    unread.lock().await.clear();
    let (after, _) = bench.phase("others, readers gone", &mut others, &source, pace, bench.phase).await;
    let phases: Vec<Phase> =
        [quiet, asking, waiting, after].into_iter().map(|phase| phase.beside(p99)).collect();
    print(&phases);
    println!("{held} answers of {} MiB waited, {} were refused", (LARGE * LARGE_BYTES) >> 20, codes.len());
    let codes: Vec<_> = codes.iter().map(|code| format!("{code:?}")).collect();
    json!({"phases": phases, "answers": held, "answer_bytes": LARGE * LARGE_BYTES, "refused": codes})
}

fn path(secret: usize) -> String {
    format!("{KEYSPACE}/large/s{secret}")
}

async fn write_large(bench: &Bench<'_>) {
    let channel = bench.cluster.broker.narrow_channel(FIRST_NODE, WINDOW_BYTES).await;
    let mut secrets = SecretServiceClient::new(channel);
    let operator = bench.cluster.mint.of("operator", "operator-0", 0);
    for secret in 0..LARGE {
        let field = Field { name: FIELD.into(), value: vec![b'x'; LARGE_BYTES] };
        let message = PutSecretRequest { path: path(secret), fields: vec![field], expected_version: None };
        secrets.put_secret(bearing(&operator, message)).await.expect("a large secret can be written");
    }
}

/// Lets all readers ask. Gives the codes of who was refused in the end.
async fn ask_all(bench: &Bench<'_>, unread: &Arc<Mutex<Vec<Unread>>>) -> Vec<Code> {
    let mut refused = Vec::new();
    for reader in 0..READERS {
        match ask(bench, reader).await {
            Ok(answer) => unread.lock().await.push(answer),
            Err(code) => refused.push(code),
        }
    }
    refused
}

/// The answer, of which nothing but its head has been read.
async fn ask(bench: &Bench<'_>, reader: usize) -> Result<Unread, Code> {
    let node = FIRST_NODE + reader / READERS_PER_NODE;
    let mut grpc = Grpc::new(bench.cluster.broker.narrow_channel(node, WINDOW_BYTES).await);
    let mint = &bench.cluster.mint;
    let driver = mint.of_driver(node);
    let message = IssueSecretsRequest {
        pod_token: mint.of(&service_account(0), &format!("reader-{reader}"), node),
        role: service_account(0),
        items: (0..LARGE).map(|secret| SecretReference { path: path(secret), optional: false }).collect(),
    };
    let mut code = Code::Unknown;
    for _ in 0..TRIES {
        grpc.ready().await.expect("the reader can connect");
        let path = PathAndQuery::from_static("/keyfold.v1.WorkloadService/IssueSecrets");
        let codec = ProstCodec::<IssueSecretsRequest, IssueSecretsResponse>::default();
        match grpc.server_streaming(bearing(&driver, message.clone()), path, codec).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => code = status.code(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(code)
}
