//! Plans: what exactly an operator asks for, where an approval rule wants a second person. The bytes are canonical, so
//! that the hash that the second person signs stands for one operation only. A plan holds what an audit entry holds, and
//! the objects of an apply: never a secret's value.

use std::fmt;

use ring::{
    digest,
    signature::{ED25519, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    audit::{Operation, to_ascii_json},
    name::ObjectName,
    object::{GuardedOperation, Kind, ObjectError, PublicKey, Spec},
};

/// What goes before the hash in what is signed, so that a signature made for another purpose never fits.
const SIGNED_PREFIX: &[u8] = b"keyfold plan v1\0";

/// An operation that waits for a second person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this form.
    pub v: Version,
    /// Names the plan.
    pub id: Uuid,
    /// The installation that it is for.
    pub installation: Uuid,
    /// The first person, as entries name them.
    pub requested_by: String,
    /// When they asked, in whole microseconds.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// After this the plan is good for nothing.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// What they asked for, as the audit entry of the refusal states it.
    pub operation: Operation,
    /// The objects of an apply, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<PlannedObject>,
}

/// The version of a plan's form: 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Version;

/// An object as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawObject")]
pub struct PlannedObject {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
    /// Its spec.
    #[serde(serialize_with = "canonical")]
    pub spec: Spec,
}

/// Why bytes are no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a plan, or one of another version of Keyfold: {0}")]
pub struct PlanError(String);

impl Plan {
    /// The plan's exact bytes: one JSON object on one line, in ASCII.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_ascii_json(self)
    }

    /// The plan that has exactly these bytes, so that whoever reads it has seen all that they hold.
    ///
    /// # Errors
    /// When they are not the canonical bytes of a plan.
    pub fn parse(bytes: &[u8]) -> Result<Self, PlanError> {
        let plan: Self = serde_json::from_slice(bytes).map_err(|error| PlanError(error.to_string()))?;
        if plan.to_bytes() != bytes {
            return Err(PlanError("it is written in another way".into()));
        }
        Ok(plan)
    }
}

/// The rule's word for an operation; absent for one that no rule can name.
pub fn guardable(operation: &Operation) -> Option<GuardedOperation> {
    if matches!(operation, Operation::ConfigApply { dry_run: true, .. }) {
        return None;
    }
    GuardedOperation::ALL.into_iter().find(|guarded| guarded.as_str() == operation.name())
}

/// The SHA-256 of a plan's bytes. Shown in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanHash([u8; 32]);

impl PlanHash {
    /// That of these bytes.
    pub fn of(plan: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, plan).as_ref());
        Self(hash)
    }

    /// What the second person signs.
    pub fn signed_message(&self) -> Vec<u8> {
        [SIGNED_PREFIX, &self.0].concat()
    }

    /// Whether this is the signature by `key` (Ed25519, RFC 8032).
    pub fn is_signed(&self, key: &PublicKey, signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &key.0).verify(&self.signed_message(), signature).is_ok()
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<u8> for Version {
    type Error = PlanError;

    fn try_from(version: u8) -> Result<Self, PlanError> {
        if version == u8::from(Self) {
            return Ok(Self);
        }
        Err(PlanError(format!("its version is {version}")))
    }
}

impl From<Version> for u8 {
    fn from(_: Version) -> Self {
        1
    }
}

#[derive(Deserialize)]
struct RawObject {
    kind: Kind,
    name: ObjectName,
    spec: Value,
}

impl TryFrom<RawObject> for PlannedObject {
    type Error = ObjectError;

    fn try_from(RawObject { kind, name, spec }: RawObject) -> Result<Self, ObjectError> {
        Ok(Self { kind, name, spec: Spec::parse(kind, &spec.to_string())? })
    }
}

