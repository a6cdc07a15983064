//! What Keyfold does, one function an operation. Authentication, authorisation and the audit entry live here, behind
//! these functions, so that no adapter can forget them.

use std::{net::IpAddr, sync::Arc};

use keyfold_core::{
    audit::{Actor, Entry, IssuedItem, Operation, Outcome, Record},
    clock::Clock,
    entropy::Entropy,
    name::ObjectName,
    object::{Capability, Kind},
    path::SecretPath,
    pattern::Pattern,
    payload::Fields,
    policy,
    refusal::Refusal,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    authn::{Authenticator, AuthnError},
    ca::Authorities,
    callers::{Callers, Places},
    directory::{Directory, Snapshot},
    error::Error,
    integrity::{marks::Reached, row_macs::RowMacs, watch::Integrity},
    k8s::ApiServers,
    keys::{
        keyring::{Keyring, number},
        worker::Worker,
    },
    listener::ClientCertificate,
    seal::Seal,
    secret_cache::SecretCache,
    shares::Share,
    store::{Isolation, Store, Tx, audit, integrity_head, secret_versions::StoredVersion},
    turns::Turn,
};

pub mod approvals;
pub mod audit_log;
mod authorise;
mod basis;
pub mod ca;
pub mod compromise;
pub mod config;
pub mod destruction;
pub mod drill;
pub(crate) mod entries;
pub mod explain;
mod folding;
pub(crate) mod group;
pub mod key_status;
pub mod keys;
mod lease;
pub(crate) mod puts;
pub mod recovery;
pub mod root;
pub mod secrets;
pub mod system;
mod unseal;
mod work;
mod workload;

use basis::Basis;
use entries::{Entries, Submission};
use folding::Folding;
use group::Group;
use lease::Lease;
use puts::Puts;

/// Why appending an entry needs no stronger isolation.
pub(crate) const APPEND: Isolation =
    Isolation::ReadCommittedPlannedOnce { because: "the head row's lock orders all appends" };

/// Most bytes of one volume's secrets, encrypted, together.
const ISSUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often an operation is decided anew because what is declared changes all the time, before its caller is told.
const ROUNDS_MAX: u32 = 8;

/// Holds everything that operations need.
pub struct Broker {
    pub(crate) store: Store,
    pub(crate) authenticator: Authenticator,
    pub(crate) directory: Directory,
    pub(crate) api_servers: ApiServers,
    pub(crate) seal: Arc<Seal>,
    pub(crate) integrity: Arc<Integrity>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) folding: Folding,
    pub(crate) entries: Group<Entries>,
    pub(crate) puts: Group<Puts>,
    pub(crate) secrets: Arc<SecretCache>,
    pub(crate) callers: Callers,
    pub(crate) worker: Worker,
    pub(crate) drills: drill::Drills,
    /// Names this process in entries.
    pub(crate) replica: Uuid,
    pub(crate) authorities: Authorities,
    /// Whether pods' secrets are issued only to drivers that have shown a certificate.
    pub(crate) requires_driver_certificate: bool,
}

/// What every operation knows of its call.
pub struct Call {
    /// Joins the call's audit entries.
    pub request_id: Uuid,
    /// Where it came from.
    pub from: Option<IpAddr>,
    /// What its connection's client has shown.
    pub certificate: ClientCertificate,
    /// The token of its `authorization` metadata.
    pub token: Option<Zeroizing<String>>,
    /// The plan of its `keyfold-approval` metadata.
    pub approval: Option<Uuid>,
    /// Its network address's place among the requests in work.
    pub(crate) _place: Share<IpAddr>,
    /// Its turn to be worked on.
    pub(crate) _turn: Turn,
}

impl Call {
    fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.as_str())
    }

    fn record(&self, actor: Actor, operation: Operation) -> Record {
        Record {
            request_id: self.request_id,
            from: self.from,
            actor,
            driver: None,
            operation,
            approval: None,
            generation: None,
        }
    }
}

/// What becomes known of a request while it is decided.
struct Draft {
    record: Record,
    basis: Basis,
    /// How often it was decided, with this time.
    rounds: u32,
    /// The caller's, among the requests in work, until the draft is dropped.
    places: Option<Places>,
}

