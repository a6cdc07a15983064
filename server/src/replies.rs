//! Replies until they are read. A client says how much of a reply it takes, and need not take any: all replies that wait may
//! hold so many bytes together, those of one peer a part of them, and each may wait for so long. So who does not read holds
//! no memory that others need.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::time::Instant;
use tonic::Status;
use tower::{Layer, Service};

use crate::{
    listener::Peer,
    shares::{Share, Shares},
};

/// Bytes of all replies that wait to be read.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Those of one peer among them: two of the largest replies.
const PEER_BYTES_MAX: usize = 20 * 1024 * 1024;
/// What each counts for besides its bytes: its place in the connection and its task.
const REPLY_BYTES: usize = 1024;
/// How long one may wait.
const READING_MAX: Duration = Duration::from_secs(20);
/// How often it is looked which have.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// As much is handed to the connection at once, which keeps it until it is sent.
const PART_BYTES: usize = 64 * 1024;

/// The bytes that replies may hold.
#[derive(Clone)]
pub struct Replies {
    held: Shares<IpAddr>,
    unread: Arc<Unread>,
}

impl<S> Layer<S> for Replies {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, replies: self.clone() }
    }
}

/// A service whose replies are held to the bounds.
#[derive(Clone)]
pub struct Bounded<S> {
    inner: S,
    replies: Replies,
}

type Request = http::Request<tonic::body::Body>;
type Response = http::Response<tonic::body::Body>;

impl<S> Service<Request> for Bounded<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let peer = request.extensions().get().map_or(IpAddr::from([0; 4]), |peer: &Peer| peer.address);
        let (replies, reply) = (self.replies.clone(), self.inner.call(request));
        Box::pin(async move { Ok(replies.bound(peer, reply.await?)) })
    }
}

impl Replies {
    /// Bounds for the replies of a server, which runs until it is dropped.
    pub fn start() -> Self {
        let unread = Arc::default();
        tokio::spawn(give_up_late(Arc::downgrade(&unread)));
        Self { held: Shares::new(WAITING_BYTES_MAX, PEER_BYTES_MAX), unread }
    }

    /// Holds a reply to the bounds.
    fn bound(&self, peer: IpAddr, reply: Response) -> Response {
        let (head, mut body) = reply.into_parts();
        // A message is encoded when it is first asked for: until then nobody knows how long it is.
        let Some(Some(Ok(first))) = body.frame().now_or_never() else {
            return http::Response::from_parts(head, body);
        };
        let bytes = first.data_ref().map_or(0, Bytes::len);
        let mut held = self.held.of(peer);
        if held.grow(REPLY_BYTES + bytes).is_err() {
            return Status::resource_exhausted("too many replies wait to be read: try again").into_http();
        }
        let waiting = Arc::new(Mutex::new(Some(Waiting { first: Some(first), rest: body, _held: held })));
        let id = self.unread.add(Arc::clone(&waiting));
        let reply = Reply { waiting, id, unread: Arc::clone(&self.unread) };
        http::Response::from_parts(head, tonic::body::Body::new(reply))
    }
}

/// Replies that were not read to their end.
#[derive(Default)]
struct Unread(Mutex<InOrder>);

/// The oldest first.
#[derive(Default)]
struct InOrder {
    replies: BTreeMap<u64, (Instant, Shared)>,
    next_id: u64,
}

impl Unread {
    fn in_order(&self) -> MutexGuard<'_, InOrder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, waiting: Shared) -> u64 {
        let mut all = self.in_order();
        let id = all.next_id;
        all.next_id += 1;
        all.replies.insert(id, (Instant::now(), waiting));
        id
    }

    fn pop_late(&self) -> Option<Shared> {
        let mut all = self.in_order();
        let oldest = all.replies.first_entry()?;
        (oldest.get().0.elapsed() >= READING_MAX).then(|| oldest.remove().1)
    }
}

/// One look at all replies rather than a timer for each, since nearly all are read at once.
async fn give_up_late(unread: Weak<Unread>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(unread) = unread.upgrade() else { return };
        while let Some(waiting) = unread.pop_late() {
            take(&waiting);
        }
    }
}

