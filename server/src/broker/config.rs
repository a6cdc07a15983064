//! What operators declare: applying, reading and deleting objects.

use std::{collections::BTreeSet, fmt::Display};

use keyfold_core::{
    audit::{AppliedObject, Operation},
    condition::Condition,
    key::Purpose,
    name::ObjectName,
    object::{AppRoleSpec, Kind, Permission, Spec},
    plan::PlannedObject,
    rights::Rights,
};

use crate::{
    broker::{Broker, Call, authorise},
    error::Error,
    keys::keyring::Keyring,
    store::{
        Tx, keks, keysets,
        objects::{self, Object},
        secrets,
    },
};

/// An object as an operator wants it.
pub struct WantedObject {
    /// Its kind, as written.
    pub kind: String,
    /// Its name, as written.
    pub name: String,
    /// Its spec in JSON.
    pub spec_json: String,
}

/// What became of one object.
pub struct ObjectChange {
    /// As it was; absent when it is new.
    pub before: Option<Object>,
    /// As it is, or would be.
    pub after: Object,
}

impl ObjectChange {
    /// Whether anything differs.
    pub fn is_change(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.spec_json != self.after.spec_json)
    }
}

impl Broker {
    /// Makes all of `wanted` so, or nothing. With `dry_run`, says what would change.
    ///
    /// # Errors
    /// `Invalid`, naming the object and its field.
    pub async fn apply_objects(
        &self,
        call: &Call,
        wanted: &[WantedObject],
        dry_run: bool,
    ) -> Result<Vec<ObjectChange>, Error> {
        let keyring = &*self.seal.keyring()?;
        let named = wanted
            .iter()
            .map(|object| AppliedObject {
                kind: object.kind.clone(),
                name: object.name.clone(),
                generation: None,
            })
            .collect();
        let operation = Operation::ConfigApply { dry_run, objects: named };
        let objects = |rights: Rights| async move {
            let parsed = parse(wanted)?;
            // Costly, so not for who only looks.
            if rights.may(Permission::RolesWrite) {
                compile_conditions(&parsed).await?;
            }
            Ok(parsed)
        };
        self.operate_on(call, operation, objects, |mut work| async move {
            let declared = work.objects().to_vec();
            let mut changes = Vec::with_capacity(declared.len());
            for PlannedObject { kind, name, spec } in declared {
                let before = match dry_run {
                    true => objects::find(work.tx(), keyring.row_macs(), kind, name.as_str()).await?,
                    false => objects::lock(work.tx(), keyring.row_macs(), kind, name.as_str()).await?,
                };
                let change = self.changed(before, kind, name, &spec)?;
                if !dry_run {
                    self.write(work.tx(), keyring, &change).await?;
                }
                changes.push(change);
            }
            work.state(Operation::ConfigApply { dry_run, objects: changes.iter().map(applied).collect() });
            work.allow(changes).await
        })
        .await
    }

    fn changed(
        &self,
        before: Option<Object>,
        kind: Kind,
        name: ObjectName,
        spec: &Spec,
    ) -> Result<ObjectChange, Error> {
        let spec_json = spec.to_json();
        let after = match &before {
            Some(before) if before.spec_json == spec_json => before.clone(),
            Some(before) => Object {
                spec_json,
                generation: before.generation + 1,
                updated_at: self.now(),
                ..before.clone()
            },
            None => Object {
                id: self.entropy.uuid()?,
                kind,
                name,
                spec_json,
                generation: 1,
                updated_at: self.now(),
                mac: Vec::new(),
            },
        };
        Ok(ObjectChange { before, after })
    }

    async fn write(&self, tx: &mut Tx, keyring: &Keyring, change: &ObjectChange) -> Result<(), Error> {
        let (after, macs) = (&change.after, keyring.row_macs());
        match &change.before {
            None => {
                objects::insert(tx, macs, after).await?;
                if after.kind == Kind::Keyspace {
                    self.worker.heartbeat.may_encrypt().await?;
                    let (purpose, keyset) = (Purpose::Data, self.entropy.uuid()?);
                    keysets::insert(tx, keyset, Some(after.id), purpose, after.updated_at).await?;
                    let kek = keyring.new_kek(Some(after.id), purpose, 1, &*self.entropy)?;
                    keks::insert_active(tx, macs, &kek, after.updated_at).await?;
                }
                Ok(())
            }
            Some(before) if change.is_change() => objects::update(tx, macs, before, after).await,
            Some(_) => Ok(()),
        }
    }

