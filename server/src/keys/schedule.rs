//! Following keysets' schedules. What is due is decided in `keyfold_core::key`; here it is loaded and done.

use std::collections::HashMap;

use keyfold_core::{
    audit::Operation,
    key::{Action, KeyState, KeyView, KeysetView, Purpose, RotationPolicy, Step, Sweep, sweep},
    object::{Kind, Spec},
};
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::{destroy, keyring::Keyring, turn::STEP},
    store::{
        Tx,
        keks::{self, Doom, KekRow},
        keysets::{self, KeysetRow},
        objects::{self, Object},
    },
};

/// A keyset with its keys and the policy that holds for it.
pub(crate) struct Scheduled {
    /// Its row.
    pub(crate) row: KeysetRow,
    /// All versions, oldest first.
    pub(crate) keks: Vec<KekRow>,
    /// Its keyspace's, or that of its purpose.
    pub(crate) policy: RotationPolicy,
    /// Since when that holds.
    policy_since: Option<OffsetDateTime>,
}

impl Scheduled {
    fn new(row: KeysetRow, keks: Vec<KekRow>, keyspace: Option<&Object>) -> Result<Self, Error> {
        let declared = match keyspace.map(Object::spec).transpose()? {
            Some(Spec::Keyspace(spec)) => spec.rotation,
            _ => None,
        };
        let policy_since = declared.as_ref().and(keyspace).map(|object| object.updated_at);
        let policy = declared.unwrap_or_else(|| RotationPolicy::default_of(row.purpose));
        Ok(Self { row, keks, policy, policy_since })
    }

    /// What is to be done at this moment.
    ///
    /// # Errors
    /// `Corrupt` when its keys are no keyset.
    pub(crate) fn sweep(&self, now: OffsetDateTime) -> Result<Sweep, Error> {
        let key = |kek: &KekRow| KeyView {
            version: kek.version,
            state: kek.state,
            created_at: kek.created_at,
            activated_at: kek.activated_at,
            deactivated_at: kek.deactivated_at,
            destroy_at: kek.destroy_at,
            // At least: more does not matter here.
            deks_wrapped: u64::from(kek.wraps_leftovers),
            quarantined: 0,
            // Whoever finishes turns looks at that.
            acknowledged: false,
        };
        let view = KeysetView {
            id: self.row.id,
            purpose: self.row.purpose,
            policy: self.policy.clone(),
            policy_since: self.policy_since,
            paused: self.row.paused_at.is_some(),
            rotate_requested: false,
            keys: self.keks.iter().map(key).collect(),
            last_scheduled_run: self.row.last_scheduled_run,
        };
        sweep(&view, now).map_err(|error| Error::Corrupt(format!("keks of keyset {}: {error}", self.row.id)))
    }

    /// When the key is next turned by its schedule: now, if that is due. None while the schedule is paused.
    ///
    /// # Errors
    /// `Corrupt` when its keys are no keyset.
    pub(crate) fn next_turn(&self, now: OffsetDateTime) -> Result<Option<OffsetDateTime>, Error> {
        let sweep = self.sweep(now)?;
        let is_due = sweep.steps.iter().any(|step| matches!(step.action, Action::CreatePreActive { .. }));
        Ok(match self.row.paused_at {
            Some(_) => None,
            None if is_due => Some(now),
            None => sweep.next_run,
        })
    }

    fn of_version(&self, version: u32) -> Option<&KekRow> {
        self.keks.iter().find(|kek| kek.version == version)
    }

    /// The active key.
    pub(crate) fn active(&self) -> Option<&KekRow> {
        self.keks.iter().find(|kek| kek.state == KeyState::Active)
    }
}

/// The keysets of one keyspace, or all.
///
/// # Errors
/// Those of Postgres; `Corrupt`, `Integrity`.
pub(crate) async fn load(
    connection: &mut PgConnection,
    keyring: &Keyring,
    keyspace: Option<&str>,
) -> Result<Vec<Scheduled>, Error> {
    let macs = keyring.row_macs();
    let rows = keysets::list(connection, keyspace).await?;
    let mut keks: HashMap<(Option<Uuid>, Purpose), Vec<KekRow>> = HashMap::new();
    for kek in keks::all(connection, macs).await? {
        keks.entry((kek.keyspace_id, kek.purpose)).or_default().push(kek);
    }
    let keyspaces = objects::list(connection, macs, Some(Kind::Keyspace)).await?;
    let keyspaces: HashMap<_, _> = keyspaces.into_iter().map(|object| (object.id, object)).collect();
    rows.into_iter()
        .map(|row| {
            let keks = keks.remove(&(row.keyspace_id, row.purpose)).unwrap_or_default();
            let keyspace = row.keyspace_id.and_then(|id| keyspaces.get(&id));
            Scheduled::new(row, keks, keyspace)
        })
        .collect()
}

