//! All work on keys as a table: what it begins with, the transactions that it is done by, and what the audit log has to
//! state of it in the end, wherever a server dies meanwhile.

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    CancelKeyDestructionRequest, ChangeRootRequest, CompromiseKeyRequest, CreateRecoveryRequest,
    DrillRecoveryRequest, GetSecretRequest, PauseRotationRequest, ResumeRotationRequest,
    RetryQuarantineRequest, RotateAuthorityRequest, RotateKeyRequest, ScheduleKeyDestructionRequest,
};
use tonic::Status;

use crate::aged::Aged;

/// Transactions whose name says that they concern keys, and that change nothing of them; or that have a test of their own.
pub const OTHERS: &[(&str, &str)] = &[
    ("key.list", "only looks: its commit holds nothing but its entry"),
    ("key.status", "only looks"),
    ("key.schedule", "only looks"),
    ("key.list-exposed", "only looks"),
    ("key.list-certificates", "only looks"),
    ("key.list-quarantine", "only looks"),
    ("root.status", "only looks"),
    ("root.unseal", "stated by audit.append"),
    ("ca.issue-driver-certificate", "stated by audit.append"),
    ("ca.activate", "stated by ca.turn"),
    ("key.quarantine", "stated by key.rewrap and key.reencrypt"),
    ("audit.append", "one entry and nothing else"),
    ("approval.request", "a plan and its entry"),
    ("system.initialize", "has a test of its own: there is nothing to be used before it"),
];

