//! The driver's main path: from kubelet's request to files on the pod's mount, and back.

#[cfg(test)]
mod tests;

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    csi::v1::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest},
    keyfold::v1::{IssueSecretsRequest, IssueSecretsResponse, IssuedSecret, SecretReference},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    atomic_writer::{self, WriteError, Written},
    broker_client::{BrokerClient, BrokerError},
    config::{Config, TokenSource},
    file_set::FileSet,
    folder::{Access, Ownership},
    lease,
    mount::{MountError, MountPoint, State, Tmpfs},
    pod_token::{PodTokenError, WipedRequest, pod_token},
    render::{RenderError, render},
    volume::{InvalidRequest, PodName, Volume, parse_unpublish},
    volume_locks::{Busy, VolumeLock, VolumeLocks},
};

/// Publishes at once; the others wait. Kubelet runs at most 110 pods by default, so a whole node's volumes can wait
/// for the server together.
const PUBLISHES_MAX: usize = 128;
/// Volumes that are rendered and written at once; each takes up to `tmpfs_bytes` of memory beside its tmpfs.
const RENDERS_MAX: usize = 4;
/// How long a publish waits for another call on its volume. Kubelet tries again after ABORTED.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// How long a refresh waits for the server. The files are there, and kubelet asks again after 60 to 90 s.
const REFRESH_WAIT: Duration = Duration::from_secs(5);

/// Publishes and unpublishes volumes.
pub struct Publisher {
    pods_dir: PathBuf,
    token_source: TokenSource,
    audience: String,
    tmpfs_bytes: u64,
    server_wait: Duration,
    broker: BrokerClient,
    locks: VolumeLocks,
    slots: Semaphore,
    renders: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// Why a volume could not be published or unpublished.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the inner errors say it")]
pub enum VolumeError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("the driver is stopping; its successor takes over")]
    Stopping,
    #[error("the folder that should hold the target path does not exist, although kubelet makes it")]
    NoParent,
    #[error(transparent)]
    PodToken(#[from] PodTokenError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Render(RenderError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(
        "the files need more room than the {0} bytes of a volume (tmpfs_bytes in the driver's configuration)"
    )]
    Full(u64),
    #[error("writing the volume: {0}")]
    Write(WriteError),
    #[error("{reason}; the lease ended at {ended_at}, so its files were removed")]
    LeaseEnded { reason: Box<VolumeError>, ended_at: String },
    #[error("the driver failed; its log says where")]
    Crashed,
}

/// A failed publish: the pod that it was for, if the request got that far, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}{error}", .pod.as_ref().map(|pod| format!("{pod}: ")).unwrap_or_default())]
pub struct PublishError {
    /// The pod.
    pub pod: Option<PodName>,
    /// Why.
    #[source]
    pub error: VolumeError,
}

/// What a publish did: for the log.
struct Published {
    written: Written,
    role: String,
    /// `path@version` of each secret.
    secrets: String,
}

impl Publisher {
    /// A publisher that asks `broker`. Cancelling `stopping` ends all waiting for the server.
    pub fn new(config: &Config, broker: BrokerClient, stopping: CancellationToken) -> Self {
        Self {
            pods_dir: config.pods_dir(),
            token_source: config.token_source,
            audience: config.audience.clone(),
            tmpfs_bytes: config.tmpfs_bytes,
            server_wait: config.server_wait(),
            broker,
            locks: VolumeLocks::default(),
            slots: Semaphore::new(PUBLISHES_MAX),
            renders: Arc::new(Semaphore::new(RENDERS_MAX)),
            stopping,
        }
    }

