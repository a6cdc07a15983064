//! Requests while they arrive. All of them together may hold so many bytes, and each may take so long: who has not yet
//! proved anything can neither fill the server's memory nor keep a place by sending slowly.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::Status;

/// Bytes of all requests that are arriving, of all callers.
const ARRIVING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long one request may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// The bytes that arriving requests may hold.
#[derive(Clone)]
pub struct Arrivals(Arc<Semaphore>);

impl Default for Arrivals {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ARRIVING_BYTES_MAX)))
    }
}

impl Arrivals {
    /// Holds a request's body to the bounds.
    pub fn bound(&self, request: http::Request<tonic::body::Body>) -> http::Request<tonic::body::Body> {
        request.map(|body| {
            let deadline = Box::pin(sleep(ARRIVAL_MAX));
            tonic::body::Body::new(BoundedBody { body, arrivals: self.clone(), held: None, deadline })
        })
    }
}

struct BoundedBody {
    body: tonic::body::Body,
    arrivals: Arrivals,
    held: Option<OwnedSemaphorePermit>,
    deadline: Pin<Box<Sleep>>,
}

impl BoundedBody {
    /// Counts `bytes` until the body is dropped, which it is once the request is decoded.
    fn hold(&mut self, bytes: usize) -> Result<(), Status> {
        let full = || Status::resource_exhausted("too many requests are arriving: try again");
        let count = u32::try_from(bytes).map_err(|_| full())?;
        let held = Arc::clone(&self.arrivals.0).try_acquire_many_owned(count).map_err(|_| full())?;
        match &mut self.held {
            Some(all) => all.merge(held),
            none => *none = Some(held),
        }
        Ok(())
    }
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Poll::Ready(frame) = polled else {
            return self
                .deadline
                .as_mut()
                .poll(context)
                .map(|()| Some(Err(Status::deadline_exceeded("the request took too long to arrive"))));
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Some(self.hold(bytes).map(|()| frame))
            }
            other => other,
        })
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

    fn bounded(arrivals: &Arrivals, bytes: usize) -> tonic::body::Body {
        let body = tonic::body::Body::new(Full::new(Bytes::from(vec![0; bytes])));
        arrivals.bound(http::Request::new(body)).into_body()
    }

    #[tokio::test]
    async fn all_requests_together_hold_no_more_than_the_bound() {
        let arrivals = Arrivals::default();
        let mut first = bounded(&arrivals, ARRIVING_BYTES_MAX - 10);
        assert!(first.frame().await.unwrap().is_ok());
        let refused = bounded(&arrivals, 11).frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(first);
        assert!(bounded(&arrivals, 11).frame().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_arrive_is_given_up() {
        let (_sender, silent) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Status>>(1);
        let silent = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(silent));
        let mut body =
            Arrivals::default().bound(http::Request::new(tonic::body::Body::new(silent))).into_body();
        let refused = body.frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    }
}
