use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use keyfold_core::{secret::SecretBytes, volume::FilePath};
use rustix::mount::MountFlags;
use time::{Duration, OffsetDateTime, macros::datetime};

use super::*;
use crate::{
    atomic_writer::{self, WriteError, Written},
    file_set::{File, FileSet},
};

const NOW: OffsetDateTime = datetime!(2026-11-23 06:12:30 UTC);
const ACCESS: Access = Access { mode: 0o750, uid: None, gid: Some(2000) };
const SIZE_BYTES: u64 = 256 * 1024;

/// Tests that mount need a root, if only that of a user namespace.
pub(crate) fn tmpfs(size_bytes: u64, access: Access) -> Tmpfs {
    match Tmpfs::create(size_bytes, access) {
        Ok(tmpfs) => tmpfs,
        Err(error) => panic!(
            "this test mounts a tmpfs, so run it as root or with `unshare --user --map-root-user --mount`: {error}"
        ),
    }
}

/// A place to mount at, cleared in the end whatever happens.
struct Place {
    _folder: tempfile::TempDir,
    point: MountPoint,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let point = MountPoint(folder.path().canonicalize().unwrap().join("mount"));
        Self { _folder: folder, point }
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.point.0.join(path)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.point.remove();
    }
}

fn files(size: usize) -> FileSet {
    let mut files = FileSet::default();
    let file = File { content: SecretBytes::new(vec![b'x'; size]), mode: 0o440, uid: None, gid: Some(2000) };
    assert!(files.insert(FilePath::parse("db/password").unwrap(), file).is_ok());
    files
}

fn in_user_namespace() -> bool {
    !fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
}

fn options(place: &Place) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(place.point.0.to_str().unwrap()));
    line.expect("the tmpfs is mounted").to_owned()
}

#[test]
fn attack_26_a_tmpfs_is_filled_before_anyone_can_see_it_and_has_its_options() {
    let place = Place::new();
    let tmpfs = tmpfs(SIZE_BYTES, ACCESS);
    atomic_writer::write(tmpfs.root(), &files(10), ACCESS, NOW).unwrap();
    assert_eq!(place.point.state().unwrap(), State::Absent);
    place.point.attach(tmpfs).unwrap();
    assert_eq!(place.point.state().unwrap(), State::Written);
    assert_eq!(place.read("db/password"), vec![b'x'; 10]);

    let options = options(&place);
    for wanted in ["rw,nosuid,nodev,noexec", "tmpfs keyfold", "size=256k", "mode=750"] {
        assert!(options.contains(wanted), "{wanted} is not in {options}");
    }
    if !in_user_namespace() {
        assert!(options.contains("gid=2000") && options.contains("noswap"), "{options}");
        let metadata = fs::metadata(place.point.0.join("db/password")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), 2000);
    }
    assert_eq!(fs::metadata(&place.point.0).unwrap().permissions().mode() & 0o7777, 0o750);

    place.point.remove().unwrap();
    assert_eq!(place.point.state().unwrap(), State::Absent);
    assert!(!place.point.0.exists());
    place.point.remove().unwrap();
}

#[test]
fn a_tmpfs_that_is_not_attached_leaves_nothing() {
    let place = Place::new();
    drop(tmpfs(SIZE_BYTES, ACCESS));
    assert_eq!(place.point.state().unwrap(), State::Absent);
    assert!(!place.point.0.exists());
}

#[test]
fn attack_26_a_full_tmpfs_keeps_serving_the_files_that_it_has() {
    let place = Place::new();
    let first = tmpfs(SIZE_BYTES, ACCESS);
    atomic_writer::write(first.root(), &files(100_000), ACCESS, NOW).unwrap();
    place.point.attach(first).unwrap();

    let root = place.point.open().unwrap();
    let before = fs::read_link(place.point.0.join("..data")).unwrap();
    let names = || fs::read_dir(&place.point.0).unwrap().count();
    let count_before = names();
    let later = NOW + Duration::seconds(1);
    let full = atomic_writer::write(root.as_fd(), &files(200_000), ACCESS, later);
    assert!(matches!(full, Err(WriteError::Full)), "{full:?}");
    assert_eq!(fs::read_link(place.point.0.join("..data")).unwrap(), before);
    assert_eq!(place.read("db/password").len(), 100_000);
    assert_eq!(names(), count_before, "the partial folder is gone");

    let fits = atomic_writer::write(root.as_fd(), &files(120_000), ACCESS, later).unwrap();
    assert!(matches!(fits, Written::Swapped(_)));
    assert_eq!(place.read("db/password").len(), 120_000);
}

#[test]
fn an_empty_tmpfs_and_several_on_top_of_each_other_are_removed() {
    let place = Place::new();
    place.point.attach(tmpfs(SIZE_BYTES, ACCESS)).unwrap();
    place.point.attach(tmpfs(SIZE_BYTES, ACCESS)).unwrap();
    assert_eq!(place.point.state().unwrap(), State::Empty);
    place.point.remove().unwrap();
    assert!(!place.point.0.exists());
}