/// What was not handed over yet. The rest goes with the first frame: it keeps the buffer that the frame was encoded into.
struct Waiting {
    first: Option<Frame<Bytes>>,
    rest: tonic::body::Body,
    _held: Share<IpAddr>,
}

/// Nothing once it was read, or has waited for too long.
type Shared = Arc<Mutex<Option<Waiting>>>;

fn take(waiting: &Mutex<Option<Waiting>>) -> Option<Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
}

struct Reply {
    waiting: Shared,
    id: u64,
    unread: Arc<Unread>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = waiting.as_mut() else {
            return Poll::Ready(Some(Err(Status::deadline_exceeded("the reply was not read in time"))));
        };
        let Some(first) = waiting.first.take() else {
            return Pin::new(&mut waiting.rest).poll_frame(context);
        };
        let (part, later) = parted(first);
        waiting.first = later;
        Poll::Ready(Some(Ok(part)))
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.unread.in_order().replies.remove(&self.id);
        take(&self.waiting);
    }
}

/// As much as is handed over at once, and what comes after it. A copy, where it is not all: the connection may keep its part
/// for long, and would keep all of it.
fn parted(frame: Frame<Bytes>) -> (Frame<Bytes>, Option<Frame<Bytes>>) {
    match frame.into_data() {
        Ok(mut data) if data.len() > PART_BYTES => {
            let part = Bytes::copy_from_slice(&data.split_to(PART_BYTES));
            (Frame::data(part), Some(Frame::data(data)))
        }
        Ok(data) => (Frame::data(data), None),
        Err(other) => (other, None),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn reply(replies: &Replies, peer: u8, bytes: usize) -> Response {
        let body = tonic::body::Body::new(Full::new(Bytes::from(vec![7; bytes])));
        replies.bound(IpAddr::from([10, 0, 0, peer]), http::Response::new(body))
    }

    fn is_refused(reply: &Response) -> bool {
        reply.headers().get("grpc-status").is_some_and(|status| status == "8")
    }

    #[tokio::test]
    async fn attack_16_unread_replies_hold_no_more_than_the_bounds_of_their_peer_and_of_all() {
        let replies = Replies::start();
        let all = PEER_BYTES_MAX - REPLY_BYTES;
        let first = reply(&replies, 1, all);
        assert!(is_refused(&reply(&replies, 1, 1)));
        let others = [reply(&replies, 2, all), reply(&replies, 3, all)];
        assert!(others.iter().all(|reply| !is_refused(reply)), "others have their own");
        assert!(is_refused(&reply(&replies, 4, all)), "all together have what there is");
        drop(first);
        assert!(!is_refused(&reply(&replies, 4, all)));
    }

    #[tokio::test]
    async fn a_reply_comes_whole_in_parts() {
        let body = reply(&Replies::start(), 1, 3 * PART_BYTES + 5).into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), vec![7; 3 * PART_BYTES + 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_16_a_reply_that_is_not_read_is_given_up() {
        let replies = Replies::start();
        let mut unread = reply(&replies, 1, PEER_BYTES_MAX - REPLY_BYTES).into_body();
        assert!(unread.frame().await.unwrap().is_ok());
        tokio::time::sleep(READING_MAX + Duration::from_secs(1)).await;
        assert!(!is_refused(&reply(&replies, 1, 1)), "its bytes came back");
        assert_eq!(unread.frame().await.unwrap().unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_16_of_a_reply_that_is_given_up_nothing_stays_though_its_client_does() {
        let (replies, kept) = (Replies::start(), Arc::new(()));
        let in_body = Arc::clone(&kept);
        let body = Full::new(Bytes::from(vec![7; 3 * PART_BYTES])).map_frame(move |frame| {
            let _ = &in_body;
            frame
        });
        let body = tonic::body::Body::new(body);
        let mut unread = replies.bound(IpAddr::from([10, 0, 0, 1]), http::Response::new(body)).into_body();
        assert!(unread.frame().await.unwrap().is_ok());
        assert_eq!(Arc::strong_count(&kept), 2);
        tokio::time::sleep(READING_MAX + Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&kept), 1, "with what it was encoded into");
    }
}
