//! Operators' work on secrets.

use std::sync::Arc;

use keyfold_core::{
    audit::Operation,
    name::check_field_name,
    object::Capability,
    path::{SecretPath, is_segment},
    payload::Fields,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    broker::{
        Broker, Call,
        puts::Put,
        work::{OperatorWork, Read},
    },
    error::Error,
    integrity::row_macs::RowMacs,
    keys::keyring::{Keyring, number, stored},
    secret_cache::AsOf,
    store::{
        deks,
        secret_labels::{self, NewCurrent},
        secret_versions::{self, StoredVersion, VersionSummary},
        secrets::{self, Secret, SecretSummary},
    },
};

/// Most fields of one secret.
pub const FIELDS_MAX: usize = 128;
/// Most bytes of one secret's values together.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;
/// Most secrets on one page of a list.
pub const PAGE_MAX: u32 = 1000;

/// A version's values.
pub struct OpenVersion {
    /// The version's number.
    pub version: u32,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// The fields.
    pub fields: Fields,
}

/// How `change_versions` changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionChange {
    /// Hide.
    Delete,
    /// Bring back.
    Undelete,
    /// Remove for good.
    Destroy,
}

impl Broker {
    /// Writes a new version and makes it current. With `expected`, only if the newest version has that number; 0 means
    /// that there must be none.
    ///
    /// # Errors
    /// `Invalid` for fields out of bounds, `NotFound` for an unknown keyspace, `Conflict` when `expected` is not met.
    pub async fn put_secret(
        &self,
        call: &Call,
        path: &SecretPath,
        fields: Fields,
        expected: Option<u32>,
    ) -> Result<u32, Error> {
        self.seal.keyring()?;
        self.worker.heartbeat.may_encrypt().await?;
        let fields = &Arc::new(fields);
        let operation = Operation::SecretPut { path: path.to_string(), version: None };
        self.put(call, operation, |operator, record| {
            check_fields(fields)?;
            Ok(Put {
                basis: operator.as_basis(&record.operation, None),
                created_by: operator.caller.name().to_owned(),
                record,
                path: path.clone(),
                fields: Arc::clone(fields),
                expected,
            })
        })
        .await
    }

    /// Reads one version, or the current one.
    ///
    /// # Errors
    /// `NotFound` when there is no such live version.
    pub async fn get_secret(
        &self,
        call: &Call,
        path: &SecretPath,
        version: Option<u32>,
    ) -> Result<OpenVersion, Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::SecretGet { path: path.to_string(), version };
        let found = self
            .read(call, operation, |operator| async move {
                let may_be_held = operator.may_read_cache();
                let (found, as_of) = self.find_version(keyring, path, version, may_be_held).await?;
                let version = Some(number(found.version)?);
                Ok(Read {
                    value: found,
                    operation: Operation::SecretGet { path: path.to_string(), version },
                    as_of,
                })
            })
            .await?;
        let found = self.without_compromised_keys(keyring, vec![found]).await?.remove(0);
        let fields = self.open(keyring, &found).await?;
        Ok(OpenVersion { version: number(found.version)?, created_at: found.created_at, fields })
    }

    /// A live version as it is stored: that one, or the current one, which may be a held one that its entry confirms.
    async fn find_version(
        &self,
        keyring: &Keyring,
        path: &SecretPath,
        version: Option<u32>,
        may_be_held: bool,
    ) -> Result<(Arc<StoredVersion>, Option<AsOf>), Error> {
        let macs = keyring.row_macs();
        let (found, as_of) = match version {
            None => {
                let mut current =
                    self.secrets.current(&self.store, macs, &[path.as_str()], may_be_held).await?;
                (current.versions.pop().flatten(), current.as_of)
            }
            Some(version) => {
                let (mut connection, version) = (self.store.connection().await?, stored(version)?);
                let found = secret_versions::numbered(&mut connection, macs, path.as_str(), version).await?;
                (found.map(Arc::new), None)
            }
        };
        Ok((found.ok_or_else(|| no_such_version(path, version))?, as_of))
    }

    /// Lists up to `limit` secrets below `prefix` after the path `after`, of those that the operator may list; an empty
    /// prefix lists all. Gives also the path to go on after, if there may be more.
    ///
    /// # Errors
    /// `Invalid` when the prefix is not whole segments, or the limit is beyond `PAGE_MAX`.
    pub async fn list_secrets(
        &self,
        call: &Call,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<SecretSummary>, Option<String>), Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::SecretList { prefix: prefix.to_owned() };
        self.operate(call, operation, |mut work| async move {
            if !prefix.is_empty() && !prefix.split('/').all(is_segment) {
                return Err(Error::Invalid(format!(
                    "prefix {prefix:?} must be whole segments, such as payments/eu"
                )));
            }
            if limit > PAGE_MAX {
                return Err(Error::Invalid(format!("page_size must be at most {PAGE_MAX}")));
            }
            let page = listed(&mut work, keyring.row_macs(), prefix, after, limit).await?;
            work.allow(page).await
        })
        .await
    }

    /// A secret's versions, newest first, without values.
    ///
    /// # Errors
    /// `NotFound` when there is no such secret.
    pub async fn secret_history(&self, call: &Call, path: &SecretPath) -> Result<Vec<VersionSummary>, Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::SecretHistory { path: path.to_string() };
        self.operate(call, operation, |mut work| async move {
            let versions = secret_versions::history(work.tx(), keyring.row_macs(), path.as_str()).await?;
            if versions.is_empty() {
                return Err(no_such_secret(path));
            }
            work.allow(versions).await
        })
        .await
    }

    /// Points `current` at an older live version.
    ///
    /// # Errors
    /// `NotFound` when there is no such live version.
    pub async fn rollback_secret(&self, call: &Call, path: &SecretPath, version: u32) -> Result<(), Error> {
        let keyring = &*self.seal.keyring()?;
        let macs = keyring.row_macs();
        let operation = Operation::SecretRollback { path: path.to_string(), version };
        self.operate(call, operation, |mut work| async move {
            let secret = lock(work.tx(), path).await?;
            secret_versions::numbered(work.tx(), macs, path.as_str(), stored(version)?)
                .await?
                .ok_or_else(|| no_such_version(path, Some(version)))?;
            let current = NewCurrent { secret_id: secret.id, version: stored(version)?, replaced: None };
            secret_labels::make_current(work.tx(), macs, &current, self.now()).await?;
            work.allow(()).await
        })
        .await
    }

    /// Hides, brings back or destroys versions. Gives those that were not in the wanted state before.
    ///
    /// # Errors
    /// `NotFound` when there is no such secret or version.
    pub async fn change_versions(
        &self,
        call: &Call,
        path: &SecretPath,
        versions: &[u32],
        change: VersionChange,
    ) -> Result<Vec<u32>, Error> {
        let keyring = &*self.seal.keyring()?;
        let macs = keyring.row_macs();
        let operation = change.operation(path, versions.to_vec());
        self.operate(call, operation, |mut work| async move {
            let secret = lock(work.tx(), path).await?;
            if let Some(unknown) =
                versions.iter().find(|v| **v == 0 || i64::from(**v) > i64::from(secret.newest_version))
            {
                return Err(Error::NotFound(format!("secret {path} has no version {unknown}")));
            }
            let wanted = versions.iter().map(|v| stored(*v)).collect::<Result<Vec<_>, _>>()?;
            let changed = match change {
                VersionChange::Delete => {
                    secret_versions::delete(work.tx(), macs, secret.id, &wanted, self.now()).await?
                }
                VersionChange::Undelete => {
                    secret_versions::undelete(work.tx(), macs, secret.id, &wanted).await?
                }
                VersionChange::Destroy => {
                    deks::delete(work.tx(), secret.id, &wanted).await?;
                    secret_versions::destroy(work.tx(), macs, secret.id, &wanted, self.now()).await?
                }
            };
            let mut changed = changed.into_iter().map(number).collect::<Result<Vec<_>, _>>()?;
            changed.sort_unstable();
            work.state(change.operation(path, changed.clone()));
            work.allow(changed).await
        })
        .await
    }
}

