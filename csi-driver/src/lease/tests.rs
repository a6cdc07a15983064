use std::{fs, fs::File, os::unix::fs::symlink};

use time::macros::datetime;

use super::*;

const END: OffsetDateTime = datetime!(2026-11-23 07:12:30.123456 UTC);

#[test]
fn an_expiry_is_kept_changed_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let root = || File::open(folder.path()).unwrap();
    assert_eq!(expiry(root()).unwrap(), None);
    for end in [END, END - time::Duration::days(1), END + time::Duration::days(365)] {
        set_expiry(root(), Some(end)).unwrap();
        assert_eq!(expiry(root()).unwrap(), Some(end));
    }
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE]);
    for _ in 0..2 {
        set_expiry(root(), None).unwrap();
        assert_eq!(expiry(root()).unwrap(), None);
    }
}

#[test]
fn a_write_that_a_crash_cut_off_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(FILE_TMP), "").unwrap();
    set_expiry(File::open(folder.path()).unwrap(), Some(END)).unwrap();
    assert_eq!(expiry(File::open(folder.path()).unwrap()).unwrap(), Some(END));
    assert!(!folder.path().join(FILE_TMP).exists());
}

#[test]
fn a_planted_link_is_not_followed() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let before = outside.as_file().metadata().unwrap().modified().unwrap();
    symlink(outside.path(), folder.path().join(FILE)).unwrap();
    assert!(set_expiry(File::open(folder.path()).unwrap(), Some(END)).is_err());
    assert_eq!(outside.as_file().metadata().unwrap().modified().unwrap(), before);
}
