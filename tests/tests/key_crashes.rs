//! A server that dies at any commit of its work on keys leaves everything whole, and the work is completed after its
//! restart: by itself, or by the same command once more where nothing had been done.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::{ChangeRootRequest, CreateRecoveryRequest, State};
use keyfold_tests::{
    Database, Installation, World,
    custody::{Keeper, name_recovery_key, unseal, unseal_with},
    faults::{operator_of, status, until_state, within},
    key_invariants::{Written, until_dead, write},
    key_works::{
        AUTHORITIES, BIG_REENCRYPTION, BIG_REWRAP, COMPROMISES, DESTRUCTIONS, DRILLS, OTHERS, OWN_KEYS,
        QUARANTINES, ROOTS, Rpc,
        Step::{self, Age, Call, Policy, Sql, TurnFile, Until},
        TABLE, TURNS,
        Trace::{self, Entries, Rows},
        Work,
    },
};
use serde_json::json;
use tonic::Status;

/// Two batches of a rewrap or of a re-encryption, together with `payments/db`.
const TWO_BATCHES: usize = 520;

/// How long a caller may wait for a server that has died.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Where the server is to die.
struct Crash {
    /// As `KEYFOLD_CRASH_AT` names it.
    point: String,
    transaction: &'static str,
    trace: Trace,
    /// What the trace is to come to when the server is dead.
    shown: u64,
}

/// A world whose server dies again and again.
struct Mortal {
    world: World,
    written: Written,
    /// Of the root key, where it is in files of its own.
    keeper: Option<Keeper>,
    /// Of the recovery key.
    shares: Vec<String>,
}

impl Mortal {
    async fn start(secrets: usize) -> Self {
        let mut world = World::start().await.with_payments().await;
        world.restart_mortal().await;
        let mut written = world.write_many(secrets).await;
        written.insert("payments/db".into(), "first".into());
        for (path, password) in [("payments/broken", "old"), ("payments/broken", "whole")] {
            write(&world.server, path, password).await.unwrap();
            written.insert(path.into(), password.into());
        }
        Self { world, written, keeper: None, shares: Vec::new() }
    }

    fn database(&self) -> &Database {
        &self.world.database
    }

