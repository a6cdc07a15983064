//! Keys turned, moved and destroyed while replicas race, machines pause, clocks jump, Postgres dies and rows rot.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use keyfold::dev::server::{Server, Setup};
use keyfold_core::clock::{Clock, SystemClock};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, CompromiseKeyRequest, GetKeyStatusRequest, GetSecretRequest, InitializeRequest,
    KeysetStatus, ListQuarantineRequest, Object, RetryQuarantineRequest, RotateKeyRequest, RotateKeyResponse,
    ScheduleKeyDestructionRequest, State, system_service_client::SystemServiceClient,
};
use keyfold_server::{
    config::{Config, ENVIRONMENT_PREFIX},
    serve,
};
use keyfold_tests::{
    Database, World,
    aged::Aged,
    faults::{Frozen, Gate, channel, operator_at, operator_of, until_state, within},
    key_invariants::{Written, write, write_as},
    server_setup,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::{Duration as Span, OffsetDateTime};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

/// Two batches of a rewrap.
const TWO_BATCHES: usize = 520;
/// As many as are written in some seconds; `bench/` does it with 100,000.
const MANY: usize = 10_000;

async fn rotate(server: &Server, no_wait: bool) -> Result<RotateKeyResponse, Status> {
    let request = RotateKeyRequest { keyspace: "payments".into(), no_wait, ..Default::default() };
    Ok(operator_of(server).keys().rotate_key(request).await?.into_inner())
}

async fn compromise(server: &Server) -> Result<(), Status> {
    let request = CompromiseKeyRequest { keyspace: "payments".into(), version: 0 };
    operator_of(server).keys().compromise_key(request).await.map(drop)
}

async fn key_status(server: &Server) -> KeysetStatus {
    let request = GetKeyStatusRequest { keyspace: "payments".into() };
    let mut status = operator_of(server).keys().get_key_status(request).await.unwrap().into_inner();
    status.keysets.pop().expect("the keyspace has a key")
}

async fn schedule_destruction(server: &Server, version: u32) -> Result<(), Status> {
    let request = ScheduleKeyDestructionRequest {
        keyspace: "payments".into(),
        version,
        delay_seconds: Some(1),
        ..Default::default()
    };
    operator_of(server).keys().schedule_key_destruction(request).await.map(drop)
}

fn active_version(world: &World) -> u32 {
    let sql = "SELECT version FROM keks WHERE state = 'active' AND purpose = 'data'";
    world.database.sql(sql).parse().unwrap()
}

/// Operators who write all the time, each secret once.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Gives what each was told is written, and why the writer stopped before it was told to.
    work: JoinSet<(Written, Option<Status>)>,
}

impl Writers {
    fn start<'a>(round: usize, servers: impl IntoIterator<Item = &'a Server>) -> Self {
        let (stop, mut work) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for (at, server) in servers.into_iter().enumerate() {
            for writer in 0..3 {
                let (operator, stop) = (operator_of(server), Arc::clone(&stop));
                work.spawn(async move {
                    let mut written = Written::new();
                    while !stop.load(Ordering::Relaxed) {
                        let path = format!("payments/writer-{round}-{at}-{writer}-{}", written.len());
                        match write_as(&operator, &path, &path).await {
                            Ok(_) => drop(written.insert(path.clone(), path)),
                            Err(failure) => return (written, Some(failure)),
                        }
                    }
                    (written, None)
                });
            }
        }
        Self { stop, work }
    }

    async fn end(self) -> (Written, Vec<Status>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut all, mut failures) = (Written::new(), Vec::new());
        for (written, failure) in self.work.join_all().await {
            all.extend(written);
            failures.extend(failure);
        }
        (all, failures)
    }
}

/// An operator who turns the key again and again, until told to stop or refused.
struct Turns {
    stop: Arc<AtomicBool>,
    /// Gives the newest version that was acknowledged.
    work: JoinHandle<u32>,
}

