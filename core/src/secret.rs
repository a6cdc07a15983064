//! Types for material that must never be shown, copied by accident, or left in memory.
//!
//! They are wiped when dropped and have no `Debug`, `Display`, `Clone`, `Serialize` or `Deref`, so that leaking
//! one is a compile error. Reading takes an explicit `.expose()`.

use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, zeroize_stack};

use crate::entropy::{Entropy, EntropyError};

/// Bytes of a secret, of any length. Wiped on drop, spare capacity included.
///
/// It cannot be printed, cloned or serialised:
///
/// ```compile_fail
/// let shown = format!("{:?}", keyfold_core::secret::SecretBytes::new(vec![1]));
/// ```
/// ```compile_fail
/// let shown = format!("{}", keyfold_core::secret::SecretBytes::new(vec![1]));
/// ```
/// ```compile_fail
/// let copy = Clone::clone(&keyfold_core::secret::SecretBytes::new(vec![1]));
/// ```
/// ```compile_fail
/// let text = serde_json::to_string(&keyfold_core::secret::SecretBytes::new(vec![1]));
/// ```
/// ```compile_fail
/// let bytes: &[u8] = &*keyfold_core::secret::SecretBytes::new(vec![1]);
/// ```
/// It can be read where the reader says so:
///
/// ```
/// let secret = keyfold_core::secret::SecretBytes::new(vec![1]);
/// let bytes: &[u8] = secret.expose();
/// ```
#[derive(ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes over `bytes` without copying them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes in clear.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves the bytes out without copying them. The caller takes over the duty to wipe them.
    pub fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl From<String> for SecretBytes {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

/// In constant time for a given length; the length itself is not hidden.
impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

/// A 256-bit symmetric key. Boxed, so that moving it leaves no copy behind; wiped on drop.
///
/// It cannot be printed, cloned or serialised:
///
/// ```compile_fail
/// let shown = format!("{:?}", keyfold_core::secret::Key::from_bytes(&[7; 32]));
/// ```
/// ```compile_fail
/// let shown = format!("{}", keyfold_core::secret::Key::from_bytes(&[7; 32]));
/// ```
/// ```compile_fail
/// let copy = Clone::clone(&keyfold_core::secret::Key::from_bytes(&[7; 32]));
/// ```
/// ```compile_fail
/// let text = serde_json::to_string(&keyfold_core::secret::Key::from_bytes(&[7; 32]));
/// ```
/// ```compile_fail
/// let bytes: &[u8; 32] = &*keyfold_core::secret::Key::from_bytes(&[7; 32]);
/// ```
/// It can be read where the reader says so:
///
/// ```
/// let key = keyfold_core::secret::Key::from_bytes(&[7; 32]);
/// let bytes: &[u8; 32] = key.expose();
/// ```
#[derive(ZeroizeOnDrop)]
pub struct Key(Box<[u8; Key::LEN_BYTES]>);

impl Key {
    /// Length of every key of the hierarchy.
    pub const LEN_BYTES: usize = 32;

    /// A fresh random key.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let (key, filled) = Self::fill_with(|place| entropy.fill(place));
        filled.map(|()| key)
    }

    /// Copies `bytes`; wiping the original is up to its owner.
    pub fn from_bytes(bytes: &[u8; Self::LEN_BYTES]) -> Self {
        Self::fill_with(|place| place.copy_from_slice(bytes)).0
    }

    /// The key in clear.
    pub fn expose(&self) -> &[u8; Self::LEN_BYTES] {
        &self.0
    }

    /// A key that `fill` writes into its final place, so that no copy passes over the stack; with `fill`'s result.
    pub(crate) fn fill_with<T>(fill: impl FnOnce(&mut [u8]) -> T) -> (Self, T) {
        let mut key = Self(Box::new([0; Self::LEN_BYTES]));
        let result = fill(key.0.as_mut_slice());
        (key, result)
    }
}

/// A 256-bit key wherever it is kept: in a [`Key`], or in memory that is locked and left out of dumps.
pub trait KeyMaterial: Send + Sync {
    /// The key in clear.
    fn expose(&self) -> &[u8; Key::LEN_BYTES];
}

impl KeyMaterial for Key {
    fn expose(&self) -> &[u8; Self::LEN_BYTES] {
        self.expose()
    }
}

impl TryFrom<&[u8]> for Key {
    type Error = KeyLengthError;

    fn try_from(bytes: &[u8]) -> Result<Self, KeyLengthError> {
        let bytes = bytes.try_into().map_err(|_| KeyLengthError { len: bytes.len() })?;
        Ok(Self::from_bytes(bytes))
    }
}

/// In constant time.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for Key {}

/// What should be a key has the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key must be {} bytes long, not {len}", Key::LEN_BYTES)]
pub struct KeyLengthError {
    /// Length found, in bytes.
    pub len: usize,
}

/// As deep as sealing and opening were seen to go, and half as much again: 20 KiB in a build without optimisation, 8 KiB with. Not
/// more, for a pod's start writes over it twelve times, and what it writes over takes the place of other things in the processor's
/// nearest cache.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 24 * 1024 } else { 12 * 1024 };

/// Does `work`, then writes over the stack that it used. For what derives from keys: ring's HKDF and HMAC contexts and
/// the key schedule of AES leave key bytes there, which no type wipes. What `work` returns should hold no material by
/// itself, only on the heap.
pub fn wiping_stack<T>(work: impl FnOnce() -> T) -> T {
    // Not inlined, so that its frame lies where the writing begins.
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let result = apart(work);
    zeroize_stack::<STACK_BYTES>();
    result
}
