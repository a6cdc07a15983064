//! The encoding of what is authenticated: a domain string, then fields whose lengths are known from before or written
//! with them, so that no two things encode alike. Integers are big-endian; strings and the domain are prefixed with
//! their length in bytes as a u32; identifiers are their 16 raw bytes.

use uuid::Uuid;

/// As long as what a secret's data key is bound to, and longer than most: growing bit by bit takes longer than all the rest.
const BYTES_TYPICAL: usize = 192;

/// An encoding in the making.
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// Begins with the domain, which says what kind of thing is encoded.
    pub(crate) fn new(domain: &str) -> Self {
        Self(Vec::with_capacity(BYTES_TYPICAL)).string(domain)
    }

    /// A text.
    pub(crate) fn string(self, text: &str) -> Self {
        self.sized(text.as_bytes())
    }

    /// Bytes of any length.
    ///
    /// # Panics
    /// On 4 GiB; all that is encoded is limited to far less where it enters.
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).expect("what is encoded is shorter than 4 GiB");
        self.bytes(&len.to_be_bytes()).bytes(bytes)
    }

    /// An identifier.
    pub(crate) fn uuid(self, id: Uuid) -> Self {
        self.bytes(id.as_bytes())
    }

    /// Only for lengths that are fixed, else two things could encode alike.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The encoding.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}
