//! The installation: making it, and saying how it is.

use std::{fs, path::Path, sync::Arc};

use keyfold_core::{
    audit::{Actor, Operation, Outcome},
    refusal::Refusal,
    rights::Rights,
    secret::SecretBytes,
};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    authn::{AdminToken, OperatorCaller, OperatorKind, generate_admin_token},
    broker::{Broker, Call, root::ShownShares},
    error::Error,
    keys::{keyring::Keyring, rwk::Rwk},
    seal::State,
    store::{
        Isolation, admin_tokens, audit, ca_certificates, installation, integrity_head,
        keks::{self, SYSTEM_PURPOSES},
        keysets, root_wrapping_keys, schema_version,
    },
};

/// How audit entries name the operator that `init` makes.
pub const INITIAL_ADMINISTRATOR: &str = "initial-administrator";

/// Shortest bootstrap token that is taken: nobody must guess it.
const BOOTSTRAP_TOKEN_BYTES_MIN: usize = 16;

/// A new installation.
pub struct Initialized {
    /// Its id.
    pub installation: Uuid,
    /// The initial administrator's token, kept nowhere else.
    pub admin_token: SecretBytes,
    /// Of the root key, of custody `shamir`.
    pub root_shares: ShownShares,
}

/// How the server is.
pub struct Status {
    /// What it can do.
    pub state: State,
    /// For operators only.
    pub details: Option<StatusDetails>,
}

/// What only operators are told.
pub struct StatusDetails {
    /// The installation's id.
    pub installation: Uuid,
    /// The schema's version.
    pub schema_version: i64,
    /// Names the root key in use.
    pub root_key_id: Uuid,
    /// Entries in the audit log.
    pub audit_entries: i64,
    /// Whether the token that `init` showed is still valid.
    pub initial_administrator_active: bool,
}

impl Broker {
    /// Creates the installation. Works once, and only for who can read the server's bootstrap token.
    ///
    /// # Errors
    /// `Refused` for a wrong bootstrap token or an initialised installation, `Sealed` without database or root key.
    pub async fn initialize(
        &self,
        call: &Call,
        bootstrap: &str,
        expected: Option<&Path>,
    ) -> Result<Initialized, Error> {
        if matches!(self.seal.state(), State::Sealed(_))
            && let State::Sealed(why) = self.refresh().await
        {
            return Err(Error::Sealed(why));
        }
        let anyone = || call.record(Actor::unknown(), Operation::SystemInitialize {});
        if let Err(refusal) = check_bootstrap_token(bootstrap, expected) {
            return self.audited(anyone(), Err(refusal.into())).await;
        }
        if matches!(self.seal.state(), State::Serving(_)) {
            return self.audited(anyone(), Err(Refusal::AlreadyInitialized.into())).await;
        }
        let root = &self.seal.roots().make().await?;
        let made = self
            .store
            .tx("system.initialize", Isolation::Serializable, |mut tx| async move {
                if installation::find(&mut tx).await?.is_some() {
                    return Err(Refusal::AlreadyInitialized.into());
                }
                let at = self.now();
                let id = self.entropy.uuid()?;
                installation::insert(&mut tx, id, at).await?;
                let (row, rwk) = Rwk::make(id, 1, root, at, &*self.entropy)?;
                root_wrapping_keys::insert(&mut tx, &row).await?;
                let keyring = Keyring::new(Arc::new(rwk));
                self.seal.hand_over(keyring.rwk());
                let made = SYSTEM_PURPOSES.map(|purpose| keyring.new_kek(None, purpose, 1, &*self.entropy));
                let mut keys = made.into_iter().collect::<Result<Vec<_>, _>>()?;
                keys.iter_mut().for_each(|key| key.state = "active".to_owned());
                keyring.load_new_system(&keys)?;
                let macs = keyring.row_macs();
                integrity_head::insert(&mut tx, macs).await?;
                for purpose in SYSTEM_PURPOSES {
                    keysets::insert(&mut tx, self.entropy.uuid()?, None, purpose, at).await?;
                }
                for key in &keys {
                    keks::insert_active(&mut tx, macs, key, at).await?;
                }
                let authority = self.new_authority(&keyring, 1, "active")?;
                ca_certificates::insert(&mut tx, macs, &authority).await?;
                let (admin_token, token_hash) = generate_admin_token(&*self.entropy)?;
                let admin = AdminToken { name: INITIAL_ADMINISTRATOR.to_owned(), token_hash };
                admin_tokens::insert(&mut tx, macs, self.entropy.uuid()?, &admin, at).await?;
                let actor = Actor::administrator(INITIAL_ADMINISTRATOR);
                let record = call.record(actor, Operation::SystemInitialize {});
                self.append_guarded(&mut tx, macs, &record, &Outcome::Allowed).await?;
                tx.commit((id, admin_token)).await
            })
            .await;
        let made = match made {
            Err(error) if error.is_answer() => self.audited(anyone(), Err(error)).await?,
            made => made?,
        };
        self.refresh().await;
        let (installation, admin_token) = made;
        Ok(Initialized { installation, admin_token, root_shares: ShownShares::of(root)? })
    }

