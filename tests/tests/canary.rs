//! Distinctive values through the whole main path and every error of it, with everything logged that can be; then looked
//! for wherever they must not be.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold::dev::{
    files::free_port,
    kubelet::{Pod, publish_request},
    server::Server,
    tokens::Token,
};
use keyfold_proto::keyfold::v1::{
    ChangeVersionsRequest, Field, GetSecretRequest, InitializeRequest, PutSecretRequest,
    RollbackSecretRequest, RotateKeyRequest, State,
};
use keyfold_tests::{
    Cli, Database, Search, World,
    custody::{Keeper, initialise, unseal},
    faults::{until, until_state},
    server_setup,
};
use serde_json::json;
use tonic::Status;

const ROLE: &str = "payments-api";

/// Written as text, as bytes that no text holds, by the command line, into refused requests, and to be destroyed.
const TEXT: &[u8] = b"canary-text-6c1f-\"quoted\"\\and\n$broken-2b97e0d4";
const BINARY: &[u8] = b"\x00\xff\x9dcanary\x01\x80\xfe\x7f\x1b[31m\xc3\x28binary\x00\x9c\xe2\x82";
const PIPED: &[u8] = b"canary-piped-e25bd1f06a3f47c8";
const REFUSED: &[u8] = b"canary-refused-1e9a7740b4d8c35f";
const DESTROYED: &[u8] = b"canary-destroyed-90ab36cf5d12e874";

/// A world under observation.
struct Watched {
    world: World,
    metrics: SocketAddr,
    /// Every message that a caller was told.
    told: Vec<u8>,
    /// Tokens of pods that were sent.
    tokens: Vec<String>,
    /// Shares of recovery keys, which their one answer held.
    shares: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_nothing_planted_is_ever_written_down_or_told() {
    let mut watched = Watched::start().await;
    watched.main_path().await;
    watched.keys_and_shares().await;
    watched.wrong_tokens().await;
    watched.wrong_requests().await;
    watched.wrong_files();
    watched.damaged_rows().await;
    watched.lost_postgres().await;
    let search = watched.search();

    assert!(watched.world.logs().contains("TRACE"), "the logs hold all that they can");
    assert_eq!(search.found_in(&watched.told), none(), "told to callers");
    assert_eq!(search.found_in(&watched.processes()), none(), "command lines and environments");
    assert_eq!(search.found_in(watched.metrics().as_bytes()), none(), "metrics");
    assert_eq!(search.found_in(watched.rows().as_bytes()), none(), "rows of the database");
    watched.stop().await;
    let folder = watched.world.folder.path().to_owned();
    assert_eq!(search.found_below(&folder, &watched.meant_to_hold()), [""; 0]);
    let postgres = watched.world.database.own.as_ref().unwrap();
    let password = postgres.access().password_file().to_owned();
    assert_eq!(search.found_below(password.parent().unwrap(), std::slice::from_ref(&password)), [""; 0]);
    for file in watched.meant_to_hold().iter().chain([&password]) {
        assert_ne!(
            search.found_in(&fs::read(file).unwrap()),
            none(),
            "{} is searched in vain",
            file.display()
        );
    }
}

fn none<'a>() -> std::collections::BTreeSet<&'a str> {
    std::collections::BTreeSet::new()
}

impl Watched {
    async fn start() -> Self {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let server = format!("log: {{level: trace}}\nmetrics: {{listen: '{metrics}'}}\n");
        let world = World::configured(&server, "log: {level: trace}\n").await.with_payments().await;
        Self { world, metrics, told: Vec::new(), tokens: Vec::new(), shares: Vec::new() }
    }

    fn note(&mut self, what: &str, result: Result<impl Sized, Status>) {
        let Err(status) = result else { panic!("{what} was not refused") };
        self.told.extend(format!("{status:?} {status} {:?}\n", status.metadata()).into_bytes());
        self.told.extend(status.message().as_bytes());
        self.told.extend(status.details());
    }

    fn token(&mut self, pod: &Pod) -> Token {
        let token = self.world.token(pod);
        self.tokens.push(token.jwt.to_string());
        token
    }

