//! New versions of secrets: their rows in `secrets`, `secret_versions`, `deks` and `secret_labels`, written in one statement
//! for all secrets of a transaction.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    error::Error,
    integrity::row_macs::RowMacs,
    store::{
        Tx,
        deks::WrappedDek,
        secret_labels::{self, Label, NewCurrent, Places},
        secret_versions::VersionState,
        secrets::Secret,
    },
};

/// A secret that is written to, its row locked.
pub struct Target {
    /// As it is stored, or is to be.
    pub secret: Secret,
    /// Where its labels point.
    pub places: Places,
}

/// A version that is to be added.
pub struct NewVersion {
    /// The encrypted fields.
    pub payload: Vec<u8>,
    /// Who wrote it.
    pub created_by: String,
    /// What its payload is encrypted under; names the secret and the version's number.
    pub dek: WrappedDek,
}

/// Those of these paths that there are, by path, their rows locked until the transaction ends.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn lock(
    connection: &mut PgConnection,
    macs: &RowMacs,
    paths: &BTreeSet<&str>,
) -> Result<BTreeMap<String, Target>, Error> {
    let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    let rows = sqlx::query!(
        r#"SELECT path AS "path!", id AS "id!", keyspace_id AS "keyspace_id!", newest_version AS "newest_version!",
                  current_version, current_generation, current_mac,
                  previous_version, previous_generation, previous_mac
           FROM lock_secrets($1)"#,
        &paths
    )
    .fetch_all(connection)
    .await?;
    let mut targets = BTreeMap::new();
    for row in rows {
        let place = |label, version: Option<i32>, generation: Option<i64>, mac: Option<Vec<u8>>| {
            let (Some(version), Some(generation), Some(mac)) = (version, generation, mac) else {
                return Ok(None);
            };
            macs.check(&Label { secret_id: row.id, label, version, generation }, &mac)?;
            Ok::<_, Error>(Some((version, generation)))
        };
        let places = Places {
            current: place("current", row.current_version, row.current_generation, row.current_mac)?,
            previous: place("previous", row.previous_version, row.previous_generation, row.previous_mac)?,
        };
        let secret = Secret { id: row.id, keyspace_id: row.keyspace_id, newest_version: row.newest_version };
        targets.insert(row.path, Target { secret, places });
    }
    Ok(targets)
}

