//! What compromised keys reached, over `deks`, `secret_versions` and the audit log.
//!
//! A DEK that was born under the compromised version or an older one may have been wrapped by it: whoever has that key and
//! an old backup has the DEK. So born at or before the newest compromised version means reached, until the version has
//! another DEK. That is also the resume point of the re-encryption, and no mark is needed before it: what is not
//! encrypted anew yet is known by its DEK, and what is, is marked in the same statement that replaces its payload.

use ring::digest;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::RowMacs,
    store::{
        deks::WrappedDek,
        secret_versions::{StoredVersion, VersionState},
    },
};

/// Entries of the audit log, the newest about one secret, in which its holders are looked for.
const ENTRIES_MAX: i64 = 10_000;

/// Most holders of one secret that a list names.
const HOLDERS_MAX: i64 = 100;

/// The newest compromised version of a keyspace's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compromised {
    /// Counts up from 1.
    pub version: i32,
    /// When that was declared.
    pub compromised_at: OffsetDateTime,
}

/// A keyspace with payloads that wait to be encrypted anew.
pub struct Pending {
    /// Its id.
    pub keyspace_id: Uuid,
    /// Its name.
    pub keyspace: String,
}

/// How much a version of a key reached.
pub struct Reach {
    /// Payloads.
    pub payloads: i64,
    /// Secrets whose current version is among them.
    pub secrets: i64,
}

/// A secret whose current version is exposed.
pub struct ExposedSecret {
    /// Its path.
    pub path: String,
    /// Exposed versions that are not destroyed, oldest first.
    pub versions: Vec<i32>,
    /// When the key that reached the current one was declared compromised.
    pub exposed_at: OffsetDateTime,
    /// That key's version.
    pub key_version: i32,
}

/// Somebody who was given a version.
pub struct Holder {
    /// As entries name them.
    pub actor: String,
    /// The version.
    pub version: i32,
    /// When they were last given it.
    pub last_given_at: OffsetDateTime,
}

/// The newest compromised version of a keyspace's key, destroyed or not.
///
/// # Errors
/// Those of Postgres.
pub async fn newest_compromised(
    connection: &mut PgConnection,
    keyspace_id: Uuid,
) -> Result<Option<Compromised>, Error> {
    Ok(sqlx::query_as!(
        Compromised,
        r#"SELECT version, compromised_at AS "compromised_at!" FROM keks
           WHERE keyspace_id = $1 AND purpose = 'data' AND compromised_at IS NOT NULL
           ORDER BY version DESC LIMIT 1"#,
        keyspace_id
    )
    .fetch_optional(connection)
    .await?)
}

/// How much the version reached.
///
/// # Errors
/// Those of Postgres.
pub async fn reach(connection: &mut PgConnection, keyspace_id: Uuid, version: i32) -> Result<Reach, Error> {
    Ok(sqlx::query_as!(
        Reach,
        r#"SELECT count(*) AS "payloads!", count(l.secret_id) AS "secrets!"
           FROM deks d
           LEFT JOIN secret_labels l ON l.secret_id = d.secret_id AND l.version = d.version AND l.label = 'current'
           WHERE d.keyspace_id = $1 AND d.born_kek_version <= $2"#,
        keyspace_id,
        version
    )
    .fetch_one(connection)
    .await?)
}

/// Keyspaces with payloads to encrypt anew, those in quarantine aside.
///
/// # Errors
/// Those of Postgres.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<Pending>, Error> {
    Ok(sqlx::query_as!(
        Pending,
        r#"SELECT k.keyspace_id AS "keyspace_id!", o.name AS keyspace
           FROM (SELECT keyspace_id, max(version) AS version FROM keks
                 WHERE purpose = 'data' AND compromised_at IS NOT NULL GROUP BY keyspace_id) AS k
           JOIN objects o ON o.id = k.keyspace_id
           CROSS JOIN LATERAL (
               SELECT d.id FROM deks d WHERE d.keyspace_id = k.keyspace_id AND d.born_kek_version <= k.version
                   AND NOT EXISTS (SELECT 1 FROM quarantined_deks q WHERE q.dek_id = d.id)
               -- One step into an index: the planner would rather read all that it believes to be there.
               ORDER BY d.born_kek_version LIMIT 1) AS first
           ORDER BY o.name"#
    )
    .fetch_all(connection)
    .await?)
}

/// A version that is to be encrypted anew.
pub struct Claimed {
    /// Its DEK.
    pub dek_id: Uuid,
    /// How long its payload is.
    pub payload_bytes: i32,
}

