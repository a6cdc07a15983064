//! `keyfold policy`: conditions of app roles, tried out without a server.

use std::{collections::BTreeMap, io, path::PathBuf};

use keyfold_core::{
    condition::{Condition, ConditionFailure, ConditionInput, TimeInput},
    object::{self, Spec},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, macros::datetime};

use crate::{
    args::Global,
    documents::{self, ApiVersion, Document, Metadata},
    exit::{Exit, Failure},
    output,
};

/// When a case is, unless it says: a Monday at noon.
const DEFAULT_TIME: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);

/// Arguments of `policy`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `policy`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Test the conditions of app roles by cases; exit code 1 when one comes out otherwise
    #[command(
        after_help = "The files hold AppRole documents, and PolicyTest documents with the cases; other kinds are \
        passed over. Needs no server.\n\n\
        Examples:\n  keyfold policy test roles.yaml tests.yaml\n  keyfold policy test policies/ -o json"
    )]
    Test {
        /// YAML file, folder of *.yaml and *.yml files, or - for standard input
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
}

/// A document of `policy test`.
enum Part {
    Role(Document),
    Test(TestDocument),
    Other,
}

#[derive(Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a map with apiVersion, kind, metadata and spec"
)]
struct TestDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: TestSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with role and cases")]
struct TestSpec {
    role: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a map with name and expect")]
struct Case {
    name: String,
    /// When; absent: `DEFAULT_TIME`.
    #[serde(default, with = "time::serde::rfc3339::option")]
    at: Option<OffsetDateTime>,
    /// What differs from the input that every case begins with.
    #[serde(default)]
    input: Map<String, Value>,
    expect: Expected,
    /// Which refusal; absent: that `allow` is not true.
    #[serde(default)]
    code: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Allow,
    Refuse,
}

#[derive(Serialize)]
struct View {
    test: String,
    role: String,
    case: String,
    passed: bool,
    expected: String,
    came: &'static str,
    /// What the condition says to a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// When a file is wrong, or a role or its condition that a test names.
pub fn run(global: &Global, command: &Command) -> Result<Exit, Failure> {
    let Command::Test { files } = command;
    let parts = documents::read_with(files, &mut io::stdin(), part)?;
    let views = test(parts)?;
    output::print(global.output, &views, |views| draw(views))?;
    Ok(if views.iter().all(|view| view.passed) { Exit::Done } else { Exit::Found })
}

fn part(value: Value) -> Result<Part, String> {
    match value["kind"].as_str() {
        Some("AppRole") => documents::from_value(value).map(Part::Role),
        Some("PolicyTest") => documents::from_value(value).map(Part::Test),
        _ => Ok(Part::Other),
    }
}

fn test(parts: Vec<(String, Part)>) -> Result<Vec<View>, Failure> {
    let mut roles = BTreeMap::new();
    let mut tests = Vec::new();
    for (place, part) in parts {
        match part {
            Part::Test(test) => tests.push((place, test)),
            Part::Role(role) => {
                let name = role.metadata.name.clone();
                if let Some((first, _)) = roles.insert(name.clone(), (place.clone(), role)) {
                    return Err(documents::wrong(
                        &place,
                        format!("AppRole {name} stands in {first} already"),
                    )
                    .advise("Keep one of them"));
                }
            }
            Part::Other => {}
        }
    }
    if tests.iter().all(|(_, test)| test.spec.cases.is_empty()) {
        return Err(Failure::usage("cannot use the files", "they hold no case of a PolicyTest"));
    }
    let mut views = Vec::new();
    for (place, test) in tests {
        let Some((role_place, role)) = roles.get(&test.spec.role) else {
            let missing = format!("spec.role: the files hold no AppRole {:?}", test.spec.role);
            return Err(documents::wrong(&place, missing));
        };
        let condition = condition(role).map_err(|reason| documents::wrong(role_place, reason))?;
        for (at, case) in test.spec.cases.iter().enumerate() {
            let wrong = |reason| documents::wrong(&place, format!("spec.cases[{at}].{reason}"));
            let input = input(&test.spec.role, case).map_err(wrong)?;
            views.push(view(&test, case, condition.check(&input)));
        }
    }
    Ok(views)
}

/// The condition of a role that is valid as a whole.
fn condition(role: &Document) -> Result<Condition, String> {
    let spec = Value::Object(role.spec.clone()).to_string();
    let Spec::AppRole(spec) = Spec::parse(object::Kind::AppRole, &spec).map_err(|error| error.to_string())?
    else {
        return Err("it is no AppRole".into());
    };
    let condition = spec.condition.ok_or("spec.condition: the role has none, and a PolicyTest names it")?;
    Condition::compile(&condition.rego).map_err(|error| format!("spec.condition.rego: {error}"))
}

/// What every case begins with, changed as the case says.
fn input(role: &str, case: &Case) -> Result<ConditionInput, String> {
    let named = |name: &str| json!({"name": name, "uid": "00000000-0000-0000-0000-000000000000"});
    let caller = |namespace: &str, account: &str| {
        json!({
            "issuer": "prod",
            "namespace": namespace,
            "service_account": named(account),
            "pod": named("pod-0"),
            "node": named("node-0"),
            "token_expires_at": "2026-01-05T13:00:00Z",
        })
    };
    let mut input = json!({
        "caller": caller("default", "default"),
        "driver": caller("keyfold-system", "keyfold-csi"),
        "request": {"role": role, "paths": [], "from": "192.0.2.1"},
        "time": TimeInput::from(case.at.unwrap_or(DEFAULT_TIME)),
    });
    overlay(&mut input, &Value::Object(case.input.clone()));
    serde_path_to_error::deserialize(input)
        .map_err(|error| format!("input.{}: {}", error.path(), error.inner()))
}

fn overlay(base: &mut Value, change: &Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (name, value) in change {
                overlay(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, change) => base.clone_from(change),
    }
}

fn view(test: &TestDocument, case: &Case, decided: Result<(), ConditionFailure>) -> View {
    // An error refuses too, but seldom for the reason that the case is about.
    let expected = match case.expect {
        Expected::Allow => "allow",
        Expected::Refuse => case.code.as_deref().unwrap_or(ConditionFailure::False.code()),
    };
    let came = decided.as_ref().map_or_else(ConditionFailure::code, |()| "allow");
    View {
        test: test.metadata.name.clone(),
        role: test.spec.role.clone(),
        case: case.name.clone(),
        passed: came == expected,
        expected: expected.to_owned(),
        came,
        reason: decided.err().map(|failure| failure.to_string()),
    }
}

fn draw(views: &[View]) -> String {
    let rows = views.iter().map(|view| {
        let result = if view.passed { "PASS" } else { "FAIL" };
        let came = match (view.passed, &view.reason) {
            (true, _) => view.came.to_owned(),
            (false, None) => format!("{}, not {}", view.came, view.expected),
            (false, Some(reason)) => format!("{}, not {}: {reason}", view.came, view.expected),
        };
        [result.to_owned(), view.role.clone(), view.case.clone(), came]
    });
    let failed = views.iter().filter(|view| !view.passed).count();
    let table = output::table(["RESULT", "ROLE", "CASE", "CAME"], rows);
    format!("{table}{} passed, {failed} failed\n", views.len() - failed)
}

#[cfg(test)]
mod tests;
