//! `keyfold dev` as a user runs it: what it prints, how it ends, and that it leaves nothing behind. Needs a Postgres
//! on the machine and, for the whole environment, `keyfold-server` and `keyfold-csi` built beside `keyfold`
//! (`make build`); fails where they are missing.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const KEYFOLD: &str = env!("CARGO_BIN_EXE_keyfold");

/// `keyfold dev …` with `scratch` for its temporary files, so that what is left there is its own.
fn dev(scratch: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(KEYFOLD);
    command.arg("dev").args(arguments).env("TMPDIR", scratch.path()).stdin(Stdio::null());
    command
}

fn scratch() -> TempDir {
    // A short path: sockets lie below it.
    tempfile::Builder::new().prefix("kf-").tempdir_in("/tmp").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits for `holds`; a minute is far more than any of this takes.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// A child that does not outlive a failed test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            signal(self.0.id(), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

/// Processes whose command line names `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let command_line = |entry: fs::DirEntry| Some(text(&fs::read(entry.path().join("cmdline")).ok()?));
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| command_line(entry.ok()?));
    all.filter(|line| line.contains(&folder.display().to_string())).collect()
}

fn assert_nothing_is_left(scratch: &TempDir) {
    let path = scratch.path().display().to_string();
    assert_eq!(processes_of(scratch.path()), Vec::<String>::new(), "processes are left");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&path), "a mount is left");
    let left: Vec<_> =
        fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

fn assert_shows_everything(demo: &Output) {
    let (out, err) = (text(&demo.stdout), text(&demo.stderr));
    assert!(demo.status.success(), "{out}\n{err}");
    let shown = [
        "AppRole payments-api created",
        "payments/db: version 1 written",
        "-r--r-----",
        "demo-first-password",
        "demo-second-password",
        "key version 1 -> 2",
        "code = PermissionDenied",
        "system:serviceaccount:payments:reports",
        "Nothing is mounted any more",
        "Summary: everything worked",
    ];
    for text in shown {
        assert!(out.contains(text), "{text:?} is not shown:\n{out}");
    }
}

#[test]
fn the_demonstration_shows_the_main_path_and_leaves_nothing_behind() {
    let scratch = scratch();
    assert_shows_everything(&dev(&scratch, &["--demo"]).output().unwrap());
    assert_nothing_is_left(&scratch);
}

#[test]
fn without_the_right_to_mount_it_uses_a_user_namespace_and_says_so() {
    let scratch = scratch();
    let mut command = Command::new("setpriv");
    // Another user than root has not got the capability in the first place, and may not drop it.
    if rustix::process::geteuid().is_root() {
        command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]);
    }
    command.args(["--", KEYFOLD, "dev", "--demo"]).env("TMPDIR", scratch.path());
    let demo = command.output().unwrap();
    assert_shows_everything(&demo);
    assert!(text(&demo.stdout).contains("a user namespace of its own"), "{}", text(&demo.stdout));
    assert_nothing_is_left(&scratch);
}

#[test]
fn an_environment_stays_up_mounts_volumes_and_stops_on_ctrl_c() {
    let scratch = scratch();
    let dir = scratch.path().join("d");
    let dir_arguments = ["--dir", dir.to_str().unwrap()];
    let mut up = Running(dev(&scratch, &dir_arguments).stdout(Stdio::piped()).spawn().unwrap());
    let dev_file = dir.join("dev.json");
    wait_until("dev.json", || dev_file.exists());

    let described: serde_json::Value = serde_json::from_str(&fs::read_to_string(&dev_file).unwrap()).unwrap();
    for key in [
        "server",
        "ca",
        "admin_token_file",
        "csi_socket",
        "registration_socket",
        "issuer",
        "people",
        "database_url",
    ] {
        assert!(described[key].is_string(), "dev.json lacks {key}");
    }
    let operator = |arguments: &[&str]| {
        let output = Command::new(KEYFOLD)
            .args(arguments)
            .env("KEYFOLD_SERVER", described["server"].as_str().unwrap())
            .env("KEYFOLD_CA_FILE", described["ca"].as_str().unwrap())
            .env("KEYFOLD_TOKEN_FILE", described["admin_token_file"].as_str().unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    };
    let write = |name: &str, content: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let objects = write(
        "objects.yaml",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: shop}\nspec: {}\n---\n\
         apiVersion: keyfold.dev/v1\nkind: AppRole\nmetadata: {name: shop}\nspec:\n  \
         bind: [{issuer: dev, namespaces: [default], serviceAccounts: [default]}]\n  \
         grants: [{path: shop/*, allow: [read]}]\n---\n\
         apiVersion: keyfold.dev/v1\nkind: OperatorRole\nmetadata: {name: platform}\nspec:\n  \
         builtIn: auditor\n  bind: [{issuer: people, claims: {sub: [alice], groups: [platform]}}]\n",
    );
    operator(&["apply", "-f", &objects]);
    operator(&["secret", "put", "shop/db", "--json", &write("shop.json", r#"{"password": "xyzzy"}"#)]);

    let token =
        [["token"].as_slice(), &dir_arguments, &["--operator", "alice", "--groups", "staff,platform"]]
            .concat();
    let alice = dev(&scratch, &token).output().unwrap();
    operator(&["whoami", "--token-file", &write("alice.jwt", &text(&alice.stdout))]);

    let items = write("items.yaml", "- path: shop/db\n");
    let mount =
        [["mount"].as_slice(), &dir_arguments, &["--role", "shop", "--secrets", &items, "v"]].concat();
    let mounted = dev(&scratch, &mount).output().unwrap();
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    let path = text(&mounted.stdout).trim().to_owned();
    assert_eq!(fs::read_to_string(Path::new(&path).join("db/password")).unwrap(), "xyzzy");

    let refused = dev(&scratch, &[&mount[..], &["--service-account", "other", "--pod", "other"]].concat())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));

    signal(up.0.id(), Signal::INT);
    assert!(up.0.wait().unwrap().success());
    let mut printed = String::new();
    up.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.contains("export KEYFOLD_SERVER=") && printed.ends_with("Stopped.\n"), "{printed}");
    assert!(!dev_file.exists() && !Path::new(&path).exists());
    fs::remove_dir_all(&dir).unwrap();
    for file in ["objects.yaml", "shop.json", "alice.jwt", "items.yaml"] {
        fs::remove_file(scratch.path().join(file)).unwrap();
    }
    assert_nothing_is_left(&scratch);
}

#[test]
fn a_command_with_postgres_finds_it_and_gives_its_exit_code() {
    let scratch = scratch();
    let script = r#"psql -d postgres -Atc 'SHOW fsync' && echo "$KEYFOLD_TEST_POSTGRES" && exit 7"#;
    let output = dev(&scratch, &["postgres", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    assert!(out.starts_with("off\n{") && out.contains("password_file"), "{out}");
    assert_nothing_is_left(&scratch);
}

#[test]
fn killed_outright_it_takes_postgres_with_it() {
    let scratch = scratch();
    let pid_file = scratch.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
    let mut running = Running(dev(&scratch, &["postgres", "--", "sh", "-c", &script]).spawn().unwrap());
    let pid = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    wait_until("the command", || pid().is_some());
    signal(running.0.id(), Signal::KILL);
    running.0.wait().unwrap();
    wait_until("the end of Postgres", || processes_of(scratch.path()).is_empty());
    signal(pid().unwrap(), Signal::TERM);
}
