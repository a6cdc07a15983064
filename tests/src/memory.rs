//! The memory of a running process, as proc_pid_mem(5) and proc_pid_smaps(5) show it to root.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use aho_corasick::AhoCorasick;
use keyfold::dev::process::Process;
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::Search;

/// What is looked for: bytes by name.
pub type Planted = BTreeMap<String, Vec<u8>>;

/// A mapping that the process may write.
pub struct Map {
    /// Its range and name.
    pub header: String,
    /// `VmFlags` of smaps, such as `lo` for locked.
    flags: BTreeSet<String>,
    bytes: Vec<u8>,
}

impl Map {
    /// Whether its pages are never swapped and left out of core dumps.
    pub fn is_locked_and_not_dumped(&self) -> bool {
        ["lo", "dd"].iter().all(|flag| self.flags.contains(*flag))
    }
}

/// What lies in all writable maps of a process: heap, stacks, data.
pub struct Memory(Vec<Map>);

impl Memory {
    /// The memory at one moment: the process stands still meanwhile.
    ///
    /// # Panics
    /// When this is not root, or the process has ended.
    pub fn of(process: &Process) -> Self {
        assert!(
            geteuid().is_root(),
            "only root may read the memory of these processes: run this test as root"
        );
        let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::STOP).expect("the process runs");
        let read = Self::read(process.pid());
        kill_process(pid, Signal::CONT).expect("the process runs");
        read
    }

    fn read(pid: u32) -> Self {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("root may read it");
        let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
        let mut maps: Vec<Map> = Vec::new();
        let mut header = "";
        for line in smaps.lines() {
            match line.strip_prefix("VmFlags:") {
                Some(flags) if header.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")) => {
                    let flags = flags.split_whitespace().map(ToOwned::to_owned).collect();
                    maps.push(Map { header: header.to_owned(), flags, bytes: read_range(&memory, header) });
                }
                Some(_) => {}
                None if line.split(' ').next().is_some_and(|word| !word.ends_with(':')) => header = line,
                None => {}
            }
        }
        Self(maps)
    }

    /// Of what is planted, what is in the maps that `wanted` names, each as `NAME (FORM) in MAP`.
    pub fn found(&self, planted: &Planted, wanted: impl Fn(&Map) -> bool) -> BTreeSet<String> {
        let search = Search::of(planted.iter().map(|(name, value)| (name.as_str(), value.as_slice())));
        let maps = self.0.iter().filter(|map| wanted(map));
        maps.flat_map(|map| {
            search.found_in(&map.bytes).into_iter().map(|name| format!("{name} in {}", map.header))
        })
        .collect()
    }

    /// The names of what lies in the maps that `wanted` names, byte for byte.
    pub fn names_of(&self, planted: &Planted, wanted: impl Fn(&Map) -> bool) -> BTreeSet<String> {
        let names: Vec<_> = planted.keys().cloned().collect();
        let automaton = AhoCorasick::new(planted.values()).expect("a few patterns");
        let maps = self.0.iter().filter(|map| wanted(map));
        maps.flat_map(|map| automaton.find_overlapping_iter(&map.bytes).collect::<Vec<_>>())
            .map(|found| names[found.pattern().as_usize()].clone())
            .collect()
    }
}

/// A page that cannot be read, as of a file that became shorter, holds nothing.
fn read_range(memory: &File, header: &str) -> Vec<u8> {
    const PAGE: usize = 4096;
    let (from, to) = header.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    let number = |text| u64::from_str_radix(text, 16).expect("an address");
    let mut bytes = vec![0; usize::try_from(number(to) - number(from)).expect("addresses fit")];
    if memory.read_exact_at(&mut bytes, number(from)).is_err() {
        for (index, page) in bytes.chunks_mut(PAGE).enumerate() {
            if memory.read_exact_at(page, number(from) + (index * PAGE) as u64).is_err() {
                page.fill(0);
            }
        }
    }
    bytes
}
