//! The functions that conditions have. None reads anything but its arguments; each takes time in proportion to them,
//! and makes at most a string of 1 KiB or the pieces of one.

use std::{cell::Cell, collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};
use regorus::{Engine, Value};

use super::ConditionError;

/// The longest string that a condition may write or make, in bytes. A path has at most seven more.
pub(super) const STRING_BYTES_MAX: usize = 1024;

/// The largest automaton of a pattern, in bytes. Time to match is its states times the string's length: at most some
/// milliseconds. Patterns of names and addresses stay far below.
const PATTERN_BYTES_MAX: usize = 32 * 1024;

/// The smallest size, in bytes, that is told apart. The library tells whether an automaton is larger than a limit, and
/// not how large it is: so the limit is doubled until it is not.
const PATTERN_BYTES_MIN: usize = 1024;

/// The largest automata of all patterns of a condition together, in bytes.
const PATTERNS_BYTES_MAX: usize = 256 * 1024;

/// The most patterns in a condition.
const PATTERNS_MAX: usize = 32;

/// The longest pattern, in bytes. Reading one takes time for its length, however small its automaton.
const PATTERN_TEXT_BYTES_MAX: usize = 256;

/// What a function gives.
#[derive(Clone, Copy)]
pub(super) enum Gives {
    /// A string, number, boolean or null.
    Scalar,
    /// A collection of strings.
    Strings,
    /// What its first argument is.
    Same,
    /// An element of its first argument, or its third argument.
    Element,
}

use Gives::{Element, Same, Scalar, Strings};

/// All functions, with how many arguments they take. Three are ours, in the place of the engine's: bounded, or compiled
/// once. The others are the engine's. Left out beside I/O, randomness and time: what multiplies (`numbers.range`,
/// `replace`, `sprintf`, `bits.lsh`, `array.concat`, `json.marshal`, `net.cidr_expand`), and what conditions do not
/// need.
pub(super) const FUNCTIONS: [(&str, usize, Gives); 38] = [
    ("abs", 1, Scalar),
    ("ceil", 1, Scalar),
    (CONCAT, 2, Scalar),
    ("contains", 2, Scalar),
    ("count", 1, Scalar),
    ("endswith", 2, Scalar),
    ("floor", 1, Scalar),
    ("indexof", 2, Scalar),
    ("is_array", 1, Scalar),
    ("is_boolean", 1, Scalar),
    ("is_null", 1, Scalar),
    ("is_number", 1, Scalar),
    ("is_object", 1, Scalar),
    ("is_set", 1, Scalar),
    ("is_string", 1, Scalar),
    ("lower", 1, Scalar),
    ("max", 1, Element),
    ("min", 1, Element),
    (CIDR_CONTAINS, 2, Scalar),
    ("object.get", 3, Element),
    ("object.keys", 1, Strings),
    (REGEX_MATCH, 2, Scalar),
    ("round", 1, Scalar),
    ("sort", 1, Same),
    ("split", 2, Strings),
    ("startswith", 2, Scalar),
    ("strings.count", 2, Scalar),
    ("strings.reverse", 1, Scalar),
    ("substring", 3, Scalar),
    ("sum", 1, Scalar),
    ("trim", 2, Scalar),
    ("trim_left", 2, Scalar),
    ("trim_prefix", 2, Scalar),
    ("trim_right", 2, Scalar),
    ("trim_space", 1, Scalar),
    ("trim_suffix", 2, Scalar),
    ("type_name", 1, Scalar),
    ("upper", 1, Scalar),
];

const CONCAT: &str = "concat";
const CIDR_CONTAINS: &str = "net.cidr_contains";

/// Takes its pattern as a literal, so that it is compiled with the condition.
pub(super) const REGEX_MATCH: &str = "regex.match";

/// The patterns of a condition.
#[derive(Default)]
pub(super) struct Patterns {
    by_text: HashMap<String, Regex>,
    /// Size of all automata, rounded up.
    bytes: usize,
}

thread_local! {
    // Each evaluation has its own thread, so this is of one evaluation.
    static MET_STRING_LIMIT: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str);

/// How many arguments a function takes; none if conditions do not have it.
pub(super) fn parameters(name: &str) -> Option<usize> {
    FUNCTIONS.iter().find(|(known, ..)| *known == name).map(|(_, parameters, _)| *parameters)
}

/// What a function gives.
pub(super) fn gives(name: &str) -> Option<Gives> {
    FUNCTIONS.iter().find(|(known, ..)| *known == name).map(|(.., gives)| *gives)
}

/// Whether this thread's evaluation made a string that is too long.
pub(super) fn met_string_limit() -> bool {
    MET_STRING_LIMIT.get()
}

