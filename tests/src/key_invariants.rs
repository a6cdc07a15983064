//! What must hold of keys and of what they wrap after every fault, seen from outside: by SQL and by reading everything.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use keyfold::{client::Client, dev::server::Server};
use keyfold_proto::keyfold::v1::{Field, PutSecretRequest};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    Database, World,
    faults::{operator_of, within},
};

/// The longest that work on keys may take; only a failure is that slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most secrets of one request of a driver.
const ITEMS_MAX: usize = 64;

/// The beginning of every blob: what it is, its suite, and which version of which key it is under.
macro_rules! under {
    ($blob:literal, $id:literal, $version:literal) => {
        concat!(
            "substr(",
            $blob,
            ", 1, 24) IS DISTINCT FROM '\\x4b460002'::bytea || uuid_send(",
            $id,
            ") || int4send((",
            $version,
            ")::integer)"
        )
    };
}

/// Each finds what must not be.
const WRONG: &[(&str, &str)] = &[
    (
        "a key without a keyset, or a keyset without an active key",
        "SELECT coalesce(k.id, s.id) FROM keysets s FULL JOIN (SELECT * FROM keks WHERE state = 'active') k
         ON s.keyspace_id IS NOT DISTINCT FROM k.keyspace_id AND s.purpose = k.purpose
         WHERE s.id IS NULL OR k.id IS NULL OR s.rewrapped_version > k.version",
    ),
    (
        "a DEK under a key that opens nothing",
        "SELECT d.id FROM deks d JOIN keks k ON k.id = d.kek_id
         WHERE k.state NOT IN ('active', 'deactivated', 'compromised')",
    ),
    (
        "a DEK whose blob is under another key than its row says",
        concat!("SELECT id FROM deks WHERE ", under!("wrapped", "kek_id", "kek_version")),
    ),
    (
        "a payload under another DEK than its row says",
        concat!(
            "SELECT d.id FROM secret_versions v JOIN deks d USING (secret_id, version) WHERE ",
            under!("v.payload", "d.id", "d.version")
        ),
    ),
    (
        "a version with a payload and no DEK, or the other way round",
        "SELECT v.secret_id FROM secret_versions v LEFT JOIN deks d USING (secret_id, version)
         WHERE (v.payload IS NULL) <> (d.id IS NULL)",
    ),
    (
        "a key whose blob is under another root-wrapping key than the one there is",
        concat!(
            "SELECT k.id FROM keks k LEFT JOIN root_wrapping_keys r ON r.id = k.rwk_id
             WHERE k.wrapped IS NOT NULL AND ",
            under!("k.wrapped", "r.id", "r.version")
        ),
    ),
    (
        "a number of root-wrapping keys other than one",
        "SELECT count(*) FROM root_wrapping_keys HAVING count(*) <> 1",
    ),
    (
        "a recovery key that does not open the root-wrapping key",
        concat!(
            "SELECT c.id FROM recovery_keys c LEFT JOIN root_wrapping_keys r ON r.id = c.rwk_id WHERE ",
            under!("r.recovery_wrapped", "c.id", "1"),
            " OR ",
            under!("c.wrapped", "r.id", "r.version")
        ),
    ),
    (
        "a copy of the root-wrapping key for a recovery key that is not there",
        "SELECT id FROM root_wrapping_keys
         WHERE recovery_wrapped IS NOT NULL AND NOT EXISTS (SELECT FROM recovery_keys)",
    ),
    (
        "a destroyed key without its certificate, or a certificate of one that is not destroyed",
        "SELECT coalesce(k.id, c.kek_id) FROM destruction_certificates c
         FULL JOIN (SELECT * FROM keks WHERE state = 'destroyed') k ON k.id = c.kek_id
         WHERE k.id IS NULL OR c.kek_id IS NULL",
    ),
    (
        "a certificate of destruction that is not stated in the audit log",
        "SELECT kek_id FROM destruction_certificates c WHERE NOT EXISTS (
             SELECT FROM audit_entries WHERE operation = 'key.destroy'
             AND convert_from(entry, 'UTF8')::json #>> '{operation,certificate}' = c.certificate)",
    ),
    (
        "a quarantined DEK whose key is another than its row says",
        "SELECT q.dek_id FROM quarantined_deks q JOIN deks d ON d.id = q.dek_id WHERE d.kek_id <> q.kek_id",
    ),
    (
        "a number of authorities that sign other than one",
        "SELECT count(*) FROM ca_certificates WHERE state = 'active' HAVING count(*) <> 1",
    ),
    (
        "an authority's private key under another key than its row says",
        concat!(
            "SELECT version FROM ca_certificates WHERE wrapped_key IS NOT NULL AND ",
            under!("wrapped_key", "kek_id", "kek_version")
        ),
    ),
    (
        "a sum of generations other than the rows'",
        "SELECT secrets_sum FROM integrity_head WHERE secrets_sum <>
         (SELECT coalesce(sum(generation), 0) FROM secret_labels)
         + (SELECT coalesce(sum(generation), 0) FROM secret_versions)",
    ),
    (
        "an integrity head of another entry than the last that changed it",
        "SELECT h.generation FROM integrity_head h,
             (SELECT * FROM audit_entries WHERE generation IS NOT NULL ORDER BY index DESC LIMIT 1) AS last
         WHERE (h.audit_index, h.generation) <> (last.index, last.generation)",
    ),
    (
        "a failure of integrity that a server has met",
        "SELECT index FROM audit_entries WHERE operation = 'system.integrity-failure'",
    ),
];

