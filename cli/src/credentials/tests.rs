use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, time::Duration};

use keyfold_core::clock::FixedClock;
use tempfile::{NamedTempFile, TempDir};
use time::macros::datetime;

use super::*;

const CLOCK: FixedClock = FixedClock(datetime!(2026-01-31 08:00 UTC));

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

#[test]
fn a_token_loses_the_white_space_around_it() {
    let token = read_token(file(b" abc.DEF-123 \r\n").path()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(token.expose(), b"abc.DEF-123");
}

#[test]
fn attack_14_a_file_that_holds_no_token_is_refused_without_showing_it() {
    let too_long = "x".repeat(TOKEN_LEN_MAX + 1);
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

/// A JWT that says that it ends at this second, counted from 1970.
fn jwt(exp: i64) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#)))
}

/// A profile whose command prints what is in `next` and notes each run, and which keeps tokens in a file.
struct SignedIn {
    folder: TempDir,
    profile: Profile,
}

impl SignedIn {
    fn new(kept: Option<&str>, next: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("next"), next).unwrap();
        let line = format!("sh -c 'echo >> {0}/runs; cat {0}/next'", folder.path().display());
        let profile = Profile {
            server: "https://a:1".into(),
            ca_pem: "the CA".into(),
            source: Source::Command(TokenCommand::parse(&line, Duration::from_secs(60)).unwrap()),
            store: Store::File(at("run/keyfold/token")),
        };
        if let Some(kept) = kept {
            profile.store.keep(&profile.server, &SecretBytes::from(kept.to_owned())).unwrap();
        }
        let signed_in = Self { folder, profile };
        signed_in.remember();
        signed_in
    }

    fn places(&self) -> Places {
        let at = |name: &str| self.folder.path().join(name);
        Places { config: at("config/keyfold"), tokens: at("run/keyfold") }
    }

    fn remember(&self) {
        Profiles::lock(&self.places()).unwrap().put(self.profile.clone()).unwrap();
    }

    fn token(&self) -> Result<Obtained, Failure> {
        self.profile.token(&self.places(), &CLOCK)
    }

    fn obtain(&self) -> Obtained {
        self.token().unwrap_or_else(|failure| panic!("{failure}"))
    }

    fn kept(&self) -> Option<Vec<u8>> {
        self.profile.store.token(&self.profile.server).unwrap().map(SecretBytes::into_vec)
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.folder.path().join("runs")).map_or(0, |runs| runs.lines().count())
    }
}

#[test]
fn a_kept_token_that_is_of_use_is_used_without_running_the_command() {
    for kept in ["kfa_kept".to_owned(), jwt(CLOCK.0.unix_timestamp() + 60)] {
        let signed_in = SignedIn::new(Some(&kept), "kfa_next");
        let Obtained { token, renewal } = signed_in.obtain();
        assert_eq!(token.expose(), kept.as_bytes());
        assert_eq!(signed_in.runs(), 0);
        let renewed = renewal.expect("a kept token can be renewed").run().unwrap_or_else(|f| panic!("{f}"));
        assert_eq!((renewed.expose(), signed_in.runs()), (&b"kfa_next"[..], 1));
        assert_eq!(signed_in.kept().as_deref(), Some(&b"kfa_next"[..]));
    }
}

#[test]
fn a_token_that_is_over_or_gone_is_got_from_the_command_and_kept() {
    for kept in [None, Some(jwt(CLOCK.0.unix_timestamp() - 1)), Some(jwt(CLOCK.0.unix_timestamp() + 30))] {
        let next = jwt(CLOCK.0.unix_timestamp() + 3600);
        let signed_in = SignedIn::new(kept.as_deref(), &next);
        let Obtained { token, renewal } = signed_in.obtain();
        assert_eq!(token.expose(), next.as_bytes());
        assert!(renewal.is_none(), "a token from a moment ago is not renewed");
        assert_eq!(signed_in.obtain().token.expose(), next.as_bytes());
        assert_eq!((signed_in.runs(), signed_in.kept().as_deref()), (1, Some(next.as_bytes())));
    }
}

#[test]
fn attack_14_a_token_that_comes_after_signing_out_is_not_kept() {
    let signed_in = SignedIn::new(Some("kfa_kept"), "kfa_next");
    let renewal = signed_in.obtain().renewal.expect("a kept token can be renewed");
    signed_in.profile.store.forget(&signed_in.profile.server).unwrap();
    Profiles::lock(&signed_in.places()).unwrap().remove(&signed_in.profile.server).unwrap();
    let renewed = renewal.run().unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((renewed.expose(), signed_in.kept()), (&b"kfa_next"[..], None));
}

#[test]
fn attack_14_a_token_of_an_earlier_profile_does_not_replace_that_of_the_one_that_stands() {
    let mut signed_in = SignedIn::new(Some("kfa_kept"), "kfa_next");
    let renewal = signed_in.obtain().renewal.expect("a kept token can be renewed");
    signed_in.profile.source = Source::Stdin;
    signed_in.remember();
    renewal.run().unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(signed_in.kept().as_deref(), Some(&b"kfa_kept"[..]));
}

#[test]
fn with_no_store_the_command_runs_each_time() {
    let mut signed_in = SignedIn::new(None, "kfa_next");
    signed_in.profile.store = Store::None;
    for runs in 1..=2 {
        assert!(signed_in.obtain().renewal.is_none());
        assert_eq!(signed_in.runs(), runs);
    }
}

#[test]
fn a_token_that_cannot_be_kept_is_good_for_its_call() {
    let mut signed_in = SignedIn::new(None, "kfa_next");
    // Nobody makes folders there.
    signed_in.profile.store = Store::File("/proc/nowhere/token".into());
    signed_in.remember();
    assert_eq!(signed_in.obtain().token.expose(), b"kfa_next");
}

#[test]
fn a_token_file_is_read_at_each_use() {
    let mut signed_in = SignedIn::new(None, "first");
    let path = signed_in.folder.path().join("next");
    signed_in.profile.source = Source::File(path.clone());
    assert_eq!(signed_in.obtain().token.expose(), b"first");
    fs::write(path, "second").unwrap();
    assert_eq!(signed_in.obtain().token.expose(), b"second");
}

#[test]
fn a_token_from_standard_input_lasts_until_its_end() {
    let mut signed_in = SignedIn::new(Some("kfa_kept"), "");
    signed_in.profile.source = Source::Stdin;
    let Obtained { token, renewal } = signed_in.obtain();
    assert!(token.expose() == b"kfa_kept" && renewal.is_none());
    signed_in.profile.store.keep("https://a:1", &SecretBytes::from(jwt(0))).unwrap();
    let Err(failure) = signed_in.token() else { panic!("taken") };
    assert_eq!(failure.exit(), Exit::Refused);
    insta::assert_snapshot!(failure, @"not signed in to https://a:1 any more: the token that login was given is over, or is no longer kept. Run keyfold login, or give --token-file.");
}

#[test]
fn a_kept_file_that_others_may_have_touched_stops_everything() {
    let signed_in = SignedIn::new(Some("kfa_kept"), "kfa_next");
    let file = signed_in.folder.path().join("run/keyfold/token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let Err(failure) = signed_in.token() else { panic!("taken") };
    let text = failure.to_string().replace(signed_in.folder.path().to_str().unwrap(), "");
    insta::assert_snapshot!(text, @"cannot get the operator's token: /run/keyfold/token is open to others: its mode is 0644 where it must be 0600. See who changed it, remove it, and run keyfold login.");
    assert_eq!(signed_in.runs(), 0);
}
