//! What Keyfold does, one function an operation. Authentication, authorisation and the audit entry live here, behind
//! these functions, so that no adapter can forget them.

use std::{collections::HashMap, sync::Arc};

use keyfold_core::{
    audit::{Actor, Entry, IssuedItem, Operation, Outcome},
    clock::Clock,
    entropy::Entropy,
    identity::WorkloadIdentity,
    object::{Capability, Kind, Spec},
    path::SecretPath,
    payload::Fields,
    policy::{self, AppRole},
    refusal::Refusal,
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::{
    authn::{self, Authenticator, AuthnError, IssuerRecord, OperatorCaller},
    error::Error,
    keys::keyring::number,
    seal::Seal,
    store::{
        Isolation, Store, admin_tokens, audit, objects,
        secret_versions::{self, StoredVersion},
    },
};

pub mod audit_log;
pub mod config;
pub mod keys;
pub mod secrets;
pub mod system;
mod work;

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
}

/// A pod's request for the secrets of one volume.
pub struct IssueRequest<'a> {
    /// The pod's token.
    pub pod_token: &'a str,
    /// The token of the driver that presents it; empty when it gave none.
    pub driver_token: &'a str,
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
    pub async fn issue(&self, request: &IssueRequest<'_>) -> Result<Issued, Error> {
        let keyring = self.seal.keyring()?;
        let mut record = Record::new(Actor::unknown(), request.operation());
        let decision = async {
            // 1. Who is it?
            let issuers = self.issuers().await?;
            let caller = self
                .authenticator
                .pod_caller(request.pod_token, request.driver_token, &issuers)
                .await
                .map_err(|error| record.note_authentication_error(error))?;
            record.actor = Actor::pod(caller.identity());

            // 2. What may it have?
            let mut connection = self.store.connection().await?;
            let roles = self.candidate_roles(&mut connection, request.role).await?;
            let role = policy::select_role(caller.identity(), &roles, request.role)?;
            record.operation = request.operation_under(role, caller.identity());
            policy::check_node(role, caller.identity().node.as_ref(), caller.driver().node.as_ref())?;
            let (granted, refused) = request.split_by_grant(role, caller.identity());

            // 3. What is stored?
            let paths: Vec<String> = granted.iter().map(|item| item.path.to_string()).collect();
            let found = secret_versions::current(&mut connection, &paths).await?;
            let mut found: HashMap<_, _> =
                found.into_iter().map(|found| (found.path.clone(), found)).collect();
            let missing = required(granted.iter().filter(|item| !found.contains_key(item.path.as_str())));
            let refused = required(refused.iter());
            if !refused.is_empty() || !missing.is_empty() {
                return Err(Refusal::Items { role: role.name.clone(), refused, missing }.into());
            }
            let versions: Vec<_> = paths.iter().filter_map(|path| found.remove(path)).collect();
            check_size(&versions)?;
            record.note_versions(&versions)?;
            Ok((role.name.to_string(), versions))
        }
        .await;

        // 4. The entry is durable before any value leaves; a refusal is an entry too.
        let (role, versions) = self.audited(record, decision).await?;

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
        token: Option<&str>,
        operation: Operation,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        self.seal.keyring()?;
        let caller = match self.operator(token).await {
            Ok(caller) => caller,
            Err(error) => return self.audited(Record::new(Actor::unknown(), operation), Err(error)).await,
        };
        let record = Record::new(Actor::Operator { name: caller.name().to_owned() }, operation);
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

    async fn operator(&self, token: Option<&str>) -> Result<OperatorCaller, Error> {
        let tokens = admin_tokens::live(&mut *self.store.connection().await?).await?;
        Ok(authn::operator(token, &tokens)?)
    }

    /// Commits the entry of an operation that is decided, then gives the decision back. A failure of ours has no entry:
    /// nothing was decided.
    pub(crate) async fn audited<T>(&self, record: Record, decision: Result<T, Error>) -> Result<T, Error> {
        let outcome = match &decision {
            Ok(_) => Outcome::Allowed,
            Err(Error::Refused(refusal)) => Outcome::from(refusal),
            Err(error) if error.is_answer() => {
                Outcome::Refused { reason: error.code().to_owned(), message: error.to_string() }
            }
            Err(_) => return decision,
        };
        self.append_alone(&record, &outcome).await?;
        decision
    }

    /// Appends one entry in a transaction of its own.
    pub(crate) async fn append_alone(&self, record: &Record, outcome: &Outcome) -> Result<(), Error> {
        self.store
            .tx("audit.append", APPEND, |mut tx| async move {
                self.append(&mut tx, record, outcome).await?;
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
        let (actor, operation) = (record.actor.clone(), record.operation.clone());
        let entry = Entry::new(at, self.entropy.uuid()?, actor, operation, outcome.clone());
        audit::append(connection, at, &entry).await
    }

    /// The present moment in whole microseconds, as Postgres keeps it.
    pub(crate) fn now(&self) -> OffsetDateTime {
        let now = self.clock.now();
        now.replace_nanosecond(now.nanosecond() / 1_000 * 1_000).unwrap_or(now)
    }

    /// Gives its connection back before it answers: checking a token may wait for an issuer's keys.
    async fn issuers(&self) -> Result<Vec<IssuerRecord>, Error> {
        let mut connection = self.store.connection().await?;
        let mut issuers = Vec::new();
        for object in objects::list(&mut connection, Some(Kind::Issuer)).await? {
            if let Spec::Issuer(spec) = object.spec()? {
                issuers.push(IssuerRecord { name: object.name, generation: object.generation, spec });
            }
        }
        Ok(issuers)
    }

    async fn candidate_roles(
        &self,
        connection: &mut PgConnection,
        named: Option<&str>,
    ) -> Result<Vec<AppRole>, Error> {
        let stored = match named {
            Some(name) => objects::find(connection, Kind::AppRole, name).await?.into_iter().collect(),
            None => objects::list(connection, Some(Kind::AppRole)).await?,
        };
        let mut roles = Vec::with_capacity(stored.len());
        for object in stored {
            if let Spec::AppRole(spec) = object.spec()? {
                roles.push(AppRole { name: object.name, spec });
            }
        }
        Ok(roles)
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

fn required<'a>(items: impl Iterator<Item = &'a &'a WantedItem>) -> Vec<SecretPath> {
    items.filter(|item| !item.optional).map(|item| item.path.clone()).collect()
}

impl IssueRequest<'_> {
    fn operation(&self) -> Operation {
        let item = |item: &WantedItem| IssuedItem { path: item.path.to_string(), version: None, rule: None };
        Operation::SecretIssue {
            role: self.role.map(str::to_owned),
            items: self.items.iter().map(item).collect(),
        }
    }

    fn operation_under(&self, role: &AppRole, identity: &WorkloadIdentity) -> Operation {
        let item = |item: &WantedItem| IssuedItem {
            path: item.path.to_string(),
            version: None,
            rule: policy::decide(identity, role, &item.path, Capability::Read).map(ToString::to_string),
        };
        Operation::SecretIssue {
            role: Some(role.name.to_string()),
            items: self.items.iter().map(item).collect(),
        }
    }

    fn split_by_grant(
        &self,
        role: &AppRole,
        identity: &WorkloadIdentity,
    ) -> (Vec<&WantedItem>, Vec<&WantedItem>) {
        self.items
            .iter()
            .partition(|item| policy::decide(identity, role, &item.path, Capability::Read).is_some())
    }
}

/// What the entry of an operation will state, filled in as it becomes known.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) actor: Actor,
    pub(crate) operation: Operation,
}

impl Record {
    pub(crate) fn new(actor: Actor, operation: Operation) -> Self {
        Self { actor, operation }
    }

    fn note_authentication_error(&mut self, error: AuthnError) -> Error {
        match error {
            AuthnError::Refused { refusal, pod } => {
                if let Some(identity) = pod {
                    self.actor = Actor::pod(&identity);
                }
                refusal.into()
            }
            AuthnError::KeysUnavailable { issuer } => Error::IssuerUnavailable(issuer.to_string()),
        }
    }

    fn note_versions(&mut self, versions: &[StoredVersion]) -> Result<(), Error> {
        let Operation::SecretIssue { items, .. } = &mut self.operation else { return Ok(()) };
        for version in versions {
            if let Some(item) = items.iter_mut().find(|item| item.path == version.path) {
                item.version = Some(number(version.version)?);
            }
        }
        Ok(())
    }
}
