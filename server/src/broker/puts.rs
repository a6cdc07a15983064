//! Writes of secrets: those of all callers in flight share a transaction, since the log's head row would let through only
//! one for each wait for the disk. Each has an entry of its own, and succeeds or fails alone.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use keyfold_core::{
    audit::{Entry, Operation, Outcome, Record},
    clock::Clock,
    entropy::Entropy,
    object::Kind,
    path::SecretPath,
    payload::Fields,
};
use time::OffsetDateTime;

use crate::{
    broker::{
        basis::{Basis, WhatStands},
        group::{Attempt, GroupWork, commit_without_fallen},
    },
    error::Error,
    integrity::marks::Reached,
    keys::keyring::{Keyring, VersionPlace, micros, number},
    seal::Seal,
    secret_cache::SecretCache,
    store::{
        Isolation, Store, Tx, audit, integrity_head,
        keks::{self, WrappedKek},
        new_versions::{self, NewVersion, Target},
        objects,
        secret_labels::{NewCurrent, Places},
        secrets::Secret,
    },
};

const ISOLATION: Isolation = Isolation::ReadCommittedPlannedOnce {
    because: "the secrets' rows are locked as they are read, and the head row's lock orders all appends",
};

/// A secret's new version.
pub(crate) struct Put {
    pub(super) basis: Basis,
    pub(super) record: Record,
    pub(super) created_by: String,
    pub(super) path: SecretPath,
    pub(super) fields: Arc<Fields>,
    /// The number that the newest version must have; 0 for none.
    pub(super) expected: Option<u32>,
}

/// Writes new versions.
pub(crate) struct Puts {
    pub(crate) store: Store,
    pub(crate) secrets: Arc<SecretCache>,
    pub(crate) seal: Arc<Seal>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl GroupWork for Puts {
    type Item = Put;
    /// The new version's number.
    type Outcome = u32;
    const NAME: &'static str = "secret.put";

    /// Whether what allows them stands is known only once the head row is locked, and then the rows are written. So those of
    /// whom it does not are left out, and the others' are written anew.
    async fn commit(&self, puts: &[Put]) -> Result<Vec<Result<u32, Error>>, Error> {
        let keyring = &*self.seal.keyring()?;
        let attempt = |tx, left_out| self.write(tx, keyring, puts, left_out);
        commit_without_fallen(&self.store, Self::NAME, ISOLATION, attempt).await
    }
}

impl Puts {
    async fn write(
        &self,
        mut tx: Tx,
        keyring: &Keyring,
        puts: &[Put],
        left_out: HashSet<usize>,
    ) -> Result<Attempt<Vec<Result<u32, Error>>>, Error> {
        let (at, macs) = (self.clock.now_micros(), keyring.row_macs());
        let mut targets = Targets::lock(&mut tx, keyring, puts).await?;
        let (mut versions, mut outcomes) = (Vec::new(), Vec::with_capacity(puts.len()));
        for (place, put) in puts.iter().enumerate() {
            outcomes.push(match left_out.contains(&place) {
                true => Err(Error::Busy),
                false => self.prepare(keyring, &mut targets, &mut versions, put, at),
            });
        }
        if versions.is_empty() {
            return Ok(Attempt::Whole(tx.commit(outcomes).await?));
        }
        new_versions::insert(&mut tx, macs, &targets.changed(), &versions, at).await?;

        let standing = integrity_head::lock(&mut tx, macs).await?;
        let entries = entries(puts, &outcomes, standing.head.generation, at);
        let written =
            || puts.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(put, _)| &put.basis);
        let is_appended = match Basis::all(written()) {
            Some(wanted) => audit::append_if_stands(&mut tx, at, &entries, &wanted).await?.is_some(),
            None => false,
        };
        if !is_appended {
            let stands = WhatStands::now(&mut tx, written(), &self.secrets, standing.audit_size).await?;
            let is_fallen =
                |place: &usize| outcomes[*place].is_ok() && !stands.holds(&puts[*place].basis, Vec::new);
            let fallen: Vec<_> = (0..puts.len()).filter(is_fallen).collect();
            if !fallen.is_empty() {
                return Ok(Attempt::Without(fallen));
            }
            audit::append_all(&mut tx, at, &entries).await?;
        }
        let count = i64::try_from(entries.len()).unwrap_or_default();
        let changes = std::mem::take(tx.changes());
        let head = standing.after_all(count, changes.secrets);
        let audit_size = standing.audit_size + count;
        tx.reaches(Reached { generation: head.generation, audit_size, revision: 0 });
        integrity_head::write(&mut tx, macs, &head).await?;
        Ok(Attempt::Whole(tx.commit(outcomes).await?))
    }

