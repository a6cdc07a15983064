//! Callers in flight share commits, and nothing that one of them does or meets changes what another gets.

use std::{collections::BTreeSet, sync::Arc};

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{Field, GetSecretRequest, PutSecretRequest};
use keyfold_tests::{World, faults::operator_of};
use tokio::task::JoinSet;
use tonic::{Code, Status};

async fn put(operator: &Client, path: &str, value: &str, expected: Option<u32>) -> Result<u32, Status> {
    let field = Field { name: "value".into(), value: value.into() };
    let request = PutSecretRequest { path: path.into(), fields: vec![field], expected_version: expected };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

async fn read(operator: &Client, path: &str) -> Result<(u32, String), Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    let found = operator.secrets().get_secret(request).await?.into_inner();
    let value = String::from_utf8(found.fields[0].value.clone()).expect("text");
    Ok((found.version, value))
}

/// Entries of an operation, and the transactions that wrote them.
fn entries_and_commits(world: &World, operation: &str) -> (usize, usize) {
    let counts = world.database.sql(&format!(
        "SELECT count(*), count(DISTINCT xmin::text) FROM audit_entries WHERE operation = '{operation}'
            AND outcome = 'allowed'"
    ));
    let (entries, commits) = counts.split_once('|').expect("two columns");
    (entries.parse().expect("a number"), commits.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_ask_at_once_share_commits_and_each_has_its_entry() {
    let world = World::start().await.with_payments().await;
    let mut askers = JoinSet::new();
    for at in 0..24 {
        let mut asker =
            world.asker(&world.pod("payments", "api", &format!("api-{at}")), "payments-api", "payments/db");
        askers.spawn(async move {
            for _ in 0..10 {
                asker.ask().await.expect("the secret is issued");
            }
        });
    }
    askers.join_all().await;
    let (entries, commits) = entries_and_commits(&world, "secret.issue");
    assert_eq!(entries, 240);
    assert!(commits < entries / 2, "{commits} commits for {entries} entries");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_at_once_share_commits_and_each_fails_or_succeeds_alone() {
    let world = World::start().await.with_payments().await;
    let mut writers = JoinSet::new();
    for writer in 0..30 {
        let operator = world.operator();
        writers.spawn(async move {
            let path = match writer % 3 {
                // One of three asks for what is not there, or meets another version than it expects.
                0 if writer % 2 == 0 => "nowhere/x".to_owned(),
                _ => format!("payments/w{writer}"),
            };
            let mut outcomes = Vec::new();
            for round in 0..5 {
                let expected = Some(if writer % 3 == 0 { 7 } else { round });
                outcomes.push(put(&operator, &path, &format!("{writer}-{round}"), expected).await);
            }
            (writer, outcomes)
        });
    }
    for (writer, outcomes) in writers.join_all().await {
        for (round, outcome) in outcomes.into_iter().enumerate() {
            match (writer % 3, writer % 2) {
                (0, 0) => assert_eq!(outcome.unwrap_err().code(), Code::NotFound),
                (0, _) => assert_eq!(outcome.unwrap_err().code(), Code::FailedPrecondition),
                _ => assert_eq!(outcome.unwrap(), u32::try_from(round).unwrap() + 1),
            }
        }
        if writer % 3 != 0 {
            let found = read(&world.operator(), &format!("payments/w{writer}")).await.unwrap();
            assert_eq!(found, (5, format!("{writer}-4")));
        }
    }
    let (entries, commits) = entries_and_commits(&world, "secret.put");
    assert_eq!(entries, 1 + 20 * 5);
    assert!(commits < entries, "{commits} commits for {entries} entries");
    let states = "SELECT count(*), sum(generation) FROM secret_labels";
    assert_eq!(world.database.sql(states), format!("{}|{}", 1 + 20 * 2, 1 + 20 * (5 + 4)));
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_one_secret_at_once_get_a_version_each_and_the_last_is_current() {
    let world = World::start().await.with_payments().await;
    let mut writers = JoinSet::new();
    for writer in 0..30 {
        let operator = world.operator();
        writers.spawn(async move {
            let value = format!("by {writer}");
            (put(&operator, "payments/one", &value, None).await.unwrap(), value)
        });
    }
    let written: BTreeSet<(u32, String)> = writers.join_all().await.into_iter().collect();
    assert!(written.iter().map(|(version, _)| *version).eq(1..=30), "{written:?}");
    let newest = written.last().cloned().unwrap();
    assert_eq!(read(&world.operator(), "payments/one").await.unwrap(), newest);
    let labels = world.database.sql(
        "SELECT label, l.version FROM secret_labels l JOIN secrets s ON s.id = l.secret_id
         WHERE path = 'payments/one' ORDER BY label",
    );
    assert_eq!(labels, "current|30\nprevious|29");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_a_secret_written_on_one_replica_is_never_served_old_on_another() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let (here, there) = (world.operator(), operator_of(&replica));
    let pods = world.workloads(&replica);
    let pod = world.pod("payments", "api", "api-0");
    for round in 0..30 {
        let value = round.to_string();
        // Nobody tells the other replica: what it holds is confirmed when it is read.
        world.database.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE query LIKE 'LISTEN%' AND datname = current_database()",
        );
        let version = put(&here, "payments/db", &value, None).await.unwrap();
        assert_eq!(read(&there, "payments/db").await.unwrap(), (version, value.clone()));
        let issued = pods.issue(&pod, &["payments/db"]).await.unwrap();
        assert_eq!(issued.secrets[0].version, version);
        assert_eq!(issued.secrets[0].fields[0].value, value.as_bytes());
    }
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_beside_a_writer_see_no_version_fall_back() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let operators = [Arc::new(world.operator()), Arc::new(operator_of(&replica))];
    let mut readers = JoinSet::new();
    for reader in 0..6 {
        let operator = Arc::clone(&operators[reader % 2]);
        readers.spawn(async move {
            let mut newest = 0;
            for _ in 0..30 {
                let (version, _) = read(&operator, "payments/db").await.unwrap();
                assert!(version >= newest, "{version} after {newest}");
                newest = version;
            }
            newest
        });
    }
    for round in 0..60 {
        put(&operators[round % 2], "payments/db", &round.to_string(), None).await.unwrap();
    }
    assert!(readers.join_all().await.into_iter().all(|newest| newest > 0));
    world.database.check_audit_log();
}

/// Runs `change` in a transaction of its own, which is committed half a second after this returns.
fn uncommitted(world: &World, change: &str) -> std::thread::JoinHandle<String> {
    let (access, name) = (world.database.access.clone(), world.database.name.clone());
    let sql = format!("BEGIN; {change}; SELECT pg_sleep(0.5); COMMIT");
    let changing = std::thread::spawn(move || access.sql(&name, &sql).expect("Postgres runs it"));
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    while world.database.sql(sleeping) == "0" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    changing
}

/// A secret that another replica adds, as it does it: whoever writes it too has to wait for that, and is next.
fn addition(path: &str) -> String {
    format!(
        "INSERT INTO secrets (id, keyspace_id, path, newest_version, created_at)
         SELECT gen_random_uuid(), keyspace_id, '{path}', 1, now() FROM secrets LIMIT 1"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_a_secret_that_another_replica_adds_at_the_same_time_writes_its_next_version() {
    let world = World::start().await.with_payments().await;
    let adding = uncommitted(&world, &addition("payments/new"));
    assert_eq!(put(&world.operator(), "payments/new", "x", None).await.expect("it is tried again"), 2);
    adding.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_added_while_others_are_waited_for_is_not_taken_for_locked() {
    let world = World::start().await.with_payments().await;
    let lock = "SELECT FROM secrets WHERE path = 'payments/db' FOR UPDATE";
    let adding = uncommitted(&world, &format!("{lock}; {}", addition("payments/new")));
    let locked = "SELECT string_agg(path, ',') FROM lock_secrets('{payments/db,payments/new}')";
    assert_eq!(world.database.sql(locked), "payments/db");
    adding.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_paths_are_sorted_into_the_logs_index_by_the_server_and_found_before_and_after() {
    let world = World::start().await.with_payments().await;
    let operator = operator_of(&world.server);
    let pages = || world.database.sql("SELECT sort_in_audit_paths()");
    let found = || {
        let paths = "SELECT count(*) FROM audit_entries WHERE paths @> ARRAY['payments/sorted']";
        world.database.sql(&format!("SET enable_seqscan = off; {paths}"))
    };
    // Whoever asks sorts in what is left, so it is the server that has when there is nothing left.
    let mut rounds = 0;
    loop {
        rounds += 1;
        put(&operator, "payments/sorted", "x", None).await.expect("it is written");
        assert_eq!(found().lines().last(), Some(rounds.to_string().as_str()));
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        assert_eq!(found().lines().last(), Some(rounds.to_string().as_str()));
        if pages() == "0" {
            break;
        }
        assert!(rounds < 10, "nobody sorts in new paths");
    }
    // That nothing is left says something only if a new path is. The server may be faster than the question.
    let mut tries = 0;
    loop {
        put(&operator, "payments/sorted", "x", None).await.expect("it is written");
        if pages() != "0" {
            break;
        }
        tries += 1;
        assert!(tries < 20, "a new path does not wait to be sorted in");
    }
}
