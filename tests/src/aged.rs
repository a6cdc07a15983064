//! Keys and authorities as if time had gone by. Their times are under their rows' MACs, so these are made anew, as only
//! somebody can who has the root key.

use std::{fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold::dev::server::Setup;
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    key::{KeyState, Purpose},
    secret::Key,
};
use keyfold_server::{
    config,
    integrity::digest_of,
    keys::{keyring::Keyring, rwk::Rwk},
    store::{
        Store, ca_certificates, installation, integrity_head,
        keks::{self, KekRow},
        root_wrapping_keys,
    },
};
use time::{Duration, OffsetDateTime};

use crate::Database;

/// What is made older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aged {
    /// The keyspace's active key: its turn was due ten days ago.
    ActiveKey,
    /// The version before the active one: it has been deactivated for two days.
    DeactivatedKey,
    /// The next authority, by two days.
    NextAuthority,
}

impl Aged {
    /// Makes it so, with the root key in the server's folder.
    ///
    /// # Panics
    /// When it does not work.
    pub async fn apply(self, setup: &Setup, database: &Database) {
        for _ in 0..20 {
            let script = self.script(setup, database).await;
            // Somebody may have changed keys meanwhile.
            if database.access.sql(&database.name, &script).is_ok() {
                return;
            }
        }
        panic!("{self:?} could not be made");
    }

    async fn script(self, setup: &Setup, database: &Database) -> String {
        let store = Store::new(&config::Database {
            url: database.access.database_url(&database.name),
            password_file: Some(database.access.password_file().to_owned()),
            ca_file: database.access.ca_file().to_owned(),
            max_connections: 2,
            max_staleness_millis: 1000,
        });
        let store = store.expect("a store");
        let keyring = open(setup, &store).await;
        let macs = keyring.row_macs();
        let mut moment = store.moment().await.expect("a moment");
        if self == Self::NextAuthority {
            let mut rows = ca_certificates::all(&mut moment, macs).await.expect("authorities");
            let next = rows.iter_mut().find(|row| row.state == "next").expect("a next authority");
            next.created_at -= Duration::days(2);
            return format!(
                "UPDATE ca_certificates SET created_at = {}, mac = {} WHERE version = {}",
                at(next.created_at),
                hex(&macs.seal(next).expect("a MAC")),
                next.version
            );
        }
        let mut head = integrity_head::find(&mut moment, macs).await.expect("the head").head;
        let rows = keks::all(&mut moment, macs).await.expect("keys");
        let mut aged = self.age(&rows);
        let before = aged.mac.clone();
        aged.mac = macs.seal(&aged).expect("a MAC");
        let all = rows.iter().map(|row| if row.id == aged.id { &aged } else { row });
        head.keys_digest = digest_of(&all.map(|row| (row.id, row.mac.clone())).collect()).to_vec();
        format!(
            "DO $do$ BEGIN
                 UPDATE keks SET created_at = {}, activated_at = {}, deactivated_at = {}, mac = {}
                 WHERE id = '{}' AND mac = {};
                 IF NOT FOUND THEN RAISE 'the key has changed'; END IF;
                 UPDATE keysets SET last_scheduled_run = NULL WHERE purpose = 'data';
                 UPDATE integrity_head SET keys_digest = {}, mac = {} WHERE generation = {};
                 IF NOT FOUND THEN RAISE 'the head has changed'; END IF;
             END $do$",
            at(aged.created_at),
            aged.activated_at.map_or("NULL".to_owned(), at),
            aged.deactivated_at.map_or("NULL".to_owned(), at),
            hex(&aged.mac),
            aged.id,
            hex(&before),
            hex(&head.keys_digest),
            hex(&macs.seal(&head).expect("a MAC")),
            head.generation
        )
    }

    fn age(self, rows: &[KekRow]) -> KekRow {
        let now = SystemClock.now();
        let data = || rows.iter().filter(|row| row.purpose == Purpose::Data);
        let active = data().find(|row| row.state == KeyState::Active).expect("an active key");
        if self == Self::ActiveKey {
            let created_at = now - Duration::days(101);
            return KekRow { created_at, activated_at: Some(now - Duration::days(100)), ..active.clone() };
        }
        let before = data().find(|row| row.version + 1 == active.version).expect("a key before");
        assert_eq!(before.state, KeyState::Deactivated, "it was deactivated");
        KekRow { deactivated_at: Some(now - Duration::days(2)), ..before.clone() }
    }
}

async fn open(setup: &Setup, store: &Store) -> Keyring {
    let root = fs::read(setup.folder().join("root.key")).expect("the root key");
    let root = Key::from_bytes(&STANDARD.decode(root).expect("base64").try_into().expect("32 bytes"));
    let mut connection = store.connection().await.expect("a connection");
    let installation =
        installation::find(&mut connection).await.expect("an answer").expect("an installation");
    let row = root_wrapping_keys::newest(&mut connection).await.expect("an answer").expect("an RWK");
    let keyring = Keyring::new(Arc::new(Rwk::open(installation, &row, &root).expect("the RWK opens")));
    keyring.load_system(&keks::system(&mut connection).await.expect("keys")).expect("they open");
    keyring
}

fn at(time: OffsetDateTime) -> String {
    format!("timestamptz 'epoch' + interval '{} microseconds'", time.unix_timestamp_nanos() / 1_000)
}

fn hex(bytes: &[u8]) -> String {
    format!("'\\x{}'", hex::encode(bytes))
}
