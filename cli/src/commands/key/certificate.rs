//! `keyfold key certificate`: the signed proofs of keys' destruction.

use std::{fs, path::PathBuf};

use keyfold_core::{
    key::certificate::{self, DestructionCertificate},
    object::PublicKey,
};
use keyfold_proto::keyfold::v1::{Certificate, ListCertificatesRequest};
use serde::Serialize;

use super::named;
use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure, io_reason},
    output,
};

/// Arguments of `key certificate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `key certificate`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List the certificates, with the public keys that sign them
    #[command(after_help = "Example:\n  keyfold key certificate list payments")]
    List {
        /// One keyspace; all of them without it
        keyspace: Option<String>,
    },
    /// Print one certificate, to be kept in a file
    #[command(after_help = "Example:\n  keyfold key certificate get payments 1 > payments-1.json")]
    Get {
        /// The keyspace
        keyspace: String,
        /// The key's version
        version: u32,
    },
    /// Verify a certificate without a server
    #[command(after_help = "Needs the public key from a source that you trust: keep what \
        `keyfold key certificate list` shows, apart from the certificates.\n\
        Exit code 1 when the certificate is not genuine.\n\n\
        Example:\n  keyfold key certificate verify payments-1.json --public-key 3q2+7w…=")]
    Verify {
        /// The certificate's file
        file: PathBuf,
        /// The public key, in base64
        #[arg(long, value_name = "PUBLIC-KEY")]
        public_key: String,
    },
}

#[derive(Serialize)]
struct List {
    certificates: Vec<Row>,
    public_keys: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    keyspace: String,
    purpose: String,
    version: u32,
    destroyed_at: Option<String>,
    certificate: String,
}

/// Runs a subcommand.
///
/// # Errors
/// When there is no such certificate, a file cannot be read, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List { keyspace } => list(global, keyspace.unwrap_or_default()).await,
        Command::Get { keyspace, version } => get(global, keyspace, version).await,
        Command::Verify { file, public_key } => verify(global, &file, &public_key),
    }
}

async fn list(global: &Global, keyspace: String) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = ListCertificatesRequest { keyspace, version: 0 };
    let answer = client.call("cannot list certificates", client.keys().list_certificates(request)).await?;
    let certificates = answer.certificates.into_iter().map(Row::from).collect();
    let list = List { certificates, public_keys: answer.public_keys };
    output::print(global.output, &list, draw)?;
    Ok(Exit::Done)
}

async fn get(global: &Global, keyspace: String, version: u32) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let what = format!("cannot get the certificate of key version {version} of keyspace {keyspace}");
    let request = ListCertificatesRequest { keyspace, version };
    let answer = client.call(&what, client.keys().list_certificates(request)).await?;
    let Some(found) = answer.certificates.into_iter().next() else {
        return Err(Failure::new(Exit::NotFound, what, "this key has not been destroyed"));
    };
    output::text(&(found.certificate + "\n"))?;
    Ok(Exit::Done)
}

fn verify(global: &Global, file: &PathBuf, public_key: &str) -> Result<Exit, Failure> {
    let what = format!("cannot verify {}", file.display());
    let text = fs::read_to_string(file).map_err(|error| Failure::usage(&what, io_reason(&error)))?;
    let key = PublicKey::try_from(public_key.trim().to_owned())
        .map_err(|error| Failure::usage(&what, error.to_string()))?;
    let certificate = match certificate::verify(text.trim(), &key) {
        Ok(certificate) => certificate,
        Err(error) => {
            return Err(Failure::new(Exit::Found, "the certificate is not genuine", error.to_string()));
        }
    };
    match global.output {
        Format::Table => output::text(&describe(&certificate))?,
        format => output::encoded(format, &certificate)?,
    }
    Ok(Exit::Done)
}

fn describe(certificate: &DestructionCertificate) -> String {
    let keyspace = certificate.keyspace.clone().unwrap_or_default();
    let destroyed = certificate.destroyed_at.format(&time::format_description::well_known::Rfc3339);
    let mut rows = vec![
        ["genuine".to_owned(), "yes".to_owned()],
        ["installation".to_owned(), certificate.installation.to_string()],
        ["keyspace".to_owned(), named(&keyspace)],
        ["purpose".to_owned(), certificate.purpose.clone()],
        ["key".to_owned(), certificate.kek.to_string()],
        ["version".to_owned(), certificate.version.to_string()],
        ["destroyed at".to_owned(), destroyed.unwrap_or_default()],
        ["requested by".to_owned(), certificate.requested_by.clone()],
    ];
    for check in &certificate.checks {
        rows.push([format!("check: {}", check.name.as_str()), check.found.clone()]);
    }
    rows.push(["does not reach".to_owned(), certificate.does_not_reach.clone()]);
    output::columns(rows)
}

impl From<Certificate> for Row {
    fn from(certificate: Certificate) -> Self {
        Self {
            keyspace: certificate.keyspace,
            purpose: certificate.purpose,
            version: certificate.version,
            destroyed_at: output::time(certificate.created_at),
            certificate: certificate.certificate,
        }
    }
}

fn draw(list: &List) -> String {
    let rows = list.certificates.iter().map(|row| {
        let destroyed = output::table_time(&row.destroyed_at);
        [named(&row.keyspace), row.purpose.clone(), row.version.to_string(), destroyed]
    });
    let keys = list.public_keys.iter().map(|key| [key.clone()]);
    output::table(["KEYSPACE", "PURPOSE", "VERSION", "DESTROYED"], rows)
        + "\n"
        + &output::table(["PUBLIC KEY"], keys)
}
