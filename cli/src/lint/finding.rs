//! What was found, and where.

use keyfold_core::volume::Position;

use super::rules::{Level, Rule};

/// Most findings that are kept; nobody reads more.
const FINDINGS_MAX: usize = 10_000;

/// One thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Which rule it breaks.
    pub rule: &'static Rule,
    /// How much it matters here.
    pub level: Level,
    /// The file, as it was named.
    pub file: String,
    /// Where in the file.
    pub at: Position,
    /// What is wrong, without a final stop.
    pub message: String,
    /// What to do about it, without a final stop.
    pub help: String,
}

/// Everything that was found, file by file.
#[derive(Debug, Default)]
pub struct Findings {
    file: String,
    list: Vec<Finding>,
    left_out: usize,
}

impl Findings {
    /// What is added from now on is of this file.
    pub fn begin(&mut self, file: &str) {
        self.sort_file();
        file.clone_into(&mut self.file);
    }

    /// Adds a finding of the rule's own level.
    pub fn add(
        &mut self,
        rule: &'static Rule,
        at: Position,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add_at(rule, rule.level, at, message, help);
    }

    /// Adds one of another level.
    pub fn add_at(
        &mut self,
        rule: &'static Rule,
        level: Level,
        at: Position,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        if self.list.len() == FINDINGS_MAX {
            self.left_out += 1;
            return;
        }
        let (message, help) = (message.into(), help.into());
        self.list.push(Finding { rule, level, file: self.file.clone(), at, message, help });
    }

    /// Adds what another list holds, as of this file.
    pub fn append(&mut self, other: Self) {
        for finding in other.list {
            self.add_at(finding.rule, finding.level, finding.at, finding.message, finding.help);
        }
    }

    /// How many of them are errors.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|finding| finding.level == Level::Error).count()
    }

    /// All findings: in the order of the files, and in each of their places. And how many more there were.
    pub fn finish(mut self) -> (Vec<Finding>, usize) {
        self.sort_file();
        (self.list, self.left_out)
    }

    fn sort_file(&mut self) {
        let first =
            self.list.iter().rposition(|finding| finding.file != self.file).map_or(0, |last| last + 1);
        self.list[first..].sort_by_key(|finding| (finding.at, finding.rule.id));
    }
}
