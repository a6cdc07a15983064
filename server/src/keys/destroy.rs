//! Destruction with proof: a key's material goes only in a transaction that has just shown that nothing needs it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use keyfold_core::{
    audit::Operation,
    key::{
        Check, CheckName, DestructionCertificate, Purpose,
        certificate::{DOES_NOT_REACH, VERSION},
    },
    secret::Key,
};
use ring::{
    digest,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::keyring::{Keyring, SystemKey, stored},
    store::{
        Isolation,
        destruction_certificates::{self, StoredCertificate},
        keks::{self, KekRow, Material},
        key_references::{self, ForeignKey},
    },
};

/// How long a key that is needed is left alone: each attempt keeps others waiting for a moment.
const NEEDED_INTERVAL: Duration = Duration::from_secs(60);
/// How long one is left alone whose attempt came to nothing, such as because of an open transaction.
const FAILED_INTERVAL: Duration = Duration::from_secs(5);

/// When keys whose proof has failed are looked at again, as far as this replica knows.
#[derive(Default)]
pub(crate) struct Postponed(Mutex<HashMap<Uuid, Instant>>);

/// What became of an attempt.
enum Attempt {
    /// The material is gone.
    Destroyed,
    /// Somebody else was faster, or has called it off.
    NotDue,
    /// Something needs the key, in words.
    Refused(String),
    /// Nothing was found out, in words.
    Failed(String),
    /// Somebody uses keys, and nothing was found out.
    Locked,
}

impl Broker {
    /// Destroys the keys that are due by this server's clock. One that something still needs stays as it is, and is tried
    /// again a minute later.
    ///
    /// # Errors
    /// Those of Postgres, when it cannot be asked which are due.
    pub(crate) async fn destroy_pass(&self, keyring: &Keyring) -> Result<(), Error> {
        let due = keks::due_for_destruction(&mut *self.store.connection().await?, self.now()).await?;
        for id in self.worker.postponed.due_of(&due) {
            let attempt = self.try_destroy(keyring, id).await;
            match attempt {
                Attempt::Refused(why) => {
                    metrics::counter!("keyfold_key_destructions_refused_total").increment(1);
                    tracing::error!(key = %id, why, "a key is due to be destroyed, but is needed, and is kept");
                    self.worker.postponed.postpone(id, NEEDED_INTERVAL);
                }
                Attempt::Failed(why) => {
                    tracing::warn!(key = %id, why, "destroying a key failed and is tried again");
                    self.worker.postponed.postpone(id, FAILED_INTERVAL);
                }
                Attempt::Locked => {
                    // The next would only keep those waiting again who write.
                    tracing::warn!(key = %id, "destroying keys is tried again: an open transaction may hold a reference to a key");
                    due.iter().for_each(|id| self.worker.postponed.postpone(*id, FAILED_INTERVAL));
                    break;
                }
                Attempt::Destroyed => self.worker.wake(),
                Attempt::NotDue => {}
            }
        }
        Ok(())
    }

    /// Looks first without locks, which keep everybody waiting who writes: a key that is needed needs none.
    async fn try_destroy(&self, keyring: &Keyring, id: Uuid) -> Attempt {
        let tried = match self.look_before(keyring, id).await {
            Ok(None) => self.destroy(keyring, id).await,
            Ok(Some(found)) => Ok(found),
            Err(error) => Err(error),
        };
        tried.unwrap_or_else(|error| match error.is_lock_timeout() {
            true => Attempt::Locked,
            false => Attempt::Failed(detail(error)),
        })
    }

    async fn look_before(&self, keyring: &Keyring, id: Uuid) -> Result<Option<Attempt>, Error> {
        let mut connection = self.store.connection().await?;
        let Some(kek) = keks::doomed(&mut connection, keyring.row_macs(), id, self.now()).await? else {
            return Ok(Some(Attempt::NotDue));
        };
        Ok(unneeded(&mut connection, &kek).await?.err().map(Attempt::Refused))
    }