impl Draft {
    fn new(record: Record, rounds: u32) -> Self {
        Self { record, basis: Basis::default(), rounds, places: None }
    }
}

/// A pod's request for the secrets of one volume.
pub struct IssueRequest<'a> {
    /// The pod's token.
    pub pod_token: &'a str,
    /// The app role to act under.
    pub role: Option<&'a str>,
    /// The secrets wanted, each path once.
    pub items: Vec<WantedItem>,
}

/// One wanted secret.
pub struct WantedItem {
    /// Its path.
    pub path: SecretPath,
    /// Whether it may be left out when it is not there or not granted.
    pub optional: bool,
}

/// The secrets of one volume.
pub struct Issued {
    /// The app role that they were issued under.
    pub role: String,
    /// In the order of the request.
    pub secrets: Vec<IssuedSecret>,
    /// When they must be gone from the volume unless they are issued anew before.
    pub lease_expires_at: Option<OffsetDateTime>,
}

/// One issued secret.
pub struct IssuedSecret {
    /// Its path.
    pub path: String,
    /// Its version.
    pub version: u32,
    /// Its fields.
    pub fields: Fields,
}

impl Broker {
    /// Issues the secrets of one volume to a pod, all or none.
    ///
    /// # Errors
    /// A refusal that names every refused item; `Sealed`; those of Postgres.
    pub async fn issue(&self, call: &Call, request: &IssueRequest<'_>) -> Result<Issued, Error> {
        let keyring = self.seal.keyring()?;
        // Whoever moves DEKs gives way when pods have to wait.
        let _measured = self.worker.pace.issue();
        let mut snapshot = self.directory.current().await?;
        let mut rounds = 1;
        let (role, versions, lease_expires_at, _places) = loop {
            let mut draft = Draft::new(call.record(Actor::unknown(), request.operation()), rounds);
            // 1 to 3: who is it, what may it have, what is stored?
            let decision = self.decide(call, request, &keyring, &snapshot, &mut draft).await;
            // Nobody is refused by what another replica has changed a moment ago.
            if matches!(decision, Err(Error::Refused(_)))
                && rounds < ROUNDS_MAX
                && let Some(newer) = self.directory.newer_than(&snapshot).await?
            {
                snapshot = newer;
                rounds += 1;
                continue;
            }
            // 4. The entry is durable before any value leaves, and what was decided on still stands; a refusal is an
            // entry too.
            match self.audited_on(draft.basis, draft.record, decision).await {
                Err(Error::Busy) if rounds < ROUNDS_MAX => {
                    snapshot = self.directory.newer_than(&snapshot).await?.unwrap_or(snapshot);
                    rounds += 1;
                }
                done => {
                    let ((role, versions), lease_expires_at) = done?;
                    break (role, versions, lease_expires_at, draft.places);
                }
            }
        };

        // 5. Only now is anything decrypted, and nothing by a compromised key.
        let versions = self.without_compromised_keys(&keyring, versions).await?;
        let mut secrets = Vec::with_capacity(versions.len());
        for version in versions {
            let fields = self.open(&keyring, &version).await?;
            secrets.push(IssuedSecret {
                path: version.path.clone(),
                version: number(version.version)?,
                fields,
            });
        }
        Ok(Issued { role: role.to_string(), secrets, lease_expires_at })
    }

