//! One Postgres cluster for each side. With two databases in one cluster WAL, checkpoints, the buffer cache and the
//! background processes would be shared, and none of them could be told apart by side; while one side is measured, the
//! other's cluster is idle. Both have the same settings.

use std::fs;

use keyfold::dev::postgres::{Access, Options, Postgres};
use keyfold_core::clock::{Clock as _, SystemClock};

/// Enough for the peer's pool of 64, and for what looks at the figures.
const CONNECTIONS_MAX: u16 = 100;

/// What both clusters are set to, besides TLS, fsync and full-page writes, which are on: a buffer cache that holds all of
/// 100,000 secrets, and WAL enough that no checkpoint is forced while something is measured.
pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("shared_buffers", "512MB"),
    ("min_wal_size", "2GB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "15min"),
];

/// Files of WAL to begin with. A cluster that has run for a while writes into files of its past; one that is new has to fill
/// each with zeros first, and everybody waits for that about once a second.
const WAL_FILES: u8 = 128;

/// A Postgres of its own with an empty database.
///
/// # Panics
/// When it does not start.
pub(crate) fn start(database: &str) -> Postgres {
    let options = Options { max_connections: CONNECTIONS_MAX, ..Options::durable(SystemClock.now()) };
    let mut postgres = Postgres::start(&options).expect("a private Postgres starts");
    for (name, value) in SETTINGS {
        let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
        postgres.access().sql("postgres", &sql).expect("the setting is known");
    }
    postgres.restart().expect("Postgres starts with these settings");
    let fill = format!(
        "DO $$ BEGIN FOR file IN 1..{WAL_FILES} LOOP
             PERFORM pg_logical_emit_message(false, 'bench', ''), pg_switch_wal();
         END LOOP; END $$"
    );
    for sql in [fill.as_str(), "CHECKPOINT"] {
        postgres.access().sql("postgres", sql).expect("files of WAL can be made");
    }
    postgres.access().create_database(database, None).expect("a database can be created");
    postgres
}

/// The version, as `SHOW server_version` says it.
///
/// # Panics
/// When Postgres does not answer.
pub(crate) fn version(access: &Access) -> String {
    access.sql("postgres", "SHOW server_version").expect("Postgres answers")
}

/// The id of the main process, the parent of all others.
///
/// # Panics
/// When it does not run.
pub(crate) fn pid(postgres: &Postgres) -> u32 {
    let file = fs::read_to_string(postgres.data_dir().join("postmaster.pid")).expect("Postgres runs");
    file.lines().next().and_then(|line| line.parse().ok()).expect("its first line is the id")
}