    async fn destroy(&self, keyring: &Keyring, id: Uuid) -> Result<Attempt, Error> {
        let signer = keyring.system_key(Purpose::AuditSign)?;
        let signer = &signer;
        self.store
            .tx("key.destroy", Isolation::Serializable, |mut tx| async move {
                key_references::lock(&mut tx).await?;
                let now = self.now();
                let Some(kek) = keks::doomed(&mut tx, keyring.row_macs(), id, now).await? else {
                    return tx.commit(Attempt::NotDue).await;
                };
                let checks = match proofs(&mut tx, &kek).await? {
                    Ok(checks) => checks,
                    Err(why) => return tx.commit(Attempt::Refused(why)).await,
                };
                let material = keks::material(&mut tx, id).await?;
                let certificate = certificate(keyring.installation(), &kek, &material, checks, now);
                let signed = certificate.sign(&seed(signer), signer.key_ref.id).to_text();
                keks::destroy(&mut tx, keyring.row_macs(), &kek, now).await?;
                let stored = StoredCertificate {
                    keyspace: material.keyspace.unwrap_or_default(),
                    purpose: certificate.purpose.clone(),
                    version: stored(certificate.version)?,
                    certificate: signed.clone(),
                    created_at: now,
                };
                destruction_certificates::insert(&mut tx, id, &stored).await?;
                let operation = Operation::KeyDestroy {
                    keyspace: stored.keyspace,
                    purpose: certificate.purpose,
                    version: certificate.version,
                    certificate: signed,
                };
                self.append_own(&mut tx, operation).await?;
                tx.commit(Attempt::Destroyed).await
            })
            .await
    }
}

/// What still needs a key, in words; nothing when it may go. Looks at the catalog's tables as they are now, so it proves
/// nothing for later.
///
/// # Errors
/// Those of Postgres, also when a table may not be read.
pub(crate) async fn needs(connection: &mut PgConnection, kek: &KekRow) -> Result<Option<String>, Error> {
    let foreign_keys = key_references::foreign_keys(connection).await?;
    let mut found = references(connection, &foreign_keys, kek).await?;
    found.extend(key_references::blobs_under(connection, &foreign_keys, kek.id).await?);
    let quarantined = key_references::quarantined_under(connection, kek.id).await?;
    let mut needs: Vec<_> = found.iter().map(|(place, rows)| format!("{rows} of {place}")).collect();
    if quarantined > 0 {
        needs.push(format!("{quarantined} data keys in quarantine"));
    }
    if may_have_signed(kek) {
        needs.push("certificates that it has signed, which its public key verifies".into());
    }
    Ok((!needs.is_empty()).then(|| needs.join(", ")))
}

/// Whether there may be certificates by it. A key that was given up before it was ever in use has made none.
fn may_have_signed(kek: &KekRow) -> bool {
    kek.purpose == Purpose::AuditSign && (kek.activated_at.is_some() || kek.deactivated_at.is_some())
}

/// The five proofs, or why one fails. The keys are locked.
async fn proofs(connection: &mut PgConnection, kek: &KekRow) -> Result<Result<Vec<Check>, String>, Error> {
    let mut checks = match unneeded(connection, kek).await? {
        Ok(checks) => checks,
        Err(why) => return Ok(Err(why)),
    };
    Ok(guard(connection).await?.map(|found| {
        checks.push(Check { name: CheckName::Trigger, found });
        checks
    }))
}

/// That nothing needs the key, as the tables are now, or why it is needed: the proofs that need no lock to be tried.
async fn unneeded(connection: &mut PgConnection, kek: &KekRow) -> Result<Result<Vec<Check>, String>, Error> {
    if may_have_signed(kek) {
        return Ok(Err("certificates that it has signed are verified by its public key".into()));
    }
    let foreign_keys = key_references::foreign_keys(connection).await?;
    if let Some(weak) = foreign_keys.iter().find(|key| key.on_delete != "r" || !key.at_once) {
        return Ok(Err(format!(
            "foreign key {} of table {} does not restrict the removal of keys",
            weak.name, weak.table
        )));
    }
    let rows = references(connection, &foreign_keys, kek).await?;
    if !rows.is_empty() {
        return Ok(Err(format!("rows refer to it: {}", counted(&rows))));
    }
    let blobs = key_references::blobs_under(connection, &foreign_keys, kek.id).await?;
    if !blobs.is_empty() {
        return Ok(Err(format!("the headers of blobs name it: {}", counted(&blobs))));
    }
    let quarantined = key_references::quarantined_under(connection, kek.id).await?;
    if quarantined > 0 {
        return Ok(Err(format!("{quarantined} of its data keys are in quarantine")));
    }
    let tables: BTreeSet<_> = foreign_keys.iter().map(|key| key.table.as_str()).collect();
    let tables = tables.into_iter().collect::<Vec<_>>().join(", ");
    let blobs: Vec<_> = key_references::blob_columns(&foreign_keys).iter().map(ToString::to_string).collect();
    let found = [
        (CheckName::ForeignKeys, format!("all {} restrict: those of {tables}", foreign_keys.len())),
        (CheckName::References, format!("0 rows of {tables}")),
        (CheckName::BlobHeaders, format!("0 of all blobs in {}", blobs.join(", "))),
        (CheckName::Quarantine, "0 data keys".to_owned()),
    ];
    Ok(Ok(found.into_iter().map(|(name, found)| Check { name, found }).collect()))
}

