//! `keyfold role`: app roles, read for people. They are changed with `keyfold apply`.

use keyfold_proto::keyfold::v1::Object;
use serde_json::Value;

use super::get;
use crate::{
    args::{Format, Global},
    documents::Kind,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `role`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `role`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List app roles, whom they bind, and what they grant
    #[command(after_help = "Example:\n  keyfold role list")]
    List,
    /// Show one app role as the document that `apply` takes
    #[command(after_help = "Example:\n  keyfold role show payments-api")]
    Show {
        /// The role's name
        name: String,
    },
    /// Delete an app role; workloads bound by it get nothing more under it
    #[command(after_help = "Example:\n  keyfold role delete payments-api")]
    Delete {
        /// The role's name
        name: String,
    },
}

/// Runs a subcommand.
///
/// # Errors
/// When there is no such role, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List => get::list(global, Kind::AppRole, draw).await,
        Command::Show { name } => {
            let output = if global.output == Format::Table { Format::Yaml } else { global.output };
            get::show(&Global { output, ..global.clone() }, Kind::AppRole, &name, draw).await
        }
        Command::Delete { name } => get::remove(global, Kind::AppRole, &name).await,
    }
}

fn draw(objects: &[Object]) -> String {
    let rows = objects.iter().map(|object| {
        // A spec that this version cannot read shows as empty cells; `role show` prints it whole.
        let spec: Value = serde_json::from_str(&object.spec_json).unwrap_or_default();
        [object.name.clone(), each(&spec["bind"], binding), each(&spec["grants"], grant)]
    });
    output::table(["NAME", "BINDS", "GRANTS"], rows)
}

/// `issuer:namespaces/service accounts`, such as `prod:payments/api,worker`.
fn binding(bind: &Value) -> String {
    let issuer = bind["issuer"].as_str().unwrap_or_default();
    format!("{issuer}:{}/{}", words(&bind["namespaces"]), words(&bind["serviceAccounts"]))
}

/// `path(capabilities)`, such as `payments/*(read)`.
fn grant(grant: &Value) -> String {
    format!("{}({})", grant["path"].as_str().unwrap_or_default(), words(&grant["allow"]))
}

fn each(list: &Value, show: fn(&Value) -> String) -> String {
    list.as_array().into_iter().flatten().map(show).collect::<Vec<_>>().join(" ")
}

fn words(list: &Value) -> String {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
