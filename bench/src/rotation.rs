//! What a turn of a keyspace's key costs: how fast data keys are rewrapped and payloads encrypted anew, and what a pod that
//! asks for its secret meanwhile notices of it. One data key is damaged before the rewrap, which must pass over it alone.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    CompromiseKeyRequest, Field, GetKeyStatusRequest, KeysetStatus, ListQuarantineRequest, PutSecretRequest,
    RetryQuarantineRequest, RotateKeyRequest,
};
use keyfold_tests::World;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::report::{profile, write_json};

/// The keyspace of all secrets.
const KEYSPACE: &str = "payments";
/// Bytes of each secret's value.
const VALUE_BYTES: usize = 1024;
/// Writers that fill the keyspace.
const WRITERS: usize = 16;
/// How often the progress is asked for: often enough for a run of seconds, seldom enough not to weigh on it, for each time
/// counts all rows.
const POLL: Duration = Duration::from_millis(500);
/// A clock tick of /proc/PID/stat on Linux (`sysconf(_SC_CLK_TCK)` on every architecture that Rust's std supports).
const TICK_SECS: f64 = 0.01;

/// Arguments of `keyfold-bench rotation`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Secrets of 1 KiB in the keyspace
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    secrets: u32,
    /// Pods that ask for a secret of 1 KiB all the time
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    callers: u32,
    /// Seconds of each quiet measurement
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    quiet_secs: u64,
}

/// One phase: what was moved, what it cost, and what callers saw meanwhile.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    moved: u64,
    seconds: f64,
    per_second: f64,
    /// Of the server process, all threads.
    cpu_seconds: f64,
    per_cpu_second: f64,
    issues: usize,
    issue_p50_millis: f64,
    issue_p99_millis: f64,
    resident_mib: f64,
}

/// Measures, prints and writes.
///
/// # Panics
/// When a part does not start or refuses.
pub(crate) async fn run(args: &Args, out: &Path) -> ExitCode {
    let world = World::with_own_postgres().await.with_payments().await;
    let filled = Instant::now();
    fill(&world, args.secrets).await;
    println!("{} secrets written in {:.0} s", args.secrets, filled.elapsed().as_secs_f64());
    let pid = world.server.process.pid();
    let operator = world.operator();
    let quiet = Duration::from_secs(args.quiet_secs);
    let mut phases = Vec::new();

    let nobody = Callers::start(&world, 0);
    let damaged = format!("payments/s{}", args.secrets / 2);
    flip_a_byte(&world, &damaged);
    phases.push(phase("rewrap, nobody asks", pid, &nobody, rotate(&operator, KEYSPACE)).await);
    only_that_is_in_quarantine(&operator, &damaged).await;
    flip_a_byte(&world, &damaged);
    let request = RetryQuarantineRequest { keyspace: "payments".into() };
    operator.keys().retry_quarantine(request).await.expect("quarantine can be tried again");
    until_done(&operator, KEYSPACE).await;
    phases.push(phase("re-encryption, nobody asks", pid, &nobody, compromise(&operator)).await);

    let callers = Callers::start(&world, args.callers);
    phases.push(phase("quiet", pid, &callers, nothing_for(quiet)).await);
    phases.push(phase("rewrap", pid, &callers, rotate(&operator, KEYSPACE)).await);
    phases.push(phase("re-encryption", pid, &callers, compromise(&operator)).await);
    phases.push(phase("quiet again", pid, &callers, nothing_for(quiet)).await);
    callers.stop().await;
    report(args, &phases, peak_mib(pid), out);
    ExitCode::SUCCESS
}

async fn nothing_for(time: Duration) -> u64 {
    tokio::time::sleep(time).await;
    0
}

/// Turns a keyspace's key. Gives how many data keys were rewrapped.
///
/// # Panics
/// When the server refuses.
pub(crate) async fn rotate(operator: &Client, keyspace: &str) -> u64 {
    let request = RotateKeyRequest { keyspace: keyspace.into(), no_wait: true, ..Default::default() };
    operator.keys().rotate_key(request).await.expect("the key turns");
    until_done(operator, keyspace).await
}

async fn compromise(operator: &Client) -> u64 {
    let request = CompromiseKeyRequest { keyspace: "payments".into(), version: 0 };
    operator.keys().compromise_key(request).await.expect("the key is declared compromised");
    until_done(operator, KEYSPACE).await
}

