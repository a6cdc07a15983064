//! Table `integrity_head`: what the guarded rows come to, as of their last change.

use keyfold_core::row_mac::RowEncoder;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::{
        Changes, digest_after, digest_of,
        marks::Reached,
        row_macs::{Guarded, RowMacs, failed},
    },
    store::{keks, objects},
};

/// How long a used plan is remembered after it expired, so that no clock that goes back makes it good again.
const USED_PLANS_KEPT: Duration = Duration::days(7);

/// Bytes of a used plan: its id, and when it expires in microseconds since 1970.
const USED_PLAN_BYTES: usize = 24;

/// The one row, without its MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Rises by one with each change.
    pub generation: i64,
    /// Of objects and administrators' tokens.
    pub declared_digest: Vec<u8>,
    /// Of keys.
    pub keys_digest: Vec<u8>,
    /// Of the generations of labels and versions.
    pub secrets_sum: i64,
    /// Plans that were used, so that none can be put back unused.
    used_plans: Vec<u8>,
    /// Of the last change's entry.
    pub audit_index: i64,
}

impl Guarded for Head {
    const TABLE: &'static str = "integrity_head";

    fn which(&self) -> String {
        format!("generation {}", self.generation)
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.i64(self.generation)
            .bytes(&self.declared_digest)
            .bytes(&self.keys_digest)
            .i64(self.secrets_sum)
            .bytes(&self.used_plans)
            .i64(self.audit_index)
    }
}

/// The head, and how far the database has come.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The head.
    pub head: Head,
    /// Entries in the audit log.
    pub audit_size: i64,
    /// Of what is declared.
    pub revision: i64,
}

struct Row {
    generation: i64,
    declared_digest: Vec<u8>,
    keys_digest: Vec<u8>,
    secrets_sum: i64,
    used_plans: Vec<u8>,
    audit_index: i64,
    mac: Vec<u8>,
    audit_size: i64,
    revision: i64,
}

impl Row {
    fn checked(self, macs: &RowMacs) -> Result<Standing, Error> {
        let head = Head {
            generation: self.generation,
            declared_digest: self.declared_digest,
            keys_digest: self.keys_digest,
            secrets_sum: self.secrets_sum,
            used_plans: self.used_plans,
            audit_index: self.audit_index,
        };
        macs.check(&head, &self.mac)?;
        Ok(Standing { head, audit_size: self.audit_size, revision: self.revision })
    }
}

/// The head as it is.
///
/// # Errors
/// Those of Postgres; `Integrity` when it does not fit its MAC, or is not there.
pub async fn find(connection: &mut PgConnection, macs: &RowMacs) -> Result<Standing, Error> {
    sqlx::query_as!(
        Row,
        // No join of the three: for tables that were never analysed the planner expects thousands of rows of each, and
        // compiles the statement anew each time.
        r#"SELECT generation, declared_digest, keys_digest, secrets_sum, used_plans, audit_index, mac,
                  (SELECT size FROM audit_head) AS "audit_size!", (SELECT revision FROM object_revision) AS "revision!"
           FROM integrity_head"#
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| failed(Head::TABLE, "there is no row".into()))?
    .checked(macs)
}

/// The head, locked after the audit log's: so the next entry is this transaction's, and so is the next generation.
///
/// # Errors
/// Those of Postgres; `Integrity` when it does not fit its MAC, or is not there.
pub async fn lock(connection: &mut PgConnection, macs: &RowMacs) -> Result<Standing, Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT generation, declared_digest, keys_digest, secrets_sum, used_plans, audit_index, mac,
                  a.size AS audit_size, 0::bigint AS "revision!"
           FROM audit_head a, integrity_head h FOR UPDATE OF a, h"#
    )
    .fetch_optional(connection)
    .await?
    .ok_or_else(|| failed(Head::TABLE, "there is no row".into()))?
    .checked(macs)
}

impl Standing {
    /// How far the database has come.
    pub fn reached(&self) -> Reached {
        Reached { generation: self.head.generation, audit_size: self.audit_size, revision: self.revision }
    }

