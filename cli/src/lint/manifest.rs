//! From a Kubernetes object to the pods that it makes, and their Keyfold volumes.

use std::{collections::BTreeMap, rc::Rc};

use keyfold_core::volume::{DRIVER_NAME, Position};

use super::yaml::{Node, Value};

/// Most volumes, and most mounts by all containers, of a pod that is checked. Pods have dozens; with YAML's aliases a
/// small file has millions.
const ENTRIES_MAX: usize = 1_000;

/// The service account of pods that name none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// A pod, or a template of pods.
pub struct Pod<'a> {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    spec: &'a Node,
}

/// A pod's volume of the Keyfold driver.
pub struct KeyfoldVolume<'a> {
    /// Its name in the pod; empty when it has none.
    pub name: &'a str,
    /// Where it begins.
    pub at: Position,
    /// Its `csi` map.
    pub csi: &'a Node,
}

/// A container's mount.
pub struct Mount<'a> {
    /// The container's name.
    pub container: &'a str,
    /// The mount.
    pub mount: &'a Node,
}

/// The pods that an object makes: none when it is of another kind, those of all its items when it is a `List`.
pub fn pods<'a>(object: &'a Node, namespace: &str) -> Vec<Pod<'a>> {
    if object.text_at(&["kind"]) == Some("List") {
        let items = object.get(&["items"]).map(Node::items).unwrap_or_default();
        return items.iter().filter_map(|item| pod(item, namespace)).collect();
    }
    pod(object, namespace).into_iter().collect()
}

fn pod<'a>(object: &'a Node, namespace: &str) -> Option<Pod<'a>> {
    let group = match object.text_at(&["apiVersion"])?.split_once('/') {
        Some((group, _)) => group,
        None => "",
    };
    let template: &[&str] = match (group, object.text_at(&["kind"])?) {
        ("", "Pod") => &[],
        ("", "PodTemplate") => &["template"],
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    };
    let template = object.get(template)?;
    let spec = template.get(&["spec"])?;
    let account = spec.text_at(&["serviceAccountName"]).or(spec.text_at(&["serviceAccount"]));
    Some(Pod {
        namespace: object.text_at(&["metadata", "namespace"]).unwrap_or(namespace).to_owned(),
        service_account: account.unwrap_or(DEFAULT_SERVICE_ACCOUNT).to_owned(),
        labels: labels(template),
        spec,
    })
}

fn labels(template: &Node) -> BTreeMap<String, String> {
    let labels = template.get(&["metadata", "labels"]).map(Node::entries).unwrap_or_default();
    let label = |entry: &super::yaml::Entry| Some((entry.key.clone(), entry.value.text()?.to_owned()));
    labels.iter().filter_map(label).collect()
}

impl<'a> Pod<'a> {
    /// Where there is more of it than is checked, and what it is more than.
    pub fn excess(&self) -> Option<(Position, String)> {
        let volume = self.volumes().get(ENTRIES_MAX).map(|volume| (volume.at, "volumes"));
        let mount = || Some((self.mounts().nth(ENTRIES_MAX)?.mount.at, "mounts"));
        volume.or_else(mount).map(|(at, what)| (at, format!("{ENTRIES_MAX} {what}")))
    }

    /// Its volumes of the Keyfold driver.
    pub fn keyfold_volumes(&self) -> Vec<KeyfoldVolume<'a>> {
        let keyfold = |volume: &'a Rc<Node>| {
            let csi = volume.get(&["csi"])?;
            (csi.text_at(&["driver"])? == DRIVER_NAME).then(|| KeyfoldVolume {
                name: volume.text_at(&["name"]).unwrap_or_default(),
                at: volume.at,
                csi,
            })
        };
        self.volumes().iter().filter_map(keyfold).collect()
    }

    /// The mounts of all its volumes by containers of every sort.
    pub fn mounts(&self) -> impl Iterator<Item = Mount<'a>> {
        let spec = self.spec;
        let sorts = ["initContainers", "containers", "ephemeralContainers"];
        let containers = sorts.into_iter().filter_map(|sort| spec.get(&[sort])).flat_map(Node::items);
        containers.flat_map(|container| {
            let mounts = container.get(&["volumeMounts"]).map(Node::items).unwrap_or_default();
            let container = container.text_at(&["name"]).unwrap_or_default();
            mounts.iter().map(move |mount| Mount { container, mount })
        })
    }

    fn volumes(&self) -> &'a [Rc<Node>] {
        self.spec.get(&["volumes"]).map(Node::items).unwrap_or_default()
    }
}

/// What Kubernetes calls the type of a node.
pub fn type_name(node: &Node) -> &'static str {
    match node.value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number => "a number",
        Value::Text { .. } => "text",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    }
}
