//! Base 32 in Douglas Crockford's alphabet: without letters that look like digits, and in either case, so that people
//! can read it to each other. Nothing is allocated here: secret text stays where its owner wipes it.

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters for that many bytes.
pub(super) const fn chars(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Appends the text of `bytes`.
pub(super) fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut held) = (0_u16, 0);
    for byte in bytes {
        bits = (bits << 8) | u16::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            out.push(character(bits >> held));
        }
    }
    if held > 0 {
        out.push(character(bits << (5 - held)));
    }
}

fn character(bits: u16) -> u8 {
    ALPHABET[usize::from(bits & 31)]
}

/// Fills all of `out`. `None` when the text has another length, other characters, or bits that are left over and not 0.
pub(super) fn decode(text: &[u8], out: &mut [u8]) -> Option<()> {
    if text.len() != chars(out.len()) {
        return None;
    }
    let (mut bits, mut held, mut places) = (0_u16, 0, out.iter_mut());
    for c in text {
        bits = (bits << 5) | value(*c)?;
        held += 5;
        if held >= 8 {
            held -= 8;
            let [_, low] = (bits >> held).to_be_bytes();
            *places.next()? = low;
        }
    }
    (bits & ((1 << held) - 1) == 0).then_some(())
}

fn value(c: u8) -> Option<u16> {
    let c = match c.to_ascii_lowercase() {
        b'o' => b'0',
        b'i' | b'l' => b'1',
        c => c,
    };
    ALPHABET.iter().position(|known| *known == c).and_then(|place| u16::try_from(place).ok())
}