    /// Brings the pod's secrets to its mount: a first time, or again when kubelet asks for a refresh.
    ///
    /// A refresh that fails leaves the files as they are and succeeds, because an error would make older kubelets
    /// take a running pod's mount away (kubernetes#121271). It is logged. But when the volume's lease is over, it removes
    /// the files and fails.
    ///
    /// # Errors
    /// When the request is malformed, or a first publish fails; then nothing is mounted. `LeaseEnded`, of a volume that
    /// is mounted and empty.
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), PublishError> {
        let request = WipedRequest::new(request);
        let volume = Volume::parse(request.expose(), &self.pods_dir)
            .map(Arc::new)
            .map_err(|error| PublishError { pod: None, error: error.into() })?;
        self.publish_volume(request, Arc::clone(&volume)).await.map_err(|error| {
            tracing::warn!(volume = volume.id.as_str(), pod = %volume.pod, %error, "publish failed");
            PublishError { pod: Some(volume.pod.clone()), error }
        })
    }

    async fn publish_volume(&self, request: WipedRequest, volume: Arc<Volume>) -> Result<(), VolumeError> {
        let _slot = tokio::select! {
            slot = self.slots.acquire() => slot,
            () = self.stopping.cancelled() => return Err(VolumeError::Stopping),
        };
        let lock = Arc::new(self.locks.lock_to_publish(&volume.target, TURN_WAIT).await?);
        let place = MountPoint::resolve(&volume.target, &self.pods_dir)?.ok_or(VolumeError::NoParent)?;
        let mut state = place.state()?;
        if state == State::Empty {
            // Never written, so no container runs on it: what another release left when it was killed.
            place.remove()?;
            state = State::Absent;
        }
        match (self.bring_files(&request, &volume, &lock, place.clone(), state).await, state) {
            (Ok(published), _) => log_published(&volume, state, &published),
            (Err(error), State::Written) if !matches!(error, VolumeError::Busy(_)) => {
                keep_files_on_lease(&volume, lock, place, error).await?;
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    async fn bring_files(
        &self,
        request: &WipedRequest,
        volume: &Arc<Volume>,
        lock: &Arc<VolumeLock>,
        place: MountPoint,
        state: State,
    ) -> Result<Published, VolumeError> {
        let token = pod_token(request.expose(), self.token_source, &self.audience)?;
        let wait =
            if state == State::Written { REFRESH_WAIT.min(self.server_wait) } else { self.server_wait };
        let wanted = issue_request(volume, &token);
        let (issued, turn) = tokio::select! {
            issued = self.issue(&wanted, wait) => issued?,
            () = lock.unpublishing() => return Err(Busy.into()),
            () = self.stopping.cancelled() => return Err(VolumeError::Stopping),
        };
        let (volume, size_bytes) = (Arc::clone(volume), self.tmpfs_bytes);
        off_thread((Arc::clone(lock), turn), move || {
            let written = write_files(&place, state, &volume, &issued, size_bytes)?;
            Ok(Published { written, role: issued.role, secrets: versions(&issued.secrets) })
        })
        .await
    }

    /// The secrets, and the turn to render them.
    async fn issue(
        &self,
        wanted: &IssueSecretsRequest,
        wait: Duration,
    ) -> Result<(IssueSecretsResponse, OwnedSemaphorePermit), VolumeError> {
        let issued = self.broker.issue(wanted, wait).await?;
        let turn = Arc::clone(&self.renders).acquire_owned().await;
        Ok((issued, turn.expect("nobody closes the semaphore")))
    }

    /// Unmounts a volume and removes its folder. Fine when there is none. Never waits for the network: a publish of
    /// the volume that does is ended.
    ///
    /// # Errors
    /// When the request is malformed, or the kernel refuses to unmount.
    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), VolumeError> {
        let (id, target) = parse_unpublish(&request, &self.pods_dir)?;
        let lock = self.locks.lock_to_unpublish(&target).await;
        let Some(place) = MountPoint::resolve(&target, &self.pods_dir)? else { return Ok(()) };
        let removed = off_thread(lock, move || Ok(place.remove()?)).await;
        match &removed {
            Ok(()) => tracing::info!(volume = id.as_str(), "unpublished"),
            Err(error) => tracing::warn!(volume = id.as_str(), %error, "unpublish failed"),
        }
        removed
    }
}

/// Renders the secrets and makes them the volume's files.
fn write_files(
    place: &MountPoint,
    state: State,
    volume: &Volume,
    issued: &IssueSecretsResponse,
    size_bytes: u64,
) -> Result<Written, VolumeError> {
    let set_lease = |root: BorrowedFd<'_>| {
        let set = lease::set_expiry(root, lease_expiry(issued));
        set.map_err(|error| VolumeError::Write(WriteError::Io("noting the lease", error)))
    };
    let write = |root: BorrowedFd<'_>| {
        let files = render(volume, &issued.secrets, size_bytes).map_err(|error| match error {
            RenderError::TooLarge => VolumeError::Full(size_bytes),
            error => VolumeError::Render(error),
        })?;
        atomic_writer::write(root, &files, folder_access(volume), SystemClock.now()).map_err(|error| {
            match error {
                WriteError::Full => VolumeError::Full(size_bytes),
                error @ WriteError::Io(..) => VolumeError::Write(error),
            }
        })
    };
    if state == State::Written {
        let root = place.open()?;
        // First: the lease is renewed, also when the files stay those of before because the new ones cannot be written.
        set_lease(root.as_fd())?;
        return write(root.as_fd());
    }
    let tmpfs = Tmpfs::create(size_bytes, folder_access(volume))?;
    let written = write(tmpfs.root())?;
    set_lease(tmpfs.root())?;
    place.attach(tmpfs)?;
    Ok(written)
}

