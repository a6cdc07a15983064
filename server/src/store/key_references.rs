//! What still needs a key, by Postgres's own catalog: tables that nobody has thought of count as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Error;

/// A foreign key to `keks`.
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// Its table, as SQL names it.
    pub table: String,
    /// `r` when a key's removal is refused as long as a row refers to it: `pg_constraint.confdeltype`.
    pub on_delete: String,
    /// Whether that holds in each statement, whatever a transaction wants.
    pub at_once: bool,
    /// The condition under which a row `r` of the table refers to a key `k`, as SQL.
    matches: String,
    /// The table's columns of bytes, as SQL names them.
    blobs: Vec<String>,
}

/// Locks the keys and the log's head, so that no other transaction holds or makes a reference to any key. Comes before all
/// else in a serialisable transaction: these statements take no snapshot, so what its statements see is what was
/// committed when the locks were had. A foreign key's check locks `keks` in a mode that conflicts until its transaction
/// ends, whatever table it is of; reads go on.
///
/// # Errors
/// Those of Postgres; `Error::is_lock_timeout` when another transaction holds a reference for longer than half a second.
pub async fn lock(connection: &mut PgConnection) -> Result<(), Error> {
    // Whoever writes a secret waits behind this.
    sqlx::query!("SET LOCAL lock_timeout = '500ms'").execute(&mut *connection).await?;
    sqlx::query!("LOCK TABLE keks IN EXCLUSIVE MODE").execute(&mut *connection).await?;
    // An entry that another transaction appends after the snapshot would fail this one, again and again.
    sqlx::query!("LOCK TABLE audit_head IN EXCLUSIVE MODE").execute(connection).await?;
    Ok(())
}

/// All foreign keys to `keks`, by table.
///
/// # Errors
/// Those of Postgres.
pub async fn foreign_keys(connection: &mut PgConnection) -> Result<Vec<ForeignKey>, Error> {
    Ok(sqlx::query_as!(
        ForeignKey,
        r#"SELECT c.conname::text AS "name!", c.conrelid::regclass::text AS "table!",
                  c.confdeltype::text AS "on_delete!", c.convalidated AND NOT c.condeferrable AS "at_once!",
                  (SELECT string_agg(format('r.%I = k.%I', own.attname, key.attname), ' AND ' ORDER BY pair.at)
                   FROM unnest(c.conkey, c.confkey) WITH ORDINALITY AS pair (own, key, at)
                   JOIN pg_attribute own ON own.attrelid = c.conrelid AND own.attnum = pair.own
                   JOIN pg_attribute key ON key.attrelid = c.confrelid AND key.attnum = pair.key) AS "matches!",
                  ARRAY(SELECT quote_ident(a.attname) FROM pg_attribute a
                        WHERE a.attrelid = c.conrelid AND a.atttypid = 'bytea'::regtype AND a.attnum > 0
                          AND NOT a.attisdropped ORDER BY a.attnum) AS "blobs!"
           FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid = 'keks'::regclass
           ORDER BY c.conrelid::regclass::text, c.conname"#
    )
    .fetch_all(connection)
    .await?)
}

/// Rows that refer to the key, by table; only tables that have some.
///
/// # Errors
/// Those of Postgres, also when a table may not be read.
pub async fn rows_under(
    connection: &mut PgConnection,
    foreign_keys: &[ForeignKey],
    kek_id: Uuid,
) -> Result<BTreeMap<String, i64>, Error> {
    let mut found = BTreeMap::new();
    for ForeignKey { table, matches, .. } in foreign_keys {
        let sql = format!("SELECT count(*) FROM {table} AS r JOIN keks AS k ON {matches} WHERE k.id = $1");
        note(&mut found, table, count(connection, table, sql, kek_id).await?);
    }
    Ok(found)
}

/// Blobs whose header names the key, by table and column, over all rows of all tables that refer to keys; only columns
/// that have some. A blob's header holds the id of its key in bytes 4 to 20.
///
/// # Errors
/// Those of Postgres, also when a table may not be read.
pub async fn blobs_under(
    connection: &mut PgConnection,
    foreign_keys: &[ForeignKey],
    kek_id: Uuid,
) -> Result<BTreeMap<String, i64>, Error> {
    let mut found = BTreeMap::new();
    for column in blob_columns(foreign_keys) {
        let Blob { table, name } = &column;
        // Positions count from 1.
        let sql =
            format!("SELECT count(*) FROM {table} WHERE substring({name} FROM 5 FOR 16) = uuid_send($1)");
        note(&mut found, &column.to_string(), count(connection, table, sql, kek_id).await?);
    }
    Ok(found)
}

