//! What an allowance rests on, and whether that stands as its entry is written.

use std::collections::HashSet;

use crate::{
    broker::lease::Lease,
    error::Error,
    secret_cache::{AsOf, Changes, SecretCache},
    store::{
        Tx, audit,
        bases::{self, Wanted},
        objects::Standing,
    },
};

/// Beyond as many changes the cache forgets all that it holds instead of reading them, for the head row is locked meanwhile.
const CHANGES_MAX: i64 = 1000;

/// What an allowance rests on, to be confirmed in the transaction of its entry.
#[derive(Default)]
pub(super) struct Basis {
    /// They stand as they were read.
    pub(super) objects: Vec<Standing>,
    /// It can be renewed.
    pub(super) lease: Option<Lease>,
    /// The administrator's token of this name is live.
    pub(super) admin_token: Option<String>,
    /// Nothing that is declared has changed since this revision.
    pub(super) revision: Option<i64>,
    /// The secrets that the operation names have not changed since.
    pub(super) as_of: Option<AsOf>,
}

impl Basis {
    /// All that these rest on, if that can be looked at in one statement: where it wants neither a lease nor what has
    /// changed since different moments.
    pub(super) fn all<'a>(bases: impl Iterator<Item = &'a Self> + Clone) -> Option<Wanted> {
        let all_one = |mut numbers: HashSet<i64>| match numbers.len() {
            0 => Some(None),
            1 => numbers.drain().next().map(Some),
            _ => None,
        };
        if bases.clone().any(|basis| basis.lease.is_some()) {
            return None;
        }
        let generations = bases.clone().filter_map(|basis| basis.as_of).map(|as_of| as_of.generation);
        Some(Wanted {
            revision: all_one(bases.clone().filter_map(|basis| basis.revision).collect())?,
            generation: all_one(generations.collect())?,
            objects: objects(bases.clone()),
            admin_tokens: admin_tokens(bases),
        })
    }
}

fn objects<'a>(bases: impl Iterator<Item = &'a Basis>) -> Vec<Standing> {
    let objects: HashSet<_> = bases.flat_map(|basis| &basis.objects).copied().collect();
    Vec::from_iter(objects)
}

fn admin_tokens<'a>(bases: impl Iterator<Item = &'a Basis>) -> Vec<String> {
    let names: HashSet<_> = bases.filter_map(|basis| basis.admin_token.clone()).collect();
    Vec::from_iter(names)
}

/// What stands of all that several operations rest on.
#[derive(Default)]
pub(super) struct WhatStands {
    objects: HashSet<Standing>,
    admin_tokens: HashSet<String>,
    revision: i64,
    changes: Changes,
}

impl WhatStands {
    /// As of now, with the log's head row locked at `audit_size` entries: one question for all of them. Whoever
    /// changes something later has a later entry. No row is locked for it, so that nobody's calls can keep a right from being
    /// taken away.
    pub(super) async fn now<'a>(
        tx: &mut Tx,
        bases: impl Iterator<Item = &'a Basis> + Clone,
        secrets: &SecretCache,
        audit_size: i64,
    ) -> Result<Self, Error> {
        let (objects, admin_tokens) = (objects(bases.clone()), admin_tokens(bases.clone()));
        let oldest = bases.clone().filter_map(|basis| basis.as_of).min_by_key(|as_of| as_of.generation);
        let rests_on_revision = bases.clone().any(|basis| basis.revision.is_some());
        if objects.is_empty() && admin_tokens.is_empty() && oldest.is_none() && !rests_on_revision {
            return Ok(Self::default());
        }
        let found = bases::find(tx, &objects, &admin_tokens).await?;
        let mut changes = Changes::default();
        if let Some(oldest) = oldest.filter(|oldest| oldest.generation != found.generation) {
            changes = changes_since(tx, oldest, found.generation).await?;
            secrets.follow(oldest, AsOf { generation: found.generation, audit_size }, &changes);
        }
        let stands = |place: i64| objects.get(usize::try_from(place).ok()?.checked_sub(1)?).copied();
        Ok(Self {
            objects: found.objects.into_iter().filter_map(stands).collect(),
            admin_tokens: HashSet::from_iter(found.admin_tokens),
            revision: found.revision,
            changes,
        })
    }

    /// Whether all of it stands. `paths` are those of the secrets that the operation names.
    pub(super) fn holds<'a>(&self, basis: &Basis, paths: impl FnOnce() -> Vec<&'a str>) -> bool {
        basis.objects.iter().all(|object| self.objects.contains(object))
            && basis.admin_token.iter().all(|name| self.admin_tokens.contains(name))
            && basis.revision.is_none_or(|revision| revision == self.revision)
            && (basis.as_of.is_none() || !self.changes.touch(&paths()))
    }
}

async fn changes_since(tx: &mut Tx, oldest: AsOf, generation: i64) -> Result<Changes, Error> {
    let count = generation - oldest.generation;
    if !(1..=CHANGES_MAX).contains(&count) {
        return Ok(Changes::unknown());
    }
    let entries = audit::changes(tx, oldest.audit_size, CHANGES_MAX).await?;
    // Each change has raised the generation by one.
    match i64::try_from(entries.len()) == Ok(count) {
        true => Ok(Changes::of(entries)),
        false => Ok(Changes::unknown()),
    }
}