/// Until nothing is left to move. Gives how much was.
async fn until_done(operator: &Client, keyspace: &str) -> u64 {
    let mut most = 0;
    loop {
        let status = status(operator, keyspace).await;
        let pending = status.deks_pending + status.reencryptions_pending;
        most = most.max(pending);
        if pending == 0 && status.pre_active_version == 0 {
            return most.max(status.deks_done);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn status(operator: &Client, keyspace: &str) -> KeysetStatus {
    let request = GetKeyStatusRequest { keyspace: keyspace.into() };
    let answer = operator.keys().get_key_status(request).await.expect("the status can be read").into_inner();
    answer.keysets.into_iter().next().expect("the keyspace has a key")
}

/// As a bad disk would; a second time undoes it.
fn flip_a_byte(world: &World, path: &str) {
    world.database.sql(&format!(
        "ALTER TABLE deks DISABLE TRIGGER USER;
         UPDATE deks SET wrapped = set_byte(wrapped, 130, 255 - get_byte(wrapped, 130))
             WHERE secret_id = (SELECT id FROM secrets WHERE path = '{path}');
         ALTER TABLE deks ENABLE TRIGGER USER"
    ));
}

async fn only_that_is_in_quarantine(operator: &Client, path: &str) {
    let request = ListQuarantineRequest { keyspace: "payments".into() };
    let listed =
        operator.keys().list_quarantine(request).await.expect("quarantine can be listed").into_inner();
    let listed: Vec<_> = listed.deks.iter().map(|dek| &*dek.path).collect();
    assert_eq!(listed, [path], "the damaged data key alone is in quarantine");
    println!("{path} was damaged: it alone is in quarantine");
}

async fn phase(name: &'static str, pid: u32, callers: &Callers, work: impl Future<Output = u64>) -> Phase {
    callers.take();
    let (start, cpu) = (Instant::now(), cpu_seconds(pid));
    let moved = work.await;
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_seconds(pid) - cpu);
    let mut times = callers.take();
    times.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| {
        let at = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        times.get(at).copied().unwrap_or(f64::NAN)
    };
    Phase {
        name,
        moved,
        seconds,
        per_second: moved as f64 / seconds,
        cpu_seconds,
        per_cpu_second: moved as f64 / cpu_seconds,
        issues: times.len(),
        issue_p50_millis: quantile(0.5),
        issue_p99_millis: quantile(0.99),
        resident_mib: status_mib(pid, "VmRSS:"),
    }
}

async fn fill(world: &World, secrets: u32) {
    let value: Vec<u8> = (0..VALUE_BYTES).map(|_| fastrand::u8(..)).collect();
    let value = Arc::new(value);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (operator, value) = (world.operator(), Arc::clone(&value));
            tokio::spawn(async move {
                for at in (writer..secrets as usize).step_by(WRITERS) {
                    let field = Field { name: "value".into(), value: value.to_vec() };
                    let path = format!("payments/s{at}");
                    let request = PutSecretRequest { path, fields: vec![field], expected_version: None };
                    operator.secrets().put_secret(request).await.expect("the secret can be written");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer ends");
    }
}

/// Pods that ask all the time.
struct Callers {
    stop: Arc<AtomicBool>,
    times: Arc<std::sync::Mutex<Vec<f64>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(world: &World, callers: u32) -> Self {
        let (stop, times) = (Arc::<AtomicBool>::default(), Arc::<std::sync::Mutex<Vec<f64>>>::default());
        let tasks = (0..callers).map(|at| {
            let pod = world.pod("payments", "api", &format!("api-{at}"));
            let mut asker = world.asker(&pod, "payments-api", "payments/s0");
            let (stop, times) = (Arc::clone(&stop), Arc::clone(&times));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    asker.ask().await.expect("the secret is issued");
                    let millis = start.elapsed().as_secs_f64() * 1000.0;
                    times.lock().expect("nobody panicked").push(millis);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, times, tasks }
    }

    /// The times since the last call, in milliseconds.
    fn take(&self) -> Vec<f64> {
        std::mem::take(&mut *self.times.lock().expect("nobody panicked"))
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a caller ends");
        }
    }
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    // The second field, in parentheses, may hold spaces; utime and stime are the 14th and 15th (proc(5)).
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    ticks * TICK_SECS
}

fn peak_mib(pid: u32) -> f64 {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

fn report(args: &Args, phases: &[Phase], peak_mib: f64, out: &Path) {
    let per = |moved: u64, rate: f64| if moved == 0 { "-".into() } else { format!("{rate:.0}") };
    let quiet_p99 =
        phases.iter().find(|phase| phase.name == "quiet").map_or(f64::NAN, |phase| phase.issue_p99_millis);
    let millis = |of: f64| if of.is_nan() { "-".into() } else { format!("{of:.1} ms") };
    let ratio = |of: f64| if of.is_nan() { "-".into() } else { format!("{of:.2}") };
    let rows = phases.iter().map(|phase| {
        [
            phase.name.to_owned(),
            phase.moved.to_string(),
            format!("{:.1} s", phase.seconds),
            per(phase.moved, phase.per_second),
            per(phase.moved, phase.per_cpu_second),
            millis(phase.issue_p50_millis),
            millis(phase.issue_p99_millis),
            ratio(phase.issue_p99_millis / quiet_p99),
            format!("{:.0} MiB", phase.resident_mib),
        ]
    });
    let header =
        ["PHASE", "MOVED", "TIME", "PER S", "PER CPU S", "ISSUE P50", "ISSUE P99", "P99 / QUIET", "RESIDENT"];
    print!("{}", keyfold::output::table(header, rows));
    println!("\nPeak resident memory of the server: {peak_mib:.0} MiB");
    let figures = json!({
        "profile": profile(), "secrets": args.secrets, "value_bytes": VALUE_BYTES, "callers": args.callers,
        "phases": phases, "peak_resident_mib": peak_mib,
    });
    write_json(out, "rotation.json", &figures);
}
