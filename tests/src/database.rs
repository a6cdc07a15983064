//! Databases for tests: a clone of one migrated template each, on a Postgres that all tests share or on one of their own.

use std::{fs::File, path::Path};

use keyfold::dev::{
    postgres::{Access, Options, Postgres},
    server,
};
use keyfold_core::{clock::Clock as _, clock::SystemClock, entropy::Entropy as _, entropy::SystemEntropy};

use crate::bin_dir;

const TEMPLATE: &str = "keyfold_template";

/// A migrated, empty database. Dropping it drops it.
pub struct Database {
    /// How to reach it.
    pub access: Access,
    /// Its name.
    pub name: String,
    /// The Postgres that holds it, if it is this test's own.
    pub own: Option<Postgres>,
}

impl Database {
    /// On the Postgres that `make test` shares between tests; without one, on an own one.
    ///
    /// # Panics
    /// When Postgres cannot be reached.
    pub fn shared() -> Self {
        match Access::from_environment().expect("the shared Postgres is described well") {
            Some(access) => Self::cloned(access, None),
            None => Self::own(),
        }
    }

    /// On a Postgres of its own, which a test may kill.
    ///
    /// # Panics
    /// When Postgres does not start.
    pub fn own() -> Self {
        let options = Options { max_connections: 60, ..Options::durable(SystemClock.now()) };
        let postgres = Postgres::start(&options).expect("a private Postgres starts");
        Self::cloned(postgres.access().clone(), Some(postgres))
    }

    fn cloned(access: Access, own: Option<Postgres>) -> Self {
        ensure_template(&access);
        let name = format!("t_{}", SystemEntropy.uuid().expect("randomness").simple());
        access.create_database(&name, Some(TEMPLATE)).expect("the template can be cloned");
        Self { access, name, own }
    }

    /// Runs SQL as the superuser. Gives rows as `psql -At` prints them.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn sql(&self, sql: &str) -> String {
        self.access.sql(&self.name, sql).unwrap_or_else(|failure| panic!("{sql}: {failure}"))
    }
}

impl Database {
    /// Checks the audit log as it is stored, with Postgres's own SHA-256 and JSON: indexes without gaps up to the head,
    /// each leaf hash that of its bytes, each column for filters a true copy. Gives the number of entries.
    ///
    /// # Panics
    /// When any of it does not hold.
    pub fn check_audit_log(&self) -> u64 {
        let wrong = self.sql(
            r"SELECT e.index FROM (SELECT *, convert_from(entry, 'UTF8')::jsonb AS json FROM audit_entries) e
              WHERE leaf_hash <> sha256('\x00'::bytea || entry) OR operation <> json #>> '{operation,name}'
                 OR actor <> json #>> '{actor,name}' OR outcome <> json #>> '{outcome,result}'
                 OR at <> (json ->> 'at')::timestamptz
                 OR generation IS DISTINCT FROM (json ->> 'generation')::bigint
                 OR paths <> CASE WHEN json #> '{operation,items}' IS NOT NULL
                       THEN ARRAY(SELECT jsonb_path_query(json, '$.operation.items[*].path') #>> '{}')
                       ELSE array_remove(ARRAY[json #>> '{operation,path}'], NULL) END
              ORDER BY e.index",
        );
        assert_eq!(wrong, "", "entries whose hash or copies are wrong");
        let whole = self.sql(
            "SELECT count(*), coalesce(min(index) = 0, true) AND coalesce(max(index) + 1, 0) = count(*)
                AND count(*) = (SELECT size FROM audit_head) FROM audit_entries",
        );
        let (count, whole) = whole.split_once('|').expect("two columns");
        assert_eq!(whole, "t", "{count} entries, and the indexes have gaps or the head is wrong");
        count.parse().expect("a number")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.own.is_none() {
            // The shared Postgres goes away as a whole after the tests.
            let _ = self.access.drop_database(&self.name);
        }
    }
}

/// Migrates once for all tests; a file lock keeps others waiting meanwhile.
fn ensure_template(access: &Access) {
    let lock = File::create(std::env::temp_dir().join(format!("keyfold-template-{}.lock", access.port())))
        .expect("a lock file can be created");
    lock.lock().expect("the lock file can be locked");
    let found = access.sql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{TEMPLATE}'"));
    if found.expect("Postgres answers").is_empty() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        access.create_database("keyfold_template_new", None).expect("a database can be created");
        migrate(access, folder.path());
        access
            .sql("postgres", &format!("ALTER DATABASE keyfold_template_new RENAME TO {TEMPLATE}"))
            .expect("a database can be renamed");
    }
}

fn migrate(access: &Access, folder: &Path) {
    let setup = server::Setup::write(
        &bin_dir().join("keyfold-server"),
        folder,
        &folder.join("migrate.log"),
        (access, "keyfold_template_new"),
        SystemClock.now(),
    );
    setup.and_then(|setup| setup.migrate()).expect("keyfold-server migrate works");
}
