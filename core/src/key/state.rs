//! The states of a key (NIST SP 800-57 part 1, section 7) and the moves between them; and the keyset, which holds all
//! versions of one key and keeps what must hold among them.

use std::fmt;

#[cfg(test)]
mod tests;

/// The state of one version of a key.
///
/// | state | wraps | unwraps |
/// | --- | --- | --- |
/// | pre-active | no | no; a replica tests it on what it wraps itself |
/// | active | yes | yes |
/// | deactivated | no | yes |
/// | compromised | no | for a rewrap only |
/// | destroy-scheduled | no | no |
/// | destroyed | no | no; the material is gone |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// Being handed to every replica.
    PreActive,
    /// The one that wraps.
    Active,
    /// Replaced; what it wrapped moves to the active one.
    Deactivated,
    /// Somebody may know it; what it wrapped is encrypted anew.
    Compromised,
    /// Waits for its end, which can still be called off.
    DestroyScheduled,
    /// Its material is gone. The version stays known, so that it is never used again.
    Destroyed,
}

/// A change of a key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// Every replica has it: it begins to wrap.
    Activate,
    /// Another takes its place.
    Deactivate,
    /// Somebody may know it.
    Compromise,
    /// It is to be destroyed.
    ScheduleDestruction,
    /// It is not to be destroyed after all.
    CancelDestruction {
        /// What it was before, and is again.
        to: Restored,
    },
    /// Its material is removed.
    Destroy,
    /// A pre-active key is not wanted. It goes the way of all keys, through destroy-scheduled, so that its end has a
    /// certificate too; but nothing was ever under it, so it need not wait, and it cannot be called back.
    Abandon,
}

/// The states from which a destruction is scheduled, and into which it is called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Restored {
    /// It was deactivated.
    Deactivated,
    /// It was compromised.
    Compromised,
}

impl From<Restored> for KeyState {
    fn from(restored: Restored) -> Self {
        match restored {
            Restored::Deactivated => Self::Deactivated,
            Restored::Compromised => Self::Compromised,
        }
    }
}

impl KeyState {
    /// All states, in the order of a key's life.
    pub const ALL: [Self; 6] = [
        Self::PreActive,
        Self::Active,
        Self::Deactivated,
        Self::Compromised,
        Self::DestroyScheduled,
        Self::Destroyed,
    ];

    /// Its name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreActive => "pre-active",
            Self::Active => "active",
            Self::Deactivated => "deactivated",
            Self::Compromised => "compromised",
            Self::DestroyScheduled => "destroy-scheduled",
            Self::Destroyed => "destroyed",
        }
    }

    /// The state of that exact name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// The state after a move.
    ///
    /// This looks at one version alone. That an active key leaves only together with its successor's arrival is the
    /// [`Keyset`]'s to keep.
    ///
    /// # Errors
    /// When the move is not legal from here.
    pub fn next(self, change: Move) -> Result<Self, IllegalMove> {
        match (self, change) {
            (Self::PreActive, Move::Activate) => Ok(Self::Active),
            (Self::PreActive, Move::Abandon) => Ok(Self::DestroyScheduled),
            (Self::Active, Move::Deactivate) => Ok(Self::Deactivated),
            (Self::Active | Self::Deactivated, Move::Compromise) => Ok(Self::Compromised),
            (Self::Deactivated | Self::Compromised, Move::ScheduleDestruction) => Ok(Self::DestroyScheduled),
            (Self::DestroyScheduled, Move::CancelDestruction { to }) => Ok(to.into()),
            (Self::DestroyScheduled, Move::Destroy) => Ok(Self::Destroyed),
            (from, change) => Err(IllegalMove { from, change }),
        }
    }

    /// Whether new DEKs may be wrapped by it.
    pub fn wraps(self) -> bool {
        self == Self::Active
    }

    /// Whether what it wrapped may be opened to be given out.
    pub fn unwraps(self) -> bool {
        matches!(self, Self::Active | Self::Deactivated)
    }

    /// Whether what it wrapped may be opened to be wrapped or encrypted anew.
    pub fn unwraps_for_rewrap(self) -> bool {
        self.unwraps() || self == Self::Compromised
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A move that a key's state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IllegalMove {
    /// The state that it is in.
    pub from: KeyState,
    /// What was asked for.
    pub change: Move,
}

