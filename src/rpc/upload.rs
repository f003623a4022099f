//! What clients send, before it is a message: bounded in length, in memory over all clients, and in time.
//!
//! The framework makes room for a message when it knows its length, gathers the pieces, and knows neither a budget nor a clock
//! for them. So this stands between it and the transport, and hands over whole messages only: what a client announces costs
//! nothing, what it has sent counts. Calls that take no images have small messages, which are outside the budget: whether the
//! server lives can be asked however much is uploaded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::status::status;
use crate::error::{Error, Violations};

/// A message begins with a flag, whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// How long the rest of a message may be waited for while nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that win a second of it back: whoever sends more slowly runs out of it.
const BYTES_A_SECOND: u32 = 64 << 10;
/// How long a stream may keep the memory of its largest message without one of half the size, once others find none.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// Calls that take images. The messages of all others are [`SMALL`].
const LARGE: [&str; 6] = [
    "/pixeld.v1.GenerationService/GenerateImages",
    "/pixeld.v1.GenerationService/StreamGenerateImages",
    "/pixeld.v1.ScoringService/ScoreImages",
    "/pixeld.v1.ScoringService/StreamScoreImages",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
];
/// Longest message without an image, in bytes: names, and what reflection is asked for.
const SMALL: usize = 16 << 10;
/// What a byte that came counts for until its message is whole: the room for pieces grows by doubling.
const GATHERED: usize = 2;
/// What one byte of gzip becomes at most.
const MOST_INFLATED: usize = 1032;
/// Calls whose clients send any number of messages, and may pause between them. All others send one.
const STREAMS: [&str; 4] = [
    "/pixeld.v1.ScoringService/StreamScoreImages",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/inference.GRPCInferenceService/ModelStreamInfer",
];

/// Calls whose messages hold lists of packed numbers, and how much larger one may be decoded: a number takes a byte there and
/// eight here. All others hold bytes.
const PACKED: (&str, usize) = ("/inference.GRPCInferenceService/", 8);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The memory for messages on their way in, shared by all connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Uploads {
    free: Arc<Semaphore>,
    limit: usize,
    largest: usize,
    /// Told when somebody found no memory.
    pressed: Arc<watch::Sender<()>>,
    closing: CancellationToken,
}

impl Uploads {
    /// `limit` bytes for all messages, each of them `largest` at most.
    pub(crate) fn new(limit: usize, largest: usize) -> Self {
        let free = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { free, limit, largest, pressed: Arc::new(watch::Sender::new(())), closing: CancellationToken::new() }
    }

    /// Nobody is waited for any more: clients that have yet to send something are told that the server is draining.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// `body`, the request of a call to `path`, under watch.
    pub(super) fn watch<B>(&self, path: &str, body: B) -> Upload<B> {
        let large = LARGE.contains(&path);
        Upload {
            body,
            largest: if large { self.largest } else { self.largest.min(SMALL) },
            counted: large,
            closing: Box::pin(self.closing.clone().cancelled_owned()),
            pressed: None,
            uploads: self.clone(),
            held: None,
            streams: STREAMS.contains(&path),
            weight: if path.starts_with(PACKED.0) { PACKED.1 } else { 1 },
            stage: Stage::Due,
            pieces: BytesMut::new(),
            largest_yet: 0,
            used: Instant::now(),
            patience: PATIENCE,
            waiting_since: None,
            timer: Box::pin(sleep_until(Instant::now() + PATIENCE)),
        }
    }
}

/// A request body under watch. Dropping it gives its memory back.
pub(super) struct Upload<B> {
    body: B,
    uploads: Uploads,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What its largest message may be.
    largest: usize,
    /// Whether it takes memory of the budget.
    counted: bool,
    /// While a message comes, what has come of it. Once it is whole, the largest yet with what it becomes, until the body is
    /// dropped: the framework's buffers stay as large.
    held: Option<OwnedSemaphorePermit>,
    /// What the largest message yet counts for.
    largest_yet: usize,
    /// When a message came that counts for half as much or more.
    used: Instant,
    /// While a stream pauses with memory in its hands: rings when somebody finds none.
    pressed: Option<WatchStream<()>>,
    streams: bool,
    /// What a byte of a message counts for.
    weight: usize,
    stage: Stage,
    /// As much as came of the message under way, its prefix included.
    pieces: BytesMut,
    /// What is left of it. Only waiting uses it up: bytes that we left lying are not late.
    patience: Duration,
    waiting_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first message has yet to come, or one has begun.
    Due,
    /// Between two messages of a stream.
    Pausing,
    /// The only message is whole, or something was wrong.
    Ended,
}

