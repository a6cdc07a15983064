//! What allowances rest on, asked for at once: it is read while the log's head row is locked, and so by everybody in turn.

use sqlx::PgConnection;

use crate::{
    error::Error,
    store::objects::{Standing, unzipped},
};

/// What is to stand.
#[derive(Default)]
pub struct Wanted {
    /// Declared objects, as they were read.
    pub objects: Vec<Standing>,
    /// Administrators' tokens that are not revoked.
    pub admin_tokens: Vec<String>,
    /// Of what is declared.
    pub revision: Option<i64>,
    /// Of the integrity head.
    pub generation: Option<i64>,
}

/// What stands.
pub struct Found {
    /// Of the standings asked for, the places of those that are as they were read, from 1.
    pub objects: Vec<i64>,
    /// Of the administrators' tokens asked for, the names of those that are not revoked.
    pub admin_tokens: Vec<String>,
    /// Of the integrity head.
    pub generation: i64,
    /// Of what is declared.
    pub revision: i64,
}

/// Looks all of it up in one statement. Nothing is locked, and no MAC is checked: it is only compared with what was.
///
/// # Errors
/// Those of Postgres.
pub async fn find(
    connection: &mut PgConnection,
    objects: &[Standing],
    admin_tokens: &[String],
) -> Result<Found, Error> {
    let (ids, generations) = unzipped(objects);
    Ok(sqlx::query_as!(
        Found,
        r#"SELECT ARRAY(SELECT place FROM UNNEST($1::uuid[], $2::bigint[]) WITH ORDINALITY
                            AS wanted (id, generation, place) JOIN objects USING (id, generation)) AS "objects!",
                  ARRAY(SELECT name FROM admin_tokens WHERE name = ANY ($3) AND revoked_at IS NULL) AS "admin_tokens!",
                  generation, (SELECT revision FROM object_revision) AS "revision!"
           FROM integrity_head"#,
        &ids,
        &generations,
        admin_tokens
    )
    .fetch_one(connection)
    .await?)
}
