//! The internal certificate authority: turning it, signing for drivers and for this server, and what drivers' certificates
//! must agree with.

use std::sync::Arc;

use keyfold_core::{
    audit::{Actor, Operation, Record},
    envelope::{self, CaKeyContext},
    identity::WorkloadIdentity,
    key::Purpose,
    object::Kind,
    refusal::Refusal,
    secret::SecretBytes,
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    broker::{APPEND, Basis, Broker, Call, ROUNDS_MAX, note_authentication_error},
    ca::{self, Bundle, Keys, ServerCertificate, SignedCertificate, Signer, Step},
    config::InternalTls,
    directory::Snapshot,
    error::Error,
    keys::keyring::{Keyring, number, stored},
    listener::{ClientCertificate, driver_uri},
    store::{
        Tx,
        ca_certificates::{self, CaCertificate},
    },
};

/// A new authority that does not sign yet.
pub struct Rotated {
    /// Its version.
    pub version: u32,
    /// When it begins to sign.
    pub active_at: OffsetDateTime,
}

/// A driver's certificate, and whom the driver is to trust.
pub struct IssuedCertificate {
    /// The certificate.
    pub signed: SignedCertificate,
    /// The authorities, in PEM.
    pub bundle: String,
}

impl Broker {
    /// Signs a certificate for the driver that calls, for its node alone.
    ///
    /// # Errors
    /// A refusal when the token is no driver's or names no node; `Invalid` for an unusable request; `Sealed`; those of
    /// Postgres.
    pub async fn issue_driver_certificate(
        &self,
        call: &Call,
        request: &[u8],
    ) -> Result<IssuedCertificate, Error> {
        self.seal.keyring()?;
        let mut snapshot = self.directory.current().await?;
        let mut rounds = 1;
        loop {
            let operation = Operation::CaIssueDriverCertificate { serial: None, expires_at: None };
            let (mut record, mut basis) = (call.record(Actor::unknown(), operation), Basis::default());
            let signed = self.sign_for_driver(call, request, &snapshot, &mut record, &mut basis).await;
            // The entry is durable before the certificate leaves. Nobody is refused, nor allowed, by what another replica
            // has changed a moment ago.
            let changed = match &signed {
                Err(Error::Refused(_)) if rounds < ROUNDS_MAX => self.directory.newer_than(&snapshot).await?,
                _ => None,
            };
            let done = match changed {
                Some(newer) => {
                    (snapshot, rounds) = (newer, rounds + 1);
                    continue;
                }
                None => self.audited_on(basis, record, signed).await,
            };
            match done {
                Err(Error::Busy) if rounds < ROUNDS_MAX => {
                    match self.directory.newer_than(&snapshot).await? {
                        Some(newer) => (snapshot, rounds) = (newer, rounds + 1),
                        None => return Err(Error::Busy),
                    }
                }
                done => {
                    let bundle = self.bundle().await?.pem.clone();
                    return Ok(IssuedCertificate { signed: done?.0, bundle });
                }
            }
        }
    }

    async fn sign_for_driver(
        &self,
        call: &Call,
        request: &[u8],
        snapshot: &Snapshot,
        record: &mut Record,
        basis: &mut Basis,
    ) -> Result<SignedCertificate, Error> {
        let token = call.token().unwrap_or_default();
        let driver = self
            .authenticator
            .driver_caller(token, &snapshot.issuers)
            .await
            .map_err(|error| note_authentication_error(record, error))?;
        let identity = driver.identity();
        record.actor = Actor::Pod(Arc::clone(identity));
        let _places = self.callers.of_driver(&driver)?;
        call.check_certificate(identity, false, self.now())?;
        self.review_driver(identity, token, snapshot).await?;
        let node = identity.node.as_ref().ok_or(Refusal::DriverNodeUnknown)?;
        let uri = driver_uri(&identity.issuer, node).ok_or(Refusal::DriverNodeUnknown)?;
        let public_key = ca::public_key(request)?;
        basis.objects.extend(snapshot.standing(Kind::Issuer, &identity.issuer));
        let signer = self.signer().await?;
        let signed =
            signer.driver(&public_key, &uri, self.certificate_lifetime(), self.now(), &*self.entropy)?;
        record.operation = Operation::CaIssueDriverCertificate {
            serial: Some(signed.serial.clone()),
            expires_at: signed.expires_at.format(&Rfc3339).ok(),
        };
        Ok(signed)
    }

