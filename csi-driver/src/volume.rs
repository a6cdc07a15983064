//! A validated publish request: what kubelet asks for, in types that hold only what is allowed.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::HashMap,
    fmt,
    path::{Component, Path, PathBuf},
};

use keyfold_core::{
    foreign_text::quoted,
    name::ObjectName,
    volume::{Attributes, Item, KUBELET_PREFIX, Problem},
};
use keyfold_proto::csi::v1::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};

/// Longest volume id, in bytes; the CSI specification allows 128 and kubelet's ephemeral ids have 68.
const ID_BYTES_MAX: usize = 256;

/// Why a request is refused: every reason that was found, in one text for the pod's event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidRequest(String);

/// A volume to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The volume's id.
    pub id: VolumeId,
    /// Where to mount it.
    pub target: TargetPath,
    /// The pod's fsGroup: group of the files that name none of their own.
    pub group: Option<u32>,
    /// The pod as kubelet names it. For messages only: identity comes from the verified token.
    pub pod: PodName,
    /// The app role to act under, when the pod names one.
    pub role: Option<ObjectName>,
    /// What to write: at least one item.
    pub items: Vec<Item>,
}

impl Volume {
    /// Checks a publish request: the volume id, the target path, the capability, then the rest.
    ///
    /// # Errors
    /// On the first of id, target and capability that is wrong; past these, with everything that is wrong.
    pub fn parse(request: &NodePublishVolumeRequest, pods_dir: &Path) -> Result<Self, InvalidRequest> {
        let id = VolumeId::parse(&request.volume_id)?;
        let target = TargetPath::parse(&request.target_path, pods_dir)?;
        let group = parse_capability(request.volume_capability.as_ref())?;
        if !request.readonly {
            return Err(invalid(
                "the volume must be read-only: set `readOnly: true` on the pod's csi volume",
            ));
        }
        let Attributes { role, items } =
            Attributes::parse(&request.volume_context).map_err(|problems| invalid(joined(&problems)))?;
        Ok(Self { id, target, group, pod: PodName::of(&request.volume_context), role, items })
    }

    /// Whether someone other than root and the volume's group must reach a file, so that folders must let them pass.
    pub fn is_read_by_others(&self) -> bool {
        self.items.iter().any(|item| item.uid.is_some() || item.gid.is_some() || item.mode & 0o007 != 0)
    }
}

/// Checks an unpublish request.
///
/// # Errors
/// When the volume id or the target path is missing or malformed.
pub fn parse_unpublish(
    request: &NodeUnpublishVolumeRequest,
    pods_dir: &Path,
) -> Result<(VolumeId, TargetPath), InvalidRequest> {
    Ok((VolumeId::parse(&request.volume_id)?, TargetPath::parse(&request.target_path, pods_dir)?))
}

/// A volume's id. For logs; the target path identifies the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeId(String);

impl VolumeId {
    fn parse(text: &str) -> Result<Self, InvalidRequest> {
        match text.len() {
            0 => Err(invalid("the volume id is missing")),
            1..=ID_BYTES_MAX => Ok(Self(text.to_owned())),
            _ => Err(invalid(format!("the volume id is longer than {ID_BYTES_MAX} bytes"))),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a volume is mounted: an absolute path inside kubelet's `pods` folder, with one spelling only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetPath(PathBuf);

impl TargetPath {
    fn parse(text: &str, pods_dir: &Path) -> Result<Self, InvalidRequest> {
        if text.is_empty() {
            return Err(invalid("the target path is missing"));
        }
        let path = Path::new(text);
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) || text.contains('\0') {
            return Err(invalid(format!("the target path {} must be absolute, without '..'", quoted(text))));
        }
        // Collecting components drops doubled and trailing slashes, so one target has one lock.
        let path: PathBuf = path.components().collect();
        if !path.starts_with(pods_dir) || path == pods_dir {
            return Err(invalid(format!(
                "the target path {} must lie inside {}",
                quoted(text),
                pods_dir.display()
            )));
        }
        Ok(Self(path))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// A pod as kubelet's context names it, `namespace/name`. For messages only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(String);

impl PodName {
    fn of(context: &HashMap<String, String>) -> Self {
        let part = |key: &str| {
            let text = context.get(&format!("{KUBELET_PREFIX}{key}"))?;
            // Namespaces and pod names are DNS names; anything else is not shown.
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            (text.len() <= 253 && text.chars().all(plain)).then_some(text.as_str())
        };
        match (part("pod.namespace"), part("pod.name")) {
            (Some(namespace), Some(name)) => Self(format!("{namespace}/{name}")),
            _ => Self("unnamed pod".to_owned()),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The group that kubelet wants the files to have.
fn parse_capability(capability: Option<&VolumeCapability>) -> Result<Option<u32>, InvalidRequest> {
    let capability = capability.ok_or_else(|| invalid("the volume capability is missing"))?;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => return Err(invalid("Keyfold has no block volumes")),
        None => return Err(invalid("the volume capability names no access type")),
    };
    match capability.access_mode.map(|mode| mode.mode()) {
        None | Some(Mode::Unknown) => return Err(invalid("the volume capability names no access mode")),
        Some(_) => {}
    }
    if !mount.fs_type.is_empty() {
        return Err(invalid("leave fsType out: a Keyfold volume is always a tmpfs"));
    }
    if !mount.mount_flags.is_empty() {
        return Err(invalid("leave mount options out: the driver sets them"));
    }
    match mount.volume_mount_group.as_str() {
        "" => Ok(None),
        group => parse_id(group)
            .map(Some)
            .ok_or_else(|| invalid(format!("the volume mount group {} is not a group id", quoted(group)))),
    }
}

/// A user or group id; 2^32-1 means "no change" to the kernel.
fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

fn invalid(message: impl Into<String>) -> InvalidRequest {
    InvalidRequest(message.into())
}
