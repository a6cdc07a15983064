//! Secret types cannot leak through a common trait, are wiped, and compare by content.

use keyfold_core::payload::Fields;
use keyfold_core::secret::{Key, KeyLengthError, SecretBytes};
use zeroize::ZeroizeOnDrop;

/// Fails to compile, for want of a single candidate, if `$type` implements any of the traits.
macro_rules! assert_implements_none_of {
    ($type:ty: $($forbidden:path),+ $(,)?) => {$(
        const _: fn() = || {
            trait AmbiguousIf<Marker> {
                fn check() {}
            }
            impl<T: ?Sized> AmbiguousIf<()> for T {}
            struct Implements;
            impl<T: ?Sized + $forbidden> AmbiguousIf<Implements> for T {}
            let _ = <$type as AmbiguousIf<_>>::check;
        };
    )+};
}

macro_rules! assert_keeps_its_material {
    ($($type:ty),+ $(,)?) => {$(
        assert_implements_none_of!(
            $type: std::fmt::Debug, std::fmt::Display, Clone, serde::Serialize, std::ops::Deref, AsRef<[u8]>,
            std::borrow::Borrow<[u8]>,
        );
    )+};
}

assert_keeps_its_material!(SecretBytes, Key, Fields);

#[test]
fn secrets_are_wiped_on_drop() {
    fn wiped<T: ZeroizeOnDrop>() {}
    wiped::<SecretBytes>();
    wiped::<Key>();
}

#[test]
fn secret_bytes_move_in_and_out_without_a_copy() {
    let text = "hunter2".to_owned();
    let address = text.as_ptr();
    let secret = SecretBytes::from(text);
    assert_eq!(secret.expose().as_ptr(), address);
    assert_eq!((secret.len(), secret.is_empty()), (7, false));
    let bytes = secret.into_vec();
    assert_eq!(bytes.as_ptr(), address);
}

#[test]
fn a_moved_key_stays_at_its_address() {
    let key = Key::from_bytes(&[7; 32]);
    let address = key.expose().as_ptr();
    let moved = Box::new(key);
    assert_eq!(moved.expose().as_ptr(), address);
}

#[test]
fn secrets_are_equal_by_content_alone() {
    assert!(SecretBytes::new(vec![1, 2]) == SecretBytes::new(vec![1, 2]));
    assert!(SecretBytes::new(vec![1, 2]) != SecretBytes::new(vec![1, 3]));
    assert!(SecretBytes::new(vec![1, 2]) != SecretBytes::new(vec![1]));
    assert!(Key::from_bytes(&[7; 32]) == Key::from_bytes(&[7; 32]));
    assert!(Key::from_bytes(&[7; 32]) != Key::from_bytes(&[8; 32]));
}

#[test]
fn only_32_bytes_make_a_key() {
    assert!(Key::try_from([7; 32].as_slice()).is_ok_and(|key| key.expose() == &[7; 32]));
    for len in [0, 16, 31, 33, 44, 64] {
        assert_eq!(Key::try_from(vec![7; len].as_slice()).err(), Some(KeyLengthError { len }));
    }
}
