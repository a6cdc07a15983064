//! A year of schedules on real Postgres in seconds: the clock is moved, everything else is real.

use std::{
    fs,
    sync::{Arc, PoisonError, RwLock},
    time::Duration as StdDuration,
};

use keyfold::dev::server::Setup;
use keyfold_core::clock::{Clock, SystemClock};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, Field, GetKeyStatusRequest, GetRotationScheduleRequest, InitializeRequest,
    KeysetStatus, Object, PauseRotationRequest, PutSecretRequest, ResumeRotationRequest, RotateKeyRequest,
    ScheduleKeyDestructionRequest, system_service_client::SystemServiceClient,
};
use keyfold_server::{
    broker::Broker,
    config::{Config, ENVIRONMENT_PREFIX},
    error::Error,
    serve,
};
use keyfold_tests::{
    Database,
    faults::{channel, operator_at, until},
    server_setup,
};
use serde_json::json;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime, macros::datetime};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A Thursday.
const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
/// The first Monday after it, at the schedules' time.
const FIRST_RUN: OffsetDateTime = datetime!(2026-01-05 03:00 UTC);
const WEEK: Duration = Duration::WEEK;

/// A clock that a test moves.
struct MovedClock(RwLock<OffsetDateTime>);

impl Clock for MovedClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server in this process whose clock is moved.
struct Moved {
    clock: Arc<MovedClock>,
    broker: Arc<Broker>,
    setup: Setup,
    database: Database,
    _stop: DropGuard,
    _folder: TempDir,
}

impl Moved {
    async fn start() -> Self {
        Self::start_at(START).await
    }

