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

fn parse_secrets(yaml: &str) -> Result<Vec<Item>, String> {
    parse(&request(&[("secrets", yaml)])).map(|volume| volume.items)
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
fn a_target_outside_kubelets_pods_is_refused() {
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
fn every_item_key_is_understood() {
    let items = parse_secrets(
        "- {path: payments/db, file: conf/db.json, format: json, mode: '0640', uid: 1000, gid: 0, optional: true}",
    )
    .unwrap();
    let expected = Item {
        path: SecretPath::parse("payments/db").unwrap(),
        optional: true,
        format: Format::Json,
        file: FilePath::parse("conf/db.json").unwrap(),
        mode: 0o640,
        uid: Some(1000),
        gid: Some(0),
    };
    assert_eq!(items, [expected]);
}

#[test]
fn default_files_come_from_the_last_segment() {
    let items =
        parse_secrets("- path: a/b/c\n- {path: a/b/c, format: env}\n- {path: a/b/c, format: json}").unwrap();
    let files: Vec<_> = items.iter().map(|item| item.file.to_string()).collect();
    assert_eq!(files, ["c", "c.env", "c.json"]);
    assert_eq!(parse_secrets("- {path: a/b, file: on}").unwrap()[0].file.to_string(), "on");
}

#[test]
fn a_mode_is_octal_with_or_without_quotes() {
    for (text, mode) in [("'0400'", 0o400), ("0440", 0o440), ("'777'", 0o777), ("0000", 0)] {
        assert_eq!(parse_secrets(&format!("- {{path: a/b, mode: {text}}}")).unwrap()[0].mode, mode, "{text}");
    }
}

#[test]
fn bad_attributes_are_refused_with_their_reason() {
    let many = "- path: a/b\n".repeat(65);
    let long = format!("- path: a/b # {}", "x".repeat(70_000));
    let deep_file = format!("- {{path: a/b, file: {}x}}", "a/".repeat(16));
    let long_name = format!("- {{path: a/b, file: {}}}", "n".repeat(300));
    for (yaml, why) in [
        ("", "must be a YAML list"),
        ("[]", "the list is empty"),
        ("path: a/b", "must be a YAML list"),
        ("- [", "not YAML"),
        ("- path: a/b\n- path: a/b", "secrets[0] and secrets[1] both write \"b\""),
        (&many, "65 items"),
        (&long, "longer than 65536 bytes"),
        ("- payments/db", "secrets[0]: must be a map"),
        ("- {}", "secrets[0]: missing field `path`"),
        ("- {path: a/b, fle: x}", "secrets[0]: unknown field `fle`"),
        ("- {path: a/b, path: a/c}", "duplicate"),
        ("- {path: ../b}", "secrets[0]: path"),
        ("- {path: a}", "secrets[0]: path"),
        ("- {path: a/b, file: /etc/passwd}", "it must be relative"),
        ("- {path: a/b, file: ../../etc/passwd}", "begin with '..'"),
        ("- {path: a/b, file: ..data/x}", "begin with '..'"),
        ("- {path: a/b, file: ''}", "empty part"),
        ("- {path: a/b, file: \"a\\0b\"}", "control character"),
        (&long_name, "255 bytes"),
        ("- {path: a/b, format: pkcs12}", "format: \"pkcs12\" is not supported, only raw, env, json"),
        ("- {path: a/b, format: RAW}", "not supported"),
        ("- {path: a/b, mode: '0888'}", "mode"),
        ("- {path: a/b, mode: '4755'}", "mode"),
        ("- {path: a/b, mode: '07'}", "mode"),
        ("- {path: a/b, mode: 400}", "expected a string"),
        ("- {path: a/b, mode: r--r-----}", "mode"),
        ("- {path: a/b, uid: -1}", "expected u32"),
        ("- {path: a/b, gid: 4294967295}", "gid: 4294967295 is not an id"),
        ("- {path: a/b, optional: maybe}", "expected a boolean"),
        (&deep_file, "16 parts"),
        ("- {path: a/b, format: env, file: x}\n- {path: a/c, file: x/y}", "needs a folder"),
        ("- {path: a/b, file: x/y}\n- {path: a/c, format: json, file: x}", "needs a folder"),
    ] {
        let error = parse_secrets(yaml).unwrap_err();
        assert!(error.contains(why), "{yaml:.60}: {error}");
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
fn a_pod_that_is_not_named_as_kubelet_would_is_not_shown() {
    let named = |namespace: &str, name: &str| {
        let context = [("pod.namespace", namespace), ("pod.name", name)];
        PodName::of(&context.map(|(k, v)| (format!("{KUBELET_PREFIX}{k}"), v.to_owned())).into()).to_string()
    };
    assert_eq!(named("payments", "api-1"), "payments/api-1");
    assert_eq!(named("payments", "api\nfake log line"), "unnamed pod");
    assert_eq!(PodName::of(&HashMap::new()).to_string(), "unnamed pod");
}

#[test]
fn a_short_attribute_cannot_become_a_large_one() {
    let mut laughs = String::from("- &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("- &a{level} [{aliases}]\n"));
    }
    let copies = format!("- &a {}\n{}", "x".repeat(41_000), "- *a\n".repeat(1_900));
    let merged = format!("- &a {{path: a/b, file: {}}}\n{}", "x".repeat(200), "- {<<: *a}\n".repeat(60));
    for bomb in [&laughs, &copies, &merged, "- &a {path: a/b}", "- *a"] {
        let error = parse_secrets(bomb).unwrap_err();
        let refused = error
            .starts_with("secrets: YAML anchors (`&name`) and aliases (`*name`) are not supported")
            || error.starts_with("secrets: not YAML");
        assert!(refused && error.len() < 400, "{bomb:.40}: {error}");
    }
    for bomb in ["- x\n".repeat(16_000), format!("- [{}]", "[],".repeat(16_000))] {
        let error = parse_secrets(&bomb).unwrap_err();
        assert_eq!(error, "secrets: too many YAML nodes, at most 64 items are possible", "{bomb:.40}");
    }
    let nested = format!("- {}", "[".repeat(60_000));
    assert!(parse_secrets(&nested).unwrap_err().starts_with("secrets: not YAML"));
}

#[test]
fn an_attribute_of_the_greatest_size_is_taken() {
    let item = |n: usize| {
        format!(
            "- {{path: a/b, file: {}{n:02}, format: raw, mode: '0440', uid: 1, gid: 2, optional: false}}\n",
            format!("{}/", "x".repeat(200)).repeat(4)
        )
    };
    let yaml: String = (0..64).map(item).collect();
    assert!((50_000..=64 * 1024).contains(&yaml.len()), "{}", yaml.len());
    assert_eq!(parse_secrets(&yaml).unwrap().len(), 64);
}

#[test]
fn a_long_key_is_cut_in_its_message() {
    let error =
        parse_secrets(&format!("- {{path: a/b, ? {} : 1}}\n- {{path: A}}", "k".repeat(60_000))).unwrap_err();
    assert!(error.len() < 600 && error.contains("secrets[1]: path \"A\""), "{error}");
}

proptest! {
    #[test]
    fn the_attributes_parser_never_panics(yaml in "\\PC{0,200}", role in "\\PC{0,80}", key in "\\PC{0,40}") {
        let _ = parse(&request(&[("secrets", &yaml), ("role", &role), (&key, "x")]));
    }

    #[test]
    fn nor_on_text_that_looks_like_items(yaml in "(- |\\{|\\}|\\[|\\]|path: |file: |mode: |format: |uid: |a/b|\\.\\./|: |, |\n|&a |\\*a|'|\"|0400|raw|~){0,40}") {
        if let Ok(items) = parse_secrets(&yaml) {
            prop_assert!(!items.is_empty());
        }
    }

    #[test]
    fn an_accepted_file_stays_inside_the_volume(file in "[a-c./\\\\%]{0,12}") {
        if let Ok(items) = parse_secrets(&format!("- {{path: a/b, file: '{file}'}}")) {
            let path = items[0].file.to_string();
            prop_assert!(!path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && !part.starts_with("..")));
        }
    }

    #[test]
    fn an_accepted_target_lies_below_pods(target in "(/var/lib/kubelet/pods)?[a-b./\\x00]{0,16}") {
        if let Ok(target) = TargetPath::parse(&target, Path::new(PODS)) {
            prop_assert!(target.as_path().starts_with(PODS) && target.as_path() != Path::new(PODS));
        }
    }
}
