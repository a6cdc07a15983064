//! Operators' work on secrets.

use keyfold_core::{
    audit::Operation,
    name::check_field_name,
    object::{Capability, Kind},
    path::{SecretPath, is_segment},
    payload::Fields,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    broker::{Broker, Call, work::OperatorWork},
    error::Error,
    integrity::row_macs::RowMacs,
    keys::keyring::{VersionPlace, micros, number, stored},
    store::{
        deks, keks, objects, secret_labels,
        secret_versions::{self, VersionSummary},
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
        fields: &Fields,
        expected: Option<u32>,
    ) -> Result<u32, Error> {
        let keyring = &*self.seal.keyring()?;
        let macs = keyring.row_macs();
        self.worker.heartbeat.may_encrypt().await?;
        let operation = Operation::SecretPut { path: path.to_string(), version: None };
        self.operate(call, operation, |mut work| async move {
            check_fields(fields)?;
            let keyspace =
                objects::find(work.tx(), macs, Kind::Keyspace, path.keyspace()).await?.ok_or_else(|| {
                    Error::NotFound(format!("there is no keyspace {}: apply one first", path.keyspace()))
                })?;
            let at = self.now();
            let secret =
                secrets::next_version(work.tx(), self.entropy.uuid()?, keyspace.id, path.as_str(), at)
                    .await?;
            let version = number(secret.newest_version)?;
            let created_by = work.operator().name().to_owned();
            if expected.is_some_and(|expected| expected != version - 1) {
                return Err(Error::Conflict(format!(
                    "the newest version of {path} is {}, not {}: read it and try again",
                    version - 1,
                    expected.unwrap_or_default()
                )));
            }
            let active = keks::active(work.tx(), macs, keyspace.id).await?.ok_or_else(|| {
                Error::Corrupt(format!("keks: no active key of keyspace {}", keyspace.name))
            })?;
            let place = VersionPlace {
                keyspace: keyspace.id,
                secret: secret.id,
                version,
                path: path.as_str(),
                created_at_micros: micros(at),
                created_by: &created_by,
            };
            let (payload, dek) = keyring.seal_version(&place, &active, fields, &*self.entropy)?;
            let newest = secret.newest_version;
            secret_versions::insert(work.tx(), macs, secret.id, newest, &payload, at, &created_by).await?;
            deks::insert(work.tx(), &dek).await?;
            secret_labels::make_current(work.tx(), macs, secret.id, newest, at).await?;
            work.state(Operation::SecretPut { path: path.to_string(), version: Some(version) });
            work.allow(version).await
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
        let macs = keyring.row_macs();
        let operation = Operation::SecretGet { path: path.to_string(), version };
        let found = self
            .operate(call, operation, |mut work| async move {
                let found = match version {
                    Some(version) => {
                        secret_versions::numbered(work.tx(), macs, path.as_str(), stored(version)?).await?
                    }
                    None => secret_versions::current(work.tx(), macs, &[path.to_string()]).await?.pop(),
                };
                let found = found.ok_or_else(|| no_such_version(path, version))?;
                let version = Some(number(found.version)?);
                work.state(Operation::SecretGet { path: path.to_string(), version });
                work.allow(found).await
            })
            .await?;
        let found = self.without_compromised_keys(keyring, vec![found]).await?.remove(0);
        let mut connection = self.store.connection().await?;
        let fields = keyring.open_version(&mut connection, &found).await?;
        Ok(OpenVersion { version: number(found.version)?, created_at: found.created_at, fields })
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
            secret_labels::make_current(work.tx(), macs, secret.id, stored(version)?, self.now()).await?;
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
