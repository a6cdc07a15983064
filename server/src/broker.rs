//! What Keyfold does, one function an operation. Authentication, authorisation and the audit entry live here, behind
//! these functions, so that no adapter can forget them.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use keyfold_core::{
    audit::{Actor, Entry, IssuedItem, Operation, Outcome, Record},
    clock::Clock,
    entropy::Entropy,
    object::{Capability, Kind, Spec},
    path::SecretPath,
    pattern::Pattern,
    payload::Fields,
    policy::{self, AppRole},
    refusal::Refusal,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    authn::{self, Authenticator, AuthnError, IssuerRecord, OperatorCaller},
    error::Error,
    keys::keyring::number,
    seal::Seal,
    store::{
        Isolation, Store, admin_tokens, audit,
        objects::{self, Object},
        secret_versions::{self, StoredVersion},
    },
};

pub mod audit_log;
pub mod config;
mod folding;
pub mod keys;
pub mod secrets;
pub mod system;
mod work;

use folding::Folding;
use work::{Allowed, OperatorWork};

/// Why appending an entry needs no stronger isolation.
const APPEND: Isolation = Isolation::ReadCommitted { because: "the head row's lock orders all appends" };

/// Most bytes of one volume's secrets, encrypted, together.
const ISSUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Holds everything that operations need.
pub struct Broker {
    pub(crate) store: Store,
    pub(crate) authenticator: Authenticator,
    pub(crate) seal: Seal,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) folding: Folding,
}

/// What every operation knows of its call.
pub struct Call {
    /// Joins the call's audit entries.
    pub request_id: Uuid,
    /// Where it came from.
    pub from: Option<IpAddr>,
    /// The token of its `authorization` metadata.
    pub token: Option<Zeroizing<String>>,
}

