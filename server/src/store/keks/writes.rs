//! Changes of `keks`. Each goes into the transaction's changes, and what its MAC is over is what is written.

use keyfold_core::key::{KeyState, Restored};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{KekRow, Row, State, WrappedKek};
use crate::{
    error::Error,
    integrity::{RowChange, row_macs::RowMacs},
    store::Tx,
};

/// Adds a KEK and makes it active. The one before it must be deactivated first.
///
/// # Errors
/// Those of Postgres; a second active key breaks the partial unique index.
pub async fn insert_active(
    tx: &mut Tx,
    macs: &RowMacs,
    kek: &WrappedKek,
    at: OffsetDateTime,
) -> Result<(), Error> {
    insert(
        tx,
        macs,
        kek,
        State { state: KeyState::Active.as_str(), created_at: at, activated_at: Some(at), ..kek.as_state() },
    )
    .await
}

/// Adds a KEK that is to be handed to every replica before it wraps.
///
/// # Errors
/// Those of Postgres; a second pre-active key breaks the partial unique index.
pub async fn insert_pre_active(
    tx: &mut Tx,
    macs: &RowMacs,
    kek: &WrappedKek,
    at: OffsetDateTime,
) -> Result<(), Error> {
    insert(tx, macs, kek, State { state: KeyState::PreActive.as_str(), created_at: at, ..kek.as_state() })
        .await
}

async fn insert(tx: &mut Tx, macs: &RowMacs, kek: &WrappedKek, new: State<'_>) -> Result<(), Error> {
    let mac = macs.seal(&new)?;
    tx.changes().keys.push(RowChange::added(kek.id, &mac));
    sqlx::query!(
        "INSERT INTO keks (id, keyspace_id, purpose, version, state, generation, rwk_id, wrapped, created_at, activated_at, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        new.id,
        new.keyspace_id,
        new.purpose,
        kek.version,
        new.state,
        new.generation,
        kek.rwk_id,
        kek.wrapped,
        new.created_at,
        new.activated_at,
        mac
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Waits until no transaction that writes DEKs of the keyspace is open, and lets none begin until this one ends. The
/// lock queues in order, so that nobody who writes all the time can hold it up.
///
/// # Errors
/// Those of Postgres.
pub async fn hold_writers(connection: &mut PgConnection, keyspace_id: Option<Uuid>) -> Result<(), Error> {
    sqlx::query!("SELECT lock_keyset($1, true)", keyspace_id).execute(connection).await?;
    Ok(())
}

/// Stops a KEK from wrapping; it still unwraps.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres.
pub async fn deactivate(tx: &mut Tx, macs: &RowMacs, kek: &KekRow, at: OffsetDateTime) -> Result<(), Error> {
    let next = KekRow { state: KeyState::Deactivated, deactivated_at: Some(at), ..kek.clone() };
    change(tx, macs, kek, next).await
}

/// Lets a pre-active KEK wrap. The one before it must have stopped.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres: a second active key breaks the partial unique index.
pub async fn activate(tx: &mut Tx, macs: &RowMacs, kek: &KekRow, at: OffsetDateTime) -> Result<(), Error> {
    let next = KekRow { state: KeyState::Active, activated_at: Some(at), ..kek.clone() };
    change(tx, macs, kek, next).await
}

/// Declares a KEK compromised: it wraps no more, and opens what it wrapped only to be encrypted anew.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres.
pub async fn compromise(tx: &mut Tx, macs: &RowMacs, kek: &KekRow, at: OffsetDateTime) -> Result<(), Error> {
    let next = KekRow {
        state: KeyState::Compromised,
        compromised_at: Some(at),
        deactivated_at: kek.deactivated_at.or(Some(at)),
        ..kek.clone()
    };
    change(tx, macs, kek, next).await
}

/// A destruction that is to be scheduled.
pub struct Doom<'a> {
    /// When it is due.
    pub destroy_at: OffsetDateTime,
    /// Who wants it: an operator, or the schedule.
    pub asked_by: &'a str,
    /// When they said so.
    pub asked_at: OffsetDateTime,
}

/// Schedules a KEK's destruction; it opens nothing from now on.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres.
pub async fn schedule_destruction(
    tx: &mut Tx,
    macs: &RowMacs,
    kek: &KekRow,
    doom: &Doom<'_>,
) -> Result<(), Error> {
    let next = KekRow {
        state: KeyState::DestroyScheduled,
        destroy_at: Some(doom.destroy_at),
        destroy_asked_by: Some(doom.asked_by.to_owned()),
        destroy_asked_at: Some(doom.asked_at),
        ..kek.clone()
    };
    change(tx, macs, kek, next).await
}

/// Calls a KEK's destruction off; it is again what it was.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres.
pub async fn cancel_destruction(
    tx: &mut Tx,
    macs: &RowMacs,
    kek: &KekRow,
    to: Restored,
) -> Result<(), Error> {
    let next = KekRow {
        state: to.into(),
        destroy_at: None,
        destroy_asked_by: None,
        destroy_asked_at: None,
        ..kek.clone()
    };
    change(tx, macs, kek, next).await
}

/// Removes a KEK's material. A trigger refuses it while any row refers to the KEK.
///
/// # Errors
/// `Busy` when it is not as it was read; those of Postgres.
pub async fn destroy(tx: &mut Tx, macs: &RowMacs, kek: &KekRow, at: OffsetDateTime) -> Result<(), Error> {
    let next = KekRow { state: KeyState::Destroyed, destroyed_at: Some(at), ..kek.clone() };
    change(tx, macs, kek, next).await
}

/// Writes what a KEK is next, unless it is no longer as it was read. Its material goes with the state `destroyed`.
async fn change(tx: &mut Tx, macs: &RowMacs, kek: &KekRow, next: KekRow) -> Result<(), Error> {
    let next = KekRow { generation: kek.generation + 1, ..next };
    let mac = macs.seal(&next)?;
    tx.changes().keys.push(RowChange::changed(kek.id, &kek.mac, &mac));
    let done = sqlx::query!(
        "UPDATE keks SET state = $3, activated_at = $4, deactivated_at = $5, compromised_at = $6, destroy_at = $7,
                destroy_asked_by = $8, destroy_asked_at = $9, destroyed_at = $10, generation = $11, mac = $12,
                wrapped = CASE WHEN $3 = 'destroyed' THEN NULL ELSE wrapped END
         WHERE id = $1 AND generation = $2",
        kek.id,
        kek.generation,
        next.state.as_str(),
        next.activated_at,
        next.deactivated_at,
        next.compromised_at,
        next.destroy_at,
        next.destroy_asked_by,
        next.destroy_asked_at,
        next.destroyed_at,
        next.generation,
        mac
    )
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(Error::Busy) }
}