/// A column of bytes, as SQL names it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    table: String,
    name: String,
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.table, self.name)
    }
}

/// The columns that `blobs_under` scans, each once.
pub fn blob_columns(foreign_keys: &[ForeignKey]) -> BTreeSet<Blob> {
    let mut columns = BTreeSet::new();
    for key in foreign_keys {
        let blob = |name: &String| Blob { table: key.table.clone(), name: name.clone() };
        columns.extend(key.blobs.iter().map(blob));
    }
    columns
}

/// Rows whose MAC a version of the row-mac key has made, by table: those of every table with a column `mac`, which begins
/// with that version.
///
/// # Errors
/// Those of Postgres.
pub async fn macs_under(connection: &mut PgConnection, version: i32) -> Result<BTreeMap<String, i64>, Error> {
    let tables = sqlx::query_scalar!(
        r#"SELECT c.oid::regclass::text AS "table!" FROM pg_class c
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'mac' AND a.atttypid = 'bytea'::regtype
                AND NOT a.attisdropped
           WHERE c.relkind IN ('r', 'p') AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'keks'::regclass)
           ORDER BY 1"#
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut found = BTreeMap::new();
    for table in tables {
        let sql = format!("SELECT count(*) FROM {table} WHERE substring(mac FROM 1 FOR 4) = int4send($1)");
        let count = sqlx::query_scalar(&sql).bind(version).fetch_one(&mut *connection).await?;
        note(&mut found, &table, count);
    }
    Ok(found)
}

/// Data keys in quarantine that the key wraps, by the quarantine or by their own row.
///
/// # Errors
/// Those of Postgres.
pub async fn quarantined_under(connection: &mut PgConnection, kek_id: Uuid) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM quarantined_deks q LEFT JOIN deks d ON d.id = q.dek_id
           WHERE q.kek_id = $1 OR d.kek_id = $1"#,
        kek_id
    )
    .fetch_one(connection)
    .await?)
}

/// Triggers of `keks` that are not enabled, those of its foreign keys included; and whether the one that guards material
/// is there.
///
/// # Errors
/// Those of Postgres.
pub async fn triggers(connection: &mut PgConnection) -> Result<(Vec<String>, bool), Error> {
    let rows = sqlx::query!(
        r#"SELECT t.tgname::text AS "name!", t.tgenabled IN ('O', 'A') AS "enabled!",
                  t.tgname = 'keks_destroyed_when_unneeded' AND p.proname = 'require_unneeded' AS "guards!"
           FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = 'keks'::regclass"#
    )
    .fetch_all(connection)
    .await?;
    let guarded = rows.iter().any(|row| row.guards);
    Ok((rows.into_iter().filter(|row| !row.enabled).map(|row| row.name).collect(), guarded))
}

/// Tries to remove the material of some key that wraps data keys, and takes that back whatever comes of it. Gives whether
/// Postgres refused; absent when no key of the installation wraps any.
///
/// # Errors
/// Those of Postgres.
pub async fn is_needed_material_kept(connection: &mut PgConnection) -> Result<Option<bool>, Error> {
    let Some(needed) =
        sqlx::query_scalar!("SELECT kek_id FROM deks LIMIT 1").fetch_optional(&mut *connection).await?
    else {
        return Ok(None);
    };
    sqlx::query!("SAVEPOINT trial").execute(&mut *connection).await?;
    let trial =
        sqlx::query!("UPDATE keks SET wrapped = NULL WHERE id = $1", needed).execute(&mut *connection).await;
    sqlx::query!("ROLLBACK TO SAVEPOINT trial").execute(connection).await?;
    // foreign_key_violation: what the trigger raises. A check of the table raises another one, once the trigger is gone.
    Ok(Some(trial.is_err_and(|error| {
        error.as_database_error().and_then(|error| error.code()).as_deref() == Some("23503")
    })))
}

async fn count(connection: &mut PgConnection, table: &str, sql: String, kek_id: Uuid) -> Result<i64, Error> {
    // The names in it are quoted by Postgres.
    let counted = sqlx::query_scalar(&sql).bind(kek_id).fetch_one(connection).await;
    counted.map_err(|error| match error.as_database_error().and_then(|error| error.code()).as_deref() {
        // insufficient_privilege
        Some("42501") => Error::Conflict(format!(
            "table {table} refers to keys, and the server may not read it: grant SELECT on it to the server's role"
        )),
        _ => error.into(),
    })
}

fn note(found: &mut BTreeMap<String, i64>, place: &str, rows: i64) {
    if rows > 0 {
        *found.entry(place.to_owned()).or_default() += rows;
    }
}
