//! `keyfold get` and `keyfold delete`: objects one by one. Roles have the same under `keyfold role`.

use keyfold_proto::keyfold::v1::{DeleteObjectRequest, GetObjectRequest, ListObjectsRequest, Object};
use serde::Serialize;

use crate::{
    args::{Format, Global},
    client::Client,
    documents::{Document, Kind, to_yaml},
    exit::{Exit, Failure},
    output,
};

/// Arguments of `get`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  keyfold get keyspaces\n  keyfold get role payments-api -o yaml > role.yaml"
)]
pub struct GetArgs {
    /// Kind of the objects
    #[arg(value_enum, ignore_case = true)]
    kind: Kind,
    /// One object's name; all objects of the kind without it
    name: Option<String>,
}

/// Arguments of `delete`.
#[derive(clap::Args, Debug)]
#[command(after_help = "A keyspace that holds secrets is not deleted.\n\n\
    Example:\n  keyfold delete issuer staging")]
pub struct DeleteArgs {
    /// Kind of the object
    #[arg(value_enum, ignore_case = true)]
    kind: Kind,
    /// The object's name
    name: String,
}

/// An object as `-o json` shows it: the document, and what the server knows about it.
#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    document: Document,
    status: Status,
}

#[derive(Serialize)]
struct Status {
    generation: u64,
    updated_at: Option<String>,
}

/// Prints one object, or all of a kind.
///
/// # Errors
/// When there is no such object, or the server refuses.
pub async fn get(global: &Global, args: &GetArgs) -> Result<Exit, Failure> {
    match &args.name {
        Some(name) => show(global, args.kind, name, draw).await,
        None => list(global, args.kind, draw).await,
    }
}

/// Deletes one object.
///
/// # Errors
/// When there is no such object, or the server refuses.
pub async fn delete(global: &Global, args: &DeleteArgs) -> Result<Exit, Failure> {
    remove(global, args.kind, &args.name).await
}

/// Prints one object; `draw` makes the table.
pub(super) async fn show(
    global: &Global,
    kind: Kind,
    name: &str,
    draw: fn(&[Object]) -> String,
) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = GetObjectRequest { kind: kind.name().into(), name: name.into() };
    let answer =
        client.call(&format!("cannot get {kind} {name}"), client.config().get_object(request)).await?;
    let objects = [answer.object.unwrap_or_default()];
    match global.output {
        Format::Json => output::encoded(Format::Json, &view(&objects[0])?)?,
        format => print(format, &objects, draw)?,
    }
    Ok(Exit::Done)
}

/// Prints all objects of a kind; `draw` makes the table.
pub(super) async fn list(
    global: &Global,
    kind: Kind,
    draw: fn(&[Object]) -> String,
) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = ListObjectsRequest { kind: kind.name().into() };
    let answer = client
        .call(&format!("cannot list objects of kind {kind}"), client.config().list_objects(request))
        .await?;
    print(global.output, &answer.objects, draw)?;
    Ok(Exit::Done)
}

/// Deletes one object.
pub(super) async fn remove(global: &Global, kind: Kind, name: &str) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = DeleteObjectRequest { kind: kind.name().into(), name: name.into() };
    client.call(&format!("cannot delete {kind} {name}"), client.config().delete_object(request)).await?;
    #[derive(Serialize)]
    struct Deleted<'a> {
        kind: Kind,
        name: &'a str,
        change: &'a str,
    }
    output::print(global.output, &Deleted { kind, name, change: "deleted" }, |_| {
        format!("{kind} {name} deleted\n")
    })?;
    Ok(Exit::Done)
}

fn print(format: Format, objects: &[Object], draw: fn(&[Object]) -> String) -> Result<(), Failure> {
    match format {
        Format::Table => output::text(&draw(objects)),
        Format::Yaml => {
            let documents: Result<Vec<Document>, Failure> = objects.iter().map(document).collect();
            output::write(to_yaml(&documents?)?.as_bytes())
        }
        Format::Json | Format::Sarif => {
            let views: Result<Vec<View>, Failure> = objects.iter().map(view).collect();
            output::encoded(Format::Json, &views?)
        }
    }
}

fn view(object: &Object) -> Result<View, Failure> {
    let status = Status { generation: object.generation, updated_at: output::time(object.updated_at) };
    Ok(View { document: document(object)?, status })
}

fn document(object: &Object) -> Result<Document, Failure> {
    Document::from_object(object).map_err(|reason| {
        Failure::new(Exit::Internal, "cannot show the object", reason)
            .advise("Use a `keyfold` of the server's version")
    })
}

fn draw(objects: &[Object]) -> String {
    let rows = objects.iter().map(|object| {
        let updated = output::table_time(&output::time(object.updated_at));
        [object.name.clone(), object.generation.to_string(), updated]
    });
    output::table(["NAME", "GENERATION", "UPDATED"], rows)
}

#[cfg(test)]
mod tests;
