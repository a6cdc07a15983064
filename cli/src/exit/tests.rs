use std::error::Error;

use super::*;

const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

#[test]
fn each_status_code_has_its_exit_code() {
    let lines: Vec<String> = CODES
        .iter()
        .map(|code| format!("{code:?} -> {}", Failure::rpc("", &Status::new(*code, "")).exit() as u8))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    Ok -> 8
    Cancelled -> 6
    Unknown -> 8
    InvalidArgument -> 7
    DeadlineExceeded -> 6
    NotFound -> 3
    AlreadyExists -> 5
    PermissionDenied -> 4
    ResourceExhausted -> 6
    FailedPrecondition -> 5
    Aborted -> 6
    OutOfRange -> 7
    Unimplemented -> 8
    Internal -> 8
    Unavailable -> 6
    DataLoss -> 8
    Unauthenticated -> 4
    ");
}

#[test]
fn every_exit_code_is_in_the_help() {
    let all = [
        Exit::Done,
        Exit::Found,
        Exit::Usage,
        Exit::NotFound,
        Exit::Refused,
        Exit::Conflict,
        Exit::Unavailable,
        Exit::BadInput,
        Exit::Internal,
    ];
    for exit in all {
        assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
    }
}

#[test]
fn a_failure_is_one_line_that_says_what_why_and_what_to_do() {
    let failure = Failure::usage("cannot read role.yaml", "No such file or directory")
        .advise("Name a file that exists");
    insta::assert_snapshot!(
        failure,
        @"cannot read role.yaml: No such file or directory. Name a file that exists."
    );
}

#[test]
fn a_refusal_keeps_the_servers_words() {
    let status = Status::permission_denied("payments/db: no grant of role payments-api allows read.");
    insta::assert_snapshot!(
        Failure::rpc("cannot read secret payments/db", &status),
        @"cannot read secret payments/db: payments/db: no grant of role payments-api allows read."
    );
}

#[test]
fn what_a_server_says_cannot_steer_the_terminal() {
    let status = Status::internal("first\nsecond\u{1b}[31mred\u{7} \u{9b}2J\u{202e}back");
    insta::assert_snapshot!(
        Failure::rpc("cannot list keys", &status),
        @"cannot list keys: first second [31mred 2J back. The server's log says more."
    );
}

#[test]
fn an_empty_message_falls_back_to_the_codes_meaning() {
    insta::assert_snapshot!(
        Failure::rpc("cannot list keys", &Status::unavailable("")),
        @"cannot list keys: The service is currently unavailable. Try again in a moment."
    );
}

#[test]
fn a_call_that_never_reached_the_server_names_the_innermost_cause() {
    let refused = io::Error::from_raw_os_error(111);
    let status =
        Status::from_error(Box::new(tonic::ConnectError(Box::new(refused) as Box<dyn Error + Send + Sync>)));
    insta::assert_snapshot!(
        Failure::rpc("cannot list keys", &status),
        @"cannot list keys: Connection refused. Check --server and --ca-file, and that the server is running."
    );
}

#[test]
fn a_connection_lost_during_a_call_counts_as_unavailable() {
    let status = Status::from_error(Box::new(io::Error::from_raw_os_error(104)));
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(Failure::rpc("cannot list keys", &status).exit(), Exit::Unavailable);
}
