//! Tables `audit_head` and `audit_entries`: the audit log.

use futures_util::TryStreamExt as _;
use keyfold_core::audit::{Entry, Outcome, leaf_hash};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    error::Error,
    store::{bases::Wanted, objects::unzipped},
};

/// Bytes of entries after which a page ends.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A stored entry.
pub struct StoredEntry {
    /// Its position.
    pub index: i64,
    /// The exact bytes that were hashed.
    pub entry: Vec<u8>,
    /// Their RFC 6962 leaf hash.
    pub leaf_hash: Vec<u8>,
}

/// Which entries a list shows; an absent filter matches everything.
#[derive(Debug, Default)]
pub struct Filter {
    /// The operation's name.
    pub operation: Option<String>,
    /// The actor's name.
    pub actor: Option<String>,
    /// A secret's path.
    pub path: Option<String>,
    /// `allowed` or `refused`.
    pub outcome: Option<String>,
    /// At this time or later.
    pub since: Option<OffsetDateTime>,
    /// Before this time.
    pub until: Option<OffsetDateTime>,
    /// Only lower indexes.
    pub before_index: Option<i64>,
}

/// Appends one entry; gives its index. This comes from the head row, whose lock is held until the transaction ends, so this is
/// best a transaction's last statement.
///
/// # Errors
/// Those of Postgres.
pub async fn append(
    connection: &mut PgConnection,
    at: OffsetDateTime,
    entry: &Entry<'_>,
) -> Result<i64, Error> {
    let bytes = entry.to_bytes();
    Ok(sqlx::query_scalar!(
        "WITH head AS (UPDATE audit_head SET size = size + 1 RETURNING size - 1 AS index)
         INSERT INTO audit_entries (index, at, operation, actor, outcome, paths, entry, leaf_hash, generation)
         SELECT head.index, $1, $2, $3, $4, $5, $6, $7, $8 FROM head RETURNING index",
        at,
        entry.operation.name(),
        entry.actor.name(),
        outcome(entry),
        &entry.operation.paths() as _,
        bytes,
        &leaf_hash(&bytes)[..],
        entry.generation.map(u64::cast_signed)
    )
    .fetch_one(connection)
    .await?)
}

/// Locks the head row until the transaction ends, and gives the number of entries: the next one's index.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT size FROM audit_head FOR UPDATE").fetch_one(connection).await?)
}

