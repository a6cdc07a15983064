//! The pod that asks in all measurements, and the five secrets that it asks for.

use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use keyfold_server::authn::PodCaller;
use tokio::runtime::{Builder, Runtime};

use crate::{issuer_keys::IssuerKeys, token_stand::TokenStand};

/// Bytes of one secret.
pub const SECRET_BYTES: usize = 1024;

/// The app role that it acts under.
pub const ROLE: &str = "payments-api";

/// What it asks for, and may have.
pub const PATHS: [&str; 5] =
    ["payments/db/primary", "payments/db/replica", "payments/smtp", "payments/stripe", "payments/tls"];

/// Polls what is asynchronous; one thread, so that nothing else has to be woken.
pub static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// Keys for the algorithms that Kubernetes does not sign with.
pub static MORE_KEYS: LazyLock<IssuerKeys> = LazyLock::new(IssuerKeys::generate);

/// Who checks tokens, and mints them.
pub static STAND: LazyLock<TokenStand> = LazyLock::new(|| {
    let stand = TokenStand::new(&MORE_KEYS.jwks());
    // Reads the issuer's keys, and the driver's token for the first time.
    RUNTIME.block_on(stand.check(&stand.token("payments", "api-first")));
    stand
});

/// A token that was never seen before.
pub fn new_token() -> String {
    static PODS: AtomicUsize = AtomicUsize::new(0);
    STAND.token("payments", &format!("api-{}", PODS.fetch_add(1, Ordering::Relaxed)))
}

/// The pod, with the driver that presents it.
pub fn caller() -> PodCaller {
    RUNTIME.block_on(STAND.check(&new_token()))
}