#[test]
fn a_tmpfs_of_another_source_is_neither_written_nor_removed() {
    let place = Place::new();
    fs::create_dir(&place.point.0).unwrap();
    rustix::mount::mount("tmpfs", &place.point.0, "tmpfs", MountFlags::empty(), None)
        .expect("run this test as root");
    fs::write(place.point.0.join("precious"), "x").unwrap();
    let foreign = |result: Result<(), MountError>| match result {
        Err(MountError::Foreign(fs_type, source)) => (fs_type, source),
        other => panic!("{other:?}"),
    };
    let tmpfs_of_another = ("tmpfs".to_owned(), "tmpfs".to_owned());
    assert_eq!(foreign(place.point.state().map(drop)), tmpfs_of_another);
    assert_eq!(foreign(place.point.remove()), tmpfs_of_another);
    // Nor when one of Keyfold's lies on top of it.
    place.point.attach(tmpfs(SIZE_BYTES, ACCESS)).unwrap();
    assert_eq!(foreign(place.point.remove()), tmpfs_of_another);
    assert_eq!(place.read("precious"), b"x");
    rustix::mount::unmount(&place.point.0, UnmountFlags::empty()).unwrap();
}

#[test]
fn a_mount_that_a_process_stands_in_is_removed_as_well() {
    let place = Place::new();
    place.point.attach(tmpfs(SIZE_BYTES, ACCESS)).unwrap();
    let busy = fs::File::open(&place.point.0).unwrap();
    place.point.remove().unwrap();
    assert!(!place.point.0.exists());
    drop(busy);
}

#[test]
fn a_folder_with_files_of_others_is_left_alone() {
    let place = Place::new();
    fs::create_dir(&place.point.0).unwrap();
    fs::write(place.point.0.join("precious"), "x").unwrap();
    assert!(matches!(place.point.remove(), Err(MountError::Io("removing the target folder", _))));
    assert_eq!(place.read("precious"), b"x");
}

#[test]
fn attack_24_a_link_out_of_kubelets_folder_is_refused_and_one_to_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (real, outside) = (folder.path().join("real"), folder.path().join("outside"));
    fs::create_dir_all(real.join("pods/uid")).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&real, folder.path().join("kubelet")).unwrap();
    std::os::unix::fs::symlink(&outside, real.join("pods/evil")).unwrap();
    let pods = folder.path().join("kubelet/pods");
    let resolve = |name: &str| {
        let target = crate::volume::tests::target_in(&pods, name);
        MountPoint::resolve(&target, &pods)
    };
    assert_eq!(resolve("uid").unwrap().unwrap().0, real.canonicalize().unwrap().join("pods/uid/mount"));
    assert!(resolve("absent").unwrap().is_none());
    assert!(matches!(resolve("evil"), Err(MountError::Outside)));
    std::os::unix::fs::symlink(&outside, real.join("pods/uid/mount")).unwrap();
    let point = resolve("uid").unwrap().unwrap();
    assert!(point.open().is_err(), "the last part is a link");
    assert!(point.attach(tmpfs(SIZE_BYTES, ACCESS)).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn mountinfo_is_read_with_escapes_odd_lines_and_mounts_on_top_of_each_other() {
    let table: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        30 27 0:30 / /var/lib/kubelet/pods/u/mount rw,nosuid shared:7 master:3 - tmpfs keyfold rw,size=64k,mode=750\n\
        31 27 0:31 / /mnt/a\\040b\\134c rw - tmpfs none rw\n\
        32 27 0:32 / /mnt/\xff rw - ext4 /dev/sda rw\n\
        not a line\n\
        33 30 0:33 / /mnt/stacked rw - tmpfs keyfold rw\n\
        34 33 0:34 / /mnt/stacked rw - ext4 /dev/sdb rw\n";
    let at = |path: &str| mount_at(table, Path::new(path)).unwrap();
    let mounted =
        |fs_type: &str, source: &str| Some(Mounted { fs_type: fs_type.into(), source: source.into() });
    assert_eq!(at("/var/lib/kubelet/pods/u/mount"), mounted("tmpfs", "keyfold"));
    assert_eq!(at("/mnt/a b\\c"), mounted("tmpfs", "none"));
    assert_eq!(at("/mnt/stacked"), mounted("ext4", "/dev/sdb"), "the topmost counts");
    assert_eq!(at("/var/lib/kubelet/pods/u"), None);
    assert_eq!(mount_at(&b""[..], Path::new("/")).unwrap(), None);
}

#[test]
fn mounting_works_in_a_user_namespace_too() {
    let inner = [
        "mount::tests::attack_26_a_tmpfs_is_filled_before_anyone_can_see_it_and_has_its_options",
        "mount::tests::attack_26_a_full_tmpfs_keeps_serving_the_files_that_it_has",
        "publish::tests::a_first_publish_brings_the_files_and_an_unpublish_leaves_nothing",
    ];
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .arg("--exact")
        .args(inner)
        .output()
        .expect("util-linux' unshare is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("3 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
