//! When a token ends, as it says itself. Nothing is verified: the server does that; this only spares a call that
//! cannot succeed.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::secret::SecretBytes;
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// A token this near its end may be over when the server looks at it: the call takes time, and clocks differ.
const MARGIN: Duration = Duration::seconds(30);

/// Any other claim may be there; `exp` twice is an error.
#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970 (RFC 7519, section 4.1.4). Servers of Keyfold take whole ones only.
    exp: i64,
}

/// Whether a token is worth sending at `now`. One that is no JWT does not say when it ends; a JWT that does not say
/// it clearly is never worth it.
pub fn is_fresh(token: &SecretBytes, now: OffsetDateTime) -> bool {
    let mut parts = token.expose().split(|byte| *byte == b'.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return true;
    };
    ends_at(payload).is_some_and(|end| end - now > MARGIN)
}

fn ends_at(payload: &[u8]) -> Option<OffsetDateTime> {
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
    let claims: Claims = serde_json::from_slice(&json).ok()?;
    OffsetDateTime::from_unix_timestamp(claims.exp).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-31 08:00 UTC);

    fn jwt(payload: &str) -> SecretBytes {
        SecretBytes::from(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload)))
    }

    fn with_exp(exp: i64) -> SecretBytes {
        jwt(&format!(r#"{{"iss": "https://issuer", "exp": {exp}, "aud": ["keyfold"]}}"#))
    }

    #[test]
    fn a_jwt_is_fresh_until_half_a_minute_before_its_end() {
        let now = NOW.unix_timestamp();
        assert!(is_fresh(&with_exp(now + 31), NOW));
        for exp in [now + 30, now, now - 1, 0, -1, i64::MIN] {
            assert!(!is_fresh(&with_exp(exp), NOW), "{exp}");
        }
    }

    #[test]
    fn a_jwt_that_does_not_say_clearly_when_it_ends_is_not_fresh() {
        let later = NOW.unix_timestamp() + 3600;
        for payload in [
            "{}".into(),
            "null".into(),
            "not json".into(),
            format!(r#"{{"exp": "{later}"}}"#),
            format!(r#"{{"exp": {later}.5}}"#),
            format!(r#"{{"exp": {later}e0}}"#),
            format!(r#"{{"exp": {later}, "exp": {later}}}"#),
            format!(r#"{{"exp": {}}}"#, i64::MAX),
            format!(r#"{{"exp": {later}}} {{}}"#),
        ] {
            assert!(!is_fresh(&jwt(&payload), NOW), "{payload}");
        }
        assert!(!is_fresh(&SecretBytes::from("a.b!.c".to_owned()), NOW));
    }

    #[test]
    fn a_token_that_is_no_jwt_does_not_say_when_it_ends() {
        for token in ["kfa_abc", "a.b", "a.b.c.d"] {
            assert!(is_fresh(&SecretBytes::from(token.to_owned()), NOW), "{token}");
        }
    }
}
