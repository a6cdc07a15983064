//! The report: a JSON file for programs, tables for people.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{database, peer};
use crate::report::{profile, save_json};

/// The file's name.
pub(super) const FILE: &str = "report.json";

/// What the figures were measured on, and with which command.
///
/// # Panics
/// When /proc cannot be read.
pub(super) fn machine(bao: &Path, postgres_version: &str) -> Value {
    let read = |file: &str| fs::read_to_string(file).expect("/proc can be read");
    let value = |text: &str, field: &str| {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory_kb = value(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<f64>();
    let uname = rustix::system::uname();
    json!({
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "processor": value(&read("/proc/cpuinfo"), "model name"),
        "memory_mb": memory_kb.map_or(0.0, |kb| (kb / 1024.0).round()),
        "kernel": uname.release().to_string_lossy(),
        "postgres": postgres_version,
        "postgres_settings": database::SETTINGS.map(|(name, value)| format!("{name} = {value}")),
        "peer": peer::version(bao),
        "profile": profile(),
        "command": std::env::args().collect::<Vec<_>>().join(" "),
    })
}

/// Writes the file as far as it has come: a long run that is broken off keeps what it has.
///
/// # Panics
/// When it cannot be written.
pub(super) fn write(out: &Path, machine: &Value, fills: &[Value], workloads: &[Value]) {
    save_json(out, FILE, &json!({"machine": machine, "fill": fills, "workloads": workloads}));
}

/// The tables: Keyfold beside the peer, then each further column beside Keyfold.
pub(super) fn print(workloads: &[Value]) {
    for (key, ratio, title) in [
        ("peer", "ratio", "Keyfold beside OpenBao on Postgres"),
        ("peer_raft", "ratio_raft", "Keyfold beside OpenBao on its raft storage"),
        ("peer_batch", "ratio_batch", "Keyfold beside OpenBao on Postgres with batch tokens"),
        ("keyfold_quiet", "ratio_quiet", "Keyfold while a key turns beside Keyfold in quiet"),
    ] {
        let compared: Vec<_> = workloads.iter().filter(|entry| entry.get(key).is_some()).collect();
        if !compared.is_empty() {
            println!("\n{title} (in each cell: Keyfold / other = better by, least … greatest)\n");
            print_comparison(&compared, key, ratio);
            println!();
            print_costs(&compared, key);
        }
    }
}

fn print_comparison(entries: &[&Value], key: &str, ratio: &str) {
    let rows = entries.iter().map(|entry| {
        let cell = |figure: &str, of: &str| compared(entry, key, ratio, figure, of);
        let time = |figure: &str, of: &str| {
            let ready = cell("ready_ms", "ready");
            if figure == "p50_ms" && ready != "-" { ready } else { cell(figure, of) }
        };
        [
            name(entry),
            entry["callers"].to_string(),
            entry["stored"].to_string(),
            cell("ops", "ops"),
            time("p50_ms", "p50"),
            time("p99_ms", "p99"),
            cell("rss_mb", "rss"),
        ]
    });
    let header =
        ["WORKLOAD", "CALLERS", "STORED", "OPS A SECOND", "P50 OR READY, MS", "P99, MS", "RESIDENT, MIB"];
    print!("{}", keyfold::output::table(header, rows));
}

/// `K / P = R (low … high)`.
fn compared(entry: &Value, key: &str, ratio: &str, figure: &str, of: &str) -> String {
    let (ours, theirs, by) = (&entry["keyfold"][figure], &entry[key][figure], &entry[ratio][of]);
    if ours.is_null() || theirs.is_null() {
        return "-".into();
    }
    let spread = &entry[ratio]["spread"][of];
    let (low, high) = (number(&spread[0]), number(&spread[1]));
    format!("{} / {} = {} ({low} … {high})", number(ours), number(theirs), number(by))
}

fn print_costs(entries: &[&Value], key: &str) {
    let with_costs = entries.iter().filter(|entry| !entry["keyfold"]["server_cpu_ms"].is_null());
    let rows: Vec<_> = with_costs
        .map(|entry| {
            let cell = |figure: &str| {
                format!("{} / {}", number(&entry["keyfold"][figure]), number(&entry[key][figure]))
            };
            [
                name(entry),
                entry["callers"].to_string(),
                entry["stored"].to_string(),
                cell("server_cpu_ms"),
                cell("postgres_cpu_ms"),
                cell("wal_bytes"),
                cell("postgres_bytes"),
                cell("closed_p50_ms"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let header = [
            "EACH OPERATION",
            "CALLERS",
            "STORED",
            "SERVER CPU, MS",
            "POSTGRES CPU, MS",
            "WAL, BYTES",
            "POSTGRES, BYTES",
            "CLOSED LOOP P50, MS",
        ];
        print!("{}", keyfold::output::table(header, rows));
    }
}

fn name(entry: &Value) -> String {
    entry["name"].as_str().unwrap_or_default().to_owned()
}

/// Three significant digits, without an exponent.
fn number(value: &Value) -> String {
    let Some(value) = value.as_f64() else { return "-".into() };
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (2 - digits).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_no_exponent() {
        let numbers = [0.0, 0.012_345, 1.0, 12.345, 123.45, 12345.0, -4.5].map(|of| number(&json!(of)));
        assert_eq!(numbers, ["0.00", "0.0123", "1.00", "12.3", "123", "12345", "-4.50"]);
        assert_eq!(number(&Value::Null), "-");
    }

    #[test]
    fn a_comparison_names_both_and_how_much_better() {
        let entry = json!({
            "keyfold": {"ops": 200.0}, "peer": {"ops": 50.0}, "ratio": {"ops": 4.0, "spread": {"ops": [3.5, 4.25]}},
        });
        assert_eq!(compared(&entry, "peer", "ratio", "ops", "ops"), "200 / 50.0 = 4.00 (3.50 … 4.25)");
        assert_eq!(compared(&entry, "peer", "ratio", "p50_ms", "p50"), "-");
    }
}
