//! Table `deks`: data-encryption keys.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Error;

/// A DEK at rest.
pub struct WrappedDek {
    /// Names it in the payload's header.
    pub id: Uuid,
    /// Its secret.
    pub secret_id: Uuid,
    /// Its version of the secret.
    pub version: i32,
    /// The secret's keyspace.
    pub keyspace_id: Uuid,
    /// Which KEK wraps it.
    pub kek_id: Uuid,
    /// That KEK's version.
    pub kek_version: i32,
    /// The blob.
    pub wrapped: Vec<u8>,
}

/// What is left to be moved in a keyspace.
pub struct Leftover {
    /// The keyset.
    pub keyset_id: Uuid,
    /// The keyspace.
    pub keyspace_id: Uuid,
    /// Its name.
    pub keyspace: String,
    /// The oldest version that still wraps something.
    pub from_version: i32,
}

/// The keyspaces in which a deactivated KEK wraps DEKs that are not in quarantine. Those under a compromised KEK are not
/// moved but encrypted anew.
///
/// # Errors
/// Those of Postgres.
pub async fn leftovers(connection: &mut PgConnection) -> Result<Vec<Leftover>, Error> {
    Ok(sqlx::query_as!(
        Leftover,
        r#"SELECT DISTINCT ON (o.name)
                  s.id AS keyset_id, o.id AS keyspace_id, o.name AS keyspace, k.version AS from_version
           FROM keks k JOIN objects o ON o.id = k.keyspace_id
           JOIN keysets s ON s.keyspace_id = k.keyspace_id AND s.purpose = k.purpose
           CROSS JOIN LATERAL (
               SELECT d.id FROM deks d WHERE d.keyspace_id = k.keyspace_id AND d.kek_version = k.version
                   AND NOT EXISTS (SELECT 1 FROM quarantined_deks q WHERE q.dek_id = d.id)
               -- One step into an index: the planner would rather read all that it believes to be there.
               ORDER BY d.id LIMIT 1) AS first
           WHERE k.purpose = 'data' AND k.state = 'deactivated'
           ORDER BY o.name, k.version"#
    )
    .fetch_all(connection)
    .await?)
}