impl Call {
    fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.as_str())
    }

    fn record(&self, actor: Actor, operation: Operation) -> Record {
        Record { request_id: self.request_id, from: self.from, actor, driver: None, operation }
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
        let mut record = call.record(Actor::unknown(), request.operation());
        let mut basis = Vec::new();
        let decision = async {
            // 1. Who is it?
            let (issuers, issuer_objects) = self.issuers().await?;
            let driver_token = call.token().unwrap_or_default();
            let caller = self
                .authenticator
                .pod_caller(request.pod_token, driver_token, &issuers)
                .await
                .map_err(|error| note_authentication_error(&mut record, error))?;
            record.actor = Actor::pod(caller.identity());
            record.driver = Some(Box::new(caller.driver().into()));

            // 2. What may it have?
            let mut connection = self.store.connection().await?;
            let (roles, role_objects) = self.candidate_roles(&mut connection, request.role).await?;
            let role = policy::select_role(caller.identity(), &roles, request.role)?;
            let rule =
                |item: &WantedItem| policy::decide(caller.identity(), role, &item.path, Capability::Read);
            let decided: Vec<_> = request.items.iter().map(|item| (item, rule(item))).collect();
            record.operation = operation(Some(role.name.as_str()), &decided);
            policy::check_node(role, caller.identity().node.as_ref(), caller.driver().node.as_ref())?;
            let (granted, refused): (Vec<_>, Vec<_>) = decided.iter().partition(|(_, rule)| rule.is_some());
            basis.extend(issuer_objects.into_iter().filter(|object| object.name == caller.identity().issuer));
            basis.extend(role_objects.iter().filter(|object| object.name == role.name).cloned());

            // 3. What is stored?
            let paths: Vec<String> = granted.iter().map(|(item, _)| item.path.to_string()).collect();
            let found = secret_versions::current(&mut connection, &paths).await?;
            let mut found: HashMap<_, _> =
                found.into_iter().map(|found| (found.path.clone(), found)).collect();
            let missing = granted.iter().filter(|(item, _)| !found.contains_key(item.path.as_str()));
            let missing = required(missing.map(|(item, _)| *item));
            let refused = required(refused.iter().map(|(item, _)| *item));
            if !refused.is_empty() || !missing.is_empty() {
                return Err(Refusal::Items { role: role.name.clone(), refused, missing }.into());
            }
            let versions: Vec<_> = paths.iter().filter_map(|path| found.remove(path)).collect();
            check_size(&versions)?;
            note_versions(&mut record, &versions)?;
            Ok((role.name.to_string(), versions))
        }
        .await;

        // 4. The entry is durable before any value leaves, and what was decided on still stands; a refusal is an entry too.
        let (role, versions) = self.audited_on(&basis, record, decision).await?;

        // 5. Only now is anything decrypted.
        let mut secrets = Vec::with_capacity(versions.len());
        let mut connection = self.store.connection().await?;
        for version in versions {
            let fields = keyring.open_version(&mut connection, &version).await?;
            secrets.push(IssuedSecret { path: version.path, version: number(version.version)?, fields });
        }
        Ok(Issued { role, secrets })
    }

    /// Runs an operator's operation: authenticates, then does the work in one transaction with its entry. `work` can
    /// succeed only through `OperatorWork::allow`, which appends the entry; its refusal is appended in a transaction of
    /// its own.
    pub(crate) async fn operate<'a, T, W>(
        &'a self,
        call: &Call,
        operation: Operation,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        self.seal.keyring()?;
        let caller = match self.operator(call).await {
            Ok(caller) => caller,
            Err(error) => return self.audited(call.record(Actor::unknown(), operation), Err(error)).await,
        };
        let record = call.record(Actor::Operator { name: caller.name().to_owned() }, operation);
        let isolation = Isolation::ReadCommitted {
            because: "each operation locks the rows that it decides on, and the head row's lock orders all appends",
        };
        let done = self
            .store
            .tx(record.operation.name(), isolation, |tx| {
                let work = work(OperatorWork::new(self, tx, record.clone()));
                async move { Ok(work.await?.into_committed()) }
            })
            .await;
        match done {
            Err(error) if error.is_answer() => self.audited(record, Err(error)).await,
            done => done,
        }
    }

    async fn operator(&self, call: &Call) -> Result<OperatorCaller, Error> {
        let tokens = admin_tokens::live(&mut *self.store.connection().await?).await?;
        Ok(authn::operator(call.token(), &tokens)?)
    }

    /// Commits the entry of an operation that is decided, then gives the decision back. A failure of ours has no entry:
    /// nothing was decided.
    pub(crate) async fn audited<T>(&self, record: Record, decision: Result<T, Error>) -> Result<T, Error> {
        self.audited_on(&[], record, decision).await
    }

    /// The same for a decision that rests on declared objects. The entry is appended only if they stand unchanged once
    /// the head row is locked: then whoever changes one later has a later entry.
    async fn audited_on<T>(
        &self,
        basis: &[Object],
        record: Record,
        decision: Result<T, Error>,
    ) -> Result<T, Error> {
        let outcome = match &decision {
            Ok(_) => Outcome::Allowed,
            Err(Error::Refused(refusal)) => Outcome::from(refusal),
            Err(error) if error.is_answer() => Outcome::refused(error.code(), &error.to_string()),
            Err(_) => return decision,
        };
        if self.folding.admits(&record, &outcome, Instant::now()) {
            let basis = if outcome == Outcome::Allowed { basis } else { &[] };
            self.append_alone(basis, &record, &outcome).await?;
        }
        decision
    }

    /// Appends the entries of refusals that were folded.
    ///
    /// # Errors
    /// Those of Postgres; what was counted is lost then.
    pub async fn append_folded(&self) -> Result<(), Error> {
        for (record, outcome) in self.folding.due(Instant::now()) {
            self.append_alone(&[], &record, &outcome).await?;
        }
        Ok(())
    }

    /// Appends one entry in a transaction of its own.
    async fn append_alone(&self, basis: &[Object], record: &Record, outcome: &Outcome) -> Result<(), Error> {
        self.store
            .tx("audit.append", APPEND, |mut tx| async move {
                self.append(&mut tx, record, outcome).await?;
                if !basis.is_empty() && !objects::stand_unchanged(&mut tx, basis).await? {
                    return Err(Error::Busy);
                }
                tx.commit(()).await
            })
            .await
    }

    /// Appends one entry. Best a transaction's last statement, for it locks the head row.
    pub(crate) async fn append(
        &self,
        connection: &mut PgConnection,
        record: &Record,
        outcome: &Outcome,
    ) -> Result<(), Error> {
        let at = self.now();
        audit::append(connection, at, &Entry::new(at, record.clone(), outcome.clone())).await
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
        let now = self.clock.now();
        now.replace_nanosecond(now.nanosecond() / 1_000 * 1_000).unwrap_or(now)
    }

    /// Gives its connection back before it answers: checking a token may wait for an issuer's keys.
    async fn issuers(&self) -> Result<(Vec<IssuerRecord>, Vec<Object>), Error> {
        let mut connection = self.store.connection().await?;
        let objects = objects::list(&mut connection, Some(Kind::Issuer)).await?;
        let mut issuers = Vec::with_capacity(objects.len());
        for object in &objects {
            if let Spec::Issuer(spec) = object.spec()? {
                issuers.push(IssuerRecord { name: object.name.clone(), generation: object.generation, spec });
            }
        }
        Ok((issuers, objects))
    }

    async fn candidate_roles(
        &self,
        connection: &mut PgConnection,
        named: Option<&str>,
    ) -> Result<(Vec<AppRole>, Vec<Object>), Error> {
        let objects: Vec<_> = match named {
            Some(name) => objects::find(connection, Kind::AppRole, name).await?.into_iter().collect(),
            None => objects::list(connection, Some(Kind::AppRole)).await?,
        };
        let mut roles = Vec::with_capacity(objects.len());
        for object in &objects {
            if let Spec::AppRole(spec) = object.spec()? {
                roles.push(AppRole { name: object.name.clone(), spec });
            }
        }
        Ok((roles, objects))
    }
}

/// One volume's secrets travel in one message, and are held in memory meanwhile.
fn check_size(versions: &[StoredVersion]) -> Result<(), Error> {
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
        let undecided: Vec<_> = self.items.iter().map(|item| (item, None)).collect();
        operation(self.role, &undecided)
    }
}

fn operation(role: Option<&str>, decided: &[(&WantedItem, Option<&Pattern>)]) -> Operation {
    let item = |(item, rule): &(&WantedItem, Option<&Pattern>)| IssuedItem {
        path: item.path.to_string(),
        version: None,
        rule: rule.map(ToString::to_string),
    };
    Operation::SecretIssue { role: role.map(str::to_owned), items: decided.iter().map(item).collect() }
}

fn note_authentication_error(record: &mut Record, error: AuthnError) -> Error {
    match error {
        AuthnError::Refused { refusal, pod, driver } => {
            if let Some(identity) = pod {
                record.actor = Actor::pod(&identity);
            }
            record.driver = driver.map(|driver| Box::new((&*driver).into()));
            refusal.into()
        }
        AuthnError::KeysUnavailable { issuer } => Error::IssuerUnavailable(issuer.to_string()),
    }
}

fn note_versions(record: &mut Record, versions: &[StoredVersion]) -> Result<(), Error> {
    let Operation::SecretIssue { items, .. } = &mut record.operation else { return Ok(()) };
    for version in versions {
        if let Some(item) = items.iter_mut().find(|item| item.path == version.path) {
            item.version = Some(number(version.version)?);
        }
    }
    Ok(())
}
