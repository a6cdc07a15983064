//! Table `secrets`: secrets by path.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::RowMacs,
    store::{secret_labels::Label, secret_versions::VersionState},
};

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
/// Those of Postgres; `Integrity`.
pub async fn page(
    connection: &mut PgConnection,
    macs: &RowMacs,
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
    let rows = sqlx::query_as!(
        ListedRow,
        r#"SELECT s.id, s.path, s.newest_version, n.created_at AS updated_at,
                  l.version AS "label_version?", l.generation AS "label_generation?", l.mac AS "label_mac?",
                  c.generation AS "generation?", c.deleted_at AS "deleted_at?", c.destroyed_at AS "destroyed_at?",
                  c.exposed_at AS "exposed_at?", c.exposed_kek_version AS "exposed_kek_version?", c.mac AS "mac?"
           FROM secrets s
           JOIN secret_versions n ON n.secret_id = s.id AND n.version = s.newest_version
           LEFT JOIN secret_labels l ON l.secret_id = s.id AND l.label = 'current'
           LEFT JOIN secret_versions c ON c.secret_id = s.id AND c.version = l.version
           WHERE s.path >= $1 AND s.path < $2 AND s.path > $3 AND s.path ~ ANY ($4)
           ORDER BY s.path LIMIT $5"#,
        from,
        to,
        after,
        listable,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.checked(macs)).collect()
}

/// A secret with the row of its label `current` and that of the version that this points at.
struct ListedRow {
    id: Uuid,
    path: String,
    newest_version: i32,
    updated_at: OffsetDateTime,
    label_version: Option<i32>,
    label_generation: Option<i64>,
    label_mac: Option<Vec<u8>>,
    generation: Option<i64>,
    deleted_at: Option<OffsetDateTime>,
    destroyed_at: Option<OffsetDateTime>,
    exposed_at: Option<OffsetDateTime>,
    exposed_kek_version: Option<i32>,
    mac: Option<Vec<u8>>,
}

impl ListedRow {
    fn checked(self, macs: &RowMacs) -> Result<SecretSummary, Error> {
        let label = (self.label_version, self.label_generation, self.label_mac);
        let current_version = match (label, self.generation, self.mac) {
            ((Some(version), Some(label_generation), Some(label_mac)), Some(generation), Some(mac)) => {
                let label =
                    Label { secret_id: self.id, label: "current", version, generation: label_generation };
                macs.check(&label, &label_mac)?;
                let state = VersionState {
                    secret_id: self.id,
                    version,
                    generation,
                    deleted_at: self.deleted_at,
                    destroyed_at: self.destroyed_at,
                    exposed_at: self.exposed_at,
                    exposed_kek_version: self.exposed_kek_version,
                    mac,
                };
                let state = state.checked(macs)?;
                (state.deleted_at.is_none() && state.destroyed_at.is_none()).then_some(version)
            }
            _ => None,
        };
        Ok(SecretSummary {
            path: self.path,
            current_version,
            newest_version: self.newest_version,
            updated_at: self.updated_at,
        })
    }
}