impl Turns {
    fn start(server: &Server) -> Self {
        let (operator, stop) = (operator_of(server), Arc::new(AtomicBool::new(false)));
        let is_over = Arc::clone(&stop);
        let work = tokio::spawn(async move {
            let mut newest = 0;
            while !is_over.load(Ordering::Relaxed) {
                let request = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
                match operator.keys().rotate_key(request).await {
                    Ok(turned) => newest = turned.into_inner().new_version,
                    Err(_) => break,
                }
            }
            newest
        });
        Self { stop, work }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        within(Duration::from_secs(60), "the turns", self.work).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_two_replicas_told_to_turn_at_once_again_and_again_turn_once_for_each_call() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let mut written = world.write_many(40).await;
    let writers = Writers::start(0, [&world.server, &replica]);
    let mut versions = BTreeSet::from([1]);
    for round in 0..6 {
        let turned = tokio::join!(rotate(&world.server, false), rotate(&replica, false));
        for turned in [turned.0, turned.1] {
            let turned = turned.unwrap_or_else(|refused| panic!("round {round}: {refused:?}"));
            assert!(versions.insert(turned.new_version), "round {round}: {turned:?} was made before");
        }
        world.database.assert_keys_are_whole();
    }
    let (last, failures) = writers.end().await;
    assert!(failures.is_empty(), "{failures:?}");
    written.extend(last);
    world.database.until_keys_are_settled("the last turn").await;
    assert_eq!(versions, (1..=13).collect());
    assert_eq!(active_version(&world), 13);
    for operation in ["key.rotate", "key.activate"] {
        assert_eq!(world.database.stated(operation), 12, "{operation}");
    }
    for server in [&world.server, &replica] {
        world.assert_pods_read(server, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_key_that_is_turned_on_one_replica_and_compromised_on_another_at_once_is_both() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let mut written = world.write_many(20).await;
    let writers = Writers::start(0, [&world.server, &replica]);
    for round in 1..=4 {
        let (turned, compromised) = tokio::join!(rotate(&world.server, false), compromise(&replica));
        turned.unwrap_or_else(|refused| panic!("round {round}: {refused:?}"));
        compromised.unwrap_or_else(|refused| panic!("round {round}: {refused:?}"));
        world.database.assert_keys_are_whole();
    }
    let (last, failures) = writers.end().await;
    assert!(failures.is_empty(), "{failures:?}");
    written.extend(last);
    world.database.until_keys_are_settled("the last turn").await;
    let compromised = "SELECT count(*) FROM keks WHERE state = 'compromised'";
    assert_eq!(world.database.sql(compromised), "4");
    for server in [&world.server, &replica] {
        world.assert_pods_read(server, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_schedule_that_two_replicas_follow_turns_a_key_once() {
    let world = World::start().await.with_payments().await;
    let _replica = world.second_replica().await;
    for turn in 1..=4 {
        Aged::ActiveKey.apply(world.server.setup(), &world.database).await;
        world.database.until_true("the turn", || world.database.stated("key.activate") == turn).await;
        world.database.until_keys_are_settled("the turn").await;
    }
    // Both look every second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!((active_version(&world), world.database.stated("key.create")), (5, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_replica_that_is_paused_in_the_middle_of_a_batch_loses_it_to_the_others() {
    let world = World::start().await.with_payments().await;
    let written = world.write_many(TWO_BATCHES).await;
    let gate = Gate::at_rewraps_beyond(&world.database, 0);
    gate.close();
    rotate(&world.server, true).await.unwrap();
    gate.until_held().await;
    let frozen = Frozen::freeze_server(&world.server);
    // Its statement ends; its transaction stays open, and with it the rows' locks, until Postgres ends it.
    gate.open();
    let replica = world.second_replica().await;
    world.database.until_keys_are_settled("the other replica's rewrap").await;
    assert_eq!(key_status(&replica).await.deks_done, written.len() as u64 + 1);
    drop(frozen);
    world.assert_pods_read(&world.server, &written).await;
    let turned = rotate(&world.server, false).await.unwrap();
    assert_eq!(turned.new_version, 3);
    world.database.until_keys_are_settled("the next turn").await;
    assert_eq!(world.database.stated("key.rewrap"), 2, "each end is stated once");
    world.assert_pods_read(&replica, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_rewrap_goes_on_after_postgres_was_killed_in_the_middle() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let mut written = world.write_many(TWO_BATCHES).await;
    let gate = Gate::at_rewraps_beyond(&world.database, 500);
    gate.close();
    rotate(&world.server, true).await.unwrap();
    gate.until_held().await;
    write(&world.server, "payments/new", "acknowledged").await.unwrap();
    written.insert("payments/new".into(), "acknowledged".into());
    world.postgres().kill();
    until_state(&world.server, State::Sealed, "database cannot be reached").await;
    world.postgres().restart().unwrap();
    let moved = "SELECT count(*) FROM deks WHERE kek_version = 2 AND born_kek_version = 1";
    assert_eq!(world.database.sql(moved), "500", "the first batch stands, the second was cut off whole");
    world.database.sql("UPDATE gate SET is_open = true");
    world.server.until_serving().await.unwrap();
    world.database.until_keys_are_settled("the rewrap").await;
    assert_eq!(world.database.stated("key.rewrap"), 1);
    world.assert_pods_read(&world.server, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_postgres_killed_again_and_again_while_keys_turn_loses_nothing_that_was_acknowledged() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let mut written = world.write_many(60).await;
    let mut acknowledged = 1;
    // At different moments of a turn, for each has other commits under way.
    for (round, millis) in [20, 60, 100, 160, 250].into_iter().enumerate() {
        let writers = Writers::start(round, [&world.server]);
        let turns = Turns::start(&world.server);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        world.postgres().kill();
        // Otherwise what it says afterwards could be of before.
        until_state(&world.server, State::Sealed, "database cannot be reached").await;
        world.postgres().restart().unwrap();
        world.server.until_serving().await.unwrap();
        acknowledged = acknowledged.max(turns.end().await);
        let (last, failures) = writers.end().await;
        for failure in failures {
            assert!(matches!(failure.code(), Code::Unavailable | Code::Internal), "{failure:?}");
        }
        world.database.assert_keys_are_whole();
        assert!(active_version(&world) >= acknowledged, "a turn that was acknowledged is undone");
        world.assert_pods_read(&world.server, &last).await;
        written.extend(last);
    }
    world.database.until_keys_are_settled("the last turn").await;
    assert_eq!(rotate(&world.server, false).await.unwrap().old_version, active_version(&world) - 1);
    world.database.until_keys_are_settled("another turn").await;
    world.assert_pods_read(&world.server, &written).await;
}

/// A clock that a test sets forward, and back.
struct MovedClock(AtomicI64);

impl Clock for MovedClock {
    fn now(&self) -> OffsetDateTime {
        SystemClock.now() + Span::seconds(self.0.load(Ordering::Relaxed))
    }
}

/// A server in this process whose clock is moved, with a keyspace `payments` of that rotation policy.
struct Moved {
    clock: Arc<MovedClock>,
    setup: Setup,
    database: Database,
    _stop: DropGuard,
    _folder: TempDir,
}

impl Moved {
    async fn start(rotation: &Value) -> Self {
        let (database, folder) = (Database::shared(), tempfile::tempdir().unwrap());
        let setup = server_setup(folder.path(), "server", &database);
        let yaml = fs::read_to_string(setup.config_file()).unwrap();
        let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).unwrap();
        let clock = Arc::new(MovedClock(AtomicI64::new(0)));
        let bound = serve::bind(config, Arc::clone(&clock) as Arc<dyn Clock>, false).await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(bound.serve(stop.clone()));
        let bootstrap_token = fs::read_to_string(setup.bootstrap_token_file()).unwrap();
        let mut system = SystemServiceClient::new(channel(&setup));
        let made = system.initialize(InitializeRequest { bootstrap_token }).await.unwrap().into_inner();
        fs::write(setup.admin_token_file(), made.admin_token.as_bytes()).unwrap();
        let object = Object {
            kind: "Keyspace".into(),
            name: "payments".into(),
            spec_json: json!({"rotation": rotation}).to_string(),
            ..Object::default()
        };
        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        operator_at(&setup).config().apply_objects(request).await.unwrap();
        Self { clock, setup, database, _stop: stop.drop_guard(), _folder: folder }
    }

    /// Sets the clock off by so much, and waits until the server has noticed how it is.
    async fn is_off_by(&self, offset: Span, noticed: &str) {
        self.clock.0.store(offset.whole_seconds(), Ordering::Relaxed);
        let told = "SELECT coalesce(failure, 'right') FROM replicas";
        self.database.until_true("the clock", || self.database.sql(told).contains(noticed)).await;
    }

    async fn rotate(&self) {
        let request = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
        operator_at(&self.setup).keys().rotate_key(request).await.unwrap();
    }

    async fn schedule_destruction(&self, version: u32, delay_seconds: Option<u64>) -> Result<(), Status> {
        let request = ScheduleKeyDestructionRequest {
            keyspace: "payments".into(),
            version,
            delay_seconds,
            ..Default::default()
        };
        operator_at(&self.setup).keys().schedule_key_destruction(request).await.map(drop)
    }

    fn states(&self) -> String {
        self.database.sql(
            "SELECT string_agg(version || ' ' || state, ', ' ORDER BY version) FROM keks WHERE purpose = 'data'",
        )
    }
}

/// Destruction is for good, so no single server's clock decides on it: it must agree with that of Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_clock_that_jumps_destroys_nothing_and_turns_nothing_until_it_is_right_again() {
    let moved = Moved::start(&json!({"keepDeactivated": "1d", "destroyAfter": "1h"})).await;
    moved.rotate().await;
    moved.rotate().await;
    moved.schedule_destruction(1, None).await.unwrap();
    for (offset, noticed) in [
        (Span::days(400), "ahead of that of Postgres"),
        (Span::days(-400), "behind that of Postgres"),
        (Span::hours(2), "ahead of that of Postgres"),
    ] {
        moved.is_off_by(offset, noticed).await;
        // It looks every second.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(moved.states(), "1 destroy-scheduled, 2 deactivated, 3 active", "{offset}");
        // A day set by a clock that is behind would have come already by that of every other server.
        let refused = moved.schedule_destruction(2, None).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("does not agree with that of Postgres"), "{refused:?}");
        write_as(&operator_at(&moved.setup), "payments/db", "meanwhile").await.unwrap();
    }
    moved.is_off_by(Span::ZERO, "right").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(moved.states(), "1 destroy-scheduled, 2 deactivated, 3 active");
    for (operation, times) in
        [("key.schedule-destruction", 1), ("key.create", 0), ("ca.rotate", 0), ("ca.activate", 0)]
    {
        assert_eq!(moved.database.stated(operation), times, "{operation}");
    }
    // It is at work all the same, and does what is due by its own clock and by that of Postgres.
    moved.schedule_destruction(2, Some(1)).await.unwrap();
    let is_destroyed = || moved.states().contains("2 destroyed");
    moved.database.until_true("the other key to be destroyed", is_destroyed).await;
    assert_eq!(moved.states(), "1 destroy-scheduled, 2 destroyed, 3 active");
    moved.database.until_keys_are_settled("the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_one_rotten_row_among_thousands_stops_no_other_shows_and_keeps_its_key() {
    let world = World::start().await.with_payments().await;
    let written = world.write_many(MANY - 1).await;
    let (rotten, database) = ("payments/many-4711", &world.database);
    let flip = format!(
        "ALTER TABLE deks DISABLE TRIGGER USER;
         UPDATE deks SET wrapped = set_byte(wrapped, 130, 255 - get_byte(wrapped, 130))
             WHERE secret_id = (SELECT id FROM secrets WHERE path = '{rotten}');
         ALTER TABLE deks ENABLE TRIGGER USER"
    );
    database.sql(&flip);
    rotate(&world.server, true).await.unwrap();
    database.until_keys_are_settled("the rewrap").await;
    let status = key_status(&world.server).await;
    assert_eq!((status.deks_done, status.deks_pending, status.quarantined), (MANY as u64 - 1, 0, 1));
    let request = ListQuarantineRequest { keyspace: "payments".into() };
    let listed = operator_of(&world.server).keys().list_quarantine(request).await.unwrap().into_inner().deks;
    let listed: Vec<_> = listed.iter().map(|dek| (&*dek.path, dek.version, dek.key_version)).collect();
    assert_eq!(listed, [(rotten, 1, 1)]);

    let refused = schedule_destruction(&world.server, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("1 data keys in quarantine"), "{refused:?}");
    let request = || GetSecretRequest { path: rotten.into(), version: None };
    let unreadable = operator_of(&world.server).secrets().get_secret(request()).await.unwrap_err();
    assert_eq!(unreadable.code(), Code::DataLoss, "{unreadable:?}");

    database.sql(&flip);
    let request = RetryQuarantineRequest { keyspace: "payments".into() };
    let retried = operator_of(&world.server).keys().retry_quarantine(request).await.unwrap();
    assert_eq!(retried.into_inner().released, 1);
    let left = "SELECT count(*) FROM deks WHERE kek_version = 1";
    database.until_true("the mended row to be moved", || database.sql(left) == "0").await;
    schedule_destruction(&world.server, 1).await.unwrap();
    let destroyed = "SELECT count(*) FROM keks WHERE state = 'destroyed'";
    database.until_true("the key to be destroyed", || database.sql(destroyed) == "1").await;
    database.assert_keys_are_whole();
    world.assert_pods_read(&world.server, &written).await;
}
