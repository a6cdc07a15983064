//! `keyfold unseal`: entering shares of a root key that people hold.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
};

use keyfold_proto::keyfold::v1::{UnsealRequest, UnsealResponse};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure, io_reason},
    output,
};

const WHAT: &str = "cannot unseal the server";

/// Most that is read of a file or of standard input.
const SHARES_LEN_MAX: u64 = 64 * 1024;

/// Arguments of `unseal`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Needs no token: a share proves itself. Each holder enters one share, at each replica: --server \
    names which. Without --share-file it is read from standard input, unseen when that is a terminal.\n\
    Exit code 0 when the share was taken.\n\n\
    Example:\n  keyfold unseal --server https://keyfold-0.keyfold:8443 --share-file my.share"
)]
pub struct Args {
    /// File with one share a line
    #[arg(long = "share-file", value_name = "FILE")]
    share_files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct View {
    entered: u32,
    threshold: u32,
    unsealed: bool,
}

/// Enters shares.
///
/// # Errors
/// When a share is wrong, or the server does not take shares now.
pub async fn run(global: &Global, args: &Args) -> Result<Exit, Failure> {
    let client = Client::anyone(global)?;
    let mut last = UnsealResponse::default();
    for share in read_shares(WHAT, &args.share_files)? {
        let request = UnsealRequest { share: share.to_string() };
        last = client.call(WHAT, client.root().unseal(request)).await?;
        if last.unsealed {
            break;
        }
    }
    let view = View { entered: last.entered, threshold: last.threshold, unsealed: last.unsealed };
    output::print(global.output, &view, |view| match view.unsealed {
        true => "The server is unsealed.\n".to_owned(),
        false => format!("{} of {} shares entered at this replica.\n", view.entered, view.threshold),
    })?;
    Ok(Exit::Done)
}

/// The shares of these files, one a line; without files those of standard input.
///
/// # Errors
/// When one cannot be read, or there is none. `what` names the failure.
pub fn read_shares(what: &str, files: &[PathBuf]) -> Result<Vec<Zeroizing<String>>, Failure> {
    let mut shares = Vec::new();
    for file in files {
        let text = fs::File::open(file).and_then(|mut file| read_all(&mut file)).map_err(|error| {
            Failure::usage(what, format!("the share's file {}: {}", file.display(), io_reason(&error)))
        })?;
        shares.extend(lines(&text));
    }
    if files.is_empty() {
        let text = match io::stdin().is_terminal() {
            true => ask(),
            false => read_all(&mut io::stdin().lock()),
        };
        shares.extend(lines(&text.map_err(|error| Failure::io(what, &error))?));
    }
    if shares.is_empty() {
        return Err(Failure::usage(what, "no share is given"));
    }
    Ok(shares)
}

fn lines(text: &str) -> Vec<Zeroizing<String>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| Zeroizing::new(line.to_owned())).collect()
}

/// Into a buffer that does not grow: growing would leave a copy.
fn read_all(from: &mut dyn io::Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(SHARES_LEN_MAX as usize));
    from.take(SHARES_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// One line from the terminal, which does not show it.
fn ask() -> io::Result<Zeroizing<String>> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let _ = write!(io::stderr(), "Share (not shown): ");
    tcsetattr(&stdin, OptionalActions::Now, &silent)?;
    let mut line = Zeroizing::new(String::with_capacity(4096));
    let read = stdin.lock().take(4096).read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    let _ = writeln!(io::stderr());
    read.map(|_| line)
}