    /// One object.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Invalid` for an unknown kind.
    pub async fn object(&self, call: &Call, kind: &str, name: &str) -> Result<Object, Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::ConfigGet { kind: kind.to_owned(), object: name.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let found = objects::find(work.tx(), keyring.row_macs(), Kind::parse(kind)?, name).await?;
            work.allow(found.ok_or_else(|| no_such_object(kind, name))?).await
        })
        .await
    }

    /// All objects of a kind, or of all kinds that the operator may read if it is empty.
    ///
    /// # Errors
    /// `Invalid` for an unknown kind.
    pub async fn objects(&self, call: &Call, kind: &str) -> Result<Vec<Object>, Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::ConfigList { kind: kind.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let kind = if kind.is_empty() { None } else { Some(Kind::parse(kind)?) };
            let mut found = objects::list(work.tx(), keyring.row_macs(), kind).await?;
            found.retain(|object| work.rights().may(authorise::reading(object.kind)));
            work.allow(found).await
        })
        .await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Conflict` for a keyspace that has held a secret.
    pub async fn delete_object(&self, call: &Call, kind: &str, name: &str) -> Result<(), Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::ConfigDelete { kind: kind.to_owned(), object: name.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let object = objects::lock(work.tx(), keyring.row_macs(), Kind::parse(kind)?, name)
                .await?
                .ok_or_else(|| no_such_object(kind, name))?;
            if object.kind == Kind::Keyspace {
                if secrets::any_in(work.tx(), object.id).await? {
                    return Err(Error::Conflict(format!(
                        "keyspace {name} holds secrets, or the version numbers of destroyed ones: it stays"
                    )));
                }
                keks::delete_all(work.tx(), object.id).await?;
            }
            objects::delete(work.tx(), &object).await?;
            work.allow(()).await
        })
        .await
    }
}

fn no_such_object(kind: &str, name: &str) -> Error {
    Error::NotFound(format!("there is no {kind} {name}"))
}

fn parse(wanted: &[WantedObject]) -> Result<Vec<PlannedObject>, Error> {
    let mut seen = BTreeSet::new();
    let mut parsed = Vec::with_capacity(wanted.len());
    for object in wanted {
        let named = |error: &dyn ToString| {
            Error::Invalid(format!("{} {}: {}", object.kind, object.name, error.to_string()))
        };
        let kind = Kind::parse(&object.kind)?;
        let name = ObjectName::try_from(object.name.as_str()).map_err(|error| named(&error))?;
        let spec = Spec::parse(kind, &object.spec_json).map_err(|error| named(&error))?;
        if !seen.insert((kind, name.clone())) {
            return Err(named(&"named twice"));
        }
        parsed.push(PlannedObject { kind, name, spec });
    }
    Ok(parsed)
}

/// A condition that does not compile is refused here, where somebody can mend it.
async fn compile_conditions(parsed: &[PlannedObject]) -> Result<(), Error> {
    for PlannedObject { kind, name, spec } in parsed {
        let Spec::AppRole(AppRoleSpec { condition: Some(condition), .. }) = spec else { continue };
        let rego = condition.rego.clone();
        let compiled = tokio::task::spawn_blocking(move || Condition::compile(&rego).map(drop)).await;
        let named = |why: &dyn Display| {
            Error::Invalid(format!("{} {name}: spec.condition.rego: {why}", kind.as_str()))
        };
        match compiled.map_err(|_| named(&"the engine failed on it"))? {
            Err(error) if error.is_passing() => return Err(Error::Overloaded),
            done => done.map_err(|error| named(&error))?,
        }
    }
    Ok(())
}

fn applied(change: &ObjectChange) -> AppliedObject {
    AppliedObject {
        kind: change.after.kind.as_str().to_owned(),
        name: change.after.name.to_string(),
        generation: change.is_change().then_some(change.after.generation),
    }
}