    async fn decide(
        &self,
        call: &Call,
        request: &IssueRequest<'_>,
        keyring: &Keyring,
        snapshot: &Snapshot,
        draft: &mut Draft,
    ) -> Result<(ObjectName, Vec<Arc<StoredVersion>>), Error> {
        // 1. Who is it?
        let driver_token = call.token().unwrap_or_default();
        let caller = self
            .authenticator
            .pod_caller(request.pod_token, driver_token, &snapshot.issuers)
            .await
            .map_err(|error| note_authentication_error(&mut draft.record, error))?;
        draft.record.actor = Actor::Pod(Arc::clone(caller.identity()));
        draft.record.driver = Some(Arc::clone(caller.driver()));
        draft.places = Some(self.callers.of_pod(&caller)?);
        call.check_certificate(caller.driver(), self.requires_driver_certificate, self.now())?;

        // 2. What may it have? On another node it is nothing, whatever the roles say.
        let driver_node = caller.driver().node.as_ref();
        policy::check_same_node(caller.identity().node.as_ref(), driver_node)?;
        let labels = self.labels(&caller, snapshot, request.role).await?;
        let role =
            policy::select_role(caller.identity(), driver_node, &labels, &snapshot.app_roles, request.role)?;
        let rule = |item: &WantedItem| policy::decide(caller.identity(), role, &item.path, Capability::Read);
        let decided: Vec<_> = request.items.iter().map(|item| (item, rule(item))).collect();
        note_rules(&mut draft.record, &role.name, &decided);
        policy::check_node(role, caller.identity().node.as_ref(), driver_node)?;
        self.review(&caller, request.pod_token, driver_token, role, snapshot).await?;
        self.check_condition(call, &caller, role, &request.items, snapshot).await?;
        let (granted, refused): (Vec<_>, Vec<_>) = decided.iter().partition(|(_, rule)| rule.is_some());
        draft.basis.objects.extend(snapshot.standing(Kind::Issuer, &caller.identity().issuer));
        draft.basis.objects.extend(snapshot.standing(Kind::AppRole, &role.name));
        draft.basis.lease = Lease::of(caller.identity(), role, snapshot)?;

        // 3. What is stored?
        let paths: Vec<_> = granted.iter().map(|(item, _)| item.path.as_str()).collect();
        let macs = keyring.row_macs();
        // What others write all the time has always changed again by the time of the entry: then it is read anew.
        let may_be_held = draft.rounds == 1;
        let current = self.secrets.current(&self.store, macs, &paths, may_be_held).await?;
        draft.basis.as_of = current.as_of;
        let missing = granted.iter().zip(&current.versions).filter(|(_, found)| found.is_none());
        let missing = required(missing.map(|((item, _), _)| *item));
        let refused = required(refused.iter().map(|(item, _)| *item));
        if !refused.is_empty() || !missing.is_empty() {
            return Err(Refusal::Items { role: role.name.clone(), refused, missing }.into());
        }
        let versions: Vec<_> = current.versions.into_iter().flatten().collect();
        check_size(&versions)?;
        note_versions(&mut draft.record, &versions)?;
        Ok((role.name.clone(), versions))
    }

    /// Decrypts a version, whose read has its entry.
    async fn open(&self, keyring: &Keyring, version: &StoredVersion) -> Result<Fields, Error> {
        let opened = match keyring.open_by_held_key(version) {
            Some(opened) => opened,
            None => {
                let mut connection = self.store.connection().await?;
                Box::pin(keyring.open_version(&mut connection, version)).await
            }
        };
        if opened.is_err() {
            // Whoever mends the row in Postgres, from a backup say, is to find it mended.
            self.secrets.forget(&version.path);
        }
        opened
    }

    /// Commits the entry of an operation that is decided, then gives the decision back. A failure of ours has no entry:
    /// nothing was decided.
    pub(crate) async fn audited<T>(&self, record: Record, decision: Result<T, Error>) -> Result<T, Error> {
        Ok(self.audited_on(Basis::default(), record, decision).await?.0)
    }

    /// The same for a decision that rests on declared objects and, it may be, on a lease, whose new end it gives. When that
    /// is over, the entry is the refusal's.
    async fn audited_on<T>(
        &self,
        basis: Basis,
        record: Record,
        decision: Result<T, Error>,
    ) -> Result<(T, Option<OffsetDateTime>), Error> {
        let error = match decision {
            Ok(value) => {
                let submission = Submission { basis, record, outcome: Outcome::Allowed };
                return Ok((value, self.entries.submit(submission).await??));
            }
            Err(error) => error,
        };
        let outcome = match &error {
            Error::Refused(refusal) => Outcome::from(refusal),
            answer if answer.is_answer() => Outcome::refused(answer.code(), &answer.to_string()),
            _ => return Err(error),
        };
        if self.folding.admits(&record, &outcome, Instant::now()) {
            self.append_refusal(record, outcome).await?;
        }
        Err(error)
    }

    /// Appends the entries of refusals that were folded.
    ///
    /// # Errors
    /// Those of Postgres; what was counted is lost then.
    pub async fn append_folded(&self) -> Result<(), Error> {
        for (record, outcome) in self.folding.due(Instant::now()) {
            self.append_refusal(record, outcome).await?;
        }
        Ok(())
    }

