//! YAML with places: the nodes of a manifest, and where each stands in the file.
//!
//! Built from the parser's events without recursion, and within limits: a manifest may come from anyone who can open a
//! pull request.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use keyfold_core::{foreign_text::quoted, volume::Position};

/// Deepest nesting, aliases followed. Schemas of custom resources reach about 60.
const DEPTH_MAX: usize = 128;
/// Most bytes of a document, aliases written out: those of its texts, and [`NODE_BYTES`] for each node.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a node counts. About what it takes in a file, so that no file that is read at all is too large without aliases.
const NODE_BYTES: usize = 8;

/// A node. One that aliases (`*name`) stand for is there once.
#[derive(Debug)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it is written.
    pub at: Position,
    /// The file's byte that a scalar begins with.
    pub byte: Option<usize>,
    bytes: usize,
    depth: usize,
}

/// What a node is.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true`, `false`, or one of YAML 1.1's other words for them, which Kubernetes takes as such.
    Bool(bool),
    /// A number; which one is of no interest here.
    Number,
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Whether it is a block that begins with `|`.
        is_literal: bool,
    },
    /// A list.
    List(Vec<Rc<Node>>),
    /// A map, in the order of the file; each key once.
    Map(Vec<Entry>),
}

/// One entry of a map.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Where the key stands.
    pub at: Position,
    /// Its value.
    pub value: Rc<Node>,
}

impl Node {
    /// The text, when it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The items of a list; none when it is something else.
    pub fn items(&self) -> &[Rc<Node>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The entries of a map; none when it is something else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of a map under `key`, unless its value is nothing.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        let found = self.entries().iter().find(|entry| entry.key == key)?;
        (!matches!(found.value.value, Value::Null)).then_some(found)
    }

    /// The value below these keys, one map in the other.
    pub fn get(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| Some(&*node.entry(key)?.value))
    }

    /// The text below these keys.
    pub fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.text()
    }
}

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Where.
    pub at: Position,
    /// Why, on one line.
    pub reason: String,
}

/// Gives each document of `text` to `take`, and what is wrong with one that cannot be read; the next are read all the
/// same. Documents without anything in them are left out.
pub fn documents(text: &str, mut take: impl FnMut(Result<Rc<Node>, Unreadable>)) {
    let options = granit_parser::options! { emit_comments: false };
    let mut parser = Parser::new_from_str_with_options(text, options);
    loop {
        match document(&mut parser) {
            Ok(Some(root)) if matches!(root.value, Value::Null) => {}
            Ok(Some(root)) => take(Ok(root)),
            Ok(None) => return,
            Err(unreadable) => {
                take(Err(unreadable));
                if !matches!(parser.proceed_next_document(), Ok(true)) {
                    return;
                }
            }
        }
    }
}

/// The next document; nothing at the end.
fn document<'a>(parser: &mut Parser<'a, StrInput<'a>>) -> Result<Option<Rc<Node>>, Unreadable> {
    let mut builder = Builder::default();
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| syntax(&error))?;
        let root = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                let value = if builder.wants_key() {
                    Value::Text { text, is_literal: false }
                } else {
                    scalar(text, style, tag.as_deref())
                };
                builder.leaf(value, anchor, span)?
            }
            Event::SequenceStart(_, anchor, _) => builder.open(Kind::List(Vec::new()), anchor, span)?,
            Event::MappingStart(_, anchor, _) => builder.open(Kind::Map(Vec::new(), None), anchor, span)?,
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
            Event::Alias(anchor) => builder.alias(anchor, position(span))?,
            Event::StreamEnd => return Ok(None),
            _ => None,
        };
        if root.is_some() {
            return Ok(root);
        }
    }
    Ok(None)
}

fn syntax(error: &ScanError) -> Unreadable {
    Unreadable { at: at(error.marker()), reason: format!("not YAML: {}", error.info()) }
}

fn position(span: Span) -> Position {
    at(&span.start)
}

fn at(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

/// Collections that are not yet complete, the outermost first.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
}

struct Open {
    kind: Kind,
    anchor: usize,
    at: Position,
    bytes: usize,
    depth: usize,
}

enum Kind {
    List(Vec<Rc<Node>>),
    /// The entries, and a key that waits for its value.
    Map(Vec<Entry>, Option<(String, Position)>),
}

/// The document's root once it is complete.
type Root = Result<Option<Rc<Node>>, Unreadable>;

