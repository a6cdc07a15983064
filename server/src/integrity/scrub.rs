//! The checks that compare guarded rows with the integrity head, each within one moment of the database, so that no
//! change that is under way looks like a wrong one.

use std::sync::Mutex;

use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    authn::AdminToken,
    error::Error,
    integrity::{
        digest_of,
        row_macs::{RowMacs, failed},
        watch::lock,
    },
    store::{
        admin_tokens, audit, integrity_head,
        integrity_head::{Head, Standing},
        keks,
        objects::{self, Object},
        secret_labels, secret_versions,
    },
};

/// Rows of labels, and of versions, whose MACs one scrub checks. The next one goes on behind them.
const PAGE_MAX: i64 = 10_000;

/// Behind which rows the next scrub goes on; absent: from the start.
#[derive(Default)]
pub struct Cursor {
    label: Option<(Uuid, String)>,
    version: Option<(Uuid, i32)>,
}

/// Checks the head, the log's end, what is declared and the keys. Gives the head, and how far the database has come.
///
/// # Errors
/// `Integrity`; those of Postgres.
pub async fn check_few(moment: &mut PgConnection, macs: &RowMacs) -> Result<Standing, Error> {
    let standing = integrity_head::find(moment, macs).await?;
    check_log(moment, &standing).await?;
    check_declared(moment, macs, &standing.head).await?;
    check_keys(moment, macs, &standing.head).await?;
    Ok(standing)
}

/// Checks what is declared, and gives it.
///
/// # Errors
/// `Integrity`; those of Postgres.
pub async fn check_declared(
    moment: &mut PgConnection,
    macs: &RowMacs,
    head: &Head,
) -> Result<(Vec<Object>, Vec<AdminToken>), Error> {
    let objects = objects::list(moment, macs, None).await?;
    let admin_tokens = admin_tokens::live(moment, macs).await?;
    if digest_of(&objects::declared_macs(moment).await?) != *head.declared_digest {
        return Err(failed(
            "objects",
            "objects and admin_tokens together are not those of the last change".into(),
        ));
    }
    Ok((objects, admin_tokens))
}

/// Checks all keys' states.
///
/// # Errors
/// `Integrity`; those of Postgres.
pub async fn check_keys(moment: &mut PgConnection, macs: &RowMacs, head: &Head) -> Result<(), Error> {
    let keys = keks::check_all(moment, macs).await?;
    if digest_of(&keys) != *head.keys_digest {
        return Err(failed("keks", "all keys together are not those of the last change".into()));
    }
    Ok(())
}

/// Checks a page each of labels and versions, and the sum of all.
///
/// An old row of labels or versions, with its old and fitting MAC, lowers the sum. Whoever raises another row for it has
/// no MAC for that one, which is found when a request reads it, or when its page's turn comes. The cursor goes on behind
/// each page that is well, also when what follows takes too long, and stays at one that is not.
///
/// # Errors
/// `Integrity`; those of Postgres.
pub async fn check_secrets(
    moment: &mut PgConnection,
    macs: &RowMacs,
    head: &Head,
    cursor: &Mutex<Cursor>,
) -> Result<(), Error> {
    let behind = lock(cursor).label.clone();
    let label = secret_labels::check_page(moment, macs, behind, PAGE_MAX).await?;
    lock(cursor).label = label;
    let behind = lock(cursor).version;
    let version = secret_versions::check_page(moment, macs, behind, PAGE_MAX).await?;
    lock(cursor).version = version;
    let sum = secret_labels::generations(moment).await? + secret_versions::generations(moment).await?;
    if sum != head.secrets_sum {
        let what = format!("generations of labels and versions come to {sum}, not to {}", head.secrets_sum);
        return Err(failed("secret_labels", what));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Change {
    generation: Option<i64>,
}

/// The head was not put back without the log, nor the log without the head.
async fn check_log(moment: &mut PgConnection, standing: &Standing) -> Result<(), Error> {
    let head = &standing.head;
    let wrong = |what: String| Err(failed("audit_entries", what));
    if head.audit_index >= standing.audit_size {
        return wrong(format!("has {} entries, without the last change's", standing.audit_size));
    }
    let Some(entry) = audit::newest_change(moment).await? else {
        // A log whose oldest entries were removed, after a long time without a change.
        return match audit::oldest_index(moment).await? {
            Some(oldest) if oldest > head.audit_index => Ok(()),
            _ => wrong(format!("has no entry of generation {}", head.generation)),
        };
    };
    let stated = serde_json::from_slice::<Change>(&entry.entry).ok().and_then(|change| change.generation);
    if (entry.index, stated) != (head.audit_index, Some(head.generation)) {
        return wrong(format!(
            "entry {} states generation {}, and the head is of generation {} and entry {}",
            entry.index,
            stated.unwrap_or_default(),
            head.generation,
            head.audit_index
        ));
    }
    Ok(())
}
