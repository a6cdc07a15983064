//! `keyfold login`, `logout` and `whoami` against a real server, with real commands, files and the kernel's real keyring.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    thread,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_tests::{Cli, Installation, Ran, Search};
use seccompiler::{apply_filter, compile_from_json};
use serde_json::{Value, json};

/// An administrator's token, a script that prints it, and the shell of somebody who has nothing else.
struct Desk {
    installation: Installation,
    cli: Cli,
    admin_token: String,
}

impl Desk {
    async fn new() -> Self {
        let installation = Installation::new().await;
        let admin_token = fs::read_to_string(installation.setup().admin_token_file()).unwrap();
        let cli = installation.nobody();
        fs::create_dir(cli.folder.join("run")).unwrap();
        let run = cli.folder.join("run").display().to_string();
        let desk = Self { cli: cli.with("XDG_RUNTIME_DIR", Some(&run)), installation, admin_token };
        desk.cli.write("next", &desk.admin_token);
        desk.script("get-token", "echo >> runs; cat next");
        desk
    }

    fn script(&self, name: &str, lines: &str) {
        self.cli.write(name, format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n{lines}\n"));
        fs::set_permissions(self.cli.folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// How often the script has run.
    fn runs(&self) -> usize {
        fs::read_to_string(self.cli.folder.join("runs")).map_or(0, |runs| runs.lines().count())
    }

    fn profiles(&self) -> PathBuf {
        self.cli.folder.join(".config/keyfold/profiles.yaml")
    }

    /// Files that keep tokens, by name.
    fn kept(&self) -> BTreeMap<String, String> {
        let Ok(folder) = fs::read_dir(self.cli.folder.join("run/keyfold")) else { return BTreeMap::new() };
        let file = |path: PathBuf| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
        };
        folder.map(|entry| file(entry.unwrap().path())).collect()
    }

    fn kept_file(&self) -> PathBuf {
        let kept = self.kept();
        assert_eq!(kept.len(), 1, "{:?}", kept.keys());
        self.cli.folder.join("run/keyfold").join(kept.keys().next().unwrap())
    }

    /// Text without what differs from run to run.
    fn masked(&self, text: &str) -> String {
        let url = self.installation.setup().url();
        let folder = self.cli.folder.parent().unwrap().to_str().unwrap();
        text.replace(&url, "URL").replace(&format!("{folder}/shell"), "HOME").replace(folder, "FOLDER")
    }

    fn fails(&self, arguments: &str) -> String {
        self.masked(&self.cli.fails(arguments))
    }

    fn run(&self, arguments: &str) -> Ran {
        let ran = self.cli.run(arguments);
        Ran { out: self.masked(&ran.out), err: self.masked(&ran.err), ..ran }
    }

    /// A keyring keeps what a failed test leaves.
    fn sign_out(&self) {
        self.cli.ok("logout");
    }
}

/// A JWT that ended long ago.
fn old_jwt() -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"exp":1}"#))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signed_in_needs_no_more_options() {
    let desk = Desk::new().await;
    insta::assert_snapshot!(desk.fails("key list"), @"2 keyfold: not signed in to URL: run keyfold login, or give --token-file.");
    insta::assert_snapshot!(desk.run("login --token-command ./get-token --store file").out, @"Signed in to URL as initial-administrator.");
    let elsewhere = desk.installation.nobody().with("KEYFOLD_SERVER", None).with("KEYFOLD_CA_FILE", None);
    elsewhere.ok("key list");
    insta::assert_snapshot!(elsewhere.ok("whoami"), @r"
    name         initial-administrator
    permissions  keys:read, keys:rotate, keys:compromise, keys:destroy, root:read, root:change, root:recover, ca:rotate, audit:read, status:read, keyspaces:read, keyspaces:write, issuers:read, issuers:write, roles:read, roles:write, operators:read, operators:write, approvals:read, approvals:sign
    grant        **(read,list,write,delete,manage)
    ");
    assert!(elsewhere.ok("status").contains("installation"), "status shows an operator details");
    assert_eq!(desk.runs(), 1, "the token is kept");
    // A file that is named goes before what is kept.
    desk.cli.write("wrong", "kfa_wrong");
    let url = desk.installation.setup().url();
    assert_eq!(elsewhere.run(&format!("key list --token-file wrong --server {url}")).code, 4);

    insta::assert_snapshot!(desk.run("logout").out, @"Signed out of URL.");
    insta::assert_snapshot!(desk.run("logout").out, @"Not signed in.");
    assert!(desk.kept().is_empty());
    assert!(desk.fails("key list").contains("run keyfold login"));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_a_token_file_without_a_server_is_sent_to_nobody() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    let elsewhere = desk.installation.nobody().with("KEYFOLD_SERVER", None);
    let before = refusals(&desk);
    desk.cli.write("of-another-installation", "kfa_other");
    let refused = elsewhere.fails("key list --token-file of-another-installation");
    insta::assert_snapshot!(refused, @"2 keyfold: cannot call the server: a token file is given and no server: the one of keyfold login may not be the token's. Give --server URL or set KEYFOLD_SERVER.");
    let elsewhere = elsewhere.with("KEYFOLD_TOKEN_FILE", Some("of-another-installation"));
    for arguments in ["key list", "status", "login", "whoami"] {
        assert_eq!(elsewhere.fails(arguments), refused, "{arguments}");
    }
    assert_eq!(refusals(&desk), before, "no server has seen the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_who_replaces_the_ca_file_after_signing_in_gets_no_token() {
    let desk = Desk::new().await;
    let ca = fs::read(desk.installation.setup().ca_file()).unwrap();
    desk.cli.write("ca.crt", ca);
    desk.cli.ok("login --token-command ./get-token --store file --ca-file ca.crt");
    let elsewhere = desk.installation.nobody().with("KEYFOLD_SERVER", None).with("KEYFOLD_CA_FILE", None);
    let other = Installation::new().await;
    desk.cli.write("ca.crt", fs::read(other.setup().ca_file()).unwrap());
    elsewhere.ok("key list");
    assert_eq!(elsewhere.run("key list --ca-file ca.crt").code, 6, "the new file is of another authority");
    fs::remove_file(desk.cli.folder.join("ca.crt")).unwrap();
    elsewhere.ok("key list");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_who_signs_out_while_a_token_is_fetched_leaves_none_behind() {
    let desk = Desk::new().await;
    let keyfold = keyfold_tests::bin_dir().join("keyfold");
    let lines = format!("test -e leave && {} logout >&2; cat next", keyfold.display());
    desk.script("get-token", &lines);
    desk.cli.ok("login --token-command ./get-token --store file");
    fs::write(desk.kept_file(), old_jwt()).unwrap();
    desk.cli.write("leave", "");
    let ran = desk.run("key list");
    insta::assert_snapshot!(ran.err, @r"
    Signed out of URL.
    keyfold: warning: the new token is not kept: you signed out, or in anew, while it was fetched
    ");
    assert_eq!((ran.code, desk.kept()), (0, BTreeMap::new()));
    assert!(desk.fails("key list").contains("not signed in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_tells_programs_everything() {
    let desk = Desk::new().await;
    let said: Value = serde_json::from_str(&desk.installation.cli.ok("whoami -o json")).unwrap();
    assert_eq!(said["name"], "initial-administrator");
    assert_eq!(said.get("expires_at"), None);
    let said: Value =
        serde_json::from_str(&desk.cli.ok("login --token-command ./get-token --store none -o json")).unwrap();
    assert_eq!(
        (&said["server"], &said["name"]),
        (&json!(desk.installation.setup().url()), &json!("initial-administrator"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_a_profile_holds_no_token_and_everything_kept_is_its_owners_alone() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    let (profiles, kept) = (desk.profiles(), desk.kept_file());
    let ca = fs::read_to_string(desk.installation.setup().ca_file()).unwrap();
    let text = desk.masked(&fs::read_to_string(&profiles).unwrap());
    let text = text.replace(&format!("    {}\n", ca.trim_end().replace('\n', "\n    ")), "    PEM\n");
    insta::assert_snapshot!(text.replace(kept.file_name().unwrap().to_str().unwrap(), "token-ID"), @r"
    profiles:
    - server: URL
      ca_pem: |
        PEM
      source:
        command:
          words:
          - HOME/get-token
          timeout_secs: 120
      store:
        file: HOME/run/keyfold/token-ID
    ");
    assert_eq!((mode(&profiles), mode(profiles.parent().unwrap())), (0o600, 0o700));
    assert_eq!((mode(&kept), mode(kept.parent().unwrap())), (0o600, 0o700));
    let search = Search::of([("the token", desk.admin_token.as_bytes())]);
    let found = search.found_below(&desk.cli.folder, &[kept, desk.cli.folder.join("next")]);
    assert_eq!(found, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_the_server_refuses_leaves_nothing_behind() {
    let desk = Desk::new().await;
    desk.cli.write("next", "kfa_wrong");
    insta::assert_snapshot!(desk.fails("login --token-command ./get-token --store file"), @"4 keyfold: cannot sign in: the operator's token is missing, unknown or revoked: give a valid one with --token-file. Nothing is remembered.");
    assert!(!desk.profiles().exists() && desk.kept().is_empty());
    // Nor does it take away what an earlier one left.
    desk.cli.write("next", &desk.admin_token);
    desk.cli.ok("login --token-command ./get-token --store file");
    desk.cli.write("next", "kfa_wrong");
    desk.fails("login --token-command ./get-token");
    desk.cli.ok("key list");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_login_cannot_do_is_said() {
    let desk = Desk::new().await;
    desk.cli.write("token", &desk.admin_token);
    desk.script("silent", "exit 3");
    let with_variable = desk.installation.nobody().with("KEYFOLD_TOKEN_FILE", Some("token"));
    let refusals = [
        desk.fails("login"),
        desk.fails("login --token-command ./none"),
        desk.fails("login --token-command ./silent"),
        desk.fails("login --token-file none"),
        desk.fails("login --token-stdin"),
        desk.fails("login --token-stdin --store none"),
        desk.fails("login --token-file token --store keyring"),
        desk.masked(&with_variable.fails("login --token-command ./get-token")),
    ];
    insta::assert_snapshot!(refusals.join("\n"), @r"
    2 keyfold: cannot sign in: no source of tokens is given. Give --token-command COMMAND, --token-file FILE or --token-stdin.
    4 keyfold: cannot get the operator's token: the token command HOME/none cannot be run: No such file or directory.
    4 keyfold: cannot get the operator's token: the token command HOME/silent failed: exit status: 3.
    2 keyfold: cannot call the server: the token file HOME/none cannot be read: No such file or directory.
    2 keyfold: cannot get the operator's token: standard input is empty.
    2 keyfold: cannot sign in: with --store none a token from standard input would be lost.
    2 keyfold: cannot sign in: a token file is read anew at each call, so --store keeps nothing of it.
    2 keyfold: cannot sign in: --token-file or KEYFOLD_TOKEN_FILE is given too, and goes before what login remembers. Give one source, and unset KEYFOLD_TOKEN_FILE.
    ");
    assert!(!desk.profiles().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_is_read_anew_at_each_call_and_never_copied() {
    let desk = Desk::new().await;
    desk.cli.write("projected", &desk.admin_token);
    desk.cli.ok("login --token-file projected");
    desk.cli.ok("key list");
    assert!(desk.kept().is_empty());
    desk.cli.write("projected", "kfa_wrong");
    insta::assert_snapshot!(desk.fails("key list"), @"4 keyfold: cannot list keys: the operator's token is missing, unknown or revoked: give a valid one with --token-file. Check that the token's file holds a valid token of this installation.");
    desk.cli.write("projected", &desk.admin_token);
    desk.cli.ok("key list");
    fs::remove_file(desk.cli.folder.join("projected")).unwrap();
    insta::assert_snapshot!(desk.fails("key list"), @"2 keyfold: cannot call the server: the token file HOME/projected cannot be read: No such file or directory.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_standard_input_lasts_until_its_end() {
    let desk = Desk::new().await;
    let ran = desk.cli.run_with("login --token-stdin --store file", desk.admin_token.as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.err);
    desk.cli.ok("key list");
    fs::write(desk.kept_file(), old_jwt()).unwrap();
    insta::assert_snapshot!(desk.fails("key list"), @"4 keyfold: not signed in to URL any more: the token that login was given is over, or is no longer kept. Run keyfold login, or give --token-file.");
    insta::assert_snapshot!(desk.run("status").err, @"keyfold: not signed in to URL any more: the token that login was given is over, or is no longer kept. Run keyfold login, or give --token-file.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_that_is_over_is_renewed_without_asking_the_server() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    let before = refusals(&desk);
    fs::write(desk.kept_file(), old_jwt()).unwrap();
    desk.cli.ok("key list");
    assert_eq!((desk.runs(), refusals(&desk)), (2, before));
    assert_eq!(fs::read_to_string(desk.kept_file()).unwrap(), desk.admin_token);
    // A token that was asked about would have left an entry.
    desk.cli.write("wrong", old_jwt());
    desk.fails("key list --token-file wrong");
    assert!(refusals(&desk) > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_token_that_the_server_refuses_is_renewed_once() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    fs::write(desk.kept_file(), "kfa_revoked").unwrap();
    // A call with a body, which goes out twice.
    desk.cli
        .write("keyspace.yaml", "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\n");
    insta::assert_snapshot!(desk.run("apply -f keyspace.yaml").out, @"Keyspace payments created");
    assert_eq!(fs::read_to_string(desk.kept_file()).unwrap(), desk.admin_token);
    assert_eq!(desk.runs(), 2);

    // A command that gives the refused token again, another bad one, or none: one run, and the server's refusal.
    for (next, runs) in [("kfa_revoked", 3), ("kfa_other", 4), ("", 5)] {
        fs::write(desk.kept_file(), "kfa_revoked").unwrap();
        desk.cli.write("next", next);
        let ran = desk.run("key list");
        assert_eq!((ran.code, desk.runs()), (4, runs), "{next}: {}", ran.err);
        assert!(ran.err.contains("Sign in again: keyfold login"), "{}", ran.err);
    }
}

/// Entries of calls that were refused.
fn refusals(desk: &Desk) -> usize {
    desk.installation.cli.ok("audit list --outcome refused -o json").matches("\"outcome\"").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_renew_at_once_leave_one_whole_token() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    for _ in 0..3 {
        fs::write(desk.kept_file(), old_jwt()).unwrap();
        thread::scope(|scope| {
            let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| desk.cli.run("key list"))).collect();
            for call in calls {
                let ran = call.join().unwrap();
                assert_eq!((ran.code, ran.err.as_str()), (0, ""));
            }
        });
        assert_eq!(fs::read_to_string(desk.kept_file()).unwrap(), desk.admin_token);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_no_token_is_in_any_process_command_line_or_environment() {
    let desk = Desk::new().await;
    desk.script(
        "spy",
        "cat /proc/$PPID/cmdline /proc/$PPID/environ /proc/$$/cmdline /proc/$$/environ >> seen; cat next",
    );
    desk.cli.ok("login --token-command ./spy --store file");
    let refused = "kfa_planted-refused-token";
    fs::write(desk.kept_file(), refused).unwrap();
    desk.cli.ok("key list");
    let seen = fs::read(desk.cli.folder.join("seen")).unwrap();
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("login\0--token-command\0./spy") && text.contains("key\0list"), "{text}");
    assert_eq!(text.matches("HOME=").count(), 4, "both processes, both times: {text}");
    let search = Search::of([("kept", refused.as_bytes()), ("new", desk.admin_token.as_bytes())]);
    assert!(search.found_in(&seen).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_command_says_reaches_the_operator_and_it_takes_no_input() {
    let desk = Desk::new().await;
    desk.script("asking", "cat > eaten; echo 'confirm in your browser' >&2; cat next");
    desk.cli.ok("login --token-command ./asking --store none");
    desk.cli
        .write("keyspace.yaml", "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\n");
    desk.cli.ok("apply -f keyspace.yaml");
    let ran = desk.cli.run_with("secret put payments/db --from-file password=-", b"hunter2");
    assert_eq!((ran.code, ran.err.as_str()), (0, "confirm in your browser\n"));
    assert_eq!(fs::read(desk.cli.folder.join("eaten")).unwrap(), b"");
    assert_eq!(desk.cli.ok("secret get payments/db --field password"), "hunter2");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_files_that_others_may_have_touched_are_refused() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store file");
    let (kept, profiles) = (desk.kept_file(), desk.profiles());
    let set_mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    let named = |text: String| text.replace(kept.file_name().unwrap().to_str().unwrap(), "token-ID");
    let mut refusals = Vec::new();
    for path in [&kept, &profiles] {
        set_mode(path, 0o644);
        refusals.push(named(desk.fails("key list")));
        set_mode(path, 0o600);
    }
    let moved = desk.cli.folder.join("moved");
    fs::rename(&kept, &moved).unwrap();
    symlink(&moved, &kept).unwrap();
    refusals.push(named(desk.fails("key list")));
    insta::assert_snapshot!(refusals.join("\n"), @r"
    2 keyfold: cannot get the operator's token: HOME/run/keyfold/token-ID is open to others: its mode is 0644 where it must be 0600. See who changed it, remove it, and run keyfold login.
    2 keyfold: cannot read the profiles of keyfold login: HOME/.config/keyfold/profiles.yaml is open to others: its mode is 0644 where it must be 0600. Put it right or remove it, or give --server, --ca-file and --token-file.
    2 keyfold: cannot get the operator's token: HOME/run/keyfold/token-ID cannot be used: it is a link, or not what it must be. See who changed it, remove it, and run keyfold login.
    ");
    // Signing out, and in again, puts it right and follows no link.
    desk.sign_out();
    assert_eq!(fs::read_to_string(moved).unwrap(), desk.admin_token);
    desk.cli.ok("login --token-command ./get-token --store file");
    desk.cli.ok("key list");
    assert_eq!(mode(&desk.kept_file()), 0o600);
}

/// Needs a kernel with persistent keyrings, and leave to use them; fails where there is none.
#[tokio::test(flavor = "multi_thread")]
async fn the_keyring_keeps_the_token_and_no_file_does() {
    let desk = Desk::new().await;
    for options in ["--store keyring", ""] {
        desk.cli.write("next", &desk.admin_token);
        let before = desk.runs();
        let ran = desk.run(&format!("login --token-command ./get-token {options}"));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "this test needs the kernel's keyring");
        assert!(fs::read_to_string(desk.profiles()).unwrap().contains("store: keyring"));
        desk.cli.write("next", "kfa_wrong");
        desk.cli.ok("key list");
        assert_eq!(desk.runs(), before + 1, "the token is kept");
        let search = Search::of([("the token", desk.admin_token.as_bytes())]);
        assert_eq!(search.found_below(&desk.cli.folder, &[]), [""; 0]);
        desk.sign_out();
        let ran = desk.cli.run_with("login --token-stdin", b"kfa_wrong");
        assert_eq!(ran.code, 4, "{}", ran.err);
        assert!(desk.fails("key list").contains("not signed in"), "nothing is left in the keyring");
    }
}

/// Runs `keyfold` where the kernel permits no keyring, as the usual filter of containers has it.
fn without_keyring(desk: &Desk, arguments: &str) -> Ran {
    let filter = json!({"keyring": {
        "mismatch_action": "allow",
        "match_action": {"errno": 1},
        "filter": [{"syscall": "add_key"}, {"syscall": "keyctl"}, {"syscall": "request_key"}],
    }});
    let architecture = std::env::consts::ARCH.try_into().expect("a processor that filters are made for");
    let filters = compile_from_json(filter.to_string().as_bytes(), architecture).unwrap();
    thread::scope(|scope| {
        let ran = scope.spawn(|| {
            apply_filter(&filters["keyring"]).expect("a filter for this thread and its children");
            desk.run(arguments)
        });
        ran.join().unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_keyring_is_permitted_login_says_so_and_keeps_a_file() {
    let desk = Desk::new().await;
    let ran = without_keyring(&desk, "login --token-command ./get-token --store keyring");
    assert_eq!(ran.code, 8);
    insta::assert_snapshot!(ran.err, @"keyfold: cannot sign in: the token cannot be kept: the kernel's keyring is not permitted here. Give another --store: keyring, file or none.");
    assert!(!desk.profiles().exists());

    let ran = without_keyring(&desk, "login --token-command ./get-token");
    assert_eq!(ran.code, 0);
    let file = desk.kept_file();
    insta::assert_snapshot!(ran.err.replace(file.file_name().unwrap().to_str().unwrap(), "token-ID"), @"keyfold: the kernel's keyring is not permitted here: the token is kept in HOME/run/keyfold/token-ID");
    assert_eq!((mode(&file), fs::read_to_string(&file).unwrap()), (0o600, desk.admin_token.clone()));
    assert_eq!(without_keyring(&desk, "key list").code, 0);
    assert_eq!(desk.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_kept_in_a_keyring_that_is_out_of_reach_is_got_again() {
    let desk = Desk::new().await;
    desk.cli.ok("login --token-command ./get-token --store keyring");
    let ran = without_keyring(&desk, "key list");
    assert_eq!(ran.code, 0, "{}", ran.err);
    insta::assert_snapshot!(ran.err, @r"
    keyfold: warning: the kept token cannot be read: the kernel's keyring is not permitted here
    keyfold: warning: the new token is not kept: the kernel's keyring is not permitted here
    ");
    assert_eq!(desk.runs(), 2);
    desk.sign_out();
}
