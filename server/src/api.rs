//! The gRPC services: adapters from messages to the broker and back, without any logic of their own.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use keyfold_core::{
    name::NameError,
    path::{SEGMENT_BYTES_MAX, SEGMENTS_MAX},
    payload::Fields,
    secret::SecretBytes,
};
use keyfold_proto::keyfold::v1;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    broker::{Broker, Call},
    callers,
    config::Limits,
    error::Error,
    listener::{ClientCertificate, Peer},
    shares::Shares,
    turns::Turns,
};

mod approval;
mod audit;
mod ca;
mod config;
mod key;
mod policy;
mod root;
mod secret;
mod status;
mod system;
mod workload;

/// All services of `keyfold.v1`.
#[derive(Clone)]
pub struct Api {
    /// What the services do.
    broker: Arc<Broker>,
    /// The file whose content `Initialize` must present.
    bootstrap_token_file: Option<PathBuf>,
    /// Requests that may be in work at once, of all network addresses and of each.
    places: Shares<IpAddr>,
    /// Which of them are worked on.
    turns: Turns,
    /// How long one may take.
    request_max: Duration,
}

impl Api {
    /// The services of `broker`, within `limits`.
    pub fn new(broker: Arc<Broker>, bootstrap_token_file: Option<PathBuf>, limits: &Limits) -> Self {
        Self {
            broker,
            bootstrap_token_file,
            places: Shares::new(limits.concurrent_requests, limits.requests_per_peer),
            turns: Turns::new(limits),
            request_max: Duration::from_secs(limits.request_secs),
        }
    }

    /// Counts, times and answers one call: the one place where an error becomes a status. No `async fn`, which would have room
    /// for `work` twice.
    fn answer<T>(
        &self,
        rpc: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        let start = Instant::now();
        timeout(self.request_max, work).map(move |result| {
            let result = result.unwrap_or(Err(Error::TooSlow));
            let code = result.as_ref().err().map_or("ok", Error::code);
            metrics::histogram!("keyfold_rpc_seconds", "rpc" => rpc, "code" => code)
                .record(start.elapsed().as_secs_f64());
            result.map(Response::new).map_err(|error| {
                self.broker.integrity.note(&error);
                status::from_error(rpc, &error)
            })
        })
    }

    /// What the broker is to know of a call: where it came from, and the token of its `authorization: Bearer` metadata.
    /// It has a place among the requests in work, and its turn, so that nothing is done for a call that gets none.
    async fn call<T>(&self, request: &Request<T>) -> Result<Call, Error> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let peer = request.extensions().get::<Peer>();
        let from = peer.map(|peer| peer.address);
        let address = from.unwrap_or(IpAddr::from([0; 4]));
        let place = callers::place(&self.places, address, "the network address")?;
        Ok(Call {
            _turn: self.turns.of(address).await?,
            _place: place,
            request_id: self.broker.new_request_id()?,
            from,
            certificate: peer.map_or(ClientCertificate::Missing, |peer| peer.certificate.clone()),
            token: token.map(|token| Zeroizing::new(token.to_owned())),
            approval: approval(request.metadata())?,
        })
    }
}

/// The plan of the metadata `keyfold-approval`.
fn approval(metadata: &MetadataMap) -> Result<Option<Uuid>, Error> {
    let Some(value) = metadata.get("keyfold-approval") else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| Uuid::try_parse(text).ok());
    id.map(Some)
        .ok_or_else(|| Error::Invalid("the metadata keyfold-approval must be a plan's id, a UUID".into()))
}

/// Longest name or prefix that is looked at: that of the longest path. Entries of the audit log keep it, also of callers
/// who prove nothing.
const TEXT_BYTES_MAX: usize = SEGMENTS_MAX * (SEGMENT_BYTES_MAX + 1);

/// Refuses a text that no name can be.
fn bounded<'a>(what: &str, text: &'a str) -> Result<&'a str, Error> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "{what} has {} bytes, and may have {TEXT_BYTES_MAX}",
            text.len()
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::Invalid(format!("{what} holds a control character")));
    }
    Ok(text)
}

fn timestamp(at: time::OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.unix_timestamp(),
        nanos: i32::try_from(at.nanosecond()).unwrap_or_default(),
    }
}

fn time(name: &str, at: Option<prost_types::Timestamp>) -> Result<Option<time::OffsetDateTime>, Error> {
    at.map(|at| {
        let nanos = i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
        time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
            .map_err(|_| Error::Invalid(format!("{name} is out of range")))
    })
    .transpose()
}

fn fields_out(fields: Fields) -> Vec<v1::Field> {
    fields.into_iter().map(|(name, value)| v1::Field { name, value: value.into_vec() }).collect()
}

fn fields_in(fields: Vec<v1::Field>) -> Result<Fields, Error> {
    let mut taken = Fields::new();
    for mut field in fields {
        let name = std::mem::take(&mut field.name);
        let value = SecretBytes::new(std::mem::take(&mut field.value));
        keyfold_core::name::check_field_name(&name)?;
        if taken.insert(name.clone(), value).is_some() {
            return Err(NameError::Field(format!("{name}, given twice")).into());
        }
    }
    Ok(taken)
}

/// A version number out of a row; the schema keeps it positive.
fn version(stored: i32) -> u32 {
    u32::try_from(stored).unwrap_or_default()
}
