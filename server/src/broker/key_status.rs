//! How keys, turns and rewraps stand, and when schedules turn keys.

use keyfold_core::{
    audit::Operation,
    key::{KeyState, next_runs},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{
    broker::{
        Broker, Call,
        keys::{no_such_keyspace, one_or_all, waits_for},
    },
    error::Error,
    keys::{
        keyring::Keyring,
        schedule::{self, Scheduled},
    },
    store::{
        deks::Counts,
        keysets::KeysetRow,
        replicas::{self, Replica},
    },
};

/// Most times of one schedule that are shown.
pub const RUNS_MAX: u32 = 100;

/// How all keys stand.
pub struct KeyStatus {
    /// By keyspace and purpose.
    pub keysets: Vec<KeysetStatus>,
    /// Those that live, by name.
    pub replicas: Vec<Replica>,
}

/// How one key stands.
pub struct KeysetStatus {
    /// Its row.
    pub row: KeysetRow,
    /// The version that wraps.
    pub active_version: u32,
    /// Since when.
    pub active_since: Option<OffsetDateTime>,
    /// The version that is being handed to the replicas.
    pub pre_active_version: Option<u32>,
    /// Its DEKs.
    pub counts: Counts,
    /// DEKs that all replicas moved in a second, lately.
    pub deks_per_second: f64,
    /// When it is next turned; absent when its schedule is paused.
    pub next_turn: Option<OffsetDateTime>,
    /// Whether the active key is older than its cryptoperiod.
    pub overdue: bool,
    /// What keeps a turn from going on; empty when nothing does.
    pub waits_for: String,
}

/// When a schedule turns a key.
pub struct RotationSchedule {
    /// The keyset.
    pub row: KeysetRow,
    /// The policy in words.
    pub policy: String,
    /// The next times; none when it is paused.
    pub next: Vec<OffsetDateTime>,
}

impl Broker {
    /// How the keys of a keyspace stand, or all if it is empty.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace.
    pub async fn key_status(&self, call: &Call, keyspace: &str) -> Result<KeyStatus, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeyStatus { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let mut keysets = Vec::new();
            for keyset in self.scheduled(work.tx(), keyring, keyspace).await? {
                keysets.push(self.keyset_status(work.tx(), keyset).await?);
            }
            let replicas = replicas::live(work.tx()).await?;
            work.allow(KeyStatus { keysets, replicas }).await
        })
        .await
    }

    async fn keyset_status(
        &self,
        connection: &mut PgConnection,
        keyset: Scheduled,
    ) -> Result<KeysetStatus, Error> {
        let now = self.now();
        let sweep = keyset.sweep(now)?;
        let active_version = keyset.active().map(|kek| kek.version).unwrap_or_default();
        let counts = match keyset.row.keyspace_id {
            Some(id) => self.counts_of_deks(connection, keyset.row.id, id, active_version).await?,
            None => Counts::default(),
        };
        let pre_active = keyset.keks.iter().find(|kek| kek.state == KeyState::PreActive);
        let deks_per_second = match counts.pending {
            0 => 0.0,
            _ => self.worker.progress.note(keyset.row.id, active_version, counts.moved, Instant::now()),
        };
        let waits_for = match pre_active {
            Some(kek) => waits_for(connection, kek.id).await?,
            None => String::new(),
        };
        Ok(KeysetStatus {
            active_version,
            active_since: keyset.active().and_then(|kek| kek.activated_at),
            pre_active_version: pre_active.map(|kek| kek.version),
            counts,
            deks_per_second,
            next_turn: keyset.next_turn(now)?,
            overdue: sweep.overdue,
            waits_for,
            row: keyset.row,
        })
    }

    /// The next times at which schedules turn the keys of a keyspace, or of all if it is empty: `count` of each, 5 when 0.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace; `Invalid` for more than `RUNS_MAX`.
    pub async fn rotation_schedule(
        &self,
        call: &Call,
        keyspace: &str,
        count: u32,
    ) -> Result<Vec<RotationSchedule>, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeySchedule { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            if count > RUNS_MAX {
                return Err(Error::Invalid(format!("count must be at most {RUNS_MAX}")));
            }
            let count = if count == 0 { 5 } else { count as usize };
            let keysets = self.scheduled(work.tx(), keyring, keyspace).await?;
            let schedules =
                keysets.into_iter().map(|keyset| schedule_of(keyset, self.now(), count)).collect();
            work.allow(schedules).await
        })
        .await
    }

    async fn scheduled(
        &self,
        connection: &mut PgConnection,
        keyring: &Keyring,
        keyspace: &str,
    ) -> Result<Vec<Scheduled>, Error> {
        let found = schedule::load(connection, keyring, one_or_all(keyspace)).await?;
        if found.is_empty() && !keyspace.is_empty() {
            return Err(no_such_keyspace(keyspace));
        }
        Ok(found)
    }
}

fn schedule_of(keyset: Scheduled, now: OffsetDateTime, count: usize) -> RotationSchedule {
    let anchor = keyset.active().map_or(now, |kek| kek.activated_at.unwrap_or(kek.created_at));
    let next = match keyset.row.paused_at {
        Some(_) => Vec::new(),
        None => next_runs(&keyset.policy, keyset.row.id, now, anchor, count),
    };
    RotationSchedule { policy: keyset.policy.schedule_text(), next, row: keyset.row }
}