impl std::error::Error for IllegalMove {}

impl fmt::Display for IllegalMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key that is {} cannot be {}: ", self.from, self.change.participle())?;
        f.write_str(match self.from {
            KeyState::PreActive => "it can be activated or abandoned",
            KeyState::Active => "rotate the key first, so that another takes its place",
            KeyState::Deactivated => "it can be declared compromised or scheduled for destruction",
            KeyState::Compromised => "it can be scheduled for destruction",
            KeyState::DestroyScheduled => "it can be destroyed, or its destruction cancelled",
            KeyState::Destroyed => "its material is gone for good",
        })
    }
}

impl Move {
    fn participle(self) -> &'static str {
        match self {
            Self::Activate => "activated",
            Self::Deactivate => "deactivated",
            Self::Compromise => "declared compromised",
            Self::ScheduleDestruction => "scheduled for destruction",
            Self::CancelDestruction { .. } => "taken back from destruction",
            Self::Destroy => "destroyed",
            Self::Abandon => "abandoned",
        }
    }
}

/// One version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyVersion {
    /// Counts up from 1.
    pub version: u32,
    /// Its state.
    pub state: KeyState,
    /// Of a key that is destroy-scheduled: what it was before. Absent for one that was abandoned.
    pub restored: Option<Restored>,
}

/// All versions of one key, such as of one keyspace and purpose. Always: versions are distinct, exactly one is active,
/// at most one is pre-active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyset(Vec<KeyVersion>);

impl Default for Keyset {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyset {
    /// A new key: version 1, active from the start. No replica can lack it, since nothing is under it before it is
    /// committed.
    pub fn new() -> Self {
        Self(vec![KeyVersion { version: 1, state: KeyState::Active, restored: None }])
    }

    /// A keyset as it is stored. Destroyed versions belong to it.
    ///
    /// # Errors
    /// When it is not a keyset: somebody has changed it past the server.
    pub fn load(versions: impl IntoIterator<Item = KeyVersion>) -> Result<Self, KeysetError> {
        let mut versions: Vec<_> = versions.into_iter().collect();
        versions.sort_by_key(|key| key.version);
        if let Some(twice) = versions.windows(2).find(|pair| pair[0].version == pair[1].version) {
            return Err(KeysetError::VersionTwice(twice[0].version));
        }
        let count = |state| versions.iter().filter(|key| key.state == state).count();
        match (count(KeyState::Active), count(KeyState::PreActive)) {
            (1, 0 | 1) => Ok(Self(versions)),
            (1, found) => Err(KeysetError::PreActiveKeys { found }),
            (found, _) => Err(KeysetError::ActiveKeys { found }),
        }
    }

    /// All versions, oldest first.
    pub fn versions(&self) -> &[KeyVersion] {
        &self.0
    }

    /// The version that wraps.
    pub fn active(&self) -> u32 {
        self.in_state(KeyState::Active).expect("a keyset has an active key")
    }

    /// The version that is being handed to the replicas.
    pub fn pre_active(&self) -> Option<u32> {
        self.in_state(KeyState::PreActive)
    }

    /// The version that the next key gets: above all that ever were.
    pub fn next_version(&self) -> u32 {
        self.0.last().map_or(1, |newest| newest.version + 1)
    }

    /// The state of a version.
    pub fn state(&self, version: u32) -> Option<KeyState> {
        self.0.iter().find(|key| key.version == version).map(|key| key.state)
    }

    /// Adds a pre-active key, and tells its version.
    ///
    /// # Errors
    /// When there is one already.
    pub fn create(&mut self) -> Result<u32, KeysetError> {
        if let Some(version) = self.pre_active() {
            return Err(KeysetError::TurnUnderWay { version });
        }
        let version = self.next_version();
        self.0.push(KeyVersion { version, state: KeyState::PreActive, restored: None });
        Ok(version)
    }

    /// The pre-active key takes the active one's place, which is deactivated in the same step.
    ///
    /// # Errors
    /// When the version is not the pre-active one.
    pub fn activate(&mut self, version: u32) -> Result<(), KeysetError> {
        self.succeed(version, Move::Deactivate)
    }

