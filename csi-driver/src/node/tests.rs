use std::{collections::HashMap, path::Path};

use keyfold_proto::csi::v1::NodePublishVolumeRequest;

use super::*;
use crate::volume::Volume;

/// All codes of gRPC that are errors.
fn codes() -> impl Iterator<Item = Code> {
    (1..=16).map(Code::from_i32)
}

#[test]
fn a_servers_refusal_keeps_its_code_where_that_says_what_to_do() {
    let passed: Vec<_> =
        codes().filter(|code| refusal_code(*code) == *code && *code != Code::Internal).collect();
    assert_eq!(
        passed,
        [
            Code::InvalidArgument,
            Code::NotFound,
            Code::PermissionDenied,
            Code::FailedPrecondition,
            Code::DataLoss,
            Code::Unauthenticated
        ]
    );
    let rest = codes().filter(|code| !passed.contains(code));
    assert!(rest.map(refusal_code).all(|code| code == Code::Internal));
    let corrupt = BrokerError::Refused(Status::data_loss("stored data failed its integrity check"));
    assert_eq!(code(&corrupt.into()), Code::DataLoss);
}

#[test]
fn files_beyond_a_limit_are_told_from_files_that_cannot_be() {
    assert_eq!(code(&VolumeError::Full(65536)), Code::ResourceExhausted);
    assert_eq!(code(&VolumeError::Render(RenderError::TooManyFiles)), Code::ResourceExhausted);
    assert_eq!(code(&VolumeError::Render(RenderError::Items(vec![]))), Code::FailedPrecondition);
}

/// Kubelet takes other codes for final, and some releases then unmount a running pod's volume.
#[test]
fn the_end_of_a_lease_is_told_by_a_code_that_leaves_the_mount() {
    let reason = Box::new(BrokerError::Refused(Status::permission_denied("lease over")).into());
    let ended = VolumeError::LeaseEnded { reason, ended_at: "2026-11-23T07:12:30Z".into() };
    assert_eq!(code(&ended), Code::Unavailable);
    assert_eq!(
        ended.to_string(),
        "lease over; the lease ended at 2026-11-23T07:12:30Z, so its files were removed"
    );
}

#[test]
fn a_status_steers_no_terminal_and_has_a_bounded_message() {
    let shown = status(Code::Internal, "a\u{1b}[2J\u{9b}\u{202e}b \"quoted\" ä");
    assert_eq!(shown.message(), r#"a\u{1b}[2J\u{9b}\u{202e}b "quoted" ä"#);
    let long = status(Code::Internal, &"\u{1b}".repeat(100_000));
    assert!(long.message().len() <= MESSAGE_BYTES_MAX && long.message().ends_with('…'));
}

/// What a pod's author, and the server, can put into a message reaches it escaped, before the status and so for the
/// log as well.
#[test]
fn foreign_text_is_escaped_in_every_message_that_quotes_it() {
    const STEERING: &str = "x\u{1b}[31m\u{9b}31m\u{202e}\u{2066}\u{200b}\u{7f}x";
    let context = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let item = |yaml: &str| context("secrets", &yaml.replace("STEERING", STEERING));
    let escapes = r#"x\e[31m\N\u202e\u2066\u200b\x7fx"#;
    let contexts = [
        context(STEERING, "x"),
        context("role", STEERING),
        item("STEERING"),
        item(&format!("- {{path: a/b, \"{escapes}\": 1}}")),
        item(&format!("- {{path: a/b, \"{escapes}\": 1, \"{escapes}\": 2}}")),
        item(&format!("- \"{escapes}\"")),
        item(&format!(
            "- {{path: \"{escapes}\", file: \"{escapes}\", format: \"{escapes}\", mode: \"{escapes}\"}}"
        )),
        item(&format!("- {{path: a/b, uid: \"{escapes}\", optional: \"{escapes}\"}}")),
        item("- {path: a/b, file: ['STEERING'"),
        item("- !<STEERING> x"),
        item("- *STEERING"),
    ];
    for context in contexts {
        let mut request = crate::volume::tests::request(&[]);
        request.volume_context = context;
        assert_plain(&refusal(&request));
    }
    let mut request = crate::volume::tests::request(&[]);
    request.target_path = format!("/etc/{STEERING}");
    assert_plain(&refusal(&request));
    for error in [
        BrokerError::Refused(Status::permission_denied(STEERING)),
        BrokerError::OwnToken { file: STEERING.into(), reason: "it is empty" },
    ] {
        assert_plain(&error.to_string());
    }
    assert_plain(&MountError::Foreign(STEERING.into(), STEERING.into()).to_string());
}

fn refusal(request: &NodePublishVolumeRequest) -> String {
    Volume::parse(request, Path::new("/var/lib/kubelet/pods")).unwrap_err().to_string()
}

fn assert_plain(message: &str) {
    let steering = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2066}' | '\u{200b}');
    assert!(!message.contains(steering), "{message:?}");
}