    async fn publish(&mut self, pod: &Pod, secrets: &str) -> Result<PathBuf, Status> {
        let (volume, token) = (self.world.volume(pod), self.token(pod));
        let request = publish_request(pod, &volume, &token, &[("role", ROLE), ("secrets", secrets)]);
        self.world.driver.kubelet().publish(request).await?;
        Ok(self.world.driver.seen(&volume.target))
    }

    async fn put(&self, path: &str, fields: &[(&str, &[u8])], expected: Option<u32>) -> Result<u32, Status> {
        let field = |(name, value): &(&str, &[u8])| Field { name: (*name).into(), value: value.to_vec() };
        let fields = fields.iter().map(field).collect();
        let request = PutSecretRequest { path: path.into(), fields, expected_version: expected };
        Ok(self.world.operator().secrets().put_secret(request).await?.into_inner().version)
    }

    async fn main_path(&mut self) {
        let cli = Cli::administrator(self.world.server.setup(), self.world.folder.path());
        assert_eq!(cli.run_with("secret put payments/piped --from-file key=-", PIPED).code, 0);
        assert_eq!(cli.run("secret get payments/piped --field key").bytes, PIPED);
        assert!(!cli.ok("secret get payments/piped").contains("canary"));
        self.put("payments/bin", &[("text", TEXT), ("binary", BINARY)], None).await.unwrap();
        self.put("payments/db", &[("password", DESTROYED)], None).await.unwrap();
        self.put("payments/db", &[("password", TEXT)], None).await.unwrap();

        let pod = self.world.pod("payments", "api", "api-0");
        let secrets = "- path: payments/bin\n- {path: payments/db, format: env}\n- {path: payments/piped, format: json}\n";
        let files = self.publish(&pod, secrets).await.unwrap();
        assert_eq!(fs::read(files.join("bin/binary")).unwrap(), BINARY);
        assert!(!self.search().found_below(&files, &[]).is_empty(), "the mount holds them, and is searched");
        let rotate = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
        self.world.operator().keys().rotate_key(rotate).await.unwrap();
        self.publish(&pod, secrets).await.unwrap();

        let versions = |versions: &[u32]| ChangeVersionsRequest {
            path: "payments/db".into(),
            versions: versions.into(),
        };
        let operator = self.world.operator();
        operator.secrets().delete_versions(versions(&[3])).await.unwrap();
        operator.secrets().undelete_versions(versions(&[3])).await.unwrap();
        operator.secrets().destroy_versions(versions(&[2])).await.unwrap();
        let back = RollbackSecretRequest { path: "payments/db".into(), version: 1 };
        operator.secrets().rollback_secret(back).await.unwrap();
        self.publish(&pod, secrets).await.unwrap();
        self.world.driver.kubelet().unpublish(&self.world.volume(&pod)).await.unwrap();
    }

    /// Everything that operators do to keys, with values that are encrypted anew; and shares of a recovery key.
    async fn keys_and_shares(&mut self) {
        let cli = Cli::administrator(self.world.server.setup(), self.world.folder.path());
        for arguments in [
            "key compromise payments --yes --watch",
            "key exposed payments",
            "key rotate payments --watch",
            "key status",
            "key schedule",
            "key destroy payments --key-version 1 --after 1h --yes",
            "key cancel-destroy payments --key-version 1",
            "key destroy payments --key-version 1 --after 1s --yes",
            "key list payments",
            "key quarantine",
            "root status",
            "ca rotate",
        ] {
            self.told.extend(cli.ok(arguments).into_bytes());
        }
        until("the key to be destroyed", async || cli.ok("key list payments").contains("destroyed")).await;
        self.told.extend(cli.ok("key certificate get payments 1").into_bytes());

        for _ in 0..2 {
            let made = cli.run("recovery create --shares 3 --threshold 2");
            self.shares.extend(made.out.lines().map(str::to_owned));
            self.told.extend(made.err.into_bytes());
        }
        assert_eq!(self.shares.len(), 6);
        for share in self.shares.clone() {
            for wrong in
                [share.clone(), share[..share.len() - 3].to_owned(), share.replacen("kfs1", "kfs2", 1)]
            {
                for command in ["unseal", "recovery drill"] {
                    let refused = cli.run_with(command, wrong.as_bytes());
                    assert_ne!(refused.code, 0, "{command} took a share");
                    self.told.extend([refused.out, refused.err].concat().into_bytes());
                }
            }
        }
    }