    async fn dies_in(&mut self, works: &[Work]) {
        for work in works {
            for &(transaction, traces, trace) in work.dies_at {
                // The others are of batches in which nothing was left.
                let pairs = traces.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]);
                for (nth, pair) in pairs {
                    for (moment, shown) in [("before", pair[0]), ("after", pair[1])] {
                        let point = format!("{transaction}:{moment}:{}", nth + 1);
                        let crash = Crash { point, transaction, trace, shown };
                        // A worker may pass the place with nothing to do, such as while somebody else holds the keyset.
                        let mut attempts = 0;
                        while !self.dies_at(work, &crash).await {
                            attempts += 1;
                            assert!(
                                attempts < 5,
                                "{}: what the commit is to leave is never there",
                                crash.point
                            );
                        }
                    }
                }
            }
        }
    }

    /// Gives whether the crash was at a commit that left what it should.
    async fn dies_at(&mut self, work: &Work, crash: &Crash) -> bool {
        let point = &*crash.point;
        self.take_all(work.prepare).await;
        self.database().until_keys_are_settled(point).await;
        if self.written.len() > TWO_BATCHES {
            // Batches are whole only once no pod has asked for a second.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let stated = self.stated(work);
        let (digest, base) = (self.database().digest_of_keys(), self.trace(crash.trace));
        self.world.dies_at(Some(point));
        let begun = tokio::spawn(self.call(work.begin));
        self.take_unless_call(work.begin).await;
        self.world.until_dead(point).await;
        let answer = within(ANSWER_MAX, point, begun).await.unwrap();
        let is_own = matches!(work.begin, Call(rpc) if rpc.transaction() == crash.transaction);
        assert!(answer.is_err() || !is_own, "{point}: the caller was told that it is done");
        let shown = match crash.trace {
            Entries(_) => self.trace(crash.trace) - base,
            Rows(_) => self.trace(crash.trace),
        };
        assert!(shown <= crash.shown, "{point}: {shown} instead of {}", crash.shown);
        let is_undone = is_own && crash.shown == 0;
        if is_undone {
            assert_eq!(self.database().digest_of_keys(), digest, "{point}: something is half done");
        }
        self.database().assert_keys_are_whole();

        self.world.restart_mortal().await;
        if is_undone {
            assert_eq!(self.database().digest_of_keys(), digest, "{point}: something is done by itself");
            self.take(work.begin).await;
        }
        let wanted: Vec<_> =
            stated.iter().zip(work.states).map(|(before, (_, times))| before + times).collect();
        let is_stated = || self.stated(work).iter().zip(&wanted).all(|(now, wanted)| now >= wanted);
        self.database().until_true(&format!("{point}: the work to be stated"), is_stated).await;
        self.database().until_keys_are_settled(point).await;
        assert_eq!(self.stated(work), wanted, "{point}: how often each is stated of {:?}", work.states);
        self.assert_everything_works(point).await;
        self.take_all(work.undo).await;
        shown == crash.shown
    }

    fn trace(&self, trace: Trace) -> u64 {
        match trace {
            Entries(operation) => self.database().stated(operation),
            Rows(sql) => self.database().sql(sql).parse().unwrap(),
        }
    }

    /// How often each of the work's operations is stated.
    fn stated(&self, work: &Work) -> Vec<u64> {
        let operations: Vec<_> = work.states.iter().map(|(operation, _)| *operation).collect();
        self.database().stated_each(&operations)
    }

    async fn assert_everything_works(&mut self, point: &str) {
        let quarantined = self.database().sql("SELECT count(*) FROM quarantined_deks") != "0";
        let mut readable = self.written.clone();
        if quarantined {
            readable.remove("payments/broken");
        }
        self.world.assert_pods_read(&self.world.server, &readable).await;
        write(&self.world.server, "payments/new", point).await.unwrap();
        self.written.insert("payments/new".into(), point.into());
        let fresh = Written::from([("payments/new".into(), point.into())]);
        self.world.assert_pods_read(&self.world.server, &fresh).await;
        assert_eq!(status(&self.world.server).await.unwrap().state(), State::Serving);
    }

    async fn take_all(&mut self, steps: &[Step]) {
        for step in steps {
            self.take(*step).await;
        }
    }

    async fn take(&self, step: Step) {
        self.take_unless_call(step).await;
        match step {
            Call(rpc) => self.call(step).await.unwrap_or_else(|refused| panic!("{rpc:?}: {refused:?}")),
            Until(sql) => self.database().until_true(sql, || self.database().sql(sql) == "t").await,
            Policy(rotation) => {
                let spec = json!({"rotation": serde_json::from_str::<serde_json::Value>(rotation).unwrap()});
                self.world.server.apply("Keyspace", "payments", &spec).await.unwrap();
            }
            Sql(_) | Age(_) | TurnFile => {}
        }
    }

    async fn take_unless_call(&self, step: Step) {
        match step {
            Sql(sql) => drop(self.database().sql(sql)),
            Age(aged) => aged.apply(self.world.server.setup(), self.database()).await,
            TurnFile => self.keeper.as_ref().unwrap().turn_file(),
            Call(_) | Until(_) | Policy(_) => {}
        }
    }

    fn call(&self, step: Step) -> impl Future<Output = Result<(), Status>> + use<> {
        let active = "SELECT version - 1 FROM keks WHERE purpose = 'data' AND state = 'active'";
        let before_active = self.database().sql(active).parse().unwrap();
        let (operator, shares) = (self.world.operator(), self.shares.clone());
        async move {
            match step {
                Call(rpc) => rpc.call(operator, before_active, shares).await,
                _ => Ok(()),
            }
        }
    }

    /// Has the root key in files of its own.
    async fn with_keeper(mut self) -> Self {
        let keeper = Keeper::new("file");
        let server = &mut self.world.server;
        let file = server.setup().folder().join("root.key");
        server.setup_mut().configure("previous_root_key", json!({"file": {"current": file}})).unwrap();
        keeper.configure(server.setup_mut());
        self.world.restart_mortal().await;
        self.keeper = Some(keeper);
        self.take(Call(Rpc::ChangeRoot)).await;
        self.shares = create_recovery(&self.world.server).await;
        self
    }

    /// Has a copy of the database for drills.
    async fn with_backup(mut self) -> (Self, Database) {
        self.world.server.stop();
        let access = self.database().access.clone();
        let name = format!("{}_copy", self.database().name);
        access.create_database(&name, Some(&self.database().name)).unwrap();
        let drill_database = json!({
            "url": access.database_url(&name),
            "password_file": access.password_file(),
            "ca_file": access.ca_file(),
        });
        let recovery = json!({"drill_database": drill_database});
        self.world.server.setup_mut().configure("recovery", recovery).unwrap();
        self.world.restart_mortal().await;
        (self, Database { access, name, own: None })
    }
}

