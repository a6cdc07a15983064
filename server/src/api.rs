//! The gRPC services: adapters from messages to the broker and back, without any logic of their own.

use std::{path::PathBuf, sync::Arc};

use keyfold_core::{
    name::NameError,
    path::{SEGMENT_BYTES_MAX, SEGMENTS_MAX},
    payload::Fields,
    secret::SecretBytes,
};
use keyfold_proto::keyfold::v1;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::{broker::Broker, error::Error};

mod audit;
mod config;
mod key;
mod secret;
mod status;
mod system;
mod workload;

/// All services of `keyfold.v1`.
#[derive(Clone)]
pub struct Api {
    /// What the services do.
    pub broker: Arc<Broker>,
    /// The file whose content `Initialize` must present.
    pub bootstrap_token_file: Option<PathBuf>,
}

/// Counts, times and answers one call: the one place where an error becomes a status.
async fn answer<T>(
    rpc: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<Response<T>, Status> {
    let start = Instant::now();
    let result = work.await;
    let code = result.as_ref().err().map_or("ok", Error::code);
    metrics::histogram!("keyfold_rpc_seconds", "rpc" => rpc, "code" => code)
        .record(start.elapsed().as_secs_f64());
    match result {
        Ok(value) => Ok(Response::new(value)),
        Err(error) => Err(status::from_error(rpc, &error)),
    }
}

/// The token of the `authorization: Bearer` metadata.
fn bearer<T>(request: &Request<T>) -> Option<Zeroizing<String>> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(|token| Zeroizing::new(token.to_owned()))
}

/// Longest name or prefix that is looked at: that of the longest path. Entries of the audit log keep it, also of callers
/// who prove nothing.
const TEXT_BYTES_MAX: usize = SEGMENTS_MAX * (SEGMENT_BYTES_MAX + 1);

/// Refuses a text that no name can be.
fn bounded<'a>(what: &str, text: &'a str) -> Result<&'a str, Error> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(text);
    }
    Err(Error::Invalid(format!("{what} has {} bytes, and may have {TEXT_BYTES_MAX}", text.len())))
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
