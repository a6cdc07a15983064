use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_folder_whose_sockets_would_have_too_long_a_path_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(100));
    let failure = prepare(&long).unwrap_err().to_string();
    assert!(failure.contains("shorter path"), "{failure}");
}

#[test]
fn the_folder_is_its_owners_alone_and_has_room_for_one_environment() {
    let folder = tempfile::tempdir().unwrap();
    let dir = prepare(&folder.path().join("dev")).unwrap();
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let first = lock(&dir).unwrap();
    let failure = lock(&dir).unwrap_err().to_string();
    assert!(failure.contains("another one is up there"), "{failure}");
    drop(first);
    lock(&dir).unwrap();
}

#[test]
fn programs_that_are_not_built_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let failure = Programs::find(folder.path()).err().unwrap().to_string();
    assert!(failure.contains("keyfold-server does not exist") && failure.contains("make build"), "{failure}");
}

#[test]
fn commands_for_an_environment_that_is_not_up_say_how_to_start_it() {
    let failure = DevFile::load(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(failure.contains("keyfold dev --dir /nowhere"), "{failure}");
}
