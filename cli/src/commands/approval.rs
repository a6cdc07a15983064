//! `keyfold approval`: plans that wait for a second person, and their signature.

mod key;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use keyfold_core::plan::{Plan, PlanHash};
use keyfold_proto::keyfold::v1::{self, GetPlanRequest, ListPlansRequest, SignPlanRequest};
use serde::Serialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use self::key::ApproverKey;
use super::secret::versions::confirm;
use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `approval`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `approval`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List plans that wait to be signed or used, newest first
    #[command(after_help = "Example:\n  keyfold approval list")]
    List,
    /// Show exactly what a plan is for
    #[command(after_help = "A plan that was used can be shown for ever.\n\n\
        Example:\n  keyfold approval show 7b0c7cde-4ea2-4e5e-8d9b-6f2d6a0c8d6f")]
    Show {
        /// The plan's id
        id: Uuid,
    },
    /// Sign a plan as the second person, once you have seen what it is for
    #[command(
        after_help = "The plan is shown before you are asked. What is signed is the hash of exactly what is \
        shown.\n\nExample:\n  keyfold approval sign 7b0c7cde-4ea2-4e5e-8d9b-6f2d6a0c8d6f --key approver.key"
    )]
    Sign(SignArgs),
    /// Make a key to sign with; the public half is for the approval rule
    #[command(after_help = "Example:\n  keyfold approval keygen --out approver.key")]
    Keygen {
        /// New file for the private key, readable by its owner only
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Arguments of `approval sign`.
#[derive(clap::Args, Debug)]
pub struct SignArgs {
    /// The plan's id
    id: Uuid,
    /// File of your private key, as `keyfold approval keygen` writes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Row {
    id: String,
    operation: String,
    requested_by: String,
    requested_at: Option<String>,
    expires_at: Option<String>,
    signed_by: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    hash: String,
    signed_by: Option<String>,
    plan: Plan,
}

#[derive(Serialize)]
struct Signed {
    plan: Uuid,
    hash: String,
    public_key: String,
}

#[derive(Serialize)]
struct Made<'a> {
    key_file: &'a std::path::Path,
    public_key: String,
}

/// Runs a subcommand.
///
/// # Errors
/// When there is no such plan, the key cannot be used, nobody said yes, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List => list(global).await,
        Command::Show { id } => show(global, id).await,
        Command::Sign(args) => sign(global, &args).await,
        Command::Keygen { out } => {
            let made = Made { public_key: ApproverKey::generate(&out)?.public().into(), key_file: &out };
            output::print(global.output, &made, |made| format!("{}\n", made.public_key))?;
            Ok(Exit::Done)
        }
    }
}

async fn list(global: &Global) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let answer = client.call("cannot list plans", client.approvals().list_plans(ListPlansRequest {})).await?;
    let rows: Vec<Row> = answer.plans.into_iter().map(Row::from).collect();
    output::print(global.output, &rows, |rows| draw(rows))?;
    Ok(Exit::Done)
}

async fn show(global: &Global, id: Uuid) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let shown = fetch(&client, &format!("cannot show plan {id}"), id).await?;
    match global.output {
        Format::Table => output::text(&describe(&shown)?)?,
        format => output::encoded(format, &shown)?,
    }
    Ok(Exit::Done)
}

async fn sign(global: &Global, args: &SignArgs) -> Result<Exit, Failure> {
    let what = format!("cannot sign plan {}", args.id);
    if !args.yes && global.output != Format::Table {
        return Err(Failure::usage(what, "nobody can be asked about a plan that is not shown as a table")
            .advise("Leave --output out, or give --yes"));
    }
    let key = ApproverKey::read(&what, &args.key)?;
    let client = Client::operator(global)?;
    let shown = fetch(&client, &what, args.id).await?;
    if global.output == Format::Table {
        output::text(&describe(&shown)?)?;
    }
    if !args.yes {
        let question = format!("Sign this plan of {}?", shown.plan.requested_by);
        confirm(&what, &question, io::stdin().is_terminal(), &mut io::stdin().lock())?;
    }
    // Of what was shown, and of nothing that the server says about it.
    let hash = PlanHash::of(&shown.plan.to_bytes());
    let request = SignPlanRequest { id: args.id.to_string(), signature: key.sign(hash) };
    client.call(&what, client.approvals().sign_plan(request)).await?;
    let signed = Signed { plan: args.id, hash: hash.to_string(), public_key: key.public().into() };
    output::print(global.output, &signed, |signed| {
        let by = &shown.plan.requested_by;
        format!("Signed. {by} can now run the same again with --approval {}\n", signed.plan)
    })?;
    Ok(Exit::Done)
}

/// The plan, from exactly the bytes that the server would have used.
async fn fetch(client: &Client, what: &str, id: Uuid) -> Result<Shown, Failure> {
    let request = GetPlanRequest { id: id.to_string() };
    let answer = client.call(what, client.approvals().get_plan(request)).await?;
    let unfit = |why: String| {
        Failure::new(Exit::Internal, what, why).advise("Use a `keyfold` of the server's version")
    };
    let found = answer.plan.ok_or_else(|| unfit("the server sent none".into()))?;
    let plan = Plan::parse(&found.plan).map_err(|error| unfit(error.to_string()))?;
    if plan.id != id {
        return Err(unfit(format!("the server sent another plan, {}", plan.id)));
    }
    Ok(Shown { hash: PlanHash::of(&found.plan).to_string(), signed_by: found.signed_by, plan })
}