    /// The head after `changes`, whose entry is the next of the log.
    ///
    /// # Errors
    /// `Integrity` when the rows before the changes were not those of the last change, or a plan is used again.
    pub async fn after(
        &self,
        connection: &mut PgConnection,
        changes: &Changes,
        now: OffsetDateTime,
    ) -> Result<Head, Error> {
        let mut head = self.head.clone();
        head.generation += 1;
        head.audit_index = self.audit_size;
        head.secrets_sum += changes.secrets;
        head.take_digests(connection, changes).await?;
        if let Some((plan, expires_at)) = changes.used_plan {
            head.use_plan(plan, expires_at, now)?;
        }
        Ok(head)
    }
}

impl Standing {
    /// The head after `count` changes, each with an entry of its own, which raise the generations of labels and versions by
    /// `secrets` together.
    pub fn after_all(&self, count: i64, secrets: i64) -> Head {
        Head {
            generation: self.head.generation + count,
            audit_index: self.audit_size + count - 1,
            secrets_sum: self.head.secrets_sum + secrets,
            ..self.head.clone()
        }
    }
}

impl Head {
    /// Takes the digests after `changes`.
    ///
    /// # Errors
    /// `Integrity` when the rows before the changes were not those of the last change; those of Postgres.
    pub async fn take_digests(
        &mut self,
        connection: &mut PgConnection,
        changes: &Changes,
    ) -> Result<(), Error> {
        if !changes.declared.is_empty() {
            let rows = objects::declared_macs(&mut *connection).await?;
            self.declared_digest =
                digest_after("objects", rows, &changes.declared, &self.declared_digest)?.to_vec();
        }
        if !changes.keys.is_empty() {
            let rows = keks::macs(connection).await?;
            self.keys_digest = digest_after("keks", rows, &changes.keys, &self.keys_digest)?.to_vec();
        }
        Ok(())
    }

    /// Remembers a plan as used, and forgets those that expired long ago.
    fn use_plan(&mut self, plan: Uuid, expires_at: OffsetDateTime, now: OffsetDateTime) -> Result<(), Error> {
        let forgotten = micros(now - USED_PLANS_KEPT).to_be_bytes();
        let mut kept = Vec::with_capacity(self.used_plans.len() + USED_PLAN_BYTES);
        for used in self.used_plans.chunks_exact(USED_PLAN_BYTES) {
            let (id, expiry) = used.split_at(16);
            if id == plan.as_bytes() {
                return Err(failed("plans", format!("{plan}: was used before, and its row says otherwise")));
            }
            // Times since 1970 compare as their bytes do.
            if expiry >= forgotten.as_slice() {
                kept.extend_from_slice(used);
            }
        }
        kept.extend_from_slice(plan.as_bytes());
        kept.extend_from_slice(&micros(expires_at).to_be_bytes());
        self.used_plans = kept;
        Ok(())
    }
}

fn micros(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or_default()
}

/// The first head of an installation, over what the transaction has written so far. `Broker::append` raises it with the
/// first entry.
///
/// # Errors
/// Those of Postgres; a second row breaks the primary key.
pub async fn insert(connection: &mut PgConnection, macs: &RowMacs) -> Result<(), Error> {
    let nothing = digest_of(&Default::default()).to_vec();
    let head = Head {
        generation: 0,
        declared_digest: nothing.clone(),
        keys_digest: nothing,
        secrets_sum: 0,
        used_plans: Vec::new(),
        audit_index: 0,
    };
    let mac = macs.seal(&head)?;
    sqlx::query!(
        "INSERT INTO integrity_head
             (generation, declared_digest, keys_digest, secrets_sum, used_plans, audit_index, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        head.generation,
        head.declared_digest,
        head.keys_digest,
        head.secrets_sum,
        head.used_plans,
        head.audit_index,
        mac
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the head, whose row is locked.
///
/// # Errors
/// Those of Postgres.
pub async fn write(connection: &mut PgConnection, macs: &RowMacs, head: &Head) -> Result<(), Error> {
    let mac = macs.seal(head)?;
    sqlx::query!(
        "UPDATE integrity_head SET generation = $1, declared_digest = $2, keys_digest = $3, secrets_sum = $4,
                                   used_plans = $5, audit_index = $6, mac = $7",
        head.generation,
        head.declared_digest,
        head.keys_digest,
        head.secrets_sum,
        head.used_plans,
        head.audit_index,
        mac
    )
    .execute(connection)
    .await?;
    Ok(())
}
