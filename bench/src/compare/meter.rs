//! What work costs: processor time, memory, WAL and disk.

use std::{collections::BTreeMap, fs};

use keyfold::dev::postgres::Access;

/// A clock tick of /proc/PID/stat on Linux (`sysconf(_SC_CLK_TCK)` on every architecture that Rust's std supports).
const TICK_SECS: f64 = 0.01;

/// Where the figures of one side come from.
pub(crate) struct Meter {
    /// The server's process.
    pub(crate) server: u32,
    /// The main process of its Postgres and the database, if it has one.
    pub(crate) postgres: Option<(u32, Access, &'static str)>,
}

/// What was used so far; only differences mean something.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    times: [f64; 3],
    wal_bytes: f64,
    database_bytes: f64,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// Processor time of the server, all threads.
    pub(crate) server_secs: f64,
    /// Processor time of all processes of its Postgres.
    pub(crate) postgres_secs: Option<f64>,
    /// Processor time of this program, which asks and checks: it has the same processors.
    pub(crate) generator_secs: f64,
    /// WAL written.
    pub(crate) wal_bytes: Option<f64>,
    /// Growth of the database.
    pub(crate) database_bytes: Option<f64>,
}

impl Meter {
    /// What was used so far. Asking Postgres costs some milliseconds of processor time: they come before the times here,
    /// and after them in `since`.
    pub(crate) fn now(&self) -> Reading {
        let (wal_bytes, database_bytes) = self.sizes();
        Reading { times: self.times(), wal_bytes, database_bytes }
    }

    /// What was used since.
    pub(crate) fn since(&self, before: Reading) -> Used {
        let times = self.times();
        let (wal_bytes, database_bytes) = self.sizes();
        let [server_secs, postgres_secs, generator_secs] =
            std::array::from_fn(|at| times[at] - before.times[at]);
        let with_postgres = |used: f64| self.postgres.is_some().then_some(used);
        Used {
            server_secs,
            postgres_secs: with_postgres(postgres_secs),
            generator_secs,
            wal_bytes: with_postgres(wal_bytes - before.wal_bytes),
            database_bytes: with_postgres(database_bytes - before.database_bytes),
        }
    }

    /// Resident memory of the server now, in MiB.
    pub(crate) fn rss_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server)).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("kilobytes") / 1024.0
    }

    /// Connections to its database that are open now, besides the one that asks.
    pub(crate) fn postgres_connections(&self) -> usize {
        let Some((_, access, database)) = &self.postgres else { return 0 };
        let sql = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()";
        access.sql(database, sql).expect("Postgres answers").trim().parse().expect("a number")
    }

    /// Of the server, of Postgres, of this program.
    fn times(&self) -> [f64; 3] {
        let own = |pid| Times::of(pid).expect("the process runs").own;
        let postgres = self.postgres.as_ref().map_or(0.0, |(pid, ..)| family_secs(*pid));
        [own(self.server), postgres, own(std::process::id())]
    }

    fn sizes(&self) -> (f64, f64) {
        let Some((_, access, database)) = &self.postgres else { return (0.0, 0.0) };
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'), pg_database_size(current_database())";
        let row = access.sql(database, sql).expect("Postgres answers");
        let (wal, size) = row.split_once('|').expect("two columns");
        (wal.parse().expect("a number"), size.parse().expect("a number"))
    }
}

/// Processor time in seconds.
struct Times {
    own: f64,
    /// Of children that have ended and were waited for.
    children: f64,
    parent: u32,
}

impl Times {
    /// Of a process; nothing when there is none.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, in parentheses, may hold spaces (proc(5)): what follows begins with the third.
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let secs = |first: usize| Some((ticks(first)? + ticks(first + 1)?) * TICK_SECS);
        Some(Self { own: secs(14)?, children: secs(16)?, parent: fields.get(1)?.parse().ok()? })
    }
}

/// Processor time of a process, of its children, and of those that it had. Each backend of Postgres is a child of the main
/// process, in a session of its own, so no process group tells them.
fn family_secs(pid: u32) -> f64 {
    let main = Times::of(pid).expect("Postgres runs");
    let processes = fs::read_dir("/proc").expect("/proc can be read");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let all: BTreeMap<u32, Times> = ids.filter_map(|id| Some((id, Times::of(id)?))).collect();
    let living = all.values().filter(|times| times.parent == pid).map(|times| times.own).sum::<f64>();
    main.own + main.children + living
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_process_are_read_where_they_stand() {
        let times = Times::of(std::process::id()).expect("this process runs");
        assert_eq!(times.parent, std::os::unix::process::parent_id());
        assert!(times.own >= 0.0 && times.children >= 0.0);
    }
}
