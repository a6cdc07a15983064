use std::io::Cursor;

use keyfold_proto::keyfold::v1::VersionSummary;

use super::*;

fn answer(text: &str, terminal: bool) -> Result<(), Failure> {
    confirm(
        "cannot destroy versions of secret payments/db",
        "Destroy 1 of payments/db for good?",
        terminal,
        &mut Cursor::new(text),
    )
}

#[test]
fn only_yes_destroys() {
    assert!(answer("yes\n", true).is_ok());
    for text in ["", "y\n", "no\n", "YES\n"] {
        assert!(answer(text, true).is_err(), "{text:?}");
    }
    insta::assert_snapshot!(
        answer("no\n", true).unwrap_err(),
        @"cannot destroy versions of secret payments/db: the answer was not yes. Nothing was changed."
    );
}

#[test]
fn without_a_terminal_nothing_is_destroyed_unasked() {
    insta::assert_snapshot!(
        answer("yes\n", false).unwrap_err(),
        @"cannot destroy versions of secret payments/db: nobody can be asked, since standard input is not a terminal. Give --yes to go on without a question."
    );
}

#[test]
fn delete_without_versions_means_the_current_one() {
    let version = |version, labels: &[&str]| VersionSummary {
        version,
        labels: labels.iter().map(|label| (*label).into()).collect(),
        ..Default::default()
    };
    let mut history = GetSecretHistoryResponse {
        path: "payments/db".into(),
        versions: vec![version(3, &[]), version(2, &["previous", "current"])],
    };
    assert_eq!(current_version(&history).unwrap(), 2);
    history.versions.pop();
    let failure = current_version(&history).unwrap_err();
    assert_eq!(failure.exit(), Exit::NotFound);
    insta::assert_snapshot!(
        failure,
        @"cannot delete the current version of secret payments/db: no version is current. Name versions with --versions."
    );
}

#[test]
fn what_was_so_already_is_told_apart() {
    let Change { state, else_already } = UNDELETED;
    let (versions, unchanged) = (vec![1, 2], vec![4]);
    let changed = Changed { path: "payments/db", change: state, versions, unchanged, else_already };
    insta::assert_snapshot!(describe(&changed), @r"
    payments/db: versions 1, 2 now live
    payments/db: version 4 already live, or destroyed
    ");
}