    /// Each credential where another belongs, and each one damaged.
    async fn wrong_tokens(&mut self) {
        let setup = self.world.server.setup().clone();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();
        let (admin, bootstrap) = (read(setup.admin_token_file()), read(setup.bootstrap_token_file()));
        let (api, reports) =
            (self.world.pod("payments", "api", "api-1"), self.world.pod("payments", "reports", "reports-0"));
        let (pod, driver) = (self.token(&api).jwt.to_string(), self.world.driver_token());
        let all = [admin.clone(), bootstrap.clone(), pod.clone(), driver.clone()];
        for token in &all {
            for token in
                [token.clone(), format!("{token}x"), format!("{token}."), token[..token.len() - 9].into()]
            {
                let items = [("payments/db", false)];
                let as_driver = self.world.issue(&pod, &token, ROLE, &items).await;
                if token != driver {
                    self.note("a wrong driver's token", as_driver);
                }
                if token != pod {
                    let as_pod = self.world.issue(&token, &driver, ROLE, &items).await;
                    self.note("a wrong pod's token", as_pod);
                }
                let init = InitializeRequest { bootstrap_token: token.clone() };
                let init = self.world.operator().system().initialize(init).await;
                self.note("a second init", init);
                if token != admin {
                    let cli = Cli::administrator(&setup, self.world.folder.path());
                    cli.write("wrong-token", &token);
                    let failed = cli.fails("secret get payments/db --token-file wrong-token");
                    self.told.extend(failed.as_bytes());
                    fs::remove_file(cli.folder.join("wrong-token")).unwrap();
                }
            }
        }
        let refused = self.publish(&reports, "- path: payments/db\n").await;
        self.note("another service account", refused);
        self.token_in_the_context(&api).await;
    }

    /// As clusters before Kubernetes 1.35 would send it: the driver is not configured to take it.
    async fn token_in_the_context(&mut self, pod: &Pod) {
        let (volume, token) = (self.world.volume(pod), self.token(pod));
        let mut request =
            publish_request(pod, &volume, &token, &[("role", ROLE), ("secrets", "- path: payments/db")]);
        let secrets: HashMap<_, _> = std::mem::take(&mut request.secrets);
        request.volume_context.extend(secrets);
        let refused = self.world.driver.kubelet().publish(request).await;
        self.note("a token in the context", refused);
    }

    async fn wrong_requests(&mut self) {
        let long = [REFUSED; 20_000].concat();
        for (path, field, value, expected) in [
            ("payments/../db", "password", REFUSED, None),
            ("payments/db", "../password", REFUSED, None),
            ("none/db", "password", REFUSED, None),
            ("payments/db", "password", REFUSED, Some(99)),
            ("payments/db", "password", long.as_slice(), None),
        ] {
            let refused = self.put(path, &[(field, value)], expected).await;
            self.note(path, refused);
        }
        let twice = self.put("payments/db", &[("password", REFUSED), ("password", REFUSED)], None).await;
        self.note("a field twice", twice);

        let pod = self.world.pod("payments", "api", "api-2");
        for secrets in [
            "- {path: payments/bin, format: json}",
            "- {path: payments/bin, format: env}",
            "- path: payments/bin\n- {path: payments/piped, file: bin/text/key}",
            "- path: payments/none\n- {path: other/db, file: x}",
            "- path: payments/bin\n  key: payments/db",
        ] {
            let refused = self.publish(&pod, secrets).await;
            self.note(secrets, refused);
        }
    }

