//! Tokens in the kernel's keyring (keyrings(7)): in memory that is never swapped out, gone with the next boot.
//!
//! They lie in the user's persistent keyring (persistent-keyring(7)), which outlives sessions and needs none: those of
//! `su`, cron and containers have no session keyring of their own. The kernel drops it when nobody used it for some days.

use keyfold_core::secret::SecretBytes;
use linux_keyutils::{KeyError, KeyRing, KeyRingIdentifier};

/// The token kept for a server, if there is one.
///
/// # Errors
/// Why the keyring cannot be used.
pub fn token(server: &str) -> Result<Option<SecretBytes>, String> {
    let found =
        keyring().and_then(|keyring| keyring.search(&description(server))).and_then(|key| key.read_to_vec());
    match found {
        Ok(bytes) => Ok(Some(SecretBytes::new(bytes))),
        Err(error) if is_absence(error) => Ok(None),
        Err(error) => Err(reason(error)),
    }
}

/// Keeps a token for a server in place of the one before, and reads it back.
///
/// # Errors
/// Why the keyring cannot be used.
pub fn keep(server: &str, secret: &SecretBytes) -> Result<(), String> {
    keyring().and_then(|keyring| keyring.add_key(&description(server), secret.expose())).map_err(reason)?;
    match token(server)? {
        Some(kept) if kept == *secret => Ok(()),
        _ => Err("the kernel's keyring does not give back what it keeps".into()),
    }
}

/// Removes the token kept for a server, if there is one.
///
/// # Errors
/// Why the keyring cannot be used.
pub fn forget(server: &str) -> Result<(), String> {
    let found = keyring().and_then(|keyring| Ok((keyring, keyring.search(&description(server))?)));
    match found.and_then(|(keyring, key)| keyring.unlink_key(key)) {
        Err(error) if !is_absence(error) => Err(reason(error)),
        _ => Ok(()),
    }
}

/// The user's persistent keyring. It is linked to this process's own, since the kernel lets nobody read keys whose
/// keyring they do not hold. That link belongs to a thread, so each use makes it.
fn keyring() -> Result<KeyRing, KeyError> {
    KeyRing::get_persistent(KeyRingIdentifier::Process)
}

fn description(server: &str) -> String {
    format!("keyfold:{server}")
}

fn is_absence(error: KeyError) -> bool {
    matches!(error, KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked)
}

fn reason(error: KeyError) -> String {
    let reason = match error {
        KeyError::AccessDenied | KeyError::PermissionDenied => "is not permitted here",
        KeyError::QuotaExceeded => "is full (/proc/sys/kernel/keys)",
        KeyError::InvalidArguments => "does not take a token of this length",
        KeyError::OperationNotSupported => "is not built into this kernel",
        other => return format!("the kernel's keyring fails: {other}"),
    };
    format!("the kernel's keyring {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(server: &str) -> Option<Vec<u8>> {
        token(server).unwrap().map(SecretBytes::into_vec)
    }

    /// Needs a kernel with persistent keyrings, and leave to use them; fails where there is none.
    #[test]
    fn the_real_keyring_keeps_replaces_and_forgets_a_token() {
        let server = format!("https://keyring-test:{}", std::process::id());
        assert_eq!(kept(&server), None);
        for text in ["first", "second, longer"] {
            keep(&server, &SecretBytes::from(text.to_owned())).unwrap();
            let elsewhere = std::thread::scope(|scope| scope.spawn(|| kept(&server)).join().unwrap());
            assert_eq!(elsewhere.as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(kept(&format!("{server}0")), None);
        forget(&server).unwrap();
        forget(&server).unwrap();
        assert_eq!(kept(&server), None);
    }

    #[test]
    fn what_the_kernel_does_not_take_is_an_error_and_changes_nothing() {
        let server = format!("https://keyring-limit-test:{}", std::process::id());
        keep(&server, &SecretBytes::from("first".to_owned())).unwrap();
        // The kernel's limit for a key of a user is 32767 bytes.
        let error = keep(&server, &SecretBytes::new(vec![b'x'; 40_000])).unwrap_err();
        assert_eq!(error, "the kernel's keyring does not take a token of this length");
        assert_eq!(kept(&server).as_deref(), Some(&b"first"[..]));
        forget(&server).unwrap();
    }
}
