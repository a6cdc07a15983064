//! The connection to the server, with the operator's token on every call.

mod authorised;
mod authorities;

use std::{pin::pin, sync::Arc, time::Duration};

use keyfold_core::{clock::SystemClock, secret::SecretBytes};
use keyfold_proto::{
    channel,
    keyfold::v1::{
        approval_service_client::ApprovalServiceClient, audit_service_client::AuditServiceClient,
        certificate_service_client::CertificateServiceClient, config_service_client::ConfigServiceClient,
        key_service_client::KeyServiceClient, policy_service_client::PolicyServiceClient,
        root_service_client::RootServiceClient, secret_service_client::SecretServiceClient,
        system_service_client::SystemServiceClient,
    },
};
use tonic::{Code, Response, Status};

use self::authorised::{Authorised, Bearer};
use crate::{
    args::Global,
    credentials::{Obtained, Places, Profile, Profiles, Source, read_token},
    exit::{Exit, Failure},
    output,
};

/// Largest answer that is taken: several thousand issuers with a CA bundle each. A page of the audit log is far
/// smaller.
const ANSWER_LEN_MAX: usize = 32 * 1024 * 1024;

const NO_CLIENT: &str = "cannot call the server";

/// A server, and how it is known.
#[derive(Clone, Debug)]
pub struct Address {
    /// `https://host:port`.
    pub url: String,
    /// The authorities that its certificate must chain to, in PEM.
    pub ca_pem: String,
    /// What `keyfold login` was told about it.
    pub profile: Option<Profile>,
}

impl Address {
    /// The server that the options name; without them the one that the operator signed in to, unless a token file is
    /// given: whose token that is nobody but the operator knows.
    ///
    /// # Errors
    /// When that is none, or not one alone; when the CA file cannot be read.
    pub fn of(global: &Global, profiles: &Profiles) -> Result<Self, Failure> {
        let given = global.server.as_deref().filter(|url| !url.is_empty());
        let profile = match (given, profiles.all()) {
            (Some(url), _) => profiles.of(url),
            (None, [_, ..]) if global.token_file.is_some() => return Err(token_without_server()),
            (None, [only]) => Some(only),
            (None, []) => None,
            (None, several) => {
                let servers: Vec<_> = several.iter().map(|profile| profile.server.as_str()).collect();
                let why = format!("you are signed in to more than one: {}", servers.join(", "));
                return Err(Failure::usage(NO_CLIENT, why).advise("Give --server URL or set KEYFOLD_SERVER"));
            }
        };
        let url = given.or(profile.map(|profile| profile.server.as_str()));
        let url = url.ok_or_else(|| missing("the server's address", "--server URL", "KEYFOLD_SERVER"))?;
        let ca_pem = match (&global.ca_file, profile) {
            (Some(file), _) => authorities::read(file)?,
            (None, Some(profile)) => profile.ca_pem.clone(),
            (None, None) => return Err(missing("the server's CA", "--ca-file FILE", "KEYFOLD_CA_FILE")),
        };
        Ok(Self { url: url.to_owned(), ca_pem, profile: profile.cloned() })
    }
}

/// A server that answers calls. Nothing is connected until the first one.
pub struct Client {
    authorised: Authorised,
    timeout: Duration,
    /// What to do about a refused token, if it is not the file that was given.
    advice: Option<&'static str>,
}

impl Client {
    /// For calls that need an operator.
    ///
    /// # Errors
    /// When the address, the CA file or the token is not given by options nor by `keyfold login`, or a file cannot be
    /// used.
    pub fn operator(global: &Global) -> Result<Self, Failure> {
        let address = Address::of(global, &profiles(global)?)?;
        if global.token_file.is_none() && address.profile.is_none() {
            let what = format!("not signed in to {}", address.url);
            return Err(Failure::usage(what, "run keyfold login, or give --token-file"));
        }
        Self::build(global, &address, |profile| profile.token(&Places::of_user()?, &SystemClock).map(Some))
    }

    /// For calls that also answer without a token; one that is given is sent.
    ///
    /// # Errors
    /// When the address or the CA file is not given, or a file cannot be used.
    pub fn anyone(global: &Global) -> Result<Self, Failure> {
        let address = Address::of(global, &profiles(global)?)?;
        Self::build(global, &address, |profile| {
            let token = profile.token(&Places::of_user()?, &SystemClock);
            Ok(token.inspect_err(|failure| output::note(&failure.to_string())).ok())
        })
    }

    /// For calls without a token, to a server that the options name.
    ///
    /// # Errors
    /// As for `anyone`.
    pub fn nobody(global: &Global) -> Result<Self, Failure> {
        let address = Address::of(global, &Profiles::default())?;
        Self::connect(&address, Bearer::nobody(), global.timeout)
    }

