//! A root key that a PKCS#11 token encrypts (an HSM). Each root has an AES-256 key of its own, made on the token, which
//! never leaves it; Postgres keeps the root key encrypted by AES-GCM under that key, bound to the root's id.
//!
//! Each use is a session of its own: a token that was taken out and put back serves again.

mod module;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use cryptoki::{
    context::Pkcs11,
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType, aead::GcmParams},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::RawAuthPin,
};
use keyfold_core::{
    entropy::Entropy,
    secret::{Key, SecretBytes},
};
use module::{Failure, Module};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::custody::{self, Base64Bytes};
use crate::config::RootKeyPkcs11;

const ASSOCIATED_DATA_DOMAIN: &[u8] = b"keyfold/v1/root/pkcs11";
/// Recommended for GCM (NIST SP 800-38D, section 5.2.1.1). Each key encrypts one message.
const NONCE_BYTES: usize = 12;
const TAG_BITS: u64 = 128;
const KEY_ID_BYTES: usize = 16;

pub(super) struct TokenRoot {
    module: Module,
    token: Token,
    limit: Duration,
}

/// The encrypted root key, in Postgres, with what finds its key on the token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    key_label: String,
    key_id: Base64Bytes,
    nonce: Base64Bytes,
    ciphertext: Base64Bytes,
}

impl TokenRoot {
    pub(super) fn new(config: &RootKeyPkcs11) -> Result<Self, String> {
        if config.timeout_millis == 0 {
            return Err("pkcs11.timeout_millis: must be at least 1".into());
        }
        Ok(Self {
            module: Module::at(&config.module),
            token: Token { config: Arc::new(config.clone()), refused_pin: Arc::default() },
            limit: Duration::from_millis(config.timeout_millis),
        })
    }

    /// Whether the token is there, takes the PIN and can do what is needed.
    pub(super) async fn check(&self) -> Result<(), String> {
        let token = self.token.clone();
        self.module
            .call(self.limit, move |module| token.session(module, Pkcs11::open_ro_session).map(drop))
            .await
    }

    /// Makes a key on the token, encrypts a root key with it, and gives what must be stored. Not without having
    /// decrypted it again.
    pub(super) async fn keep(&self, root: &Key, id: Uuid, entropy: &dyn Entropy) -> Result<Vec<u8>, String> {
        let (mut key_id, mut nonce) = ([0; KEY_ID_BYTES], [0; NONCE_BYTES]);
        entropy
            .fill(&mut key_id)
            .and_then(|()| entropy.fill(&mut nonce))
            .map_err(|error| error.to_string())?;
        let (token, root) = (self.token.clone(), Key::from_bytes(root.expose()));
        let kept = self.module.call(self.limit, move |module| {
            let session = token.session(module, Pkcs11::open_rw_session)?;
            let key = generate(&session, &token.config.key_label, &key_id)?;
            encrypt(&session, key, &root, id, nonce).inspect_err(|_| drop(session.destroy_object(key))).map(
                |(nonce, ciphertext)| Kept {
                    key_label: token.config.key_label.clone(),
                    key_id: Base64Bytes(key_id.to_vec()),
                    nonce: Base64Bytes(nonce.to_vec()),
                    ciphertext: Base64Bytes(ciphertext),
                },
            )
        });
        Ok(custody::write(&kept.await?))
    }

    /// Has the token decrypt the root key of that id.
    pub(super) async fn open(&self, id: Uuid, data: &[u8]) -> Result<Key, String> {
        let kept: Kept = custody::read(data)?;
        let token = self.token.clone();
        let opened = self.module.call(self.limit, move |module| {
            let session = token.session(module, Pkcs11::open_ro_session)?;
            let key = token.find(&session, &kept)?;
            decrypt(&session, key, id, &kept.nonce.0, &kept.ciphertext.0)
        });
        opened.await
    }
}

/// The token of the configuration, and the PIN that it last refused.
#[derive(Clone)]
struct Token {
    config: Arc<RootKeyPkcs11>,
    /// Tokens lock themselves after a few wrong PINs, and a sealed server tries again all the time.
    refused_pin: Arc<Mutex<Option<Pin>>>,
}

impl Token {
    /// A session of the logged-in user. Only one at a time: the module's lock is held.
    fn session(
        &self,
        module: &Pkcs11,
        open: fn(&Pkcs11, Slot) -> cryptoki::error::Result<Session>,
    ) -> Result<Session, Failure> {
        let slot = self.slot(module)?;
        let mechanisms =
            module.get_mechanism_list(slot).map_err(|error| Failure::of("list what it can", &error))?;
        if ![MechanismType::AES_GCM, MechanismType::AES_KEY_GEN]
            .iter()
            .all(|needed| mechanisms.contains(needed))
        {
            return Err(Failure::lasting(format!(
                "the PKCS#11 token {:?} cannot do AES-GCM: use another token",
                self.config.token_label
            )));
        }
        let session = open(module, slot).map_err(|error| Failure::of("open a session", &error))?;
        self.log_in(&session)?;
        Ok(session)
    }

    fn slot(&self, module: &Pkcs11) -> Result<Slot, Failure> {
        let label = &self.config.token_label;
        let slots = module.get_slots_with_token().map_err(|error| Failure::of("list its slots", &error))?;
        let is_ours = |slot: &Slot| {
            module
                .get_token_info(*slot)
                .is_ok_and(|info| info.token_initialized() && info.label().trim_end() == label)
        };
        match slots.into_iter().filter(is_ours).collect::<Vec<_>>()[..] {
            [slot] => Ok(slot),
            [] => Err(Failure::passing(format!(
                "no PKCS#11 token is labelled {label:?}: look whether it is plugged in and initialised"
            ))),
            _ => Err(Failure::lasting(format!(
                "several PKCS#11 tokens are labelled {label:?}: give the right one a label of its own"
            ))),
        }
    }

