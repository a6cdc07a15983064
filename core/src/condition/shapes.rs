//! Keeps the values of a condition flat: an element of a list, set or object that a condition makes is a string,
//! number, boolean or null. Values share their parts, so `b := [a, a]`, `c := [b, b]` and so on would be a value that
//! needs no memory and no time until the engine compares it, or quotes it in an error. Both are one step, which nothing
//! can stop; with flat values it is a short one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::{
    ConditionError,
    builtins::{self, Gives},
    effort::Effort,
    module::{list, only, path, refused},
};

/// How deep a value may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// A string, number, boolean or null.
    #[default]
    Scalar,
    /// A collection of scalars.
    Flat,
    /// Part of the input, or of a table that the source writes out.
    Nested,
}

impl Shape {
    fn of_element(self) -> Self {
        if self == Self::Nested { Self::Nested } else { Self::Scalar }
    }
}

/// Checks all rules. `source` is what their spans point into.
pub(super) fn check(rules: &[Json], source: &str, effort: &mut Effort) -> Result<(), ConditionError> {
    let mut shapes = Shapes::new(rules, source, effort);
    loop {
        let before = shapes.changes;
        for at in 0..rules.len() {
            shapes.rule(at)?;
        }
        if shapes.changes == before {
            break;
        }
    }
    shapes.verifying = true;
    (0..rules.len()).try_for_each(|at| shapes.rule(at))
}

/// What names may stand for: first guessed as scalars, then raised until nothing changes.
struct Shapes<'a> {
    rules: &'a [Json],
    source: &'a str,
    effort: &'a mut Effort,
    /// Those of rules.
    names: BTreeSet<String>,
    /// What functions are given anywhere, by their name and the place of the argument.
    given: BTreeMap<String, Vec<Shape>>,
    /// By the name of a rule, or the place of a rule and a name in it.
    known: BTreeMap<(Option<usize>, String), Shape>,
    changes: usize,
    verifying: bool,
    /// The rule that is being walked.
    at: usize,
}

impl<'a> Shapes<'a> {
    fn new(rules: &'a [Json], source: &'a str, effort: &'a mut Effort) -> Self {
        Self {
            rules,
            source,
            effort,
            names: rules.iter().filter_map(|rule| path(&head(rule).1["refr"])).collect(),
            given: BTreeMap::new(),
            known: BTreeMap::new(),
            changes: 0,
            verifying: false,
            at: 0,
        }
    }

    fn rule(&mut self, at: usize) -> Result<(), ConditionError> {
        self.at = at;
        let rule = &self.rules[at];
        let (kind, head) = head(rule);
        let name = path(&head["refr"]).unwrap_or_default();
        for (parameter, shape) in
            list(&head["args"]).iter().zip(self.given.get(&name).cloned().unwrap_or_default())
        {
            self.bind(parameter, shape);
        }
        if kind == "Set" {
            self.element(&head["key"])?;
            self.raise(&name, Shape::Flat);
        }
        let bodies = list(&rule["Spec"]["bodies"]);
        let assigned = bodies.iter().map(|body| &body["assign"]).chain([&head["assign"], head]);
        for value in assigned.map(|assign| &assign["value"]).filter(|value| value.is_object()) {
            let shape = self.shape(value)?;
            if self.verifying && kind == "Func" && shape != Shape::Scalar {
                return Err(refused(head, "a function gives a string, number, boolean or null"));
            }
            self.raise(&name, shape);
        }
        bodies.iter().try_for_each(|body| self.statements(&body["query"]))
    }

    fn statements(&mut self, query: &Json) -> Result<(), ConditionError> {
        for statement in list(&query["stmts"]) {
            self.effort.step()?;
            let (kind, literal) = only(&statement["literal"]);
            match kind {
                "SomeIn" | "Every" => {
                    let element =
                        self.shape(&literal[if kind == "Every" { "domain" } else { "collection" }])?;
                    self.bind(&literal["value"], element.of_element());
                    self.statements(&literal["query"])?;
                }
                "Expr" | "NotExpr" => drop(self.shape(&literal["expr"])?),
                _ => {}
            }
        }
        Ok(())
    }

    /// The shape of an expression's value. Looks at all below it too.
    fn shape(&mut self, expression: &Json) -> Result<Shape, ConditionError> {
        self.effort.step()?;
        let (kind, node) = only(expression);
        match kind {
            "Var" => Ok(self.of_name(node["value"].as_str().unwrap_or_default())),
            "Array" | "Set" | "Object" => self.literal(kind, node),
            "ArrayCompr" | "SetCompr" | "ObjectCompr" => {
                self.statements(&node["query"])?;
                ["term", "key", "value"].iter().try_for_each(|part| self.element(&node[*part]))?;
                Ok(Shape::Flat)
            }
            "RefDot" | "RefBrack" => self.reference(expression, node),
            "Call" => self.call(node),
            "AssignExpr" => self.assignment(node),
            // No expression, such as the key of `some value in …`.
            "" => Ok(Shape::Scalar),
            // A difference of sets is written as that of numbers.
            "BinExpr" | "ArithExpr" => Ok(self.shape(&node["lhs"])?.max(self.shape(&node["rhs"])?)),
            _ => {
                for part in ["lhs", "rhs", "expr", "key", "value", "collection"] {
                    self.shape(&node[part])?;
                }
                Ok(Shape::Scalar)
            }
        }
    }

