//! Entries of operations that change nothing else: issues, reads and refusals.

use std::{collections::HashSet, sync::Arc};

use keyfold_core::{
    audit::{Entry, Outcome, Record},
    clock::Clock,
    refusal::Refusal,
};
use time::OffsetDateTime;

use crate::{
    broker::{
        APPEND,
        basis::{Basis, WhatStands},
        group::{Attempt, GroupWork, commit_without_fallen},
        lease,
    },
    error::Error,
    integrity::marks::Reached,
    secret_cache::SecretCache,
    store::{Store, Tx, audit},
};

/// An entry that is to be committed, and what it rests on.
pub(crate) struct Submission {
    pub(super) basis: Basis,
    pub(super) record: Record,
    pub(super) outcome: Outcome,
}

/// Until when the caller has what its entry states, where that has an end; or why its lease is over, which the entry states
/// then.
pub(super) type Verdict = Result<Option<OffsetDateTime>, Refusal>;

/// Appends entries.
pub(crate) struct Entries {
    pub(crate) store: Store,
    pub(crate) secrets: Arc<SecretCache>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl GroupWork for Entries {
    type Item = Submission;
    type Outcome = Verdict;
    const NAME: &'static str = "audit.append";

    async fn commit(&self, submissions: &[Submission]) -> Result<Vec<Result<Verdict, Error>>, Error> {
        if let Some(verdicts) = self.append_if_all_stands(submissions).await? {
            return Ok(verdicts);
        }
        let attempt = |tx, left_out| self.append(tx, submissions, left_out);
        commit_without_fallen(&self.store, Self::NAME, APPEND, attempt).await
    }
}

impl Entries {
    /// Appends all entries in one statement, unless that does not tell enough: then nothing is written.
    async fn append_if_all_stands(
        &self,
        submissions: &[Submission],
    ) -> Result<Option<Vec<Result<Verdict, Error>>>, Error> {
        let now = self.clock.now_micros();
        let bases = submissions.iter().map(|submission| &submission.basis);
        let Some(wanted) = Basis::all(bases) else { return Ok(None) };
        let each = submissions.iter();
        let entries: Vec<_> = each.map(|each| Entry::new(now, &each.record, &each.outcome)).collect();
        let append =
            async |connection: &mut _| audit::append_if_stands(connection, now, &entries, &wanted).await;
        let first_index = match self.store.at_once(Self::NAME, append).await {
            Err(error) if error.is_transient_conflict() => None,
            done => done?,
        };
        let Some(first_index) = first_index else { return Ok(None) };
        let audit_size = first_index + i64::try_from(entries.len()).unwrap_or_default();
        self.store.marks().raise(Reached { audit_size, ..Default::default() });
        Ok(Some(entries.iter().map(|_| Ok(Ok(None))).collect()))
    }

    /// Appends the entries of those whose basis stands once the head row is locked: then whoever changes that later has a
    /// later entry.
    async fn append(
        &self,
        mut tx: Tx,
        submissions: &[Submission],
        left_out: HashSet<usize>,
    ) -> Result<Attempt<Vec<Result<Verdict, Error>>>, Error> {
        let now = self.clock.now_micros();
        let is_left_out = |place: &usize| left_out.contains(place);
        // Before the head row is locked: whoever deletes a role holds its row, and may wait for the head.
        let served = submissions.iter().enumerate().filter(|(place, _)| !is_left_out(place));
        let leases = served.filter_map(|(_, submission)| submission.basis.lease.as_ref());
        let begun = lease::renew(&mut tx, leases, now).await?;
        let first_index = audit::lock(&mut tx).await?;
        let bases = submissions.iter().map(|submission| &submission.basis);
        let stands = WhatStands::now(&mut tx, bases, &self.secrets, first_index).await?;
        let (mut entries, mut verdicts) = (Vec::with_capacity(submissions.len()), Vec::new());
        let mut fallen = Vec::new();
        for (place, Submission { basis, record, outcome }) in submissions.iter().enumerate() {
            if is_left_out(&place) || !stands.holds(basis, || record.operation.paths()) {
                verdicts.push(Err(Error::Busy));
                // Its lease must not begin, or go on.
                fallen.extend(basis.lease.is_some().then_some(place).filter(|place| !is_left_out(place)));
                continue;
            }
            let (entry, verdict) = match &basis.lease {
                None => (Entry::new(now, record, outcome), Ok(None)),
                Some(lease) => lease.renewed(&begun, record, now),
            };
            entries.push(entry);
            verdicts.push(Ok(verdict));
        }
        if !fallen.is_empty() {
            return Ok(Attempt::Without(fallen));
        }
        audit::append_all(&mut tx, now, &entries).await?;
        let audit_size = first_index + i64::try_from(entries.len()).unwrap_or_default();
        tx.reaches(Reached { audit_size, ..Default::default() });
        Ok(Attempt::Whole(tx.commit(verdicts).await?))
    }
}
