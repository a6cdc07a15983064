//! The two-person rule: what it guards, the plans that wait for a second person, and what a signed one is worth.
//!
//! A plan counts once, for exactly what it says, while the rule that stands names the one who signed and their key.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::{
    audit::{Approval, Operation, Outcome, Record},
    name::ObjectName,
    object::{ApprovalRuleSpec, Approver, GuardedOperation, Kind, Spec},
    plan::{Plan, PlanHash, PlannedObject, guardable},
    refusal::Refusal,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    authn::OperatorKind,
    broker::{APPEND, Broker, Call, work::OperatorWork},
    directory::Snapshot,
    error::Error,
    integrity::row_macs::RowMacs,
    store::{
        Tx,
        plans::{self, Signature, StoredPlan},
    },
};

/// Plans of one operator that may wait at once.
const WAITING_MAX: i64 = 100;

/// Who must agree to an operation, and how long they have.
pub(super) struct Guard {
    /// Of all rules that guard it.
    approvers: Vec<Approver>,
    /// The shortest of theirs.
    ttl: Duration,
}

impl Guard {
    /// What guards the operation; `objects` are those of an apply.
    pub(super) fn of(snapshot: &Snapshot, operation: &Operation, objects: &[PlannedObject]) -> Option<Self> {
        let operation_name = guardable(operation)?;
        let round = gets_round(snapshot, operation, objects);
        let steers_keys = objects.iter().any(|object| changes_rotation(snapshot, object));
        let guards = |rule: &&ApprovalRuleSpec| {
            round
                || rule.operations.contains(&operation_name)
                || (steers_keys && rule.operations.iter().any(|guarded| KEYS.contains(guarded)))
        };
        let rules: Vec<_> = snapshot.approval_rules.iter().map(|(_, rule)| rule).filter(guards).collect();
        let ttl = rules.iter().map(|rule| rule.ttl).min()?;
        Some(Self { approvers: rules.iter().flat_map(|rule| rule.approvers.clone()).collect(), ttl })
    }

    /// Whether a second person would know what the operation does. What the server would choose is not in the plan; and a
    /// change of the root key must name what it replaces, or a plan that was signed for one could be used for the next.
    ///
    /// # Errors
    /// `Invalid`, saying what to name.
    pub(super) fn check_plannable(operation: &Operation) -> Result<(), Error> {
        let missing = match operation {
            Operation::RootChange { replaces: None, .. } => {
                "the root key that is to be replaced (replaces_root_key_id): keyfold root status shows the one in use"
            }
            Operation::KeyCompromise { version: None, .. } => "the key's version (--key-version)",
            // By command it holds the delay.
            Operation::KeyScheduleDestruction { reason: None, .. } => "the delay (--after)",
            _ => return Ok(()),
        };
        Err(Error::Invalid(format!(
            "an approval rule guards this and a second person signs it, so the request must name {missing}"
        )))
    }

    /// When a plan that is made now expires.
    pub(super) fn expiry(&self, now: OffsetDateTime) -> OffsetDateTime {
        now + self.ttl
    }

    /// What the first person is told.
    pub(super) fn refusal(&self, plan: &Plan) -> Refusal {
        let others: BTreeSet<_> = self
            .approvers
            .iter()
            .map(|approver| &approver.operator)
            .filter(|name| **name != plan.requested_by)
            .collect();
        Refusal::ApprovalNeeded {
            plan: plan.id,
            hash: PlanHash::of(&plan.to_bytes()).to_string(),
            approvers: others.into_iter().cloned().collect(),
        }
    }

    /// The approver's key by which this is their signature. An approver of several rules may have several keys.
    fn key_that_signed(&self, name: &str, hash: PlanHash, signature: &[u8]) -> Result<[u8; 32], Refusal> {
        let mut keys = self.approvers.iter().filter(|approver| approver.operator == name).peekable();
        if keys.peek().is_none() {
            return Err(Refusal::ApprovalUnfit("no approval rule that guards this names its signer"));
        }
        let signed = keys.find(|approver| hash.is_signed(&approver.public_key, signature));
        let unfit = Refusal::ApprovalUnfit(
            "its signature is not one by the key that the approval rule names for its signer",
        );
        signed.map(|approver| approver.public_key.0).ok_or(unfit)
    }
}