    fn of_name(&self, name: &str) -> Shape {
        if name == "input" {
            Shape::Nested
        } else {
            self.known.get(&self.key(name)).copied().unwrap_or_default()
        }
    }

    /// A literal that names nothing is a table, which may be nested.
    fn literal(&mut self, kind: &str, node: &Json) -> Result<Shape, ConditionError> {
        let mut shape = Shape::Flat;
        let fields = list(&node["fields"]);
        // Keys, and elements of sets, which are their own keys.
        let elements = list(&node["items"]);
        let (keys, values) = if kind == "Set" { (elements, &[][..]) } else { (&[][..], elements) };
        keys.iter().chain(fields.iter().map(|field| &field[1])).try_for_each(|key| self.element(key))?;
        for value in values.iter().chain(fields.iter().map(|field| &field[2])) {
            if is_constant(value) {
                let inner = self.shape(value)?;
                shape = if inner == Shape::Scalar { shape } else { Shape::Nested };
            } else {
                self.element(value)?;
            }
        }
        Ok(shape)
    }

    fn element(&mut self, expression: &Json) -> Result<(), ConditionError> {
        let shape = self.shape(expression)?;
        if self.verifying && shape != Shape::Scalar {
            let reason = "an element of a list, set or object is a string, number, boolean or null; only a table of \
                          constants may be nested";
            return Err(refused(only(expression).1, reason));
        }
        Ok(())
    }

    fn reference(&mut self, expression: &Json, node: &Json) -> Result<Shape, ConditionError> {
        self.shape(&node["index"])?;
        let whole = self.shape(&node["refr"])?;
        Ok(match path(expression).filter(|path| path.starts_with("input.")) {
            Some(path) => of_input(&path),
            None => whole.of_element(),
        })
    }

    fn call(&mut self, node: &Json) -> Result<Shape, ConditionError> {
        let params = list(&node["params"]);
        let given = params.iter().map(|param| self.shape(param)).collect::<Result<Vec<_>, _>>()?;
        let name = path(&node["fcn"]).unwrap_or_default();
        if !self.names.contains(&name) {
            let first = given.first().copied().unwrap_or_default();
            return Ok(match builtins::gives(&name) {
                Some(Gives::Strings) => Shape::Flat,
                Some(Gives::Same) => first,
                Some(Gives::Element) => given.iter().skip(2).fold(first.of_element(), |a, b| a.max(*b)),
                Some(Gives::Scalar) | None => Shape::Scalar,
            });
        }
        let gives = self.of_name(&name);
        let known = self.given.entry(name).or_default();
        known.resize(known.len().max(given.len()), Shape::default());
        for (known, given) in known.iter_mut().zip(given) {
            self.changes += usize::from(given > *known);
            *known = given.max(*known);
        }
        Ok(gives)
    }

    fn assignment(&mut self, node: &Json) -> Result<Shape, ConditionError> {
        let (left, right) = (self.shape(&node["lhs"])?, self.shape(&node["rhs"])?);
        self.bind(&node["lhs"], right);
        if node["op"] != "ColEq" {
            self.bind(&node["rhs"], left);
        }
        Ok(Shape::Scalar)
    }

    /// Raises the names in a pattern, such as `x` or `[x, y]`, or in a span, which is one name.
    fn bind(&mut self, pattern: &Json, shape: Shape) {
        let (kind, node) = only(pattern);
        match kind {
            "Var" => self.raise(node["value"].as_str().unwrap_or_default(), shape),
            "Array" => list(&node["items"]).iter().for_each(|item| self.bind(item, shape.of_element())),
            "Object" => {
                list(&node["fields"]).iter().for_each(|field| self.bind(&field[2], shape.of_element()))
            }
            _ => {
                let at = |edge: &str| pattern[edge].as_u64().and_then(|at| usize::try_from(at).ok());
                if let (Some(start), Some(end)) = (at("start"), at("end")) {
                    self.raise(self.source.get(start..end).unwrap_or_default(), shape);
                }
            }
        }
    }

    fn raise(&mut self, name: &str, shape: Shape) {
        let known = self.known.entry(self.key(name)).or_default();
        if shape > *known {
            *known = shape;
            self.changes += 1;
        }
    }

    fn key(&self, name: &str) -> (Option<usize>, String) {
        ((!self.names.contains(name)).then_some(self.at), name.to_owned())
    }
}

fn of_input(path: &str) -> Shape {
    match path {
        "input.caller" | "input.driver" | "input.request" => Shape::Nested,
        "input.time" | "input.request.paths" => Shape::Flat,
        _ => match path.strip_prefix("input.caller.").or_else(|| path.strip_prefix("input.driver.")) {
            Some("service_account" | "pod" | "node") => Shape::Flat,
            _ => Shape::Scalar,
        },
    }
}

fn is_constant(expression: &Json) -> bool {
    let (kind, node) = only(expression);
    match kind {
        "String" | "RawString" | "Number" | "Bool" | "Null" => true,
        "Array" | "Set" => list(&node["items"]).iter().all(is_constant),
        "Object" => {
            list(&node["fields"]).iter().all(|field| is_constant(&field[1]) && is_constant(&field[2]))
        }
        _ => false,
    }
}

/// A rule's kind and its head; a default is its own head.
pub(super) fn head(rule: &Json) -> (&str, &Json) {
    rule.get("Default").map_or_else(|| only(&rule["Spec"]["head"]), |default| ("Default", default))
}