/// A time that does not exist is taken for one that is over.
fn lease_expiry(issued: &IssueSecretsResponse) -> Option<OffsetDateTime> {
    let seconds = issued.lease_expires_at.as_ref()?.seconds;
    Some(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// After a refresh failed with `error`: leaves the files as they are while the volume's lease lasts, or has none, and
/// removes them once it is over.
async fn keep_files_on_lease(
    volume: &Arc<Volume>,
    lock: Arc<VolumeLock>,
    place: MountPoint,
    error: VolumeError,
) -> Result<(), VolumeError> {
    let folders = folder_access(volume);
    match off_thread(lock, move || remove_files_past_lease(&place, folders)).await? {
        Some(ended_at) => {
            let ended_at = ended_at.format(&Rfc3339).unwrap_or_default();
            Err(VolumeError::LeaseEnded { reason: Box::new(error), ended_at })
        }
        None => {
            tracing::warn!(volume = volume.id.as_str(), pod = %volume.pod, %error, "refresh failed, the files stay");
            Ok(())
        }
    }
}

/// Gives when the lease ended, if it did: then the volume is empty.
fn remove_files_past_lease(
    place: &MountPoint,
    folders: Access,
) -> Result<Option<OffsetDateTime>, VolumeError> {
    let (root, now) = (place.open()?, SystemClock.now());
    let expiry = lease::expiry(&root)
        .map_err(|error| VolumeError::Write(WriteError::Io("reading when the lease ends", error)))?;
    let ended_at = expiry.filter(|expires_at| *expires_at <= now);
    if ended_at.is_some() {
        atomic_writer::write(root.as_fd(), &FileSet::default(), folders, now).map_err(VolumeError::Write)?;
    }
    Ok(ended_at)
}

/// Each path once: an item is optional only when every item of that path is.
fn issue_request(volume: &Volume, pod_token: &Zeroizing<String>) -> IssueSecretsRequest {
    let mut items: Vec<SecretReference> = Vec::with_capacity(volume.items.len());
    for item in &volume.items {
        match items.iter_mut().find(|reference| reference.path == item.path.as_str()) {
            Some(reference) => reference.optional &= item.optional,
            None => items.push(SecretReference { path: item.path.to_string(), optional: item.optional }),
        }
    }
    let role = volume.role.as_ref().map(ToString::to_string).unwrap_or_default();
    IssueSecretsRequest { pod_token: pod_token.to_string(), role, items }
}

/// Folders let root and the volume's group pass; everyone when an item names an owner, a group or a mode of its own
/// that would be pointless otherwise. Their names are no secret to the pod.
fn folder_access(volume: &Volume) -> Access {
    let mode = if volume.is_read_by_others() { 0o755 } else { 0o750 };
    Access { mode, uid: None, gid: volume.group }
}

/// Does `work` where it may block, and keeps `held` until it is done, even when kubelet gives the call up meanwhile.
async fn off_thread<T: Send + 'static>(
    held: impl Send + 'static,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let task = tokio::task::spawn_blocking(move || {
        let _held = held;
        work()
    });
    task.await.unwrap_or(Err(VolumeError::Crashed))
}

fn versions(secrets: &[IssuedSecret]) -> String {
    let shown: Vec<_> = secrets.iter().map(|secret| format!("{}@{}", secret.path, secret.version)).collect();
    shown.join(" ")
}

fn log_published(volume: &Volume, before: State, published: &Published) {
    let Published { written, role, secrets } = published;
    let (id, pod) = (volume.id.as_str(), &volume.pod);
    match written {
        Written::Unchanged => tracing::debug!(volume = id, %pod, role, secrets, "refreshed, nothing changed"),
        Written::Swapped(_) if before == State::Written => {
            tracing::info!(volume = id, %pod, role, secrets, "refreshed, files swapped");
        }
        Written::Swapped(_) => tracing::info!(volume = id, %pod, role, secrets, "published"),
    }
    if *written == Written::Swapped(Ownership::Refused) {
        tracing::warn!(
            volume = id, %pod,
            "the user namespace does not have the owner or group of some files: they stay the driver's"
        );
    }
}
