//! Each fuzz target over its corpus, and over changes of it that are the same in every run.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use keyfold_tests::fuzzing::{TARGETS, Target};

/// Changed inputs a target: a few seconds for all.
const CHANGES: usize = 20_000;
/// Longest input. What is longer is refused for its length by most targets.
const LENGTH_MAX: usize = 32 * 1024;

#[test]
fn attack_03_fuzz_tokens() {
    run("token");
}

#[test]
fn attack_03_fuzz_key_sets() {
    run("jwks");
}

#[test]
fn attack_07_fuzz_paths_and_patterns() {
    run("path_and_pattern");
}

#[test]
fn attack_16_fuzz_role_files() {
    run("role_file");
}

#[test]
fn attack_18_fuzz_blobs() {
    run("blob");
}

#[test]
fn attack_24_fuzz_publish_requests() {
    run("csi_request");
}

#[test]
fn every_target_has_a_program_a_corpus_and_a_test() {
    let named: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in("targets"), named);
    assert_eq!(names_in("corpus"), named);
    let programs = fs::read_to_string(folder("Cargo.toml")).expect("fuzz has a manifest");
    let tests = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_corpus.rs"))
        .expect("this file can be read");
    for name in named {
        let program = format!("[[bin]]\nname = \"{name}\"\npath = \"targets/{name}.rs\"\n");
        assert!(programs.contains(&program), "{name} is no program");
        let source = fs::read_to_string(folder("targets").join(format!("{name}.rs"))).expect("a source");
        assert!(source.contains(&format!("fuzzing::{name}(data)")), "{name} runs another target");
        assert!(tests.contains(&format!("    run(\"{name}\");\n")), "{name} has no test");
        assert!(seeds(&name).len() >= 5, "{name} has a small corpus");
    }
}

fn run(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let seeds = seeds(name);
    for seed in &seeds {
        check(*target, seed);
    }
    let mut random = Random(0x4B65_7966_6F6C_6421);
    for _ in 0..CHANGES {
        check(*target, &changed(&seeds, &mut random));
    }
}

/// Shows the input when the target panics.
fn check(target: Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("The input is b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder("corpus").join(name)).expect("a corpus");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file can be read")).collect()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

fn names_in(name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(name)).expect("a folder");
    entries
        .map(|entry| {
            entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect()
}

/// What parsers of text trip over.
const WORDS: [&str; 48] = [
    "..",
    "../",
    "/",
    "//",
    "%2f",
    ".",
    "*",
    "**",
    "{namespace}",
    "{serviceAccount}",
    "{issuer}",
    "}",
    "{",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\0",
    "\n",
    "---\n",
    "- ",
    ": ",
    "&a ",
    "*a",
    "!!binary ",
    "<<: ",
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "4294967295",
    "0777",
    "NaN",
    "alg",
    "none",
    "kid",
    "kty",
    "oct",
    "use",
    "е",
    "\u{202e}",
    "\u{feff}",
    "e30",
    "=",
    ",",
];

/// One to four changes of a seed.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        change(&mut input, seeds, random);
    }
    input.truncate(LENGTH_MAX);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(16)).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.byte(),
        2 => input.insert(at, random.byte()),
        3 => drop(input.drain(at..end)),
        4 => insert(input, at, WORDS[random.below(WORDS.len())].as_bytes()),
        5 => {
            let copied = input[at..end].repeat(1 + random.below(40));
            insert(input, at, &copied);
        }
        6 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// Xorshift (Marsaglia, 2003): the same numbers in every run, and not for secrets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}
