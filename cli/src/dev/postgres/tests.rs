//! These start the machine's own Postgres, as root through the account `postgres`; they fail where there is none.

use keyfold_core::clock::{Clock as _, SystemClock};

use super::*;

fn start() -> Postgres {
    Postgres::start(&Options::for_tests(SystemClock.now())).unwrap()
}

/// Runs `sql` as a client does that comes over TCP with this connection string and the password.
fn over_tcp(access: &Access, connection: &str, sql: &str) -> Result<String, Failure> {
    let mut psql = bare(&access.bin_dir.join("psql"));
    psql.env("PGPASSWORD", read_text(access.password_file()).unwrap());
    psql.args(["--no-psqlrc", "-At", "-v", "ON_ERROR_STOP=1", connection]);
    run(psql, "psql", sql).map(|output| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn verified(access: &Access, database: &str) -> String {
    let (url, ca) = (access.database_url(database), access.ca_file().display());
    format!("{url}?sslmode=verify-full&sslrootcert={ca}&connect_timeout=10")
}

#[test]
fn it_serves_databases_over_verified_tls_and_nothing_without_tls() {
    let postgres = start();
    let access = postgres.access();
    access.create_database("first", None).unwrap();
    let version = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(over_tcp(access, &verified(access, "first"), version).unwrap(), "TLSv1.3");

    let plain = format!("{}?sslmode=disable", access.database_url("first"));
    let refused = over_tcp(access, &plain, "SELECT 1").unwrap_err().to_string();
    assert!(refused.contains("no encryption"), "{refused}");

    let superuser = verified(access, "first").replace("keyfold@", "postgres@");
    assert!(over_tcp(access, &superuser, "SELECT 1").is_err(), "the superuser comes over the socket only");

    let wrong = verified(access, "first").replace("127.0.0.1", "127.0.0.2");
    assert!(over_tcp(access, &wrong, "SELECT 1").is_err(), "it listens on 127.0.0.1 alone");
}

#[test]
fn a_database_is_a_copy_of_its_template_and_belongs_to_keyfold() {
    let postgres = start();
    let access = postgres.access();
    access.create_database("template_a", None).unwrap();
    over_tcp(access, &verified(access, "template_a"), "CREATE TABLE t AS SELECT 7 AS n").unwrap();
    access.create_database("copy", Some("template_a")).unwrap();
    assert_eq!(over_tcp(access, &verified(access, "copy"), "SELECT n FROM t").unwrap(), "7");
    access.drop_database("copy").unwrap();
    access.drop_database("copy").unwrap();
    assert!(over_tcp(access, &verified(access, "copy"), "SELECT 1").is_err());
    for wrong in ["", "a b", "a\"b", "A", "1a", "a;b"] {
        assert!(access.create_database(wrong, None).is_err(), "{wrong:?} was taken for a name");
    }
}

#[test]
fn what_was_committed_survives_a_kill_and_a_stop() {
    let mut postgres = start();
    let access = postgres.access().clone();
    access.sql("postgres", "CREATE TABLE t (n int)").unwrap();
    for (n, end) in [(1, Postgres::kill as fn(&mut Postgres)), (2, Postgres::stop)] {
        access.sql("postgres", &format!("INSERT INTO t VALUES ({n})")).unwrap();
        end(&mut postgres);
        assert!(!postgres.is_running());
        assert!(access.sql("postgres", "SELECT 1").is_err());
        postgres.restart().unwrap();
    }
    assert_eq!(access.sql("postgres", "SELECT n FROM t ORDER BY n").unwrap(), "1\n2");
}

#[test]
fn dropping_it_leaves_neither_processes_nor_files_nor_shared_memory() {
    for kill in [false, true] {
        let mut postgres = start();
        let (pid, folder) = (postgres.process.pid(), postgres.folder.path().to_owned());
        let mut all = children(pid);
        all.extend(Pid::from_raw(pid.cast_signed()));
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        if kill {
            postgres.kill();
        }
        drop(postgres);
        assert!(!folder.exists());
        let mine = segments.lines().find(|line| line.split_whitespace().nth(4) == Some(&pid.to_string()));
        let left = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        assert!(mine.is_none_or(|line| !left.contains(line.split_whitespace().nth(1).unwrap())), "{left}");
        for pid in all {
            assert!(!is_alive(pid), "process {pid:?} is left behind");
        }
    }
}

#[test]
fn its_secrets_are_for_their_owner_alone() {
    let postgres = start();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(postgres.folder.path()), 0o700);
    for file in ["password", "server.key", "postgres.log"] {
        assert_eq!(mode(&postgres.folder.path().join(file)), 0o600, "{file}");
    }
    let password = read_text(postgres.access().password_file()).unwrap();
    assert!(!read_text(postgres.log_file()).unwrap().contains(&password));
}

#[test]
fn access_travels_to_another_process_as_json() {
    let postgres = start();
    let json = serde_json::to_string(postgres.access()).unwrap();
    let there: Access = serde_json::from_str(&json).unwrap();
    assert_eq!(there.sql("postgres", "SELECT 1").unwrap(), "1");
}
