use serde_json::Value;
use time::macros::datetime;
use zeroize::Zeroizing;

use super::*;

fn token() -> Token {
    Token { jwt: Zeroizing::new("a.b.c".into()), expires_at: datetime!(2026-11-23 06:39:08 UTC) }
}

fn api_pod() -> Pod {
    Pod {
        namespace: "payments".into(),
        name: "api-sats-true".into(),
        service_account: "api".into(),
        node: "vm".into(),
        fs_group: Some(2000),
    }
}

#[test]
fn volume_ids_are_the_ones_kubelet_computes() {
    // Recorded from kubelet 1.36: two pods' UIDs, each with a volume named `secrets`.
    let recorded = [
        (
            "417bd668-cb03-4d88-8881-ec93aa181ee3",
            "csi-6cec7722f2a98539e2d570bce454bd25a953f3aede1f9130717eee2d9f228777",
        ),
        (
            "d495042c-b6b7-45f5-937a-b8ab51838822",
            "csi-2c4f08d81815f4ef00a50ad4f07b5f21400c219a8b6e483cdc425019295d0e28",
        ),
    ];
    for (pod_uid, id) in recorded {
        assert_eq!(volume_id(pod_uid, "secrets"), id);
    }
}

#[test]
fn a_publish_request_is_the_recorded_one_but_for_the_token_and_the_uid() {
    let (pod, kubelet_dir) = (api_pod(), Path::new("/var/lib/kubelet"));
    let volume = Volume::of_pod(kubelet_dir, &pod, "secrets");
    let secrets = "- path: payments/db\n";
    let request = publish_request(&pod, &volume, &token(), &[("role", "payments-api"), ("secrets", secrets)]);

    let uid = pod.uid();
    let target = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/secrets/mount");
    assert_eq!((request.target_path.as_str(), request.readonly), (target.as_str(), true));
    assert!(request.publish_context.is_empty() && request.staging_target_path.is_empty());
    let capability = request.volume_capability.clone().unwrap();
    assert_eq!(capability.access_mode.unwrap().mode, 1);
    let Some(volume_capability::AccessType::Mount(mount)) = capability.access_type else {
        panic!("kubelet asks for a mounted volume")
    };
    assert_eq!((mount.volume_mount_group.as_str(), mount.fs_type.as_str()), ("2000", ""));
    // The members of the recorded context, each with its value.
    let context = [
        ("csi.storage.k8s.io/pod.name", "api-sats-true"),
        ("csi.storage.k8s.io/pod.namespace", "payments"),
        ("csi.storage.k8s.io/pod.uid", uid.as_str()),
        ("csi.storage.k8s.io/serviceAccount.name", "api"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("role", "payments-api"),
        ("secrets", secrets),
    ];
    let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(request.volume_context, HashMap::from(context));
    let tokens = &request.secrets["csi.storage.k8s.io/serviceAccount.tokens"];
    assert_eq!(tokens, r#"{"keyfold":{"token":"a.b.c","expirationTimestamp":"2026-11-23T06:39:08Z"}}"#);
}

#[tokio::test]
async fn notes_beside_a_volume_are_kubelets_and_go_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (kubelet, pod) = (Kubelet::new(folder.path(), "vm"), api_pod());
    let volume = Volume::of_pod(folder.path(), &pod, "secrets");
    let other = Volume::of_pod(folder.path(), &pod, "other");
    for volume in [&volume, &other] {
        kubelet.note(&publish_request(&pod, volume, &token(), &[])).unwrap();
    }

    let data = read_text(&volume.target.with_file_name("vol_data.json")).unwrap();
    let data: Value = serde_json::from_str(&data).unwrap();
    assert_eq!(data["volumeHandle"], volume.id.as_str());
    assert_eq!((&data["driverName"], &data["nodeName"]), (&"csi.keyfold.dev".into(), &"vm".into()));
    assert_eq!((&data["specVolID"], &data["volumeLifecycleMode"]), (&"secrets".into(), &"Ephemeral".into()));
    assert!(data["attachmentID"].as_str().unwrap().starts_with("csi-"));
    assert_eq!(kubelet.volumes().len(), 2);

    kubelet.forget(&volume).unwrap();
    assert_eq!(kubelet.volumes(), std::slice::from_ref(&other));
    kubelet.forget(&other).unwrap();
    assert_eq!(subfolders(&folder.path().join("pods")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_driver_that_is_not_there_is_not_ready_and_cannot_be_registered() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(folder.path(), "vm");
    assert!(!kubelet.is_driver_ready().await);
    let failure = kubelet.register().await.unwrap_err();
    assert!(failure.to_string().contains("cannot register the CSI driver"), "{failure}");
}
