//! Table `objects`: what operators declare.

use futures_util::TryStreamExt as _;
use keyfold_core::{
    name::ObjectName,
    object::{Kind, Spec},
    row_mac::RowEncoder,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::{
        Macs, RowChange,
        row_macs::{Guarded, RowMacs},
    },
    store::Tx,
};

/// A declared object.
#[derive(Debug, Clone)]
pub struct Object {
    /// A keyspace's id binds its blobs.
    pub id: Uuid,
    /// Its kind.
    pub kind: Kind,
    /// Its name, unique within the kind.
    pub name: ObjectName,
    /// The canonical JSON of its spec.
    pub spec_json: String,
    /// Rises by one with each change.
    pub generation: u64,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
    /// Over what is above but `updated_at`; empty for one that is not written.
    pub mac: Vec<u8>,
}

impl Object {
    /// The object in this generation.
    pub fn standing(&self) -> Standing {
        Standing { id: self.id, generation: self.generation }
    }

    /// The parsed spec.
    ///
    /// # Errors
    /// `Corrupt` when the stored text does not parse: it was checked when it was written.
    pub fn spec(&self) -> Result<Spec, Error> {
        Spec::parse(self.kind, &self.spec_json).map_err(|error| {
            Error::Corrupt(format!("objects.spec of {} {}: {error}", self.kind.as_str(), self.name))
        })
    }
}

struct Row {
    id: Uuid,
    kind: String,
    name: String,
    spec: String,
    generation: i64,
    updated_at: OffsetDateTime,
    mac: Vec<u8>,
}

impl Guarded for Row {
    const TABLE: &'static str = "objects";

    fn which(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.id).str(&self.kind).str(&self.name).str(&self.spec).i64(self.generation)
    }
}

impl Row {
    fn checked(self, macs: &RowMacs) -> Result<Object, Error> {
        macs.check(&self, &self.mac)?;
        let row = self;
        let corrupt = |column: &str| Error::Corrupt(format!("objects.{column} of {} {}", row.kind, row.name));
        Ok(Object {
            id: row.id,
            kind: Kind::parse(&row.kind).map_err(|_| corrupt("kind"))?,
            name: ObjectName::try_from(row.name.as_str()).map_err(|_| corrupt("name"))?,
            generation: u64::try_from(row.generation).map_err(|_| corrupt("generation"))?,
            spec_json: row.spec,
            updated_at: row.updated_at,
            mac: row.mac,
        })
    }

    /// As the object is to be written.
    fn of(object: &Object) -> Self {
        Self {
            id: object.id,
            kind: object.kind.as_str().to_owned(),
            name: object.name.to_string(),
            spec: object.spec_json.clone(),
            generation: object.generation.cast_signed(),
            updated_at: object.updated_at,
            mac: Vec::new(),
        }
    }
}

/// One object.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn find(
    connection: &mut PgConnection,
    macs: &RowMacs,
    kind: Kind,
    name: &str,
) -> Result<Option<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at, mac FROM objects WHERE kind = $1 AND name = $2",
        kind.as_str(),
        name
    )
    .fetch_optional(connection)
    .await?
    .map(|row| row.checked(macs))
    .transpose()
}

/// One object, kept as it is by a row lock until the transaction ends. Rows may be added that refer to it meanwhile.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn lock(
    connection: &mut PgConnection,
    macs: &RowMacs,
    kind: Kind,
    name: &str,
) -> Result<Option<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at, mac FROM objects
         WHERE kind = $1 AND name = $2 FOR NO KEY UPDATE",
        kind.as_str(),
        name
    )
    .fetch_optional(connection)
    .await?
    .map(|row| row.checked(macs))
    .transpose()
}

/// All objects of one kind, or of all, by kind and name.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn list(
    connection: &mut PgConnection,
    macs: &RowMacs,
    kind: Option<Kind>,
) -> Result<Vec<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at, mac FROM objects
         WHERE $1::text IS NULL OR kind = $1 ORDER BY kind, name",
        kind.map(Kind::as_str)
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(|row| row.checked(macs))
    .collect()
}

/// The MACs of all objects, and of all administrators' tokens, which are in one digest; unchecked.
///
/// # Errors
/// Those of Postgres.
pub async fn declared_macs(connection: &mut PgConnection) -> Result<Macs, Error> {
    let mut rows = sqlx::query!(
        r#"SELECT id AS "id!", mac AS "mac!" FROM objects UNION ALL SELECT id, mac FROM admin_tokens"#
    )
    .fetch(connection);
    let mut found = Macs::new();
    while let Some(row) = rows.try_next().await? {
        found.insert((row.id, row.mac));
    }
    Ok(found)
}