    fn log_in(&self, session: &Session) -> Result<(), Failure> {
        let pin = Pin::read(&self.config.pin_file)?;
        let mut refused = self.refused_pin.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref() == Some(&pin) {
            return Err(self.pin_refused());
        }
        let given = RawAuthPin::new(Box::new(pin.bytes.expose().to_vec()));
        match session.login_with_raw(UserType::User, &given) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                *refused = None;
                Ok(())
            }
            Err(Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked,
                _,
            )) => {
                *refused = Some(pin);
                Err(self.pin_refused())
            }
            Err(error) => Err(Failure::of("log the user in", &error)),
        }
    }

    fn pin_refused(&self) -> Failure {
        Failure::lasting(format!(
            "the PKCS#11 token {:?} refuses the PIN in {}, or has locked or expired it: so that the token does not lock \
             it, the PIN is not tried again until that file is written anew",
            self.config.token_label,
            self.config.pin_file.display()
        ))
    }

    fn find(&self, session: &Session, kept: &Kept) -> Result<ObjectHandle, Failure> {
        let wanted = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Label(kept.key_label.clone().into_bytes()),
            Attribute::Id(kept.key_id.0.clone()),
        ];
        let found = session.find_objects(&wanted).map_err(|error| Failure::of("look for its key", &error))?;
        match found[..] {
            [key] => Ok(key),
            _ => Err(Failure::passing(format!(
                "the PKCS#11 token {:?} does not have the key {:?} that the root key in use is encrypted with: look \
                 whether it is the right token, and restore the key from the token's backup",
                self.config.token_label, kept.key_label
            ))),
        }
    }
}

/// A PIN as a file held it at a time. The same PIN in a file that was written anew is tried again.
#[derive(PartialEq)]
struct Pin {
    bytes: SecretBytes,
    written: SystemTime,
}

impl Pin {
    fn read(path: &Path) -> Result<Self, Failure> {
        let unreadable =
            |error| Failure::lasting(format!("the PIN file {} cannot be read: {error}", path.display()));
        let written = fs::metadata(path).and_then(|file| file.modified()).map_err(unreadable)?;
        let text = fs::read(path).map(Zeroizing::new).map_err(unreadable)?;
        let bytes = SecretBytes::new(text.trim_ascii().to_vec());
        if bytes.is_empty() {
            // Never as a login without a PIN, which some tokens take for a PIN pad.
            return Err(Failure::lasting(format!("the PIN file {} is empty", path.display())));
        }
        Ok(Self { bytes, written })
    }
}

/// Makes an AES-256 key that stays on the token for good, and looks whether the token has understood that.
fn generate(session: &Session, label: &str, id: &[u8]) -> Result<ObjectHandle, Failure> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(id.to_vec()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    let key = session
        .generate_key(&Mechanism::AesKeyGen, &template)
        .map_err(|error| Failure::of("make a key", &error))?;
    let promised = [
        (AttributeType::AlwaysSensitive, Attribute::AlwaysSensitive(true)),
        (AttributeType::NeverExtractable, Attribute::NeverExtractable(true)),
        (AttributeType::Local, Attribute::Local(true)),
    ];
    let kept = session
        .get_attributes(key, &promised.each_ref().map(|(kind, _)| *kind))
        .map_err(|error| Failure::of("describe its key", &error))?;
    if promised.iter().all(|(_, attribute)| kept.contains(attribute)) {
        return Ok(key);
    }
    let _ = session.destroy_object(key);
    Err(Failure::lasting(
        "the PKCS#11 token does not promise that a key never leaves it: use another token".into(),
    ))
}

/// The nonce and the ciphertext with its tag. Some tokens choose the nonce, and write it over ours.
fn encrypt(
    session: &Session,
    key: ObjectHandle,
    root: &Key,
    id: Uuid,
    mut nonce: [u8; NONCE_BYTES],
) -> Result<([u8; NONCE_BYTES], Vec<u8>), Failure> {
    let failed = |error| Failure::of("encrypt the root key", &error);
    let associated_data = associated_data(id);
    let parameters = GcmParams::new(&mut nonce, &associated_data, TAG_BITS.into()).map_err(failed)?;
    let ciphertext = session.encrypt(&Mechanism::AesGcm(parameters), key, root.expose()).map_err(failed)?;
    if decrypt(session, key, id, &nonce, &ciphertext)? != *root {
        return Err(Failure::lasting(
            "the PKCS#11 token decrypts to something else than it encrypted: do not use it".into(),
        ));
    }
    Ok((nonce, ciphertext))
}

fn decrypt(
    session: &Session,
    key: ObjectHandle,
    id: Uuid,
    nonce: &[u8],
    ciphertext: &[u8],
) -> Result<Key, Failure> {
    let failed = |error| match error {
        Error::Pkcs11(RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange, _) => {
            Failure::lasting(custody::NOT_AS_STORED.into())
        }
        error => Failure::of("decrypt the root key", &error),
    };
    let (mut nonce, associated_data) = (nonce.to_vec(), associated_data(id));
    let parameters = GcmParams::new(&mut nonce, &associated_data, TAG_BITS.into()).map_err(failed)?;
    let plaintext = session.decrypt(&Mechanism::AesGcm(parameters), key, ciphertext).map_err(failed)?;
    let plaintext = SecretBytes::new(plaintext);
    Key::try_from(plaintext.expose()).map_err(|_| Failure::lasting(custody::NOT_AS_STORED.into()))
}

fn associated_data(id: Uuid) -> Vec<u8> {
    [ASSOCIATED_DATA_DOMAIN, id.as_bytes()].concat()
}
