//! Requests while they arrive. All of them together may hold so many bytes, those of one peer a part of them, and each
//! may take so long: who has not yet proved anything can neither fill the server's memory, nor keep others from sending.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

use crate::{
    listener::Peer,
    shares::{Share, Shares},
};

/// Bytes of all requests that are arriving, of all callers.
const ARRIVING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Those of one peer among them: several of the largest requests.
const PEER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What each counts for besides its bytes: its place in the connection, its task and the buffer that it announces.
const REQUEST_BYTES: usize = 16 * 1024;
/// How long one request may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// The bytes that arriving requests may hold.
#[derive(Clone)]
pub struct Arrivals(Shares<IpAddr>);

impl Default for Arrivals {
    fn default() -> Self {
        Self(Shares::new(ARRIVING_BYTES_MAX, PEER_BYTES_MAX))
    }
}

impl Arrivals {
    /// Holds a request's body to the bounds.
    pub fn bound(&self, request: http::Request<tonic::body::Body>) -> http::Request<tonic::body::Body> {
        let peer = request.extensions().get().map_or(IpAddr::from([0; 4]), |peer: &Peer| peer.address);
        request.map(|body| {
            let (mut held, deadline) = (self.0.of(peer), Box::pin(sleep(ARRIVAL_MAX)));
            let fits = held.grow(REQUEST_BYTES).is_ok();
            tonic::body::Body::new(BoundedBody { body, held, fits, deadline })
        })
    }
}

struct BoundedBody {
    body: tonic::body::Body,
    /// Given back when the body is dropped, which it is once the request is decoded.
    held: Share<IpAddr>,
    /// Whether all of it was within the bounds so far.
    fits: bool,
    deadline: Pin<Box<Sleep>>,
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = if self.fits { Pin::new(&mut self.body).poll_frame(context) } else { Poll::Ready(None) };
        let Poll::Ready(frame) = polled else {
            return self
                .deadline
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(Status::deadline_exceeded("the request took too long to arrive"))));
        };
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        self.fits = self.fits && self.held.grow(bytes).is_ok();
        let full = || Some(Err(Status::resource_exhausted("too many requests are arriving: try again")));
        Poll::Ready(if self.fits { frame } else { full() })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    async fn sent(arrivals: &Arrivals, peer: u8, bytes: usize) -> Result<tonic::body::Body, Status> {
        let mut request = http::Request::new(tonic::body::Body::new(Full::new(Bytes::from(vec![0; bytes]))));
        request.extensions_mut().insert(Peer::at(IpAddr::from([10, 0, 0, peer])));
        let mut body = arrivals.bound(request).into_body();
        body.frame().await.unwrap().map(|_| body)
    }

    #[tokio::test]
    async fn attack_16_requests_hold_no_more_than_the_bounds_of_their_peer_and_of_all() {
        let arrivals = Arrivals::default();
        let first = sent(&arrivals, 1, PEER_BYTES_MAX - 2 * REQUEST_BYTES - 10).await.unwrap();
        assert_eq!(sent(&arrivals, 1, 11).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        let mut all = vec![sent(&arrivals, 1, 10).await.unwrap()];
        for peer in 2..=8 {
            all.push(
                sent(&arrivals, peer, PEER_BYTES_MAX - REQUEST_BYTES).await.expect("others have their own"),
            );
        }
        assert_eq!(sent(&arrivals, 9, 1).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        drop(first);
        assert!(sent(&arrivals, 9, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn attack_16_a_request_that_does_not_arrive_is_given_up() {
        let (_sender, silent) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let silent = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(silent));
        let mut body =
            Arrivals::default().bound(http::Request::new(tonic::body::Body::new(silent))).into_body();
        let refused = body.frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    }
}
