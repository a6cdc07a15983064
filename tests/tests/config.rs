//! The real programs and their configuration: what is wrong is refused by name, and the environment wins over the file.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use keyfold::dev::{
    driver::{self, Mounts},
    process::{bare, guarded},
};
use keyfold_tests::{Database, bin_dir, server_setup};
use tempfile::TempDir;

const PROGRAMS: [&str; 2] = ["keyfold-server", "keyfold-csi"];

/// Good configurations of both programs.
struct Files {
    folder: TempDir,
    _database: Database,
}

impl Files {
    fn write() -> Self {
        let (database, folder) = (Database::shared(), tempfile::tempdir().unwrap());
        let server = server_setup(folder.path(), "keyfold-server", &database);
        let (dir, log) = (folder.path().join("keyfold-csi"), folder.path().join("driver.log"));
        let kubelet = folder.path().join("kubelet");
        let program = bin_dir().join("keyfold-csi");
        driver::Setup::write(&program, &dir, &log, &kubelet, Mounts::OnHost, &server).unwrap();
        Self { folder, _database: database }
    }

    fn config(&self, program: &str) -> PathBuf {
        self.folder.path().join(program).join("config.yaml")
    }

    /// The good configuration with lines added.
    fn changed(&self, program: &str, more: &str) -> PathBuf {
        let path = self.folder.path().join("changed.yaml");
        fs::write(&path, fs::read_to_string(self.config(program)).unwrap() + more).unwrap();
        path
    }

