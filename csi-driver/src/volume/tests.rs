use keyfold_core::{
    path::SecretPath,
    volume::{FilePath, Format},
};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const PODS: &str = "/var/lib/kubelet/pods";
const TARGET: &str = "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/secrets/mount";

/// The recorded request, in the form of its JSON file: proto3 field names.
#[derive(Deserialize)]
struct Recorded {
    volume_id: String,
    target_path: String,
    volume_capability: RecordedCapability,
    readonly: bool,
    #[serde(default)]
    secrets: HashMap<String, String>,
    volume_context: HashMap<String, String>,
}

#[derive(Deserialize)]
struct RecordedCapability {
    access_mode: HashMap<String, i32>,
    mount: HashMap<String, String>,
}

fn recorded(json: &str) -> NodePublishVolumeRequest {
    let recorded: Recorded = serde_json::from_str(json).unwrap();
    let mut request = request(&[]);
    let capability = request.volume_capability.as_mut().unwrap();
    capability.access_mode.as_mut().unwrap().mode = recorded.volume_capability.access_mode["mode"];
    set_group(&mut request, &recorded.volume_capability.mount["volume_mount_group"]);
    NodePublishVolumeRequest {
        volume_id: recorded.volume_id,
        target_path: recorded.target_path,
        readonly: recorded.readonly,
        secrets: recorded.secrets,
        volume_context: recorded.volume_context,
        ..request
    }
}

/// A request with these attributes, for the tests of other modules too.
pub(crate) fn request(attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    use keyfold_proto::csi::v1::volume_capability::{AccessMode, MountVolume};
    NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: TARGET.into(),
        readonly: true,
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        }),
        volume_context: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    }
}

fn set_group(request: &mut NodePublishVolumeRequest, group: &str) {
    if let Some(AccessType::Mount(mount)) = request.volume_capability.as_mut().unwrap().access_type.as_mut() {
        mount.volume_mount_group = group.into();
    }
}

fn parse(request: &NodePublishVolumeRequest) -> Result<Volume, String> {
    Volume::parse(request, Path::new(PODS)).map_err(|error| error.to_string())
}

/// A volume with these items, for the tests of other modules.
pub(crate) fn volume_of(yaml: &str) -> Volume {
    parse(&request(&[("secrets", yaml)])).unwrap()
}

/// A target path, for the tests of other modules.
pub(crate) fn target_of(name: &str) -> TargetPath {
    target_in(Path::new(PODS), name)
}

/// The same in another `pods` folder.
pub(crate) fn target_in(pods: &Path, name: &str) -> TargetPath {
    TargetPath::parse(pods.join(name).join("mount").to_str().unwrap(), pods).unwrap()
}

#[test]
fn both_recorded_requests_of_kubelet_are_the_same_volume() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/kubernetes-1.36/csi");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let in_secrets = recorded(&read("node-publish-token-in-secrets.json"));
    let in_context = recorded(&read("node-publish-token-in-context.json"));
    let (a, b) = (parse(&in_secrets).unwrap(), parse(&in_context).unwrap());
    assert_eq!(a.pod.to_string(), "payments/api-sats-true");
    assert_eq!(b.pod.to_string(), "payments/api-sats-false");
    assert_eq!((a.group, &a.role, &a.items), (b.group, &b.role, &b.items));
    assert_eq!(a.group, Some(2000));
    assert_eq!(a.role.unwrap().as_str(), "payments-api");
    let item = |format, file: &str, mode| Item {
        path: SecretPath::parse("payments/db").unwrap(),
        optional: false,
        format,
        file: FilePath::parse(file).unwrap(),
        mode,
        uid: None,
        gid: None,
    };
    assert_eq!(a.items, [item(Format::Raw, "db", 0o440), item(Format::Env, "db.env", 0o400)]);
}

#[test]
fn validation_goes_volume_id_then_target_path_then_capability_then_the_rest() {
    let mut bad = NodePublishVolumeRequest::default();
    assert_eq!(parse(&bad).unwrap_err(), "the volume id is missing");
    bad.volume_id = "csi-1".into();
    assert_eq!(parse(&bad).unwrap_err(), "the target path is missing");
    bad.target_path = TARGET.into();
    assert_eq!(parse(&bad).unwrap_err(), "the volume capability is missing");
    bad.volume_capability = request(&[]).volume_capability;
    assert!(parse(&bad).unwrap_err().contains("readOnly: true"));
    bad.readonly = true;
    assert_eq!(parse(&bad).unwrap_err(), "the volume attribute `secrets` is missing");
}

