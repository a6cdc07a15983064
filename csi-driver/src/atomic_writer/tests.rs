use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use keyfold_core::secret::SecretBytes;
use tempfile::TempDir;
use time::{Duration, macros::datetime};

use super::*;

const FOLDERS: Access = Access { mode: 0o750, uid: None, gid: None };
const NOW: OffsetDateTime = datetime!(2026-11-23 06:12:30.123456789 UTC);

fn set(files: &[(&str, &str)]) -> FileSet {
    let mut set = FileSet::default();
    for (path, content) in files {
        let content = SecretBytes::from((*content).to_owned());
        let file = File { content, mode: 0o440, uid: None, gid: None };
        assert!(set.insert(FilePath::parse(path).unwrap(), file).is_ok());
    }
    set
}

struct Volume(TempDir);

impl Volume {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write_at(&self, files: &[(&str, &str)], now: OffsetDateTime) -> Result<Written, WriteError> {
        let root = OwnedFd::from(fs::File::open(self.path()).unwrap());
        write(root.as_fd(), &set(files), FOLDERS, now)
    }

    fn write(&self, files: &[(&str, &str)]) -> Written {
        self.write_at(files, NOW).unwrap()
    }

    /// Names in the root, with what links point at; the generation's own name is shown as `<now>`.
    fn layout(&self) -> Vec<String> {
        let mut shown: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                let text = match fs::read_link(entry.path()) {
                    Ok(target) => format!("{name} -> {}", target.display()),
                    Err(_) => name,
                };
                text.replace("..2026_11_23_06_12_30.123456789", "<now>")
            })
            .collect();
        shown.sort();
        shown
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap()
    }
}

#[test]
fn a_first_write_has_kubelets_layout_and_the_final_access() {
    let volume = Volume::new();
    assert_eq!(volume.write(&[("db/user", "app"), ("db.env", "A=1")]), Written::Swapped(Ownership::Set));
    assert_eq!(volume.layout(), ["..data -> <now>", "<now>", "db -> ..data/db", "db.env -> ..data/db.env"]);
    assert_eq!(volume.read("db/user"), "app");
    let mode = |path: &str| fs::metadata(volume.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("..data"), mode("db"), mode("db/user")), (0o750, 0o750, 0o440));
}

#[test]
fn a_change_swaps_all_files_and_removes_stale_names_and_the_old_folder() {
    let volume = Volume::new();
    volume.write(&[("db/user", "one"), ("gone/x", "x")]);
    let later = NOW + Duration::seconds(1);
    volume.write_at(&[("db/user", "two"), ("new", "n")], later).unwrap();
    let generation = "..2026_11_23_06_12_31.123456789";
    assert_eq!(
        volume.layout(),
        [
            generation.into(),
            format!("..data -> {generation}"),
            "db -> ..data/db".into(),
            "new -> ..data/new".into()
        ]
    );
    assert_eq!(volume.read("db/user"), "two");
}

#[test]
fn equal_files_are_not_swapped() {
    let volume = Volume::new();
    let files = [("db/user", "one"), ("db/pass", "two")];
    volume.write(&files);
    let later = NOW + Duration::seconds(60);
    assert_eq!(volume.write_at(&files, later).unwrap(), Written::Unchanged);
    assert_eq!(volume.layout(), ["..data -> <now>", "<now>", "db -> ..data/db"]);
    for changed in [
        vec![("db/user", "one")],
        vec![("db/user", "one"), ("db/pass", "2")],
        vec![("db/user", "one"), ("db/pass", "two"), ("db/x", "")],
        vec![("db/user/deeper", "one"), ("db/pass", "two")],
        vec![("db", "one")],
        vec![],
    ] {
        volume.write(&files);
        assert!(matches!(volume.write(&changed), Written::Swapped(_)), "{changed:?}");
    }
}

#[test]
fn a_changed_mode_alone_swaps() {
    let volume = Volume::new();
    volume.write(&[("a", "1")]);
    fs::set_permissions(volume.path().join("..data/a"), fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(volume.write(&[("a", "1")]), Written::Swapped(_)));
}

