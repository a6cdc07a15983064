use super::*;

#[test]
fn mount_points_are_read_with_the_kernels_octal_codes() {
    assert_eq!(unescape("/a\\040b\\011c\\134d"), Path::new("/a b\tc\\d"));
    // An escaped backslash begins no further code.
    assert_eq!(unescape("/a\\134040"), Path::new("/a\\040"));
}

#[test]
fn this_process_sees_the_root_mount_and_nothing_below_a_new_folder() {
    assert!(mounts_below(Path::new("/"), "self").contains(&PathBuf::from("/")));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(mounts_below(folder.path(), "self"), Vec::<PathBuf>::new());
}