    /// What a program that must not start says, with its exit code, and the folder's name left out.
    fn refusal(&self, program: &str, config: &Path, variable: Option<(&str, &str)>) -> String {
        let mut command = bare(&bin_dir().join(program));
        command.arg("--config").arg(config).envs(variable);
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert_eq!(stdout, b"");
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{program}: {said}");
        format!("{} {}", status.code().unwrap(), said.trim_end())
            .replace(&self.folder.path().display().to_string(), "DIR")
    }
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let files = Files::write();
    let typo = |program, more| files.refusal(program, &files.changed(program, more), None);
    insta::assert_snapshot!(typo("keyfold-server", "logs: {level: info}\n"), @"1 keyfold-server: DIR/changed.yaml: logs: unknown field `logs`, expected one of `listen`, `tls`, `ca`, `database`, `root_key`, `previous_root_key`, `recovery`, `bootstrap_token_file`, `jwks_dir`, `kubeconfig_dir`, `integrity`, `keys`, `audit`, `cache`, `limits`, `log`, `metrics`");
    insta::assert_snapshot!(typo("keyfold-csi", "logs: {level: info}\n"), @"1 keyfold-csi: DIR/changed.yaml: logs: unknown field `logs`, expected one of `server`, `token_file`, `node_id`, `kubelet_dir`, `token_source`, `audience`, `tmpfs_bytes`, `log`");
    insta::assert_snapshot!(typo("keyfold-server", "log: {levl: info}\n"), @"1 keyfold-server: DIR/changed.yaml: log.levl: unknown field `levl`, expected `format` or `level`");
    insta::assert_snapshot!(typo("keyfold-csi", "log: {levl: info}\n"), @"1 keyfold-csi: DIR/changed.yaml: log.levl: unknown field `levl`, expected `format` or `level`");
    insta::assert_snapshot!(typo("keyfold-server", "limits: {connections: many}\n"), @r#"1 keyfold-server: DIR/changed.yaml: limits.connections: invalid type: string "many", expected usize"#);
    insta::assert_snapshot!(typo("keyfold-csi", "tmpfs_bytes: 1\n"), @"1 keyfold-csi: DIR/changed.yaml: tmpfs_bytes: must be at least 65536");
    insta::assert_snapshot!(typo("keyfold-server", "log: {level: '=='}\n"), @"1 keyfold-server: log.level: invalid filter directive");
    insta::assert_snapshot!(typo("keyfold-csi", "log: {level: loud}\n"), @"1 keyfold-csi: DIR/changed.yaml: log.level: unknown variant `loud`, expected one of `error`, `warn`, `info`, `debug`, `trace`");
}

#[test]
fn attack_14_a_password_in_the_databases_url_is_refused_and_not_repeated() {
    let files = Files::write();
    for url in [
        "postgres://keyfold:planted-password@127.0.0.1:5432/keyfold",
        "postgresql://keyfold:planted%2Fpassword@127.0.0.1/keyfold?sslmode=verify-full",
        "postgres://keyfold@127.0.0.1/keyfold?sslmode=verify-full&password=planted-password",
        "postgres://127.0.0.1?password=planted-password",
    ] {
        let variable = Some(("KEYFOLD_SERVER__DATABASE__URL", url));
        let refusal = files.refusal("keyfold-server", &files.config("keyfold-server"), variable);
        insta::allow_duplicates! {
            insta::assert_snapshot!(refusal, @"1 keyfold-server: database.url holds a password: put it into the file that database.password_file names");
        }
    }
    // Even one that is not understood is not repeated.
    let broken = Some(("KEYFOLD_SERVER__DATABASE__URL", "postgres://keyfold:planted/password@127.0.0.1"));
    let refusal = files.refusal("keyfold-server", &files.config("keyfold-server"), broken);
    insta::assert_snapshot!(refusal, @"1 keyfold-server: database.url must have the form postgres://user@host:port/name");
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    let files = Files::write();
    let variable = |program, name, value| files.refusal(program, &files.config(program), Some((name, value)));
    insta::assert_snapshot!(variable("keyfold-server", "KEYFOLD_SERVER__DATABASE__URI", "x"), @"1 keyfold-server: DIR/keyfold-server/config.yaml: database.uri: unknown field `uri`, expected one of `url`, `password_file`, `ca_file`, `max_connections`, `max_staleness_millis` (set by KEYFOLD_SERVER__DATABASE__URI)");
    insta::assert_snapshot!(variable("keyfold-csi", "KEYFOLD_CSI__NODE", "x"), @"1 keyfold-csi: DIR/keyfold-csi/config.yaml: node: unknown field `node`, expected one of `server`, `token_file`, `node_id`, `kubelet_dir`, `token_source`, `audience`, `tmpfs_bytes`, `log` (set by KEYFOLD_CSI__NODE)");
    insta::assert_snapshot!(variable("keyfold-server", "KEYFOLD_SERVER__LISTEN__PORT", "1"), @r#"1 keyfold-server: DIR/keyfold-server/config.yaml: KEYFOLD_SERVER__LISTEN__PORT: "listen.port" lies below a key that is not a map"#);
    insta::assert_snapshot!(variable("keyfold-csi", "KEYFOLD_CSI__SERVER__WAIT_SECS", "1000"), @"1 keyfold-csi: DIR/keyfold-csi/config.yaml: server.wait_secs: must be at most 100, for kubelet ends a call after two minutes");
}

#[test]
fn a_file_that_is_missing_or_not_yaml_is_named() {
    let files = Files::write();
    for program in PROGRAMS {
        let missing = files.refusal(program, &files.folder.path().join("none.yaml"), None);
        assert!(missing.starts_with(&format!("1 {program}: ")), "{missing}");
        assert!(missing.contains("DIR/none.yaml") && missing.contains("No such file"), "{missing}");
        let broken = files.refusal(program, &files.changed(program, "- [\n"), None);
        assert!(broken.starts_with(&format!("1 {program}: DIR/changed.yaml: ")), "{broken}");
        assert_eq!(bare(&bin_dir().join(program)).output().unwrap().status.code(), Some(2), "no --config");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let files = Files::write();
    let server = first_line(
        &files,
        "keyfold-server",
        "listening",
        &[("KEYFOLD_SERVER__LISTEN", "127.0.0.1:0"), ("KEYFOLD_SERVER__LOG__FORMAT", "json")],
    );
    let json: serde_json::Value = serde_json::from_str(&server).unwrap();
    let file = fs::read_to_string(files.config("keyfold-server")).unwrap();
    let address = json["fields"]["address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:") && !file.contains(address), "{server}");

    // A node may well have a number for its name.
    let variables = [("KEYFOLD_CSI__NODE_ID", "12"), ("KEYFOLD_CSI__LOG__FORMAT", "json")];
    let driver = first_line(&files, "keyfold-csi", "serving", &variables);
    let json: serde_json::Value = serde_json::from_str(&driver).unwrap();
    assert_eq!(json["fields"]["node"], "12");
}

#[test]
fn variables_that_are_not_text_are_left_alone() {
    let files = Files::write();
    for (program, said) in [("keyfold-server", "listening"), ("keyfold-csi", "serving")] {
        let mut command = guarded(&bin_dir().join(program), "KILL", None);
        command.arg("--config").arg(files.config(program)).env("FOREIGN", OsStr::from_bytes(b"\xff\xfe"));
        assert!(line_with(command, said).contains(said));
    }
}

fn first_line(files: &Files, program: &str, said: &str, variables: &[(&str, &str)]) -> String {
    let mut command = guarded(&bin_dir().join(program), "KILL", None);
    command.arg("--config").arg(files.config(program)).envs(variables.iter().copied());
    line_with(command, said)
}

/// Starts a program, and ends it when it has logged a line that contains `said`.
fn line_with(mut command: Command, said: &str) -> String {
    let mut child = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines {
        let line = line.unwrap();
        if line.contains(said) {
            return line;
        }
        seen.push(line);
    }
    panic!("no line says {said:?}: {seen:#?}")
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a child can be waited for");
    }
}

#[test]
fn help_and_version_name_the_program() {
    for program in PROGRAMS {
        let run = |argument| {
            let output = bare(&bin_dir().join(program)).arg(argument).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run("--version"), format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
        let help = run("--help");
        assert!(help.contains(&format!("Usage: {program}")) && help.contains("--config <FILE>"), "{help}");
        let prefix = format!("{}__", program.to_uppercase().replace('-', "_"));
        assert!(help.contains(&prefix), "the help tells how variables override keys: {help}");
    }
}
