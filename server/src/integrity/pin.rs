//! The pin file: how far this server has seen the database come, kept where who can write to Postgres cannot. A database
//! that is older, or whose log went another way, is refused at the start.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::row_mac::RowEncoder;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::{
        log_end::LogEnd,
        row_macs::{Guarded, RowMacs},
    },
    store::integrity_head::Standing,
};

/// What the file holds, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The installation.
    pub installation: Uuid,
    /// Of the integrity head.
    pub generation: i64,
    /// Entries in the audit log.
    pub audit_entries: i64,
    /// Leaf hash of the last of them, in base64.
    pub leaf_hash: String,
    /// By the row-mac key, in base64: a database with other keys does not pass for the pinned one.
    #[serde(default)]
    pub mac: String,
}

impl Guarded for Pin {
    const TABLE: &'static str = "pin-file";

    fn which(&self) -> String {
        "the pin file".into()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.installation).i64(self.generation).i64(self.audit_entries).str(&self.leaf_hash)
    }
}

impl Pin {
    /// Reads the file; nothing when there is none yet.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub fn read(file: &Path) -> Result<Option<Self>, String> {
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("integrity.pin_file {}: {error}", file.display())),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| format!("integrity.pin_file {}: {error}", file.display()))
    }

    /// Writes the file so that there is always a whole one.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&self, file: &Path) -> Result<(), String> {
        self.replace(file).map_err(|error| format!("integrity.pin_file {}: {error}", file.display()))
    }

    fn replace(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        let mut written = File::create(&new)?;
        written.write_all(&serde_json::to_vec(self)?)?;
        written.sync_all()?;
        fs::rename(&new, file)?;
        match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// The pin of the database as it is; nothing while the log is empty, or has lost its end.
    ///
    /// # Errors
    /// Those of Postgres; `Corrupt` without an active row-mac key.
    pub async fn of(
        connection: &mut PgConnection,
        macs: &RowMacs,
        standing: &Standing,
    ) -> Result<Option<Self>, Error> {
        let Some(LogEnd { entries, leaf_hash }) = LogEnd::of(connection, standing).await? else {
            return Ok(None);
        };
        let mut pin = Self {
            installation: macs.installation(),
            generation: standing.head.generation,
            audit_entries: entries,
            leaf_hash: STANDARD.encode(leaf_hash),
            mac: String::new(),
        };
        pin.mac = STANDARD.encode(macs.seal(&pin)?);
        Ok(Some(pin))
    }

    /// Why the database is not the one that was pinned, or a later state of it; nothing when it is.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn refusal(
        &self,
        connection: &mut PgConnection,
        macs: &RowMacs,
        standing: &Standing,
    ) -> Result<Option<String>, Error> {
        let (entries, generation) = (standing.audit_size, standing.head.generation);
        if entries < self.audit_entries || generation < self.generation {
            return Ok(Some(format!(
                "the database is older than this server has seen it: {entries} audit entries and generation \
                 {generation}, not {} and {}",
                self.audit_entries, self.generation
            )));
        }
        let leaf_hash = STANDARD.decode(&self.leaf_hash).unwrap_or_default();
        if !(LogEnd { entries: self.audit_entries, leaf_hash }).is_there(connection).await? {
            let index = self.audit_entries - 1;
            return Ok(Some(format!("audit entry {index} is not the one that this server has seen")));
        }
        // What the log and the head say, whoever writes to Postgres can copy; not the keys.
        let is_own = macs.check(self, &STANDARD.decode(&self.mac).unwrap_or_default()).is_ok();
        Ok((!is_own).then(|| "none of the row-mac keys in the database has made its MAC".to_owned()))
    }
}