/// Whether the operation changes what the rules rest on: themselves, who has which right, and who can say who somebody
/// is. All rules guard that.
fn gets_round(snapshot: &Snapshot, operation: &Operation, objects: &[PlannedObject]) -> bool {
    match operation {
        Operation::ConfigApply { .. } => objects.iter().any(|object| changes_the_base(snapshot, object)),
        Operation::ConfigDelete { kind, object } => {
            let name = ObjectName::try_from(object.as_str());
            match (Kind::parse(kind), name) {
                (Ok(kind @ (Kind::ApprovalRule | Kind::OperatorRole | Kind::Issuer)), Ok(name)) => {
                    snapshot.standing(kind, &name).is_some()
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// An object that is as it was changes nothing.
fn changes_the_base(snapshot: &Snapshot, PlannedObject { name, spec, .. }: &PlannedObject) -> bool {
    match spec {
        Spec::Keyspace(_) | Spec::AppRole(_) => false,
        Spec::Issuer(spec) => !snapshot.issuers.iter().any(|own| own.name == *name && own.spec == *spec),
        Spec::OperatorRole(spec) => {
            !snapshot.operator_roles.iter().any(|own| own.name == *name && own.spec == *spec)
        }
        Spec::ApprovalRule(spec) => {
            !snapshot.approval_rules.iter().any(|(own, own_spec)| own == name && own_spec == spec)
        }
    }
}

/// What a rotation policy has the servers do by themselves, again and again.
const KEYS: [GuardedOperation; 3] =
    [GuardedOperation::KeyRotate, GuardedOperation::KeyCompromise, GuardedOperation::KeyScheduleDestruction];

/// Whether a keyspace gets another rotation policy. Taking it away is a change too; deleting a keyspace is none, for one
/// that can be deleted has never held a secret.
fn changes_rotation(snapshot: &Snapshot, PlannedObject { name, spec, .. }: &PlannedObject) -> bool {
    matches!(spec, Spec::Keyspace(spec) if spec.rotation.as_ref() != snapshot.rotations.get(name))
}

/// Takes the approval of `presented`, the plan of the present request but for its id and times: once for all, unless
/// the transaction ends otherwise.
pub(super) async fn redeem(
    tx: &mut Tx,
    macs: &RowMacs,
    guard: &Guard,
    presented: Plan,
    now: OffsetDateTime,
) -> Result<Approval, Error> {
    let stored = plans::lock(tx, macs, presented.id).await?;
    let (stored, approval) = check_signed(stored, guard, presented, now)?;
    if !plans::use_up(tx, macs, stored.id, now).await? {
        return Err(Refusal::ApprovalUnfit(USED).into());
    }
    Ok(approval)
}

/// Whether the stored plan is signed, and for what is asked now. Changes nothing.
fn check_signed(
    stored: Option<StoredPlan>,
    guard: &Guard,
    presented: Plan,
    now: OffsetDateTime,
) -> Result<(StoredPlan, Approval), Error> {
    let unfit = |why| Error::from(Refusal::ApprovalUnfit(why));
    let stored = stored.ok_or_else(|| unfit("there is no such plan, or it expired"))?;
    if stored.requested_by != presented.requested_by {
        return Err(unfit("another operator asked for the plan"));
    }
    check_open(&stored, now)?;
    let signature = stored.signature.as_ref().ok_or_else(|| unfit("nobody has signed the plan yet"))?;
    if signature.signed_by == stored.requested_by {
        return Err(unfit(OWN));
    }
    let times = (stored.requested_at, stored.expires_at);
    let presented = Plan { requested_at: times.0, expires_at: times.1, ..presented };
    if presented.to_bytes() != stored.plan {
        return Err(unfit("the plan is for something else than what is asked for now"));
    }
    let hash = stored.hash();
    let public_key = guard.key_that_signed(&signature.signed_by, hash, &signature.signature)?;
    let approval = Approval {
        plan: stored.id,
        hash: hash.to_string(),
        signed_by: signature.signed_by.clone(),
        public_key: STANDARD.encode(public_key),
        signature: STANDARD.encode(&signature.signature),
    };
    Ok((stored, approval))
}

const USED: &str = "the plan was used before";
const OWN: &str = "nobody signs a plan of their own";

/// Whether the plan can still be signed or used.
fn check_open(stored: &StoredPlan, now: OffsetDateTime) -> Result<(), Refusal> {
    if stored.used_at.is_some() {
        return Err(Refusal::ApprovalUnfit(USED));
    }
    if now >= stored.expires_at {
        return Err(Refusal::ApprovalUnfit("the plan expired"));
    }
    Ok(())
}

impl Broker {
    /// Looks whether the approval of `presented` would be taken, so that nothing is done elsewhere for one that would not.
    /// It still counts only once, in the operation's own transaction.
    pub(super) async fn check_approval(&self, guard: &Guard, presented: &Plan) -> Result<(), Error> {
        let keyring = self.seal.keyring()?;
        let mut connection = self.store.connection().await?;
        let stored = plans::find(&mut connection, keyring.row_macs(), presented.id).await?;
        check_signed(stored, guard, presented.clone(), self.now()).map(drop)
    }

    /// Keeps the plan of an operation that needs a second person, together with the entry of its refusal.
    pub(super) async fn keep_plan<T>(&self, plan: &Plan, record: Record, refusal: Error) -> Result<T, Error> {
        let outcome = &Outcome::refused(refusal.code(), &refusal.to_string());
        let (entry, keyring) = (&record, &self.seal.keyring()?);
        let kept = self
            .store
            .tx("approval.request", APPEND, |mut tx| async move {
                plans::delete_expired(&mut tx, self.now()).await?;
                plans::insert(&mut tx, keyring.row_macs(), plan).await?;
                self.append(&mut tx, entry, outcome).await?;
                // After the entry: the head row's lock lets one at a time count, and the one before has committed.
                if plans::waiting_of(&mut tx, &plan.requested_by, self.now()).await? > WAITING_MAX {
                    return Err(Error::Conflict(format!(
                        "{WAITING_MAX} plans of {} wait for a second person already: have them signed and use them, \
                         or wait until they expire",
                        plan.requested_by
                    )));
                }
                tx.commit(()).await
            })
            .await;
        match kept {
            Ok(()) => Err(refusal),
            Err(error) if error.is_answer() => self.audited(record, Err(error)).await,
            Err(error) => Err(error),
        }
    }

    /// The plans that wait to be signed or used, newest first, without their bytes.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn plans(&self, call: &Call) -> Result<Vec<StoredPlan>, Error> {
        let keyring = &self.seal.keyring()?;
        self.operate(call, Operation::ApprovalList {}, |mut work| async move {
            let found = plans::waiting(work.tx(), keyring.row_macs(), self.now()).await?;
            work.allow(found).await
        })
        .await
    }

    /// One plan, also one that was used.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn plan(&self, call: &Call, id: Uuid) -> Result<StoredPlan, Error> {
        let keyring = &self.seal.keyring()?;
        self.operate(call, Operation::ApprovalGet { plan: id }, |mut work| async move {
            let found = plans::find(work.tx(), keyring.row_macs(), id).await?;
            let found = found.ok_or_else(|| no_such_plan(id))?;
            work.allow(found).await
        })
        .await
    }

    /// Keeps the second person's signature on a plan. The same person may sign again, which changes nothing.
    ///
    /// # Errors
    /// `NotFound`; `ApprovalUnfit` when the caller may not sign this plan, or this is not their signature on it.
    pub async fn sign_plan(&self, call: &Call, id: Uuid, signature: &[u8]) -> Result<(), Error> {
        let keyring = &self.seal.keyring()?;
        let asked = Operation::ApprovalSign { plan: id, hash: None, operation: None };
        self.operate(call, asked, |mut work| async move {
            let signer = second_person(&work)?;
            let stored = plans::lock(work.tx(), keyring.row_macs(), id).await?;
            let stored = stored.ok_or_else(|| no_such_plan(id))?;
            check_open(&stored, self.now())?;
            if is_one_person(work.snapshot(), &stored.requested_by, &signer) {
                return Err(Refusal::ApprovalUnfit(OWN).into());
            }
            let plan = stored.parsed()?;
            let guard = Guard::of(work.snapshot(), &plan.operation, &plan.objects)
                .ok_or(Refusal::ApprovalUnfit("no approval rule guards its operation any more"))?;
            let hash = stored.hash();
            let public_key = guard.key_that_signed(&signer, hash, signature)?.to_vec();
            match &stored.signature {
                None => {
                    let signature =
                        Signature { signed_by: signer, public_key, signature: signature.to_vec() };
                    plans::sign(work.tx(), keyring.row_macs(), id, &signature).await?;
                }
                Some(before) if before.signed_by == signer => {}
                Some(_) => return Err(Refusal::ApprovalUnfit("somebody else has signed it already").into()),
            }
            let operation = Some(stored.operation);
            work.state(Operation::ApprovalSign { plan: id, hash: Some(hash.to_string()), operation });
            work.allow(()).await
        })
        .await
    }
}

/// The initial administrator's token says nothing about the person who holds it.
fn second_person(work: &OperatorWork<'_>) -> Result<String, Refusal> {
    match work.operator().kind() {
        OperatorKind::Identity(_) => Ok(work.operator().name().to_owned()),
        OperatorKind::InitialAdministrator => Err(Refusal::ApprovalUnfit(
            "the initial administrator signs no plan: sign in as yourself, whom an approval rule names",
        )),
    }
}

/// Two issuer objects of one URL give one person two names.
fn is_one_person(snapshot: &Snapshot, requested_by: &str, signer: &str) -> bool {
    let person = |name: &str| {
        let (issuer, subject) = name.split_once('/')?;
        let issuer = snapshot.issuers.iter().find(|own| own.name.as_str() == issuer)?;
        Some((issuer.spec.url.clone(), subject.to_owned()))
    };
    requested_by == signer || person(requested_by).is_some_and(|first| person(signer) == Some(first))
}

fn no_such_plan(id: Uuid) -> Error {
    Error::NotFound(format!("there is no plan {id}, or it expired"))
}
