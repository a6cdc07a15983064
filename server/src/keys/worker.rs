//! What is due on keys, done by every replica. Each step is a transaction of its own that looks once more whether it is
//! still right, so that it does not matter which replica does it, how many try at once, or where one of them stops.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use keyfold_core::audit::{Actor, Operation, Outcome, Record};
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use crate::{
    broker::Broker,
    config,
    error::Error,
    keys::{
        destroy::Postponed, heartbeat::Heartbeat, keyring::Keyring, pace::Pace, progress::Progress,
        walk::Walk,
    },
    store::{Tx, quarantined_deks},
};

/// How often keysets are swept.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often a turn that is under way is looked at: replicas acknowledge within their heartbeat.
const TURN_INTERVAL: Duration = Duration::from_millis(50);
/// How long that goes on: longer than it takes until a replica that died counts as gone.
const TURN_SOON_MAX: Duration = Duration::from_secs(10);
/// How often a worker without work looks for some.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often one looks again that found only rows that others hold.
const SHARED_INTERVAL: Duration = Duration::from_millis(100);
/// How long a worker that failed waits.
const FAILED_INTERVAL: Duration = Duration::from_secs(2);

/// What a replica's workers know between two passes. All of it can be lost.
pub(crate) struct Worker {
    /// Its signs of life.
    pub(crate) heartbeat: Heartbeat,
    /// How fast DEKs are moved.
    pub(crate) pace: Pace,
    /// How fast all replicas moved them lately.
    pub(crate) progress: Progress,
    /// Where this replica's rewraps are.
    pub(crate) walk: Walk,
    /// The newest epoch when a pre-active key was first seen, by the key's id: who holds that epoch's keys holds it.
    pub(crate) seen_epochs: Mutex<HashMap<Uuid, i64>>,
    /// Keys that are due to be destroyed, and are needed.
    pub(crate) postponed: Postponed,
    /// Keys whose destruction is due to be scheduled, and that are needed.
    pub(crate) kept: Postponed,
    turns: Notify,
    moves: Notify,
}

impl Worker {
    /// Of a replica that has just started.
    pub(crate) fn new(replica: Uuid, config: &config::Keys) -> Self {
        Self {
            heartbeat: Heartbeat::new(replica),
            pace: Pace::new(config.rewrap_per_second),
            progress: Progress::default(),
            walk: Walk::default(),
            seen_epochs: Mutex::default(),
            postponed: Postponed::default(),
            kept: Postponed::default(),
            turns: Notify::new(),
            moves: Notify::new(),
        }
    }

    /// Looks at once: keys have changed.
    pub(crate) fn wake(&self) {
        self.progress.forget_counts();
        self.walk.stop();
        self.heartbeat.wake();
        self.turns.notify_one();
        self.moves.notify_one();
    }
}

impl Broker {
    /// Does all that is due by this server's clock, until nothing is left. A server does the same by itself all the time,
    /// as long as its clock is right; this is for tests that move the clock.
    ///
    /// # Errors
    /// The first failure; `Sealed`; `Busy` when somebody else changes a key meanwhile.
    pub async fn keys_pass(&self) -> Result<(), Error> {
        let keyring = self.seal.keyring()?;
        if !self.sweep_pass(&keyring).await? {
            return Err(Error::Busy);
        }
        self.beat().await?;
        self.turn_pass(&keyring).await?;
        while self.rewrap_pass(&keyring).await? {}
        while self.reencrypt_pass(&keyring).await? {}
        self.destroy_pass(&keyring).await
    }

    /// Turns keys and follows schedules. Never ends.
    pub(crate) async fn steer_keys(&self) {
        let mut sweep_at = Instant::now();
        let mut turns_wait_since = None;
        loop {
            let mut pause = SWEEP_INTERVAL;
            if let Ok(keyring) = self.seal.keyring() {
                if Instant::now() >= sweep_at {
                    sweep_at = Instant::now() + SWEEP_INTERVAL;
                    // One server's wrong clock must not decide what cannot be taken back: others' clocks are right.
                    if self.is_clock_right() {
                        noted("following schedules", self.sweep_pass(&keyring).await);
                    }
                    if self.is_clock_right() {
                        noted("destroying keys", self.destroy_pass(&keyring).await);
                    }
                    noted("making MACs of rows anew", self.remac_pass().await);
                    noted("counting quarantined data keys", self.measure_quarantine().await);
                }
                match noted("turning keys", self.turn_pass(&keyring).await) {
                    Some(true) => {
                        let since = *turns_wait_since.get_or_insert_with(Instant::now);
                        if since.elapsed() < TURN_SOON_MAX {
                            pause = TURN_INTERVAL;
                        }
                    }
                    _ => turns_wait_since = None,
                }
            }
            tokio::select! {
                () = self.worker.turns.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Moves DEKs to newer keys, and encrypts payloads anew. Never ends.
    pub(crate) async fn move_deks(&self) {
        loop {
            let pause = match self.seal.keyring() {
                Ok(keyring) => self.move_once(&keyring).await,
                Err(_) => IDLE_INTERVAL,
            };
            tokio::select! {
                () = self.worker.moves.notified(), if !pause.is_zero() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One batch of each kind. Gives how long to wait for the next.
    async fn move_once(&self, keyring: &Arc<Keyring>) -> Duration {
        let rewrapped = noted("rewrapping data keys", self.rewrap_pass(keyring).await);
        let reencrypted = noted("encrypting payloads anew", self.reencrypt_pass(keyring).await);
        match (rewrapped, reencrypted) {
            (Some(true), _) | (_, Some(true)) => Duration::ZERO,
            (None, _) | (_, None) => FAILED_INTERVAL,
            _ if self.worker.progress.is_under_way() => SHARED_INTERVAL,
            _ => IDLE_INTERVAL,
        }
    }

    async fn measure_quarantine(&self) -> Result<(), Error> {
        let count = quarantined_deks::count(&mut *self.store.connection().await?).await?;
        metrics::gauge!("keyfold_quarantined_deks").set(f64::from(i32::try_from(count).unwrap_or(i32::MAX)));
        Ok(())
    }

    /// Appends the entry of something that this server did of its own accord.
    ///
    /// # Errors
    /// Those of Postgres; when there is no randomness.
    pub(crate) async fn append_own(&self, tx: &mut Tx, operation: Operation) -> Result<(), Error> {
        let record = Record {
            request_id: self.new_request_id()?,
            from: None,
            actor: Actor::server(self.worker.heartbeat.replica()),
            driver: None,
            operation,
            approval: None,
            generation: None,
        };
        self.append(tx, &record, &Outcome::Allowed).await
    }
}

/// What a pass gave; a failure is logged, for the next pass tries again.
fn noted<T>(what: &'static str, done: Result<T, Error>) -> Option<T> {
    match done {
        Ok(value) => Some(value),
        Err(Error::Database(cause)) => {
            tracing::warn!(%cause, "{what} failed and is tried again");
            None
        }
        Err(Error::Corrupt(why) | Error::Integrity { what: why, .. }) => {
            tracing::error!(why, "{what} failed: stored data failed its integrity check");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "{what} failed and is tried again");
            None
        }
    }
}
