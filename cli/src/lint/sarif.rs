//! The findings as SARIF 2.1.0 (OASIS), for code-scanning services.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Finding, Level, RULES, Report};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// What files from standard input are called: a URI must not be `-`.
const STDIN: &str = "stdin";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    version: &'a str,
    runs: [Run<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'a> {
    tool: Tool<'a>,
    // Columns count characters, as elsewhere in the output.
    column_kind: &'a str,
    results: Vec<SarifResult<'a>>,
}

#[derive(Serialize)]
struct Tool<'a> {
    driver: Driver<'a>,
}

#[derive(Serialize)]
struct Driver<'a> {
    name: &'a str,
    version: &'a str,
    rules: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    id: &'a str,
    name: &'a str,
    short_description: Text,
    default_configuration: Configuration,
}

#[derive(Serialize)]
struct Configuration {
    level: Level,
}

#[derive(Serialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult<'a> {
    rule_id: &'a str,
    rule_index: usize,
    level: Level,
    message: Text,
    locations: [Location; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location {
    physical_location: PhysicalLocation,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalLocation {
    artifact_location: ArtifactLocation,
    region: Region,
}

#[derive(Serialize)]
struct ArtifactLocation {
    uri: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: usize,
    start_column: usize,
}

/// A report as a SARIF log.
pub fn sarif(report: &Report) -> impl Serialize + '_ {
    let rules = RULES.iter().map(|rule| Descriptor {
        id: rule.id,
        name: rule.name,
        short_description: Text { text: rule.summary.to_owned() },
        default_configuration: Configuration { level: rule.level },
    });
    let driver = Driver { name: "keyfold", version: env!("CARGO_PKG_VERSION"), rules: rules.collect() };
    let run = Run {
        tool: Tool { driver },
        column_kind: "unicodeCodePoints",
        results: report.findings.iter().map(result).collect(),
    };
    Log { schema: SCHEMA, version: "2.1.0", runs: [run] }
}

fn result(finding: &Finding) -> SarifResult<'_> {
    let location = PhysicalLocation {
        artifact_location: ArtifactLocation { uri: uri(&finding.file) },
        region: Region { start_line: finding.at.line, start_column: finding.at.column },
    };
    SarifResult {
        rule_id: finding.rule.id,
        rule_index: RULES.iter().position(|rule| rule == finding.rule).unwrap_or_default(),
        level: finding.level,
        message: Text { text: format!("{}. {}.", finding.message, finding.help) },
        locations: [Location { physical_location: location }],
    }
}

/// A path as a URI reference (RFC 3986): what is neither unreserved nor `/` is percent-encoded.
fn uri(path: &str) -> String {
    if path == "-" {
        return STDIN.to_owned();
    }
    let mut uri = String::with_capacity(path.len());
    // `//host` would be another computer's.
    let path = if path.starts_with("//") { path.trim_start_matches('/') } else { path };
    for byte in path.strip_prefix("./").unwrap_or(path).bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(byte.into())
            }
            // Writing to a string does not fail.
            _ => drop(write!(uri, "%{byte:02X}")),
        }
    }
    uri
}
