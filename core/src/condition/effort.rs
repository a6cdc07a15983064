//! What compiling a condition may take, beside what `source` allows the parser. It is counted in steps and not in time, so
//! that a condition that compiles on one machine compiles on all.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value as Json;

use super::{
    ConditionError,
    module::{list, walk},
    sandbox,
};

/// The most steps of our own looks at a condition. Ordinary conditions take some thousands. A step takes less than
/// 1 µs, even in a debug build.
const STEPS_MAX: u32 = 200_000;

/// The most work of the engine's scheduler, see [`Effort::schedule`]. Ordinary conditions take some thousands.
const SCHEDULING_MAX: u64 = 4_000_000;

/// The most names that the engine holds with the comprehensions of a condition, of about 100 bytes each.
const NAMES_HELD_MAX: usize = 16_384;

/// The most CPU time, should steps be slower than they are known to be: ten times what the slowest condition takes in a
/// debug build, so that it refuses none that is taken elsewhere.
const CPU_MAX: Duration = Duration::from_secs(5);

/// Steps between two looks at the clock.
const STEPS_BETWEEN_LOOKS: u32 = 1024;

/// What one compilation has taken so far.
pub(super) struct Effort {
    steps: u32,
    scheduling: u64,
    names_held: usize,
    started: Duration,
}

impl Effort {
    /// Begins to count, for this thread.
    pub(super) fn begin() -> Self {
        Self { steps: 0, scheduling: 0, names_held: 0, started: sandbox::cpu_time() }
    }

    /// Counts a step.
    pub(super) fn step(&mut self) -> Result<(), ConditionError> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(too_much());
        }
        if self.steps.is_multiple_of(STEPS_BETWEEN_LOOKS) { self.look() } else { Ok(()) }
    }

    /// Looks at the clock.
    pub(super) fn look(&self) -> Result<(), ConditionError> {
        let taken = sandbox::cpu_time().saturating_sub(self.started);
        if taken > CPU_MAX { Err(too_much()) } else { Ok(()) }
    }

    /// Counts what the engine will take to put a rule's statements in order.
    ///
    /// For each body, it goes over all statements as often as there are statements; at each, over all names that the
    /// statement defines, once for each definition, as often as these depend on each other. And it holds the names of
    /// the rule with each comprehension.
    pub(super) fn schedule(&mut self, rule: &Json) -> Result<(), ConditionError> {
        let mut names = BTreeSet::new();
        let mut queries = 0;
        walk(rule, &mut |kind, node| {
            self.step()?;
            match kind {
                "Var" => drop(names.insert(node["value"].as_str())),
                "query" => {
                    queries += 1;
                    let statements = list(&node["stmts"]);
                    let count = u64::try_from(statements.len()).unwrap_or(u64::MAX);
                    let each = statements.iter().map(|statement| weight(statement).max(1).saturating_pow(3));
                    let all = each.fold(0, u64::saturating_add).saturating_mul(count);
                    self.scheduling = self.scheduling.saturating_add(all);
                }
                _ => {}
            }
            Ok(())
        })?;
        self.names_held += names.len() * queries;
        if self.scheduling > SCHEDULING_MAX || self.names_held > NAMES_HELD_MAX {
            return Err(too_much());
        }
        Ok(())
    }
}

/// How many names the engine finds in an expression. Below `a[x]` it looks at `a` once more for each name in the index, so
/// that a chain of these doubles with each.
fn weight(node: &Json) -> u64 {
    let sum = |weights: &mut dyn Iterator<Item = u64>| weights.fold(0, u64::saturating_add);
    match node {
        Json::Array(items) => sum(&mut items.iter().map(weight)),
        Json::Object(fields) => sum(&mut fields.iter().map(|(kind, node)| match kind.as_str() {
            "Var" => u64::from(node["value"] != "input"),
            "RefBrack" => {
                let index = weight(&node["index"]);
                weight(&node["refr"]).max(1).saturating_mul(index.saturating_add(1)).saturating_add(index)
            }
            _ => weight(node),
        })),
        _ => 0,
    }
}

fn too_much() -> ConditionError {
    ConditionError::new(
        None,
        "it takes too much to compile: use fewer statements and names in one body, and fewer variables as indices",
    )
}
