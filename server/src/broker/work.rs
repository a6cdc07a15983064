//! An operator's operation under way. In a module of its own, so that no operation can commit past its audit entry:
//! `OperatorWork::allow` is the only way to `Allowed`.

use std::{future::ready, sync::Arc};

use keyfold_core::{
    audit::{Actor, Operation, Outcome, Record},
    object::Kind,
    plan::{Plan, PlannedObject, Version, guardable},
    rights::Rights,
};

use crate::{
    authn::{OperatorCaller, OperatorKind},
    broker::{
        Broker, Call, ROUNDS_MAX,
        approvals::{self, Guard},
        authorise,
        basis::Basis,
        note_authentication_error,
        puts::Put,
    },
    callers::Places,
    directory::Snapshot,
    error::Error,
    secret_cache::AsOf,
    store::{
        Committed, Isolation, Tx, admin_tokens,
        objects::{self, Standing},
    },
};

impl Broker {
    /// Runs an operator's operation: authenticates, authorises, then does the work in one transaction with its entry.
    /// `work` can succeed only through `OperatorWork::allow`, which appends the entry; its refusal is appended in a
    /// transaction of its own.
    pub(crate) async fn operate<'a, T, W>(
        &'a self,
        call: &Call,
        operation: Operation,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        self.operate_on(call, operation, |_| ready(Ok(Vec::new())), work).await
    }

    /// Writes a secret's version, together with those of others: `put` makes it for whoever may.
    pub(super) async fn put(
        &self,
        call: &Call,
        operation: Operation,
        put: impl Fn(&Operator, Record) -> Result<Put, Error>,
    ) -> Result<u32, Error> {
        let put = &put;
        let work = move |operator: Arc<Operator>, record| async move {
            self.puts.submit(put(&operator, record)?).await
        };
        self.decide_and_do(call, operation, |_| ready(Ok(Vec::new())), || ready(Ok(())), work).await
    }

    /// The same for an operation that needs something from elsewhere, which `before` does once it is certain that the
    /// operator may, and ahead of the transaction: nobody waits for locks meanwhile. It may be run again.
    pub(crate) async fn operate_after<'a, T, B, W>(
        &'a self,
        call: &Call,
        operation: Operation,
        before: impl Fn() -> B,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        B: Future<Output = Result<(), Error>>,
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        self.operate_on_after(call, operation, |_| ready(Ok(Vec::new())), before, work).await
    }

    /// Runs an operator's read: authenticates, authorises, reads, and commits the entry together with those of others.
    /// Nothing of what was read may leave before that, which this makes sure of.
    pub(super) async fn read<T, R>(
        &self,
        call: &Call,
        operation: Operation,
        read: impl Fn(Arc<Operator>) -> R,
    ) -> Result<T, Error>
    where
        R: Future<Output = Result<Read<T>, Error>>,
    {
        let read = &read;
        let work = move |operator: Arc<Operator>, mut record: Record| async move {
            if operator.is_guarded() {
                // What a second person has signed is used up in a transaction of its own.
                let alone = |work| read_alone(work, read);
                return Box::pin(self.work_as(Arc::clone(&operator), &record, &alone)).await;
            }
            let Read { value, operation, as_of } = read(Arc::clone(&operator)).await?;
            record.operation = operation;
            let basis = operator.as_basis(&record.operation, as_of);
            Ok(self.audited_on(basis, record, Ok(value)).await?.0)
        };
        self.decide_and_do(call, operation, |_| ready(Ok(Vec::new())), || ready(Ok(())), work).await
    }

    /// The same for an operation that declares objects, which `objects` reads and checks once the operator may do it.
    pub(crate) async fn operate_on<'a, T, O, W>(
        &'a self,
        call: &Call,
        operation: Operation,
        objects: impl Fn(Rights) -> O,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        O: Future<Output = Result<Vec<PlannedObject>, Error>>,
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        self.operate_on_after(call, operation, objects, || ready(Ok(())), work).await
    }

    async fn operate_on_after<'a, T, O, B, W>(
        &'a self,
        call: &Call,
        operation: Operation,
        objects: impl Fn(Rights) -> O,
        before: impl Fn() -> B,
        work: impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        O: Future<Output = Result<Vec<PlannedObject>, Error>>,
        B: Future<Output = Result<(), Error>>,
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        let work = &work;
        let work = move |operator, record| async move { self.work_as(operator, &record, work).await };
        self.decide_and_do(call, operation, objects, before, work).await
    }

    pub(super) async fn decide_and_do<T, O, B, D>(
        &self,
        call: &Call,
        operation: Operation,
        objects: impl Fn(Rights) -> O,
        before: impl Fn() -> B,
        work: impl Fn(Arc<Operator>, Record) -> D,
    ) -> Result<T, Error>
    where
        O: Future<Output = Result<Vec<PlannedObject>, Error>>,
        B: Future<Output = Result<(), Error>>,
        D: Future<Output = Result<T, Error>>,
    {
        self.seal.keyring()?;
        let mut snapshot = self.directory.current().await?;
        let mut rounds = 1;
        loop {
            let mut record = call.record(Actor::unknown(), operation.clone());
            let mut unapproved = None;
            let done = match self.operator(call, &snapshot, &mut record, &objects).await {
                Ok(Operator { guarded: Some((guard, plan)), .. }) if call.approval.is_none() => {
                    let refusal = guard.refusal(&plan);
                    unapproved = Some(plan);
                    Err(refusal.into())
                }
                Ok(operator) => match self.prepare_operation(&operator, &before).await {
                    Ok(()) => work(Arc::new(Operator { rounds, ..operator }), record.clone()).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            // Nobody is refused by what another replica has changed a moment ago, and nobody allowed.
            if matches!(done, Err(Error::Refused(_) | Error::Busy)) && rounds < ROUNDS_MAX {
                let newer = self.directory.newer_than(&snapshot).await?;
                if newer.is_some() || matches!(done, Err(Error::Busy)) {
                    snapshot = newer.unwrap_or(snapshot);
                    rounds += 1;
                    continue;
                }
            }
            if done.is_ok() && changes_directory(&operation) {
                self.directory.look().await;
            }
            return match (done, unapproved) {
                (Err(refusal), Some(plan)) => Box::pin(self.keep_plan(&plan, record, refusal)).await,
                (Err(error), None) if error.is_answer() => self.audited(record, Err(error)).await,
                (done, _) => done,
            };
        }
    }

    /// Does what goes ahead of the transaction, which may leave traces elsewhere: only for who has what allows it.
    async fn prepare_operation<B>(&self, operator: &Operator, before: &impl Fn() -> B) -> Result<(), Error>
    where
        B: Future<Output = Result<(), Error>>,
    {
        if let Some((guard, plan)) = &operator.guarded {
            Box::pin(self.check_approval(guard, plan)).await?;
        }
        before().await
    }

    /// Who calls, if they may do what the record states. The record then names them.
    async fn operator<O>(
        &self,
        call: &Call,
        snapshot: &Arc<Snapshot>,
        record: &mut Record,
        objects: &impl Fn(Rights) -> O,
    ) -> Result<Operator, Error>
    where
        O: Future<Output = Result<Vec<PlannedObject>, Error>>,
    {
        let caller = self
            .authenticator
            .operator(call.token(), &snapshot.admin_tokens, &snapshot.issuers)
            .await
            .map_err(|error| note_authentication_error(record, error))?;
        let rights = match caller.kind() {
            OperatorKind::InitialAdministrator => Rights::of_initial_administrator(),
            OperatorKind::Identity(identity) => {
                Rights::of(&identity.issuer, &identity.claims, &snapshot.operator_roles)
            }
        };
        record.actor = actor(&caller, &rights);
        let places = self.callers.of_operator(&caller)?;
        self.review_operator(call.token().unwrap_or_default(), &caller, snapshot).await?;
        authorise::check(caller.name(), &rights, &record.operation)?;
        let basis = basis(&caller, &rights, snapshot);
        let objects = objects(rights.clone()).await?;
        let guarded = match Guard::of(snapshot, &record.operation, &objects) {
            Some(guard) => {
                Guard::check_plannable(&record.operation)?;
                let plan = self.plan_of(call, &caller, &guard, &record.operation, &objects)?;
                Some((guard, plan))
            }
            None => None,
        };
        Ok(Operator {
            caller,
            rights,
            basis,
            objects,
            guarded,
            snapshot: Arc::clone(snapshot),
            rounds: 1,
            _places: places,
        })
    }

    /// What the call asks for as a second person is to sign it, or has.
    fn plan_of(
        &self,
        call: &Call,
        caller: &OperatorCaller,
        guard: &Guard,
        operation: &Operation,
        objects: &[PlannedObject],
    ) -> Result<Plan, Error> {
        let now = self.now();
        Ok(Plan {
            v: Version,
            id: call.approval.map_or_else(|| self.entropy.uuid(), Ok)?,
            installation: self.seal.keyring()?.installation(),
            requested_by: caller.name().to_owned(),
            requested_at: now,
            expires_at: guard.expiry(now),
            operation: operation.clone(),
            objects: objects.to_vec(),
        })
    }

    async fn work_as<'a, T, W>(
        &'a self,
        operator: Arc<Operator>,
        record: &Record,
        work: &impl Fn(OperatorWork<'a>) -> W,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<Allowed<T>, Error>>,
    {
        let isolation = Isolation::ReadCommitted {
            because: "each operation locks the rows that it decides on, and the head row's lock orders all appends",
        };
        self.store
            .tx(record.operation.name(), isolation, |tx| {
                let begun = OperatorWork::begin(self, Arc::clone(&operator), tx, record.clone());
                async move { Ok(work(begun.await?).await?.into_committed()) }
            })
            .await
    }
}

async fn read_alone<'a, T, R>(
    mut work: OperatorWork<'a>,
    read: &impl Fn(Arc<Operator>) -> R,
) -> Result<Allowed<T>, Error>
where
    R: Future<Output = Result<Read<T>, Error>>,
{
    let Read { value, operation, as_of: _ } = read(Arc::clone(&work.operator)).await?;
    work.state(operation);
    work.allow(value).await
}

/// Whether the operation changes what the directory holds.
fn changes_directory(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::ConfigApply { dry_run: false, .. }
            | Operation::ConfigDelete { .. }
            | Operation::SystemRevokeInitialAdministrator {}
    )
}

