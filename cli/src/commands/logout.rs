//! `keyfold logout`.

use serde::Serialize;

use crate::{
    args::Global,
    credentials::{Places, Profile, Profiles},
    exit::{Exit, Failure},
    output,
};

const WHAT: &str = "cannot sign out";

/// Arguments of `logout`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Without --server, of the one server that you are signed in to. The server is not asked: a token \
    that somebody copied stays valid until its end.\n\n\
    Example:\n  keyfold logout --server https://keyfold.example:8443"
)]
pub struct Args {}

#[derive(Serialize)]
struct View {
    servers: Vec<String>,
}

/// Removes the kept token and the profile.
///
/// # Errors
/// When either stays.
pub fn run(global: &Global, _: &Args) -> Result<Exit, Failure> {
    let places = Places::of_user()?;
    // Who never signed in needs no folder for it.
    let is_signed_in = !Profiles::load(&places)?.all().is_empty();
    let server = if is_signed_in { sign_out(global, &places)? } else { None };
    let view = View { servers: server.into_iter().collect() };
    output::print(global.output, &view, |view| match view.servers.first() {
        Some(server) => format!("Signed out of {server}.\n"),
        None => "Not signed in.\n".into(),
    })?;
    Ok(Exit::Done)
}

/// Of which server, if of any. No other process keeps a token of it in between.
fn sign_out(global: &Global, places: &Places) -> Result<Option<String>, Failure> {
    let mut locked = Profiles::lock(places)?;
    let Some(profile) = chosen(global, locked.profiles())?.cloned() else { return Ok(None) };
    profile.store.forget(&profile.server).map_err(|reason| {
        Failure::new(Exit::Internal, WHAT, format!("the token is not removed: {reason}"))
    })?;
    locked.remove(&profile.server)?;
    Ok(Some(profile.server))
}

fn chosen<'a>(global: &Global, profiles: &'a Profiles) -> Result<Option<&'a Profile>, Failure> {
    match (global.server.as_deref().filter(|url| !url.is_empty()), profiles.all()) {
        (Some(url), _) => Ok(profiles.of(url)),
        (None, several @ [_, _, ..]) => {
            let servers: Vec<_> = several.iter().map(|profile| profile.server.as_str()).collect();
            let why = format!("you are signed in to more than one server: {}", servers.join(", "));
            Err(Failure::usage(WHAT, why).advise("Give --server URL"))
        }
        (None, all) => Ok(all.first()),
    }
}
