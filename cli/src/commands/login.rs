//! `keyfold login`: how the operator's token is got from now on, tried out before it is remembered.

use std::{
    path::{self, PathBuf},
    sync::Arc,
    time::Duration,
};

use keyfold_core::secret::SecretBytes;
use serde::Serialize;

use super::whoami;
use crate::{
    args::{Global, duration},
    client::{Address, Client},
    credentials::{
        Choice, Places, Profile, Profiles, Source, Store, TokenCommand, read_token, token_on_stdin,
    },
    exit::{Exit, Failure, io_reason},
    output,
};

const WHAT: &str = "cannot sign in";

/// Arguments of `login`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Give one source: --token-command, --token-file or --token-stdin. The server is asked who the \
    token's owner is; what it refuses is not remembered. A kept token is renewed by its command half a minute before \
    its end.\n\n\
    Examples:\n  \
    keyfold login --token-command 'kubectl create token ops --namespace ops --audience keyfold'\n  \
    keyfold login --token-file /var/run/secrets/keyfold/token\n  \
    keyfold login --token-stdin --store file"
)]
pub struct Args {
    /// Command that prints a token, as a line of words quoted as for a shell; no shell runs it
    #[arg(long, value_name = "COMMAND", conflicts_with = "token_stdin")]
    token_command: Option<String>,
    /// How long the command may take, such as 30s or 5m: you may have to confirm in a browser
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    token_command_timeout: Duration,
    /// Read the token from standard input; sign in again when it is over
    #[arg(long)]
    token_stdin: bool,
    /// What keeps the token between calls: the keyring unless given, or a file where there is none
    #[arg(long, value_enum, value_name = "PLACE")]
    store: Option<Choice>,
}

#[derive(Serialize)]
struct View {
    server: String,
    #[serde(flatten)]
    identity: whoami::View,
}

/// Gets a token, asks the server whose it is, and remembers where it came from.
///
/// # Errors
/// When there is no token, the server refuses it, or it cannot be kept; then nothing has changed.
pub async fn run(global: &Global, args: &Args) -> Result<Exit, Failure> {
    let source = source(global, args)?;
    refuse_impossible_store(&source, args.store)?;
    let places = Places::of_user()?;
    let address = Address::of(global, &Profiles::load(&places)?)?;
    let token = Arc::new(first_token(&source)?);
    let client = Client::bearing(&address, token.clone(), global.timeout)?;
    let identity = whoami::ask(&client, WHAT).await?;
    remember(&places, &address, source, args.store, &token)?;
    let view = View { server: address.url, identity };
    output::print(global.output, &view, |view| {
        format!("Signed in to {} as {}.\n", view.server, view.identity.name)
    })?;
    Ok(Exit::Done)
}

fn source(global: &Global, args: &Args) -> Result<Source, Failure> {
    let file = global.token_file.as_ref();
    if file.is_some() && (args.token_command.is_some() || args.token_stdin) {
        let why = "--token-file or KEYFOLD_TOKEN_FILE is given too, and goes before what login remembers";
        return Err(Failure::usage(WHAT, why).advise("Give one source, and unset KEYFOLD_TOKEN_FILE"));
    }
    match (&args.token_command, file) {
        (Some(line), _) => TokenCommand::parse(line, args.token_command_timeout)
            .map(Source::Command)
            .map_err(|reason| Failure::usage(WHAT, reason)),
        (None, Some(file)) => absolute(file).map(Source::File),
        (None, None) if args.token_stdin => Ok(Source::Stdin),
        (None, None) => Err(Failure::usage(WHAT, "no source of tokens is given")
            .advise("Give --token-command COMMAND, --token-file FILE or --token-stdin")),
    }
}

fn refuse_impossible_store(source: &Source, store: Option<Choice>) -> Result<(), Failure> {
    let why = match (source, store) {
        (Source::File(_), Some(Choice::Keyring | Choice::File)) => {
            "a token file is read anew at each call, so --store keeps nothing of it"
        }
        (Source::Stdin, Some(Choice::None)) => "with --store none a token from standard input would be lost",
        _ => return Ok(()),
    };
    Err(Failure::usage(WHAT, why))
}

fn first_token(source: &Source) -> Result<SecretBytes, Failure> {
    match source {
        Source::Command(command) => command.run(),
        Source::File(file) => read_token(file),
        Source::Stdin => token_on_stdin(),
    }
}

/// Keeps the token and writes the profile; both or neither, and both before another `login`, `logout` or renewal.
fn remember(
    places: &Places,
    address: &Address,
    source: Source,
    choice: Option<Choice>,
    token: &SecretBytes,
) -> Result<(), Failure> {
    let server = address.url.trim_end_matches('/').to_ascii_lowercase();
    let choice = if matches!(source, Source::File(_)) { Some(Choice::None) } else { choice };
    let mut locked = Profiles::lock(places)?;
    let store = Store::first(choice, places, &server, token).map_err(|reason| {
        let advice = "Give another --store: keyring, file or none";
        Failure::new(Exit::Internal, WHAT, format!("the token cannot be kept: {reason}")).advise(advice)
    })?;
    let profile = Profile { server, ca_pem: address.ca_pem.clone(), source, store };
    match locked.put(profile.clone()) {
        Ok(before) => {
            forget_elsewhere(before, &profile);
            Ok(())
        }
        Err(failure) => {
            // The failure at hand matters more.
            let _ = profile.store.forget(&profile.server);
            Err(failure)
        }
    }
}

/// A token of an earlier `login` that was kept elsewhere.
fn forget_elsewhere(before: Option<Profile>, now: &Profile) {
    let Some(before) = before.filter(|before| (&before.server, &before.store) != (&now.server, &now.store))
    else {
        return;
    };
    if let Err(reason) = before.store.forget(&before.server) {
        output::note(&format!("warning: the token kept by an earlier login is not removed: {reason}"));
    }
}

fn absolute(file: &PathBuf) -> Result<PathBuf, Failure> {
    path::absolute(file)
        .map_err(|error| Failure::usage(WHAT, format!("{}: {}", file.display(), io_reason(&error))))
}