async fn create_recovery(server: &Server) -> Vec<String> {
    let request = CreateRecoveryRequest { shares: 3, threshold: 2 };
    let made = operator_of(server).root().create_recovery(request).await.unwrap().into_inner();
    name_recovery_key(server).await;
    made.shares.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_turn_is_completed_wherever_the_server_dies() {
    Mortal::start(0).await.dies_in(TURNS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_rewrap_of_several_batches_goes_on_wherever_the_server_dies() {
    Mortal::start(TWO_BATCHES).await.dies_in(BIG_REWRAP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_reencryption_of_several_batches_goes_on_wherever_the_server_dies() {
    Mortal::start(TWO_BATCHES).await.dies_in(BIG_REENCRYPTION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_what_a_compromised_key_reached_is_encrypted_anew_wherever_the_server_dies() {
    Mortal::start(3).await.dies_in(COMPROMISES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_what_does_not_open_is_in_quarantine_wherever_the_server_dies() {
    Mortal::start(3).await.dies_in(QUARANTINES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_destruction_is_scheduled_called_off_or_done_wherever_the_server_dies() {
    Mortal::start(3).await.dies_in(DESTRUCTIONS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_the_installations_own_keys_turn_wherever_the_server_dies() {
    Mortal::start(3).await.dies_in(OWN_KEYS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_the_authority_is_turned_wherever_the_server_dies() {
    Mortal::start(0).await.dies_in(AUTHORITIES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_the_root_is_changed_and_drilled_wherever_the_server_dies() {
    let mut mortal = Mortal::start(0).await.with_keeper().await;
    // A destroyed key stays as a row, and moves along.
    mortal.take_all(&[Call(Rpc::Rotate), Call(Rpc::Schedule(Some(1)))]).await;
    mortal.take(Until("SELECT count(*) = 1 FROM keks WHERE state = 'destroyed'")).await;
    mortal.dies_in(ROOTS).await;
    mortal.shares = create_recovery(&mortal.world.server).await;
    let (mut mortal, _backup) = mortal.with_backup().await;
    mortal.dies_in(DRILLS).await;
}

/// What shares open when the root key is lost for good.
#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_recovery_is_completed_wherever_the_server_dies() {
    let mut mortal = Mortal::start(0).await.with_keeper().await;
    for moment in ["before", "after"] {
        let point = format!("root.change:{moment}");
        let server = &mut mortal.world.server;
        server.stop();
        let keeper = Keeper::new("file");
        keeper.configure(server.setup_mut());
        server.setup_mut().configure("previous_root_key", json!(null)).unwrap();
        server.setup_mut().set_variable("KEYFOLD_CRASH_AT", Some(point.clone().into()));
        server.restart().await.unwrap();
        until_state(server, State::Sealed, "").await;
        let changes = mortal.world.database.stated("root.change");
        unseal(server, &mortal.shares[0]).await.unwrap();
        unseal(server, &mortal.shares[1]).await.unwrap_err();
        until_dead(server, &point).await;
        mortal.world.database.assert_keys_are_whole();
        assert_eq!(mortal.world.database.stated("root.change"), changes + u64::from(moment == "after"));

        server.setup_mut().set_variable("KEYFOLD_CRASH_AT", None);
        server.restart().await.unwrap();
        if moment == "before" {
            until_state(server, State::Sealed, "").await;
            unseal_with(server, &mortal.shares).await;
        }
        server.until_serving().await.unwrap();
        mortal.world.database.until_keys_are_settled(&point).await;
        assert_eq!(mortal.world.database.stated("root.change"), changes + 1);
        mortal.assert_everything_works(&point).await;
        mortal.keeper = Some(keeper);
    }
}

/// Shares that nobody was shown are nobody's: that is what the recovery key is asked for beforehand.
#[tokio::test(flavor = "multi_thread")]
async fn attack_21_shares_that_died_with_the_server_are_made_up_for_by_those_of_the_recovery_key() {
    let mut mortal = Mortal::start(0).await.with_keeper().await;
    let server = &mut mortal.world.server;
    let before = mortal.keeper.as_ref().unwrap().root_key();
    server.setup_mut().configure("previous_root_key", before).unwrap();
    Keeper::Shamir.configure(server.setup_mut());
    mortal.world.restart_mortal().await;
    mortal.world.dies_at(Some("root.change:after"));
    let request = ChangeRootRequest { custody: "shamir".into(), ..Default::default() };
    operator_of(&mortal.world.server).root().change_root(request).await.unwrap_err();
    mortal.world.until_dead("root.change:after").await;
    mortal.world.database.assert_keys_are_whole();

    let server = &mut mortal.world.server;
    server.setup_mut().set_variable("KEYFOLD_CRASH_AT", None);
    server.restart().await.unwrap();
    until_state(server, State::Sealed, "0 of 3 shares").await;
    unseal_with(server, &mortal.shares).await;
    server.until_serving().await.unwrap();
    let request = ChangeRootRequest { custody: "shamir".into(), ..Default::default() };
    let changed = operator_of(server).root().change_root(request).await.unwrap().into_inner();
    server.restart().await.unwrap();
    until_state(server, State::Sealed, "0 of 3 shares").await;
    unseal_with(server, &changed.shares).await;
    mortal.assert_everything_works("shamir").await;
    mortal.world.database.assert_keys_are_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_an_installation_whose_server_dies_as_it_is_made_is_there_or_is_not() {
    for moment in ["before", "after"] {
        let mut installation = Installation::uninitialised().await;
        let point = format!("system.initialize:{moment}");
        let server = &mut installation.server;
        server.setup_mut().set_variable("KEYFOLD_CRASH_AT", Some(point.clone().into()));
        server.restart().await.unwrap();
        server.initialise().await.unwrap_err();
        until_dead(server, &point).await;
        server.setup_mut().set_variable("KEYFOLD_CRASH_AT", None);
        server.restart().await.unwrap();
        match moment {
            "before" => server.initialise().await.unwrap(),
            _ => {
                server.until_serving().await.unwrap();
                server.initialise().await.unwrap_err();
            }
        }
        installation.database.until_keys_are_settled(&point).await;
    }
}

/// All names below `server/src` that a transaction may have, and those of operators' operations, which name theirs.
fn names() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    for file in sources(&root.join("server/src")) {
        let text = fs::read_to_string(&file).unwrap();
        found.extend(text.split('"').filter(|name| concerns_keys(name)).map(str::to_owned));
        found.extend(text.split(".tx(").skip(1).filter_map(|call| {
            let name = call.trim_start().strip_prefix('"')?;
            Some(name.split('"').next()?.to_owned())
        }));
    }
    let operations = fs::read_to_string(root.join("core/src/audit.rs")).unwrap();
    let renamed = operations.split("rename = \"").skip(1).filter_map(|rest| rest.split('"').next());
    found.extend(renamed.filter(|name| concerns_keys(name)).map(str::to_owned));
    found
}

fn concerns_keys(name: &str) -> bool {
    let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    name.split_once('.').is_some_and(|(topic, rest)| {
        ["key", "root", "recovery", "ca", "integrity"].contains(&topic) && !rest.is_empty() && is_word(rest)
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs")
    };
    folders.iter().flat_map(|folder| sources(folder)).chain(files.into_iter().filter(is_source)).collect()
}

#[test]
fn every_transaction_on_keys_has_a_crash_before_and_after_its_commit() {
    let works = TABLE.iter().flat_map(|works| works.iter());
    let tested: BTreeSet<_> =
        works.flat_map(|work| work.dies_at).map(|(name, ..)| (*name).to_owned()).collect();
    let others: BTreeSet<_> = OTHERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(tested.intersection(&others).next(), None);
    let known: BTreeSet<_> = tested.union(&others).cloned().collect();
    let names = names();
    let missing: Vec<_> = names.difference(&known).collect();
    assert!(missing.is_empty(), "neither in a table of works nor in OTHERS: {missing:?}");
    let stale: Vec<_> = known.difference(&names).collect();
    assert!(stale.is_empty(), "no longer anywhere in server/src: {stale:?}");
}
