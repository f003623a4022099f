//! What clients send, before it is a message: bounded in length, in memory over all clients, and in time.
//!
//! The framework gathers the pieces of a message until it is whole, and knows neither a budget nor a clock for them. So
//! this stands between it and the transport, and reads along where messages begin and end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use super::status::status;
use crate::error::{Error, Violations};

/// A message begins with a flag, whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// How long the rest of a message may be waited for while nothing comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that win a second of it back: whoever sends more slowly runs out of it.
const BYTES_A_SECOND: u32 = 64 << 10;
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
}

impl Uploads {
    /// `limit` bytes for all messages, each of them `largest` at most.
    pub(crate) fn new(limit: usize, largest: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))), limit, largest }
    }

    /// `body`, the request of a call to `path`, under watch.
    pub(super) fn watch<B>(&self, path: &str, body: B) -> Upload<B> {
        Upload {
            body,
            uploads: self.clone(),
            held: None,
            streams: STREAMS.contains(&path),
            weight: if path.starts_with(PACKED.0) { PACKED.1 } else { 1 },
            stage: Stage::Due,
            prefix: Vec::new(),
            missing: 0,
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
    /// A message is counted in full from its prefix on, which is when the framework makes room for it, and counted until
    /// the body is dropped: the framework's buffers stay as large as the largest message of the stream.
    held: Option<OwnedSemaphorePermit>,
    streams: bool,
    /// What a byte of a message counts for.
    weight: usize,
    stage: Stage,
    /// As much as came of the prefix of the message under way.
    prefix: Vec<u8>,
    /// Bytes that this message still lacks, once its prefix is whole.
    missing: usize,
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
    /// Reads along in `data`; cuts off what comes after the last message.
    fn read(&mut self, data: &mut Bytes) -> Result<(), Error> {
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let earned = Duration::from_secs(data.len() as u64) / BYTES_A_SECOND;
        self.patience = (self.patience.saturating_sub(waited) + earned).min(PATIENCE);
        let mut rest = data.clone();
        while !rest.is_empty() {
            if self.stage == Stage::Pausing {
                (self.stage, self.patience) = (Stage::Due, PATIENCE);
            }
            if self.missing == 0 {
                let wanted = PREFIX_BYTES - self.prefix.len();
                self.prefix.extend_from_slice(&rest.split_to(wanted.min(rest.len())));
                let Ok([flag, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(self.prefix.as_slice()) else { break };
                self.prefix.clear();
                self.missing = u32::from_be_bytes(length) as usize;
                self.make_room(flag != 0)?;
            } else {
                let here = self.missing.min(rest.len());
                rest.advance(here);
                self.missing -= here;
            }
            if self.missing == 0 && self.streams {
                self.stage = Stage::Pausing;
            } else if self.missing == 0 {
                // The framework would keep the message, decoded, until the client says that no other follows.
                self.stage = Stage::Ended;
                data.truncate(data.len() - rest.len());
                break;
            }
        }
        Ok(())
    }

    /// Takes the memory for the message that has just begun.
    fn make_room(&mut self, compressed: bool) -> Result<(), Error> {
        let (length, largest) = (self.missing, self.uploads.largest);
        if length > largest {
            let mut violations = Violations::new();
            violations.add("request", format!("must be at most {largest} bytes, got {length}"));
            return Err(Error::Invalid(violations));
        }
        // The only message of a call is inflated and used up in one go, but a stream keeps the room for it.
        let inflated = if compressed && self.streams { largest.min(length.saturating_mul(MOST_INFLATED)) } else { 0 };
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let requested = (length + inflated).saturating_mul(self.weight).saturating_sub(held);
        let free = Arc::clone(&self.uploads.free);
        match u32::try_from(requested).ok().and_then(|requested| free.try_acquire_many_owned(requested).ok()) {
            Some(more) => match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            },
            None => {
                let (free, limit) = (self.uploads.free.available_permits(), self.uploads.limit);
                return Err(Error::UploadsFull { requested, free, limit });
            }
        }
        Ok(())
    }

    /// Resolves when the client has used up the patience that there is with it.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.stage != Stage::Due {
            return Poll::Pending;
        }
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            self.timer.as_mut().reset(now + self.patience);
        }
        self.timer.as_mut().poll(context)
    }

    fn refuse<T>(&mut self, error: Error) -> Poll<Option<Result<T, AnyError>>> {
        self.stage = Stage::Ended;
        let mut refusal = status(&error);
        refusal.set_source(Arc::new(error));
        Poll::Ready(Some(Err(refusal.into())))
    }
}

impl<B: Body<Data = Bytes, Error: Into<AnyError>> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if this.stage == Stage::Ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(other) => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                return match this.poll_late(context) {
                    Poll::Ready(()) => this.refuse(Error::RequestStalled),
                    Poll::Pending => Poll::Pending,
                };
            }
        };
        match frame.into_data() {
            Ok(mut data) => match this.read(&mut data) {
                Ok(()) => Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(error) => this.refuse(error),
            },
            Err(trailers) => Poll::Ready(Some(Ok(trailers))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

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
            feed.send(message(0, length, 1)).await.unwrap();
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
        assert!(next(&mut upload).await.is_ok());
        for _ in 0..100 {
            tokio::time::advance(second).await;
            feed.send(vec![7; 1 << 16]).await.unwrap();
            assert!(next(&mut upload).await.is_ok(), "just fast enough");
        }
        assert_eq!(next(&mut upload).await, Ok(None), "it is whole");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_pause_between_messages_and_nowhere_else() {
        let (feed, mut upload) = upload(&uploads(), STREAMS[0]);
        feed.send([message(0, 3, 3), message(0, 0, 0), message(0, 2, 2)].concat()).await.unwrap();
        assert_eq!(next(&mut upload).await.unwrap().unwrap().len(), 20);
        assert!(tokio::time::timeout(PATIENCE * 100, next(&mut upload)).await.is_err(), "it waits");
        feed.send(message(0, 3, 2)).await.unwrap();
        assert!(next(&mut upload).await.is_ok());
        assert_eq!(next(&mut upload).await, Err(Error::RequestStalled));
        assert_eq!(next(&mut upload).await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_leave_lying_is_not_late() {
        let (feed, mut upload) = upload(&uploads(), UNARY);
        feed.send(message(0, 100, 50)).await.unwrap();
        tokio::time::advance(PATIENCE * 2).await;
        assert!(next(&mut upload).await.is_ok());
        tokio::time::advance(PATIENCE * 2).await;
        feed.send(vec![7; 20]).await.unwrap();
        assert!(next(&mut upload).await.is_ok());
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

    #[test]
    fn every_method_that_takes_a_stream_is_known_to() {
        let files: prost_types::FileDescriptorSet = prost::Message::decode(super::super::proto::DESCRIPTORS).unwrap();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    assert_eq!(STREAMS.contains(&&*path), method.client_streaming(), "{path}");
                }
            }
        }
    }
}