impl From<v1::Plan> for Row {
    fn from(plan: v1::Plan) -> Self {
        Self {
            id: plan.id,
            operation: plan.operation,
            requested_by: plan.requested_by,
            requested_at: output::time(plan.requested_at),
            expires_at: output::time(plan.expires_at),
            signed_by: plan.signed_by,
        }
    }
}

fn draw(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.id.clone(),
            row.operation.clone(),
            row.requested_by.clone(),
            output::table_time(&row.requested_at),
            output::table_time(&row.expires_at),
            row.signed_by.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    output::table(["ID", "OPERATION", "REQUESTED BY", "AT", "EXPIRES", "SIGNED BY"], cells)
}

/// All that the plan holds. Whatever in it could steer a terminal is escaped.
fn describe(shown: &Shown) -> Result<String, Failure> {
    let plan = &shown.plan;
    let head = output::columns([
        ["plan".to_owned(), plan.id.to_string()],
        ["installation".to_owned(), plan.installation.to_string()],
        ["requested by".to_owned(), plan.requested_by.clone()],
        ["requested at".to_owned(), rfc3339(plan.requested_at)],
        ["expires at".to_owned(), rfc3339(plan.expires_at)],
        ["SHA-256".to_owned(), shown.hash.clone()],
        ["signed by".to_owned(), shown.signed_by.clone().unwrap_or_else(|| "-".into())],
    ]);
    let unprintable =
        |error: serde_json::Error| Failure::new(Exit::Internal, "cannot show the plan", error.to_string());
    let operation = serde_json::to_value(&plan.operation).map_err(unprintable)?;
    let mut text = head + "\n" + &block("operation", &operation)?;
    for object in &plan.objects {
        let spec = serde_json::from_str(&object.spec.to_json()).map_err(unprintable)?;
        text += "\n";
        text += &block(&format!("{} {}", object.kind.as_str(), object.name), &spec)?;
    }
    Ok(text)
}

/// A value as indented YAML below its title.
fn block(title: &str, value: &Value) -> Result<String, Failure> {
    let yaml = output::encode(Format::Yaml, value, 0)?;
    let lines = yaml.lines().map(|line| format!("  {line}\n"));
    Ok(format!("{title}:\n") + &lines.collect::<String>())
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keyfold_core::{
        audit::{AppliedObject, Operation},
        object::{Kind, Spec},
        plan::{PlannedObject, Version},
    };
    use time::macros::datetime;

    use super::*;

    fn shown(operation: Operation, objects: Vec<PlannedObject>) -> Shown {
        let plan = Plan {
            v: Version,
            id: Uuid::from_u128(1),
            installation: Uuid::from_u128(2),
            requested_by: "people/alice".into(),
            requested_at: datetime!(2026-11-23 05:40:54.123456 UTC),
            expires_at: datetime!(2026-11-23 06:40:54.123456 UTC),
            operation,
            objects,
        };
        Shown { hash: "ab".repeat(32), signed_by: None, plan }
    }

    #[test]
    fn all_of_a_plan_is_shown() {
        let destroy = Operation::SecretDestroy { path: "payments/db".into(), versions: vec![1, 2] };
        insta::assert_snapshot!(describe(&shown(destroy, Vec::new())).unwrap(), @r"
        plan          00000000-0000-0000-0000-000000000001
        installation  00000000-0000-0000-0000-000000000002
        requested by  people/alice
        requested at  2026-11-23T05:40:54.123456Z
        expires at    2026-11-23T06:40:54.123456Z
        SHA-256       abababababababababababababababababababababababababababababababab
        signed by     -

        operation:
          name: secret.destroy
          path: payments/db
          versions:
          - 1
          - 2
        ");

        let spec = Spec::parse(Kind::Keyspace, r#"{"description":"of the payments team"}"#).unwrap();
        let applied = AppliedObject { kind: "Keyspace".into(), name: "payments".into(), generation: None };
        let object = PlannedObject { kind: Kind::Keyspace, name: "payments".try_into().unwrap(), spec };
        let apply = Operation::ConfigApply { dry_run: false, objects: vec![applied] };
        let text = describe(&shown(apply, vec![object])).unwrap();
        let (_, text) = text.split_once("\n\n").unwrap();
        insta::assert_snapshot!(text, @r"
        operation:
          dry_run: false
          name: config.apply
          objects:
          - kind: Keyspace
            name: payments

        Keyspace payments:
          description: of the payments team
        ");
    }

    #[test]
    fn nothing_in_a_plan_hides_by_steering_the_terminal() {
        let hostile = "harmless\u{1b}[2K\r\u{202e}evil\nSHA-256: 00";
        let spec =
            Spec::parse(Kind::Keyspace, &serde_json::json!({"description": hostile}).to_string()).unwrap();
        let object = PlannedObject { kind: Kind::Keyspace, name: "payments".try_into().unwrap(), spec };
        let apply = Operation::ConfigApply { dry_run: false, objects: Vec::new() };
        let text = describe(&shown(apply, vec![object])).unwrap();
        assert!(text.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{text:?}");
        assert!(text.contains("evil") && !text.lines().any(|line| line.starts_with("SHA-256: 00")), "{text}");
    }
}
