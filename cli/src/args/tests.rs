use clap::CommandFactory as _;

use super::*;

/// Every command that does something, with its words, `keyfold dev` left to its own tests.
fn leaves(command: &clap::Command, words: &str, found: &mut Vec<(String, String)>) {
    for sub in command.get_subcommands().filter(|sub| !matches!(sub.get_name(), "dev" | "help")) {
        let words = format!("{words} {}", sub.get_name());
        if sub.has_subcommands() {
            leaves(sub, &words, found);
        } else {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            found.push((words, help));
        }
    }
}

fn documented() -> Vec<(String, String)> {
    let mut found = Vec::new();
    leaves(&Cli::command(), "keyfold", &mut found);
    found
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_an_example_and_every_example_parses() {
    for (words, help) in documented() {
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("`{words}` has no example"));
        let lines: Vec<&str> = examples.lines().skip(1).collect();
        assert!(lines.iter().any(|line| line.trim().starts_with(&words)), "no example of `{words}` itself");
        for call in lines.iter().flat_map(|line| line.split('|')) {
            let arguments = shlex::split(call.split('>').next().unwrap_or_default()).unwrap_or_default();
            Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{call}: {error}"));
        }
    }
}

#[test]
fn the_commands_are_these() {
    let words: Vec<String> = documented().into_iter().map(|(words, _)| words).collect();
    insta::assert_snapshot!(words.join("\n"), @r"
    keyfold init
    keyfold status
    keyfold login
    keyfold logout
    keyfold whoami
    keyfold explain
    keyfold admin revoke
    keyfold lint
    keyfold apply
    keyfold diff
    keyfold get
    keyfold delete
    keyfold secret put
    keyfold secret get
    keyfold secret list
    keyfold secret history
    keyfold secret rollback
    keyfold secret delete
    keyfold secret undelete
    keyfold secret destroy
    keyfold role list
    keyfold role show
    keyfold role delete
    keyfold policy test
    keyfold approval list
    keyfold approval show
    keyfold approval sign
    keyfold approval keygen
    keyfold key list
    keyfold key status
    keyfold key rotate
    keyfold key schedule
    keyfold key pause
    keyfold key resume
    keyfold key compromise
    keyfold key exposed
    keyfold key destroy
    keyfold key cancel-destroy
    keyfold key certificate list
    keyfold key certificate get
    keyfold key certificate verify
    keyfold key quarantine
    keyfold root status
    keyfold root rotate
    keyfold root migrate
    keyfold unseal
    keyfold recovery create
    keyfold recovery drill
    keyfold ca bundle
    keyfold ca status
    keyfold ca rotate
    keyfold audit list
    keyfold completions
    ");
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for line in ["keyfold -o json --timeout 2m key list", "keyfold key list -o json --timeout 2m"] {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!((cli.global.output, cli.global.timeout), (Format::Json, Duration::from_secs(120)));
    }
}

#[test]
fn what_is_wrong_is_refused_before_any_call() {
    let lines = [
        "keyfold key list --timeout 0s",
        "keyfold key list --timeout soon",
        "keyfold key list -o xml",
        "keyfold login --token-stdin --token-command get-token",
        "keyfold login --token kfa_planted",
        "keyfold login --token-stdin --store disk",
        "keyfold apply",
        "keyfold get secret",
        "keyfold secret put payments/db",
        "keyfold secret put payments/db --from-file password",
        "keyfold secret put payments/db --from-file =file",
        "keyfold secret put payments/db --password hunter2",
        "keyfold secret get payments/db --field password --out-dir out",
        "keyfold secret undelete payments/db",
        "keyfold secret destroy payments/db --yes",
        "keyfold secret delete payments/db --versions 1,x",
        "keyfold key rotate",
        "keyfold key rotate payments --watch --no-wait",
        "keyfold key rotate payments --purpose row-mac",
        "keyfold key destroy payments",
        "keyfold key destroy payments --key-version 0",
        "keyfold key quarantine --retry",
        "keyfold root migrate --to paper",
        "keyfold unseal kfs1-planted",
        "keyfold audit list --since yesterday",
        "keyfold audit list --limit 0",
    ];
    let refusals: Vec<String> = lines
        .iter()
        .map(|line| {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            error.to_string().lines().next().unwrap_or_default().to_owned()
        })
        .collect();
    insta::assert_snapshot!(refusals.join("\n"), @r"
    error: invalid value '0s' for '--timeout <TIME>': must be longer than zero
    error: invalid value 'soon' for '--timeout <TIME>': must be a time such as 90s, 5m or 1h30m
    error: invalid value 'xml' for '--output <FORMAT>'
    error: the argument '--token-stdin' cannot be used with '--token-command <COMMAND>'
    error: unexpected argument '--token' found
    error: invalid value 'disk' for '--store <PLACE>'
    error: the following required arguments were not provided:
    error: invalid value 'secret' for '<KIND>'
    error: the following required arguments were not provided:
    error: invalid value 'password' for '--from-file <NAME=FILE>': must have the form NAME=FILE
    error: invalid value '=file' for '--from-file <NAME=FILE>': must have the form NAME=FILE
    error: unexpected argument '--password' found
    error: the argument '--field <NAME>' cannot be used with '--out-dir <DIR>'
    error: the following required arguments were not provided:
    error: the following required arguments were not provided:
    error: invalid value 'x' for '--versions <N,N…>': invalid digit found in string
    error: the following required arguments were not provided:
    error: the argument '--watch' cannot be used with '--no-wait'
    error: the argument '[KEYSPACE]' cannot be used with '--purpose <PURPOSE>'
    error: the following required arguments were not provided:
    error: invalid value '0' for '--key-version <N>': 0 is not in 1..=4294967295
    error: the following required arguments were not provided:
    error: invalid value 'paper' for '--to <CUSTODY>'
    error: unexpected argument 'kfs1-planted' found
    error: invalid value 'yesterday' for '--since <TIME>': must be RFC 3339 (2026-01-31T08:00:00Z), or a time ago such as 1h or 7d
    error: invalid value '0' for '--limit <N>': 0 is not in 1..=4294967295
    ");
}

#[test]
fn kinds_are_known_by_all_their_names() {
    for word in
        ["keyspace", "keyspaces", "issuer", "issuers", "role", "roles", "approle", "approles", "AppRole"]
    {
        assert!(Cli::try_parse_from(["keyfold", "get", word]).is_ok(), "{word}");
    }
}

#[test]
fn the_help_lists_the_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("5  conflict: check-and-set lost"), "{help}");
}
