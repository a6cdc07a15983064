//! Table `secrets`: secrets by path.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// A secret's row, locked.
pub struct Secret {
    /// Binds its blobs.
    pub id: Uuid,
    /// Its keyspace.
    pub keyspace_id: Uuid,
    /// The highest version number given out.
    pub newest_version: i32,
}

/// A secret as a list shows it.
pub struct SecretSummary {
    /// Its path.
    pub path: String,
    /// Where `current` points; absent when that version is hidden or gone.
    pub current_version: Option<i32>,
    /// The highest version number given out.
    pub newest_version: i32,
    /// When the newest version was written.
    pub updated_at: OffsetDateTime,
}

/// Takes the next version number of a path, creating the secret with version 1 if there is none. The row stays locked
/// until the transaction ends.
///
/// # Errors
/// Those of Postgres.
pub async fn next_version(
    connection: &mut PgConnection,
    new_id: Uuid,
    keyspace_id: Uuid,
    path: &str,
    at: OffsetDateTime,
) -> Result<Secret, Error> {
    Ok(sqlx::query_as!(
        Secret,
        "INSERT INTO secrets (id, keyspace_id, path, newest_version, created_at) VALUES ($1, $2, $3, 1, $4)
         ON CONFLICT (path) DO UPDATE SET newest_version = secrets.newest_version + 1
         RETURNING id, keyspace_id, newest_version",
        new_id,
        keyspace_id,
        path,
        at
    )
    .fetch_one(connection)
    .await?)
}

/// A secret, its row locked until the transaction ends.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection, path: &str) -> Result<Option<Secret>, Error> {
    Ok(sqlx::query_as!(
        Secret,
        "SELECT id, keyspace_id, newest_version FROM secrets WHERE path = $1 FOR UPDATE",
        path
    )
    .fetch_optional(connection)
    .await?)
}

/// Whether a keyspace has ever held a secret.
///
/// # Errors
/// Those of Postgres.
pub async fn any_in(connection: &mut PgConnection, keyspace_id: Uuid) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM secrets WHERE keyspace_id = $1) AS "any!""#,
        keyspace_id
    )
    .fetch_one(connection)
    .await?)
}

/// Up to `limit` secrets after the path `after`, in byte order: of all of them, or of those below `prefix`, those whose
/// path any of the regular expressions `listable` matches.
///
/// # Errors
/// Those of Postgres.
pub async fn page(
    connection: &mut PgConnection,
    prefix: &str,
    after: &str,
    listable: &[String],
    limit: i64,
) -> Result<Vec<SecretSummary>, Error> {
    // Paths below a/b lie between 'a/b/' and 'a/b0', for '0' is the character after '/'; segments hold neither '/'
    // nor anything that sorts above 'z'.
    let (from, to) = if prefix.is_empty() {
        (String::new(), "~".to_owned())
    } else {
        (format!("{prefix}/"), format!("{prefix}0"))
    };
    Ok(sqlx::query_as!(
        SecretSummary,
        r#"SELECT s.path, c.version AS "current_version?", s.newest_version, n.created_at AS updated_at
           FROM secrets s
           JOIN secret_versions n ON n.secret_id = s.id AND n.version = s.newest_version
           LEFT JOIN secret_labels l ON l.secret_id = s.id AND l.label = 'current'
           LEFT JOIN secret_versions c ON c.secret_id = s.id AND c.version = l.version
                AND c.deleted_at IS NULL AND c.destroyed_at IS NULL
           WHERE s.path >= $1 AND s.path < $2 AND s.path > $3 AND s.path ~ ANY ($4)
           ORDER BY s.path LIMIT $5"#,
        from,
        to,
        after,
        listable,
        limit
    )
    .fetch_all(connection)
    .await?)
}
