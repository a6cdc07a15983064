//! `format: env`: one file of `KEY="value"` lines, for `. file` in a shell, `EnvironmentFile=` of systemd and dotenv
//! readers.

use std::collections::BTreeMap;

use keyfold_core::{foreign_text::quoted, secret::SecretBytes};
use keyfold_proto::keyfold::v1::Field;

use super::{sorted, text};

/// What has a meaning between double quotes (POSIX shell, section 2.2.3; systemd's `SHELL_NEED_ESCAPE`).
const SPECIAL: [char; 4] = ['"', '\\', '`', '$'];

/// The lines, or every field that cannot be one.
pub(super) fn render(fields: &[Field]) -> Result<SecretBytes, Vec<String>> {
    let mut problems = Vec::new();
    let mut variables: BTreeMap<String, (&str, &str)> = BTreeMap::new();
    for field in sorted(fields) {
        match variable(field) {
            Ok((key, value)) => {
                if let Some((other, _)) = variables.insert(key.clone(), (&field.name, value)) {
                    problems.push(clash(other, &field.name, &key));
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(lines(&variables)) } else { Err(problems) }
}

fn clash(one: &str, other: &str, key: &str) -> String {
    format!("fields {} and {} would both be the variable {}", quoted(one), quoted(other), quoted(key))
}

/// The variable's name and value.
fn variable(field: &Field) -> Result<(String, &str), String> {
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let upper = field.name.chars().map(|c| c.to_ascii_uppercase());
    let key: String = upper.map(|c| if allowed(c) { c } else { '_' }).collect();
    if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!(
            "field {} cannot be a variable: its name is empty or begins with a digit",
            quoted(&field.name)
        ));
    }
    let value = text(field)?;
    if value.contains('\0') {
        return Err(format!("field {} holds NUL, which no variable can", quoted(&field.name)));
    }
    Ok((key, value))
}

fn lines(variables: &BTreeMap<String, (&str, &str)>) -> SecretBytes {
    // Exactly the room for all: growing would leave a copy of the values behind.
    let line_len = |(key, (_, value)): (&String, &(&str, &str))| key.len() + quoted_len(value) + 2;
    let mut out = String::with_capacity(variables.iter().map(line_len).sum());
    for (key, (_, value)) in variables {
        out.push_str(key);
        out.push('=');
        push_quoted(&mut out, value);
        out.push('\n');
    }
    SecretBytes::from(out)
}

/// Double quotes where nothing needs an escape, since every reader agrees on them. Else single quotes, in which every
/// reader takes all as it is. Only a value with both needs escapes: there a shell and systemd are exact, while some
/// dotenv readers keep a backslash.
fn quote_of(value: &str) -> char {
    if value.contains(SPECIAL) && !value.contains('\'') { '\'' } else { '"' }
}

/// Bytes that [`push_quoted`] makes of a value.
fn quoted_len(value: &str) -> usize {
    let escapes = if quote_of(value) == '"' { value.matches(SPECIAL).count() } else { 0 };
    value.len() + escapes + 2
}

fn push_quoted(out: &mut String, value: &str) {
    let quote = quote_of(value);
    out.push(quote);
    for c in value.chars() {
        if quote == '"' && SPECIAL.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out.push(quote);
}