    /// The authorities to trust. Whoever asks for a server's certificate is told, so there is nothing to hide.
    ///
    /// # Errors
    /// `Sealed`, as long as this replica has read none; those of Postgres.
    pub async fn bundle(&self) -> Result<Arc<Bundle>, Error> {
        if self.authorities.bundle().authorities.is_empty() {
            self.ca_look().await?;
        }
        Ok(self.authorities.bundle())
    }

    /// A certificate of this server, with a key of its own.
    ///
    /// # Errors
    /// `Sealed`; those of Postgres; `Corrupt` when the authority's key does not open.
    pub async fn server_certificate(&self, names: &InternalTls) -> Result<ServerCertificate, Error> {
        let signer = self.signer().await?;
        signer.server(names, self.certificate_lifetime(), self.now(), &*self.entropy)
    }

    /// Makes the next authority, which is trusted at once and signs after the overlap.
    ///
    /// # Errors
    /// `Conflict` while there is one already; a refusal; `Sealed`; those of Postgres.
    pub async fn rotate_authority(&self, call: &Call) -> Result<Rotated, Error> {
        let keyring = &self.seal.keyring()?;
        let rotated = self
            .operate(call, Operation::CaRotate { version: None }, |mut work| async move {
                ca_certificates::lock(work.tx()).await?;
                let rows = ca_certificates::all(work.tx(), keyring.row_macs()).await?;
                if let Some(next) = rows.iter().find(|row| row.state == "next") {
                    return Err(Error::Conflict(format!(
                        "version {} is being taken up already: it is trusted, and signs from {} on",
                        next.version,
                        (next.created_at + self.overlap()).format(&Rfc3339).unwrap_or_default()
                    )));
                }
                let made = self.add_authority(work.tx(), keyring, &rows, "next").await?;
                let version = number(made.version)?;
                work.state(Operation::CaRotate { version: Some(version) });
                work.allow(Rotated { version, active_at: made.created_at + self.overlap() }).await
            })
            .await?;
        self.ca_look().await?;
        Ok(rotated)
    }

    /// Takes on how the authorities are, after what is due to them was done. A server whose clock is wrong does nothing: it
    /// must not end what others trust.
    ///
    /// # Errors
    /// `Sealed`; those of Postgres; `Integrity` when a row is not what a server wrote.
    pub(crate) async fn ca_look(&self) -> Result<(), Error> {
        if self.is_clock_right() {
            return self.ca_pass().await;
        }
        let keyring = &self.seal.keyring()?;
        let rows = ca_certificates::all(&mut *self.store.connection().await?, keyring.row_macs()).await?;
        self.authorities.take(&rows, self.now());
        Ok(())
    }

    /// Does what is due to the authorities by this server's clock, and takes on how they are then. Each replica may; they
    /// wait for each other.
    ///
    /// # Errors
    /// `Sealed`; those of Postgres; `Integrity` when a row is not what a server wrote.
    pub async fn ca_pass(&self) -> Result<(), Error> {
        let keyring = &self.seal.keyring()?;
        let mut rows = ca_certificates::all(&mut *self.store.connection().await?, keyring.row_macs()).await?;
        if self.due(keyring, &rows)?.is_some() {
            rows = self
                .store
                .tx("ca.turn", APPEND, |mut tx| async move {
                    ca_certificates::lock(&mut tx).await?;
                    let mut rows = ca_certificates::all(&mut tx, keyring.row_macs()).await?;
                    while let Some(step) = self.due(keyring, &rows)? {
                        self.take_step(&mut tx, keyring, &rows, step).await?;
                        rows = ca_certificates::all(&mut tx, keyring.row_macs()).await?;
                    }
                    tx.commit(rows).await
                })
                .await?;
        }
        self.authorities.take(&rows, self.now());
        Ok(())
    }