/// Makes the MACs anew that an older row-mac key made. Gives their number.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(tx: &mut Tx, macs: &RowMacs) -> Result<u64, Error> {
    let rows = rows!("ORDER BY id FOR NO KEY UPDATE").fetch_all(&mut **tx).await?;
    let (mut ids, mut remade) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(mac) = macs.reseal(&state_of!(row), &row.mac)? else { continue };
        tx.changes().keys.push(RowChange::changed(row.id, &row.mac, &mac));
        ids.push(row.id);
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE keks SET mac = n.mac FROM UNNEST($1::uuid[], $2::bytea[]) AS n (id, mac) WHERE keks.id = n.id",
        &ids,
        &remade
    )
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected())
}

/// Puts those KEKs under that RWK, as they are wrapped now; with them those that have no material any more.
///
/// # Errors
/// Those of Postgres.
pub async fn move_under(
    connection: &mut PgConnection,
    rwk_id: Uuid,
    moved: &[WrappedKek],
) -> Result<(), Error> {
    let ids: Vec<Uuid> = moved.iter().map(|kek| kek.id).collect();
    let blobs: Vec<&[u8]> = moved.iter().map(|kek| kek.wrapped.as_slice()).collect();
    sqlx::query!(
        "UPDATE keks SET rwk_id = $1, wrapped = moved.wrapped
         FROM UNNEST($2::uuid[], $3::bytea[]) AS moved (id, wrapped) WHERE keks.id = moved.id",
        rwk_id,
        &ids,
        &blobs as &[&[u8]]
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!("UPDATE keks SET rwk_id = $1 WHERE wrapped IS NULL", rwk_id).execute(connection).await?;
    Ok(())
}

/// Removes all KEKs of a keyspace. A DEK under one of them stops it.
///
/// # Errors
/// Those of Postgres.
pub async fn delete_all(tx: &mut Tx, keyspace_id: Uuid) -> Result<(), Error> {
    let rows = sqlx::query!("DELETE FROM keks WHERE keyspace_id = $1 RETURNING id, mac", keyspace_id)
        .fetch_all(&mut **tx)
        .await?;
    tx.changes().keys.extend(rows.iter().map(|row| RowChange::removed(row.id, &row.mac)));
    Ok(())
}
