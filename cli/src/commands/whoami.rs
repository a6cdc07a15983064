//! `keyfold whoami`.

use keyfold_proto::keyfold::v1::{WhoAmIRequest, WhoAmIResponse};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `whoami`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Exit code 4 when no operator role binds you.\n\nExample:\n  keyfold whoami -o json")]
pub struct Args {}

/// An operator, as the server sees them.
#[derive(Serialize)]
pub struct View {
    /// As audit entries name the operator.
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    roles: Vec<String>,
    permissions: Vec<String>,
    grants: Vec<Grant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

#[derive(Serialize)]
struct Grant {
    path: String,
    capabilities: Vec<String>,
}

/// Asks the server and prints its answer.
///
/// # Errors
/// When the server cannot be asked, or refuses.
pub async fn run(global: &Global, _: &Args) -> Result<Exit, Failure> {
    let view = ask(&Client::operator(global)?, "cannot ask the server who you are").await?;
    output::print(global.output, &view, draw)?;
    Ok(Exit::Done)
}

/// Asks the server who calls. `what` names the failure.
///
/// # Errors
/// When the server cannot be asked, or refuses.
pub async fn ask(client: &Client, what: &str) -> Result<View, Failure> {
    client.call(what, client.system().who_am_i(WhoAmIRequest {})).await.map(View::from)
}

impl From<WhoAmIResponse> for View {
    fn from(answer: WhoAmIResponse) -> Self {
        let grants = answer.grants.into_iter();
        Self {
            name: answer.name,
            issuer: answer.issuer,
            subject: answer.subject,
            roles: answer.roles,
            permissions: answer.permissions,
            grants: grants
                .map(|grant| Grant { path: grant.path, capabilities: grant.capabilities })
                .collect(),
            expires_at: output::time(answer.expires_at),
        }
    }
}

/// One line for each thing; a line for each grant, with its capabilities as `role list` shows them.
fn draw(view: &View) -> String {
    let one = |name: &str, value: &Option<String>| value.clone().map(|value| [name.to_owned(), value]);
    let all =
        |name: &str, values: &[String]| (!values.is_empty()).then(|| [name.to_owned(), values.join(", ")]);
    let mut rows = vec![["name".to_owned(), view.name.clone()]];
    rows.extend(one("issuer", &view.issuer));
    rows.extend(one("subject", &view.subject));
    rows.extend(all("roles", &view.roles));
    rows.extend(all("permissions", &view.permissions));
    rows.extend(
        view.grants
            .iter()
            .map(|grant| ["grant".to_owned(), format!("{}({})", grant.path, grant.capabilities.join(","))]),
    );
    let expires_at = view.expires_at.as_ref().map(|_| output::table_time(&view.expires_at));
    rows.extend(one("token until", &expires_at));
    output::columns(rows)
}

#[cfg(test)]
mod tests {
    use keyfold_proto::keyfold::v1::SecretGrant;

    use super::*;

    fn alice() -> View {
        View::from(WhoAmIResponse {
            name: "people/alice".into(),
            issuer: Some("people".into()),
            subject: Some("alice".into()),
            roles: vec!["key-admin".into(), "payments".into()],
            permissions: vec!["keys:read".into(), "keys:rotate".into()],
            grants: vec![SecretGrant {
                path: "payments/**".into(),
                capabilities: vec!["read".into(), "list".into()],
            }],
            expires_at: Some(prost_types::Timestamp { seconds: 1_769_846_400, nanos: 0 }),
        })
    }

    #[test]
    fn a_person_sees_each_thing_on_its_line() {
        insta::assert_snapshot!(draw(&alice()), @r"
        name         people/alice
        issuer       people
        subject      alice
        roles        key-admin, payments
        permissions  keys:read, keys:rotate
        grant        payments/**(read,list)
        token until  2026-01-31T08:00:00Z
        ");
        let nobody =
            View::from(WhoAmIResponse { name: "initial-administrator".into(), ..Default::default() });
        insta::assert_snapshot!(draw(&nobody), @"name  initial-administrator");
    }

    #[test]
    fn a_program_gets_every_field() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&alice()).unwrap(), @r#"
        {
          "name": "people/alice",
          "issuer": "people",
          "subject": "alice",
          "roles": [
            "key-admin",
            "payments"
          ],
          "permissions": [
            "keys:read",
            "keys:rotate"
          ],
          "grants": [
            {
              "path": "payments/**",
              "capabilities": [
                "read",
                "list"
              ]
            }
          ],
          "expires_at": "2026-01-31T08:00:00Z"
        }
        "#);
    }
}
