//! Table `replicas`: one row a running server. All times are Postgres' own: no two servers' clocks are compared, but each
//! compares its own with that of Postgres.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// What a replica tells the others.
pub struct Beat<'a> {
    /// Made anew with each start.
    pub id: Uuid,
    /// The host's name.
    pub name: &'a str,
    /// The server's version.
    pub version: &'a str,
    /// The epoch whose keys it holds and has tested.
    pub key_epoch: i64,
    /// Pre-active keys that it cannot use.
    pub failed_keks: &'a [Uuid],
    /// What is wrong with it, for people.
    pub failure: Option<&'a str>,
}

/// A replica as the others see it.
pub struct Replica {
    /// Made anew with each start.
    pub id: Uuid,
    /// The host's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// Its last sign of life.
    pub heartbeat_at: OffsetDateTime,
    /// Whether it holds the keys of the newest epoch.
    pub holds_newest_keys: bool,
    /// What is wrong with it, for people.
    pub failure: Option<String>,
}

/// The newest epoch of the keys.
///
/// # Errors
/// Those of Postgres.
pub async fn key_epoch(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!("SELECT epoch FROM key_epoch").fetch_one(connection).await?)
}

/// Writes a sign of life. Gives Postgres' time.
///
/// # Errors
/// Those of Postgres.
pub async fn beat(connection: &mut PgConnection, beat: &Beat<'_>) -> Result<OffsetDateTime, Error> {
    Ok(sqlx::query_scalar!(
        "INSERT INTO replicas (id, name, version, started_at, heartbeat_at, key_epoch, failed_keks, failure)
         VALUES ($1, $2, $3, clock_timestamp(), clock_timestamp(), $4, $5, $6)
         ON CONFLICT (id) DO UPDATE
             SET heartbeat_at = clock_timestamp(), key_epoch = $4, failed_keks = $5, failure = $6
         RETURNING heartbeat_at",
        beat.id,
        beat.name,
        beat.version,
        beat.key_epoch,
        beat.failed_keks,
        beat.failure
    )
    .fetch_one(connection)
    .await?)
}

/// What keeps a key of `epoch` from being used: the live replicas that do not hold it, or cannot use it, in words. A
/// replica that has been silent for 5 s counts as gone: it has stopped encrypting by then.
///
/// # Errors
/// Those of Postgres.
pub async fn lacking(connection: &mut PgConnection, kek_id: Uuid, epoch: i64) -> Result<Vec<String>, Error> {
    let found = sqlx::query!(
        "SELECT name, failure FROM replicas
         WHERE heartbeat_at > clock_timestamp() - interval '5 s' AND (key_epoch < $1 OR $2 = ANY (failed_keks))
         ORDER BY name, id",
        epoch,
        kek_id
    )
    .fetch_all(connection)
    .await?;
    let words = |name, failure| match failure {
        Some(failure) => format!("replica {name}: {failure}"),
        None => format!("replica {name} has not taken on the new key yet"),
    };
    Ok(found.into_iter().map(|row| words(row.name, row.failure)).collect())
}

/// The live replicas, by name.
///
/// # Errors
/// Those of Postgres.
pub async fn live(connection: &mut PgConnection) -> Result<Vec<Replica>, Error> {
    Ok(sqlx::query_as!(
        Replica,
        r#"SELECT id, name, version, heartbeat_at,
                  key_epoch = (SELECT epoch FROM key_epoch) AS "holds_newest_keys!", failure
           FROM replicas WHERE heartbeat_at > clock_timestamp() - interval '5 s' ORDER BY name, id"#
    )
    .fetch_all(connection)
    .await?)
}

/// Removes a replica that stops.
///
/// # Errors
/// Those of Postgres.
pub async fn remove(connection: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query!("DELETE FROM replicas WHERE id = $1", id).execute(connection).await?;
    Ok(())
}

/// Removes those that have been silent for a day.
///
/// # Errors
/// Those of Postgres.
pub async fn remove_silent(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query!("DELETE FROM replicas WHERE heartbeat_at < clock_timestamp() - interval '1 day'")
        .execute(connection)
        .await?;
    Ok(())
}
