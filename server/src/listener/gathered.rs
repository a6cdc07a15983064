//! A stream whose writes are gathered. HTTP/2 hands out a reply's headers, data and trailers one by one and flushes between
//! them; as they are, each would be a TLS record and a call of the kernel, and wake the client.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most: as many as a TLS record holds.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// Room for trailers behind what is written first, so that it need not be moved for them.
const TRAILERS_BYTES: usize = 128;

/// Gathers what is written until a flush has given way once to all that is ready to run.
pub(super) struct Gathered<S> {
    stream: S,
    /// Empty and without memory while nothing waits, for it holds secrets: the allocator wipes what is freed.
    waiting: Vec<u8>,
    /// How many of them the stream has taken.
    taken: usize,
    has_given_way: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), taken: 0, has_given_way: false }
    }

    fn poll_hand_on(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let taken = ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting[self.taken..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += taken;
        }
        (self.waiting, self.taken, self.has_given_way) = (Vec::new(), 0, false);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= GATHERED_BYTES_MAX {
            ready!(self.poll_hand_on(context))?;
        }
        let before = self.waiting.len();
        if before == 0 {
            let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
            self.waiting.reserve_exact(GATHERED_BYTES_MAX.min(bytes + TRAILERS_BYTES));
        }
        for slice in slices {
            let room = GATHERED_BYTES_MAX - self.waiting.len();
            self.waiting.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        Poll::Ready(Ok(self.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !std::mem::replace(&mut self.has_given_way, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_hand_on(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_hand_on(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Takes all that it is given, and remembers how much each time.
    #[derive(Default)]
    struct Counting(Vec<usize>);

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_reply_leaves_at_once_though_it_is_flushed_in_the_middle() {
        let mut gathered = Gathered::new(Counting::default());
        for expected in [vec![1_310], vec![1_310, 1_310]] {
            gathered.write_all(&[1; 60]).await.unwrap();
            gathered.write_all(&[2; 1_200]).await.unwrap();
            poll_fn(|context| {
                assert!(Pin::new(&mut gathered).poll_flush(context).is_pending());
                Poll::Ready(())
            })
            .await;
            gathered.write_all(&[3; 50]).await.unwrap();
            gathered.flush().await.unwrap();
            assert_eq!(gathered.stream.0, expected);
            assert_eq!(gathered.waiting.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn nothing_is_lost_on_the_way_to_a_slow_reader() {
        let (mut reader, writer) = duplex(7);
        let mut gathered = Gathered::new(writer);
        let sent: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for (turn, piece) in sent.chunks(977).enumerate() {
                gathered.write_all(piece).await.unwrap();
                if turn % 3 == 0 {
                    gathered.flush().await.unwrap();
                }
            }
            gathered.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let mut gathered = Gathered::new(Counting::default());
        let slices = [IoSlice::new(&[0; 10_000]), IoSlice::new(&[0; 10_000])];
        assert_eq!(gathered.write_vectored(&slices).await.unwrap(), GATHERED_BYTES_MAX);
        assert!(gathered.stream.0.is_empty());
        assert_eq!(gathered.write_vectored(&slices).await.unwrap(), GATHERED_BYTES_MAX);
        assert_eq!(gathered.stream.0, [GATHERED_BYTES_MAX]);
    }
}