    fn due(&self, keyring: &Keyring, rows: &[CaCertificate]) -> Result<Option<Step>, Error> {
        let kek = keyring.system_key(Purpose::InternalCa)?.key_ref;
        let keys = Keys { kek, row_mac: keyring.row_macs().active_version()? };
        Ok(ca::due(rows, keys, self.overlap(), self.now()))
    }

    async fn take_step(
        &self,
        tx: &mut Tx,
        keyring: &Keyring,
        rows: &[CaCertificate],
        step: Step,
    ) -> Result<(), Error> {
        let row_of = |version: i32| {
            let found = rows.iter().find(|row| row.version == version);
            found.ok_or_else(|| Error::Corrupt(format!("ca_certificates: no version {version}")))
        };
        let operation = match step {
            Step::Create => {
                let made = self.add_authority(tx, keyring, rows, "active").await?;
                let reason = "there was none that could sign".to_owned();
                Operation::CaActivate { version: number(made.version)?, reason }
            }
            Step::MakeNext => {
                let made = self.add_authority(tx, keyring, rows, "next").await?;
                Operation::CaRotate { version: Some(number(made.version)?) }
            }
            Step::Activate { version, reason } => {
                self.retire_those(tx, keyring, rows, "active").await?;
                ca_certificates::activate(tx, keyring.row_macs(), row_of(version)?, self.now()).await?;
                Operation::CaActivate { version: number(version)?, reason: reason.to_owned() }
            }
            // Neither changes who is trusted or who signs.
            Step::Rewrap { version } => return self.rewrap_authority(tx, keyring, row_of(version)?).await,
            Step::Remac { version } => {
                return ca_certificates::remac(tx, keyring.row_macs(), row_of(version)?).await;
            }
        };
        self.append_own(tx, operation).await
    }

    /// Makes an authority, after those before it. One that has expired in that state gives it up.
    async fn add_authority(
        &self,
        tx: &mut PgConnection,
        keyring: &Keyring,
        rows: &[CaCertificate],
        state: &str,
    ) -> Result<CaCertificate, Error> {
        let given_up = if state == "active" { &["active", "next"][..] } else { &["next"] };
        for state in given_up {
            self.retire_those(tx, keyring, rows, state).await?;
        }
        let made = self.new_authority(keyring, rows.last().map_or(1, |row| row.version + 1), state)?;
        ca_certificates::insert(tx, keyring.row_macs(), &made).await?;
        Ok(made)
    }

    /// An authority that is nowhere yet: `init` makes the first so.
    pub(super) fn new_authority(
        &self,
        keyring: &Keyring,
        version: i32,
        state: &str,
    ) -> Result<CaCertificate, Error> {
        let now = self.now();
        let (certificate, private_key) = Signer::create(keyring.installation(), version, now)?;
        let made = CaCertificate {
            version,
            state: state.to_owned(),
            certificate,
            kek_id: None,
            kek_version: None,
            wrapped_key: None,
            created_at: now,
            // X.509 counts whole seconds.
            expires_at: (now + ca::AUTHORITY_LIFETIME).replace_nanosecond(0).unwrap_or(now),
            activated_at: (state == "active").then_some(now),
            retired_at: None,
            mac: Vec::new(),
        };
        self.wrap_authority(keyring, made, &private_key)
    }

    async fn retire_those(
        &self,
        tx: &mut PgConnection,
        keyring: &Keyring,
        rows: &[CaCertificate],
        state: &str,
    ) -> Result<(), Error> {
        for row in rows.iter().filter(|row| row.state == state) {
            ca_certificates::retire(tx, keyring.row_macs(), row, self.now()).await?;
        }
        Ok(())
    }

