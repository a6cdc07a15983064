//! `keyfold lint`: Kubernetes manifests, checked before they are deployed.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use keyfold_core::name::ObjectName;
use keyfold_proto::keyfold::v1::{ListObjectsRequest, Object};

use crate::{
    args::{Format, Global},
    client::Client,
    documents::{self, Document, Kind},
    exit::{Exit, Failure, io_reason},
    lint::{self, FILE_BYTES_MAX, Input, Rights, Settings},
    output,
};

/// Arguments of `lint`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Pods and whatever makes pods are checked; other objects are passed over. Roles come from the server, unless \
--roles or --offline is given. -o sarif is for code-scanning services.\n\n\
Exit code 0: nothing worse than warnings; 1: errors; 2: a file cannot be read or is no YAML; above: a failure.\n\n\
Examples:\n  keyfold lint deploy/*.yaml\n  keyfold lint deploy/api.yaml --roles objects/ --issuer prod\n  \
keyfold lint - --namespace payments < rendered.yaml\n  \
keyfold lint deploy/api.yaml --offline -o sarif > keyfold.sarif")]
pub struct Args {
    /// Manifest, or - for standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// File or folder of AppRoles, Issuers and Keyspaces to check against instead of the server's; may be repeated
    #[arg(long, value_name = "FILE")]
    roles: Vec<PathBuf>,
    /// Check only what needs no roles, without a server
    #[arg(long, conflicts_with = "roles")]
    offline: bool,
    /// Namespace of objects that name none
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Issuer of the cluster that the manifests are for; without it, it is enough that a pod of any cluster may
    #[arg(long, value_name = "NAME", value_parser = object_name)]
    issuer: Option<ObjectName>,
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    ObjectName::try_from(text).map_err(|error| error.to_string())
}

/// Checks the files and prints what it found.
///
/// # Errors
/// When the roles cannot be had. What is wrong with a manifest is a finding.
pub async fn run(global: &Global, args: &Args) -> Result<Exit, Failure> {
    let rights = rights(global, args).await?;
    let files: Vec<_> = args.files.iter().map(|file| read(file)).collect();
    let settings = Settings { namespace: args.namespace.clone(), issuer: args.issuer.clone(), rights };
    let report = lint::check(&files, &settings);
    match global.output {
        Format::Table => output::text(&report.text())?,
        Format::Sarif => output::encoded(Format::Json, &lint::sarif(&report))?,
        format => output::encoded(format, &report.view())?,
    }
    Ok(report.exit())
}

async fn rights(global: &Global, args: &Args) -> Result<Option<Rights>, Failure> {
    if args.offline {
        return Ok(None);
    }
    if args.roles.is_empty() {
        let rights = Rights::of_server(&objects_of_server(global).await?);
        let unknown = |reason: String| {
            Failure::new(Exit::Internal, "cannot use the server's objects", reason)
                .advise("Use a `keyfold` of the server's version")
        };
        return rights.map(Some).map_err(unknown);
    }
    let objects: Vec<_> =
        documents::read(&args.roles, &mut io::stdin())?.iter().map(Document::to_object).collect();
    let rights = Rights::of_files(&objects);
    rights.map(Some).map_err(|reason| Failure::usage("cannot use the files of --roles", reason))
}

async fn objects_of_server(global: &Global) -> Result<Vec<Object>, Failure> {
    let client = Client::operator(global)?;
    let mut objects = Vec::new();
    for kind in [Kind::Keyspace, Kind::Issuer, Kind::AppRole] {
        let request = ListObjectsRequest { kind: kind.name().into() };
        let what = format!("cannot list objects of kind {kind}");
        objects.extend(client.call(&what, client.config().list_objects(request)).await?.objects);
    }
    Ok(objects)
}

fn read(file: &Path) -> Input {
    let text = if file == Path::new("-") {
        text_of(io::stdin())
    } else if file.is_dir() {
        Err("it is a folder: name the files in it, such as folder/*.yaml".into())
    } else {
        fs::File::open(file).map_err(|error| io_reason(&error)).and_then(text_of)
    };
    Input { name: file.display().to_string(), text }
}

fn text_of(from: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| io_reason(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".into())
}