    /// For trying out a token, whatever the options say.
    ///
    /// # Errors
    /// When the address or the CA cannot be used.
    pub fn bearing(address: &Address, token: Arc<SecretBytes>, timeout: Duration) -> Result<Self, Failure> {
        let client = Self::connect(address, Bearer::of(token, None), timeout)?;
        Ok(Self { advice: Some("Nothing is remembered"), ..client })
    }

    /// The token's file that the options name goes before the profile.
    fn build(
        global: &Global,
        address: &Address,
        token_of: impl FnOnce(&Profile) -> Result<Option<Obtained>, Failure>,
    ) -> Result<Self, Failure> {
        let mut client = Self::connect(address, Bearer::nobody(), global.timeout)?;
        client.authorised.approval = global.approval;
        if let Some(file) = &global.token_file {
            client.authorised.bearer = Bearer::of(Arc::new(read_token(file)?), None);
        } else if let Some(profile) = &address.profile
            && let Some(Obtained { token, renewal }) = token_of(profile)?
        {
            client.authorised.bearer = Bearer::of(Arc::new(token), renewal);
            let is_file = matches!(profile.source, Source::File(_));
            client.advice = (!is_file).then_some("Sign in again: keyfold login");
        }
        Ok(client)
    }

    fn connect(address: &Address, bearer: Bearer, timeout: Duration) -> Result<Self, Failure> {
        let channel = channel::connect_lazy(&address.url, address.ca_pem.as_bytes())
            .map_err(|error| Failure::usage(NO_CLIENT, error.to_string()))?;
        Ok(Self { authorised: Authorised { channel, bearer, approval: None }, timeout, advice: None })
    }

    /// Waits for an answer as long as `--timeout` says. `what` names the failure, such as `cannot list keys`.
    ///
    /// # Errors
    /// When the server refuses, fails, or does not answer.
    pub async fn call<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let mut answer = pin!(answer);
        loop {
            return match tokio::time::timeout(self.timeout, &mut answer).await {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(self.refused(what, &status)),
                // A token command has a limit of its own; the operator may have to confirm in a browser.
                Err(_) if self.authorised.bearer.is_renewing() => continue,
                Err(_) => Err(self.too_late(what)),
            };
        }
    }

    fn refused(&self, what: &str, status: &Status) -> Failure {
        let failure = Failure::rpc(what, status);
        match self.advice {
            Some(advice) if status.code() == Code::Unauthenticated => failure.advise(advice),
            _ => failure,
        }
    }

    fn too_late(&self, what: &str) -> Failure {
        let waited = humantime::format_duration(self.timeout);
        let reason = format!("the server did not answer within {waited}");
        let advice = "A change may still have been made: look before you repeat it, or raise --timeout";
        Failure::new(Exit::Unavailable, what, reason).advise(advice)
    }

    /// Initialisation and status.
    pub fn system(&self) -> SystemServiceClient<Authorised> {
        SystemServiceClient::new(self.authorised.clone())
    }

    /// Keyspaces, issuers and app roles.
    pub fn config(&self) -> ConfigServiceClient<Authorised> {
        ConfigServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Secrets.
    pub fn secrets(&self) -> SecretServiceClient<Authorised> {
        SecretServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Plans that wait for a second person.
    pub fn approvals(&self) -> ApprovalServiceClient<Authorised> {
        ApprovalServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Explaining decisions.
    pub fn policy(&self) -> PolicyServiceClient<Authorised> {
        PolicyServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Key-encryption keys.
    pub fn keys(&self) -> KeyServiceClient<Authorised> {
        KeyServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Custody of the root key, and recovery.
    pub fn root(&self) -> RootServiceClient<Authorised> {
        RootServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// The internal certificate authority.
    pub fn certificates(&self) -> CertificateServiceClient<Authorised> {
        CertificateServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// The audit log.
    pub fn audit(&self) -> AuditServiceClient<Authorised> {
        AuditServiceClient::new(self.authorised.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }
}

/// What `keyfold login` was told, where the options leave anything open.
fn profiles(global: &Global) -> Result<Profiles, Failure> {
    if global.server.is_some() && global.ca_file.is_some() && global.token_file.is_some() {
        return Ok(Profiles::default());
    }
    // A user without a home is signed in nowhere.
    Places::of_user().map_or_else(|_| Ok(Profiles::default()), |places| Profiles::load(&places))
}

fn missing(what: &str, option: &str, variable: &str) -> Failure {
    Failure::usage(NO_CLIENT, format!("{what} is not given"))
        .advise(format!("Give {option} or set {variable}"))
}

fn token_without_server() -> Failure {
    let why = "a token file is given and no server: the one of keyfold login may not be the token's";
    Failure::usage(NO_CLIENT, why).advise("Give --server URL or set KEYFOLD_SERVER")
}

#[cfg(test)]
mod tests;