    async fn append_refusal(&self, record: Record, outcome: Outcome) -> Result<(), Error> {
        self.entries.submit(Submission { basis: Basis::default(), record, outcome }).await?.map(drop)?;
        Ok(())
    }

    /// Appends one entry, and carries what the transaction has changed of guarded rows into the integrity head. Best a
    /// transaction's last statement, for it locks the head rows.
    pub(crate) async fn append(&self, tx: &mut Tx, record: &Record, outcome: &Outcome) -> Result<(), Error> {
        if !tx.changes().is_empty() {
            return self.append_guarded(tx, self.seal.keyring()?.row_macs(), record, outcome).await;
        }
        let at = self.now();
        let index = audit::append(tx, at, &Entry::new(at, record, outcome)).await?;
        tx.reaches(Reached { audit_size: index + 1, ..Default::default() });
        Ok(())
    }

    /// The same for a transaction that changed guarded rows, also where the server does not serve yet.
    pub(crate) async fn append_guarded(
        &self,
        tx: &mut Tx,
        macs: &RowMacs,
        record: &Record,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let at = self.now();
        let changes = std::mem::take(tx.changes());
        let head = integrity_head::lock(tx, macs).await?.after(tx, &changes, at).await?;
        let mut entry = Entry::new(at, record, outcome);
        entry.generation = Some(head.generation.cast_unsigned());
        let index = audit::append(tx, at, &entry).await?;
        tx.reaches(Reached { generation: head.generation, audit_size: index + 1, revision: 0 });
        integrity_head::write(tx, macs, &head).await
    }

    /// An id that joins a call's entries.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new_request_id(&self) -> Result<Uuid, Error> {
        Ok(self.entropy.uuid()?)
    }

    /// The present moment in whole microseconds, as Postgres keeps it.
    pub(crate) fn now(&self) -> OffsetDateTime {
        self.clock.now_micros()
    }
}

/// One volume's secrets travel in one message, and are held in memory meanwhile.
fn check_size(versions: &[Arc<StoredVersion>]) -> Result<(), Error> {
    let bytes: usize = versions.iter().map(|version| version.payload.len()).sum();
    if bytes <= ISSUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the volume's secrets have {bytes} bytes together, and may have {ISSUE_BYTES_MAX}: split the volume"
    )))
}

fn required<'a>(items: impl Iterator<Item = &'a WantedItem>) -> Vec<SecretPath> {
    items.filter(|item| !item.optional).map(|item| item.path.clone()).collect()
}

impl IssueRequest<'_> {
    /// What is asked for, before anything is decided.
    fn operation(&self) -> Operation {
        let item = |item: &WantedItem| IssuedItem { path: item.path.to_string(), version: None, rule: None };
        let items = self.items.iter().map(item).collect();
        Operation::SecretIssue { role: self.role.map(str::to_owned), items, lease_expires_at: None }
    }
}

/// Keeps for the entry what was decided on each item, in their order.
fn note_rules(record: &mut Record, decided_by: &ObjectName, decided: &[(&WantedItem, Option<&Pattern>)]) {
    let Operation::SecretIssue { role, items, .. } = &mut record.operation else { return };
    *role = Some(decided_by.to_string());
    for (item, (_, rule)) in items.iter_mut().zip(decided) {
        item.rule = rule.map(ToString::to_string);
    }
}

/// Keeps for the entry who was verified before the refusal.
fn note_authentication_error(record: &mut Record, error: AuthnError) -> Error {
    match error {
        AuthnError::Refused { refusal, pod, driver } => {
            if let Some(identity) = pod {
                record.actor = Actor::Pod(identity);
            }
            record.driver = driver;
            refusal.into()
        }
        AuthnError::KeysUnavailable { issuer } => Error::IssuerUnavailable(issuer.to_string()),
    }
}

fn note_versions(record: &mut Record, versions: &[Arc<StoredVersion>]) -> Result<(), Error> {
    let Operation::SecretIssue { items, .. } = &mut record.operation else { return Ok(()) };
    for version in versions {
        if let Some(item) = items.iter_mut().find(|item| item.path == version.path) {
            item.version = Some(number(version.version)?);
        }
    }
    Ok(())
}