/// Rows that refer to the key, and those whose MAC it has made.
async fn references(
    connection: &mut PgConnection,
    foreign_keys: &[ForeignKey],
    kek: &KekRow,
) -> Result<BTreeMap<String, i64>, Error> {
    let mut rows = key_references::rows_under(connection, foreign_keys, kek.id).await?;
    if kek.purpose == Purpose::RowMac {
        for (table, count) in key_references::macs_under(connection, stored(kek.version)?).await? {
            rows.insert(format!("{table}.mac"), count);
        }
    }
    Ok(rows)
}

/// Whether Postgres itself refuses to remove material that is in use, and how that was found.
async fn guard(connection: &mut PgConnection) -> Result<Result<String, String>, Error> {
    let (disabled, is_guarded) = key_references::triggers(connection).await?;
    if !is_guarded {
        return Ok(Err("the trigger that keeps material that is in use is not there".into()));
    }
    if !disabled.is_empty() {
        return Ok(Err(format!("triggers of keks are disabled: {}", disabled.join(", "))));
    }
    Ok(match key_references::is_needed_material_kept(connection).await? {
        Some(true) => Ok("present, enabled, and refused the removal of a key that is in use".into()),
        Some(false) => Err("the trigger did not refuse the removal of a key that is in use".into()),
        None => Ok("present and enabled; no key of the installation is in use".into()),
    })
}

/// For the log.
fn detail(error: Error) -> String {
    match error {
        Error::Database(cause) => cause.to_string(),
        Error::Corrupt(what) | Error::Integrity { what, .. } => what,
        other => other.to_string(),
    }
}

fn counted(found: &BTreeMap<String, i64>) -> String {
    found.iter().map(|(place, rows)| format!("{place} {rows}")).collect::<Vec<_>>().join(", ")
}

fn certificate(
    installation: Uuid,
    kek: &KekRow,
    material: &Material,
    checks: Vec<Check>,
    destroyed_at: OffsetDateTime,
) -> DestructionCertificate {
    DestructionCertificate {
        v: VERSION,
        installation,
        keyspace: material.keyspace.clone(),
        keyspace_id: kek.keyspace_id,
        purpose: kek.purpose.to_string(),
        kek: kek.id,
        version: kek.version,
        created_at: kek.created_at,
        deactivated_at: kek.deactivated_at,
        destroyed_at,
        wrapped_sha256: hex::encode(digest::digest(&digest::SHA256, &material.wrapped)),
        checks,
        does_not_reach: DOES_NOT_REACH.to_owned(),
        requested_by: kek.destroy_asked_by.clone().unwrap_or_default(),
        requested_at: kek.destroy_asked_at.unwrap_or(kek.created_at),
    }
}

fn seed(signer: &SystemKey) -> Key {
    Key::from_bytes(signer.key.expose())
}

/// The public half of a key that signs.
///
/// # Errors
/// `Corrupt` when it is none.
pub(crate) fn public_key(signer: &SystemKey) -> Result<Vec<u8>, Error> {
    let pair = Ed25519KeyPair::from_seed_unchecked(signer.key.expose());
    let pair = pair.map_err(|_| Error::Corrupt(format!("keks: {} is no Ed25519 seed", signer.key_ref.id)))?;
    Ok(pair.public_key().as_ref().to_vec())
}

impl Postponed {
    /// Those of `due` whose time has come. Forgets the ones that are not due any more.
    fn due_of(&self, due: &[Uuid]) -> Vec<Uuid> {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|id, _| due.contains(id));
        let now = Instant::now();
        due.iter().copied().filter(|id| until.get(id).is_none_or(|at| *at <= now)).collect()
    }

    /// Whether its time has come, or it was not postponed.
    pub(crate) fn is_due(&self, id: Uuid) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(&id).is_none_or(|at| *at <= Instant::now())
    }

    /// Leaves a key alone that is needed.
    pub(crate) fn postpone_needed(&self, id: Uuid) {
        self.postpone(id, NEEDED_INTERVAL);
    }

    fn postpone(&self, id: Uuid, interval: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now() + interval);
    }
}
