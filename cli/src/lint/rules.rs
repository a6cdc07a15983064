//! The rules. Ids are stable: they stand in people's ignore lists and in code-scanning services.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It cannot work.
    Error,
    /// It works, but hardly as meant.
    Warning,
    /// It cannot be told here.
    Note,
}

impl Level {
    /// Its name: in every output, and in SARIF (2.1.0, section 3.27.10).
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// `KF` and three digits; never used again for another rule.
    pub id: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// The level of its findings, unless they say otherwise.
    pub level: Level,
    /// What it wants.
    pub summary: &'static str,
}

macro_rules! rules {
    ($($constant:ident = $id:literal $name:literal $level:ident $summary:literal;)*) => {
        $(
            #[doc = $summary]
            pub const $constant: Rule = Rule { id: $id, name: $name, level: Level::$level, summary: $summary };
        )*

        /// Every rule, by id.
        pub const ALL: &[Rule] = &[$($constant),*];
    };
}

rules! {
    UNREADABLE = "KF001" "unreadable" Error "A file can be read, and each of its documents is YAML within limits";
    MALFORMED = "KF002" "malformed" Error "The fields of a volume have the types that Kubernetes wants";
    NOT_READ_ONLY = "KF003" "not-read-only" Error "A Keyfold volume has `readOnly: true`";
    FILE_SYSTEM = "KF004" "file-system" Error "A Keyfold volume names no `fsType`";
    PUBLISH_SECRET = "KF005" "publish-secret" Warning "A Keyfold volume has no `nodePublishSecretRef`, which nothing reads";
    UNKNOWN_ATTRIBUTE = "KF006" "unknown-attribute" Error "A volume has no attributes but `role` and `secrets`";
    KUBELET_ATTRIBUTE = "KF007" "kubelet-attribute" Warning "A volume has no attributes whose names are kubelet's";
    ROLE_NAME = "KF008" "role-name" Error "`role` is the name of an app role";
    NO_SECRETS = "KF009" "no-secrets" Error "A volume has the attribute `secrets`";
    SECRETS_LIST = "KF010" "secrets-list" Error "`secrets` is a YAML list of 1 to 64 items";
    ITEM = "KF011" "item" Error "An item has a `path`, known keys, and values of their types";
    PATH = "KF012" "path" Error "`path` is the path of a secret";
    FILE = "KF013" "file" Error "`file` is a path inside the volume";
    FORMAT = "KF014" "format" Error "`format` is a format that there is";
    MODE = "KF015" "mode" Error "`mode`, `uid` and `gid` are permission bits and ids";
    COLLISION = "KF016" "collision" Error "No two items write the same file, or a file where the other needs a folder";
    NOT_MOUNTED = "KF017" "not-mounted" Warning "A container mounts the volume";
    SUB_PATH = "KF018" "sub-path" Warning "No mount of the volume has a `subPath`, whose files never change";
    NO_SUCH_ROLE = "KF019" "no-such-role" Error "The named app role exists";
    ROLE_NOT_BOUND = "KF020" "role-not-bound" Error "The named app role binds the pod's namespace and service account";
    POD_LABELS = "KF021" "pod-labels" Error "The pod has the labels that the app role's binding selects";
    NO_ROLE_NAMED = "KF022" "no-role-named" Error "A volume that names no role is of a pod that exactly one role binds";
    NOT_GRANTED = "KF023" "not-granted" Error "The app role allows to read each path";
    NO_SUCH_KEYSPACE = "KF024" "no-such-keyspace" Error "The keyspace of each path exists";
    NO_ISSUER = "KF025" "no-issuer" Error "There is an issuer for the cluster that the manifest is for";
    CANNOT_BE_CHECKED = "KF026" "cannot-be-checked" Note "What a manifest does not show: UIDs, nodes and conditions";
}
