//! The reply that carries five secrets of 1 KiB.

use divan::{Bencher, black_box, counter::BytesCount};
use keyfold_proto::keyfold::v1::{Field, IssueSecretsResponse, IssuedSecret};
use prost::Message as _;

use crate::pod::{PATHS, ROLE, SECRET_BYTES};

/// On the server.
#[divan::bench]
fn encode(bencher: Bencher) {
    let reply = reply();
    bencher
        .counter(BytesCount::new(reply.encoded_len()))
        .bench_local(|| drop(black_box(black_box(&reply).encode_to_vec())));
}

/// In the driver.
#[divan::bench]
fn decode(bencher: Bencher) {
    let bytes = reply().encode_to_vec();
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        drop(black_box(IssueSecretsResponse::decode(black_box(&*bytes)).expect("it is one")));
    });
}

fn reply() -> IssueSecretsResponse {
    let secret = |path: &str| IssuedSecret {
        path: path.to_owned(),
        version: 3,
        fields: vec![Field { name: "value".into(), value: vec![7; SECRET_BYTES] }],
    };
    IssueSecretsResponse {
        role: ROLE.into(),
        secrets: PATHS.iter().map(|path| secret(path)).collect(),
        lease_expires_at: None,
    }
}
