//! An approver's private key: Ed25519 in a file of their own. It never leaves the file but to sign.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use keyfold_core::{
    entropy::{Entropy as _, SystemEntropy},
    object::PublicKey,
    plan::PlanHash,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rsa::pkcs8::{
    AlgorithmIdentifierRef, LineEnding, ObjectIdentifier, PrivateKeyInfo, SecretDocument,
    der::{Encode as _, asn1::OctetStringRef, zeroize::Zeroizing},
};
use rustix::fs::FileType;

use crate::{
    credentials::private::refuse_others,
    exit::{Failure, io_reason},
};

/// RFC 8410, section 3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// RFC 7468, section 10.
const PEM_LABEL: &str = "PRIVATE KEY";
/// Far longer than such a file is.
const FILE_LEN_MAX: u64 = 4096;

const NO_KEY: &str = "cannot make a key";

/// An approver's key.
pub struct ApproverKey(Ed25519KeyPair);

impl ApproverKey {
    /// Makes a key and writes it to a new file of mode 0600: PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519`
    /// writes it.
    ///
    /// # Errors
    /// When the file exists already or cannot be written; without randomness.
    pub fn generate(file: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::usage(NO_KEY, format!("{} cannot be written: {}", file.display(), io_reason(&error)))
                .advise("Name a file that does not exist yet")
        };
        let (key, pem) = new_key().map_err(|why| Failure::new(crate::exit::Exit::Internal, NO_KEY, why))?;
        let mut opened =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        opened.write_all(pem.as_bytes()).and_then(|()| opened.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// The key in a file that is its owner's alone.
    ///
    /// # Errors
    /// When others may read it, or it holds something else. `what` names the failure.
    pub fn read(what: &str, file: &Path) -> Result<Self, Failure> {
        let failed = |why: String| {
            Failure::usage(what, why)
                .advise("Make a key with keyfold approval keygen, and keep it to yourself")
        };
        let unreadable = |error: &io::Error| {
            failed(format!("the key file {} cannot be read: {}", file.display(), io_reason(error)))
        };
        // A pipe in its place must not make this wait.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open(file);
        let opened = opened.map_err(|error| unreadable(&error))?;
        refuse_others(&opened, file, FileType::RegularFile, 0o600).map_err(failed)?;
        let pem = read_text(opened).map_err(|error| unreadable(&error))?;
        let key = parse(&pem)
            .ok_or_else(|| failed(format!("{} holds no Ed25519 key (PKCS#8, PEM)", file.display())))?;
        Ok(key)
    }

    /// The public half, as approval rules name it.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    /// The signature on a plan.
    pub fn sign(&self, hash: PlanHash) -> Vec<u8> {
        self.0.sign(&hash.signed_message()).as_ref().to_vec()
    }
}

fn new_key() -> Result<(ApproverKey, Zeroizing<String>), String> {
    let mut seed = Zeroizing::new([0; 32]);
    SystemEntropy.fill(&mut *seed).map_err(|error| error.to_string())?;
    let key = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|error| error.to_string())?;
    let document = encoded(&*seed).map_err(|error| error.to_string())?;
    let pem = document.to_pem(PEM_LABEL, LineEnding::LF).map_err(|error| error.to_string())?;
    Ok((ApproverKey(key), pem))
}

/// RFC 8410, section 7: the seed as an octet string within the octet string that PKCS#8 has for a key.
fn encoded(seed: &[u8]) -> Result<SecretDocument, rsa::pkcs8::der::Error> {
    let inner = Zeroizing::new(OctetStringRef::new(seed)?.to_der()?);
    let algorithm = AlgorithmIdentifierRef { oid: ED25519, parameters: None };
    SecretDocument::encode_msg(&PrivateKeyInfo::new(algorithm, &inner))
}

fn read_text(file: File) -> io::Result<Zeroizing<String>> {
    // The buffer does not grow: that would leave a copy.
    let mut text = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize + 1));
    file.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(pem: &str) -> Option<ApproverKey> {
    let (label, document) = SecretDocument::from_pem(pem.trim()).ok()?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document.as_bytes()).ok()?;
    (label == PEM_LABEL).then_some(ApproverKey(key))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alice.key");
        let made = ApproverKey::generate(&file).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        let read = ApproverKey::read("cannot sign", &file).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(read.public(), made.public());
        let hash = PlanHash::of(b"a plan");
        assert!(hash.is_signed(&made.public(), &read.sign(hash)));
        assert!(ApproverKey::generate(&file).is_err(), "it is not overwritten");
    }

    /// Made by `openssl genpkey -algorithm ed25519`; the public half by `openssl pkey -pubout -outform DER`.
    #[test]
    fn a_key_of_openssl_is_taken() {
        let key = parse(OPENSSL_KEY).expect("a key");
        assert_eq!(String::from(key.public()), OPENSSL_PUBLIC);
    }

    #[test]
    fn what_others_may_read_or_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, OPENSSL_KEY).unwrap();
        for (mode, taken) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o660, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(ApproverKey::read("cannot sign", &file).is_ok(), taken, "{mode:o}");
        }
        assert!(ApproverKey::read("cannot sign", folder.path()).is_err(), "a folder");
        assert!(ApproverKey::read("cannot sign", &folder.path().join("none")).is_err());
        for text in ["", "kfa_token", &OPENSSL_KEY.replace("PRIVATE", "PUBLIC"), &"A".repeat(1 << 20)] {
            assert!(parse(text).is_none());
        }
    }

    const OPENSSL_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIIZdJ98RFHqyaZWBEBo+i4dPjJFbKeRaeXbZSR//HsAW
-----END PRIVATE KEY-----
";
    const OPENSSL_PUBLIC: &str = "7ijTWBIDPQ2Xl7GwdBnfvF+fUrZFweIj/fKIs2UfJ4A=";
}
