//! An operator's operation under way. In a module of its own, so that no operation can commit past its audit entry:
//! `OperatorWork::allow` is the only way to `Allowed`.

use keyfold_core::audit::{Operation, Outcome, Record};
use sqlx::PgConnection;

use crate::{
    broker::Broker,
    error::Error,
    store::{Committed, Tx},
};

/// An operator's operation, in its transaction.
pub(crate) struct OperatorWork<'a> {
    broker: &'a Broker,
    tx: Tx,
    record: Record,
}

/// What an operation gave, once it is committed together with its entry.
pub(crate) struct Allowed<T>(Committed<T>);

impl<'a> OperatorWork<'a> {
    pub(super) fn new(broker: &'a Broker, tx: Tx, record: Record) -> Self {
        Self { broker, tx, record }
    }

    /// Its transaction.
    pub(crate) fn tx(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Refines what its entry will state.
    pub(crate) fn state(&mut self, operation: Operation) {
        self.record.operation = operation;
    }

    /// What its entry will state as far as is known.
    pub(crate) fn record(&self) -> Record {
        self.record.clone()
    }

    /// Who does it.
    pub(crate) fn operator(&self) -> String {
        self.record.actor.name().to_owned()
    }

    /// Appends the entry, commits, and gives `value` back.
    pub(crate) async fn allow<T>(mut self, value: T) -> Result<Allowed<T>, Error> {
        self.broker.append(&mut self.tx, &self.record, &Outcome::Allowed).await?;
        Ok(Allowed(self.tx.commit(value).await?))
    }
}

impl<T> Allowed<T> {
    pub(super) fn into_committed(self) -> Committed<T> {
        self.0
    }
}
