//! What can be told of a volume from the manifest alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use keyfold_core::{
    foreign_text::quoted,
    volume::{Attributes, Item, KUBELET_PREFIX, Mistake, Position, Problem, ROLE, SECRETS},
};

use super::{
    Findings, Rule,
    manifest::{KeyfoldVolume, Mount, Pod, type_name},
    rules,
    source::Source,
    yaml::{self, Entry, Node, Value},
};

const SEE: &str = "docs/volumes.md explains the attributes";

/// A volume whose attributes the driver takes.
pub struct Asked {
    /// The app role, when one is named.
    pub role: Option<String>,
    /// Where the role is named, or else the volume begins.
    pub role_at: Position,
    /// Each item, and where its path stands.
    pub items: Vec<(Item, Position)>,
}

/// Checks a volume. Gives what it asks for, unless its attributes are wrong.
pub fn check(volume: &KeyfoldVolume<'_>, source: &Source<'_>, findings: &mut Findings) -> Option<Asked> {
    check_fields(volume, findings);
    let written = attributes(volume, findings)?;
    let parsed = Attributes::parse(&written.texts);
    // A list that the driver's parser refuses as a whole may be of any length, or made of aliases.
    let is_list =
        |problems: &Vec<Problem>| !problems.iter().any(|found| matches!(found, Problem::List { .. }));
    let list = parsed.as_ref().err().is_none_or(is_list).then(|| written.list()).flatten();
    let places = Places { volume, written: &written, list, source };
    match parsed {
        Ok(attributes) => Some(places.asked(attributes)).filter(|_| written.is_complete),
        Err(problems) => {
            for problem in &problems {
                places.report(problem, findings);
            }
            None
        }
    }
}

fn check_fields(volume: &KeyfoldVolume<'_>, findings: &mut Findings) {
    let csi = volume.csi;
    let read_only = csi.entry("readOnly");
    if !read_only.is_some_and(|entry| matches!(entry.value.value, Value::Bool(true))) {
        let at = read_only.map_or(csi.at, |entry| entry.at);
        findings.add(
            &rules::NOT_READ_ONLY,
            at,
            "the volume is not read-only, so the driver refuses it",
            "Set `readOnly: true` beside `driver`",
        );
    }
    if let Some(entry) = csi.entry("fsType").filter(|entry| entry.value.text() != Some("")) {
        let message = "`fsType` is set, so the driver refuses the volume: it is always a tmpfs";
        findings.add(&rules::FILE_SYSTEM, entry.at, message, "Leave `fsType` out");
    }
    if let Some(entry) = csi.entry("nodePublishSecretRef") {
        let message =
            "nothing reads the Secret of `nodePublishSecretRef`: the pod's own token says who it is";
        findings.add(&rules::PUBLISH_SECRET, entry.at, message, "Leave `nodePublishSecretRef` out");
    }
}

/// Checks how the containers of a pod mount its Keyfold volumes.
pub fn check_mounts(pod: &Pod<'_>, volumes: &[KeyfoldVolume<'_>], findings: &mut Findings) {
    // Each mount is looked at once, however many volumes there are.
    let names: BTreeSet<_> = volumes.iter().map(|volume| volume.name).collect();
    let mut mounted = BTreeSet::new();
    for mount in pod.mounts() {
        if let Some(name) = mount.mount.text_at(&["name"]).filter(|name| names.contains(name)) {
            mounted.insert(name);
            check_sub_path(&mount, name, findings);
        }
    }
    for volume in volumes.iter().filter(|volume| !mounted.contains(volume.name)) {
        let message = format!("no container mounts the volume {}", quoted(volume.name));
        let help = "Add it to a container's `volumeMounts`, or remove it";
        findings.add(&rules::NOT_MOUNTED, volume.at, message, help);
    }
}

fn check_sub_path(mount: &Mount<'_>, name: &str, findings: &mut Findings) {
    let sub_path = ["subPath", "subPathExpr"].iter().filter_map(|key| mount.mount.entry(key));
    for entry in sub_path.filter(|entry| entry.value.text() != Some("")) {
        let message = format!(
            "container {} mounts {} with `{}`: its files stay as they are at the container's start",
            quoted(mount.container),
            quoted(name),
            entry.key
        );
        let help =
            "Mount the whole volume, and give items a `file`: then a new version reaches the container";
        findings.add(&rules::SUB_PATH, entry.at, message, help);
    }
}

/// A volume's attributes as they are written.
struct Written<'a> {
    /// Those that are text, as kubelet passes them on.
    texts: HashMap<String, String>,
    entries: BTreeMap<&'a str, &'a Entry>,
    /// Whether all of them are text.
    is_complete: bool,
}

impl Written<'_> {
    /// `secrets` as YAML with places.
    fn list(&self) -> Option<Rc<Node>> {
        let mut list = None;
        yaml::documents(self.texts.get(SECRETS)?, |document| list = list.take().or(document.ok()));
        list
    }
}

