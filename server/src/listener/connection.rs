//! One open connection, which holds its place among the bounded number.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{ClientCertificate, gathered::Gathered};
use crate::shares::Share;

/// Where a connection came from.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its network address.
    pub address: IpAddr,
    /// What its client has shown.
    pub certificate: ClientCertificate,
}

impl Peer {
    /// One at `address` that has shown nothing.
    pub fn at(address: IpAddr) -> Self {
        Self { address, certificate: ClientCertificate::Missing }
    }
}

/// A TLS connection.
pub struct Connection {
    stream: Gathered<TlsStream<TcpStream>>,
    /// What was read already, and is read once more.
    replay: &'static [u8],
    certificate: ClientCertificate,
    place: Share<IpAddr>,
}

impl Connection {
    /// A connection from which `replay` was read already, and that gives `place` back when it is dropped.
    pub fn new(
        stream: TlsStream<TcpStream>,
        replay: &'static [u8],
        certificate: ClientCertificate,
        place: Share<IpAddr>,
    ) -> Self {
        Self { stream: Gathered::new(stream), replay, certificate, place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { address: *self.place.owner(), certificate: self.certificate.clone() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.replay.is_empty() {
            let (now, later) = self.replay.split_at(self.replay.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.replay = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