impl Patterns {
    /// Compiles a pattern; its time to match is linear in the string.
    pub(super) fn add(&mut self, text: &str) -> Result<(), String> {
        if self.by_text.contains_key(text) {
            return Ok(());
        }
        if self.by_text.len() == PATTERNS_MAX {
            return Err(format!("a condition has at most {PATTERNS_MAX} patterns: join them by |"));
        }
        if text.len() > PATTERN_TEXT_BYTES_MAX {
            return Err(format!("a pattern has at most {PATTERN_TEXT_BYTES_MAX} bytes"));
        }
        let (pattern, bytes) = compiled(text)?;
        self.bytes += bytes;
        if self.bytes > PATTERNS_BYTES_MAX {
            return Err(
                "the patterns are too large together: write them without large repetitions".to_owned()
            );
        }
        self.by_text.insert(text.to_owned(), pattern);
        Ok(())
    }
}

/// A pattern, and the least limit that its automaton keeps to, in bytes.
fn compiled(text: &str) -> Result<(Regex, usize), String> {
    let mut limit = PATTERN_BYTES_MIN;
    loop {
        match RegexBuilder::new(text).size_limit(limit).build() {
            Ok(pattern) => return Ok((pattern, limit)),
            Err(regex::Error::CompiledTooBig(_)) if limit < PATTERN_BYTES_MAX => limit *= 2,
            Err(regex::Error::CompiledTooBig(_)) => {
                return Err("the pattern is too large: write it without large repetitions".to_owned());
            }
            // The last line names the fault; those before draw the pattern.
            Err(other) => {
                let text = other.to_string();
                return Err(format!("the pattern is wrong: {}", text.lines().last().unwrap_or_default()));
            }
        }
    }
}

/// Gives the engine our functions.
pub(super) fn install(engine: &mut Engine, patterns: Patterns) -> Result<(), ConditionError> {
    let refused = |error| ConditionError::of_engine(&error);
    // Each evaluation clones what it may call.
    let patterns = Arc::new(patterns);
    let regex_match = move |args: Vec<Value>| Ok(regex_match(&patterns, &args)?);
    engine.add_extension(CONCAT.to_owned(), 2, Box::new(|args| Ok(concat(&args)?))).map_err(refused)?;
    engine
        .add_extension(CIDR_CONTAINS.to_owned(), 2, Box::new(|args| Ok(cidr_contains(&args)?)))
        .map_err(refused)?;
    engine.add_extension(REGEX_MATCH.to_owned(), 2, Box::new(regex_match)).map_err(refused)
}

/// `concat(delimiter, strings)`: the strings of an array or a set in one.
fn concat(args: &[Value]) -> Result<Value, Refused> {
    const WANTS: Refused = Refused("concat wants a string, and an array or a set of strings");
    let [delimiter, Value::Array(_) | Value::Set(_)] = args else { return Err(WANTS) };
    let delimiter = text(delimiter).ok_or(WANTS)?;
    let mut joined = String::new();
    let mut add = |(at, value): (usize, &Value)| {
        let parts = [if at == 0 { "" } else { delimiter }, text(value).ok_or(WANTS)?];
        if joined.len() + parts[0].len() + parts[1].len() > STRING_BYTES_MAX {
            MET_STRING_LIMIT.set(true);
            return Err(Refused("concat makes too long a string"));
        }
        joined.extend(parts);
        Ok(())
    };
    match &args[1] {
        Value::Set(set) => set.iter().enumerate().try_for_each(&mut add)?,
        Value::Array(array) => array.iter().enumerate().try_for_each(&mut add)?,
        _ => return Err(WANTS),
    }
    Ok(Value::from(joined))
}

/// `net.cidr_contains(cidr, address)`; the second may be a CIDR too.
fn cidr_contains(args: &[Value]) -> Result<Value, Refused> {
    const WANTS: Refused =
        Refused("net.cidr_contains wants a CIDR such as 10.0.0.0/8, and an address or a CIDR");
    let [network, inner] = args else { return Err(WANTS) };
    let network: IpNet = text(network).and_then(|text| text.parse().ok()).ok_or(WANTS)?;
    let inner = text(inner).ok_or(WANTS)?;
    let address = || inner.parse::<IpAddr>().map(IpNet::from).ok();
    let inner = inner.parse::<IpNet>().ok().or_else(address).ok_or(WANTS)?;
    Ok(Value::from(network.contains(&inner)))
}

/// `regex.match(pattern, string)`.
fn regex_match(patterns: &Patterns, args: &[Value]) -> Result<Value, Refused> {
    const WANTS: Refused = Refused("regex.match wants two strings, the first of them a literal");
    let [pattern, value] = args else { return Err(WANTS) };
    let pattern = text(pattern).and_then(|text| patterns.by_text.get(text)).ok_or(WANTS)?;
    Ok(Value::from(pattern.is_match(text(value).ok_or(WANTS)?)))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}
