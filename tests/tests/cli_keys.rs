//! The real `keyfold` where keys are shown, turned, declared compromised and destroyed; the root key and its shares; the
//! internal authority.

use std::fs;

use keyfold_proto::keyfold::v1::State;
use keyfold_tests::{
    Cli, Installation,
    custody::Keeper,
    faults::{until, until_state},
    masked,
};
use serde_json::{Value, json};

/// With three versions of two secrets.
async fn with_secrets() -> Installation {
    let installation = Installation::with_payments().await;
    installation.cli.write("value", "x");
    for path in ["payments/a", "payments/a", "payments/b"] {
        installation.cli.ok(&format!("secret put {path} --from-file password=value"));
    }
    installation
}

fn parsed(cli: &Cli, arguments: &str) -> Value {
    serde_json::from_str(&cli.ok(&format!("{arguments} -o json"))).unwrap()
}

/// The first of the tables that were printed, and the second.
fn tables(printed: &str) -> (String, String) {
    let (first, second) = printed.split_once("\n\n").unwrap();
    (masked(first), masked(second))
}

#[tokio::test(flavor = "multi_thread")]
async fn key_status_shows_how_far_everything_is_for_people_and_for_programs() {
    let installation = with_secrets().await;
    let cli = &installation.cli;
    // The server takes the keyspace's key on with its next heartbeat.
    let is_newest = |shown: &str| tables(shown).1.lines().nth(1).is_some_and(|line| line.ends_with("newest"));
    let mut shown = cli.ok("key status");
    for _ in 0..100 {
        if is_newest(&shown) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        shown = cli.ok("key status");
    }
    let (keys, replicas) = tables(&shown);
    insta::assert_snapshot!(keys, @r"
    KEYSPACE  PURPOSE      ACTIVE  DONE  PENDING  LEFT  QUARANTINED  NEXT ROTATION         REMARK
    -         audit-sign   1       0     0        -     0            2026-01-31T00:00:00Z  -
    -         internal-ca  1       0     0        -     0            2026-01-31T00:00:00Z  -
    -         row-mac      1       0     0        -     0            2026-01-31T00:00:00Z  -
    payments  data         1       3     0        -     0            2026-01-31T00:00:00Z  -
    ");
    assert_eq!(replicas.lines().count(), 2, "{replicas}");
    assert!(replicas.lines().nth(1).unwrap().ends_with("newest"), "{replicas}");

    let status = parsed(cli, "key status payments");
    let keyset = &status["keysets"][0];
    assert_eq!(status["keysets"].as_array().unwrap().len(), 1);
    for (field, value) in [
        ("keyspace", json!("payments")),
        ("purpose", json!("data")),
        ("active_version", json!(1)),
        ("deks_done", json!(3)),
        ("deks_pending", json!(0)),
        ("reencryptions_pending", json!(0)),
        ("quarantined", json!(0)),
        ("seconds_left", Value::Null),
        ("paused", json!(false)),
        ("overdue", json!(false)),
    ] {
        assert_eq!(keyset[field], value, "{field}");
    }
    assert_eq!(status["replicas"][0]["holds_newest_keys"], true);
    insta::assert_snapshot!(cli.fails("key status none"), @"3 keyfold: cannot read the keys' status: there is no keyspace none.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_shown_paused_and_resumed() {
    let installation = Installation::new().await;
    let cli = &installation.cli;
    let weekly = "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\nspec:\n  \
                  rotation: {cron: \"0 3 * * 1\", zone: Europe/Berlin, jitter: 2h}\n";
    cli.write("weekly.yaml", weekly);
    cli.ok("apply -f weekly.yaml");
    insta::assert_snapshot!(masked(&cli.ok("key schedule payments")), @r#"
    KEYSPACE  PURPOSE  NEXT ROTATION         POLICY
    payments  data     2026-01-31T00:00:00Z  cron "0 3 * * 1" in Europe/Berlin
    payments  data     2026-01-31T00:00:00Z  cron "0 3 * * 1" in Europe/Berlin
    payments  data     2026-01-31T00:00:00Z  cron "0 3 * * 1" in Europe/Berlin
    payments  data     2026-01-31T00:00:00Z  cron "0 3 * * 1" in Europe/Berlin
    payments  data     2026-01-31T00:00:00Z  cron "0 3 * * 1" in Europe/Berlin
    "#);
    let all = parsed(cli, "key schedule --count 2");
    let keysets: Vec<_> =
        all.as_array().unwrap().iter().map(|one| one["purpose"].as_str().unwrap()).collect();
    assert_eq!(keysets, ["audit-sign", "internal-ca", "row-mac", "data"]);
    assert!(all.as_array().unwrap().iter().all(|one| one["next"].as_array().unwrap().len() == 2), "{all}");

    insta::assert_snapshot!(cli.ok("key pause payments"), @"payments: schedule paused; keyfold key rotate still turns the key");
    insta::assert_snapshot!(cli.ok("key pause payments"), @"payments: schedule already paused");
    insta::assert_snapshot!(cli.ok("key schedule payments"), @r#"
    KEYSPACE  PURPOSE  NEXT ROTATION                    POLICY
    payments  data     paused by initial-administrator  cron "0 3 * * 1" in Europe/Berlin
    "#);
    let (keys, _) = tables(&cli.ok("key status payments"));
    assert!(keys.ends_with("paused by initial-administrator"), "{keys}");
    insta::assert_snapshot!(masked(&cli.ok("key resume payments")), @"payments: schedule resumed, next rotation 2026-01-31T00:00:00Z");
    insta::assert_snapshot!(masked(&cli.ok("key resume payments")), @"payments: schedule was not paused, next rotation 2026-01-31T00:00:00Z");
    insta::assert_snapshot!(cli.ok("key pause --purpose row-mac"), @"the installation's row-mac key: schedule paused; keyfold key rotate still turns the key");
    assert_eq!(parsed(cli, "key resume --purpose row-mac")["changed"], true);

    assert_eq!(cli.run("key pause").code, 2);
    assert_eq!(cli.run("key pause payments --purpose row-mac").code, 2);
    assert_eq!(cli.run("key schedule --count 0").code, 2);
    insta::assert_snapshot!(cli.fails("key pause --purpose data"), @"2 keyfold: cannot tell which key is meant: no keyspace is given. Name a keyspace, or --purpose row-mac, audit-sign or internal-ca.");
    insta::assert_snapshot!(cli.fails("key pause none"), @"3 keyfold: cannot pause the schedule of none: there is no keyspace none.");
    assert_eq!(cli.run("key pause --purpose none").code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_rotated_with_and_without_waiting() {
    let installation = with_secrets().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.ok("key rotate payments --watch"), @"payments: key version 1 -> 2, 3 data keys rewrapped");
    insta::assert_snapshot!(cli.ok("key rotate payments --now"), @"payments: key version 2 -> 3, 3 data keys rewrapped");
    let turned = parsed(cli, "key rotate payments --no-wait");
    assert_eq!((&turned["old_version"], &turned["new_version"]), (&json!(3), &json!(4)));
    cli.ok("key status payments --watch");
    let keyset = &parsed(cli, "key status payments")["keysets"][0];
    assert_eq!((&keyset["active_version"], &keyset["deks_done"]), (&json!(4), &json!(3)));
    assert_eq!(cli.ok("secret get payments/b --field password"), "x");
    insta::assert_snapshot!(cli.ok("key rotate --purpose audit-sign"), @"the installation's audit-sign key: key version 1 -> 2");
    assert_eq!(cli.run("key rotate payments --watch --no-wait").code, 2);
    assert_eq!(cli.run("key status --watch").code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_compromised_key_exposed_is_listed_until_it_is_rotated() {
    let installation = with_secrets().await;
    let cli = &installation.cli;
    cli.ok("secret get payments/a --version 1 --field password");
    insta::assert_snapshot!(cli.fails("key compromise payments"), @"2 keyfold: cannot declare the key of keyspace payments compromised: nobody can be asked, since standard input is not a terminal. Give --yes to go on without a question.");
    insta::assert_snapshot!(cli.ok("key compromise payments --yes --watch"), @r"
    payments: key version 1 is compromised, version 2 is active
    3 payloads get new data keys: keyfold key status payments
    2 secrets must themselves be rotated: keyfold key exposed payments
    ");
    insta::assert_snapshot!(masked(&cli.ok("key exposed payments")), @r"
    PATH        EXPOSED VERSIONS  HOLDER                 HOLDS  LAST GIVEN
    payments/a  1, 2              initial-administrator  1      2026-01-31T00:00:00Z
    payments/b  1                 -                      -      -
    ");
    let exposed = parsed(cli, "key exposed payments");
    assert_eq!((&exposed[0]["key_version"], &exposed[0]["current"]), (&json!(1), &json!(true)));
    cli.ok("secret put payments/a --from-file password=value");
    let exposed = parsed(cli, "key exposed payments");
    assert_eq!(exposed.as_array().unwrap().len(), 1, "{exposed}");
    assert_eq!(cli.ok("secret get payments/b --field password"), "x");
    assert!(cli.ok("key list payments").contains("compromised"));

    insta::assert_snapshot!(cli.fails("key compromise payments --key-version 9 --yes"), @"3 keyfold: cannot declare the key of keyspace payments compromised: the key of keyspace payments has no version 9.");
    insta::assert_snapshot!(cli.fails("key compromise payments --key-version 1 --yes"), @"5 keyfold: cannot declare the key of keyspace payments compromised: key of keyspace payments: a key that is compromised cannot be declared compromised: it can be scheduled for destruction.");
    insta::assert_snapshot!(cli.fails("key exposed none"), @"3 keyfold: cannot list exposed secrets: there is no keyspace none.");
    assert_eq!(cli.run("key compromise payments --key-version 0 --yes").code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_destroyed_after_a_delay_that_can_be_used_to_cancel_it() {
    let installation = with_secrets().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.fails("key destroy payments --key-version 1 --yes"), @"5 keyfold: cannot have key version 1 of keyspace payments destroyed: key of keyspace payments: a key that is active cannot be scheduled for destruction: rotate the key first, so that another takes its place.");
    cli.ok("key rotate payments");
    insta::assert_snapshot!(cli.fails("key destroy payments --key-version 1"), @"2 keyfold: cannot have key version 1 of keyspace payments destroyed: nobody can be asked, since standard input is not a terminal. Give --yes to go on without a question.");
    insta::assert_snapshot!(masked(&cli.ok("key destroy payments --key-version 1 --after 7d --yes")), @r"
    payments: key version 1 opens nothing any more and is destroyed at 2026-01-31T00:00:00Z
    Until then: keyfold key cancel-destroy payments --key-version 1
    Not reached by it: The key's wrapped material is gone from its row. Copies of it can remain in dead tuples until they are vacuumed, in write-ahead log that is kept or archived, on standbys, and in backups, until their retention ends or the version of the root-wrapping key that wrapped it is destroyed.
    ");
    let listed = masked(&cli.ok("key list payments"));
    assert!(listed.contains("destroy-scheduled 2026-01-31T00:00:00Z"), "{listed}");
    insta::assert_snapshot!(cli.ok("key cancel-destroy payments --key-version 1"), @"payments: key version 1 is deactivated again");
    insta::assert_snapshot!(cli.fails("key cancel-destroy payments --key-version 1"), @"5 keyfold: cannot cancel the destruction of key version 1 of keyspace payments: key of keyspace payments: a key that is deactivated cannot be taken back from destruction: it can be declared compromised or scheduled for destruction.");
    insta::assert_snapshot!(cli.fails("key destroy payments --key-version 9 --yes"), @"3 keyfold: cannot have key version 9 of keyspace payments destroyed: the key of keyspace payments has no version 9.");
    assert_eq!(cli.run("key destroy payments --key-version 1 --after 0s --yes").code, 2);
    assert_eq!(cli.run("key destroy payments --yes").code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_has_a_certificate_that_is_verified_without_a_server() {
    let installation = with_secrets().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.fails("key certificate get payments 1"), @"3 keyfold: cannot get the certificate of key version 1 of keyspace payments: this key has not been destroyed.");
    cli.ok("key rotate payments");
    cli.ok("key destroy payments --key-version 1 --after 1s --yes");
    until("the key to be destroyed", async || cli.ok("key list payments").contains("destroyed")).await;

    let list = parsed(cli, "key certificate list payments");
    let key = list["public_keys"][0].as_str().unwrap();
    let (certificates, keys) = tables(&cli.ok("key certificate list"));
    insta::assert_snapshot!(certificates, @r"
    KEYSPACE  PURPOSE  VERSION  DESTROYED
    payments  data     1        2026-01-31T00:00:00Z
    ");
    assert_eq!(keys.lines().collect::<Vec<_>>(), ["PUBLIC KEY", key]);

    let text = cli.ok("key certificate get payments 1");
    cli.write("good", &text);
    let offline = Cli::offline(&cli.folder);
    let described = offline.ok(&format!("key certificate verify good --public-key {key}"));
    for part in ["genuine", "payments", "initial-administrator", "check: foreign-keys", "does not reach"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let json = parsed(&offline, &format!("key certificate verify good --public-key {key}"));
    assert_eq!((&json["keyspace"], &json["version"]), (&json!("payments"), &json!(1)));

    // Whatever byte is another one, nothing is verified.
    for at in (0..text.trim_end().len()).step_by(97) {
        let mut flipped = text.clone().into_bytes();
        flipped[at] ^= 1;
        cli.write("flipped", &flipped);
        let refused = offline.fails(&format!("key certificate verify flipped --public-key {key}"));
        assert!(refused.starts_with("1 keyfold: the certificate is not genuine: "), "{at}: {refused}");
    }
    let other = "A".repeat(43) + "=";
    let refused = offline.fails(&format!("key certificate verify good --public-key {other}"));
    assert!(refused.starts_with("1 keyfold: the certificate is not genuine: "), "{refused}");
    insta::assert_snapshot!(offline.fails("key certificate verify none --public-key x"), @"2 keyfold: cannot verify none: No such file or directory.");
    assert_eq!(offline.run("key certificate verify good --public-key x").code, 2);
    assert_eq!(offline.run("key certificate verify good").code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_quarantine_is_listed_and_tried_again() {
    let installation = with_secrets().await;
    let (cli, database) = (&installation.cli, &installation.database);
    assert_eq!(cli.ok("key quarantine"), "PATH  VERSION  KEY VERSION  FOUND  REASON\n");
    // The trigger asks for an active key, which the key of version 1 is not once it has turned.
    let damage = |wrapped: &str| {
        database.sql(&format!(
            "ALTER TABLE deks DISABLE TRIGGER USER;
             UPDATE deks d SET wrapped = {wrapped} FROM secrets s WHERE s.id = d.secret_id AND s.path = 'payments/b';
             ALTER TABLE deks ENABLE TRIGGER USER"
        ));
    };
    let wrapped = "SELECT encode(d.wrapped, 'hex') FROM deks d JOIN secrets s ON s.id = d.secret_id
                   WHERE s.path = 'payments/b'";
    let kept = database.sql(wrapped);
    damage("overlay(wrapped PLACING '\\xffff'::bytea FROM octet_length(wrapped) - 8)");

    let rotated = cli.run("key rotate payments --watch");
    assert_eq!(rotated.code, 0, "{}", rotated.err);
    insta::assert_snapshot!(rotated.err, @"keyfold: warning: 1 data keys are in quarantine: see keyfold key quarantine payments");
    let listed = masked(&cli.ok("key quarantine payments"));
    let row = listed.lines().nth(1).unwrap();
    assert!(row.starts_with("payments/b  1        1            2026-01-31T00:00:00Z  "), "{listed}");
    assert_eq!(parsed(cli, "key quarantine")[0]["path"], "payments/b");
    let refused = cli.fails("key destroy payments --key-version 1 --yes");
    assert!(refused.starts_with("5 keyfold: ") && refused.contains("quarantine"), "{refused}");

    damage(&format!("decode('{kept}', 'hex')"));
    insta::assert_snapshot!(cli.ok("key quarantine payments --retry"), @"payments: 1 data keys are tried again");
    cli.ok("key status payments --watch");
    assert_eq!(cli.ok("key quarantine payments").lines().count(), 1);
    assert_eq!(cli.ok("secret get payments/b --field password"), "x");
    assert_eq!(cli.run("key quarantine --retry").code, 2);
    assert_eq!(cli.run("key quarantine none --retry").code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_shown_and_its_recovery_shares_are_printed_once() {
    let installation = Installation::new().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(masked(&cli.ok("root status")), @r"
    custody            file
    root key           00000000000000000000000000000000
    root-wrapping key  version 1
    since              2026-01-31T00:00:00Z
    recovery           none: run keyfold recovery create
    ");
    let made = cli.run("recovery create --shares 4 --threshold 2");
    assert_eq!((made.code, made.out.lines().count()), (0, 4), "{}", made.err);
    insta::assert_snapshot!(masked(&made.err), @r"
    keyfold: put recovery: {key_id: 00000000000000000000000000000000} into the configuration of every server, and keep the id with the shares: without it no server takes them
    keyfold: 4 shares follow on standard output, this once: give each to another person. 2 of them open the keys
    ");
    insta::assert_snapshot!(masked(&cli.ok("root status")), @r"
    custody            file
    root key           00000000000000000000000000000000
    root-wrapping key  version 1
    since              2026-01-31T00:00:00Z
    recovery           2 of 4 shares, made 2026-01-31T00:00:00Z by initial-administrator, last drilled -
    recovery key       00000000000000000000000000000000
    ");
    let again = parsed(cli, "recovery create");
    assert_eq!((again["shares"].as_array().unwrap().len(), &again["threshold"]), (5, &json!(3)));
    let recovery = &parsed(cli, "root status")["recovery"];
    assert_eq!((&recovery["shares"], &recovery["recovery_key_id"]), (&json!(5), &again["recovery_key_id"]));

    insta::assert_snapshot!(cli.fails("recovery create --shares 2 --threshold 3"), @"7 keyfold: cannot make a recovery key: 3 of 2 shares is not possible: the threshold must be at least 2, and not above the number of shares, which must not be above 255.");
    insta::assert_snapshot!(cli.fails("root rotate"), @"2 keyfold: cannot turn the root key: nobody can be asked, since standard input is not a terminal. Give --yes to go on without a question.");
    insta::assert_snapshot!(cli.fails("root rotate --yes"), @"5 keyfold: cannot turn the root key: the current root key file holds the root key that is in use: put a new key into it and the old one into root_key.file.previous, on every replica, then try again.");
    insta::assert_snapshot!(cli.fails("root migrate --to shamir --yes"), @"5 keyfold: cannot move the root to shamir: root_key of this server's configuration names file, so the new root key would be kept there and not by shamir: say so, or change the configuration first.");
    assert_eq!(cli.run("root migrate --to nowhere --yes").code, 2);
    cli.write("share", made.out.lines().next().unwrap());
    insta::assert_snapshot!(installation.nobody().fails("unseal --share-file share"), @"5 keyfold: cannot unseal the server: this server does not wait for shares.");
    assert_eq!(cli.run("recovery drill --share-file share").code, 5, "no scratch database is configured");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_unseal_a_server_with_the_shares_that_init_printed() {
    let mut installation = Installation::uninitialised().await;
    installation.server.stop();
    Keeper::new("shamir").configure(installation.server.setup_mut());
    installation.server.restart().await.unwrap();
    until_state(&installation.server, State::Uninitialized, "").await;
    let (cli, nobody) = (&installation.cli, installation.nobody());
    fs::copy(installation.setup().bootstrap_token_file(), cli.folder.join("bootstrap")).unwrap();
    let admin = installation.setup().admin_token_file();
    let made =
        cli.run(&format!("init --bootstrap-token-file bootstrap --admin-token-out {}", admin.display()));
    assert_eq!((made.code, made.out.lines().count()), (0, 5), "{}", made.err);
    let shares: Vec<String> = made.out.lines().map(str::to_owned).collect();
    assert!(shares.iter().all(|share| !made.err.contains(share.as_str())));

    installation.server.restart().await.unwrap();
    until_state(&installation.server, State::Sealed, "").await;
    let sealed = nobody.run("status");
    assert_eq!(sealed.code, 6);
    assert!(sealed.out.contains("share"), "{}", sealed.out);
    for (n, share) in shares.iter().enumerate().take(2) {
        let entered = nobody.run_with("unseal", share.as_bytes());
        assert_eq!(entered.code, 0, "{}", entered.err);
        assert_eq!(entered.out, format!("{} of 3 shares entered at this replica.\n", n + 1));
    }
    // A wrong one is refused, and takes nothing back.
    let mut wrong = shares[2].clone().into_bytes();
    let last = wrong.len() - 1;
    wrong[last] = if wrong[last] == b'0' { b'1' } else { b'0' };
    let refused = nobody.run_with("unseal", &wrong);
    assert_ne!(refused.code, 0);
    assert!(!refused.err.contains(&shares[2][..10]), "{}", refused.err);
    cli.write("third", &shares[2]);
    insta::assert_snapshot!(nobody.ok("unseal --share-file third"), @"The server is unsealed.");
    installation.server.until_serving().await.unwrap();
    assert_eq!(parsed(&installation.cli, "root status")["custody"], "shamir");
    insta::assert_snapshot!(nobody.fails("unseal --share-file none"), @"2 keyfold: cannot unseal the server: the share's file none: No such file or directory.");
    insta::assert_snapshot!(nobody.fails("unseal"), @"2 keyfold: cannot unseal the server: no share is given.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_in_a_file_is_turned_and_the_output_names_both() {
    let mut installation = with_secrets().await;
    let keeper = Keeper::new("file");
    let Keeper::File(folder) = &keeper else { unreachable!() };
    fs::copy(installation.setup().folder().join("root.key"), folder.path().join("current")).unwrap();
    keeper.configure(installation.server.setup_mut());
    installation.server.restart().await.unwrap();
    installation.server.until_serving().await.unwrap();
    let before = parsed(&installation.cli, "root status");
    keeper.turn_file();
    let done = parsed(&installation.cli, "root rotate --yes");
    assert_eq!(done["old_root_key_id"], before["root_key_id"]);
    assert_eq!(done["rwk_version"], 2);
    let after = parsed(&installation.cli, "root status");
    assert_eq!(done["new_root_key_id"], after["root_key_id"]);
    assert_ne!(before["root_key_id"], after["root_key_id"]);
    assert_eq!(installation.cli.ok("secret get payments/b --field password"), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_internal_authority_is_shown_to_anybody_and_turned_by_operators() {
    let installation = Installation::new().await;
    let (cli, nobody) = (&installation.cli, installation.nobody());
    let bundle = nobody.ok("ca bundle");
    assert_eq!(bundle.matches("-----BEGIN CERTIFICATE-----").count(), 1, "{bundle}");
    assert_eq!(parsed(&nobody, "ca bundle")["bundle"], bundle.as_str());
    let status = parsed(&nobody, "ca status");
    assert_eq!((&status[0]["version"], &status[0]["state"]), (&json!(1), &json!("active")));
    assert_eq!(status[0]["fingerprint"].as_str().unwrap().len(), 64);

    insta::assert_snapshot!(nobody.fails("ca rotate").replace(&installation.setup().url(), "URL"), @"2 keyfold: not signed in to URL: run keyfold login, or give --token-file.");
    insta::assert_snapshot!(masked(&cli.ok("ca rotate")), @"Authority version 2 is trusted now and signs from 2026-01-31T00:00:00Z.");
    let listed = nobody.ok("ca status");
    let states: Vec<_> =
        listed.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>()).collect();
    assert_eq!(states, [["VERSION", "STATE"], ["1", "active"], ["2", "next"]], "{listed}");
    assert_eq!(nobody.ok("ca bundle").matches("-----BEGIN CERTIFICATE-----").count(), 2);
    assert_eq!(cli.run("ca rotate").code, 5, "one turn at a time");
}