    /// Declares a version compromised. An active one needs a successor that is pre-active and takes its place in the
    /// same step.
    ///
    /// # Errors
    /// When its state does not allow it, or the active one has no successor.
    pub fn compromise(&mut self, version: u32) -> Result<(), KeysetError> {
        if self.key(version)?.state != KeyState::Active {
            return self.change(version, Move::Compromise);
        }
        let successor = self.pre_active().ok_or(KeysetError::NoSuccessor { version })?;
        self.succeed(successor, Move::Compromise)
    }

    /// Schedules the destruction of a version that is deactivated or compromised.
    ///
    /// # Errors
    /// When it is neither.
    pub fn schedule_destruction(&mut self, version: u32) -> Result<(), KeysetError> {
        let restored = match self.key(version)?.state {
            KeyState::Compromised => Restored::Compromised,
            _ => Restored::Deactivated,
        };
        self.change(version, Move::ScheduleDestruction)?;
        self.key(version)?.restored = Some(restored);
        Ok(())
    }

    /// Calls a destruction off; the version is what it was.
    ///
    /// # Errors
    /// When none is scheduled, or the version was never in use.
    pub fn cancel_destruction(&mut self, version: u32) -> Result<(), KeysetError> {
        let key = self.key(version)?;
        match (key.state, key.restored) {
            (KeyState::DestroyScheduled, None) => Err(KeysetError::Abandoned { version }),
            (_, restored) => {
                let to = restored.unwrap_or(Restored::Deactivated);
                self.change(version, Move::CancelDestruction { to })
            }
        }
    }

    /// Removes the material of a version whose destruction is scheduled.
    ///
    /// # Errors
    /// When it is not.
    pub fn destroy(&mut self, version: u32) -> Result<(), KeysetError> {
        self.change(version, Move::Destroy)
    }

    /// Gives the pre-active version up.
    ///
    /// # Errors
    /// When the version is not pre-active.
    pub fn abandon(&mut self, version: u32) -> Result<(), KeysetError> {
        self.change(version, Move::Abandon)
    }

    fn succeed(&mut self, successor: u32, predecessor_move: Move) -> Result<(), KeysetError> {
        let predecessor = self.active();
        self.key(successor)?.state.next(Move::Activate)?;
        self.change(predecessor, predecessor_move)?;
        self.change(successor, Move::Activate)
    }

    fn change(&mut self, version: u32, change: Move) -> Result<(), KeysetError> {
        let key = self.key(version)?;
        key.state = key.state.next(change)?;
        key.restored = None;
        Ok(())
    }

    fn key(&mut self, version: u32) -> Result<&mut KeyVersion, KeysetError> {
        let found = self.0.iter_mut().find(|key| key.version == version);
        found.ok_or(KeysetError::NoSuchVersion { version })
    }

    fn in_state(&self, state: KeyState) -> Option<u32> {
        self.0.iter().find(|key| key.state == state).map(|key| key.version)
    }
}

/// Why a keyset did not change, or is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeysetError {
    /// From the version's state there is no such move.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// Nobody made it.
    #[error("version {version} does not exist")]
    NoSuchVersion {
        /// Asked for.
        version: u32,
    },
    /// A second turn cannot begin.
    #[error("version {version} is being handed to the replicas already: wait until it is active")]
    TurnUnderWay {
        /// The pre-active one.
        version: u32,
    },
    /// Without an active key nothing could be written.
    #[error("version {version} is active and has no successor yet: a new key must be pre-active first")]
    NoSuccessor {
        /// The active one.
        version: u32,
    },
    /// It was never in use.
    #[error("version {version} was abandoned before it was in use: rotate the key instead")]
    Abandoned {
        /// The abandoned one.
        version: u32,
    },
    /// Stored wrongly.
    #[error("the keyset has {found} active keys instead of one: its rows were changed past the server")]
    ActiveKeys {
        /// How many.
        found: usize,
    },
    /// Stored wrongly.
    #[error("the keyset has {found} pre-active keys: its rows were changed past the server")]
    PreActiveKeys {
        /// How many.
        found: usize,
    },
    /// Stored wrongly.
    #[error("the keyset has version {0} twice: its rows were changed past the server")]
    VersionTwice(u32),
}
