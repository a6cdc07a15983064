use super::*;
use crate::dev::driver::NODE;

fn environment(mount_root: &str) -> Environment {
    Environment { mount_root: mount_root.into(), kubelet: Kubelet::new(Path::new("/dev-dir/kubelet"), NODE) }
}

fn pod() -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "api-0".into(),
        service_account: "api".into(),
        node: NODE.into(),
        fs_group: None,
    }
}

#[tokio::test]
async fn a_plain_name_is_the_pods_volume_where_kubelet_would_mount_it() {
    let volume = environment("/").volume_to_mount(&pod(), Path::new("secrets")).unwrap();
    let uid = pod().uid();
    let target = format!("/dev-dir/kubelet/pods/{uid}/volumes/kubernetes.io~csi/secrets/mount");
    assert_eq!(volume, Volume { id: volume_id(&uid, "secrets"), target: target.into() });
}

#[tokio::test]
async fn a_whole_path_is_taken_as_it_is_and_as_mount_printed_it() {
    let target = "/dev-dir/kubelet/pods/u-1/volumes/kubernetes.io~csi/v/mount";
    let volume = Volume { id: volume_id("u-1", "v"), target: target.into() };
    assert_eq!(environment("/").mounted_volume(Path::new(target)).unwrap(), volume);

    let environment = environment("/proc/7/root");
    assert_eq!(environment.seen(&volume.target), Path::new("/proc/7/root").join(&target[1..]));
    assert_eq!(environment.mounted_volume(&environment.seen(&volume.target)).unwrap(), volume);
    assert_eq!(environment.volume_to_mount(&pod(), Path::new(target)).unwrap(), volume);
}

#[tokio::test]
async fn paths_that_kubelet_would_not_use_are_refused() {
    let wrong = [
        "/etc/passwd",
        "/dev-dir/kubelet/pods",
        "/dev-dir/kubelet/pods/u/volumes/kubernetes.io~csi/v",
        "/dev-dir/kubelet/pods/u/volumes/kubernetes.io~csi/../mount",
        "/dev-dir/kubelet/pods/u/volumes/kubernetes.io~nfs/v/mount",
        "relative/path",
        "..",
        "",
    ];
    for target in wrong {
        let refused = environment("/").volume_to_mount(&pod(), Path::new(target));
        assert!(refused.is_err(), "{target:?} was taken for a volume");
    }
}

#[tokio::test]
async fn a_name_that_is_not_mounted_is_told_so() {
    let failure = environment("/").mounted_volume(Path::new("secrets")).unwrap_err().to_string();
    assert!(failure.contains("cannot use secrets as a volume: none is mounted"), "{failure}");
}