/// Whether nothing on keys is left to be done: no turn, rewrap, re-encryption, destruction nor MAC is pending.
const SETTLED: &str = "
    SELECT NOT EXISTS (SELECT FROM keks WHERE state = 'pre-active' OR state = 'destroy-scheduled' AND destroy_at < now())
       AND NOT EXISTS (
           SELECT FROM deks d JOIN keks k ON k.keyspace_id = d.keyspace_id
           WHERE (k.id = d.kek_id AND k.state <> 'active' OR k.compromised_at IS NOT NULL AND d.born_kek_version <= k.version)
             AND NOT EXISTS (SELECT FROM quarantined_deks q WHERE q.dek_id = d.id))
       AND NOT EXISTS (
           SELECT FROM keysets s JOIN keks k ON k.keyspace_id = s.keyspace_id AND k.state = 'active'
           WHERE s.rewrapped_version <> k.version)
       AND NOT EXISTS (
           SELECT FROM ca_certificates c JOIN keks k ON k.purpose = 'internal-ca' AND k.state = 'active'
           WHERE c.kek_id <> k.id)
       AND NOT EXISTS (
           SELECT FROM (SELECT mac FROM objects UNION ALL SELECT mac FROM admin_tokens UNION ALL SELECT mac FROM plans
                        UNION ALL SELECT mac FROM keks UNION ALL SELECT mac FROM ca_certificates
                        UNION ALL SELECT mac FROM integrity_head UNION ALL SELECT mac FROM secret_labels
                        UNION ALL SELECT mac FROM secret_versions) AS guarded
           WHERE substr(mac, 1, 4) <>
                 (SELECT int4send(version::integer) FROM keks WHERE purpose = 'row-mac' AND state = 'active'))";

/// What all that has to do with keys comes to.
const DIGEST: &str = "
    SELECT md5(string_agg(t, ',' ORDER BY t)) FROM (
        SELECT keks::text AS t FROM keks UNION ALL SELECT deks::text FROM deks UNION ALL SELECT keysets::text FROM keysets
        UNION ALL SELECT secret_versions::text FROM secret_versions
        UNION ALL SELECT quarantined_deks::text FROM quarantined_deks
        UNION ALL SELECT root_wrapping_keys::text FROM root_wrapping_keys
        UNION ALL SELECT recovery_keys::text FROM recovery_keys
        UNION ALL SELECT ca_certificates::text FROM ca_certificates
        UNION ALL SELECT destruction_certificates::text FROM destruction_certificates) AS rows";

impl Database {
    /// Checks all that must hold of keys at every moment.
    ///
    /// # Panics
    /// When something does not.
    pub fn assert_keys_are_whole(&self) {
        self.assert_keys_are_in_order();
        let each = WRONG.iter().map(|(what, found)| {
            format!("SELECT '{}', t::text FROM ({found}) AS t", what.replace('\'', "''"))
        });
        let wrong = self.sql(&each.collect::<Vec<_>>().join(" UNION ALL "));
        assert_eq!(wrong, "", "what must not be");
        self.check_audit_log();
    }

    /// Waits until nothing on keys is left to be done, and checks that all is well.
    ///
    /// # Panics
    /// When something is left after a minute, or not well.
    pub async fn until_keys_are_settled(&self, what: &str) {
        self.until_true(&format!("{what}: the work on keys to end"), || self.sql(SETTLED) == "t").await;
        self.assert_keys_are_whole();
    }

    /// What all that has to do with keys comes to: two of the same are of the same rows.
    pub fn digest_of_keys(&self) -> String {
        self.sql(DIGEST)
    }

    /// Waits until `is_so`, which asks Postgres by a process of its own, so not all the time.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn until_true(&self, what: &str, is_so: impl Fn() -> bool) {
        within(PATIENCE, what, async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }

    /// How often an operation was allowed, by the audit log.
    pub fn stated(&self, operation: &str) -> u64 {
        self.stated_each(&[operation])[0]
    }

