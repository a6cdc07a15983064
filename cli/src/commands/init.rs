//! `keyfold init`: the installation and its first administrator.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use keyfold_proto::keyfold::v1::{InitializeRequest, InitializeResponse};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    args::{Format, Global},
    client::Client,
    commands::recovery::print_shares,
    credentials::read_token,
    exit::{Exit, Failure, io_reason},
    output,
};

const WHAT: &str = "cannot initialise the server";

/// Arguments of `init`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Without --admin-token-out the administrator's token is printed on standard output, \
    once.\n\n\
    Example:\n  keyfold init --bootstrap-token-file bootstrap-token --admin-token-out admin-token")]
pub struct Args {
    /// File with the content of the server's `bootstrap_token_file`, at least 16 characters
    #[arg(long, value_name = "FILE")]
    bootstrap_token_file: PathBuf,
    /// New file for the administrator's token, readable by its owner only
    #[arg(long, value_name = "FILE")]
    admin_token_out: Option<PathBuf>,
}

#[derive(Serialize)]
struct View<'a> {
    installation_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_token_file: Option<&'a Path>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    root_shares: &'a [String],
    #[serde(skip_serializing_if = "is_zero")]
    root_threshold: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Initialises the server and hands over the administrator's token.
///
/// # Errors
/// When the token file exists already, or the server refuses.
pub async fn run(global: &Global, args: &Args) -> Result<Exit, Failure> {
    let bootstrap = read_token(&args.bootstrap_token_file)?;
    let client = Client::nobody(global)?;
    // The token is given out once, so the place for it is made before it exists.
    let file = args.admin_token_out.as_deref().map(TokenFile::create).transpose()?;
    // `read_token` lets visible ASCII through only.
    let bootstrap_token = String::from_utf8_lossy(bootstrap.expose()).into_owned();
    let answer = client.call(WHAT, client.system().initialize(InitializeRequest { bootstrap_token })).await;
    let answer = answer.inspect_err(|_| {
        if let Some(file) = &file {
            file.remove();
        }
    })?;
    match file {
        Some(file) => into_file(global.output, &answer, file),
        None => onto_stdout(global.output, &answer),
    }
}

fn into_file(format: Format, answer: &InitializeResponse, mut file: TokenFile) -> Result<Exit, Failure> {
    if let Err(error) = file.write(&answer.admin_token) {
        let place = file.path.display();
        output::note(&format!("the token could not be written to {place}: {}", io_reason(&error)));
        file.remove();
        return onto_stdout(format, answer);
    }
    let view = View {
        installation_id: &answer.installation_id,
        admin_token: None,
        admin_token_file: Some(&file.path),
        root_shares: &answer.root_shares,
        root_threshold: answer.root_threshold,
    };
    if !answer.root_shares.is_empty() {
        output::note(&format!(
            "initialised installation {}; the administrator's token is in {}",
            answer.installation_id,
            file.path.display()
        ));
        if format != Format::Table {
            let len = answer.root_shares.iter().map(String::len).sum();
            output::print_secret(format, &view, len)?;
            return Ok(Exit::Done);
        }
        print_shares(format, &answer.root_shares, answer.root_threshold)?;
        return Ok(Exit::Done);
    }
    output::print(format, &view, |view| {
        format!(
            "Initialised installation {}.\nThe administrator's token is in {}.\n",
            view.installation_id,
            file.path.display()
        )
    })?;
    Ok(Exit::Done)
}

fn onto_stdout(format: Format, answer: &InitializeResponse) -> Result<Exit, Failure> {
    output::note(&format!("initialised installation {}", answer.installation_id));
    output::note("the administrator's token follows on standard output, this once: keep it in a safe place");
    match format {
        Format::Table => {
            output::write(&Zeroizing::new([answer.admin_token.as_bytes(), b"\n"].concat()))?;
            if !answer.root_shares.is_empty() {
                print_shares(format, &answer.root_shares, answer.root_threshold)?;
            }
        }
        Format::Json | Format::Yaml | Format::Sarif => {
            let view = View {
                installation_id: &answer.installation_id,
                admin_token: Some(&answer.admin_token),
                admin_token_file: None,
                root_shares: &answer.root_shares,
                root_threshold: answer.root_threshold,
            };
            let len = answer.admin_token.len() + answer.root_shares.iter().map(String::len).sum::<usize>();
            output::print_secret(format, &view, len)?;
        }
    }
    Ok(Exit::Done)
}

/// A new file of mode 0600.
struct TokenFile {
    path: PathBuf,
    file: File,
}

impl TokenFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
                let reason =
                    format!("the token file {} cannot be made: {}", path.display(), io_reason(&error));
                Failure::usage(WHAT, reason)
                    .advise("Nothing was changed; name a file that does not exist yet")
            })?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, token: &str) -> io::Result<()> {
        self.file.write_all(token.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.file.sync_all()
    }

    fn remove(&self) {
        // An empty file left behind is harmless, and the failure at hand matters more.
        let _ = fs::remove_file(&self.path);
    }
}
