//! The findings for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Finding, Findings, Level};
use crate::exit::Exit;

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// Every finding, file by file.
    pub findings: Vec<Finding>,
    /// How many of each sort.
    pub summary: Summary,
}

/// How much was checked and found.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Files that were named.
    pub files: usize,
    /// Keyfold volumes in them.
    pub volumes: usize,
    /// Findings that are errors.
    pub errors: usize,
    /// Findings that are warnings.
    pub warnings: usize,
    /// Findings that are notes.
    pub notes: usize,
    /// Findings beyond those that are listed.
    pub left_out: usize,
}

/// A finding as programs get it.
#[derive(Serialize)]
struct View<'a> {
    rule: &'a str,
    name: &'a str,
    level: Level,
    file: &'a str,
    line: usize,
    column: usize,
    message: &'a str,
    help: &'a str,
}

/// A report as programs get it.
#[derive(Serialize)]
struct Views<'a> {
    findings: Vec<View<'a>>,
    summary: &'a Summary,
}

impl Report {
    pub(super) fn new(files: usize, volumes: usize, findings: Findings) -> Self {
        let (findings, left_out) = findings.finish();
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (errors, warnings, notes) = (count(Level::Error), count(Level::Warning), count(Level::Note));
        Self { summary: Summary { files, volumes, errors, warnings, notes, left_out }, findings }
    }

    /// How the process ends: `Usage` when something could not be read, `Found` when something cannot work.
    pub fn exit(&self) -> Exit {
        if self.findings.iter().any(|finding| *finding.rule == super::rules::UNREADABLE) {
            return Exit::Usage;
        }
        if self.summary.errors > 0 { Exit::Found } else { Exit::Done }
    }

    /// A line for each finding, one for what to do about it, and a last one that counts.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { rule, level, file, at, message, help } in &self.findings {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{file}:{}:{}: {} {}: {message}\n    {help}",
                at.line,
                at.column,
                level.name(),
                rule.id
            );
        }
        let Summary { files, volumes, errors, warnings, notes, left_out } = &self.summary;
        let checked = format!("{}, {}", counted(*files, "file"), counted(*volumes, "Keyfold volume"));
        let found = [(errors, "error"), (warnings, "warning"), (notes, "note")];
        let found = found.map(|(count, what)| counted(*count, what)).join(", ");
        let _ = write!(text, "{checked}: {found}");
        if *left_out > 0 {
            let _ = write!(text, ", and {left_out} more findings that are not shown");
        }
        text + "\n"
    }

    /// For programs.
    pub fn view(&self) -> impl Serialize {
        Views { findings: self.findings.iter().map(View::of).collect(), summary: &self.summary }
    }
}

impl<'a> View<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            rule: finding.rule.id,
            name: finding.rule.name,
            level: finding.level,
            file: &finding.file,
            line: finding.at.line,
            column: finding.at.column,
            message: &finding.message,
            help: &finding.help,
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
