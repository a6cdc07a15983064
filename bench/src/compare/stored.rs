//! What is stored, the same on every side: path and value follow from a secret's number, so each answer can be checked
//! without keeping what was written.

use std::sync::LazyLock;

use fastrand::Rng;

/// Bytes of each secret's value.
pub(crate) const VALUE_BYTES: usize = 1024;
/// Secrets that a pod's start reads.
pub(crate) const SECRETS_PER_POD: usize = 5;
/// The keyspace of Keyfold; the first folder in the peer's KV engine.
pub(crate) const KEYSPACE: &str = "bench";
/// Secrets of one prefix: as many as one of Keyfold's pages holds, the largest folder that one call can list.
pub(crate) const PREFIX_SECRETS: u32 = 1000;
/// The secret's only field.
pub(crate) const FIELD: &str = "value";

/// Digits of the number that a value begins with, and what follows it.
const NUMBER_LEN: usize = 8;
const FILLING_LEN: usize = VALUE_BYTES - NUMBER_LEN;
const FILLINGS_LEN: usize = 1 << 20;
/// A prime number, so that secrets of neighbouring numbers have little in common.
const FILLING_STRIDE: usize = 7919;

/// The characters of values: none needs an escape in JSON, which would make the peer's answers longer.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The path of a secret: `bench/dNNN/sNNNNNNN`.
pub(crate) fn path(secret: u32) -> String {
    format!("{}/s{secret:07}", prefix(secret / PREFIX_SECRETS))
}

/// The path that the secrets of a folder begin with.
pub(crate) fn prefix(folder: u32) -> String {
    format!("{KEYSPACE}/d{folder:03}")
}

/// The value of a secret: its number, and characters that look random, so that nothing on the way can compress it.
pub(crate) fn value(secret: u32) -> String {
    format!("{secret:0NUMBER_LEN$}{}", filling(secret))
}

/// Whether it is the value of a secret. As quick as it can be told: the server shares the processors.
pub(crate) fn is_value(secret: u32, value: &[u8]) -> bool {
    value.split_at_checked(NUMBER_LEN).is_some_and(|(number, rest)| {
        rest == filling(secret).as_bytes() && number == format!("{secret:0NUMBER_LEN$}").as_bytes()
    })
}

/// What follows the number in a secret's value, somewhere in characters that all secrets share.
fn filling(secret: u32) -> &'static str {
    let at = (secret as usize).wrapping_mul(FILLING_STRIDE) % (FILLINGS_LEN - FILLING_LEN);
    &FILLINGS[at..at + FILLING_LEN]
}

static FILLINGS: LazyLock<String> = LazyLock::new(|| {
    let mut rng = Rng::with_seed(1);
    (0..FILLINGS_LEN).map(|_| char::from(ALPHABET[rng.usize(..ALPHABET.len())])).collect()
});

/// The secrets of one pod, anywhere among those that are stored.
pub(crate) fn of_a_pod(rng: &mut Rng, stored: u32) -> [u32; SECRETS_PER_POD] {
    let (start, stride) = (rng.u32(..stored), stored / SECRETS_PER_POD as u32);
    std::array::from_fn(|at| (start + at as u32 * stride) % stored)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_value_is_the_secrets_own_and_always_the_same() {
        assert_eq!(value(7).len(), VALUE_BYTES);
        assert_eq!(value(7), value(7));
        assert_ne!(value(7), value(8));
        assert!(is_value(7, value(7).as_bytes()));
        for wrong in
            [value(8), value(7)[1..].to_owned(), format!("{}8", &value(7)[..VALUE_BYTES - 1]), String::new()]
        {
            assert!(!is_value(7, wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_pod_reads_different_secrets_that_are_stored() {
        let mut rng = Rng::with_seed(1);
        for stored in [5, 100, 10_003] {
            for _ in 0..1000 {
                let secrets = BTreeSet::from(of_a_pod(&mut rng, stored));
                assert_eq!(secrets.len(), SECRETS_PER_POD);
                assert!(secrets.iter().all(|secret| *secret < stored));
            }
        }
    }
}