impl VersionChange {
    fn operation(self, path: &SecretPath, versions: Vec<u32>) -> Operation {
        let path = path.to_string();
        match self {
            Self::Delete => Operation::SecretDelete { path, versions },
            Self::Undelete => Operation::SecretUndelete { path, versions },
            Self::Destroy => Operation::SecretDestroy { path, versions },
        }
    }
}

/// Postgres finds what the operator may list, and here that is decided: no path of another secret is in the answer, nor is
/// it where the next page begins.
async fn listed(
    work: &mut OperatorWork<'_>,
    macs: &RowMacs,
    prefix: &str,
    after: &str,
    limit: u32,
) -> Result<(Vec<SecretSummary>, Option<String>), Error> {
    let listable = work.rights().regexes(Capability::List);
    let mut page = secrets::page(work.tx(), macs, prefix, after, &listable, i64::from(limit)).await?;
    let may_list =
        |path: &str| SecretPath::parse(path).is_ok_and(|path| work.rights().may_on(Capability::List, &path));
    page.retain(|secret| may_list(&secret.path));
    let next = page.last().filter(|_| page.len() == limit as usize).map(|last| last.path.clone());
    Ok((page, next))
}

async fn lock(connection: &mut PgConnection, path: &SecretPath) -> Result<Secret, Error> {
    secrets::lock(connection, path.as_str()).await?.ok_or_else(|| no_such_secret(path))
}

fn no_such_secret(path: &SecretPath) -> Error {
    Error::NotFound(format!("there is no secret {path}"))
}

fn no_such_version(path: &SecretPath, version: Option<u32>) -> Error {
    Error::NotFound(match version {
        Some(version) => format!("secret {path} has no live version {version}"),
        None => format!("secret {path} does not exist or has no live current version"),
    })
}

fn check_fields(fields: &Fields) -> Result<(), Error> {
    if fields.is_empty() || fields.len() > FIELDS_MAX {
        return Err(Error::Invalid(format!("a secret has 1 to {FIELDS_MAX} fields")));
    }
    for (name, _) in fields.iter() {
        check_field_name(name)?;
    }
    let bytes: usize = fields.iter().map(|(_, value)| value.len()).sum();
    if bytes > VALUE_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the values have {bytes} bytes together, and may have {VALUE_BYTES_MAX}"
        )));
    }
    Ok(())
}