    /// Encrypts the version that is next, if it is the one that its writer expects.
    fn prepare(
        &self,
        keyring: &Keyring,
        targets: &mut Targets,
        versions: &mut Vec<NewVersion>,
        put: &Put,
        at: OffsetDateTime,
    ) -> Result<u32, Error> {
        let (path, keyspace) = (put.path.as_str(), put.path.keyspace());
        let active = targets
            .keyspaces
            .get(keyspace)
            .ok_or_else(|| Error::NotFound(format!("there is no keyspace {keyspace}: apply one first")))?;
        let keyspace_id = active.keyspace_id.unwrap_or_default();
        let newest = targets.secrets.get(path).map_or(0, |target| target.secret.newest_version);
        let version = number(newest + 1)?;
        if put.expected.is_some_and(|expected| expected != version - 1) {
            return Err(Error::Conflict(format!(
                "the newest version of {path} is {}, not {}: read it and try again",
                version - 1,
                put.expected.unwrap_or_default()
            )));
        }
        let id = targets
            .secrets
            .get(path)
            .map_or_else(|| self.entropy.uuid_at(micros(at)), |target| Ok(target.secret.id))?;
        let place = VersionPlace {
            keyspace: keyspace_id,
            secret: id,
            version,
            path,
            created_at_micros: micros(at),
            created_by: &put.created_by,
        };
        let (payload, dek) = keyring.seal_version(&place, active, &put.fields, &*self.entropy)?;
        let replaced = targets.changed.contains_key(path).then_some(newest);
        targets.changed.insert(path.to_owned(), replaced);
        let places = targets.secrets.get(path).map_or_else(Places::default, |target| target.places);
        let secret = Secret { id, keyspace_id, newest_version: newest + 1 };
        targets.secrets.insert(path.to_owned(), Target { secret, places });
        let created_by = put.created_by.clone();
        versions.push(NewVersion { payload, created_by, dek });
        Ok(version)
    }
}

/// What is written to.
struct Targets {
    /// The active key of each keyspace that there is.
    keyspaces: BTreeMap<String, WrappedKek>,
    /// Each secret with its newest version: as it is stored, then as it is to be.
    secrets: BTreeMap<String, Target>,
    /// Those that have a new version; with the one before it, if that is new as well.
    changed: BTreeMap<String, Option<i32>>,
}

impl Targets {
    async fn lock(tx: &mut Tx, keyring: &Keyring, puts: &[Put]) -> Result<Self, Error> {
        let macs = keyring.row_macs();
        let mut keyspaces = BTreeMap::new();
        for name in puts.iter().map(|put| put.path.keyspace()).collect::<BTreeSet<_>>() {
            let Some(keyspace) = objects::find(tx, macs, Kind::Keyspace, name).await? else { continue };
            let active = keks::active(tx, macs, keyspace.id).await?;
            let active =
                active.ok_or_else(|| Error::Corrupt(format!("keks: no active key of keyspace {name}")))?;
            keyspaces.insert(name.to_owned(), active);
        }
        let paths: BTreeSet<_> = puts.iter().map(|put| put.path.as_str()).collect();
        let secrets = new_versions::lock(tx, macs, &paths).await?;
        Ok(Self { keyspaces, secrets, changed: BTreeMap::new() })
    }

    /// Those that have a new version, by path.
    fn changed(&self) -> BTreeMap<&str, (&Target, NewCurrent)> {
        let changed = self.changed.iter().filter_map(|(path, replaced)| {
            let target = self.secrets.get(path)?;
            let Secret { id, newest_version, .. } = target.secret;
            Some((
                path.as_str(),
                (target, NewCurrent { secret_id: id, version: newest_version, replaced: *replaced }),
            ))
        });
        changed.collect()
    }
}

/// The entry of each that succeeded, in order.
fn entries<'a>(
    puts: &'a [Put],
    outcomes: &[Result<u32, Error>],
    generation: i64,
    at: OffsetDateTime,
) -> Vec<Entry<'a>> {
    let written = puts.iter().zip(outcomes).filter_map(|(put, outcome)| Some((put, *outcome.as_ref().ok()?)));
    let entry = |((put, version), generation): ((&'a Put, u32), i64)| {
        let mut entry = Entry::new(at, &put.record, &Outcome::Allowed);
        entry.operation =
            Cow::Owned(Operation::SecretPut { path: put.path.to_string(), version: Some(version) });
        entry.generation = Some(generation.cast_unsigned());
        entry
    };
    written.zip(generation + 1..).map(entry).collect()
}
