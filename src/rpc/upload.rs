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
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::budget::{Budget, Evicted, Share};
use super::status::status;
use crate::error::{Error, Violations};

/// A message begins with a flag, whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// How long the rest of a message may be waited for while nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that win a second of it back: whoever sends more slowly runs out of it.
const BYTES_A_SECOND: u32 = 64 << 10;
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
/// Calls whose messages are no longer take nothing of the budget, so that small requests find room however much is uploaded.
const SPARED: usize = 4 << 10;
/// What a byte that came counts for until its message is whole: the room for pieces grows by doubling.
const GATHERED: usize = 2;
/// Calls whose clients send any number of messages, and may pause between them. All others send one. Their messages are not
/// compressed: what one becomes is not known before, and its room stays with the stream.
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

/// What all uploads share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Uploads {
    budget: Budget,
    largest: usize,
    closing: CancellationToken,
}

impl Uploads {
    /// `limit` bytes for all messages, each of them `largest` at most.
    pub(crate) fn new(limit: usize, largest: usize) -> Self {
        Self { budget: Budget::new(limit), largest, closing: CancellationToken::new() }
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
            share: large.then(|| self.budget.share()),
            closing: Box::pin(self.closing.clone().cancelled_owned()),
            streams: STREAMS.contains(&path),
            weight: if path.starts_with(PACKED.0) { PACKED.1 } else { 1 },
            stage: Stage::Due,
            pieces: BytesMut::new(),
            largest_yet: 0,
            longest: 0,
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
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What its largest message may be.
    largest: usize,
    /// What it takes of the budget, if it has to: while a message comes, what has come of it; once it is whole, the largest yet with
    /// what it becomes, until the body is dropped: the framework's buffers stay as large.
    share: Option<Share>,
    /// What the largest message yet counts for.
    largest_yet: usize,
    /// How long the longest was.
    longest: usize,
    /// When a message came, or half of one, that counts for half as much or more.
    used: Instant,
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
    /// What rings when it is to end.
    pub(super) fn evicted(&self) -> Evicted {
        self.share.as_ref().map(Share::evicted).unwrap_or_default()
    }

    /// Takes `data` in and hands out the messages that it completes; what comes after the last message is cut off.
    fn read(&mut self, data: &Bytes) -> Result<Bytes, Error> {
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let earned = Duration::from_secs(data.len() as u64) / BYTES_A_SECOND;
        self.patience = (self.patience.saturating_sub(waited) + earned).min(PATIENCE);
        if self.stage == Stage::Pausing && !data.is_empty() {
            (self.stage, self.patience) = (Stage::Due, PATIENCE);
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
            if flag != 0 && self.streams {
                return Err(Violations::one("request", "must not be compressed: it is one of a stream").into());
            }
            if all.len() - whole < PREFIX_BYTES + length {
                break;
            }
            whole += PREFIX_BYTES + length;
            messages.push(length);
            if !self.streams {
                // The framework would keep the message, decoded, until the client says that no other follows.
                self.stage = Stage::Ended;
                break;
            }
        }
        let rest = if self.stage == Stage::Ended { 0 } else { all.len() - whole };
        for length in messages {
            self.longest = self.longest.max(length);
            let counts = length.saturating_mul(self.weight);
            self.largest_yet = self.largest_yet.max(counts);
            if counts >= self.largest_yet / 2 {
                self.used = Instant::now();
            }
        }
        let gathered = rest.saturating_sub(PREFIX_BYTES);
        if gathered * GATHERED >= self.largest_yet / 2 && gathered > 0 {
            self.used = Instant::now();
        }
        if let Some(share) = &mut self.share {
            let small = self.longest.max(gathered) <= SPARED;
            let bytes = if small { 0 } else { self.largest_yet + gathered * GATHERED };
            share.hold(bytes, self.streams.then_some(self.used))?;
        }
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
        }
        Ok(handed)
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
            return Poll::Pending;
        }
        self.timer.as_mut().poll(context).map(|()| Error::RequestStalled)
    }

    fn refuse<T>(&mut self, error: Error) -> Poll<Option<Result<T, AnyError>>> {
        self.stage = Stage::Ended;
        (self.pieces, self.share) = (BytesMut::new(), None);
        // The framework takes one that was cancelled for one that has ended.
        let gone = || tonic::Status::unknown("the request was taken back");
        let mut refusal = if error == Error::Cancelled { gone() } else { status(&error) };
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
                // The connection broke, or the client took the call back, which may look like its end.
                Poll::Ready(Some(Err(_))) => return this.refuse(Error::Cancelled),
                Poll::Ready(None) if !this.body.is_end_stream() => return this.refuse(Error::Cancelled),
                Poll::Ready(None) if !this.pieces.is_empty() => {
                    let half = Violations::one("request", "ended in the middle of a message");
                    return this.refuse(half.into());
                }
                Poll::Ready(None) => {
                    if let Some(share) = &mut this.share {
                        share.settle();
                    }
                    return Poll::Ready(None);
                }
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

    use super::super::budget::MOST_PAUSE;
    use super::*;

    const UNARY: &str = "/pixeld.v1.ScoringService/ScoreImages";
    const LIMIT: usize = 400_000;
    const LARGEST: usize = 100_000;

    /// A body that its test feeds, and whether it ends by being taken back.
    struct Fed(Receiver<Vec<u8>>, bool);

    impl Body for Fed {
        type Data = Bytes;
        type Error = AnyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, AnyError>>> {
            self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data.into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_closed() && !self.1
        }
    }

    fn upload(uploads: &Uploads, path: &str) -> (Sender<Vec<u8>>, Upload<Fed>) {
        let (feed, fed) = channel(16);
        (feed, uploads.watch(path, Fed(fed, false)))
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
        for (length, requested) in [(40_000, None), (60_000, Some(480_000))] {
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
    async fn a_stream_is_counted_with_the_largest_it_had() {
        for path in [UNARY, STREAMS[0]] {
            let uploads = uploads();
            let (feed, mut upload) = upload(&uploads, path);
            // The larger second message is not read where there is only one.
            for length in [50_000, 100_000, 10] {
                let length = if path == UNARY { 100_000 } else { length };
                feed.send(message(0, length, length as usize)).await.unwrap();
                assert!(next(&mut upload).await.is_ok());
            }
            assert_eq!(LIMIT - uploads.budget.free(), 100_000, "{path}");
            drop(upload);
            assert_eq!(LIMIT, uploads.budget.free(), "given back");
        }
    }

    #[tokio::test]
    async fn messages_of_a_stream_are_not_compressed() {
        for (path, taken) in [(UNARY, true), (STREAMS[0], false), (STREAMS[3], false)] {
            let (feed, mut upload) = upload(&uploads(), path);
            feed.send(message(1, 100, 100)).await.unwrap();
            assert_eq!(next(&mut upload).await.is_ok(), taken, "{path}");
        }
    }

    #[tokio::test]
    async fn what_was_taken_back_was_cancelled_and_did_not_end() {
        for sent in [vec![], message(0, 80, 20), message(0, 80, 80)] {
            let (feed, fed) = channel(16);
            let mut upload = uploads().watch(STREAMS[0], Fed(fed, true));
            feed.send(sent.clone()).await.unwrap();
            drop(feed);
            if sent.len() == 85 {
                assert!(next(&mut upload).await.is_ok());
            }
            assert_eq!(next(&mut upload).await, Err(Error::Cancelled));
        }
    }

    #[tokio::test]
    async fn what_is_announced_costs_nothing_and_what_came_counts() {
        let uploads = uploads();
        let (feed, mut upload) = upload(&uploads, UNARY);
        feed.send(message(0, 100_000, 5000)).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none(), "half a message is nobody's");
        assert_eq!(LIMIT - uploads.budget.free(), 2 * 5000);
        feed.send(vec![7; 90_000]).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none());
        assert_eq!(LIMIT - uploads.budget.free(), 2 * 95_000);
        feed.send(vec![7; 5000]).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 100_005);
        assert_eq!(LIMIT - uploads.budget.free(), 100_000, "what it is, once it is whole");
    }

    #[tokio::test]
    async fn calls_without_images_need_none_of_the_memory_and_have_small_messages() {
        let uploads = Uploads::new(0, 1 << 20);
        for (length, taken) in [(SMALL, true), (SMALL + 1, false)] {
            let (feed, mut upload) = upload(&uploads, "/grpc.health.v1.Health/Check");
            feed.send(message(0, length as u32, length)).await.unwrap();
            assert_eq!(next(&mut upload).await.is_ok(), taken, "{length}");
        }
        for (length, taken) in [(SPARED, true), (SPARED + 1, false)] {
            let (feed, mut upload) = upload(&uploads, UNARY);
            // In two parts.
            feed.send(message(0, length as u32, length - 1)).await.unwrap();
            feed.send(vec![7]).await.unwrap();
            assert_eq!(next(&mut upload).await.is_ok(), taken, "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_keep_memory_without_need_give_it_to_those_who_want_it() {
        let uploads = Uploads::new(3 * LARGEST + 1000, LARGEST);
        let want = async |length: u32| {
            let (feed, mut upload) = upload(&uploads, UNARY);
            feed.send(message(0, length, length as usize)).await.unwrap();
            next(&mut upload).await
        };
        let hold = async |length: u32| {
            let (feed, mut upload) = upload(&uploads, STREAMS[0]);
            feed.send(message(0, length, length as usize)).await.unwrap();
            assert!(next(&mut upload).await.is_ok());
            (feed, upload)
        };
        let (largest, less) = (LARGEST as u32, LARGEST as u32 / 2);
        let (mut busy, large, smaller) = (hold(largest).await, hold(largest).await, hold(less).await);
        let (small, tiny) = (hold(less).await, hold(100).await);
        let evicted = |held: &(Sender<Vec<u8>>, Upload<Fed>)| held.1.evicted().is_rung();
        tokio::time::advance(MOST_PAUSE - Duration::from_secs(1)).await;
        assert!(want(largest).await.is_err());
        assert!(![&busy, &large, &smaller, &small, &tiny].into_iter().any(evicted), "nobody had it for long");
        // One needs it; the other sends what needs little, and has begun another.
        busy.0.send(message(0, less, less as usize)).await.unwrap();
        assert!(next(&mut busy.1).await.is_ok());
        let mut large = large;
        large.0.send([message(0, 10, 10), vec![0]].concat()).await.unwrap();
        assert!(next(&mut large.1).await.is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(want(largest).await.is_err());
        assert!(evicted(&large), "although it is in the midst of a message");
        assert!(
            ![&busy, &smaller, &small, &tiny].into_iter().any(evicted),
            "no more than was wanted, the largest first"
        );
        // Whoever answers it hears of it, and drops it.
        assert_eq!(large.1.evicted().rung().await, Error::RequestStalled);
        drop(large);
        assert!(want(largest).await.is_ok(), "others have it now");
        // What has just begun is not kept for long, however long the stream is there.
        let (feed, mut upload) = upload(&uploads, STREAMS[0]);
        feed.send(message(0, 100, 100)).await.unwrap();
        assert!(next(&mut upload).await.is_ok());
        tokio::time::advance(MOST_PAUSE * 2).await;
        feed.send(message(0, largest, 40_000)).await.unwrap();
        assert!(next(&mut upload).now_or_never().is_none());
        assert!(want(largest).await.is_err());
        assert!(!upload.evicted().is_rung() && evicted(&busy));
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
                assert_eq!(uploads.budget.free(), LIMIT);
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
