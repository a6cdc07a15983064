//! What an allowance rests on, and whether that stands as its entry is written.

use std::collections::HashSet;

use crate::{
    broker::lease::Lease,
    error::Error,
    secret_cache::{AsOf, Changes, SecretCache},
    store::{
        Tx, admin_tokens, audit, integrity_head,
        objects::{self, Standing},
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

/// What stands of all that several operations rest on.
pub(super) struct WhatStands {
    objects: HashSet<Standing>,
    admin_tokens: HashSet<String>,
    revision: i64,
    changes: Changes,
}

impl WhatStands {
    /// As of now, with the log's head row locked at `audit_size` entries: one question of each kind for all of them. Whoever
    /// changes something later has a later entry. No row is locked for it, so that nobody's calls can keep a right from being
    /// taken away.
    pub(super) async fn now<'a>(
        tx: &mut Tx,
        bases: impl Iterator<Item = &'a Basis> + Clone,
        secrets: &SecretCache,
        audit_size: i64,
    ) -> Result<Self, Error> {
        let mut objects: HashSet<_> = bases.clone().flat_map(|basis| &basis.objects).copied().collect();
        if !objects.is_empty() {
            objects = objects::unchanged(tx, &objects).await?;
        }
        let mut admin_tokens: HashSet<_> =
            bases.clone().filter_map(|basis| basis.admin_token.clone()).collect();
        if !admin_tokens.is_empty() {
            admin_tokens = admin_tokens::live_of(tx, &admin_tokens).await?;
        }
        let (mut revision, mut changes) = (0, Changes::default());
        let oldest = bases.clone().filter_map(|basis| basis.as_of).min_by_key(|as_of| as_of.generation);
        if oldest.is_some() || bases.clone().any(|basis| basis.revision.is_some()) {
            let now = integrity_head::marks(tx).await?;
            revision = now.revision;
            if let Some(oldest) = oldest.filter(|oldest| oldest.generation != now.generation) {
                changes = changes_since(tx, oldest, now.generation).await?;
                secrets.follow(oldest, AsOf { generation: now.generation, audit_size }, &changes);
            }
        }
        Ok(Self { objects, admin_tokens, revision, changes })
    }

    /// Whether all of it stands. `paths` are those of the secrets that the operation names.
    pub(super) fn holds(&self, basis: &Basis, paths: impl FnOnce() -> Vec<String>) -> bool {
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
