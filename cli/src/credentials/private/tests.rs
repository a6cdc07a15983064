use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    thread,
};

use tempfile::TempDir;

use super::*;

fn folder() -> (TempDir, PrivateFolder) {
    let above = tempfile::tempdir().unwrap();
    let folder = PrivateFolder::open_or_make(&above.path().join("a/keyfold")).unwrap();
    (above, folder)
}

fn name() -> &'static OsStr {
    OsStr::new("token")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn refusal(result: Result<Option<impl Sized>, String>, above: &TempDir) -> String {
    let Err(reason) = result else { panic!("taken") };
    reason.replace(above.path().to_str().unwrap(), "")
}

#[test]
fn what_is_written_is_its_owners_alone_and_read_back() {
    let (_above, folder) = folder();
    assert!(folder.read(name(), 10).unwrap().is_none());
    for content in [&b"first"[..], b"2"] {
        folder.write(name(), content).unwrap();
        assert_eq!(**folder.read(name(), 10).unwrap().unwrap(), *content);
    }
    assert_eq!((mode(&folder.path), mode(&folder.path.join("token"))), (0o700, 0o600));
    assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_file_that_others_may_have_touched_is_refused() {
    let (above, folder) = folder();
    let path = folder.path.join("token");
    folder.write(name(), b"planted").unwrap();
    let mut refusals = Vec::new();
    for bits in [0o640, 0o604, 0o620] {
        set_mode(&path, bits);
        refusals.push(refusal(folder.read(name(), 10), &above));
    }
    set_mode(&path, 0o600);
    fs::rename(&path, folder.path.join("other")).unwrap();
    symlink("other", &path).unwrap();
    refusals.push(refusal(folder.read(name(), 10), &above));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refusals.push(refusal(folder.read(name(), 10), &above));
    fs::remove_dir(&path).unwrap();
    folder.write(name(), &[b'x'; 2048]).unwrap();
    refusals.push(refusal(folder.read(name(), 1024), &above));
    insta::assert_snapshot!(refusals.join("\n"), @r"
    /a/keyfold/token is open to others: its mode is 0640 where it must be 0600
    /a/keyfold/token is open to others: its mode is 0604 where it must be 0600
    /a/keyfold/token is open to others: its mode is 0620 where it must be 0600
    /a/keyfold/token cannot be used: it is a link, or not what it must be
    /a/keyfold/token is no regular file
    /a/keyfold/token is longer than 1 KiB
    ");
}

#[test]
fn a_folder_that_others_may_have_touched_is_refused() {
    let (above, folder) = folder();
    let mut refusals = Vec::new();
    for bits in [0o755, 0o770] {
        set_mode(&folder.path, bits);
        refusals.push(refusal(PrivateFolder::open(&folder.path), &above));
    }
    set_mode(&folder.path, 0o700);
    let link = above.path().join("link");
    symlink(&folder.path, &link).unwrap();
    refusals.push(refusal(PrivateFolder::open(&link), &above));
    refusals.push(refusal(PrivateFolder::open_or_make(&link).map(Some), &above));
    fs::write(above.path().join("file"), "").unwrap();
    refusals.push(refusal(PrivateFolder::open_or_make(&above.path().join("file")).map(Some), &above));
    insta::assert_snapshot!(refusals.join("\n"), @r"
    /a/keyfold is open to others: its mode is 0755 where it must be 0700
    /a/keyfold is open to others: its mode is 0770 where it must be 0700
    /link cannot be used: it is a link, or not what it must be
    /link cannot be used: it is a link, or not what it must be
    /file cannot be used: it is a link, or not what it must be
    ");
}

#[test]
fn a_folder_that_is_not_there_is_none_whatever_is_there_instead_of_those_above_it() {
    let above = tempfile::tempdir().unwrap();
    fs::write(above.path().join("file"), "").unwrap();
    for path in ["none", "none/keyfold", "file/keyfold"] {
        assert!(PrivateFolder::open(&above.path().join(path)).unwrap().is_none(), "{path}");
    }
}

/// Needs root, which alone can give files away; fails otherwise.
#[test]
fn what_belongs_to_another_user_is_refused() {
    let (above, folder) = folder();
    folder.write(name(), b"planted").unwrap();
    let give_away = |path: &Path| {
        std::os::unix::fs::chown(path, Some(65534), None)
            .expect("this test gives files away: run it as root");
    };
    give_away(&folder.path.join("token"));
    let file = refusal(folder.read(name(), 10), &above);
    give_away(&folder.path);
    let folder = refusal(PrivateFolder::open(&folder.path), &above);
    insta::assert_snapshot!(format!("{file}\n{folder}"), @r"
    /a/keyfold/token belongs to another user, with id 65534
    /a/keyfold belongs to another user, with id 65534
    ");
}

#[test]
fn a_file_is_closed_to_others_from_its_first_moment() {
    let (_above, folder) = folder();
    // What stands under a new file's name is never written to.
    let stranger = folder.path.join("stranger");
    fs::write(&stranger, "").unwrap();
    set_mode(&stranger, 0o666);
    let error = folder.write_new(OsStr::new("stranger"), b"planted").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&stranger).unwrap(), b"");
    folder.write_new(OsStr::new("new"), b"planted").unwrap();
    assert_eq!(mode(&folder.path.join("new")), 0o600);
}

#[test]
fn many_writers_and_readers_at_once_see_whole_contents_only() {
    let (_above, folder) = folder();
    folder.write(name(), &[b'0'; 4096]).unwrap();
    thread::scope(|scope| {
        for writer in b'1'..=b'4' {
            let folder = &folder;
            scope.spawn(move || (0..50).for_each(|_| folder.write(name(), &[writer; 4096]).unwrap()));
        }
        for _ in 0..200 {
            let content = folder.read(name(), 4096).unwrap().unwrap();
            assert!(content.len() == 4096 && content.iter().all(|byte| *byte == content[0]));
        }
    });
    assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn removing_takes_what_killed_writers_left_and_nothing_else() {
    let (_above, folder) = folder();
    for file in ["token", ".token.0123", "token2", ".token2.0123"] {
        folder.write_new(OsStr::new(file), b"planted").unwrap();
    }
    for _ in 0..2 {
        folder.remove(name()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".token2.0123", "token2"]);
    }
}