    async fn start_at(now: OffsetDateTime) -> Self {
        let (database, folder) = (Database::shared(), tempfile::tempdir().unwrap());
        let setup = server_setup(folder.path(), "server", &database);
        let yaml = fs::read_to_string(setup.config_file()).unwrap();
        let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).unwrap();
        let clock = Arc::new(MovedClock(RwLock::new(now)));
        let bound = serve::bind(config, clock.clone(), false).await.unwrap();
        let (broker, stop) = (bound.broker(), CancellationToken::new());
        tokio::spawn(bound.serve(stop.clone()));
        let bootstrap_token = fs::read_to_string(setup.bootstrap_token_file()).unwrap();
        let made = SystemServiceClient::new(channel(&setup))
            .initialize(InitializeRequest { bootstrap_token })
            .await
            .unwrap()
            .into_inner();
        fs::write(setup.admin_token_file(), made.admin_token.as_bytes()).unwrap();
        Self { clock, broker, setup, database, _stop: stop.drop_guard(), _folder: folder }
    }

    async fn with_keyspace(self, name: &str, rotation: serde_json::Value) -> Self {
        let object = Object {
            kind: "Keyspace".into(),
            name: name.into(),
            spec_json: json!({"rotation": rotation}).to_string(),
            ..Object::default()
        };
        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        operator_at(&self.setup).config().apply_objects(request).await.unwrap();
        let fields = vec![Field { name: "password".into(), value: b"x".into() }];
        let request = PutSecretRequest { path: format!("{name}/db"), fields, expected_version: None };
        operator_at(&self.setup).secrets().put_secret(request).await.unwrap();
        self
    }

    fn set_clock(&self, now: OffsetDateTime) {
        *self.clock.0.write().unwrap() = now;
    }

    /// Moves the clock and does what is due then.
    async fn at(&self, now: OffsetDateTime) {
        self.set_clock(now);
        // The server's own workers do the same at the same time, and one may hold what another wants.
        until("what is due to be done", async || {
            let done = self.broker.keys_pass().await;
            !matches!(done, Err(Error::Busy | Error::Database(_)))
        })
        .await;
        until("turns to end", async || {
            let under_way = "SELECT count(*) FROM keks WHERE state = 'pre-active'";
            let is_done = self.database.sql(under_way) == "0";
            if !is_done {
                let _ = self.broker.keys_pass().await;
            }
            is_done
        })
        .await;
        self.database.assert_keys_are_in_order();
    }

    fn active_version(&self, keyspace: &str) -> u32 {
        let sql = format!(
            "SELECT version FROM keks JOIN objects o ON o.id = keyspace_id WHERE o.name = '{keyspace}' AND state = 'active'"
        );
        self.database.sql(&sql).parse().unwrap()
    }

    /// When each version began to wrap, oldest first.
    fn turns(&self, keyspace: &str) -> Vec<String> {
        let sql = format!(
            "SELECT to_char(activated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM keks
             JOIN objects o ON o.id = keyspace_id WHERE o.name = '{keyspace}' ORDER BY version"
        );
        self.database.sql(&sql).lines().map(str::to_owned).collect()
    }

    /// Guarded rows, but for the authority's: those have a pass of their own, by the clock.
    fn rows_under_the_first_row_mac(&self) -> String {
        let tables =
            ["objects", "admin_tokens", "keks", "integrity_head", "secret_labels", "secret_versions"];
        let rows = tables.map(|table| {
            format!("SELECT count(*) AS n FROM {table} WHERE substring(mac FROM 1 FOR 4) = int4send(1)")
        });
        self.database.sql(&format!("SELECT sum(n) FROM ({}) AS t", rows.join(" UNION ALL ")))
    }

    async fn status(&self, keyspace: &str) -> KeysetStatus {
        let request = GetKeyStatusRequest { keyspace: keyspace.into() };
        let status = operator_at(&self.setup).keys().get_key_status(request).await.unwrap();
        status.into_inner().keysets.pop().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_year_of_mondays_turns_a_key_each_week_and_destroys_those_that_are_no_longer_needed() {
    let rotation = json!({"cron": "0 3 * * 1", "keepDeactivated": "14d", "destroyAfter": "7d"});
    let moved = Moved::start().await.with_keyspace("weekly", rotation).await;
    for week in 0..52 {
        // A minute before nothing is due; a minute after it is done, and only once.
        let run = FIRST_RUN + week * WEEK;
        moved.at(run - Duration::MINUTE).await;
        let before = moved.active_version("weekly");
        moved.at(run + Duration::MINUTE).await;
        if week % 13 == 0 {
            moved.at(run + 2 * Duration::MINUTE).await;
        }
        assert_eq!(moved.active_version("weekly"), before + 1, "week {week}");
    }
    assert_eq!(moved.active_version("weekly"), 53);
    let turns = moved.turns("weekly");
    assert_eq!(turns.len(), 53);
    assert_eq!((turns[1].as_str(), turns[52].as_str()), ("2026-01-05 03:01", "2026-12-28 03:01"));
    let count = |state| {
        moved.database.sql(&format!("SELECT count(*) FROM keks WHERE purpose = 'data' AND state = '{state}'"))
    };
    // Two weeks deactivated, one week in which it can be called off, and then gone.
    assert_eq!(count("deactivated"), "2");
    assert_eq!(count("destroy-scheduled"), "1");
    assert_eq!(count("destroyed"), "49");
    assert_eq!(moved.database.sql("SELECT count(*) FROM deks WHERE kek_version <> 53"), "0");
    let created = moved.database.entries("key.create");
    let data: Vec<_> = created.iter().filter(|entry| entry["operation"]["purpose"] == "data").collect();
    assert_eq!(data.len(), 52);
    assert!(data.iter().all(|entry| entry["actor"]["kind"] == "server"), "{data:?}");
    assert!(data[0]["operation"]["reason"].as_str().unwrap().contains("had a run at"), "{}", data[0]);
    assert_eq!(moved.database.entries("key.skip-run").len(), 0);
    moved.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_were_missed_are_made_up_for_once_or_left_out_as_the_policy_says() {
    let cron = "0 3 * * 1";
    let moved = Moved::start()
        .await
        .with_keyspace("once", json!({"cron": cron, "missedRun": "run-once"}))
        .await
        .with_keyspace("skip", json!({"cron": cron, "missedRun": "skip"}))
        .await;
    moved.at(FIRST_RUN + Duration::MINUTE).await;
    assert_eq!((moved.active_version("once"), moved.active_version("skip")), (2, 2));

    // Nobody looks for ten weeks and a day.
    let back = FIRST_RUN + 10 * WEEK + Duration::DAY;
    moved.at(back).await;
    moved.at(back + Duration::MINUTE).await;
    assert_eq!((moved.active_version("once"), moved.active_version("skip")), (3, 2));
    let skipped = moved.database.entries("key.skip-run");
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert_eq!(skipped[0]["operation"]["occurrence"], "2026-03-16T03:00:00Z");

    // Both go on with the next Monday.
    moved.at(FIRST_RUN + 11 * WEEK + Duration::MINUTE).await;
    assert_eq!((moved.active_version("once"), moved.active_version("skip")), (4, 3));
    assert_eq!(moved.turns("once")[2], "2026-03-17 03:00");

    // A clock that goes back turns nothing, and what it did before stands.
    moved.at(FIRST_RUN + 9 * WEEK).await;
    moved.at(FIRST_RUN + 11 * WEEK + 2 * Duration::MINUTE).await;
    assert_eq!((moved.active_version("once"), moved.active_version("skip")), (4, 3));
    moved.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_schedule_turns_nothing_but_a_command_does_and_resuming_makes_up_for_it_once() {
    let moved = Moved::start().await.with_keyspace("payments", json!({"cron": "0 3 * * 1"})).await;
    let operator = operator_at(&moved.setup);
    moved.at(FIRST_RUN + Duration::MINUTE).await;
    let pause = PauseRotationRequest { keyspace: "payments".into(), ..Default::default() };
    operator.keys().pause_rotation(pause).await.unwrap();
    for week in 1..5 {
        moved.at(FIRST_RUN + week * WEEK + Duration::MINUTE).await;
    }
    assert_eq!(moved.active_version("payments"), 2);
    let shown = GetRotationScheduleRequest { keyspace: "payments".into(), count: 3 };
    let shown = operator.keys().get_rotation_schedule(shown).await.unwrap().into_inner().schedules;
    assert!(shown[0].paused && shown[0].next.is_empty(), "{shown:?}");

    let rotate = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    let turned = tokio::time::timeout(StdDuration::from_secs(30), operator.keys().rotate_key(rotate)).await;
    assert_eq!(turned.unwrap().unwrap().into_inner().new_version, 3);
    moved.at(FIRST_RUN + 6 * WEEK + Duration::HOUR).await;
    assert_eq!(moved.active_version("payments"), 3);

    let resume = ResumeRotationRequest { keyspace: "payments".into(), ..Default::default() };
    operator.keys().resume_rotation(resume).await.unwrap();
    moved.at(FIRST_RUN + 6 * WEEK + 2 * Duration::HOUR).await;
    assert_eq!(moved.active_version("payments"), 4, "what was missed is made up for once");
    let shown = GetRotationScheduleRequest { keyspace: "payments".into(), count: 3 };
    let shown = operator.keys().get_rotation_schedule(shown).await.unwrap().into_inner().schedules;
    let next: Vec<_> = shown[0].next.iter().map(|at| at.seconds).collect();
    let expected: Vec<_> = (7..10_i32).map(|week| (FIRST_RUN + week * WEEK).unix_timestamp()).collect();
    assert_eq!(next, expected);
    moved.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_a_key_turns_every_90_days_and_the_installations_own_once_a_year() {
    let moved = Moved::start().await.with_keyspace("payments", serde_json::Value::Null).await;
    moved.at(START + 89 * Duration::DAY).await;
    assert_eq!(moved.active_version("payments"), 1);
    for quarter in 1..=4_i64 {
        moved.at(START + Duration::days(90 * quarter) + Duration::HOUR).await;
    }
    assert_eq!(moved.active_version("payments"), 5);
    let system = "SELECT count(*) FROM keks WHERE keyspace_id IS NULL AND state = 'active' AND version = 2";
    assert_eq!(moved.database.sql(system), "0");
    moved.at(START + Duration::days(366)).await;
    assert_eq!(moved.database.sql(system), "3");
    assert!(!moved.status("payments").await.overdue);
    moved.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_is_far_ahead_destroys_and_turns_nothing_by_itself() {
    let now = SystemClock.now();
    let moved = Moved::start_at(now).await.with_keyspace("payments", json!({"every": "7d"})).await;
    let operator = operator_at(&moved.setup);
    let rotate = async |keyspace: &str, purpose: &str| {
        let request = RotateKeyRequest { keyspace: keyspace.into(), purpose: purpose.into(), no_wait: false };
        operator.keys().rotate_key(request).await
    };
    rotate("payments", "").await.unwrap();
    let destroy = ScheduleKeyDestructionRequest {
        keyspace: "payments".into(),
        version: 1,
        delay_seconds: Some(60),
        ..Default::default()
    };
    operator.keys().schedule_key_destruction(destroy).await.unwrap();

    moved.set_clock(now + 30 * Duration::DAY);
    until("the server to tell that its clock is wrong", async || {
        let request = GetKeyStatusRequest { keyspace: "payments".into() };
        let status = operator.keys().get_key_status(request).await.unwrap().into_inner();
        status.replicas[0].failure.contains("ahead of that of Postgres")
    })
    .await;
    // Commands are followed. And once these MACs are made anew, the server has passed by what would be due.
    rotate("", "row-mac").await.unwrap();
    until("the MACs to be made anew", async || moved.rows_under_the_first_row_mac() == "0").await;
    let of_keyspace = |what: &str| {
        moved.database.sql(&format!("SELECT {what} FROM keks WHERE keyspace_id IS NOT NULL AND version = 1"))
    };
    assert_eq!(of_keyspace("state"), "destroy-scheduled");
    assert_eq!(moved.active_version("payments"), 2);
    assert_eq!(moved.database.entries("key.create").len(), 0);

    // With a right clock the same server does what is due.
    moved.set_clock(now + 2 * Duration::MINUTE);
    until("the key to be destroyed", async || of_keyspace("state") == "destroyed").await;
    moved.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installations_old_keys_go_a_month_after_their_turn_but_for_those_that_sign() {
    let moved = Moved::start().await.with_keyspace("payments", serde_json::Value::Null).await;
    let turned = START + 366 * Duration::DAY;
    moved.at(turned).await;
    let old = |state: &str| {
        let sql = format!(
            "SELECT string_agg(purpose, ' ' ORDER BY purpose) FROM keks
             WHERE keyspace_id IS NULL AND version = 1 AND state = '{state}'"
        );
        moved.database.sql(&sql)
    };
    assert_eq!(old("deactivated"), "audit-sign internal-ca row-mac");
    until("nothing to be under them", async || {
        moved.broker.ca_pass().await.unwrap();
        let wrapped = "SELECT count(*) FROM ca_certificates WHERE kek_version = 1";
        moved.rows_under_the_first_row_mac() == "0" && moved.database.sql(wrapped) == "0"
    })
    .await;
    moved.at(turned + 29 * Duration::DAY).await;
    assert_eq!(old("deactivated"), "audit-sign internal-ca row-mac");
    moved.at(turned + 31 * Duration::DAY).await;
    assert_eq!(old("destroy-scheduled"), "internal-ca row-mac");
    moved.at(turned + 39 * Duration::DAY).await;
    assert_eq!((old("destroyed"), old("deactivated")), ("internal-ca row-mac".into(), "audit-sign".into()));
    let fields = vec![Field { name: "password".into(), value: b"y".into() }];
    let request = PutSecretRequest { path: "payments/db".into(), fields, expected_version: None };
    operator_at(&moved.setup).secrets().put_secret(request).await.unwrap();
    moved.database.check_audit_log();
}
