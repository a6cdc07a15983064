//! How far a replica has seen the database come: what it has read, and what it has committed itself.

use std::sync::{Mutex, PoisonError};

/// A point in the database's history. None of its numbers ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Of the integrity head.
    pub generation: i64,
    /// Entries in the audit log.
    pub audit_size: i64,
    /// Of what is declared.
    pub revision: i64,
}

impl Reached {
    /// Whether any of it is less than `floor`.
    pub fn is_behind(&self, floor: &Self) -> bool {
        self.generation < floor.generation
            || self.audit_size < floor.audit_size
            || self.revision < floor.revision
    }
}

/// The furthest that is known.
#[derive(Debug, Default)]
pub struct Marks(Mutex<Reached>);

impl Marks {
    /// What is known now. Who compares the database with it takes it before asking the database: a later commit of this
    /// replica's own may be missing in an answer that is under way.
    pub fn floor(&self) -> Reached {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes notice of what is committed.
    pub fn raise(&self, reached: Reached) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.generation = marks.generation.max(reached.generation);
        marks.audit_size = marks.audit_size.max(reached.audit_size);
        marks.revision = marks.revision.max(reached.revision);
    }
}
