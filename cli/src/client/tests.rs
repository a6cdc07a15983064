use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;
use crate::{args::Format, credentials::Store};

fn global() -> Global {
    Global {
        server: Some("https://127.0.0.1:8443".into()),
        ca_file: Some("/nowhere/ca.crt".into()),
        token_file: Some("/nowhere/token".into()),
        approval: None,
        output: Format::Table,
        timeout: Duration::from_secs(1),
    }
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// The CA that every test could trust: none of them connects.
fn ca() -> NamedTempFile {
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    file(certificate.cert.pem().as_bytes())
}

fn refusal(result: Result<Client, Failure>) -> String {
    let Err(failure) = result else { panic!("the client was made") };
    assert_eq!(failure.exit(), Exit::Usage);
    failure.to_string()
}

fn unaddressed(global: &Global, profiles: &Profiles) -> String {
    let Err(failure) = Address::of(global, profiles) else { panic!("there is an address") };
    assert_eq!(failure.exit(), Exit::Usage);
    failure.to_string()
}

#[test]
fn each_missing_option_is_named_with_its_variable() {
    let signed_out = Profiles::default();
    let missing = [
        unaddressed(&Global { server: None, ..global() }, &signed_out),
        unaddressed(&Global { server: Some(String::new()), ..global() }, &signed_out),
        unaddressed(&Global { ca_file: None, ..global() }, &signed_out),
    ];
    insta::assert_snapshot!(missing.join("\n"), @r"
    cannot call the server: the server's address is not given. Give --server URL or set KEYFOLD_SERVER.
    cannot call the server: the server's address is not given. Give --server URL or set KEYFOLD_SERVER.
    cannot call the server: the server's CA is not given. Give --ca-file FILE or set KEYFOLD_CA_FILE.
    ");
}

/// Signed in to these servers, in a folder of its own.
fn signed_in(servers: &[&str]) -> Profiles {
    let folder = tempfile::tempdir().unwrap();
    let places = Places { config: folder.path().join("keyfold"), tokens: folder.path().join("run") };
    for server in servers {
        let profile = Profile {
            server: (*server).into(),
            ca_pem: "the profile's".into(),
            source: Source::Stdin,
            store: Store::None,
        };
        Profiles::lock(&places).unwrap().put(profile).unwrap();
    }
    Profiles::load(&places).unwrap()
}

#[test]
fn options_go_before_the_profile_and_the_profile_fills_in_what_they_leave_open() {
    let bare = Global { server: None, ca_file: None, token_file: None, ..global() };
    let one = signed_in(&["https://a:1"]);
    let address = Address::of(&bare, &one).unwrap();
    assert_eq!((address.url.as_str(), address.ca_pem.as_str()), ("https://a:1", "the profile's"));
    assert!(address.profile.is_some());
    let ca = ca();
    let ca_file = Some(ca.path().to_owned());
    let with_ca = Address::of(&Global { ca_file: ca_file.clone(), ..bare.clone() }, &one).unwrap();
    assert_eq!(with_ca.ca_pem, std::fs::read_to_string(ca.path()).unwrap());
    let elsewhere = Address::of(&Global { ca_file, ..global() }, &one).unwrap();
    assert!(elsewhere.profile.is_none(), "the profile of another server is not used");
    let two = signed_in(&["https://a:1", "https://b:2"]);
    let named = Address::of(&Global { server: Some("https://B:2/".into()), ..bare.clone() }, &two).unwrap();
    assert_eq!(named.profile.unwrap().server, "https://b:2");
    insta::assert_snapshot!(unaddressed(&bare, &two), @"cannot call the server: you are signed in to more than one: https://a:1, https://b:2. Give --server URL or set KEYFOLD_SERVER.");
}

#[test]
fn attack_14_a_token_file_goes_to_no_server_that_was_not_named_with_it() {
    let bare = Global { server: None, ca_file: None, ..global() };
    for servers in [&["https://a:1"][..], &["https://a:1", "https://b:2"]] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(unaddressed(&bare, &signed_in(servers)), @"cannot call the server: a token file is given and no server: the one of keyfold login may not be the token's. Give --server URL or set KEYFOLD_SERVER.");
        }
    }
    let named = Global { server: Some("https://a:1".into()), ..bare };
    assert_eq!(Address::of(&named, &signed_in(&["https://a:1"])).unwrap().ca_pem, "the profile's");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let (ca, no_ca) = (ca(), file(b"not a certificate"));
    let with_ca = Global { ca_file: Some(ca.path().into()), ..global() };
    let no_ca = Global { ca_file: Some(no_ca.path().into()), token_file: None, ..global() };
    let refusals = [
        refusal(Client::operator(&global())),
        refusal(Client::operator(&with_ca)),
        refusal(Client::operator(&Global { token_file: Some("-".into()), ..with_ca.clone() })),
        refusal(Client::anyone(&no_ca)),
        refusal(Client::anyone(&Global {
            server: Some("http://127.0.0.1:8443".into()),
            token_file: None,
            ..with_ca.clone()
        })),
    ];
    insta::assert_snapshot!(refusals.join("\n"), @r#"
    cannot call the server: the CA file /nowhere/ca.crt cannot be read: No such file or directory.
    cannot call the server: the token file /nowhere/token cannot be read: No such file or directory.
    cannot call the server: a token is not read from standard input. Name a file in --token-file.
    cannot call the server: the CA file holds no certificate in PEM form.
    cannot call the server: the server's address "http://127.0.0.1:8443" must have the form https://host:port.
    "#);
}

#[tokio::test]
async fn an_answer_that_does_not_come_ends_with_advice() {
    let ca = ca();
    let token = file(b"abc");
    let global = Global {
        ca_file: Some(ca.path().into()),
        token_file: Some(token.path().into()),
        timeout: Duration::from_millis(1),
        ..global()
    };
    let client = Client::operator(&global).unwrap_or_else(|failure| panic!("{failure}"));
    let never = std::future::pending::<Result<Response<()>, Status>>();
    let failure = client.call("cannot write secret payments/db", never).await.unwrap_err();
    assert_eq!(failure.exit(), Exit::Unavailable);
    insta::assert_snapshot!(
        failure,
        @"cannot write secret payments/db: the server did not answer within 1ms. A change may still have been made: look before you repeat it, or raise --timeout."
    );
}