/// Adds an object, unless one of the kind and name stands already.
///
/// # Errors
/// `Conflict` when another caller created it at the same time; those of Postgres.
pub async fn insert(tx: &mut Tx, macs: &RowMacs, object: &Object) -> Result<(), Error> {
    let row = Row::of(object);
    let mac = macs.seal(&row)?;
    let done = sqlx::query!(
        "INSERT INTO objects (id, kind, name, spec, generation, updated_at, mac) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (kind, name) DO NOTHING",
        row.id,
        row.kind,
        row.name,
        row.spec,
        row.generation,
        row.updated_at,
        mac
    )
    .execute(&mut **tx)
    .await?;
    match done.rows_affected() {
        1 => {
            tx.changes().declared.push(RowChange::added(row.id, &mac));
            Ok(())
        }
        _ => Err(Error::Conflict(format!(
            "{} {} was created by another caller at the same time: apply again",
            row.kind, row.name
        ))),
    }
}

/// Writes a changed object, whose row is locked and whose generation is the next one.
///
/// # Errors
/// Those of Postgres.
pub async fn update(tx: &mut Tx, macs: &RowMacs, before: &Object, after: &Object) -> Result<(), Error> {
    let row = Row::of(after);
    let mac = macs.seal(&row)?;
    sqlx::query!(
        "UPDATE objects SET spec = $2, generation = $3, updated_at = $4, mac = $5 WHERE id = $1",
        row.id,
        row.spec,
        row.generation,
        row.updated_at,
        mac
    )
    .execute(&mut **tx)
    .await?;
    tx.changes().declared.push(RowChange::changed(row.id, &before.mac, &mac));
    Ok(())
}

/// Removes an object, whose row is locked.
///
/// # Errors
/// Those of Postgres; rows that refer to it stop it.
pub async fn delete(tx: &mut Tx, object: &Object) -> Result<(), Error> {
    sqlx::query!("DELETE FROM objects WHERE id = $1", object.id).execute(&mut **tx).await?;
    tx.changes().declared.push(RowChange::removed(object.id, &object.mac));
    Ok(())
}

/// Makes the MACs anew that an older row-mac key made. Gives their number.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(tx: &mut Tx, macs: &RowMacs) -> Result<u64, Error> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at, mac FROM objects ORDER BY id FOR NO KEY UPDATE"
    )
    .fetch_all(&mut **tx)
    .await?;
    let (mut ids, mut remade) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(mac) = macs.reseal(row, &row.mac)? else { continue };
        tx.changes().declared.push(RowChange::changed(row.id, &row.mac, &mac));
        ids.push(row.id);
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE objects SET mac = n.mac FROM UNNEST($1::uuid[], $2::bytea[]) AS n (id, mac) WHERE objects.id = n.id",
        &ids,
        &remade
    )
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected())
}

/// An object in one of its generations: what a decision rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Standing {
    /// The object's id, so that one that was deleted and created again is another.
    pub id: Uuid,
    /// Its generation.
    pub generation: u64,
}

/// Whether all of `basis` are as they were read: neither changed, nor deleted, nor deleted and created again.
///
/// # Errors
/// Those of Postgres.
pub async fn stand_unchanged(connection: &mut PgConnection, basis: &[Standing]) -> Result<bool, Error> {
    let (ids, generations) = unzipped(basis);
    let standing = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM objects
           JOIN UNNEST($1::uuid[], $2::bigint[]) AS wanted (id, generation) USING (id, generation)"#,
        &ids,
        &generations
    )
    .fetch_one(connection)
    .await?;
    Ok(usize::try_from(standing) == Ok(basis.len()))
}

/// Ids and generations, apart, as a statement takes them.
pub(super) fn unzipped(basis: &[Standing]) -> (Vec<Uuid>, Vec<i64>) {
    basis.iter().map(|standing| (standing.id, standing.generation.cast_signed())).unzip()
}

/// The same for a transaction that will raise it: others that would wait until it ends.
///
/// # Errors
/// Those of Postgres.
pub async fn lock_revision(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT revision FROM object_revision FOR UPDATE").fetch_one(connection).await?)
}

/// Rises with each change of any object or administrator's token.
///
/// # Errors
/// Those of Postgres.
pub async fn revision(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT revision FROM object_revision").fetch_one(connection).await?)
}
