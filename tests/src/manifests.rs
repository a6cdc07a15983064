//! Kubernetes manifests as the driver reads them.

use std::path::Path;

use keyfold_csi::{DRIVER_NAME, volume::Volume};
use keyfold_proto::csi::v1::{NodePublishVolumeRequest, VolumeCapability, volume_capability};
use serde_json::Value;

/// A pod's `csi` volume as the driver reads it from kubelet's request.
///
/// # Errors
/// What the driver would say.
///
/// # Panics
/// When it is another driver's, or an attribute is not text.
pub fn parse_volume(csi: &Value) -> Result<Volume, String> {
    assert_eq!(csi["driver"], DRIVER_NAME);
    let attributes = csi["volumeAttributes"].as_object().expect("a volume has attributes");
    let text = |(key, value): (&String, &Value)| (key.clone(), value.as_str().expect("text").to_owned());
    let request = NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/secrets/mount".into(),
        readonly: csi["readOnly"] == true,
        volume_capability: Some(VolumeCapability {
            access_type: Some(volume_capability::AccessType::Mount(Default::default())),
            access_mode: Some(volume_capability::AccessMode {
                mode: volume_capability::access_mode::Mode::SingleNodeWriter.into(),
            }),
        }),
        volume_context: attributes.iter().map(text).collect(),
        ..Default::default()
    };
    Volume::parse(&request, Path::new("/var/lib/kubelet/pods")).map_err(|error| error.to_string())
}
