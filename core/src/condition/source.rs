//! The look at a condition's text before the engine parses it. Its parser reads a nested bracket twice for each bracket
//! around it, so that its time doubles with each; it writes a number such as `1e999999999` out in full; and a chain
//! such as `1 + 1 + 1` becomes a tree that is as deep as it is long.

use super::{ConditionError, SOURCE_BYTES_MAX};

/// The deepest nesting of brackets of all kinds.
const NESTING_MAX: usize = 10;

/// The longest number, in characters.
const NUMBER_CHARS_MAX: usize = 20;

/// The longest chain of operators, dots and indices in one expression, in characters.
const CHAIN_MAX: u32 = 100;

/// The most words, signs and literals. A line has about ten.
const TOKENS_MAX: u32 = 4096;

/// The most that the parser reads, in words, signs and literals, each as often as it does: about 0.1 s of CPU time.
const READ_MAX: u64 = 250_000;

/// Where the look has come to.
#[derive(Default)]
struct Place {
    /// Length of the chain that is being read, at each level of brackets.
    chains: [u32; NESTING_MAX + 2],
    depth: usize,
    /// How many of the open brackets have the parser read twice what is in them: those that are not round.
    read_twice: u32,
    tokens: u32,
    /// What the parser reads.
    read: u64,
    /// Whether an operand was read last. Another one right behind it begins another expression.
    after_operand: bool,
}

/// Checks what the engine's parser has no bound of its own for.
pub(super) fn check(rego: &str) -> Result<(), ConditionError> {
    if rego.len() > SOURCE_BYTES_MAX {
        let reason = format!("it is longer than {} KiB", SOURCE_BYTES_MAX / 1024);
        return Err(ConditionError::new(None, reason));
    }
    let mut place = Place::default();
    let mut line = 1;
    let mut rest = rego;
    while let Some(first) = rest.chars().next() {
        let token = token(rest, first);
        place.step(first, token).map_err(|reason| ConditionError::new(Some(line), reason))?;
        line += token.matches('\n').count() as u64;
        rest = &rest[token.len()..];
    }
    Ok(())
}

impl Place {
    fn step(&mut self, first: char, token: &str) -> Result<(), String> {
        match first {
            '#' => {}
            c if c.is_whitespace() => {}
            '(' | '[' | '{' => {
                // Behind an operand it is a call, an index or a body.
                self.chains[self.depth] += u32::from(self.after_operand);
                self.depth += 1;
                self.read_twice += u32::from(first != '(');
                self.begin();
            }
            ')' | ']' | '}' => {
                self.depth = self.depth.saturating_sub(1);
                self.read_twice = self.read_twice.saturating_sub(u32::from(first != ')'));
                self.after_operand = true;
            }
            ',' | ';' => self.begin(),
            '"' | '`' => self.operand(),
            c if is_word(c) && token != "in" => self.operand(),
            _ => {
                self.chains[self.depth] += 1;
                self.after_operand = false;
            }
        }
        if first != '#' && !first.is_whitespace() {
            self.tokens += 1;
            self.read += 1 << self.read_twice;
        }
        self.within_bounds()?;
        if first.is_ascii_digit() && is_large_number(token) {
            return Err(format!("a number has at most {NUMBER_CHARS_MAX} digits, and no exponent"));
        }
        Ok(())
    }

    fn within_bounds(&self) -> Result<(), String> {
        if self.tokens > TOKENS_MAX {
            return Err(format!("it has more than {TOKENS_MAX} words, signs and literals"));
        }
        if self.read > READ_MAX {
            return Err("there is too much in nested brackets".to_owned());
        }
        if self.depth > NESTING_MAX {
            return Err(format!("brackets are nested more than {NESTING_MAX} deep"));
        }
        if self.chains[self.depth] > CHAIN_MAX {
            return Err(format!("an expression has more than {CHAIN_MAX} operators: split it into rules"));
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.chains[self.depth] = 0;
        self.after_operand = false;
    }

    fn operand(&mut self) {
        if self.after_operand {
            self.begin();
        }
        self.after_operand = true;
    }
}

/// The string, comment, word or number that `rest` begins with, or else its first character.
fn token(rest: &str, first: char) -> &str {
    let end = match first {
        '"' => quoted_end(rest),
        '`' => rest[1..].find('`').map(|at| at + 2),
        '#' => rest.find('\n'),
        c if c.is_ascii_digit() => rest.find(|c: char| !is_word(c) && c != '.'),
        c if is_word(c) => rest.find(|c: char| !is_word(c)),
        c => Some(c.len_utf8()),
    };
    &rest[..end.unwrap_or(rest.len())]
}

/// Where a string in double quotes ends. A backslash takes the next character with it.
fn quoted_end(rest: &str) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn is_large_number(token: &str) -> bool {
    token.len() > NUMBER_CHARS_MAX || token.contains(['e', 'E'])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
