use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;
use crate::args::Format;

fn global() -> Global {
    Global {
        server: Some("https://127.0.0.1:8443".into()),
        ca_file: Some("/nowhere/ca.crt".into()),
        token_file: Some("/nowhere/token".into()),
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

#[test]
fn each_missing_option_is_named_with_its_variable() {
    let missing = [
        refusal(Client::operator(&Global { server: None, ..global() })),
        refusal(Client::operator(&Global { server: Some(String::new()), ..global() })),
        refusal(Client::operator(&Global { ca_file: None, ..global() })),
        refusal(Client::operator(&Global { token_file: None, ..global() })),
    ];
    insta::assert_snapshot!(missing.join("\n"), @r"
    cannot call the server: the server's address is not given. Give --server URL or set KEYFOLD_SERVER.
    cannot call the server: the server's address is not given. Give --server URL or set KEYFOLD_SERVER.
    cannot call the server: the server's CA is not given. Give --ca-file FILE or set KEYFOLD_CA_FILE.
    cannot call the server: the operator's token is not given. Give --token-file FILE or set KEYFOLD_TOKEN_FILE.
    ");
}

#[test]
fn files_that_cannot_be_used_are_named() {
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

#[test]
fn a_token_loses_the_white_space_around_it() {
    let token = read_token(file(b" abc.DEF-123 \r\n").path()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(token.expose(), b"abc.DEF-123");
}

#[test]
fn a_file_that_holds_no_token_is_refused_without_showing_it() {
    let too_long = "x".repeat(TOKEN_LEN_MAX as usize + 1);
    for (content, reason) in [
        (&b" \n"[..], "is empty"),
        (b"planted value", "one word"),
        (b"planted\0value", "one word"),
        (too_long.as_bytes(), "is longer than"),
    ] {
        let Err(failure) = read_token(file(content).path()) else { panic!("{reason}: taken") };
        assert!(failure.to_string().contains(reason), "{failure}");
        assert!(!failure.to_string().contains("planted"), "{failure}");
    }
}

#[test]
fn the_token_goes_out_as_a_sensitive_bearer() {
    let mut bearer = Bearer { token: Some(Arc::new(SecretBytes::new(b"abc".to_vec()))) };
    let request = bearer.call(Request::new(())).unwrap();
    let value = request.metadata().get("authorization").unwrap();
    assert_eq!(value.as_bytes(), b"Bearer abc");
    assert!(value.is_sensitive());
    assert!(!format!("{:?}", request.metadata()).contains("abc"));
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
