//! Table `secret_labels`: which version is current, previous or pending.

use keyfold_core::row_mac::RowEncoder;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::{Guarded, RowMacs},
    store::Tx,
};

/// A label as its row's MAC authenticates it.
pub struct Label<'a> {
    /// The secret.
    pub secret_id: Uuid,
    /// The label.
    pub label: &'a str,
    /// Where it points.
    pub version: i32,
    /// Rises by one with each change.
    pub generation: i64,
}

impl Guarded for Label<'_> {
    const TABLE: &'static str = "secret_labels";

    fn which(&self) -> String {
        format!("{} of secret {}", self.label, self.secret_id)
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.secret_id).str(self.label).i64(self.version.into()).i64(self.generation)
    }
}

/// A version that is to be a secret's current one.
pub struct NewCurrent {
    /// The secret.
    pub secret_id: Uuid,
    /// The version.
    pub version: i32,
    /// The one that the same transaction wrote before it, which then was current for a moment.
    pub replaced: Option<i32>,
}

/// Where `current` and `previous` of a secret point, each with its generation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// The version that is read.
    pub current: Option<(i32, i64)>,
    /// The one before.
    pub previous: Option<(i32, i64)>,
}

/// The labels that move when `new` becomes current, as they are to be: `previous` points at what was current.
pub fn moved(new: &NewCurrent, places: &Places) -> Vec<Label<'static>> {
    let &NewCurrent { secret_id, version, replaced } = new;
    let before = replaced.or(places.current.map(|(version, _)| version));
    if before == Some(version) {
        return Vec::new();
    }
    let label = |label, version, place: Option<(i32, i64)>| {
        let generation = place.map_or(0, |(_, generation)| generation) + 1;
        Label { secret_id, label, version, generation }
    };
    let previous = before.map(|before| label("previous", before, places.previous));
    previous.into_iter().chain([label("current", version, places.current)]).collect()
}

/// Points `current` at this version, and `previous` at the one that was current.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn make_current(
    tx: &mut Tx,
    macs: &RowMacs,
    new: &NewCurrent,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let places = locked(tx, macs, new.secret_id).await?;
    let labels = moved(new, &places);
    if labels.is_empty() { Ok(()) } else { write(tx, macs, &labels, at).await }
}

/// Where the labels of a secret point; their rows stay locked until the transaction ends.
async fn locked(tx: &mut Tx, macs: &RowMacs, secret_id: Uuid) -> Result<Places, Error> {
    let rows = sqlx::query!(
        "SELECT label, version, generation, mac FROM secret_labels
         WHERE secret_id = $1 AND label IN ('current', 'previous') ORDER BY label FOR UPDATE",
        secret_id
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut places = Places::default();
    for row in rows {
        let (version, generation) = (row.version, row.generation);
        macs.check(&Label { secret_id, label: &row.label, version, generation }, &row.mac)?;
        let place = if row.label == "current" { &mut places.current } else { &mut places.previous };
        *place = Some((version, generation));
    }
    Ok(places)
}

async fn write(tx: &mut Tx, macs: &RowMacs, labels: &[Label<'_>], at: OffsetDateTime) -> Result<(), Error> {
    let sealed = labels.iter().map(|label| macs.seal(label)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<_> = labels.iter().map(|label| label.label.to_owned()).collect();
    let ids: Vec<_> = labels.iter().map(|label| label.secret_id).collect();
    let versions: Vec<_> = labels.iter().map(|label| label.version).collect();
    let generations: Vec<_> = labels.iter().map(|label| label.generation).collect();
    sqlx::query!(
        "INSERT INTO secret_labels (secret_id, label, version, generation, mac, updated_at)
         SELECT *, $6 FROM UNNEST($1::uuid[], $2::text[], $3::integer[], $4::bigint[], $5::bytea[])
         ON CONFLICT (secret_id, label)
         DO UPDATE SET version = excluded.version, generation = excluded.generation, mac = excluded.mac,
                       updated_at = excluded.updated_at",
        &ids,
        &names,
        &versions,
        &generations,
        &sealed,
        at
    )
    .execute(&mut **tx)
    .await?;
    // Each rises by one, from 0 where it is new.
    tx.changes().secrets += labels.len().cast_signed() as i64;
    Ok(())
}

/// Checks the MACs of up to `limit` labels behind `after`. Gives where to go on; nothing after the last.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn check_page(
    connection: &mut PgConnection,
    macs: &RowMacs,
    after: Option<(Uuid, String)>,
    limit: i64,
) -> Result<Option<(Uuid, String)>, Error> {
    let (id, label) = after.unwrap_or_default();
    let rows = sqlx::query!(
        "SELECT secret_id, label, version, generation, mac FROM secret_labels
         WHERE (secret_id, label) > ($1, $2) ORDER BY secret_id, label LIMIT $3",
        id,
        label,
        limit
    )
    .fetch_all(connection)
    .await?;
    for row in &rows {
        let label = Label {
            secret_id: row.secret_id,
            label: &row.label,
            version: row.version,
            generation: row.generation,
        };
        macs.check(&label, &row.mac)?;
    }
    let is_full = i64::try_from(rows.len()) == Ok(limit);
    Ok(rows.into_iter().next_back().filter(|_| is_full).map(|row| (row.secret_id, row.label)))
}

/// The sum of all generations.
///
/// # Errors
/// Those of Postgres.
pub async fn generations(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT COALESCE(sum(generation), 0)::bigint AS "sum!" FROM secret_labels"#)
        .fetch_one(connection)
        .await?)
}

/// Makes the MACs anew that an older row-mac key made, of up to `limit` labels behind `after`; those that
/// others hold are passed over. Gives their number, and where to go on.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(
    connection: &mut PgConnection,
    macs: &RowMacs,
    after: Option<(Uuid, String)>,
    limit: i64,
) -> Result<(u64, Option<(Uuid, String)>), Error> {
    let (id, label) = after.unwrap_or_default();
    let active = macs.active_version()?.to_be_bytes();
    let rows = sqlx::query!(
        "SELECT secret_id, label, version, generation, mac FROM secret_labels
         WHERE (secret_id, label) > ($1, $2) AND substr(mac, 1, 4) <> $3
         ORDER BY secret_id, label LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED",
        id,
        label,
        &active[..],
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut ids, mut labels, mut remade) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let label = Label {
            secret_id: row.secret_id,
            label: &row.label,
            version: row.version,
            generation: row.generation,
        };
        let Some(mac) = macs.reseal(&label, &row.mac)? else { continue };
        ids.push(row.secret_id);
        labels.push(row.label.clone());
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE secret_labels l SET mac = n.mac
         FROM UNNEST($1::uuid[], $2::text[], $3::bytea[]) AS n (secret_id, label, mac)
         WHERE l.secret_id = n.secret_id AND l.label = n.label",
        &ids,
        &labels,
        &remade
    )
    .execute(connection)
    .await?;
    Ok((done.rows_affected(), rows.into_iter().next_back().map(|row| (row.secret_id, row.label))))
}
