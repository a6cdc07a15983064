//! Places inside a text of a file as places of the file.

use keyfold_core::volume::Position;

use super::yaml::{Node, Value};

/// A file and its lines, to find places inside texts.
pub struct Source<'a> {
    text: &'a str,
    lines: Vec<&'a str>,
}

impl<'a> Source<'a> {
    /// Of a file's text.
    pub fn new(text: &'a str) -> Self {
        Self { text, lines: text.lines().collect() }
    }

    /// Where the place `inner` of a text stands in the file: exactly for a block that begins with `|` and for a text on
    /// one line that needs no escapes; else where the text begins.
    pub fn within(&self, node: &Node, inner: Position) -> Position {
        let Value::Text { text, is_literal } = &node.value else { return node.at };
        let Some(line) = text.lines().nth(inner.line - 1) else { return node.at };
        let found = if *is_literal {
            // To the parser a block begins with its first line that is not empty.
            let empty = text.lines().take_while(|line| line.is_empty()).count();
            self.in_block(node.at.line.saturating_sub(empty), line, inner)
        } else {
            self.in_line(node, line, inner)
        };
        found.unwrap_or(node.at)
    }

    fn in_block(&self, first_line: usize, line: &str, inner: Position) -> Option<Position> {
        let number = first_line + inner.line - 1;
        let indent = self.lines.get(number.checked_sub(1)?)?.strip_suffix(line)?;
        // A block is indented with spaces (YAML 1.2.2, section 6.1), so bytes are columns.
        Some(Position { line: number, column: indent.len() + inner.column })
    }

    /// Begins at the node's byte, not at its column: counting to it would take as long as the line, which may be all of
    /// the file.
    fn in_line(&self, node: &Node, line: &str, inner: Position) -> Option<Position> {
        let rest = self.text.get(node.byte?..)?;
        let opening = usize::from(rest.starts_with(['"', '\'']));
        let is_here = inner.line == 1 && rest[opening..].starts_with(line);
        let column = node.at.column + opening + inner.column - 1;
        is_here.then_some(Position { line: node.at.line, column })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::yaml::documents, *};

    fn at(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    fn place(text: &str, inner: Position) -> Position {
        let mut found = None;
        documents(text, |document| found = document.ok());
        Source::new(text).within(found.unwrap().get(&["s"]).unwrap(), inner)
    }

    #[test]
    fn places_inside_a_text_are_places_of_the_file() {
        assert_eq!(place("a: 1\ns: |\n  - x\n\n  - y: z\n", at(3, 3)), at(5, 5));
        assert_eq!(place("s: |2-\n    - x\n  - y\n", at(2, 1)), at(3, 3));
        assert_eq!(place("s: | # why\n   - x\n", at(1, 3)), at(2, 6));
        assert_eq!(place("s: |\n\n\n   - x\n   - y\n", at(4, 3)), at(5, 6));
        assert_eq!(place("{q: 1, s: '[{path: a/b}]'}", at(1, 2)), at(1, 13));
        assert_eq!(place("s: \"[{path: a/b}]\"", at(1, 3)), at(1, 7));
        assert_eq!(place("s: plain", at(1, 2)), at(1, 5));
        assert_eq!(place("{é: ü, s: 'plain'}", at(1, 2)), at(1, 13));
        // What is folded or escaped has no such places: then it is where the text begins.
        assert_eq!(place("s: >\n  - x\n  - y\n", at(2, 1)), at(2, 3));
        assert_eq!(place("s: \"- x\\n- y\"", at(2, 1)), at(1, 4));
        assert_eq!(place("s: \"\\x61\"", at(1, 1)), at(1, 4));
        assert_eq!(place("s: |\n  - x\n", at(9, 1)), at(2, 3));
    }
}
