//! Table `objects`: what operators declare.

use keyfold_core::{
    name::ObjectName,
    object::{Kind, Spec},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

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
}

impl TryFrom<Row> for Object {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let corrupt = |column: &str| Error::Corrupt(format!("objects.{column} of {} {}", row.kind, row.name));
        Ok(Self {
            id: row.id,
            kind: Kind::parse(&row.kind).map_err(|_| corrupt("kind"))?,
            name: ObjectName::try_from(row.name.as_str()).map_err(|_| corrupt("name"))?,
            generation: u64::try_from(row.generation).map_err(|_| corrupt("generation"))?,
            spec_json: row.spec,
            updated_at: row.updated_at,
        })
    }
}

/// One object.
///
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection, kind: Kind, name: &str) -> Result<Option<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at FROM objects WHERE kind = $1 AND name = $2",
        kind.as_str(),
        name
    )
    .fetch_optional(connection)
    .await?
    .map(Object::try_from)
    .transpose()
}

/// One object, kept as it is by a row lock until the transaction ends. Rows may be added that refer to it meanwhile.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection, kind: Kind, name: &str) -> Result<Option<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at FROM objects
         WHERE kind = $1 AND name = $2 FOR NO KEY UPDATE",
        kind.as_str(),
        name
    )
    .fetch_optional(connection)
    .await?
    .map(Object::try_from)
    .transpose()
}

/// All objects of one kind, or of all, by kind and name.
///
/// # Errors
/// Those of Postgres.
pub async fn list(connection: &mut PgConnection, kind: Option<Kind>) -> Result<Vec<Object>, Error> {
    sqlx::query_as!(
        Row,
        "SELECT id, kind, name, spec, generation, updated_at FROM objects
         WHERE $1::text IS NULL OR kind = $1 ORDER BY kind, name",
        kind.map(Kind::as_str)
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Object::try_from)
    .collect()
}

/// Adds an object, unless one of the kind and name stands already.
///
/// # Errors
/// `Conflict` when another caller created it at the same time; those of Postgres.
pub async fn insert(connection: &mut PgConnection, object: &Object) -> Result<(), Error> {
    let done = sqlx::query!(
        "INSERT INTO objects (id, kind, name, spec, generation, updated_at) VALUES ($1, $2, $3, $4, 1, $5)
         ON CONFLICT (kind, name) DO NOTHING",
        object.id,
        object.kind.as_str(),
        object.name.as_str(),
        object.spec_json,
        object.updated_at
    )
    .execute(connection)
    .await?;
    match done.rows_affected() {
        1 => Ok(()),
        _ => Err(Error::Conflict(format!(
            "{} {} was created by another caller at the same time: apply again",
            object.kind.as_str(),
            object.name
        ))),
    }
}

/// Writes a changed spec and raises the generation.
///
/// # Errors
/// Those of Postgres.
pub async fn update(
    connection: &mut PgConnection,
    id: Uuid,
    spec_json: &str,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE objects SET spec = $2, generation = generation + 1, updated_at = $3 WHERE id = $1",
        id,
        spec_json,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes an object.
///
/// # Errors
/// Those of Postgres; rows that refer to it stop it.
pub async fn delete(connection: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query!("DELETE FROM objects WHERE id = $1", id).execute(connection).await?;
    Ok(())
}

/// An object in one of its generations: what a decision rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

fn unzipped(basis: &[Standing]) -> (Vec<Uuid>, Vec<i64>) {
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