    /// Looks at the database and the root key anew; with enough recovery shares, recovers.
    pub async fn refresh(&self) -> State {
        self.seal.refresh(&self.store).await;
        if let Some((waiting, key)) = self.seal.recovery_key() {
            self.recover(&waiting, &key).await;
        }
        self.check_at_start().await;
        self.seal.state()
    }

    /// How the server is, as it last looked; with an operator's token also the details.
    ///
    /// # Errors
    /// `Refused` when a token is given and is not an operator's.
    pub async fn status(&self, call: &Call) -> Result<Status, Error> {
        let state = self.seal.state();
        let details = match (&state, call.token()) {
            (State::Serving(keyring), Some(_)) => Some(self.status_details(call, keyring).await?),
            _ => None,
        };
        Ok(Status { state, details })
    }

    async fn status_details(&self, call: &Call, keyring: &Keyring) -> Result<StatusDetails, Error> {
        self.operate(call, Operation::SystemStatus {}, |mut work| async move {
            let admins = admin_tokens::live(work.tx(), keyring.row_macs()).await?;
            let details = StatusDetails {
                installation: keyring.installation(),
                schema_version: schema_version(),
                root_key_id: keyring.root_key_id(),
                audit_entries: audit::size(work.tx()).await?,
                initial_administrator_active: admins.iter().any(|admin| admin.name == INITIAL_ADMINISTRATOR),
            };
            work.allow(details).await
        })
        .await
    }

    /// Who the operator is, and what they may do.
    ///
    /// # Errors
    /// A refusal when no operator role binds them.
    pub async fn whoami(&self, call: &Call) -> Result<(OperatorCaller, Rights), Error> {
        self.operate(call, Operation::SystemWhoami {}, |work| async move {
            let found = (work.operator().clone(), work.rights().clone());
            work.allow(found).await
        })
        .await
    }

    /// Makes the initial administrator's token void for good. Says whether it was live.
    ///
    /// # Errors
    /// `Conflict` when the initial administrator asks: another operator must be able to come in first.
    pub async fn revoke_initial_administrator(&self, call: &Call) -> Result<bool, Error> {
        let keyring = &self.seal.keyring()?;
        let operation = Operation::SystemRevokeInitialAdministrator {};
        self.operate(call, operation, |mut work| async move {
            if matches!(work.operator().kind(), OperatorKind::InitialAdministrator) {
                return Err(Error::Conflict(
                    "the initial administrator cannot revoke itself: sign in as an operator whose role allows \
                     operators:write and revoke it as such, so that it is certain that somebody still can"
                        .into(),
                ));
            }
            let revoked = admin_tokens::revoke(work.tx(), keyring.row_macs(), INITIAL_ADMINISTRATOR, self.now()).await?;
            work.allow(revoked).await
        })
        .await
    }
}

fn check_bootstrap_token(presented: &str, expected: Option<&Path>) -> Result<(), Refusal> {
    let expected = expected.and_then(|path| fs::read(path).ok()).map(Zeroizing::new);
    let expected = expected
        .as_ref()
        .map(|token| token.trim_ascii())
        .filter(|token| token.len() >= BOOTSTRAP_TOKEN_BYTES_MIN);
    match expected {
        Some(expected) if bool::from(expected.ct_eq(presented.trim().as_bytes())) => Ok(()),
        _ => Err(Refusal::BootstrapToken),
    }
}
