//! The look at a condition's syntax tree before it runs: only what conditions may use, and no recursion, which the
//! engine would follow until the stack ends.

use std::collections::{BTreeMap, BTreeSet};

use regorus::Engine;
use serde_json::Value as Json;

use super::{
    ConditionError,
    builtins::{self, Patterns, REGEX_MATCH, STRING_BYTES_MAX},
    effort::Effort,
    shapes::{self, head},
};

/// The most rules. Each may use the next, so this bounds the stack.
const RULES_MAX: usize = 128;

/// The most parts of a path that means something: `input.caller.service_account.name` has four.
const PATH_PARTS_MAX: u32 = 6;

/// What the names in a condition stand for.
#[derive(Default)]
struct Names {
    /// With how many parameters each has.
    functions: BTreeMap<String, usize>,
    /// Which names each rule uses.
    uses: BTreeMap<String, BTreeSet<String>>,
}

/// Checks the module that the engine has parsed, and compiles its patterns.
pub(super) fn check(
    engine: &mut Engine,
    source: &str,
    effort: &mut Effort,
) -> Result<Patterns, ConditionError> {
    // serde_json reads at most 128 levels, which are about 50 of Rego: so deep is the stack of whoever walks the tree.
    let modules =
        serde_json::to_vec(engine.get_modules()).and_then(|json| serde_json::from_slice::<Json>(&json));
    let module = &modules
        .map_err(|_| ConditionError::new(None, "an expression is nested too deeply: split it into rules"))?
        [0];
    let rules = list(&module["rules"]);
    if rules.len() > RULES_MAX {
        return Err(ConditionError::new(None, format!("it has more than {RULES_MAX} rules")));
    }
    rules.iter().try_for_each(|rule| effort.schedule(rule))?;
    list(&module["imports"]).iter().try_for_each(import)?;
    let names = names(rules)?;
    let mut patterns = Patterns::default();
    walk(&module["rules"], &mut |kind, node| expression(kind, node, &names, &mut patterns))?;
    effort.look()?;
    let mut followed = BTreeMap::new();
    if let Some(rule) = names.uses.keys().find_map(|rule| recursion(rule, &names.uses, &mut followed)) {
        return Err(ConditionError::new(
            None,
            format!("rule {rule} uses itself, directly or through others"),
        ));
    }
    shapes::check(rules, source, effort)?;
    Ok(patterns)
}

fn import(import: &Json) -> Result<(), ConditionError> {
    let name = path(&import["refr"]).unwrap_or_default();
    if name == "rego.v1" || name == "future.keywords" || name.starts_with("future.keywords.") {
        return Ok(());
    }
    Err(refused(import, "a condition imports nothing but rego.v1: write input.caller in full"))
}

/// Finds the rules' names, and that `allow` is what a condition needs.
fn names(rules: &[Json]) -> Result<Names, ConditionError> {
    let mut names = Names::default();
    let mut has_allow = false;
    for rule in rules {
        let (kind, head) = head(rule);
        let name = path(&head["refr"]).filter(|name| !name.contains('.'));
        let name = name
            .ok_or_else(|| refused(head, "a rule has a plain name: write a comprehension for an object"))?;
        let parameters = list(&head["args"]);
        if name == "allow" && (!parameters.is_empty() || !matches!(kind, "Compr" | "Default")) {
            return Err(refused(head, "allow must be true or false: write `allow if { … }`"));
        }
        has_allow |= name == "allow" && kind == "Compr";
        if kind == "Func" || !parameters.is_empty() {
            names.functions.entry(name.clone()).or_insert(parameters.len());
        }
        // Without the rule's own name, which stands in its head.
        let uses = names.uses.entry(name).or_default();
        let mut note = |kind: &str, node: &Json| {
            uses.extend((kind == "Var").then(|| node["value"].as_str().unwrap_or_default().to_owned()));
            Ok(())
        };
        for part in [&head["args"], &head["assign"], &head["key"], &rule["Spec"]["bodies"]] {
            walk(part, &mut note)?;
        }
    }
    if has_allow { Ok(names) } else { Err(ConditionError::new(None, "it has no rule `allow`")) }
}

