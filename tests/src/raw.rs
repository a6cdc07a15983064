//! RPCs by their names, with messages as bytes: no generated client stands between.

use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Bytes, http::uri::PathAndQuery},
    transport::Channel,
};

/// Calls `Service/Method` of `keyfold.v1` with these bytes as its message, and gives the answer's.
///
/// # Errors
/// The server's status.
///
/// # Panics
/// When the token cannot be sent.
pub async fn call(
    channel: &Channel,
    rpc: &str,
    bearer: Option<&str>,
    message: Vec<u8>,
) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path: PathAndQuery = format!("/keyfold.v1.{rpc}").parse().expect("a path");
    let mut request = Request::new(Bytes::from(message));
    if let Some(token) = bearer {
        let token = format!("Bearer {}", token.trim()).parse().expect("a token is ASCII");
        request.metadata_mut().insert("authorization", token);
    }
    Ok(grpc.unary(request, path, Raw).await?.into_inner())
}

/// Messages as the bytes that they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = prost::bytes::Buf::remaining(buffer);
        Ok(Some(prost::bytes::Buf::copy_to_bytes(buffer, len)))
    }
}