/// Has the transaction's statements walk indexes step by step, and not compile themselves. While a rewrap moves every row,
/// what the planner believes of them is always old, and each batch would read and sort all of them.
///
/// # Errors
/// Those of Postgres.
pub async fn walk_indexes(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query!(
        "SELECT count(set_config(name, 'off', true))
         FROM UNNEST(ARRAY['enable_seqscan', 'enable_bitmapscan', 'enable_sort', 'jit']) AS name"
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Up to `limit` of the DEKs behind `after` that a KEK wraps, by id, locked. Rows that another worker holds are passed over, and so are those in
/// quarantine.
///
/// # Errors
/// Those of Postgres.
pub async fn claim(
    connection: &mut PgConnection,
    keyspace_id: Uuid,
    kek_version: i32,
    after: Uuid,
    limit: i64,
) -> Result<Vec<WrappedDek>, Error> {
    Ok(sqlx::query_as!(
        WrappedDek,
        "SELECT id, secret_id, version, keyspace_id, kek_id, kek_version, wrapped FROM deks d
         WHERE keyspace_id = $1 AND kek_version = $2 AND id > $3
             AND NOT EXISTS (SELECT 1 FROM quarantined_deks q WHERE q.dek_id = d.id)
         ORDER BY id LIMIT $4
         FOR UPDATE OF d SKIP LOCKED",
        keyspace_id,
        kek_version,
        after,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// DEKs wrapped anew: each with what wrapped it until now.
#[derive(Default)]
pub struct Moved {
    /// Whose.
    pub ids: Vec<Uuid>,
    /// The blobs that stood.
    pub before: Vec<Vec<u8>>,
    /// The blobs that are to stand.
    pub after: Vec<Vec<u8>>,
}

impl Moved {
    /// None yet, with room for `count`.
    pub fn with_capacity(count: usize) -> Self {
        Self {
            ids: Vec::with_capacity(count),
            before: Vec::with_capacity(count),
            after: Vec::with_capacity(count),
        }
    }
}

/// Writes DEKs wrapped anew under one KEK, in one statement: each only where the old blob under the old KEK still stands.
/// Gives how many did.
///
/// # Errors
/// Those of Postgres.
pub async fn rewrap(
    connection: &mut PgConnection,
    from_kek: Uuid,
    (kek_id, kek_version): (Uuid, i32),
    moved: &Moved,
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "UPDATE deks SET kek_id = $2, kek_version = $3, wrapped = moved.after
         FROM UNNEST($4::uuid[], $5::bytea[], $6::bytea[]) AS moved (id, before, after)
         WHERE deks.id = moved.id AND deks.kek_id = $1 AND deks.wrapped = moved.before",
        from_kek,
        kek_id,
        kek_version,
        &moved.ids,
        &moved.before,
        &moved.after
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// How the DEKs of a keyspace stand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Under the active KEK.
    pub done: u64,
    /// Of those, moved there from an older one.
    pub moved: u64,
    /// Under a deactivated KEK, without those in quarantine.
    pub pending: u64,
    /// Born under a compromised KEK or one before it: their payloads are to be encrypted anew.
    pub reencryptions_pending: u64,
    /// In quarantine.
    pub quarantined: u64,
}

/// How the DEKs of one keyspace stand.
///
/// # Errors
/// Those of Postgres.
pub async fn counts(connection: &mut PgConnection, keyspace_id: Uuid) -> Result<Counts, Error> {
    let found = sqlx::query!(
        // Counted before anything is joined: a join would take each of the rows by itself.
        r#"WITH compromised AS (
               SELECT max(version) AS version FROM keks
               WHERE keyspace_id = $1 AND purpose = 'data' AND compromised_at IS NOT NULL
           ), counted AS (
               SELECT kek_version, born_kek_version, count(*) AS deks, 0 AS quarantined
               FROM deks WHERE keyspace_id = $1 GROUP BY 1, 2
               UNION ALL
               SELECT d.kek_version, d.born_kek_version, 0, count(*)
               FROM quarantined_deks q JOIN deks d ON d.id = q.dek_id WHERE q.keyspace_id = $1 GROUP BY 1, 2
           )
           SELECT coalesce(sum(n.deks) FILTER (WHERE k.state = 'active'), 0)::bigint AS "done!",
                  coalesce(sum(n.deks) FILTER (WHERE k.state = 'active' AND n.born_kek_version < n.kek_version), 0)::bigint
                      AS "moved!",
                  coalesce(sum(n.deks - n.quarantined) FILTER (WHERE k.state = 'deactivated'), 0)::bigint AS "pending!",
                  coalesce(sum(n.deks - n.quarantined) FILTER (WHERE n.born_kek_version <= c.version), 0)::bigint
                      AS "reencryptions_pending!",
                  coalesce(sum(n.quarantined), 0)::bigint AS "quarantined!"
           FROM counted n CROSS JOIN compromised c
           JOIN keks k ON k.keyspace_id = $1 AND k.purpose = 'data' AND k.version = n.kek_version"#,
        keyspace_id
    )
    .fetch_one(connection)
    .await?;
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(Counts {
        done: count(found.done),
        moved: count(found.moved),
        pending: count(found.pending),
        reencryptions_pending: count(found.reencryptions_pending),
        quarantined: count(found.quarantined),
    })
}

/// Removes the DEKs of destroyed versions.
///
/// # Errors
/// Those of Postgres.
pub async fn delete(connection: &mut PgConnection, secret_id: Uuid, versions: &[i32]) -> Result<(), Error> {
    sqlx::query!("DELETE FROM deks WHERE secret_id = $1 AND version = ANY ($2)", secret_id, versions)
        .execute(connection)
        .await?;
    Ok(())
}
