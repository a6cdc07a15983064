//! Keyfold's client: unary calls over HTTP/2, with as little between as h2 allows, because it takes its processor time from
//! the server on the same machine.

use std::net::Ipv4Addr;

use h2::client::SendRequest;
use hyper::{
    HeaderMap, Request, Uri,
    body::{Buf as _, Bytes},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, TE},
};
use prost::{
    Message,
    bytes::{BufMut as _, BytesMut},
};
use tonic::{Code, Status};

use super::{http::Address, workload::Failure};

/// Bytes that may be under way on one connection, and of one answer, before they are read: more than all callers' answers.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Before each message: whether it is compressed, and its length.
const PREFIX_LEN: usize = 5;

/// A connection, which several callers may share. One that is lost is made anew with the next call.
#[derive(Clone)]
pub(super) struct Connection {
    address: Address,
    from: Ipv4Addr,
    requests: SendRequest<Bytes>,
}

impl Connection {
    /// Connects from this address, any of 127.0.0.0/8.
    ///
    /// # Errors
    /// Says what failed.
    pub(super) async fn open(address: &Address, from: Ipv4Addr) -> Result<Self, String> {
        let requests = open(address, from).await?;
        Ok(Self { address: address.clone(), from, requests })
    }

    /// Calls `method`, the path of a unary method, with the `authorization` `bearer`.
    ///
    /// # Errors
    /// `Busy` when the server has too much to do; otherwise what failed.
    pub(super) async fn call<A: Message + Default>(
        &mut self,
        method: &'static str,
        bearer: &HeaderValue,
        message: &impl Message,
    ) -> Result<A, Failure> {
        match self.requests.clone().ready().await {
            Ok(ready) => self.requests = ready,
            Err(_) => self.requests = open(&self.address, self.from).await?,
        }
        let failed = |error: h2::Error| Failure::Wrong(format!("{method}: {error}"));
        let mut body = BytesMut::with_capacity(PREFIX_LEN + message.encoded_len());
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body).map_err(|error| format!("{method}: {error}"))?;
        let uri = Uri::builder().scheme("https").authority("127.0.0.1").path_and_query(method);
        let request = Request::post(uri.build().map_err(|error| format!("{method}: {error}"))?)
            .header(TE, HeaderValue::from_static("trailers"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
            .header(AUTHORIZATION, bearer)
            .body(())
            .map_err(|error| format!("{method}: {error}"))?;
        let (answer, mut sent) = self.requests.send_request(request, false).map_err(failed)?;
        sent.send_data(body.freeze(), true).map_err(failed)?;

        let (head, mut body) = answer.await.map_err(failed)?.into_parts();
        check_status(&head.headers)?;
        let mut received = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(failed)?;
            body.flow_control().release_capacity(chunk.len()).map_err(failed)?;
            received.extend_from_slice(&chunk);
        }
        check_status(&body.trailers().await.map_err(failed)?.unwrap_or_default())?;
        if received.len() < PREFIX_LEN {
            return Err(Failure::Wrong(format!("{method}: an answer without a message")));
        }
        received.advance(PREFIX_LEN);
        A::decode(received).map_err(|error| Failure::Wrong(format!("{method}: {error}")))
    }
}

async fn open(address: &Address, from: Ipv4Addr) -> Result<SendRequest<Bytes>, String> {
    let tls = address.open(from).await?;
    let mut client = h2::client::Builder::new();
    client.initial_connection_window_size(CONNECTION_WINDOW).initial_window_size(STREAM_WINDOW);
    let (requests, connection) = client.handshake(tls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(requests)
}

/// A refusal stands in the head when there is no message, otherwise in the trailers.
fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    match Status::from_header_map(headers) {
        None => Ok(()),
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status.into()),
    }
}
