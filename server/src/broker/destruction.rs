//! Destroying keys: setting a day for it, calling it off, and the proofs of what was destroyed.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::{
    audit::Operation,
    key::{KeyState, Keyset, KeysetError, Purpose, RotationPolicy},
    object::{Kind, Spec},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    broker::{
        Broker, Call,
        compromise::find,
        keys::{WantedKeyset, lock},
        work::OperatorWork,
    },
    error::Error,
    integrity::row_macs::RowMacs,
    keys::{destroy, keyring::stored},
    store::{
        destruction_certificates::{self, StoredCertificate},
        keks::{self, Doom, KekRow},
        keysets::KeysetRow,
        objects,
    },
};

/// The longest delay: as that of a policy.
const DELAY_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Most certificates of one answer.
const CERTIFICATES_MAX: i64 = 1000;

/// Certificates, and what verifies them.
pub struct Certificates {
    /// Newest first.
    pub certificates: Vec<StoredCertificate>,
    /// The Ed25519 keys that sign certificates, newest first, in base64.
    pub public_keys: Vec<String>,
}

impl Broker {
    /// Sets a day for the destruction of a version of a key; it opens nothing from now on. Without a delay that of the
    /// key's policy counts. A version that was never in use goes at once, such as one that does not open: that ends a turn
    /// which could not go on.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace or version; `Invalid` for a delay out of bounds; `Conflict` when the version's
    /// state does not allow it, something still needs it, or this server's clock is wrong; `HeartbeatLost`.
    pub async fn schedule_key_destruction(
        &self,
        call: &Call,
        wanted: WantedKeyset<'_>,
        version: u32,
        delay: Option<Duration>,
    ) -> Result<OffsetDateTime, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = move |destroy_at| Operation::KeyScheduleDestruction {
            keyspace: wanted.keyspace.to_owned(),
            purpose: wanted.special_purpose(),
            version,
            destroy_at,
            // A second person signs the delay too.
            reason: delay.map(|delay| format!("asked for after {} s", delay.as_secs())),
        };
        let destroy_at = self
            .operate(call, operation(None), |mut work| async move {
                if delay.is_some_and(|delay| delay.is_zero() || delay > DELAY_MAX) {
                    return Err(Error::Invalid(
                        "delay_seconds must be at least 1, and at most ten years".into(),
                    ));
                }
                let (keyset, macs) = (lock(work.tx(), wanted).await?, keyring.row_macs());
                let keks = keks::of_keyset(work.tx(), macs, keyset.keyspace_id, keyset.purpose).await?;
                let kek = find(&keks, &keyset, version)?;
                let was_used = kek.state != KeyState::PreActive;
                next(&keyset, &keks::keyset(&keks)?, |states| match was_used {
                    true => states.schedule_destruction(version),
                    false => states.abandon(version),
                })?;
                if let Some(needs) = destroy::needs(work.tx(), kek).await? {
                    return Err(still_needed(&keyset, kek, &needs));
                }
                let delay = match delay {
                    None if !was_used => Duration::ZERO,
                    None => policy(&mut work, macs, &keyset).await?.destroy_after(),
                    Some(delay) => delay,
                };
                let now = self.agreed_now().await?;
                let destroy_at = now + delay;
                let asked_by = work.operator().name().to_owned();
                let doom = Doom { destroy_at, asked_by: &asked_by, asked_at: now };
                keks::schedule_destruction(work.tx(), macs, kek, &doom).await?;
                work.state(operation(destroy_at.format(&Rfc3339).ok()));
                work.allow(destroy_at).await
            })
            .await?;
        self.worker.wake();
        Ok(destroy_at)
    }

    /// Calls a destruction off. Gives the state that the version is in again.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace or version; `Conflict` when none is scheduled, or the version was never in use.
    pub async fn cancel_key_destruction(
        &self,
        call: &Call,
        wanted: WantedKeyset<'_>,
        version: u32,
    ) -> Result<KeyState, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeyCancelDestruction {
            keyspace: wanted.keyspace.to_owned(),
            purpose: wanted.special_purpose(),
            version,
        };
        let state = self
            .operate(call, operation, |mut work| async move {
                let (keyset, macs) = (lock(work.tx(), wanted).await?, keyring.row_macs());
                let keks = keks::of_keyset(work.tx(), macs, keyset.keyspace_id, keyset.purpose).await?;
                let kek = find(&keks, &keyset, version)?;
                next(&keyset, &keks::keyset(&keks)?, |states| states.cancel_destruction(version))?;
                let restored = kek.version().restored.ok_or_else(|| {
                    Error::Corrupt(format!("keks: {} was neither deactivated nor compromised", kek.id))
                })?;
                keks::cancel_destruction(work.tx(), macs, kek, restored).await?;
                work.allow(KeyState::from(restored)).await
            })
            .await?;
        self.worker.wake();
        Ok(state)
    }

    /// The certificates of destroyed keys, of one keyspace and one version if they are named, the first thousand; and the
    /// public keys that verify them. A key that signs is never destroyed, so that they all are known.
    ///
    /// # Errors
    /// Those of `operate`.
    pub async fn certificates(
        &self,
        call: &Call,
        keyspace: &str,
        version: Option<u32>,
    ) -> Result<Certificates, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeyListCertificates { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let keyspace = Some(keyspace).filter(|keyspace| !keyspace.is_empty());
            let version = version.map(stored).transpose()?;
            let certificates =
                destruction_certificates::list(work.tx(), keyspace, version, CERTIFICATES_MAX).await?;
            let signers = keyring.system_keys(Purpose::AuditSign);
            let public_keys = signers.iter().map(|key| Ok(STANDARD.encode(destroy::public_key(key)?)));
            let public_keys = public_keys.collect::<Result<_, Error>>()?;
            work.allow(Certificates { certificates, public_keys }).await
        })
        .await
    }
}

/// Whether the change is legal.
fn next(
    keyset: &KeysetRow,
    states: &Keyset,
    change: impl FnOnce(&mut Keyset) -> Result<(), KeysetError>,
) -> Result<(), Error> {
    change(&mut states.clone()).map_err(|error| Error::Conflict(format!("{}: {error}", keyset.in_words())))
}

fn still_needed(keyset: &KeysetRow, kek: &KekRow, needs: &str) -> Error {
    let advice = match keyset.purpose {
        Purpose::Data => "wait until `keyfold key status` says that nothing is pending or in quarantine",
        Purpose::RowMac | Purpose::InternalCa => {
            "servers make or wrap that anew by themselves: try again in a minute"
        }
        Purpose::AuditSign => "keys that sign are kept",
    };
    let (version, key) = (kek.version, keyset.in_words());
    Error::Conflict(format!("version {version} of the {key} is still needed by {needs}: {advice}"))
}

async fn policy(
    work: &mut OperatorWork<'_>,
    macs: &RowMacs,
    keyset: &KeysetRow,
) -> Result<RotationPolicy, Error> {
    let declared = match objects::find(work.tx(), macs, Kind::Keyspace, &keyset.keyspace).await? {
        Some(object) => match object.spec()? {
            Spec::Keyspace(spec) => spec.rotation,
            _ => None,
        },
        None => None,
    };
    Ok(declared.unwrap_or_else(|| RotationPolicy::default_of(keyset.purpose)))
}
