//! `keyfold explain`: why a workload may have a secret or not.

use keyfold_proto::keyfold::v1::{ExplainRequest, StepResult};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("workload").required(true)))]
#[command(
    after_help = "Reads no secret, and does not look whether there is one. Exit code 1 when it is refused.\n\n\
    Examples:\n  keyfold explain --subject payments/api --role payments-api --path payments/db\n  \
    keyfold explain --pod payments/api-7d9f --path payments/db --issuer prod -o json"
)]
pub struct Args {
    /// A pod, as NAMESPACE/NAME: its cluster's API server is asked for its service account, node and labels
    #[arg(long, group = "workload", value_name = "NAMESPACE/POD", value_parser = pair)]
    pod: Option<(String, String)>,
    /// A service account, as system:serviceaccount:NAMESPACE:NAME or NAMESPACE/NAME
    #[arg(long, group = "workload", value_parser = subject)]
    subject: Option<(String, String)>,
    /// The app role; without it, as for a volume that names none
    #[arg(long)]
    role: Option<String>,
    /// The secret
    #[arg(long)]
    path: String,
    /// The issuer of the workload's cluster, when there are several
    #[arg(long)]
    issuer: Option<String>,
}

#[derive(Serialize)]
struct Explanation {
    allowed: bool,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct StepView {
    check: String,
    result: &'static str,
    detail: String,
}

/// Asks, and shows each step.
///
/// # Errors
/// When the workload is not described enough, or the server refuses.
pub async fn run(global: &Global, args: Args) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let (namespace, service_account, pod) = match (args.pod, args.subject) {
        (Some((namespace, pod)), _) => (namespace, String::new(), Some(pod)),
        (None, Some((namespace, service_account))) => (namespace, service_account, None),
        (None, None) => (String::new(), String::new(), None),
    };
    let request = ExplainRequest {
        issuer: args.issuer.unwrap_or_default(),
        namespace,
        service_account,
        pod,
        role: args.role.unwrap_or_default(),
        path: args.path,
    };
    let answer = client.call("cannot explain", client.policy().explain(request)).await?;
    let view = |step: keyfold_proto::keyfold::v1::ExplainStep| StepView {
        result: match step.result() {
            StepResult::Holds => "holds",
            StepResult::Fails => "fails",
            StepResult::Undecided => "undecided",
            StepResult::Unspecified => "unknown",
        },
        check: step.check,
        detail: step.detail,
    };
    let explanation =
        Explanation { allowed: answer.allowed, steps: answer.steps.into_iter().map(view).collect() };
    output::print(global.output, &explanation, describe)?;
    Ok(if explanation.allowed { Exit::Done } else { Exit::Found })
}

fn describe(explanation: &Explanation) -> String {
    let steps = explanation.steps.iter();
    let rows = steps.map(|step| [step.check.clone(), step.result.to_owned(), step.detail.clone()]);
    let undecided = explanation.steps.iter().any(|step| step.result == "undecided");
    let verdict = match (explanation.allowed, undecided) {
        (true, false) => "allowed",
        (true, true) => "allowed, as far as can be told without the pod's token",
        (false, _) => "refused",
    };
    format!("{}\n{verdict}\n", output::table(["CHECK", "RESULT", "DETAIL"], rows))
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("use NAMESPACE/NAME"),
    }
}

fn subject(text: &str) -> Result<(String, String), &'static str> {
    let wrong = "use system:serviceaccount:NAMESPACE:NAME or NAMESPACE/NAME";
    match text.strip_prefix("system:serviceaccount:") {
        Some(rest) => match rest.split_once(':') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            _ => Err(wrong),
        },
        None => pair(text).map_err(|_| wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_two_forms() {
        let expected = Ok(("payments".to_owned(), "api".to_owned()));
        assert_eq!(subject("system:serviceaccount:payments:api"), expected);
        assert_eq!(subject("payments/api"), expected);
        for wrong in
            ["payments", "system:serviceaccount:payments", "a/b/c", "/api", "system:serviceaccount:a:b:c"]
        {
            assert!(subject(wrong).is_err(), "{wrong}");
        }
    }
}
