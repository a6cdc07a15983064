//! A tripwire: each row of docs/attacks.md has tests that bear its number, or says with what its defence will come.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A row's number, and its state.
fn rows() -> BTreeMap<u32, String> {
    let text = fs::read_to_string(root().join("docs/attacks.md")).unwrap();
    let cells =
        text.lines().filter(|line| line.starts_with("| ")).map(|line| line.split('|').collect::<Vec<_>>());
    cells
        .filter_map(|cells| Some((cells.get(1)?.trim().parse().ok()?, cells.get(3)?.trim().to_owned())))
        .collect()
}

/// The names of all test functions `attack_NN_…` below the workspace, by number.
fn tests() -> BTreeMap<u32, BTreeSet<String>> {
    let mut found: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&root()) {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some((_, name)) = line.split_once("fn attack_") else { continue };
            // A test stands right below its attribute, save for others of its kind; in proptest!, too.
            let above = &lines[at.saturating_sub(4)..at];
            let is_test =
                above.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
            assert!(is_test, "{}:{}: fn attack_{name} is no test", file.display(), at + 1);
            let number = name.split('_').next().and_then(|number| number.parse().ok());
            let number = number.unwrap_or_else(|| panic!("{}: attack_{name}", file.display()));
            let name = name.split(['(', '<']).next().unwrap_or_default();
            found.entry(number).or_default().insert(format!("attack_{name}"));
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && path != root().join("tests/tests/attacks.rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

#[test]
fn every_row_has_tests_or_a_topic_with_which_they_come() {
    let (rows, tests) = (rows(), tests());
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), (1..=27).collect::<Vec<_>>(), "the rows");
    for (number, state) in &rows {
        match state.as_str() {
            held if held.starts_with("held") => {
                assert!(
                    tests.contains_key(number),
                    "row {number:02} is held by no test attack_{number:02}_…"
                );
            }
            later if later.starts_with("with ") => {
                assert!(!tests.contains_key(number), "row {number:02} has tests: its state is held");
            }
            other => panic!("row {number:02}: {other:?} is no state"),
        }
    }
    for number in tests.keys() {
        assert!(rows.contains_key(number), "there is no row {number:02} for {:?}", tests[number]);
    }
}
