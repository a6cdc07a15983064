//! The attributes of a Keyfold volume, which the pod's author writes: `role`, and `secrets` as a YAML list. The driver
//! reads them when it mounts, `keyfold lint` before that; both by this parser, so that they take the same.

mod attributes;
mod file_path;
mod format;
mod item;
mod problem;

use std::collections::HashMap;

pub use self::{
    file_path::{FilePath, FilePathError},
    format::Format,
    item::Item,
    problem::{Mistake, Position, Problem},
};
use crate::name::ObjectName;

/// The driver's name in CSIDriver objects, pods and kubelet's folders.
pub const DRIVER_NAME: &str = "csi.keyfold.dev";

/// Keys of the volume context that begin so are kubelet's, the rest the pod author's.
pub const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";

/// The attribute that names the app role.
pub const ROLE: &str = "role";

/// The attribute that lists the items.
pub const SECRETS: &str = "secrets";

/// What a volume's attributes ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The app role to act under, when the pod names one.
    pub role: Option<ObjectName>,
    /// What to write: at least one item.
    pub items: Vec<Item>,
}

impl Attributes {
    /// Parses a volume's context. Keys of kubelet's own are not looked at.
    ///
    /// # Errors
    /// With everything that is wrong, in the order of [`Problem`]'s variants: never an empty list.
    pub fn parse(context: &HashMap<String, String>) -> Result<Self, Vec<Problem>> {
        attributes::parse(context)
    }
}

#[cfg(test)]
mod tests;