/// Writes the newest version numbers of these secrets, by path, and adds those that were not there; adds their versions with
/// their DEKs, and points their labels at the newest ones. A trigger refuses a DEK under a KEK that is not active.
///
/// # Errors
/// `Busy` when somebody else added one of the secrets meanwhile; those of Postgres.
pub async fn insert(
    tx: &mut Tx,
    macs: &RowMacs,
    targets: &BTreeMap<&str, (&Target, NewCurrent)>,
    versions: &[NewVersion],
    at: OffsetDateTime,
) -> Result<(), Error> {
    let paths: Vec<_> = targets.keys().map(|path| (*path).to_owned()).collect();
    let secrets = || targets.values().map(|(target, _)| &target.secret);
    let ids: Vec<_> = secrets().map(|secret| secret.id).collect();
    let keyspace_ids: Vec<_> = secrets().map(|secret| secret.keyspace_id).collect();
    let newest: Vec<_> = secrets().map(|secret| secret.newest_version).collect();

    let sealed = |new: &NewVersion| macs.seal(&VersionState::new(new.dek.secret_id, new.dek.version));
    let version_macs = versions.iter().map(sealed).collect::<Result<Vec<_>, _>>()?;
    let version_secret_ids: Vec<_> = versions.iter().map(|new| new.dek.secret_id).collect();
    let numbers: Vec<_> = versions.iter().map(|new| new.dek.version).collect();
    let payloads: Vec<_> = versions.iter().map(|new| new.payload.as_slice()).collect();
    let creators: Vec<_> = versions.iter().map(|new| new.created_by.as_str()).collect();

    let dek_ids: Vec<_> = versions.iter().map(|new| new.dek.id).collect();
    let dek_keyspace_ids: Vec<_> = versions.iter().map(|new| new.dek.keyspace_id).collect();
    let kek_ids: Vec<_> = versions.iter().map(|new| new.dek.kek_id).collect();
    let kek_versions: Vec<_> = versions.iter().map(|new| new.dek.kek_version).collect();
    let wrapped: Vec<_> = versions.iter().map(|new| new.dek.wrapped.as_slice()).collect();

    let labels: Vec<_> =
        targets.values().flat_map(|(target, new)| secret_labels::moved(new, &target.places)).collect();
    let label_macs = labels.iter().map(|label| macs.seal(label)).collect::<Result<Vec<_>, _>>()?;
    let label_secret_ids: Vec<_> = labels.iter().map(|label| label.secret_id).collect();
    let label_names: Vec<_> = labels.iter().map(|label| label.label.to_owned()).collect();
    let label_versions: Vec<_> = labels.iter().map(|label| label.version).collect();
    let label_generations: Vec<_> = labels.iter().map(|label| label.generation).collect();

    // Nothing belongs to a secret that somebody else added meanwhile, under another id.
    let written = sqlx::query!(
        r#"WITH secret AS (
               INSERT INTO secrets (id, keyspace_id, path, newest_version, created_at)
               SELECT *, $1 FROM UNNEST($2::uuid[], $3::uuid[], $4::text[], $5::integer[])
               ON CONFLICT (path) DO UPDATE SET newest_version = excluded.newest_version WHERE secrets.id = excluded.id
               RETURNING id
           ), taken AS (
               SELECT count(*) = cardinality($2::uuid[]) AS are_all FROM secret
           ), version AS (
               INSERT INTO secret_versions (secret_id, version, payload, created_by, mac, created_at, generation)
               SELECT *, $1, 1 FROM UNNEST($6::uuid[], $7::integer[], $8::bytea[], $9::text[], $10::bytea[])
               WHERE (SELECT are_all FROM taken)
           ), dek AS (
               INSERT INTO deks (secret_id, version, id, keyspace_id, kek_id, kek_version, born_kek_version, wrapped)
               SELECT secret_id, version, id, keyspace_id, kek_id, kek_version, kek_version, wrapped
               FROM UNNEST($6::uuid[], $7::integer[], $11::uuid[], $12::uuid[], $13::uuid[], $14::integer[], $15::bytea[])
                    AS new (secret_id, version, id, keyspace_id, kek_id, kek_version, wrapped)
               WHERE (SELECT are_all FROM taken)
           ), label AS (
               INSERT INTO secret_labels (secret_id, label, version, generation, mac, updated_at)
               SELECT *, $1 FROM UNNEST($16::uuid[], $17::text[], $18::integer[], $19::bigint[], $20::bytea[])
               WHERE (SELECT are_all FROM taken)
               ON CONFLICT (secret_id, label)
               DO UPDATE SET version = excluded.version, generation = excluded.generation, mac = excluded.mac,
                             updated_at = excluded.updated_at
               WHERE secret_labels.generation = excluded.generation - 1
               RETURNING secret_id
           )
           SELECT (SELECT count(*) FROM secret) AS "secrets!", (SELECT count(*) FROM label) AS "labels!""#,
        at,
        &ids,
        &keyspace_ids,
        &paths,
        &newest,
        &version_secret_ids,
        &numbers,
        &payloads as _,
        &creators as _,
        &version_macs,
        &dek_ids,
        &dek_keyspace_ids,
        &kek_ids,
        &kek_versions,
        &wrapped as _,
        &label_secret_ids,
        &label_names,
        &label_versions,
        &label_generations,
        &label_macs
    )
    .fetch_one(&mut **tx)
    .await?;
    if usize::try_from(written.secrets) != Ok(paths.len())
        || usize::try_from(written.labels) != Ok(labels.len())
    {
        return Err(Error::Busy);
    }
    // Each version begins at generation 1, and each label rises by one, from 0 where it is new.
    tx.changes().secrets += (versions.len() + labels.len()).cast_signed() as i64;
    Ok(())
}
