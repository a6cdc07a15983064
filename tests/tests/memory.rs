//! What the processes hold in memory: keys in locked pages alone, and nothing of what they have worked on and let go.
//! Who may look, and what is left when one of them crashes.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold::dev::{kubelet::publish_request, process::Process, server::Setup};
use keyfold_core::{
    envelope::{self, DekContext, KekContext, KeyRef, RwkContext},
    secret::Key,
};
use keyfold_proto::keyfold::v1::{ChangeVersionsRequest, GetSecretRequest, RotateKeyRequest};
use keyfold_tests::{
    Database, World, bin_dir,
    faults::until,
    memory::{Map, Memory, Planted},
    server_setup,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, kill_process, setrlimit};
use tempfile::TempDir;
use uuid::Uuid;

/// The user who owns nothing.
const NOBODY: u32 = 65534;

const FIRST: &str = "planted-first-5f0d7a1c93be48260e";
const SECOND: &str = "planted-second-c41b7e9a02d8f6537b";
const DESTROYED: &str = "planted-destroyed-8e26fb50d1973ac4";
/// Repeated until it no longer fits into one frame of HTTP/2 or one record of TLS.
const LONG: &str = "planted-long-71d0c8be5a93f246";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_let_go_is_not_in_memory_and_keys_lie_in_locked_pages_alone() {
    let mut world = World::start().await.with_payments().await;
    let gone = Box::pin(work(&world)).await;
    let keys = Keys::of(&world);
    // What a connection has carried may stay in its buffers until it ends.
    world.driver.stop().await;

    let server = settled(&world.server.process, &gone).await;
    let name = Planted::from([("its database's name".into(), world.database.name.clone().into_bytes())]);
    assert_ne!(server.found(&name, |_| true), none(), "a thing that is there is found");
    assert_eq!(server.found(&gone, |_| true), none(), "let go, and still there");

    let locked = server.names_of(&keys.open, Map::is_locked_and_not_dumped);
    assert!(locked.contains("root-wrapping key") && locked.contains(&keys.active), "{locked:?}");
    let elsewhere = server.found(&keys.open, |map| !map.is_locked_and_not_dumped());
    assert_eq!(elsewhere, none(), "keys outside of locked pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_keeps_nothing_of_what_it_has_passed_on() {
    let mut world = World::start().await.with_payments().await;
    let gone = Box::pin(work(&world)).await;
    let folder =
        Planted::from([("its folder".into(), world.folder.path().to_string_lossy().into_owned().into())]);
    world.server.process.kill();

    let driver = settled(&world.driver.process, &gone).await;
    assert_ne!(driver.found(&folder, |_| true), none(), "a thing that is there is found");
    assert_eq!(driver.found(&gone, |_| true), none(), "let go, and still there");
}

fn none() -> BTreeSet<String> {
    BTreeSet::new()
}

/// Its memory once nothing of `gone` is there, or after ten seconds: ends of connections are noticed a little later.
async fn settled(process: &Process, gone: &Planted) -> Memory {
    for _ in 0..20 {
        if Memory::of(process).found(gone, |_| true).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Memory::of(process)
}

/// Values written, read, issued, moved to another key and destroyed. Gives all that nobody needs any more.
async fn work(world: &World) -> Planted {
    world.put("payments/db", &[("password", DESTROYED)]).await;
    let mut gone = Keys::of(world).deks;
    world.put("payments/db", &[("password", FIRST)]).await;
    world.put("payments/long", &[("text", &LONG.repeat(3_000))]).await;

    let pod = world.pod("payments", "api", "api-0");
    let (volume, token) = (world.volume(&pod), world.token(&pod));
    let secrets = [("role", "payments-api"), ("secrets", "- path: payments/db\n- path: payments/long\n")];
    let publish = async || {
        let request = publish_request(&pod, &volume, &token, &secrets);
        world.driver.kubelet().publish(request).await.expect("the volume is published");
        fs::read_to_string(world.driver.seen(&volume.target).join("db/password")).expect("the file is there")
    };
    assert_eq!(publish().await, FIRST);

    let operator = world.operator();
    let rotate = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    operator.keys().rotate_key(rotate).await.expect("the key can be turned");
    let get = GetSecretRequest { path: "payments/db".into(), version: None };
    operator.secrets().get_secret(get).await.expect("the secret can be read");
    let destroy = ChangeVersionsRequest { path: "payments/db".into(), versions: vec![2] };
    operator.secrets().destroy_versions(destroy).await.expect("the version can be destroyed");
    world.put("payments/db", &[("password", SECOND)]).await;
    assert_eq!(publish().await, SECOND);
    world.driver.kubelet().unpublish(&volume).await.expect("the volume is unpublished");

    gone.extend(Keys::of(world).deks);
    gone.extend(root_key(world));
    let text = |name: &str, value: &str| (name.to_owned(), value.trim().as_bytes().to_vec());
    let file = |path: PathBuf| fs::read_to_string(path).expect("the file is there");
    let signature = |token: &str| token.rsplit_once('.').expect("a JWT has three parts").1.to_owned();
    gone.extend([
        text("first", FIRST),
        text("second", SECOND),
        text("destroyed", DESTROYED),
        text("long", LONG),
        text("administrator's token", &file(world.server.setup().admin_token_file())),
        text("bootstrap token", &file(world.server.setup().bootstrap_token_file())),
        text("signature of the pod's token", &signature(&token.jwt)),
        text("signature of the driver's token", &signature(&world.driver_token())),
    ]);
    gone
}

/// The root key's bytes; their text is one of the forms that are searched.
fn root_key(world: &World) -> Planted {
    parts("root key", root_key_of(world).expose())
}

fn root_key_of(world: &World) -> Key {
    let text = fs::read(world.folder.path().join("server/root.key")).expect("the root key is there");
    let bytes = STANDARD.decode(text.trim_ascii()).expect("it is base64");
    Key::try_from(bytes.as_slice()).expect("it has 32 bytes")
}

/// A key whole, in halves, and as SHA-512 takes it in, in words of eight bytes with the last one first.
fn parts(name: &str, key: &[u8; Key::LEN_BYTES]) -> Planted {
    let swapped: Vec<_> = key.chunks(8).flat_map(|word| word.iter().rev().copied()).collect();
    let mut parts = Planted::from([(name.to_owned(), key.to_vec())]);
    for (order, bytes) in [("in order", &key[..]), ("words reversed", &swapped)] {
        for (half, bytes) in bytes.chunks(16).enumerate() {
            parts.insert(format!("{name}, half {half}, {order}"), bytes.to_vec());
        }
    }
    parts
}

/// The installation's keys, computed from the root key and the database.
struct Keys {
    /// The RWK and the KEKs: what the server keeps open.
    open: Planted,
    /// The name of the active KEK of `payments` among them.
    active: String,
    /// What the server opens for one use.
    deks: Planted,
}

impl Keys {
    fn of(world: &World) -> Self {
        let sql = |sql: &str| -> Vec<Vec<String>> {
            let rows = world.database.sql(sql);
            rows.lines().map(|row| row.split('|').map(ToOwned::to_owned).collect()).collect()
        };
        let id = |text: &str| text.parse::<Uuid>().expect("an id");
        let number = |text: &str| text.parse::<u32>().expect("a version");
        let installation = id(&sql("SELECT id FROM installation")[0][0]);

        let row = &sql("SELECT id, version, root_key_id, encode(wrapped, 'hex') FROM root_wrapping_keys")[0];
        let (rwk_ref, root_key_id) = (KeyRef { id: id(&row[0]), version: number(&row[1]) }, id(&row[2]));
        let place = RwkContext { installation, rwk: rwk_ref.id, rwk_version: rwk_ref.version, root_key_id };
        let root_ref = KeyRef { id: root_key_id, version: 1 };
        let rwk = open(&root_key_of(world), root_ref, &place.associated_data(), &row[3]);
        let mut open_keys = parts("root-wrapping key", rwk.expose());

        let (mut active, mut keks) = (String::new(), Vec::new());
        for row in
            sql("SELECT id, coalesce(keyspace_id, '00000000-0000-0000-0000-000000000000'), purpose, version,
                state, encode(wrapped, 'hex') FROM keks WHERE wrapped IS NOT NULL ORDER BY version")
        {
            let (kek_ref, keyspace) = (KeyRef { id: id(&row[0]), version: number(&row[3]) }, id(&row[1]));
            let place = KekContext {
                installation,
                keyspace,
                purpose: &row[2],
                kek: kek_ref.id,
                kek_version: kek_ref.version,
                root_key_id,
            };
            let kek = open(&rwk, rwk_ref, &place.associated_data(), &row[5]);
            let name = format!("{} key {} of {keyspace}", row[2], row[3]);
            open_keys.extend(parts(&name, kek.expose()));
            if row[2] == "data" && row[4] == "active" {
                active = name;
            }
            keks.push((kek_ref, kek));
        }

        let mut deks = Planted::new();
        for row in sql("SELECT id, keyspace_id, secret_id, version, kek_id, encode(wrapped, 'hex') FROM deks")
        {
            let (kek_ref, kek) = keks.iter().find(|(of, _)| of.id == id(&row[4])).expect("its KEK is there");
            let place = DekContext {
                installation,
                keyspace: id(&row[1]),
                secret: id(&row[2]),
                version: number(&row[3]),
                dek: id(&row[0]),
                kek: kek_ref.id,
                kek_version: kek_ref.version,
            };
            let dek = open(kek, *kek_ref, &place.associated_data(), &row[5]);
            deks.extend(parts(&format!("DEK {} of version {}", row[0], row[3]), dek.expose()));
        }
        Self { open: open_keys, active, deks }
    }
}

fn open(key: &Key, key_ref: KeyRef, place: &envelope::AssociatedData, hexadecimal: &str) -> Key {
    let blob = hex::decode(hexadecimal).expect("Postgres prints hexadecimal");
    let opened = envelope::open(key, key_ref, place, &blob).expect("what the server stored opens");
    Key::try_from(opened.expose()).expect("it is a key")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core_and_no_program_gains_rights() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).expect("a soft limit may be raised");
    let folder = tempfile::tempdir().unwrap();
    let mut control = Command::new("sleep").arg("60").current_dir(folder.path()).spawn().unwrap();
    send(control.id(), Signal::ABORT);
    assert!(
        control.wait().unwrap().core_dumped(),
        "this system must write cores of other programs (ulimit -c)"
    );

    let mut world = World::start().await;
    for process in [&mut world.server.process, &mut world.driver.process] {
        let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.pid())).unwrap();
        assert!(read("status").contains("NoNewPrivs:\t1\n"));
        let limits = read("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
        send(process.pid(), Signal::ABORT);
        let end = end_of(process).await;
        assert!(end.contains("signal: 6") && !end.contains("core dumped"), "{end}");
    }
}

/// How the process ended, and the last lines of its log.
async fn end_of(process: &mut Process) -> String {
    let ended = process.ready(Duration::from_secs(30), async || false).await;
    ended.expect_err("it ends instead").to_string()
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process runs");
}

/// A server to be started by hand, as another user or with less rights.
struct Alone {
    folder: TempDir,
    setup: Setup,
    _database: Database,
}

impl Alone {
    fn new() -> Self {
        assert!(geteuid().is_root(), "this test starts processes as other users: run it as root");
        let (folder, database) = (tempfile::tempdir().unwrap(), Database::shared());
        let setup = server_setup(folder.path(), "server", &database);
        // Copies that another user can be given.
        let mut config = fs::read_to_string(setup.config_file()).unwrap();
        for (file, name) in
            [(database.access.password_file(), "password"), (database.access.ca_file(), "database-ca")]
        {
            let copy = folder.path().join("server").join(name);
            fs::copy(file, &copy).unwrap();
            config = config.replace(file.to_str().unwrap(), copy.to_str().unwrap());
        }
        fs::write(setup.config_file(), config).unwrap();
        Self { folder, setup, _database: database }
    }

    /// Runs `wrapper`, a shell's words that end with a program to which more arguments can be given, with the server.
    fn start(&self, wrapper: &str) -> Process {
        let script = format!("{wrapper} \"$0\" --config \"$1\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(bin_dir().join("keyfold-server")).arg(self.setup.config_file());
        Process::start("keyfold-server", command, &self.log()).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    async fn until_listening(&self, process: &mut Process) {
        let address = self.setup.url().trim_start_matches("https://").to_owned();
        let is_ready = async || TcpStream::connect(&address).is_ok();
        process.ready(Duration::from_secs(30), is_ready).await.unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_that_it_runs_as_cannot_look_into_the_server() {
    let alone = Alone::new();
    give_away(alone.folder.path());
    let as_nobody = format!("exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups");
    let mut server = alone.start(&as_nobody);
    alone.until_listening(&mut server).await;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{as_nobody} sleep 60")]);
    let control = Process::start("control", command, &alone.log()).unwrap();
    until("the control to be another user's", async || uid_of(control.pid()) == NOBODY).await;

    let may_read = |pid: u32, file: &str| {
        let script = format!("{as_nobody} head -c 1 /proc/{pid}/{file}");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    // All of them ask what ptrace(2) asks. `mem` itself is left out: its first byte is no memory.
    for file in ["environ", "maps", "auxv"] {
        assert!(may_read(control.pid(), file), "another process of the user: {file}");
        assert!(!may_read(server.pid(), file), "{file}");
    }
}

fn uid_of(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}")).unwrap().uid()
}

fn give_away(folder: &Path) {
    chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => give_away(&path),
            false => chown(&path, Some(NOBODY), Some(NOBODY)).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lock_too_little_memory_does_not_start_and_says_what_to_do() {
    let alone = Alone::new();
    let limited = |kib: u32| format!("ulimit -l {kib}; exec setpriv --bounding-set=-ipc_lock");
    let mut refused = alone.start(&limited(4));
    let end = end_of(&mut refused).await;
    assert!(end.contains("RLIMIT_MEMLOCK of this process is 4096 bytes; it needs 16384 bytes"), "{end}");

    let mut enough = alone.start(&limited(16));
    alone.until_listening(&mut enough).await;
}