/// The attributes; those that are not text are reported and left out.
fn attributes<'a>(volume: &KeyfoldVolume<'a>, findings: &mut Findings) -> Option<Written<'a>> {
    let written = volume.csi.entry("volumeAttributes");
    let mut found = Written { texts: HashMap::new(), entries: BTreeMap::new(), is_complete: true };
    let Some(written) = written else { return Some(found) };
    let Value::Map(entries) = &written.value.value else {
        let message = format!("`volumeAttributes` is {}, not a map", type_name(&written.value));
        findings.add(&rules::MALFORMED, written.at, message, SEE);
        return None;
    };
    for entry in entries {
        found.entries.insert(&entry.key, entry);
        match entry.value.text() {
            Some(_) if entry.key.starts_with(KUBELET_PREFIX) => {
                let message = format!(
                    "kubelet sets the attribute {} itself, over what is written here",
                    quoted(&entry.key)
                );
                findings.add(&rules::KUBELET_ATTRIBUTE, entry.at, message, "Remove it");
            }
            Some(text) => {
                found.texts.insert(entry.key.clone(), text.to_owned());
            }
            None => {
                found.is_complete = false;
                report_type(entry, findings);
            }
        }
    }
    Some(found)
}

fn report_type(entry: &Entry, findings: &mut Findings) {
    let message = format!(
        "the volume attribute {} is {}: Kubernetes takes only text",
        quoted(&entry.key),
        type_name(&entry.value)
    );
    let help = match &entry.value.value {
        Value::List(_) if entry.key == SECRETS => "Write `secrets: |` and the list below it: then it is text",
        Value::Null => "Give it a value, or remove it",
        _ => "Put quotes around the value",
    };
    findings.add(&rules::MALFORMED, entry.at, message, help);
}

/// Where the parts of a volume stand.
struct Places<'a> {
    volume: &'a KeyfoldVolume<'a>,
    written: &'a Written<'a>,
    list: Option<Rc<Node>>,
    source: &'a Source<'a>,
}

impl Places<'_> {
    fn report(&self, problem: &Problem, findings: &mut Findings) {
        let text = problem.to_string();
        match problem {
            Problem::Unknown { attribute } => {
                findings.add(&rules::UNKNOWN_ATTRIBUTE, self.attribute(attribute), text, SEE);
            }
            Problem::Role(_) => {
                findings.add(
                    &rules::ROLE_NAME,
                    self.attribute(ROLE),
                    text,
                    "Name an app role; `keyfold role list` shows them",
                );
            }
            // It is there, but not text, which is said already.
            Problem::Missing if self.written.entries.contains_key(SECRETS) => {}
            Problem::Missing => {
                let help = "List the secrets: `secrets: |` and below it lines such as `- path: payments/db`";
                findings.add(&rules::NO_SECRETS, self.attribute(SECRETS), text, help);
            }
            Problem::List { at, .. } => {
                let place = at.map_or(self.attribute(SECRETS), |at| self.in_secrets(at));
                findings.add(&rules::SECRETS_LIST, place, text, SEE);
            }
            Problem::Item { index, mistakes } => self.report_item(*index, mistakes, findings),
            Problem::SameFile { items: (_, second), .. }
            | Problem::FileAndFolder { items: (_, second), .. } => {
                let help = "Give items files that do not lie in each other's way";
                findings.add(&rules::COLLISION, self.item_key(*second, Some("file")), text, help);
            }
        }
    }

    fn report_item(&self, index: usize, mistakes: &[Mistake], findings: &mut Findings) {
        for mistake in mistakes {
            let (rule, help) = rule_of(mistake);
            let at = self.item_key(index, mistake.key.as_deref());
            findings.add(rule, at, format!("{SECRETS}[{index}]: {}", mistake.message), help);
        }
    }

    fn asked(&self, attributes: Attributes) -> Asked {
        let place = |index| self.item_key(index, Some("path"));
        Asked {
            role: attributes.role.map(String::from),
            role_at: self.attribute(ROLE),
            items: attributes
                .items
                .into_iter()
                .enumerate()
                .map(|(index, item)| (item, place(index)))
                .collect(),
        }
    }

    /// An attribute; or else all of them; or else the volume.
    fn attribute(&self, name: &str) -> Position {
        let all = || self.volume.csi.entry("volumeAttributes").map_or(self.volume.at, |entry| entry.at);
        self.written.entries.get(name).map_or_else(all, |entry| entry.at)
    }

    fn in_secrets(&self, inner: Position) -> Position {
        let begin = self.attribute(SECRETS);
        self.written.entries.get(SECRETS).map_or(begin, |entry| self.source.within(&entry.value, inner))
    }

    /// An item's key; or else the item; or else all of them.
    fn item_key(&self, index: usize, key: Option<&str>) -> Position {
        let item = self.list.as_ref().and_then(|list| list.items().get(index));
        let inner = item.map(|item| key.and_then(|key| item.entry(key)).map_or(item.at, |entry| entry.at));
        inner.map_or(self.attribute(SECRETS), |inner| self.in_secrets(inner))
    }
}

fn rule_of(mistake: &Mistake) -> (&'static Rule, &'static str) {
    match mistake.key.as_deref() {
        _ if mistake.is_misfit => (&rules::ITEM, SEE),
        Some("path") => (&rules::PATH, "A path is lower-case segments such as payments/db"),
        Some("file") => (&rules::FILE, "Name a relative path, such as db/password"),
        Some("format") => (&rules::FORMAT, SEE),
        Some("mode") => (&rules::MODE, "Write it in quotes, such as mode: \"0440\""),
        Some("uid" | "gid") => (&rules::MODE, "Use an id below 4294967295"),
        _ => (&rules::ITEM, SEE),
    }
}