/// Appends entries where the transaction has looked by itself whether what they rest on stands.
///
/// # Errors
/// Those of Postgres; `Corrupt` outside READ COMMITTED.
pub async fn append_all(
    connection: &mut PgConnection,
    at: OffsetDateTime,
    entries: &[Entry<'_>],
) -> Result<(), Error> {
    append_if_stands(connection, at, entries, &Wanted::default()).await?.map(drop).ok_or_else(|| {
        Error::Corrupt("audit_entries: appended to in an isolation that does not see the log's end".into())
    })
}

/// Appends entries unless something that is `wanted` does not stand once the head row is locked: then nothing is written. Gives
/// the first one's index.
///
/// # Errors
/// Those of Postgres.
pub async fn append_if_stands(
    connection: &mut PgConnection,
    at: OffsetDateTime,
    entries: &[Entry<'_>],
    wanted: &Wanted,
) -> Result<Option<i64>, Error> {
    let mut rows = EntryRows::default();
    entries.iter().for_each(|entry| rows.push(entry));
    let (ids, generations) = unzipped(&wanted.objects);
    Ok(sqlx::query_scalar!(
        "SELECT append_audit_entries($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        at,
        &rows.operations as _,
        &rows.actors as _,
        &rows.outcomes as _,
        &rows.paths as _,
        &rows.first_paths,
        &rows.last_paths,
        &rows.entries,
        &rows.leaf_hashes,
        &rows.generations as _,
        &ids,
        &generations,
        &wanted.admin_tokens,
        wanted.revision,
        wanted.generation
    )
    .fetch_one(connection)
    .await?)
}

/// Sorts the paths of new entries into the index over them.
///
/// # Errors
/// Those of Postgres.
pub async fn sort_in_paths(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query!("SELECT sort_in_audit_paths()").fetch_one(connection).await?;
    Ok(())
}

/// The columns of entries that are to be written. Postgres has no arrays of arrays of different lengths, so the paths of
/// all entries are one array, of which each has a slice.
#[derive(Default)]
struct EntryRows<'a> {
    operations: Vec<&'static str>,
    actors: Vec<&'a str>,
    outcomes: Vec<&'static str>,
    paths: Vec<&'a str>,
    first_paths: Vec<i32>,
    last_paths: Vec<i32>,
    entries: Vec<Vec<u8>>,
    leaf_hashes: Vec<Vec<u8>>,
    generations: Vec<Option<i64>>,
}

impl<'a> EntryRows<'a> {
    fn push(&mut self, entry: &'a Entry<'_>) {
        let place = |paths: &[&str]| i32::try_from(paths.len()).unwrap_or(i32::MAX);
        self.first_paths.push(place(&self.paths) + 1);
        self.paths.extend(entry.operation.paths());
        self.last_paths.push(place(&self.paths));
        self.operations.push(entry.operation.name());
        self.actors.push(entry.actor.name());
        self.outcomes.push(outcome(entry));
        self.generations.push(entry.generation.map(u64::cast_signed));
        let bytes = entry.to_bytes();
        self.leaf_hashes.push(leaf_hash(&bytes).to_vec());
        self.entries.push(bytes);
    }
}

fn outcome(entry: &Entry<'_>) -> &'static str {
    match *entry.outcome {
        Outcome::Allowed => "allowed",
        Outcome::Refused { .. } => "refused",
    }
}

/// Up to `limit` entries that match, newest first; fewer when they are large. Only an empty page is the end.
///
/// # Errors
/// Those of Postgres.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<StoredEntry>, Error> {
    let mut rows = sqlx::query_as!(
        StoredEntry,
        "SELECT index, entry, leaf_hash FROM audit_entries
         WHERE ($1::text IS NULL OR operation = $1) AND ($2::text IS NULL OR actor = $2)
           AND ($3::text IS NULL OR paths @> ARRAY[$3]) AND ($4::text IS NULL OR outcome = $4)
           AND ($5::timestamptz IS NULL OR at >= $5) AND ($6::timestamptz IS NULL OR at < $6)
           AND ($7::bigint IS NULL OR index < $7)
         ORDER BY index DESC LIMIT $8",
        filter.operation,
        filter.actor,
        filter.path,
        filter.outcome,
        filter.since,
        filter.until,
        filter.before_index,
        limit
    )
    .fetch(connection);
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        bytes += row.entry.len();
        page.push(row);
        if bytes >= PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(page)
}

/// The number of entries.
///
/// # Errors
/// Those of Postgres.
pub async fn size(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT size FROM audit_head").fetch_one(connection).await?)
}

/// The newest entry that states a generation of the integrity head.
///
/// # Errors
/// Those of Postgres.
pub async fn newest_change(connection: &mut PgConnection) -> Result<Option<StoredEntry>, Error> {
    Ok(sqlx::query_as!(
        StoredEntry,
        "SELECT index, entry, leaf_hash FROM audit_entries WHERE generation IS NOT NULL ORDER BY index DESC LIMIT 1"
    )
    .fetch_optional(connection)
    .await?)
}

/// The leaf hash of an entry as it is stored, whatever its row says of it.
///
/// # Errors
/// Those of Postgres.
pub async fn leaf_hash_at(connection: &mut PgConnection, index: i64) -> Result<Option<Vec<u8>>, Error> {
    let entry = sqlx::query_scalar!("SELECT entry FROM audit_entries WHERE index = $1", index)
        .fetch_optional(connection)
        .await?;
    Ok(entry.map(|entry| leaf_hash(&entry).to_vec()))
}

/// The oldest entry that is left.
///
/// # Errors
/// Those of Postgres.
pub async fn oldest_index(connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    Ok(sqlx::query_scalar!("SELECT min(index) FROM audit_entries").fetch_one(connection).await?)
}

/// A change of guarded rows, as its entry's row states it.
pub struct Change {
    /// The operation's name.
    pub operation: String,
    /// The secrets that it concerns.
    pub paths: Vec<String>,
}

/// The changes of guarded rows from the entry `first_index` on, oldest first: `limit` at most.
///
/// # Errors
/// Those of Postgres.
pub async fn changes(
    connection: &mut PgConnection,
    first_index: i64,
    limit: i64,
) -> Result<Vec<Change>, Error> {
    Ok(sqlx::query_as!(
        Change,
        "SELECT operation, paths FROM audit_entries WHERE index >= $1 AND generation IS NOT NULL
         ORDER BY index LIMIT $2",
        first_index,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// When the last entry was written.
///
/// # Errors
/// Those of Postgres.
pub async fn last_entry_at(connection: &mut PgConnection) -> Result<Option<OffsetDateTime>, Error> {
    Ok(sqlx::query_scalar!("SELECT at FROM audit_entries ORDER BY index DESC LIMIT 1")
        .fetch_optional(connection)
        .await?)
}