fn expression(kind: &str, node: &Json, names: &Names, patterns: &mut Patterns) -> Result<(), ConditionError> {
    match kind {
        "Var" if node["value"] == "data" => {
            Err(refused(node, "a condition has no data: name its rules by their plain names"))
        }
        "String" | "RawString" if node["value"].as_str().is_none_or(|text| text.len() > STRING_BYTES_MAX) => {
            Err(refused(node, &format!("a string has at most {STRING_BYTES_MAX} bytes")))
        }
        "with_mods" => Err(refused(&node[0], "a condition does not use `with`")),
        "Call" => call(node, names, patterns),
        _ => Ok(()),
    }
}

fn call(node: &Json, names: &Names, patterns: &mut Patterns) -> Result<(), ConditionError> {
    let name = path(&node["fcn"]).ok_or_else(|| refused(node, "a function is called by its name"))?;
    let parameters = names.functions.get(&name).copied().or_else(|| builtins::parameters(&name));
    let parameters =
        parameters.ok_or_else(|| refused(node, &format!("{name} is not a function that conditions have")))?;
    // The engine would take one more as a name for the result.
    if list(&node["params"]).len() != parameters {
        return Err(refused(node, &format!("{name} takes {parameters} arguments")));
    }
    if name != REGEX_MATCH {
        return Ok(());
    }
    let (kind, literal) = only(&node["params"][0]);
    let Some(text) = literal["value"].as_str().filter(|_| matches!(kind, "String" | "RawString")) else {
        return Err(refused(node, "the pattern of regex.match must be a literal string"));
    };
    patterns.add(text).map_err(|reason| refused(node, &reason))
}

/// A rule that is used by what it uses, found from `rule` on. `followed` says of each rule whether all that it uses has been
/// looked at.
fn recursion<'a>(
    rule: &'a str,
    uses: &'a BTreeMap<String, BTreeSet<String>>,
    followed: &mut BTreeMap<&'a str, bool>,
) -> Option<&'a str> {
    let used = uses.get(rule)?;
    match followed.insert(rule, false) {
        Some(false) => return Some(rule),
        Some(true) => {}
        None => {
            if let Some(found) = used.iter().find_map(|name| recursion(name, uses, followed)) {
                return Some(found);
            }
        }
    }
    followed.insert(rule, true);
    None
}

/// Calls `visit` with the name and the value of each field below `node`; a kind of expression is the name of a field.
pub(super) fn walk<'a>(
    node: &'a Json,
    visit: &mut impl FnMut(&'a str, &'a Json) -> Result<(), ConditionError>,
) -> Result<(), ConditionError> {
    match node {
        Json::Array(items) => items.iter().try_for_each(|item| walk(item, visit)),
        Json::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            visit(name, value)?;
            walk(value, visit)
        }),
        _ => Ok(()),
    }
}

/// `a.b` of a variable and the fields below it; nothing for any other expression, nor for one that is longer than any that
/// means something.
pub(super) fn path(reference: &Json) -> Option<String> {
    path_of_parts(reference, PATH_PARTS_MAX)
}

fn path_of_parts(reference: &Json, parts: u32) -> Option<String> {
    let (kind, node) = only(reference);
    let parts = parts.checked_sub(1)?;
    let below = |field: &Json| Some(format!("{}.{}", path_of_parts(&node["refr"], parts)?, field.as_str()?));
    match kind {
        "Var" => node["value"].as_str().map(str::to_owned),
        "RefDot" => below(&node["field"][1]),
        "RefBrack" => below(&node["index"]["String"]["value"]),
        _ => None,
    }
}

/// The only field of a node, which names its kind.
pub(super) fn only(node: &Json) -> (&str, &Json) {
    let field = node.as_object().and_then(|fields| fields.iter().next());
    field.map_or(("", &Json::Null), |(name, value)| (name, value))
}

pub(super) fn list(node: &Json) -> &[Json] {
    node.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn refused(node: &Json, reason: &str) -> ConditionError {
    ConditionError::new(node["span"]["line"].as_u64(), reason)
}
