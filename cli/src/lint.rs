//! Checks of Kubernetes manifests before they are deployed: whether each Keyfold volume can be mounted, and whether the
//! app roles give it what it asks for. Attributes are read by the driver's parser and rights decided by the server's
//! policy, both in `keyfold_core`.

mod finding;
mod manifest;
mod report;
mod rights;
mod rules;
mod sarif;
mod source;
mod volume;
mod yaml;

use keyfold_core::{name::ObjectName, volume::Position};

pub use self::{
    finding::{Finding, Findings},
    report::{Report, Summary},
    rights::Rights,
    rules::{ALL as RULES, Level, Rule},
    sarif::sarif,
};
use self::{manifest::Pod, source::Source};

/// Largest file that is read. Whole clusters of manifests stay below it.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The beginning of a file, for what concerns all of it.
const START: Position = Position { line: 1, column: 1 };

/// A file to check.
pub struct Input {
    /// How findings call it: its path, as it was given.
    pub name: String,
    /// Its text, or why it cannot be read.
    pub text: Result<String, String>,
}

/// What manifests are checked against.
pub struct Settings {
    /// The namespace of objects that name none.
    pub namespace: String,
    /// The issuer of the cluster that the manifests are for; absent: any that there is.
    pub issuer: Option<ObjectName>,
    /// What roles, issuers and keyspaces there are; absent: only what pods' authors write is checked.
    pub rights: Option<Rights>,
}

/// Checks all files.
pub fn check(files: &[Input], settings: &Settings) -> Report {
    let mut findings = Findings::default();
    let mut volumes = 0;
    for file in files {
        findings.begin(&file.name);
        match &file.text {
            Ok(text) => volumes += check_text(text, settings, &mut findings),
            Err(reason) => {
                let help = "Name files that can be read; `-` is standard input";
                findings.add(&rules::UNREADABLE, START, format!("cannot be read: {reason}"), help);
            }
        }
    }
    Report::new(files.len(), volumes, findings)
}

/// Checks one file; gives the number of its Keyfold volumes.
fn check_text(text: &str, settings: &Settings, findings: &mut Findings) -> usize {
    let source = Source::new(text);
    let mut volumes = 0;
    yaml::documents(text, |document| match document {
        Ok(root) => {
            for pod in manifest::pods(&root, &settings.namespace) {
                volumes += check_pod(&pod, &source, settings, findings);
            }
        }
        Err(unreadable) => {
            let help = "Nothing of this document was checked: Kubernetes would refuse it too";
            findings.add(&rules::UNREADABLE, unreadable.at, unreadable.reason, help);
        }
    });
    volumes
}

fn check_pod(pod: &Pod<'_>, source: &Source<'_>, settings: &Settings, findings: &mut Findings) -> usize {
    if let Some((at, limit)) = pod.excess() {
        let help = "Nothing of this pod was checked: see whether YAML aliases repeat more than was meant";
        findings.add(&rules::UNREADABLE, at, format!("a pod of more than {limit}"), help);
        return 0;
    }
    let volumes = pod.keyfold_volumes();
    volume::check_mounts(pod, &volumes, findings);
    for volume in &volumes {
        if let Some(attributes) = volume::check(volume, source, findings)
            && let Some(rights) = &settings.rights
        {
            rights.check(pod, &attributes, settings.issuer.as_ref(), findings);
        }
    }
    volumes.len()
}

#[cfg(test)]
mod tests;
