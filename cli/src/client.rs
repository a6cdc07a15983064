//! The connection to the server, with the operator's token on every call.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use keyfold_core::secret::SecretBytes;
use keyfold_proto::{
    channel,
    keyfold::v1::{
        audit_service_client::AuditServiceClient, config_service_client::ConfigServiceClient,
        key_service_client::KeyServiceClient, secret_service_client::SecretServiceClient,
        system_service_client::SystemServiceClient,
    },
};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use zeroize::Zeroizing;

use crate::{
    args::Global,
    exit::{Exit, Failure, io_reason},
};

/// Longest token that is read. Kubernetes' projected tokens and those of OIDC providers have 1 to 4 KiB.
const TOKEN_LEN_MAX: u64 = 64 * 1024;

/// Largest answer that is taken: several thousand issuers with a CA bundle each. A page of the audit log is far
/// smaller.
const ANSWER_LEN_MAX: usize = 32 * 1024 * 1024;

const NO_CLIENT: &str = "cannot call the server";

type Authorised = InterceptedService<Channel, Bearer>;

/// A server that answers calls. Nothing is connected until the first one.
pub struct Client {
    channel: Channel,
    bearer: Bearer,
    timeout: Duration,
}

impl Client {
    /// For calls that need an operator.
    ///
    /// # Errors
    /// When the address, the CA file or the token file is not given, or a file cannot be used.
    pub fn operator(global: &Global) -> Result<Self, Failure> {
        if global.token_file.is_none() {
            return Err(missing("the operator's token", "--token-file FILE", "KEYFOLD_TOKEN_FILE"));
        }
        Self::anyone(global)
    }

    /// For calls that also answer without a token; one that is given is sent.
    ///
    /// # Errors
    /// When the address or the CA file is not given, or a file cannot be used.
    pub fn anyone(global: &Global) -> Result<Self, Failure> {
        let url = global.server.as_deref().filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| missing("the server's address", "--server URL", "KEYFOLD_SERVER"))?;
        let ca_file = global.ca_file.as_deref();
        let ca_file =
            ca_file.ok_or_else(|| missing("the server's CA", "--ca-file FILE", "KEYFOLD_CA_FILE"))?;
        let ca_pem = std::fs::read(ca_file).map_err(|error| unreadable("CA file", ca_file, &error))?;
        let token = global.token_file.as_deref().map(read_token).transpose()?;
        Ok(Self {
            channel: channel::connect_lazy(url, &ca_pem)
                .map_err(|error| Failure::usage(NO_CLIENT, error.to_string()))?,
            bearer: Bearer { token: token.map(Arc::new) },
            timeout: global.timeout,
        })
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
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::rpc(what, &status)),
            Err(_) => {
                let waited = humantime::format_duration(self.timeout);
                let reason = format!("the server did not answer within {waited}");
                let advice =
                    "A change may still have been made: look before you repeat it, or raise --timeout";
                Err(Failure::new(Exit::Unavailable, what, reason).advise(advice))
            }
        }
    }

    /// Initialisation and status.
    pub fn system(&self) -> SystemServiceClient<Authorised> {
        SystemServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Keyspaces, issuers and app roles.
    pub fn config(&self) -> ConfigServiceClient<Authorised> {
        ConfigServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Secrets.
    pub fn secrets(&self) -> SecretServiceClient<Authorised> {
        SecretServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// Key-encryption keys.
    pub fn keys(&self) -> KeyServiceClient<Authorised> {
        KeyServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_LEN_MAX)
    }

    /// The audit log.
    pub fn audit(&self) -> AuditServiceClient<Authorised> {
        AuditServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(ANSWER_LEN_MAX)
    }
}

/// Puts the token on each call.
#[derive(Clone)]
pub struct Bearer {
    token: Option<Arc<SecretBytes>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            let text = Zeroizing::new([b"Bearer ", token.expose()].concat());
            let mut value = MetadataValue::<Ascii>::try_from(text.as_slice())
                .map_err(|_| Status::unauthenticated("the token holds characters that cannot be sent"))?;
            // Keeps it out of HTTP/2's compression table and out of debug output.
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// The token in a file, without white space around it.
///
/// # Errors
/// When the file cannot be read, is empty, or does not hold a token: one word of visible ASCII characters.
pub fn read_token(file: &Path) -> Result<SecretBytes, Failure> {
    if file == Path::new("-") {
        return Err(Failure::usage(NO_CLIENT, "a token is not read from standard input")
            .advise("Name a file in --token-file"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_LEN_MAX as usize + 1));
    File::open(file)
        .and_then(|open| open.take(TOKEN_LEN_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable("token file", file, &error))?;
    let token = bytes.trim_ascii();
    let reason = if token.is_empty() {
        "is empty"
    } else if bytes.len() as u64 > TOKEN_LEN_MAX {
        "is longer than 64 KiB"
    } else if !token.iter().all(u8::is_ascii_graphic) {
        "does not hold one word of visible ASCII characters"
    } else {
        return Ok(SecretBytes::new(token.to_vec()));
    };
    Err(Failure::usage(NO_CLIENT, format!("the token file {} {reason}", file.display())))
}

fn missing(what: &str, option: &str, variable: &str) -> Failure {
    Failure::usage(NO_CLIENT, format!("{what} is not given"))
        .advise(format!("Give {option} or set {variable}"))
}

fn unreadable(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::usage(NO_CLIENT, format!("the {what} {} cannot be read: {}", file.display(), io_reason(error)))
}

#[cfg(test)]
mod tests;