/// As `Spec::to_json` writes it.
fn canonical<S: Serializer>(spec: &Spec, serializer: S) -> Result<S::Ok, S::Error> {
    match spec {
        Spec::Keyspace(spec) => spec.serialize(serializer),
        Spec::Issuer(spec) => spec.serialize(serializer),
        Spec::AppRole(spec) => spec.serialize(serializer),
        Spec::OperatorRole(spec) => spec.serialize(serializer),
        Spec::ApprovalRule(spec) => spec.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;
    use time::macros::datetime;

    use super::*;
    use crate::audit::AppliedObject;

    fn plan(operation: Operation, objects: Vec<PlannedObject>) -> Plan {
        Plan {
            v: Version,
            id: Uuid::from_u128(1),
            installation: Uuid::from_u128(2),
            requested_by: "people/alice".into(),
            requested_at: datetime!(2026-11-23 05:40:54.123456 UTC),
            expires_at: datetime!(2026-11-23 06:40:54.123456 UTC),
            operation,
            objects,
        }
    }

    fn destroy() -> Plan {
        plan(Operation::SecretDestroy { path: "payments/db".into(), versions: vec![1, 2] }, Vec::new())
    }

    fn object(kind: Kind, name: &str, spec: &Value) -> PlannedObject {
        let spec = Spec::parse(kind, &spec.to_string()).unwrap();
        PlannedObject { kind, name: ObjectName::try_from(name).unwrap(), spec }
    }

    fn apply() -> Plan {
        let applied = AppliedObject { kind: "Keyspace".into(), name: "new".into(), generation: None };
        let keyspace = object(Kind::Keyspace, "new", &json!({"description": "für Ämter"}));
        plan(Operation::ConfigApply { dry_run: false, objects: vec![applied] }, vec![keyspace])
    }

    #[test]
    fn the_bytes_of_a_plan_are_frozen() {
        let common = concat!(
            r#"{"v":1,"id":"00000000-0000-0000-0000-000000000001","#,
            r#""installation":"00000000-0000-0000-0000-000000000002","requested_by":"people/alice","#,
            r#""requested_at":"2026-11-23T05:40:54.123456Z","expires_at":"2026-11-23T06:40:54.123456Z","#,
        );
        let text = |plan: Plan| String::from_utf8(plan.to_bytes()).unwrap();
        let operation = r#""operation":{"name":"secret.destroy","path":"payments/db","versions":[1,2]}}"#;
        assert_eq!(text(destroy()), format!("{common}{operation}"));
        let operation = concat!(
            r#""operation":{"name":"config.apply","dry_run":false,"objects":[{"kind":"Keyspace","name":"new"}]},"#,
            r#""objects":[{"kind":"Keyspace","name":"new","spec":{"description":"f\u00fcr \u00c4mter"}}]}"#
        );
        assert_eq!(text(apply()), format!("{common}{operation}"));
    }

    /// Made with Python's hashlib and, for the signature, `openssl pkeyutl -sign -rawin`.
    #[test]
    fn hash_and_signature_are_frozen() {
        let hash = PlanHash::of(&destroy().to_bytes());
        assert_eq!(hash.to_string(), "1587bd5383865354c21ccbd1547fa6d7f8c5e200e7215e5a71238a331db9e340");
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let signature = pair.sign(&hash.signed_message());
        assert_eq!(
            hex::encode(signature.as_ref()),
            "b9bc884895d33fa01eba9b7dfe7c12e4c4513355355a154ee5569b00d898ea9db0dc7f5dedc706a1fa4c685bd9e2e1c280f4181dc3a13ad1424cce4d2ef17e0e"
        );
        let key = PublicKey(pair.public_key().as_ref().try_into().unwrap());
        assert!(hash.is_signed(&key, signature.as_ref()));
    }

    #[test]
    fn a_signature_fits_one_plan_one_key_and_this_purpose_only() {
        let hash = PlanHash::of(&destroy().to_bytes());
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let key = PublicKey(pair.public_key().as_ref().try_into().unwrap());
        let other_key = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
        let other_key = PublicKey(other_key.public_key().as_ref().try_into().unwrap());
        let signature = pair.sign(&hash.signed_message());
        assert!(!PlanHash::of(&apply().to_bytes()).is_signed(&key, signature.as_ref()));
        assert!(!hash.is_signed(&other_key, signature.as_ref()));
        assert!(!hash.is_signed(&key, pair.sign(&hash.0).as_ref()), "the bare hash");
        assert!(!hash.is_signed(&key, &signature.as_ref()[..63]));
        assert!(!hash.is_signed(&key, b""));
    }

    #[test]
    fn whoever_reads_a_plan_has_seen_all_of_it() {
        for plan in [destroy(), apply()] {
            assert_eq!(Plan::parse(&plan.to_bytes()), Ok(plan));
        }
        let text = String::from_utf8(destroy().to_bytes()).unwrap();
        for changed in [
            text.replace(r#""v":1"#, r#""v":2"#),
            text.replace(r#""v":1"#, r#""v":1,"note":"harmless""#),
            text.replace(r#""v":1"#, r#""v":1,"v":1"#),
            text.replace(r#""versions":[1,2]"#, r#""versions":[1,2],"versions":[3]"#),
            text.replace(r#""versions":[1,2]"#, r#""versions":[1,2],"also":"more""#),
            text.replace("payments/db", r"payments\/db"),
            text.replace(":[1", ": [1"),
            text.replace("secret.destroy", "secret.burn"),
            format!("{text}\n"),
            String::new(),
        ] {
            assert!(Plan::parse(changed.as_bytes()).is_err(), "{changed}");
        }
    }

    #[test]
    fn any_difference_is_another_plan() {
        let plan = destroy();
        let mut others = vec![plan.clone(); 6];
        others[0].id = Uuid::from_u128(3);
        others[1].installation = Uuid::from_u128(3);
        others[2].requested_by = "people/bob".into();
        others[3].requested_at = datetime!(2026-11-23 05:40:54.123457 UTC);
        others[4].expires_at = datetime!(2026-11-23 06:40:54.123457 UTC);
        others[5].operation = Operation::SecretDestroy { path: "payments/db".into(), versions: vec![2, 1] };
        for other in others {
            assert_ne!(other.to_bytes(), plan.to_bytes());
        }
    }

    #[test]
    fn what_a_rule_can_name_is_an_operation() {
        let path = || "a/b".to_owned();
        let named = |operation: Operation| guardable(&operation).map(GuardedOperation::as_str);
        let operations = [
            Operation::SecretGet { path: path(), version: None },
            Operation::SecretRollback { path: path(), version: 1 },
            Operation::SecretDelete { path: path(), versions: Vec::new() },
            Operation::SecretDestroy { path: path(), versions: Vec::new() },
            Operation::KeyRotate {
                keyspace: "a".into(),
                purpose: None,
                from_version: None,
                to_version: None,
            },
            Operation::KeyCompromise {
                keyspace: "a".into(),
                version: None,
                to_version: None,
                payloads: None,
                secrets: None,
            },
            Operation::KeyScheduleDestruction {
                keyspace: "a".into(),
                purpose: None,
                version: 1,
                destroy_at: None,
                reason: None,
            },
            Operation::RootChange {
                from: None,
                to: "file".into(),
                replaces: Some("0b1c2d3e4f508192a3b4c5d6e7f80912".into()),
                rwk_version: None,
                keys: None,
            },
            Operation::RecoveryCreate { shares: 5, threshold: 3 },
            Operation::ConfigApply { dry_run: false, objects: Vec::new() },
            Operation::ConfigDelete { kind: "Issuer".into(), object: "a".into() },
        ];
        let names: Vec<_> = operations.into_iter().filter_map(named).collect();
        assert_eq!(names, GuardedOperation::ALL.map(GuardedOperation::as_str));
        assert_eq!(named(Operation::ConfigApply { dry_run: true, objects: Vec::new() }), None);
        // A write carries values, which no plan may hold.
        assert_eq!(named(Operation::SecretPut { path: path(), version: None }), None);
    }
}