/// Up to `limit` of a keyspace's versions that the compromised version reached, locked; those that another worker holds
/// are passed over, and those in quarantine.
///
/// # Errors
/// Those of Postgres.
pub async fn claim(
    connection: &mut PgConnection,
    keyspace_id: Uuid,
    version: i32,
    limit: i64,
) -> Result<Vec<Claimed>, Error> {
    Ok(sqlx::query_as!(
        Claimed,
        r#"SELECT d.id AS dek_id, octet_length(v.payload) AS "payload_bytes!"
           FROM deks d JOIN secret_versions v ON v.secret_id = d.secret_id AND v.version = d.version
           WHERE d.keyspace_id = $1 AND d.born_kek_version <= $2 AND v.payload IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM quarantined_deks q WHERE q.dek_id = d.id)
           ORDER BY d.born_kek_version LIMIT $3 FOR UPDATE OF d, v SKIP LOCKED"#,
        keyspace_id,
        version,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// A version that a compromised key reached, locked.
pub struct Reached {
    /// With all that opening it takes.
    pub stored: StoredVersion,
    /// What its row's MAC is over.
    pub state: VersionState,
}

/// The versions with these DEKs, locked; waits for workers that hold them. Those that have another DEK by then are left
/// out. Of a version whose row's MAC is wrong gives the DEK's id, and what is wrong.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(
    connection: &mut PgConnection,
    macs: &RowMacs,
    dek_ids: &[Uuid],
) -> Result<(Vec<Reached>, Vec<(Uuid, String)>), Error> {
    let rows = sqlx::query!(
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, v.generation, v.deleted_at, v.exposed_at, v.exposed_kek_version, v.mac,
                  d.id AS dek_id, d.kek_id, d.kek_version, k.state AS kek_state, d.wrapped AS wrapped_dek
           FROM deks d
           JOIN secrets s ON s.id = d.secret_id
           JOIN secret_versions v ON v.secret_id = d.secret_id AND v.version = d.version
           JOIN keks k ON k.id = d.kek_id
           WHERE d.id = ANY ($1) AND v.payload IS NOT NULL ORDER BY d.id FOR UPDATE OF d, v"#,
        dek_ids
    )
    .fetch_all(connection)
    .await?;
    let (mut reached, mut forged) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let (secret_id, version) = (row.secret_id, row.version);
        let state = VersionState {
            secret_id,
            version,
            generation: row.generation,
            deleted_at: row.deleted_at,
            destroyed_at: None,
            exposed_at: row.exposed_at,
            exposed_kek_version: row.exposed_kek_version,
            mac: row.mac,
        };
        let state = match state.checked(macs) {
            Ok(state) => state,
            Err(Error::Integrity { table, what }) => {
                forged.push((row.dek_id, format!("{table}: {what}")));
                continue;
            }
            Err(error) => return Err(error),
        };
        let stored = StoredVersion {
            path: row.path,
            secret_id,
            keyspace_id: row.keyspace_id,
            version,
            payload: row.payload,
            created_at: row.created_at,
            created_by: row.created_by,
            dek_id: row.dek_id,
            kek_id: row.kek_id,
            kek_version: row.kek_version,
            kek_state: row.kek_state,
            wrapped_dek: row.wrapped_dek,
        };
        reached.push(Reached { stored, state });
    }
    Ok((reached, forged))
}

/// A version encrypted anew.
pub struct Remade {
    /// As it was.
    pub old: Reached,
    /// Its new payload.
    pub payload: Vec<u8>,
    /// Its new DEK.
    pub dek: WrappedDek,
}

/// Puts new payloads and DEKs in the place of those that still are as they were read. Gives how many payloads and how
/// many DEKs.
///
/// # Errors
/// Those of Postgres; a trigger refuses a KEK that is not active.
pub async fn replace(connection: &mut PgConnection, remade: &[Remade]) -> Result<(u64, u64), Error> {
    let secret_ids: Vec<_> = remade.iter().map(|remade| remade.old.stored.secret_id).collect();
    let versions: Vec<_> = remade.iter().map(|remade| remade.old.stored.version).collect();
    let hashes: Vec<_> = remade.iter().map(|remade| sha256(&remade.old.stored.payload)).collect();
    let payloads: Vec<_> = remade.iter().map(|remade| remade.payload.as_slice()).collect();
    let rewritten = sqlx::query!(
        "UPDATE secret_versions v SET payload = new.payload
         FROM UNNEST($1::uuid[], $2::integer[], $3::bytea[], $4::bytea[])
              AS new (secret_id, version, old_sha256, payload)
         WHERE v.secret_id = new.secret_id AND v.version = new.version AND sha256(v.payload) = new.old_sha256",
        &secret_ids,
        &versions,
        &hashes,
        &payloads as _
    )
    .execute(&mut *connection)
    .await?;
    Ok((rewritten.rows_affected(), replace_deks(connection, remade).await?))
}

