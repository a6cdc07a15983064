//! RSA keys of smart cards and TPMs by Infineon whose primes can be found: CVE-2017-15361, "Return of Coppersmith's
//! attack" (Nemec and others, 2017).

/// The generator of which such primes are powers, modulo every small prime.
const GENERATOR: u32 = 65537;

/// Odd primes that divide the modulus in use for keys of every length (table 1 of the paper).
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103,
    107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// Whether a modulus, big-endian, has the fingerprint of such a key. Of other keys one in 2^27 has it by chance.
pub(super) fn is_weak(modulus: &[u8]) -> bool {
    PRIMES.iter().all(|&prime| {
        let residue = modulus.iter().fold(0, |rest, &byte| (rest * 256 + u32::from(byte)) % prime);
        is_power_of_generator(residue, prime)
    })
}

fn is_power_of_generator(residue: u32, prime: u32) -> bool {
    let mut power = 1;
    loop {
        if power == residue {
            return true;
        }
        power = power * (GENERATOR % prime) % prime;
        if power == 1 {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `65537^exponent`, big-endian: a power of the generator, so one modulo every prime.
    fn power(exponent: usize) -> Vec<u8> {
        let mut little_endian = vec![1_u8];
        for _ in 0..exponent {
            // Times 2^16 + 1.
            let shifted = [&[0, 0], little_endian.as_slice()].concat();
            let mut carry = 0;
            little_endian = shifted
                .iter()
                .enumerate()
                .map(|(at, &byte)| {
                    let sum = u16::from(byte) + u16::from(*little_endian.get(at).unwrap_or(&0)) + carry;
                    carry = sum >> 8;
                    sum.to_be_bytes()[1]
                })
                .collect();
            little_endian.extend((carry > 0).then_some(1));
        }
        little_endian.into_iter().rev().collect()
    }

    #[test]
    fn attack_03_a_modulus_of_a_weak_generator_is_known_by_its_fingerprint() {
        for exponent in [1, 2, 3, 127, 128] {
            let modulus = power(exponent);
            assert!(is_weak(&modulus), "{exponent}");
            let changed = [&modulus[..modulus.len() - 1], &[modulus[modulus.len() - 1] ^ 2]].concat();
            assert!(!is_weak(&changed), "{exponent}");
        }
        assert_eq!(power(2), [1, 0, 2, 0, 1]);
    }
}