#[test]
fn a_volume_id_has_at_most_256_bytes() {
    let mut long = request(&[("secrets", "- path: a/b")]);
    long.volume_id = "x".repeat(256);
    assert!(parse(&long).is_ok());
    long.volume_id.push('x');
    assert!(parse(&long).unwrap_err().contains("256"));
}

#[test]
fn attack_24_a_target_outside_kubelets_pods_is_refused() {
    let of = |target: &str| TargetPath::parse(target, Path::new(PODS));
    assert_eq!(
        of("/var/lib//kubelet/pods/uid/./mount/").unwrap().as_path(),
        Path::new("/var/lib/kubelet/pods/uid/mount")
    );
    for bad in [
        "mount",
        "../mount",
        "/",
        "/etc",
        PODS,
        "/var/lib/kubelet/pods/",
        "/var/lib/kubelet/podsx/uid/mount",
        "/var/lib/kubelet/pods/../../etc",
        "/var/lib/kubelet/pods/uid/..",
        "/var/lib/kubelet/pods/u\0id/mount",
    ] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn block_volumes_mount_options_and_missing_parts_of_the_capability_are_refused() {
    let refused = |change: fn(&mut VolumeCapability), why: &str| {
        let mut bad = request(&[("secrets", "- path: a/b")]);
        change(bad.volume_capability.as_mut().unwrap());
        let error = parse(&bad).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(|c| c.access_type = Some(AccessType::Block(Default::default())), "block volumes");
    refused(|c| c.access_type = None, "access type");
    refused(|c| c.access_mode = None, "access mode");
    refused(|c| c.access_mode.as_mut().unwrap().mode = 0, "access mode");
    refused(|c| c.access_mode.as_mut().unwrap().mode = 99, "access mode");
    let mount = |c: &mut VolumeCapability,
                 change: fn(&mut keyfold_proto::csi::v1::volume_capability::MountVolume)| {
        if let Some(AccessType::Mount(mount)) = c.access_type.as_mut() {
            change(mount);
        }
    };
    let mut bad = request(&[("secrets", "- path: a/b")]);
    mount(bad.volume_capability.as_mut().unwrap(), |m| m.fs_type = "ext4".into());
    assert!(parse(&bad).unwrap_err().contains("fsType"));
    mount(bad.volume_capability.as_mut().unwrap(), |m| {
        m.fs_type = String::new();
        m.mount_flags = vec!["exec".into()];
    });
    assert!(parse(&bad).unwrap_err().contains("mount options"));
    for group in ["-1", "root", "4294967295", "4294967296", " 1"] {
        let mut bad = request(&[("secrets", "- path: a/b")]);
        set_group(&mut bad, group);
        assert!(parse(&bad).unwrap_err().contains("not a group id"), "{group}");
    }
}

#[test]
fn every_failing_item_is_named_at_once_with_its_index() {
    let attributes = [
        ("secrets", "- {path: A/b, mode: x}\n- path: a/b\n- {path: a/c, format: xml, file: /x}"),
        ("rolle", "x"),
        ("role", "Not A Role"),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ];
    let error = parse(&request(&attributes)).unwrap_err();
    for part in [
        "attribute \"rolle\" is unknown",
        "role: \"Not A Role\"",
        "secrets[0]: path \"A/b\"",
        "mode: \"x\"",
        "secrets[2]: format: \"xml\"",
        "file: \"/x\"",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    assert!(!error.contains("secrets[1]") && !error.contains("ephemeral"), "{error}");
}

#[test]
fn attack_25_a_pod_that_is_not_named_as_kubelet_would_is_not_shown() {
    let named = |namespace: &str, name: &str| {
        let context = [("pod.namespace", namespace), ("pod.name", name)];
        PodName::of(&context.map(|(k, v)| (format!("{KUBELET_PREFIX}{k}"), v.to_owned())).into()).to_string()
    };
    assert_eq!(named("payments", "api-1"), "payments/api-1");
    assert_eq!(named("payments", "api\nfake log line"), "unnamed pod");
    assert_eq!(PodName::of(&HashMap::new()).to_string(), "unnamed pod");
}

proptest! {
    #[test]
    fn parsing_a_request_never_panics(yaml in "\\PC{0,200}", role in "\\PC{0,80}", key in "\\PC{0,40}") {
        let _ = parse(&request(&[("secrets", &yaml), ("role", &role), (&key, "x")]));
    }

    #[test]
    fn attack_24_an_accepted_target_lies_below_pods(target in "(/var/lib/kubelet/pods)?[a-b./\\x00]{0,16}") {
        if let Ok(target) = TargetPath::parse(&target, Path::new(PODS)) {
            prop_assert!(target.as_path().starts_with(PODS) && target.as_path() != Path::new(PODS));
        }
    }
}