impl<B> Upload<B> {
    /// Takes `data` in and hands out the messages that it completes; what comes after the last message is cut off.
    fn read(&mut self, data: &Bytes) -> Result<Bytes, Error> {
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let earned = Duration::from_secs(data.len() as u64) / BYTES_A_SECOND;
        self.patience = (self.patience.saturating_sub(waited) + earned).min(PATIENCE);
        if self.stage == Stage::Pausing && !data.is_empty() {
            (self.stage, self.patience, self.pressed) = (Stage::Due, PATIENCE, None);
        }
        let gathering = !self.pieces.is_empty();
        if gathering {
            self.pieces.extend_from_slice(data);
        }
        let all = if gathering { self.pieces.as_ref() } else { data.as_ref() };
        let (mut whole, mut messages) = (0, Vec::new());
        while let Some((flag, length)) = all.get(whole..).and_then(begun) {
            if length > self.largest {
                let mut violations = Violations::new();
                violations.add("request", format!("must be at most {} bytes, got {length}", self.largest));
                return Err(violations.into());
            }
            if all.len() - whole < PREFIX_BYTES + length {
                break;
            }
            whole += PREFIX_BYTES + length;
            messages.push((flag != 0, length));
            if !self.streams {
                // The framework would keep the message, decoded, until the client says that no other follows.
                self.stage = Stage::Ended;
                break;
            }
        }
        let rest = if self.stage == Stage::Ended { 0 } else { all.len() - whole };
        for (compressed, length) in messages {
            // The only message of a call is inflated and used up in one go, but a stream keeps the room for it.
            let keeps = compressed && self.streams;
            let inflated = if keeps { self.largest.min(length.saturating_mul(MOST_INFLATED)) } else { 0 };
            let counts = (length + inflated).saturating_mul(self.weight);
            self.largest_yet = self.largest_yet.max(counts);
            if counts >= self.largest_yet / 2 {
                self.used = Instant::now();
            }
        }
        self.hold(self.largest_yet + rest.saturating_sub(PREFIX_BYTES) * GATHERED)?;
        let all = if gathering { std::mem::take(&mut self.pieces) } else { BytesMut::new() };
        let handed = match (gathering, whole) {
            (true, 0) => {
                self.pieces = all;
                Bytes::new()
            }
            // The rest has room of its own: sharing it would keep all of the message for as long as the stream.
            (true, _) => {
                self.pieces.extend_from_slice(all.get(all.len() - rest..).unwrap_or_default());
                all.freeze().slice(..whole)
            }
            (false, _) => {
                self.pieces.extend_from_slice(data.get(data.len() - rest..).unwrap_or_default());
                data.slice(..whole)
            }
        };
        if rest == 0 && self.streams && whole > 0 {
            self.stage = Stage::Pausing;
            self.pressed = self.held.is_some().then(|| WatchStream::from_changes(self.uploads.pressed.subscribe()));
        }
        Ok(handed)
    }