    async fn rewrap_authority(
        &self,
        tx: &mut PgConnection,
        keyring: &Keyring,
        row: &CaCertificate,
    ) -> Result<(), Error> {
        let private_key = open_private_key(keyring, row)?;
        let moved = self.wrap_authority(keyring, row.clone(), &private_key)?;
        if open_private_key(keyring, &moved)? != private_key {
            return Err(corrupt(row, "changed by its rewrap"));
        }
        ca_certificates::rewrap(tx, &moved).await
    }

    /// The row with its private key under the key in use.
    fn wrap_authority(
        &self,
        keyring: &Keyring,
        row: CaCertificate,
        private_key: &SecretBytes,
    ) -> Result<CaCertificate, Error> {
        let kek = keyring.system_key(Purpose::InternalCa)?;
        let context = CaKeyContext {
            installation: keyring.installation(),
            ca_version: number(row.version)?,
            kek: kek.key_ref.id,
            kek_version: kek.key_ref.version,
        };
        let associated_data = context.associated_data();
        let wrapped =
            envelope::seal(&*kek.key, kek.key_ref, &associated_data, private_key.expose(), &*self.entropy)?;
        Ok(CaCertificate {
            kek_id: Some(kek.key_ref.id),
            kek_version: Some(stored(kek.key_ref.version)?),
            wrapped_key: Some(wrapped),
            ..row
        })
    }

    /// The authority that signs, opened.
    async fn signer(&self) -> Result<Signer, Error> {
        let keyring = self.seal.keyring()?;
        let rows = ca_certificates::all(&mut *self.store.connection().await?, keyring.row_macs()).await?;
        let active = rows.iter().find(|row| row.state == "active" && row.expires_at > self.now());
        let active =
            active.ok_or_else(|| Error::Sealed("there is no authority that signs yet: try again".into()))?;
        Signer::open(active, &open_private_key(&keyring, active)?)
    }

    fn certificate_lifetime(&self) -> Duration {
        secs(self.authorities.config.certificate_secs)
    }

    fn overlap(&self) -> Duration {
        secs(self.authorities.config.overlap_secs)
    }
}

impl Call {
    /// Whether the connection's certificate is that of the driver whose token the call brings. Without one the token
    /// alone counts, unless a certificate is `required`.
    ///
    /// # Errors
    /// A refusal; `Sealed` when the connection was opened before its client could be asked for a certificate.
    pub(super) fn check_certificate(
        &self,
        driver: &WorkloadIdentity,
        required: bool,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        match &self.certificate {
            ClientCertificate::Driver(certificate) if !certificate.is_of(driver) => {
                Err(Refusal::DriverCertificateMismatch.into())
            }
            // It was not when the connection was opened.
            ClientCertificate::Driver(certificate) if required && certificate.expires_at() <= now => {
                Err(Refusal::DriverCertificateExpired.into())
            }
            ClientCertificate::Missing if required => Err(Refusal::DriverCertificateMissing.into()),
            ClientCertificate::NotAsked if required => Err(Error::Sealed(
                "this connection was opened before the server could check certificates: open another".into(),
            )),
            _ => Ok(()),
        }
    }
}

fn open_private_key(keyring: &Keyring, row: &CaCertificate) -> Result<SecretBytes, Error> {
    let (Some(kek_id), Some(kek_version), Some(wrapped)) = (row.kek_id, row.kek_version, &row.wrapped_key)
    else {
        return Err(corrupt(row, "has no private key any more"));
    };
    let kek = keyring.system_key_of(Purpose::InternalCa, number(kek_version)?)?;
    let context = CaKeyContext {
        installation: keyring.installation(),
        ca_version: number(row.version)?,
        kek: kek_id,
        kek_version: kek.key_ref.version,
    };
    envelope::open(&*kek.key, kek.key_ref, &context.associated_data(), wrapped)
        .map_err(|error| corrupt(row, &error.to_string()))
}

fn corrupt(row: &CaCertificate, why: &str) -> Error {
    Error::Corrupt(format!("ca_certificates.wrapped_key of version {}: {why}", row.version))
}

fn secs(secs: u64) -> Duration {
    Duration::seconds(i64::try_from(secs).unwrap_or(i64::MAX))
}