async fn replace_deks(connection: &mut PgConnection, remade: &[Remade]) -> Result<u64, Error> {
    let old_ids: Vec<_> = remade.iter().map(|remade| remade.old.stored.dek_id).collect();
    // What opens has no place there.
    sqlx::query!("DELETE FROM quarantined_deks WHERE dek_id = ANY ($1)", &old_ids)
        .execute(&mut *connection)
        .await?;
    let old_wrapped: Vec<_> = remade.iter().map(|remade| remade.old.stored.wrapped_dek.as_slice()).collect();
    let ids: Vec<_> = remade.iter().map(|remade| remade.dek.id).collect();
    let wrapped: Vec<_> = remade.iter().map(|remade| remade.dek.wrapped.as_slice()).collect();
    let kek_ids: Vec<_> = remade.iter().map(|remade| remade.dek.kek_id).collect();
    let kek_versions: Vec<_> = remade.iter().map(|remade| remade.dek.kek_version).collect();
    let done = sqlx::query!(
        "UPDATE deks SET id = new.id, kek_id = new.kek_id, kek_version = new.kek_version,
                born_kek_version = new.kek_version, wrapped = new.wrapped
         FROM UNNEST($1::uuid[], $2::bytea[], $3::uuid[], $4::bytea[], $5::uuid[], $6::integer[])
              AS new (old_id, old_wrapped, id, wrapped, kek_id, kek_version)
         WHERE deks.id = new.old_id AND deks.wrapped = new.old_wrapped",
        &old_ids,
        &old_wrapped as _,
        &ids,
        &wrapped as _,
        &kek_ids,
        &kek_versions
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

/// Up to `limit` secrets of a keyspace after the path `after`, in byte order, whose current version is exposed and not
/// destroyed.
///
/// # Errors
/// Those of Postgres.
pub async fn list(
    connection: &mut PgConnection,
    keyspace_id: Uuid,
    after: &str,
    limit: i64,
) -> Result<Vec<ExposedSecret>, Error> {
    let newest = newest_compromised(connection, keyspace_id).await?.map(|compromised| compromised.version);
    Ok(sqlx::query_as!(
        ExposedSecret,
        r#"SELECT s.path, k.compromised_at AS "exposed_at!", k.version AS key_version,
                  ARRAY(SELECT v.version FROM secret_versions v
                        JOIN deks d ON d.secret_id = v.secret_id AND d.version = v.version
                        WHERE v.secret_id = s.id AND v.destroyed_at IS NULL
                          AND (v.exposed_at IS NOT NULL OR d.born_kek_version <= $4)
                        ORDER BY v.version) AS "versions!"
           FROM secrets s
           JOIN secret_labels l ON l.secret_id = s.id AND l.label = 'current'
           JOIN secret_versions c ON c.secret_id = s.id AND c.version = l.version AND c.destroyed_at IS NULL
           JOIN deks d ON d.secret_id = s.id AND d.version = l.version
           JOIN keks k ON k.keyspace_id = s.keyspace_id AND k.purpose = 'data'
                AND k.version = CASE WHEN d.born_kek_version <= $4 THEN $4 ELSE c.exposed_kek_version END
           WHERE s.keyspace_id = $1 AND s.path > $2 ORDER BY s.path LIMIT $3"#,
        keyspace_id,
        after,
        limit,
        newest
    )
    .fetch_all(connection)
    .await?)
}

/// Who was given one of these versions of a secret, by the newest entries about it: latest first.
///
/// # Errors
/// Those of Postgres.
pub async fn holders(
    connection: &mut PgConnection,
    path: &str,
    versions: &[i32],
) -> Result<Vec<Holder>, Error> {
    Ok(sqlx::query_as!(
        Holder,
        r#"SELECT actor AS "actor!", version AS "version!", max(at) AS "last_given_at!"
           FROM (SELECT e.actor, e.at, COALESCE(
                        j.entry #>> '{operation,version}',
                        jsonb_path_query_first(j.entry, '$.operation.items[*] ? (@.path == $path).version',
                                               jsonb_build_object('path', $1::text)) #>> '{}')::integer AS version
                 FROM (SELECT actor, at, entry FROM audit_entries
                       WHERE paths @> ARRAY[$1::text] AND operation IN ('secret.issue', 'secret.get')
                         AND outcome = 'allowed' ORDER BY index DESC LIMIT $3) AS e
                 CROSS JOIN LATERAL (SELECT convert_from(e.entry, 'UTF8')::jsonb AS entry) AS j) AS given
           WHERE version = ANY ($2)
           GROUP BY actor, version ORDER BY max(at) DESC, actor, version LIMIT $4"#,
        path,
        versions,
        ENTRIES_MAX,
        HOLDERS_MAX
    )
    .fetch_all(connection)
    .await?)
}