impl Builder {
    fn open(&mut self, kind: Kind, anchor: usize, span: Span) -> Root {
        let at = position(span);
        if self.open.len() == DEPTH_MAX {
            return Err(too_deep(at));
        }
        self.open.push(Open { kind, anchor, at, bytes: NODE_BYTES, depth: 0 });
        Ok(None)
    }

    fn close(&mut self) -> Root {
        // The parser ends what it began, and nothing else.
        let Some(open) = self.open.pop() else { return Ok(None) };
        let value = match open.kind {
            Kind::List(items) => Value::List(items),
            Kind::Map(entries, _) => Value::Map(merged(entries)?),
        };
        let Open { anchor, at, bytes, depth, .. } = open;
        self.complete(Node { value, at, byte: None, bytes, depth: depth + 1 }, anchor)
    }

    /// Whether the next node is a map's key: those are text, whatever they look like.
    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { kind: Kind::Map(_, None), .. }))
    }

    fn leaf(&mut self, value: Value, anchor: usize, span: Span) -> Root {
        let bytes = NODE_BYTES + if let Value::Text { text, .. } = &value { text.len() } else { 0 };
        let (at, byte) = (position(span), span.start.byte_offset());
        self.complete(Node { value, at, byte, bytes, depth: 0 }, anchor)
    }

    fn complete(&mut self, node: Node, anchor: usize) -> Root {
        let (at, node) = (node.at, Rc::new(node));
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.add(node, at)
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Root {
        match self.anchors.get(&anchor) {
            Some(node) => self.add(Rc::clone(node), at),
            None => Err(Unreadable { at, reason: "the alias stands inside what it stands for".into() }),
        }
    }

    /// Puts a node, used at `at`, into the innermost collection.
    fn add(&mut self, node: Rc<Node>, at: Position) -> Root {
        let level = self.open.len();
        let Some(open) = self.open.last_mut() else { return Ok(Some(node)) };
        open.bytes += node.bytes;
        if open.bytes > DOCUMENT_BYTES_MAX {
            return Err(Unreadable {
                at,
                reason: "the document is too large with its aliases written out".into(),
            });
        }
        open.depth = open.depth.max(node.depth);
        if level + open.depth > DEPTH_MAX {
            return Err(too_deep(at));
        }
        match &mut open.kind {
            Kind::List(items) => items.push(node),
            Kind::Map(entries, waiting) => match waiting.take() {
                Some((key, at)) => entries.push(Entry { key, at, value: node }),
                None => *waiting = Some((node.text().ok_or_else(|| no_key(at))?.to_owned(), at)),
            },
        }
        Ok(None)
    }
}

fn too_deep(at: Position) -> Unreadable {
    Unreadable { at, reason: format!("nested deeper than {DEPTH_MAX} levels") }
}

fn no_key(at: Position) -> Unreadable {
    Unreadable { at, reason: "a key must be text".into() }
}

/// The entries with those of merged maps (`<<`, YAML 1.1), of which a map's own entries go first.
fn merged(entries: Vec<Entry>) -> Result<Vec<Entry>, Unreadable> {
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == "<<");
    let mut keys = HashSet::new();
    if let Some(twice) = own.iter().find(|entry| !keys.insert(entry.key.clone())) {
        let reason = format!("the key {} stands in the map twice", quoted(&twice.key));
        return Err(Unreadable { at: twice.at, reason });
    }
    for merge in &merges {
        let maps = match &merge.value.value {
            Value::List(maps) => maps.as_slice(),
            _ => std::slice::from_ref(&merge.value),
        };
        for entry in maps.iter().flat_map(|map| map.entries()) {
            if keys.insert(entry.key.clone()) {
                own.push(entry.clone());
            }
        }
    }
    Ok(own)
}

/// A scalar as Kubernetes reads it: plain ones are numbers and words of YAML 1.1.
fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_literal = style == ScalarStyle::Literal;
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str")) {
        return Value::Text { text, is_literal };
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            Value::Bool(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            Value::Bool(false)
        }
        number if is_number(number) => Value::Number,
        _ => Value::Text { text, is_literal },
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.replace('_', "");
    let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(&digits);
    let radix = |prefix: &str, radix: u32| {
        unsigned.strip_prefix(prefix).is_some_and(|rest| u64::from_str_radix(rest, radix).is_ok())
    };
    let looks_so = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    looks_so && unsigned.parse::<f64>().is_ok()
        || radix("0x", 16)
        || radix("0o", 8)
        || radix("0b", 2)
        || matches!(unsigned.to_ascii_lowercase().as_str(), ".inf" | ".nan")
}

#[cfg(test)]
mod tests;
