//! Bounds on what callers can make the server hold: a call beyond one is refused clearly, and others are served.

use std::{
    io::Read as _,
    net::{Ipv4Addr, TcpStream},
    sync::Arc,
    time::Duration,
};

use keyfold_proto::keyfold::v1::{GetStatusRequest, system_service_client::SystemServiceClient};
use keyfold_tests::{Recorded, fixture, tls::channel_from};
use time::{OffsetDateTime, macros::datetime};
use tonic::Code;

const RECORDED: OffsetDateTime = datetime!(2026-11-23 05:45:00 UTC);

async fn issue(world: &Recorded) -> Result<usize, Code> {
    let (pod, driver) =
        (fixture("tokens/payments-api-on-node-vm.jwt"), fixture("tokens/driver-on-node-vm.jwt"));
    let issued = world.issue(&pod, &driver, "payments-api").await;
    issued.map(|issued| issued.secrets.len()).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_call_beyond_the_bound_is_refused_at_once_and_later_ones_are_served() {
    let world =
        Arc::new(Recorded::configured(RECORDED, |config| config.limits.concurrent_requests = 2).await);
    // Who holds the head row keeps every call waiting for its audit entry.
    let (access, name) = (world.database.access.clone(), world.database.name.clone());
    let holder = tokio::task::spawn_blocking(move || {
        access
            .sql(&name, "BEGIN; SELECT size FROM audit_head FOR UPDATE; SELECT pg_sleep(3); COMMIT")
            .unwrap()
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { issue(&world).await })
        })
        .collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    holder.await.unwrap();
    let served = answers.iter().filter(|answer| **answer == Ok(1)).count();
    let refused = answers.iter().filter(|answer| **answer == Err(Code::ResourceExhausted)).count();
    assert_eq!((served, refused), (2, 6), "{answers:?}");
    assert_eq!(issue(&world).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_connection_that_never_finishes_its_handshake_is_closed() {
    let world = Recorded::configured(RECORDED, |config| config.limits.handshake_secs = 1).await;
    let mut silent = TcpStream::connect(world.setup.url().replace("https://", "")).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let read = tokio::task::spawn_blocking(move || silent.read(&mut [0; 16]));
    assert_eq!(read.await.unwrap().unwrap(), 0, "the server closed the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_connections_beyond_the_bound_are_closed_and_a_freed_place_is_given_again() {
    let world = Recorded::configured(RECORDED, |config| config.limits.connections = 40).await;
    let mut open = Vec::new();
    // The set-up's own connections may still hold places for a moment.
    while issue(&world).await.is_ok() {
        assert!(open.len() < 1000, "every place is taken by an open connection");
        for _ in 0..10 {
            let channel = channel_from(Ipv4Addr::new(127, 0, 0, 2), &world.setup);
            // Those beyond the bound fail.
            let _ = SystemServiceClient::new(channel.clone()).get_status(GetStatusRequest {}).await;
            open.push(channel);
        }
    }
    open.clear();
    for _ in 0..100 {
        if issue(&world).await == Ok(1) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the places were not given again");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_give_their_places_to_new_ones() {
    let world = Recorded::configured(RECORDED, |config| {
        config.limits.connections = 40;
        config.limits.handshake_secs = 600;
    })
    .await;
    let address = world.setup.url().replace("https://", "");
    let _silent: Vec<_> = (0..60).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(issue(&world).await, Ok(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_volume_that_is_too_large_is_refused_by_its_size() {
    let world = Recorded::at(RECORDED).await;
    let status = world.issue_paths(&["payments/db"; 65]).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "a volume has 1 to 64 secrets"));
    let twice = world.issue_paths(&["payments/db", "payments/db"]).await.unwrap_err();
    assert_eq!((twice.code(), twice.message()), (Code::InvalidArgument, "path payments/db is named twice"));
}