    /// Holds `bytes` of the budget, no more and no less.
    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if !self.counted || bytes == held {
            return Ok(());
        }
        if let Some(less) = held.checked_sub(bytes) {
            drop(self.held.as_mut().and_then(|held| held.split(less)));
            return Ok(());
        }
        let (free, requested) = (Arc::clone(&self.uploads.free), bytes - held);
        match u32::try_from(requested).ok().and_then(|requested| free.try_acquire_many_owned(requested).ok()) {
            Some(more) => match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            },
            None => {
                self.uploads.pressed.send_replace(());
                let (free, limit) = (self.uploads.free.available_permits(), self.uploads.limit);
                return Err(Error::UploadsFull { requested, free, limit });
            }
        }
        Ok(())
    }

    /// Resolves when the client is not waited for any longer, with what it is told.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        if self.closing.as_mut().poll(context).is_ready() {
            return Poll::Ready(Error::Draining);
        }
        let now = Instant::now();
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
            self.timer.as_mut().reset(now + self.patience);
        }
        if self.stage == Stage::Pausing {
            let Some(pressed) = &mut self.pressed else { return Poll::Pending };
            while let Poll::Ready(Some(())) = Pin::new(&mut *pressed).poll_next(context) {
                if now >= self.used + MOST_PAUSE {
                    return Poll::Ready(Error::RequestStalled);
                }
            }
            return Poll::Pending;
        }
        self.timer.as_mut().poll(context).map(|()| Error::RequestStalled)
    }

    fn refuse<T>(&mut self, error: Error) -> Poll<Option<Result<T, AnyError>>> {
        self.stage = Stage::Ended;
        (self.pieces, self.held) = (BytesMut::new(), None);
        let mut refusal = status(&error);
        refusal.set_source(Arc::new(error));
        Poll::Ready(Some(Err(refusal.into())))
    }
}

/// The flag and the length of the message that `data` begins with, if its prefix is whole.
fn begun(data: &[u8]) -> Option<(u8, usize)> {
    let (&[flag, a, b, c, d], _) = data.split_first_chunk()?;
    Some((flag, u32::from_be_bytes([a, b, c, d]) as usize))
}