#[test]
fn a_clock_that_stands_still_still_gives_a_new_generation() {
    let volume = Volume::new();
    for content in ["1", "2", "3"] {
        assert!(matches!(volume.write(&[("a", content)]), Written::Swapped(_)));
        assert_eq!(volume.read("a"), content);
    }
}

#[test]
fn what_a_crash_left_is_removed_and_missing_links_are_made() {
    let volume = Volume::new();
    volume.write(&[("db/user", "one")]);
    std::os::unix::fs::symlink("..elsewhere", volume.path().join("..data_tmp")).unwrap();
    fs::create_dir_all(volume.path().join("..2020_01_01_00_00_00.0/db")).unwrap();
    fs::write(volume.path().join("..2020_01_01_00_00_00.0/db/user"), "half").unwrap();
    fs::remove_file(volume.path().join("db")).unwrap();
    assert_eq!(volume.write(&[("db/user", "one")]), Written::Unchanged);
    assert_eq!(volume.layout(), ["..data -> <now>", "<now>", "db -> ..data/db"]);
}

#[test]
fn attack_24_links_planted_in_the_volume_lead_no_write_out_of_it() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("keep"), "untouched").unwrap();
    let volume = Volume::new();
    let plant = |name: &str| std::os::unix::fs::symlink(outside.path(), volume.path().join(name)).unwrap();
    for name in ["..data", "..data_tmp", "db", "..2026_11_23_06_12_30.123456789"] {
        plant(name);
    }
    volume.write(&[("db/user", "one")]);
    assert_eq!(volume.layout(), ["..data -> <now>", "<now>", "db -> ..data/db"]);
    assert_eq!(volume.read("db/user"), "one");
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["keep"]);
}

#[test]
fn an_unwritten_volume_is_told_from_a_written_one() {
    let volume = Volume::new();
    assert!(!is_written(fs::File::open(volume.path()).unwrap()).unwrap());
    volume.write(&[]);
    assert!(is_written(fs::File::open(volume.path()).unwrap()).unwrap());
}

/// What one pass of a reader saw: path → generation number, through one open `..data`.
fn read_generation(root: &Path) -> io::Result<BTreeMap<&'static str, String>> {
    let data = Folder::open(fs::File::open(root.join("..data"))?, ".")?;
    let mut seen = BTreeMap::new();
    for (folder, name) in [(".", "a"), ("db", "user"), ("db", "pass")] {
        let file = data.child(folder)?.read_file(name)?;
        let (content, _) = file.ok_or(io::ErrorKind::NotFound)?;
        seen.insert(name, String::from_utf8(content.to_vec()).unwrap());
    }
    Ok(seen)
}

#[test]
fn attack_26_a_reader_never_sees_a_mix_an_empty_file_or_a_refusal() {
    let volume = Volume::new();
    let files = |generation: &str| {
        [("a", generation), ("db/user", generation), ("db/pass", generation)].map(|(p, g)| (p, g.to_owned()))
    };
    let put = |generation: usize| {
        if generation.is_multiple_of(10) {
            // As at the end of a lease.
            volume.write_at(&[], NOW).unwrap();
        }
        let owned = files(&format!("generation {generation}"));
        let borrowed: Vec<_> = owned.iter().map(|(path, content)| (*path, content.as_str())).collect();
        volume.write_at(&borrowed, NOW + Duration::milliseconds(generation as i64)).unwrap();
    };
    put(0);
    let stop = AtomicBool::new(false);
    let passes = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut whole = 0;
            while !stop.load(Ordering::Relaxed) || whole == 0 {
                match read_generation(volume.path()) {
                    Ok(seen) => {
                        let values: BTreeSet<_> = seen.values().collect();
                        assert_eq!(values.len(), 1, "a mix: {seen:?}");
                        assert!(seen["a"].starts_with("generation "), "{seen:?}");
                        whole += 1;
                    }
                    // The generation was replaced and removed while the reader held it, or the volume is empty.
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
                }
            }
            whole
        });
        (1..=500).for_each(put);
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(passes > 0);
    assert_eq!(volume.read("db/user"), "generation 500");
}
