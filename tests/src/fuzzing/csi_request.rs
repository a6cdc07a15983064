//! Kubelet's publish requests, whose attributes the pod's author writes.

use std::{
    collections::HashSet,
    path::{Component, Path},
};

use keyfold_core::volume::Item;
use keyfold_csi::{config::TokenSource, pod_token::pod_token, volume::Volume};
use keyfold_proto::csi::v1::{NodePublishVolumeRequest, VolumeCapability, volume_capability};
use prost::Message as _;

const PODS: &str = "/var/lib/kubelet/pods";

/// The first byte says what the others are: a request as it comes over the socket, the attribute `secrets` of a good
/// one, or its target path.
pub fn csi_request(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let text = || String::from_utf8_lossy(rest).into_owned();
    let request = match kind % 3 {
        0 => match NodePublishVolumeRequest::decode(rest) {
            Ok(request) => request,
            Err(_) => return,
        },
        1 => good(TARGET, &text()),
        _ => good(&text(), "[{path: payments/db}]"),
    };
    check(&request);
}

const TARGET: &str = "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/secrets/mount";

fn check(request: &NodePublishVolumeRequest) {
    for source in [TokenSource::Secrets, TokenSource::SecretsOrContext] {
        if let Ok(token) = pod_token(request, source, "keyfold") {
            assert!(!token.is_empty());
        }
    }
    match Volume::parse(request, Path::new(PODS)) {
        Ok(volume) => check_volume(request, &volume),
        // It becomes an event of the pod, and a line in logs.
        Err(error) => {
            let message = error.to_string();
            assert!(!message.chars().any(char::is_control), "a message of several lines: {message:?}");
        }
    }
}

fn check_volume(request: &NodePublishVolumeRequest, volume: &Volume) {
    assert!(request.readonly);
    let target = volume.target.as_path();
    let below = target.strip_prefix(PODS).expect("the target lies in kubelet's folder");
    let mut parts = below.components();
    assert!(
        parts.clone().count() > 0 && parts.all(|part| matches!(part, Component::Normal(_))),
        "{target:?}"
    );
    assert!((1..=64).contains(&volume.items.len()));
    volume.items.iter().for_each(check_item);
    let files: HashSet<_> = volume.items.iter().map(|item| item.file.to_string()).collect();
    assert_eq!(files.len(), volume.items.len(), "two items write one file");
    assert!(volume.group != Some(u32::MAX));
}

/// Its files lie inside the volume, below a name that is not the writer's own, and no mode has more than rwx.
fn check_item(item: &Item) {
    let file = item.file.to_string();
    let path = Path::new(&file);
    assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{file:?}");
    assert_eq!(path.components().count(), file.split('/').count(), "{file:?} has another spelling");
    assert!(file.split('/').all(|part| !part.starts_with("..") && part.len() <= 255), "{file:?}");
    assert!(!file.chars().any(char::is_control), "{file:?}");
    assert!(!item.file.top().is_empty());
    assert!(item.mode <= 0o777, "{:o}", item.mode);
    assert!(item.uid != Some(u32::MAX) && item.gid != Some(u32::MAX));
}

/// A request as kubelet sends it.
fn good(target: &str, secrets: &str) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: target.into(),
        readonly: true,
        volume_capability: Some(VolumeCapability {
            access_type: Some(volume_capability::AccessType::Mount(Default::default())),
            access_mode: Some(volume_capability::AccessMode {
                mode: volume_capability::access_mode::Mode::SingleNodeWriter.into(),
            }),
        }),
        volume_context: [("role", "payments-api"), ("secrets", secrets)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..Default::default()
    }
}