fn actor(caller: &OperatorCaller, rights: &Rights) -> Actor {
    let credential_id = match caller.kind() {
        OperatorKind::InitialAdministrator => None,
        OperatorKind::Identity(identity) => identity.credential_id.clone(),
    };
    let roles = rights.roles().iter().map(ToString::to_string).collect();
    Actor::Operator { name: caller.name().to_owned(), roles, credential_id }
}

fn basis(caller: &OperatorCaller, rights: &Rights, snapshot: &Snapshot) -> Vec<Standing> {
    let OperatorKind::Identity(identity) = caller.kind() else { return Vec::new() };
    let issuer = snapshot.standing(Kind::Issuer, &identity.issuer);
    let roles = rights.roles().iter().map(|role| snapshot.standing(Kind::OperatorRole, role));
    roles.chain([issuer]).flatten().collect()
}

/// An operator who is allowed an operation, and what that rests on.
pub(crate) struct Operator {
    pub(super) caller: OperatorCaller,
    pub(super) rights: Rights,
    /// The operator's issuer and all roles that bind them.
    pub(super) basis: Vec<Standing>,
    /// Those that the operation declares.
    objects: Vec<PlannedObject>,
    /// What asks for a second person, and what they are to have signed.
    guarded: Option<(Guard, Plan)>,
    /// What all this was decided on.
    snapshot: Arc<Snapshot>,
    /// How often it was decided, with this time.
    rounds: u32,
    /// Among those in work, until the operation is done.
    pub(super) _places: Places,
}

