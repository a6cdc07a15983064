//! A connection that is used all the time, so that it need not be asked before and after each use whether it lives.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::error::Error;

/// How long one statement may take that nothing else would end: longer than it may wait for a lock.
const STATEMENT_MAX: Duration = Duration::from_secs(15);

/// A connection that went unused for longer is asked whether it lives, and has so long to answer.
const UNUSED_MAX: Duration = Duration::from_secs(1);
const PING_MAX: Duration = Duration::from_secs(2);

/// The connection, once it was needed, with the time of its last use.
#[derive(Debug, Default)]
pub(super) struct KeptConnection(Mutex<Option<(PgConnection, Instant)>>);

impl KeptConnection {
    /// Runs one statement after the other. A connection that is lost is replaced by one of the pool, for good.
    ///
    /// # Errors
    /// Those of `statement`; those of Postgres.
    pub(super) async fn run<T>(
        &self,
        pool: &PgPool,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut kept = self.0.lock().await;
        let alive = match kept.take() {
            Some((connection, last_used)) => if_alive(connection, last_used).await,
            None => None,
        };
        let mut connection = match alive {
            Some(connection) => connection,
            None => pool.acquire().await?.detach(),
        };
        let done = timeout(STATEMENT_MAX, statement(&mut connection)).await;
        let done = done.unwrap_or_else(|_| Err(Error::database_silent()));
        // After a failure it may be in the middle of something.
        if done.is_ok() {
            *kept = Some((connection, Instant::now()));
        }
        done
    }
}

async fn if_alive(mut connection: PgConnection, last_used: Instant) -> Option<PgConnection> {
    let is_alive =
        last_used.elapsed() < UNUSED_MAX || matches!(timeout(PING_MAX, connection.ping()).await, Ok(Ok(())));
    is_alive.then_some(connection)
}
