//! The authorities that a server's certificate must chain to.

use std::{fs, path::Path};

use super::NO_CLIENT;
use crate::exit::{Failure, io_reason};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates in a PEM file, as one PEM text (RFC 7468) that can be kept: without whatever else stands in the
/// file, such as a key. Whether they are certificates is told by whoever connects with them.
///
/// # Errors
/// When the file cannot be read.
pub fn read(file: &Path) -> Result<String, Failure> {
    let pem = fs::read(file).map_err(|error| {
        let reason = format!("the CA file {} cannot be read: {}", file.display(), io_reason(&error));
        Failure::usage(NO_CLIENT, reason)
    })?;
    Ok(certificates(&String::from_utf8_lossy(&pem)))
}

fn certificates(pem: &str) -> String {
    let mut found = String::new();
    let mut rest = pem;
    while let Some((body, after)) = rest.split_once(BEGIN).and_then(|(_, begun)| begun.split_once(END)) {
        let lines = [BEGIN].into_iter().chain(body.split_ascii_whitespace()).chain([END]);
        found.extend(lines.flat_map(|line| [line, "\n"]));
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken_from_a_file() {
        let one = format!("{BEGIN}\nAAAA\nBB==\n{END}\n");
        let other = format!("{BEGIN}\nCCCC\n{END}\n");
        let key = "-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----\n";
        let file = format!("# a comment\r\n{}{key}{other}{BEGIN}\nno end", one.replace('\n', "\r\n"));
        assert_eq!(certificates(&file), one + &other);
        assert_eq!(certificates(key), "");
    }
}