/// What an operator's read found.
pub(super) struct Read<T> {
    pub(super) value: T,
    /// What its entry states.
    pub(super) operation: Operation,
    /// The secrets that this names have not changed since then, where that matters.
    pub(super) as_of: Option<AsOf>,
}

impl Operator {
    /// Whether a second person had to sign the operation.
    pub(super) fn is_guarded(&self) -> bool {
        self.guarded.is_some()
    }

    /// Whether what it reads may come from a cache, for its entry to confirm. That is tried once: what others write all the
    /// time has always changed again by then.
    pub(super) fn may_read_cache(&self) -> bool {
        !self.is_guarded() && self.rounds == 1
    }

    /// What allows the operation, to be confirmed in the transaction of its entry.
    pub(super) fn as_basis(&self, operation: &Operation, as_of: Option<AsOf>) -> Basis {
        let revision = guardable(operation).map(|_| self.snapshot.revision());
        let admin_token = match self.caller.kind() {
            OperatorKind::Identity(_) => None,
            OperatorKind::InitialAdministrator => Some(self.caller.name().to_owned()),
        };
        Basis { objects: self.basis.clone(), admin_token, revision, as_of, lease: None }
    }

    /// Whether what allows the operation still stands. Where a rule could guard the operation that is all that is
    /// declared, since no rule may have come to guard it meanwhile.
    async fn stands(&self, tx: &mut Tx, operation: &Operation) -> Result<bool, Error> {
        if guardable(operation).is_some() && objects::revision(tx).await? != self.snapshot.revision() {
            return Ok(false);
        }
        // Whatever the revision: a database that went back, to a backup or a standby that was behind, may have counted
        // as far again with other objects.
        match self.caller.kind() {
            OperatorKind::Identity(_) => objects::stand_unchanged(tx, &self.basis).await,
            OperatorKind::InitialAdministrator => admin_tokens::is_live(tx, self.caller.name()).await,
        }
    }
}