impl<B: Body<Data = Bytes, Error: Into<AnyError>> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        loop {
            if this.stage == Stage::Ended {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(None) if !this.pieces.is_empty() => {
                    let half = Violations::one("request", "ended in the middle of a message");
                    return this.refuse(half.into());
                }
                Poll::Ready(other) => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
                Poll::Pending => {
                    return match this.poll_late(context) {
                        Poll::Ready(error) => this.refuse(error),
                        Poll::Pending => Poll::Pending,
                    };
                }
            };
            match frame.into_data().map(|data| this.read(&data)) {
                Ok(Ok(messages)) if messages.is_empty() => {}
                Ok(Ok(messages)) => return Poll::Ready(Some(Ok(Frame::data(messages)))),
                Ok(Err(error)) => return this.refuse(error),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const UNARY: &str = "/pixeld.v1.ScoringService/ScoreImages";
    const LIMIT: usize = 4000;
    const LARGEST: usize = 1000;

    /// A body that its test feeds.
    struct Fed(Receiver<Vec<u8>>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = AnyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, AnyError>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data.into()))))
        }
    }

    fn upload(uploads: &Uploads, path: &str) -> (Sender<Vec<u8>>, Upload<Fed>) {
        let (feed, fed) = channel(16);
        (feed, uploads.watch(path, Fed(fed)))
    }

    fn uploads() -> Uploads {
        Uploads::new(LIMIT, LARGEST)
    }

    /// `sent` bytes of a message of `length`.
    fn message(flag: u8, length: u32, sent: usize) -> Vec<u8> {
        [vec![flag], length.to_be_bytes().to_vec(), vec![7; sent]].concat()
    }

    /// The next data, the end, or what was refused.
    async fn next(upload: &mut Upload<Fed>) -> Result<Option<Bytes>, Error> {
        let frame = poll_fn(|context| Pin::new(&mut *upload).poll_frame(context)).await;
        let refused = |error: AnyError| {
            super::super::status::cause(error.downcast_ref().expect("a status")).cloned().expect("an error of ours")
        };
        frame.transpose().map(|frame| frame.and_then(|frame| frame.into_data().ok())).map_err(refused)
    }

    #[tokio::test]
    async fn lists_of_packed_numbers_count_with_what_they_become() {
        for (length, requested) in [(400, None), (600, Some(4800))] {
            let (feed, mut upload) = upload(&uploads(), "/inference.GRPCInferenceService/ModelInfer");
            feed.send(message(0, length, length as usize)).await.unwrap();
            match (next(&mut upload).await, requested) {
                (Ok(Some(_)), None) => {}
                (Err(Error::UploadsFull { requested, .. }), Some(wanted)) => assert_eq!(requested, wanted),
                (other, _) => panic!("{length}: {other:?}"),
            }
        }
    }

    /// Reads on, while the client sends `piece` every `pause`, until it is refused; gives how long that took.
    async fn until_refused(first: Vec<u8>, piece: usize, pause: Duration) -> (Error, Duration) {
        let start = Instant::now();
        let (feed, mut upload) = upload(&Uploads::new(1 << 30, 1 << 30), UNARY);
        feed.send(first).await.unwrap();
        let mut pieces = tokio::time::interval_at(start + pause, pause);
        loop {
            assert!(start.elapsed() < PATIENCE * 20, "it is never given up");
            tokio::select! {
                biased;
                frame = next(&mut upload) => if let Err(error) = frame { return (error, start.elapsed()) },
                _ = pieces.tick() => feed.send(vec![7; piece]).await.unwrap(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stands_still_or_trickles_is_given_up_and_one_that_flows_is_not() {
        let second = Duration::from_secs(1);
        for begun in [vec![], vec![0, 0], message(0, 1 << 20, 10)] {
            let (error, after) = until_refused(begun, 1, PATIENCE * 10).await;
            assert_eq!((error, after.as_secs()), (Error::RequestStalled, 30));
        }
        let (_, after) = until_refused(message(0, 1 << 20, 10), 1, second).await;
        assert!(after < PATIENCE + second, "{after:?} for a byte a second");
        let (_, after) = until_refused(message(0, 100 << 20, 10), 32 << 10, second).await;
        assert!(after < PATIENCE * 2 + second * 2, "{after:?} at half the least speed");

        let (feed, mut upload) = upload(&Uploads::new(1 << 30, 1 << 30), UNARY);
        feed.send(message(0, 100 << 16, 0)).await.unwrap();
        for _ in 0..100 {
            assert!(next(&mut upload).now_or_never().is_none(), "just fast enough");
            tokio::time::advance(second).await;
            feed.send(vec![7; 1 << 16]).await.unwrap();
        }
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 5 + (100 << 16), "it is whole");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_pause_between_messages_and_nowhere_else() {
        let (feed, mut upload) = upload(&uploads(), STREAMS[0]);
        feed.send([message(0, 3, 3), message(0, 0, 0), message(0, 2, 2)].concat()).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 20);
        assert!(tokio::time::timeout(PATIENCE * 100, next(&mut upload)).await.is_err(), "it waits");
        feed.send(message(0, 3, 2)).await.unwrap();
        assert_eq!(next(&mut upload).await, Err(Error::RequestStalled));
        assert_eq!(next(&mut upload).await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_leave_lying_is_not_late() {
        let (feed, mut upload) = upload(&uploads(), UNARY);
        feed.send(message(0, 100, 50)).await.unwrap();
        tokio::time::advance(PATIENCE * 2).await;
        assert!(tokio::time::timeout(PATIENCE / 2, next(&mut upload)).await.is_err(), "it waits on");
    }

    #[tokio::test]
    async fn a_stream_is_counted_with_the_largest_it_had_and_what_that_may_inflate_to() {
        for (flag, path, counted) in [(0, UNARY, 100), (1, UNARY, 100), (0, STREAMS[0], 100), (1, STREAMS[0], 1100)] {
            let uploads = uploads();
            let (feed, mut upload) = upload(&uploads, path);
            // The larger second message is not read where there is only one.
            for length in [50, 100, 10] {
                let length = if path == UNARY { 100 } else { length };
                feed.send(message(flag, length, length as usize)).await.unwrap();
                assert!(next(&mut upload).await.is_ok());
            }
            assert_eq!(LIMIT - uploads.free.available_permits(), counted, "{flag} {path}");
            drop(upload);
            assert_eq!(LIMIT, uploads.free.available_permits(), "given back");
        }
    }

    #[tokio::test]
    async fn what_is_announced_costs_nothing_and_what_came_counts() {
        let uploads = uploads();
        let (feed, mut upload) = upload(&uploads, UNARY);
        feed.send(message(0, 1000, 5)).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none(), "half a message is nobody's");
        assert_eq!(LIMIT - uploads.free.available_permits(), 2 * 5);
        feed.send(vec![7; 900]).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none());
        assert_eq!(LIMIT - uploads.free.available_permits(), 2 * 905);
        feed.send(vec![7; 95]).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 1005);
        assert_eq!(LIMIT - uploads.free.available_permits(), 1000, "what it is, once it is whole");
    }

    #[tokio::test]
    async fn calls_without_images_need_none_of_the_memory_and_have_small_messages() {
        let uploads = Uploads::new(0, 1 << 20);
        for (length, taken) in [(SMALL, true), (SMALL + 1, false)] {
            let (feed, mut upload) = upload(&uploads, "/grpc.health.v1.Health/Check");
            feed.send(message(0, length as u32, length)).await.unwrap();
            assert_eq!(next(&mut upload).await.is_ok(), taken, "{length}");
        }
        let (feed, mut upload) = upload(&uploads, UNARY);
        feed.send(message(0, 1, 1)).await.unwrap();
        assert!(matches!(next(&mut upload).await, Err(Error::UploadsFull { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_pauses_for_long_gives_its_memory_to_those_who_want_it() {
        let uploads = uploads();
        let want = async |length: u32| {
            let (feed, mut upload) = upload(&uploads, UNARY);
            feed.send(message(0, length, length as usize)).await.unwrap();
            next(&mut upload).await
        };
        let (feed, mut pausing) = upload(&uploads, STREAMS[0]);
        // Inflated it may be as long as any.
        feed.send((0..4).flat_map(|_| message(1, 999, 999)).collect()).await.unwrap();
        assert!(next(&mut pausing).await.is_ok());
        let others: Vec<_> = (0..3).map(|_| uploads.free.clone().try_acquire_many_owned(600).unwrap()).collect();
        tokio::time::advance(MOST_PAUSE - Duration::from_secs(1)).await;
        assert!(next(&mut pausing).now_or_never().is_none());
        assert!(want(1000).await.is_err());
        assert!(next(&mut pausing).now_or_never().is_none(), "it did not pause for long");
        tokio::time::advance(MOST_PAUSE).await;
        feed.send(message(0, 10, 10)).await.unwrap();
        assert!(next(&mut pausing).await.is_ok(), "small messages are not what it keeps the memory for");
        assert!(next(&mut pausing).now_or_never().is_none(), "nobody wants any");
        assert!(want(1000).await.is_err());
        assert_eq!(next(&mut pausing).await, Err(Error::RequestStalled));
        assert!(want(1000).await.is_ok(), "others have it now");
        drop((feed, others));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_once_it_is_closed() {
        for first in [vec![], message(0, 100, 50), message(0, 3, 3)] {
            let uploads = uploads();
            let (feed, mut upload) = upload(&uploads, STREAMS[0]);
            if !first.is_empty() {
                feed.send(first).await.unwrap();
            }
            _ = next(&mut upload).now_or_never();
            uploads.close();
            assert_eq!(next(&mut upload).await, Err(Error::Draining));
        }
    }

    #[tokio::test]
    async fn a_message_that_was_handed_over_leaves_nothing_behind_on_a_stream() {
        let uploads = uploads();
        let (feed, mut upload) = upload(&uploads, STREAMS[0]);
        feed.send(message(0, 1000, 500)).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none());
        // The next one begins in the same piece.
        feed.send([vec![7; 500], message(0, 3, 0)].concat()).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 1005);
        assert!(!upload.pieces.try_reclaim(900), "its room is gone");
        feed.send(vec![7; 3]).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 8);
    }

    #[tokio::test]
    async fn half_a_message_at_the_end_is_refused() {
        for path in [UNARY, STREAMS[0]] {
            for sent in [message(0, 80, 0), message(0, 80, 20)] {
                let uploads = uploads();
                let (feed, mut upload) = upload(&uploads, path);
                feed.send(sent).await.unwrap();
                drop(feed);
                assert!(matches!(next(&mut upload).await, Err(Error::Invalid(_))));
                assert_eq!(uploads.free.available_permits(), LIMIT);
            }
        }
    }

    #[test]
    fn every_method_that_takes_a_stream_is_known_to() {
        let files: prost_types::FileDescriptorSet = prost::Message::decode(super::super::proto::DESCRIPTORS).unwrap();
        let mut large = LARGE.to_vec();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    large.retain(|path| *path != format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert_eq!(STREAMS.contains(&&*path), method.client_streaming(), "{path}");
                }
            }
        }
        assert!(large.is_empty(), "no such methods: {large:?}");
    }
}
