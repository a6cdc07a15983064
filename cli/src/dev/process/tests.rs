use super::*;

fn shell(folder: &Path, script: &str) -> Process {
    let mut command = guarded(Path::new("sh"), "TERM", None);
    command.args(["-c", script]);
    Process::start("the script", command, &folder.join("log")).unwrap()
}

#[tokio::test]
async fn a_child_that_ends_too_early_fails_with_the_end_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = shell(folder.path(), "echo out; echo why >&2; exit 3");
    let failure = process.ready(Duration::from_secs(30), async || false).await.unwrap_err().to_string();
    let log = folder.path().join("log");
    assert!(failure.contains("the script does not run: it ended with exit status: 3"), "{failure}");
    assert!(failure.contains("why") && failure.contains(&log.display().to_string()), "{failure}");
}

#[tokio::test]
async fn a_child_that_never_gets_ready_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = shell(folder.path(), "sleep 60");
    let failure = process.ready(Duration::ZERO, async || false).await.unwrap_err().to_string();
    assert!(failure.contains("it was not ready after 0 s"), "{failure}");
}

#[test]
fn a_child_that_ignores_the_signal_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut process = shell(folder.path(), "trap '' TERM; echo trapped; while :; do sleep 0.1; done");
    process.ready_blocking(Duration::from_secs(30), || last_lines(&log, 1) == "trapped").unwrap();
    process.stop(Signal::TERM, Duration::from_millis(200));
    assert!(!process.is_running());
}

#[test]
fn children_outlive_the_thread_that_asked_for_them_and_see_nothing_of_our_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let script = "env; echo started; sleep 60";
    let mut process = thread::spawn(move || shell(&path, script)).join().unwrap();
    let log = folder.path().join("log");
    process.ready_blocking(Duration::from_secs(30), || last_lines(&log, 1) == "started").unwrap();
    assert!(process.is_running());
    let names: Vec<String> =
        last_lines(&log, 100).lines().filter_map(|l| Some(l.split_once('=')?.0.into())).collect();
    assert!(
        names.iter().all(|name| ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(&name.as_str())),
        "{names:?}"
    );
}

#[test]
fn a_child_in_a_user_namespace_counts_as_root_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = guarded_in_user_namespace(Path::new("id"), "TERM");
    command.arg("-u");
    let log = folder.path().join("log");
    Process::start("id", command, &log).unwrap().wait_for_success().unwrap();
    assert_eq!(last_lines(&log, 1), "0");
}