/// An operator's operation, in its transaction.
pub(crate) struct OperatorWork<'a> {
    broker: &'a Broker,
    operator: Arc<Operator>,
    tx: Tx,
    record: Record,
}

/// What an operation gave, once it is committed together with its entry.
pub(crate) struct Allowed<T>(Committed<T>);

impl<'a> OperatorWork<'a> {
    /// Begins the operation. One that changes what is declared waits here for others of its kind, and looks at once
    /// whether what allows it stands: nobody else can change that until it ends.
    ///
    /// # Errors
    /// `Busy` when it no longer stands.
    pub(super) async fn begin(
        broker: &'a Broker,
        operator: Arc<Operator>,
        mut tx: Tx,
        mut record: Record,
    ) -> Result<Self, Error> {
        if changes_directory(&record.operation) {
            objects::lock_revision(&mut tx).await?;
            if !operator.stands(&mut tx, &record.operation).await? {
                return Err(Error::Busy);
            }
        }
        if let Some((guard, plan)) = &operator.guarded {
            let keyring = broker.seal.keyring()?;
            let approval =
                approvals::redeem(&mut tx, keyring.row_macs(), guard, plan.clone(), broker.now()).await?;
            record.approval = Some(Box::new(approval));
        }
        Ok(Self { broker, operator, tx, record })
    }

    /// Its transaction.
    pub(crate) fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// What is declared, as it was decided on.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.operator.snapshot
    }

    /// The objects that it declares: those that a second person has signed, if one had to.
    pub(crate) fn objects(&self) -> &[PlannedObject] {
        &self.operator.objects
    }

    /// Refines what its entry will state.
    pub(crate) fn state(&mut self, operation: Operation) {
        self.record.operation = operation;
    }

    /// Who does it.
    pub(crate) fn operator(&self) -> &OperatorCaller {
        &self.operator.caller
    }

    /// What they may do.
    pub(crate) fn rights(&self) -> &Rights {
        &self.operator.rights
    }

    /// Appends the entry, commits, and gives `value` back.
    ///
    /// Whether what allows the operation stands is looked at once the head row is locked: who changes it later has a
    /// later entry. No row is locked for it, so that nobody's calls can keep a right from being taken away.
    ///
    /// # Errors
    /// `Busy` when it no longer stands; those of Postgres.
    pub(crate) async fn allow<T>(mut self, value: T) -> Result<Allowed<T>, Error> {
        self.broker.append(&mut self.tx, &self.record, &Outcome::Allowed).await?;
        if !changes_directory(&self.record.operation)
            && !self.operator.stands(&mut self.tx, &self.record.operation).await?
        {
            return Err(Error::Busy);
        }
        Ok(Allowed(self.tx.commit(value).await?))
    }
}

impl<T> Allowed<T> {
    pub(super) fn into_committed(self) -> Committed<T> {
        self.0
    }
}