/// One thing that is done on the way to a crash.
#[derive(Clone, Copy)]
pub enum Step {
    /// A command. Its answer is not looked at where it leads to a crash.
    Call(Rpc),
    /// What somebody does in Postgres.
    Sql(&'static str),
    /// Time goes by.
    Age(Aged),
    /// Waits until this is `t`.
    Until(&'static str),
    /// Declares this rotation policy for the keyspace.
    Policy(&'static str),
    /// Puts another key into the root key file.
    TurnFile,
}
use Step::{Age, Call, Policy, Sql, TurnFile, Until};

/// A command of an operator.
#[derive(Clone, Copy, Debug)]
pub enum Rpc {
    /// The keyspace's key.
    Rotate,
    /// A key of the installation.
    RotateOwn(&'static str),
    /// The schedule of the keyspace's key.
    Pause,
    /// The same.
    Resume,
    /// The active one.
    Compromise,
    /// The version before the active one, after so many seconds; none: as the policy says.
    Schedule(Option<u64>),
    /// That.
    Cancel,
    /// Everything in quarantine.
    RetryQuarantine,
    /// `payments/db`.
    Read,
    /// The internal one.
    RotateAuthority,
    /// Two of three shares.
    CreateRecovery,
    /// With the shares of the recovery key.
    Drill,
    /// In the custody that is in use.
    ChangeRoot,
}

impl Rpc {
    /// The one that it is done by.
    pub fn transaction(self) -> &'static str {
        match self {
            Self::Rotate | Self::RotateOwn(_) => "key.rotate",
            Self::Pause => "key.pause",
            Self::Resume => "key.resume",
            Self::Compromise => "key.compromise",
            Self::Schedule(_) => "key.schedule-destruction",
            Self::Cancel => "key.cancel-destruction",
            Self::RetryQuarantine => "key.retry-quarantine",
            Self::Read => "key.reencrypt",
            Self::RotateAuthority => "ca.rotate",
            Self::CreateRecovery => "recovery.create",
            Self::Drill => "recovery.drill",
            Self::ChangeRoot => "root.change",
        }
    }

    /// Does it. `before_active`: the version before the active one; `shares`: of the recovery key.
    ///
    /// # Errors
    /// The server's status.
    pub async fn call(self, operator: Client, before_active: u32, shares: Vec<String>) -> Result<(), Status> {
        let keyspace = || "payments".to_owned();
        let (mut keys, mut root) = (operator.keys(), operator.root());
        match self {
            Self::Rotate => {
                let request = RotateKeyRequest { keyspace: keyspace(), ..Default::default() };
                keys.rotate_key(request).await.map(drop)
            }
            Self::RotateOwn(purpose) => {
                let request = RotateKeyRequest { purpose: purpose.into(), ..Default::default() };
                keys.rotate_key(request).await.map(drop)
            }
            Self::Pause => {
                let request = PauseRotationRequest { keyspace: keyspace(), ..Default::default() };
                keys.pause_rotation(request).await.map(drop)
            }
            Self::Resume => {
                let request = ResumeRotationRequest { keyspace: keyspace(), ..Default::default() };
                keys.resume_rotation(request).await.map(drop)
            }
            Self::Compromise => {
                let request = CompromiseKeyRequest { keyspace: keyspace(), version: 0 };
                keys.compromise_key(request).await.map(drop)
            }
            Self::Schedule(delay_seconds) => {
                let request = ScheduleKeyDestructionRequest {
                    keyspace: keyspace(),
                    version: before_active,
                    delay_seconds,
                    ..Default::default()
                };
                keys.schedule_key_destruction(request).await.map(drop)
            }
            Self::Cancel => {
                let request = CancelKeyDestructionRequest {
                    keyspace: keyspace(),
                    version: before_active,
                    ..Default::default()
                };
                keys.cancel_key_destruction(request).await.map(drop)
            }
            Self::RetryQuarantine => {
                keys.retry_quarantine(RetryQuarantineRequest { keyspace: keyspace() }).await.map(drop)
            }
            Self::Read => {
                let request = GetSecretRequest { path: "payments/db".into(), version: None };
                operator.secrets().get_secret(request).await.map(drop)
            }
            Self::RotateAuthority => {
                operator.certificates().rotate_authority(RotateAuthorityRequest {}).await.map(drop)
            }
            Self::CreateRecovery => {
                root.create_recovery(CreateRecoveryRequest { shares: 3, threshold: 2 }).await.map(drop)
            }
            Self::Drill => root.drill_recovery(DrillRecoveryRequest { shares }).await.map(drop),
            Self::ChangeRoot => root.change_root(ChangeRootRequest::default()).await.map(drop),
        }
    }
}

/// A number by which a commit shows in Postgres.
#[derive(Clone, Copy)]
pub enum Trace {
    /// Entries of that operation, beyond those before.
    Entries(&'static str),
    /// What this counts.
    Rows(&'static str),
}
use Trace::{Entries, Rows};

/// Work on keys, and at which commits of it the server dies.
pub struct Work {
    /// What must be done before.
    pub prepare: &'static [Step],
    /// What it begins with.
    pub begin: Step,
    /// The transactions, what there is of the trace after none, one, two … of them, and the trace.
    pub dies_at: &'static [(&'static str, &'static [u64], Trace)],
    /// The operations that the log has to state in all, each so many times, however often the server dies.
    pub states: &'static [(&'static str, u64)],
    /// What undoes it, so that other work can follow.
    pub undo: &'static [Step],
}

const ONCE: &[u64] = &[0, 1];
const TWICE: &[u64] = &[0, 1, 2];

const BATCHES_MOVED: Trace = Rows(
    "SELECT ceil(count(*) / 500.0)::int FROM deks d JOIN keks k ON k.id = d.kek_id AND k.state = 'active'
     WHERE d.born_kek_version < d.kek_version",
);
const TABLES_REMADE: Trace = Rows(
    "WITH newest AS (SELECT int4send(version::integer) AS v FROM keks WHERE purpose = 'row-mac' AND state = 'active')
     SELECT (SELECT bool_and(substr(mac, 1, 4) = v) FROM objects, newest)::int
          + (SELECT bool_and(substr(mac, 1, 4) = v) FROM secret_labels, newest)::int
          + (SELECT bool_and(substr(mac, 1, 4) = v) FROM secret_versions, newest)::int",
);
const AUTHORITY_REWRAPPED: Trace = Rows(
    "SELECT count(*) FROM ca_certificates c JOIN keks k ON k.id = c.kek_id AND k.state = 'active'
     WHERE c.state = 'active'",
);

/// Out of order; and back in order, the second time.
const FLIP_BROKEN: &str = "
    ALTER TABLE deks DISABLE TRIGGER USER;
    UPDATE deks SET wrapped = set_byte(wrapped, 130, 255 - get_byte(wrapped, 130))
        WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/broken');
    ALTER TABLE deks ENABLE TRIGGER USER";
const FLIP_BROKEN_PAYLOAD: &str = "
    UPDATE secret_versions SET payload = set_byte(payload, 130, 255 - get_byte(payload, 130))
    WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/broken')";
/// Both versions.
const IS_QUARANTINED: Step = Until("SELECT count(*) = 2 FROM quarantined_deks");
const NOTHING_IS_QUARANTINED: Step = Until(
    "SELECT NOT EXISTS (SELECT FROM quarantined_deks) AND NOT EXISTS (
         SELECT FROM deks d JOIN keks k ON k.id = d.kek_id WHERE k.state <> 'active')",
);
const NEXT_SIGNS: &[Step] = &[
    Age(Aged::NextAuthority),
    Until("SELECT NOT EXISTS (SELECT FROM ca_certificates WHERE state = 'next')"),
];
const TURN: &[(&str, u64)] = &[("key.rotate", 1), ("key.activate", 1), ("key.rewrap", 1)];

/// Turns by command and by schedule.
pub const TURNS: &[Work] = &[
    Work {
        prepare: &[],
        begin: Call(Rpc::Rotate),
        dies_at: &[
            ("key.rotate", ONCE, Entries("key.rotate")),
            ("key.activate", ONCE, Entries("key.activate")),
            ("key.rewrap", ONCE, BATCHES_MOVED),
            ("key.rewrap-end", ONCE, Entries("key.rewrap")),
        ],
        states: TURN,
        undo: &[],
    },
    Work {
        prepare: &[],
        begin: Age(Aged::ActiveKey),
        dies_at: &[("key.create", ONCE, Entries("key.create"))],
        states: &[("key.create", 1), ("key.activate", 1), ("key.rewrap", 1), ("key.skip-run", 0)],
        undo: &[],
    },
    Work {
        prepare: &[Policy(r#"{"every": "90d", "missedRun": "skip"}"#)],
        begin: Age(Aged::ActiveKey),
        dies_at: &[("key.skip-run", ONCE, Entries("key.skip-run"))],
        states: &[("key.skip-run", 1), ("key.create", 0), ("key.activate", 0)],
        undo: &[Policy("null")],
    },
    Work {
        prepare: &[],
        begin: Call(Rpc::Pause),
        dies_at: &[("key.pause", ONCE, Entries("key.pause"))],
        states: &[("key.pause", 1)],
        undo: &[Call(Rpc::Resume)],
    },
    Work {
        prepare: &[Call(Rpc::Pause)],
        begin: Call(Rpc::Resume),
        dies_at: &[("key.resume", ONCE, Entries("key.resume"))],
        states: &[("key.resume", 1)],
        undo: &[],
    },
];

/// With more secrets than a batch takes.
pub const BIG_REWRAP: &[Work] = &[Work {
    prepare: &[],
    begin: Call(Rpc::Rotate),
    dies_at: &[("key.rewrap", TWICE, BATCHES_MOVED)],
    states: TURN,
    undo: &[],
}];

/// The same.
pub const BIG_REENCRYPTION: &[Work] = &[Work {
    prepare: &[],
    begin: Call(Rpc::Compromise),
    dies_at: &[("key.reencrypt", TWICE, Entries("key.reencrypt"))],
    states: &[("key.compromise", 1), ("key.reencrypt", 2)],
    undo: &[],
}];

/// Compromises, and what they set off.
pub const COMPROMISES: &[Work] = &[
    Work {
        prepare: &[],
        begin: Call(Rpc::Compromise),
        dies_at: &[
            ("key.compromise", ONCE, Entries("key.compromise")),
            ("key.reencrypt", ONCE, Entries("key.reencrypt")),
        ],
        states: &[("key.compromise", 1), ("key.reencrypt", 1)],
        undo: &[],
    },
    Work {
        // Workers pass over what is in quarantine, so that only the read itself can do it.
        prepare: &[
            Sql("INSERT INTO quarantined_deks
                 SELECT d.id, d.keyspace_id, d.kek_id, d.kek_version, 'by the test', now()
                 FROM deks d JOIN secrets s ON s.id = d.secret_id WHERE s.path = 'payments/db'"),
            Call(Rpc::Compromise),
        ],
        begin: Call(Rpc::Read),
        dies_at: &[("key.reencrypt", ONCE, Entries("key.reencrypt"))],
        states: &[("key.reencrypt", 1)],
        undo: &[NOTHING_IS_QUARANTINED],
    },
    Work {
        prepare: &[Sql(FLIP_BROKEN_PAYLOAD)],
        begin: Call(Rpc::Compromise),
        dies_at: &[("key.reencrypt", ONCE, Entries("key.quarantine"))],
        states: &[("key.compromise", 1), ("key.reencrypt", 1), ("key.quarantine", 1)],
        undo: &[IS_QUARANTINED, Sql(FLIP_BROKEN_PAYLOAD), Call(Rpc::RetryQuarantine), NOTHING_IS_QUARANTINED],
    },
];

/// What does not open.
pub const QUARANTINES: &[Work] = &[
    Work {
        prepare: &[Sql(FLIP_BROKEN)],
        begin: Call(Rpc::Rotate),
        dies_at: &[("key.rewrap", ONCE, Entries("key.quarantine"))],
        states: &[("key.rotate", 1), ("key.activate", 1), ("key.rewrap", 1), ("key.quarantine", 1)],
        undo: &[IS_QUARANTINED, Sql(FLIP_BROKEN), Call(Rpc::RetryQuarantine), NOTHING_IS_QUARANTINED],
    },
    Work {
        prepare: &[Sql(FLIP_BROKEN), Call(Rpc::Rotate), IS_QUARANTINED, Sql(FLIP_BROKEN)],
        begin: Call(Rpc::RetryQuarantine),
        dies_at: &[("key.retry-quarantine", ONCE, Entries("key.retry-quarantine"))],
        states: &[("key.retry-quarantine", 1), ("key.quarantine", 0)],
        undo: &[NOTHING_IS_QUARANTINED],
    },
];

/// Up to the certificate.
pub const DESTRUCTIONS: &[Work] = &[
    Work {
        prepare: &[Call(Rpc::Rotate)],
        begin: Call(Rpc::Schedule(None)),
        dies_at: &[("key.schedule-destruction", ONCE, Entries("key.schedule-destruction"))],
        states: &[("key.schedule-destruction", 1), ("key.destroy", 0)],
        undo: &[],
    },
    Work {
        prepare: &[Policy(r#"{"keepDeactivated": "1d"}"#), Call(Rpc::Rotate)],
        begin: Age(Aged::DeactivatedKey),
        dies_at: &[("key.schedule-destruction", ONCE, Entries("key.schedule-destruction"))],
        states: &[("key.schedule-destruction", 1), ("key.destroy", 0)],
        undo: &[Policy("null")],
    },
    Work {
        prepare: &[Call(Rpc::Rotate), Call(Rpc::Schedule(None))],
        begin: Call(Rpc::Cancel),
        dies_at: &[("key.cancel-destruction", ONCE, Entries("key.cancel-destruction"))],
        states: &[("key.cancel-destruction", 1), ("key.destroy", 0)],
        undo: &[],
    },
    Work {
        prepare: &[Call(Rpc::Rotate)],
        begin: Call(Rpc::Schedule(Some(1))),
        dies_at: &[("key.destroy", ONCE, Entries("key.destroy"))],
        states: &[("key.schedule-destruction", 1), ("key.destroy", 1)],
        undo: &[],
    },
];

/// Turns of the installation's own keys.
pub const OWN_KEYS: &[Work] = &[
    Work {
        prepare: &[],
        begin: Call(Rpc::RotateOwn("row-mac")),
        dies_at: &[
            ("key.activate", ONCE, Entries("key.activate")),
            ("integrity.remac", &[0, 1, 2, 2, 3], TABLES_REMADE),
        ],
        states: &[("key.rotate", 1), ("key.activate", 1)],
        undo: &[],
    },
    Work {
        prepare: &[],
        begin: Call(Rpc::RotateOwn("audit-sign")),
        dies_at: &[("key.activate", ONCE, Entries("key.activate"))],
        states: &[("key.rotate", 1), ("key.activate", 1)],
        undo: &[],
    },
];

/// Turns of the internal authority and of its key.
pub const AUTHORITIES: &[Work] = &[
    Work {
        prepare: &[],
        begin: Call(Rpc::RotateOwn("internal-ca")),
        dies_at: &[("key.activate", ONCE, Entries("key.activate")), ("ca.turn", ONCE, AUTHORITY_REWRAPPED)],
        states: &[("key.rotate", 1), ("key.activate", 1), ("ca.activate", 0)],
        undo: &[],
    },
    Work {
        prepare: &[],
        begin: Call(Rpc::RotateAuthority),
        dies_at: &[("ca.rotate", ONCE, Entries("ca.rotate"))],
        states: &[("ca.rotate", 1), ("ca.activate", 0)],
        undo: NEXT_SIGNS,
    },
    Work {
        prepare: &[Call(Rpc::RotateAuthority)],
        begin: NEXT_SIGNS[0],
        dies_at: &[("ca.turn", ONCE, Entries("ca.activate"))],
        states: &[("ca.rotate", 0), ("ca.activate", 1)],
        undo: &[],
    },
];

/// Changes of the root key, and recovery keys; for a root key in files of its own.
pub const ROOTS: &[Work] = &[
    Work {
        prepare: &[],
        begin: Call(Rpc::CreateRecovery),
        dies_at: &[("recovery.create", ONCE, Entries("recovery.create"))],
        states: &[("recovery.create", 1)],
        undo: &[],
    },
    Work {
        prepare: &[TurnFile],
        begin: Call(Rpc::ChangeRoot),
        dies_at: &[("root.change", ONCE, Entries("root.change"))],
        states: &[("root.change", 1)],
        undo: &[],
    },
];

/// For a server with a scratch database.
pub const DRILLS: &[Work] = &[Work {
    prepare: &[],
    begin: Call(Rpc::Drill),
    dies_at: &[("recovery.drill", ONCE, Entries("recovery.drill"))],
    states: &[("recovery.drill", 1)],
    undo: &[],
}];

/// All of it.
pub const TABLE: &[&[Work]] = &[
    TURNS,
    BIG_REWRAP,
    BIG_REENCRYPTION,
    COMPROMISES,
    QUARANTINES,
    DESTRUCTIONS,
    OWN_KEYS,
    AUTHORITIES,
    ROOTS,
    DRILLS,
];