    /// The command line names files, never what stands in them.
    fn wrong_files(&mut self) {
        let cli = Cli::administrator(self.world.server.setup(), self.world.folder.path());
        let text = String::from_utf8_lossy(REFUSED);
        for (option, content) in [
            ("--json", format!(r#"{{"password": ["{text}"]}}"#)),
            ("--json", format!(r#"{{"password": "{text}"#)),
            ("--json", format!("\"{text}\"")),
            ("--env-file", format!("{text}\n")),
            ("--env-file", format!("a b={text}\n")),
        ] {
            cli.write("wrong-file", content);
            let failed = cli.fails(&format!("secret put payments/db {option} wrong-file"));
            self.told.extend(failed.as_bytes());
        }
        fs::remove_file(cli.folder.join("wrong-file")).unwrap();
    }

    /// A payload that does not open is an error of the server's, with its own line in the log.
    async fn damaged_rows(&mut self) {
        let damage = "UPDATE secret_versions SET created_by = created_by || '.' WHERE version = 3";
        self.put("payments/bin", &[("text", TEXT)], None).await.unwrap();
        self.put("payments/bin", &[("text", TEXT)], None).await.unwrap();
        self.world.database.sql(damage);
        let request = GetSecretRequest { path: "payments/bin".into(), version: Some(3) };
        let corrupt = self.world.operator().secrets().get_secret(request).await;
        self.note("a damaged row", corrupt);
        self.world.database.sql(&damage.replace("created_by || '.'", "rtrim(created_by, '.')"));
    }

    async fn lost_postgres(&mut self) {
        self.world.database.own.as_mut().unwrap().kill();
        let pod = self.world.pod("payments", "api", "api-3");
        let token = self.token(&pod);
        let lost = self.put("payments/db", &[("password", REFUSED)], None).await;
        self.note("a lost database", lost);
        let lost =
            self.world.issue(&token.jwt, &self.world.driver_token(), ROLE, &[("payments/db", false)]).await;
        self.note("a lost database", lost);
        self.world.database.own.as_mut().unwrap().restart().unwrap();
        self.world.server.until_serving().await.unwrap();
        self.publish(&pod, "- path: payments/piped\n").await.unwrap();
        self.world.driver.kubelet().unpublish(&self.world.volume(&pod)).await.unwrap();
    }

    fn search(&self) -> Search {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap().trim().as_bytes().to_vec();
        let [root_key, bootstrap, admin, driver] = self.meant_to_hold().map(read);
        let password = read(self.world.database.access.password_file().to_owned());
        let root_key_bytes = STANDARD.decode(&root_key).unwrap();
        let mut planted: Vec<(&str, Vec<u8>)> = vec![
            ("text", TEXT.to_vec()),
            ("binary", BINARY.to_vec()),
            ("piped", PIPED.to_vec()),
            ("refused", REFUSED.to_vec()),
            ("destroyed", DESTROYED.to_vec()),
            ("root key", root_key_bytes),
            ("bootstrap token", bootstrap),
            ("administrator's token", admin),
            ("database password", password),
        ];
        // A token's claims may be told; what proves them may not. The header is the same for all.
        let driver = String::from_utf8(driver).unwrap();
        for token in self.tokens.iter().chain([&driver]) {
            let (claims, signature) = token.split_once('.').unwrap().1.rsplit_once('.').unwrap();
            planted.push(("a token's claims as they are sent", claims.into()));
            planted.push(("a token's signature", signature.into()));
        }
        for share in &self.shares {
            planted.push(("a share", share.as_bytes().to_vec()));
            planted.push(("a share's value", share_value(share)));
        }
        Search::of(planted.iter().map(|(name, value)| (*name, value.as_slice())))
    }

    fn meant_to_hold(&self) -> [PathBuf; 4] {
        ["server/root.key", "server/bootstrap-token", "server/admin-token", "driver/token"]
            .map(|name| self.world.folder.path().join(name))
    }

    fn processes(&self) -> Vec<u8> {
        let pids = [self.world.server.process.pid(), self.world.driver.process.pid()];
        let files =
            pids.iter().flat_map(|pid| ["cmdline", "environ"].map(|file| format!("/proc/{pid}/{file}")));
        files.flat_map(|file| fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"))).collect()
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("keyfold_rpc_seconds"), "{answer}");
        answer
    }

    /// Every row of every table as text, since long values are compressed in the files; and what is being executed.
    fn rows(&self) -> String {
        let tables = self.world.database.sql("SELECT relname FROM pg_stat_user_tables ORDER BY 1");
        let mut rows = self.world.database.sql("SELECT query FROM pg_stat_activity");
        for table in tables.lines() {
            rows += &self.world.database.sql(&format!("SELECT t::text FROM {table} t"));
        }
        rows += &self.world.database.sql("SELECT convert_from(entry, 'UTF8') FROM audit_entries");
        assert!(rows.contains("secret.issue") && rows.contains("payments/piped"));
        rows
    }

    async fn stop(&mut self) {
        self.world.driver.stop().await;
        self.world.server.stop();
        self.world.database.sql("CHECKPOINT");
        self.world.database.own.as_mut().unwrap().stop();
        assert!(self.world.driver.mounts().is_empty());
    }
}

/// What a share says, without its name and number.
fn share_value(share: &str) -> Vec<u8> {
    share.split('-').nth(3).unwrap().as_bytes().to_vec()
}

/// Root shares on their way from `init` through two starts, whole and damaged.
#[tokio::test(flavor = "multi_thread")]
async fn attack_14_no_share_of_the_root_key_is_written_down_or_told() {
    let mut database = Database::own();
    let folder = tempfile::tempdir().unwrap();
    let mut setup = server_setup(folder.path(), "server", &database);
    Keeper::new("shamir").configure(&mut setup);
    setup.configure("log", json!({"level": "trace"})).unwrap();
    let mut server = Server::start(&setup).await.unwrap();
    let made = initialise(&server).await;
    let mut told = Vec::new();
    for _ in 0..2 {
        server.restart().await.unwrap();
        until_state(&server, State::Sealed, "shares").await;
        for share in &made.root_shares {
            let cut = &share[..share.len() - 3];
            let other = share.replace(share.chars().nth(20).unwrap(), "*");
            for wrong in [cut, &other, &share.replacen("-1-", "-2-", 1).replacen("-3-", "-1-", 1)] {
                if wrong != share.as_str() {
                    told.push(format!("{:?}", unseal(&server, wrong).await));
                }
            }
        }
        for share in &made.root_shares[..3] {
            told.push(format!("{:?}", unseal(&server, share).await.unwrap()));
        }
        server.until_serving().await.unwrap();
    }
    told.push(format!("{:?}", unseal(&server, &made.root_shares[4]).await.unwrap_err()));
    let entries = database.sql("SELECT convert_from(entry, 'UTF8') FROM audit_entries");
    assert!(entries.matches(r#""name":"root.unseal""#).count() >= 6, "{entries}");

    let shares = made.root_shares.iter();
    let planted: Vec<_> = shares.flat_map(|share| [share.as_bytes().to_vec(), share_value(share)]).collect();
    let search = Search::of(planted.iter().map(|value| ("a share", value.as_slice())));
    assert_eq!(search.found_in(told.concat().as_bytes()), none(), "told to who entered them");
    assert_eq!(search.found_in(entries.as_bytes()), none(), "entries");
    let logs = fs::read_to_string(folder.path().join("server.log")).unwrap();
    assert!(logs.contains("TRACE"), "the log holds all that it can");
    server.stop();
    database.sql("CHECKPOINT");
    database.own.as_mut().unwrap().stop();
    assert_eq!(search.found_below(folder.path(), &[]), [""; 0]);
    assert_eq!(search.found_below(database.access.password_file().parent().unwrap(), &[]), [""; 0]);
}

#[test]
fn a_value_in_the_clear_is_found_in_postgres_files() {
    let mut database = Database::own();
    let search = Search::of([("text", TEXT), ("binary", BINARY), ("piped", PIPED)]);
    let folder = database.access.password_file().parent().unwrap().to_owned();
    assert_eq!(search.found_below(&folder, &[]), [""; 0]);
    let bytes = |value: &[u8]| format!("'\\x{}'::bytea", hex::encode(value));
    let (text, binary) = (bytes(TEXT), bytes(BINARY));
    database.sql(&format!(
        "CREATE TABLE leak AS SELECT convert_from({text}, 'UTF8') AS text, {binary} AS binary"
    ));
    let piped = String::from_utf8_lossy(PIPED);
    database.access.sql(&database.name, &format!("SELECT '{piped}'::integer")).unwrap_err();
    database.sql("CHECKPOINT");
    database.own.as_mut().unwrap().stop();

    let found = search.found_below(&folder, &[]);
    let is_found =
        |file: &str, value: &str| found.iter().any(|found| found.contains(file) && found.contains(value));
    for (file, value) in [
        ("/data/base/", "text"),
        ("/data/base/", "binary"),
        ("/data/pg_wal/", "text"),
        ("/data/pg_wal/", "binary"),
        ("/postgres.log", "piped"),
    ] {
        assert!(is_found(file, value), "{value} is not found in {file}: {found:?}");
    }
}
