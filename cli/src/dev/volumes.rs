//! `keyfold dev token`, `mount` and `unmount`: what a cluster does for a pod, towards a running environment.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use keyfold_core::clock::{Clock as _, SystemClock};

use super::{
    MountArgs, PodArgs, TokenArgs, UnmountArgs,
    files::read_text,
    kubelet::{Kubelet, Pod, Volume, publish_request, volume_id},
    stack::{DevFile, issuer_key_file, kubelet_dir},
    tokens::{Minter, PersonRequest, SigningKey, Token, TokenRequest},
};
use crate::{
    exit::{Exit, Failure},
    output,
};

/// Prints a token.
///
/// # Errors
/// When no environment is up in the folder.
pub fn token(args: &TokenArgs) -> Result<Exit, Failure> {
    let minter = minter(&args.dir.path)?;
    let (audience, ttl, now) = (args.audience.clone(), args.ttl, SystemClock.now());
    let token = match &args.operator {
        None => minter.mint(&TokenRequest { audience, ttl, ..args.pod.pod(None).token_request() }, now)?,
        Some(name) => {
            let person = PersonRequest { subject: name.clone(), groups: args.groups.clone(), audience, ttl };
            let provider = Minter { issuer: DevFile::load(&args.dir.path)?.people, ..minter };
            provider.mint_person(&person, now)?
        }
    };
    output::write(token.jwt.as_bytes())?;
    output::write(b"\n")?;
    Ok(Exit::Done)
}

/// Publishes a volume, and prints the path of its files.
///
/// # Errors
/// When no environment is up in the folder, or the driver refuses.
pub async fn mount(args: &MountArgs) -> Result<Exit, Failure> {
    let environment = Environment::open(&args.dir.path)?;
    if args.fs_group.is_some() && !environment.mounts_on_host() {
        let why = "the environment is not root's: in its user namespace no other group exists";
        return Err(Failure::usage("cannot give the volume an fsGroup", why));
    }
    let pod = args.pod.pod(args.fs_group);
    let volume = environment.volume_to_mount(&pod, &args.target)?;
    let token = minter(&args.dir.path)?.mint(&pod.token_request(), SystemClock.now())?;
    let secrets = read_text(&args.secrets)?;
    environment.publish(&pod, &volume, &token, &args.role, &secrets).await?;
    output::write(format!("{}\n", environment.seen(&volume.target).display()).as_bytes())?;
    Ok(Exit::Done)
}

/// Unpublishes a volume.
///
/// # Errors
/// When no environment is up in the folder, there is no such volume, or the driver fails.
pub async fn unmount(args: &UnmountArgs) -> Result<Exit, Failure> {
    let environment = Environment::open(&args.dir.path)?;
    let volume = environment.mounted_volume(&args.target)?;
    let failed = |status| Failure::rpc(format!("cannot unmount {}", volume.target.display()), &status);
    environment.kubelet.unpublish(&volume).await.map_err(failed)?;
    Ok(Exit::Done)
}

impl PodArgs {
    fn pod(&self, fs_group: Option<u32>) -> Pod {
        Pod {
            namespace: self.namespace.clone(),
            name: self.pod.clone(),
            service_account: self.service_account.clone(),
            node: self.node.clone(),
            fs_group,
        }
    }
}

fn minter(dir: &Path) -> Result<Minter, Failure> {
    let issuer = DevFile::load(dir)?.issuer;
    Ok(Minter { issuer, key: SigningKey::load(&issuer_key_file(dir))? })
}

/// A running environment, as another process sees it.
struct Environment {
    mount_root: PathBuf,
    kubelet: Kubelet,
}

impl Environment {
    fn open(dir: &Path) -> Result<Self, Failure> {
        let file = DevFile::load(dir)?;
        let dir = dir
            .canonicalize()
            .map_err(|error| Failure::io(format!("cannot use {}", dir.display()), &error))?;
        let kubelet = Kubelet::new(&kubelet_dir(&dir), super::driver::NODE);
        Ok(Self { mount_root: file.mount_root, kubelet })
    }

    fn mounts_on_host(&self) -> bool {
        self.mount_root == Path::new("/")
    }

    /// Where this process sees what the driver mounted on `target`.
    fn seen(&self, target: &Path) -> PathBuf {
        self.mount_root.join(target.strip_prefix("/").unwrap_or(target))
    }

    async fn publish(
        &self,
        pod: &Pod,
        volume: &Volume,
        token: &Token,
        role: &str,
        secrets: &str,
    ) -> Result<(), Failure> {
        let request = publish_request(pod, volume, token, &[("role", role), ("secrets", secrets)]);
        let failed = |status| Failure::rpc(format!("cannot mount {}", volume.target.display()), &status);
        self.kubelet.publish(request).await.map_err(failed)
    }

    fn volume_to_mount(&self, pod: &Pod, target: &Path) -> Result<Volume, Failure> {
        match plain_name(target) {
            Some(name) => Ok(Volume::of_pod(self.kubelet.dir(), pod, name)),
            None => self.volume_at(target),
        }
    }

    fn mounted_volume(&self, target: &Path) -> Result<Volume, Failure> {
        let Some(name) = plain_name(target) else { return self.volume_at(target) };
        let is_named = |volume: &Volume| volume.target.parent().is_some_and(|folder| folder.ends_with(name));
        let mut found = self.kubelet.volumes().into_iter().filter(is_named);
        match (found.next(), found.next()) {
            (Some(volume), None) => Ok(volume),
            (None, _) => Err(no_volume(name, "none is mounted")),
            (Some(_), Some(_)) => {
                Err(no_volume(name, "several pods have one").advise("Name the path that `mount` printed"))
            }
        }
    }

    /// The volume at the whole path `target`, which may begin with the driver's root as `mount` printed it.
    fn volume_at(&self, target: &Path) -> Result<Volume, Failure> {
        let on_host = match target.strip_prefix(&self.mount_root) {
            Ok(rest) => Path::new("/").join(rest),
            Err(_) => target.to_owned(),
        };
        let parts: Option<Vec<&str>> = on_host
            .strip_prefix(self.kubelet.dir())
            .ok()
            .map(|path| path.iter().filter_map(|p| p.to_str()).collect());
        match parts.as_deref() {
            Some(["pods", pod_uid, "volumes", "kubernetes.io~csi", name, "mount"])
                if plain_name(Path::new(pod_uid)).and(plain_name(Path::new(name))).is_some() =>
            {
                Ok(Volume { id: volume_id(pod_uid, name), target: on_host })
            }
            _ => {
                let shape =
                    format!("{}/pods/UID/volumes/kubernetes.io~csi/NAME/mount", self.kubelet.dir().display());
                Err(no_volume(target.display(), format!("kubelet would use {shape}"))
                    .advise("Give a plain name, or such a path"))
            }
        }
    }
}

fn plain_name(target: &Path) -> Option<&str> {
    target.to_str().filter(|name| !name.contains('/') && !matches!(*name, "" | "." | ".."))
}

fn no_volume(target: impl Display, why: impl Into<String>) -> Failure {
    Failure::usage(format!("cannot use {target} as a volume"), why)
}

#[cfg(test)]
mod tests;
