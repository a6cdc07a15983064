//! The initial administrator: who holds a live administrator's token. The store keeps only hashes; a token has 256 random bits, so
//! a plain SHA-256 cannot be searched.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::{
    entropy::{Entropy, EntropyError},
    refusal::Refusal,
    secret::{SecretBytes, wiping_stack},
};
use ring::digest;
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use zeroize::Zeroizing;

use super::{OperatorCaller, OperatorKind};

/// What a token begins with, so that scanners of repositories and logs can find a leaked one. No JWT begins so.
const TOKEN_PREFIX: &[u8] = b"kfa_";

/// 32 bytes in base64url without padding.
const TOKEN_RANDOM_CHARS: usize = 43;

/// A live administrator's token, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminToken {
    /// What audit entries call its holder.
    pub name: String,
    /// SHA-256 of the token's text.
    pub token_hash: [u8; 32],
}

/// Whether this is an administrator's token, by its looks.
pub(super) fn is_admin_token(presented: &str) -> bool {
    presented.as_bytes().starts_with(TOKEN_PREFIX)
}

/// Who presented this token: the name of the live token that it is.
///
/// # Errors
/// `Refusal::OperatorToken`, the same for a missing, an unknown and a revoked token.
pub(super) fn administrator(
    presented: Option<&str>,
    tokens: &[AdminToken],
) -> Result<OperatorCaller, Refusal> {
    let presented = hash(presented.ok_or(Refusal::OperatorToken)?.as_bytes());
    let mut found = u64::MAX;
    for (at, token) in (0_u64..).zip(tokens) {
        found.conditional_assign(&at, token.token_hash.ct_eq(&presented));
    }
    let token = usize::try_from(found).ok().and_then(|at| tokens.get(at)).ok_or(Refusal::OperatorToken)?;
    Ok(OperatorCaller { name: token.name.clone(), kind: OperatorKind::InitialAdministrator })
}

/// A new token, to be shown once, and the hash to keep.
///
/// # Errors
/// When there is no randomness.
pub fn generate_admin_token(entropy: &dyn Entropy) -> Result<(SecretBytes, [u8; 32]), EntropyError> {
    let mut random = Zeroizing::new([0; 32]);
    entropy.fill(random.as_mut_slice())?;
    let mut token = vec![0; TOKEN_PREFIX.len() + TOKEN_RANDOM_CHARS];
    let (prefix, rest) = token.split_at_mut(TOKEN_PREFIX.len());
    prefix.copy_from_slice(TOKEN_PREFIX);
    URL_SAFE_NO_PAD.encode_slice(random.as_slice(), rest).map_err(|_| EntropyError)?;
    let token_hash = hash(&token);
    Ok((SecretBytes::new(token), token_hash))
}

fn hash(token: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    // SHA-256 takes in what it hashes by way of the stack.
    wiping_stack(|| hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref()));
    hash
}

#[cfg(test)]
mod tests {
    use keyfold_core::entropy::SystemEntropy;

    use super::*;

    fn administrators() -> (Vec<String>, Vec<AdminToken>) {
        let make = |name: &str| {
            let (token, token_hash) = generate_admin_token(&SystemEntropy).expect("randomness");
            let text = String::from_utf8(token.into_vec()).expect("text");
            (text, AdminToken { name: name.into(), token_hash })
        };
        ["first", "second", "third"].map(make).into_iter().unzip()
    }

    #[test]
    fn each_live_token_names_its_holder() {
        let (texts, tokens) = administrators();
        for (text, token) in texts.iter().zip(&tokens) {
            let caller = administrator(Some(text), &tokens).expect("a live token");
            assert_eq!(caller.name(), token.name);
        }
    }

    #[test]
    fn attack_13_missing_unknown_and_revoked_tokens_get_one_answer() {
        let (texts, mut tokens) = administrators();
        let revoked = tokens.remove(1);
        // The last character stands for four bits, so it is never B.
        let changed = format!("{}B", &texts[0][..texts[0].len() - 1]);
        for presented in [None, Some(""), Some("kfa_"), Some(texts[1].as_str()), Some(changed.as_str())] {
            assert_eq!(administrator(presented, &tokens).err(), Some(Refusal::OperatorToken));
        }
        assert_eq!(administrator(Some(&texts[0]), &[]).err(), Some(Refusal::OperatorToken));
        assert!(administrator(Some(&texts[1]), &[revoked]).is_ok());
    }

    #[test]
    fn a_token_is_recognisable_and_new_each_time() {
        let (texts, _) = administrators();
        assert!(texts.iter().all(|text| text.starts_with("kfa_") && text.len() == 47), "{texts:?}");
        assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    }
}