/// One keyset, with its row's lock, unless somebody else holds that.
///
/// # Errors
/// Those of Postgres; `Corrupt`, `Integrity`.
pub(crate) async fn of_keyset(
    connection: &mut PgConnection,
    keyring: &Keyring,
    id: Uuid,
) -> Result<Option<Scheduled>, Error> {
    let Some(row) = keysets::try_lock(connection, id).await? else { return Ok(None) };
    let macs = keyring.row_macs();
    let keks = keks::of_keyset(connection, macs, row.keyspace_id, row.purpose).await?;
    let keyspace = objects::find(connection, macs, Kind::Keyspace, &row.keyspace).await?;
    Scheduled::new(row, keks, keyspace.as_ref()).map(Some)
}

impl Broker {
    /// Does what schedules ask for at this moment. Says whether nothing of it is left: somebody else may change a keyset
    /// meanwhile, or a step fail.
    ///
    /// # Errors
    /// Those of Postgres; `Corrupt`, `Integrity`.
    pub(crate) async fn sweep_pass(&self, keyring: &Keyring) -> Result<bool, Error> {
        let now = self.now();
        let (mut overdue, mut is_all_done): (u32, _) = (0, true);
        for keyset in load(&mut *self.store.connection().await?, keyring, None).await? {
            let done = self.follow_schedule(keyring, &keyset, now).await;
            match done {
                Ok((is_overdue, is_done)) => {
                    overdue += u32::from(is_overdue);
                    is_all_done &= is_done;
                }
                Err(error) => {
                    is_all_done = false;
                    let (keyspace, purpose) = (&keyset.row.keyspace, keyset.row.purpose.as_str());
                    tracing::warn!(%error, keyspace, purpose, "a schedule could not be followed");
                }
            }
        }
        metrics::gauge!("keyfold_keys_overdue").set(overdue);
        Ok(is_all_done)
    }

    /// Does what one keyset's schedule asks for. Says whether its key is overdue, and whether all is done.
    async fn follow_schedule(
        &self,
        keyring: &Keyring,
        keyset: &Scheduled,
        now: OffsetDateTime,
    ) -> Result<(bool, bool), Error> {
        let sweep = keyset.sweep(now)?;
        let mut is_done = true;
        for Step { action, .. } in sweep.steps {
            let name = match action {
                Action::CreatePreActive { .. } => "key.create",
                Action::SkipRun { .. } => "key.skip-run",
                Action::ScheduleDestruction { .. } => "key.schedule-destruction",
                // Others do these.
                Action::Activate { .. } | Action::Destroy { .. } => continue,
            };
            if let Action::ScheduleDestruction { version, .. } = action
                && keyset.of_version(version).is_some_and(|kek| !self.worker.kept.is_due(kek.id))
            {
                continue;
            }
            let id = keyset.row.id;
            is_done &= self
                .store
                .tx(name, STEP, |mut tx| async move {
                    let has_looked = self.do_step(&mut tx, keyring, id, action, now).await?;
                    tx.commit(has_looked).await
                })
                .await?;
            self.worker.wake();
        }
        Ok((sweep.overdue, is_done))
    }

    /// Does one step, unless it is no longer right. Says whether it could look: not while somebody else changes the keyset.
    async fn do_step(
        &self,
        tx: &mut Tx,
        keyring: &Keyring,
        keyset_id: Uuid,
        wanted: Action,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let Some(keyset) = of_keyset(tx, keyring, keyset_id).await? else { return Ok(false) };
        let steps = keyset.sweep(now)?.steps;
        let Some(Step { action, reason }) = steps.into_iter().find(|step| step.action == wanted) else {
            return Ok(true);
        };
        let row = &keyset.row;
        let (keyspace, purpose) = (row.keyspace.clone(), row.purpose.to_string());
        match action {
            Action::CreatePreActive { run, .. } => {
                let version = self.begin_turn(tx, keyring, row).await?.new_version;
                if let Some(run) = run {
                    keysets::note_run(tx, row.id, run).await?;
                }
                self.append_own(tx, Operation::KeyCreate { keyspace, purpose, version, reason }).await?;
            }
            Action::SkipRun { run } => {
                keysets::note_run(tx, row.id, run).await?;
                let occurrence = run.format(&Rfc3339).unwrap_or_default();
                self.append_own(tx, Operation::KeySkipRun { keyspace, purpose, occurrence, reason }).await?;
            }
            Action::ScheduleDestruction { version, destroy_at } => {
                let Some(kek) = keyset.of_version(version) else { return Ok(true) };
                // Of the installation's own keys it is not known before; of others their data keys were counted.
                if row.keyspace_id.is_none() && destroy::needs(tx, kek).await?.is_some() {
                    self.worker.kept.postpone_needed(kek.id);
                    return Ok(true);
                }
                let doom = Doom { destroy_at, asked_by: "the schedule", asked_at: now };
                keks::schedule_destruction(tx, keyring.row_macs(), kek, &doom).await?;
                let operation = Operation::KeyScheduleDestruction {
                    keyspace,
                    purpose: Some(purpose),
                    version,
                    destroy_at: Some(destroy_at.format(&Rfc3339).unwrap_or_default()),
                    reason: Some(reason),
                };
                self.append_own(tx, operation).await?;
            }
            Action::Activate { .. } | Action::Destroy { .. } => {}
        }
        Ok(true)
    }
}