    /// The same of several.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn stated_each(&self, operations: &[&str]) -> Vec<u64> {
        let count = |operation: &&str| format!("count(*) FILTER (WHERE operation = '{operation}')");
        let counts: Vec<_> = operations.iter().map(count).collect();
        let sql = format!("SELECT {} FROM audit_entries WHERE outcome = 'allowed'", counts.join(", "));
        self.sql(&sql).split('|').map(|count| count.parse().expect("a number")).collect()
    }

    /// As if the 5 s had passed after which a replica that died counts as gone. Those that live beat again.
    pub fn forget_dead_replicas(&self) {
        self.sql("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '1 minute'");
    }
}

/// The values of secrets that were written, by path.
pub type Written = BTreeMap<String, String>;

impl World {
    /// Writes `count` secrets `payments/many-N`, each with its own path as its password, many at once.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn write_many(&self, count: usize) -> Written {
        let mut writers = JoinSet::new();
        for writer in 0..8 {
            let operator = self.operator();
            writers.spawn(async move {
                let mut written = Written::new();
                for number in (writer..count).step_by(8) {
                    let path = format!("payments/many-{number}");
                    write_as(&operator, &path, &path).await.expect("the secret can be written");
                    written.insert(path.clone(), path);
                }
                written
            });
        }
        writers.join_all().await.into_iter().flatten().collect()
    }

    /// Has a pod read every one of these from `server`.
    ///
    /// # Panics
    /// When it is given another value, or none.
    pub async fn assert_pods_read(&self, server: &Server, written: &Written) {
        let (workloads, pod) = (self.workloads(server), self.pod("payments", "api", "reader"));
        let paths: Vec<&str> = written.keys().map(String::as_str).collect();
        for part in paths.chunks(ITEMS_MAX) {
            // A server that has just lost its database may find that out only now.
            let mut issued = workloads.issue(&pod, part).await;
            for _ in 0..100 {
                if !issued.as_ref().is_err_and(|status| status.code() == Code::Unavailable) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                issued = workloads.issue(&pod, part).await;
            }
            let issued = issued.expect("the secrets are issued").secrets;
            assert_eq!(issued.len(), part.len());
            for secret in issued {
                let password = secret.fields.iter().find(|field| field.name == "password");
                let password = password.map(|field| String::from_utf8_lossy(&field.value).into_owned());
                assert_eq!(password.as_deref(), Some(&*written[&secret.path]), "{}", secret.path);
            }
        }
    }

    /// Starts the server anew, so that it will die where it is told.
    ///
    /// # Panics
    /// When it does not serve.
    pub async fn restart_mortal(&mut self) {
        let told = format!("@{}", self.crash_file().display());
        self.dies_at(None);
        self.server.stop();
        self.database.forget_dead_replicas();
        self.server.setup_mut().set_variable("KEYFOLD_CRASH_AT", Some(told.into()));
        self.server.restart().await.expect("the server starts");
        self.server.until_serving().await.expect("the server serves");
    }

    /// Tells the server to die at that crash point, or at none.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn dies_at(&self, point: Option<&str>) {
        let (file, new) = (self.crash_file(), self.crash_file().with_extension("new"));
        match point {
            // The server must not read half of it.
            Some(point) => fs::write(&new, point).and_then(|()| fs::rename(&new, &file)).expect("a file"),
            // There need not be one.
            None => drop(fs::remove_file(&file)),
        }
    }

    fn crash_file(&self) -> PathBuf {
        self.folder.path().join("crash-at")
    }

    /// Waits until the server has died at its crash point.
    ///
    /// # Panics
    /// When it goes on, or ends in another way.
    pub async fn until_dead(&mut self, point: &str) {
        until_dead(&mut self.server, point).await;
    }
}

/// Waits until `server` has died at its crash point.
///
/// # Panics
/// When it goes on, or ends in another way.
pub async fn until_dead(server: &mut Server, point: &str) {
    let died = within(Duration::from_secs(30), point, async {
        loop {
            match server.process.ensure_running() {
                Ok(()) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(how) => break how.to_string(),
            }
        }
    })
    .await;
    assert!(died.contains("SIGABRT"), "{point}: {died}");
}

/// Writes one secret on `server`; gives its version.
///
/// # Errors
/// The server's status.
pub async fn write(server: &Server, path: &str, password: &str) -> Result<u32, Status> {
    write_as(&operator_of(server), path, password).await
}

/// The same as an operator who is signed in.
///
/// # Errors
/// The server's status.
pub async fn write_as(operator: &Client, path: &str, password: &str) -> Result<u32, Status> {
    let fields = vec![Field { name: "password".into(), value: password.into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}
