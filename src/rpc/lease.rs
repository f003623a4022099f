//! A response stream that gives its work back by itself when nobody reads it.
//!
//! The transport polls a response only while the client has room for more, so a stream whose client has stopped reading
//! never gets to look at its own clock. A lease looks from outside: past the deadline, or after a long silence, it drops
//! the stream, and with it the permits and the job; and so it does when somebody cancels the work by its name. The client
//! finds the reason when it reads on.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::call::Verdict;
use super::status::status;
use crate::error::{DeadlineStage, Error};
use crate::image::Rank;

/// How long past the deadline a stream that is being read has to say so in its own words.
const GRACE: Duration = Duration::from_millis(50);

/// How far the images of an answer have been handed out, for the report of a lease that ran out.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The rank that each image goes on from.
    ranks: Vec<AtomicU32>,
    /// Values handed out, over all images.
    values: AtomicU64,
}

impl Progress {
    /// Of `images` images whose first `known` values came with the request.
    pub(super) fn new(images: u32, known: Rank) -> Self {
        Self { ranks: (0..images).map(|_| AtomicU32::new(known)).collect(), values: AtomicU64::new(0) }
    }

    /// `count` more values of `image` go to the transport, which delivers them whatever happens to the stream.
    pub(super) fn handed_out(&self, image: u32, count: u32) {
        if let Some(rank) = self.ranks.get(image as usize) {
            rank.fetch_add(count, Ordering::Relaxed);
        }
        self.values.fetch_add(count.into(), Ordering::Relaxed);
    }

    fn values(&self) -> u64 {
        self.values.load(Ordering::Relaxed)
    }

    fn too_slow(&self) -> Error {
        let ranks = self.ranks.iter().map(|rank| rank.load(Ordering::Relaxed)).collect();
        Error::ClientTooSlow { values: self.values(), ranks }
    }
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

/// A response stream under watch; see the module.
pub(super) struct Lease<T> {
    held: Arc<Mutex<Held<T>>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
    watch: AbortHandle,
}

struct Held<T> {
    /// `None` once it has ended or was dropped.
    stream: Option<Items<T>>,
    /// Why it was dropped, until that is told.
    verdict: Option<Error>,
}

/// Stands between the stream and the transport, to know whose move it is. That a poll found nothing does not mean that
/// the transport waits for us: it may hold back what it had, and not come again when the stream has more.
struct Bell {
    transport: AtomicWaker,
    epoch: Instant,
    /// Since when there has been something to fetch, in milliseconds from the epoch, counted from 1; 0 if there is not.
    unread_ms: AtomicU64,
}

impl Bell {
    fn ours(&self) {
        self.unread_ms.store(0, Ordering::Relaxed);
    }

    fn theirs(&self) {
        let now = 1 + self.epoch.elapsed().as_millis() as u64;
        // Whoever waits for long has waited from the first time.
        _ = self.unread_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn unread_since(&self) -> Option<Instant> {
        let since = self.unread_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch + Duration::from_millis(since))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.theirs();
        self.transport.wake();
    }
}

impl<T: Send + 'static> Lease<T> {
    /// Watches over `stream`, until `ended` says that it is to end and why.
    pub(super) fn new(
        stream: impl Stream<Item = Result<T, Error>> + Send + 'static,
        deadline: Option<std::time::Instant>,
        max_silence: Duration,
        progress: Arc<Progress>,
        ended: impl Future<Output = Error> + Send + 'static,
        told: Verdict,
    ) -> Self {
        let held = Arc::new(Mutex::new(Held { stream: Some(Box::pin(stream)), verdict: None }));
        let bell = Bell { transport: AtomicWaker::new(), epoch: Instant::now(), unread_ms: AtomicU64::new(1) };
        let bell = Arc::new(bell);
        let waker = Waker::from(Arc::clone(&bell));
        let (watched, rung) = (Arc::clone(&held), Arc::clone(&bell));
        let watch = tokio::spawn(async move {
            let stage = DeadlineStage::MidStream;
            let late = || Error::DeadlineExceeded { stage, values: progress.values() };
            let verdict = tokio::select! {
                () = super::deadline::passed(deadline.map(|deadline| deadline + GRACE)) => late(),
                () = unread(&rung, max_silence) => progress.too_slow(),
                error = ended => error,
            };
            let mut held = lock(&watched);
            if held.stream.take().is_some() {
                told.set(&verdict);
                held.verdict = Some(verdict);
            }
            drop(held);
            rung.transport.wake();
        });
        Self { held, bell, waker, watch: watch.abort_handle() }
    }
}

/// Resolves when something has waited to be fetched for `max_silence`.
async fn unread(bell: &Bell, max_silence: Duration) {
    loop {
        let now = Instant::now();
        let end = bell.unread_since().unwrap_or(now) + max_silence;
        if end <= now {
            return;
        }
        sleep_until(end).await;
    }
}

fn lock<T>(held: &Mutex<Held<T>>) -> MutexGuard<'_, Held<T>> {
    // A panic inside a stream leaves nothing half done that a later poll could trip over.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Stream for Lease<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut held = lock(&self.held);
        let Some(stream) = held.stream.as_mut() else {
            return Poll::Ready(held.verdict.take().map(|error| Err(status(&error))));
        };
        self.bell.ours();
        self.bell.transport.register(context.waker());
        let polled = stream.as_mut().poll_next(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            self.bell.theirs();
        }
        if !matches!(polled, Poll::Pending | Poll::Ready(Some(Ok(_)))) {
            // Ended: what it holds is free before the client has read to the end.
            held.stream = None;
        }
        polled.map(|item| item.map(|item| item.map_err(|error| status(&error))))
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.watch.abort();
        // The watch may hold its share a moment longer; the work ends now.
        lock(&self.held).stream = None;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};
    use tonic::Code;

    use super::*;

    const MAX_SILENCE: Duration = Duration::from_secs(30);
    const DEADLINE: Duration = Duration::from_secs(5);

    /// A lease on a stream that holds a token, and the token.
    fn lease<S>(items: S, deadline: Option<Duration>) -> (Lease<u32>, Arc<()>)
    where
        S: Stream<Item = Result<u32, Error>> + Send + 'static,
    {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let items = items.inspect(move |_| assert!(Arc::strong_count(&held) > 0));
        let deadline = deadline.map(|after| (Instant::now() + after).into_std());
        (
            Lease::new(
                items,
                deadline,
                MAX_SILENCE,
                Arc::new(Progress::default()),
                std::future::pending(),
                Verdict::default(),
            ),
            token,
        )
    }

    fn endless() -> impl Stream<Item = Result<u32, Error>> {
        stream::iter(0..).map(Ok)
    }

    /// Lets paused time run until the stream has given its token back, and says how long that took.
    async fn released(token: &Arc<()>) -> Duration {
        let start = Instant::now();
        while Arc::strong_count(token) > 1 {
            tokio::time::advance(Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
            assert!(start.elapsed() < Duration::from_secs(3600), "never released");
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_reads_is_dropped_at_the_deadline() {
        let (mut lease, token) = lease(endless(), Some(DEADLINE));
        assert_eq!(lease.next().await.unwrap().unwrap(), 0);
        let after = released(&token).await;
        assert!(after >= DEADLINE && after < DEADLINE + Duration::from_secs(1), "{after:?}");
        assert_eq!(lease.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        assert!(lease.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_reads_is_dropped_after_a_long_silence() {
        let (mut lease, token) = lease(endless(), None);
        for _ in 0..10 {
            tokio::time::advance(MAX_SILENCE / 2).await;
            assert!(lease.next().await.unwrap().is_ok(), "a slow reader is a reader");
        }
        let after = released(&token).await;
        assert!(after >= MAX_SILENCE && after < MAX_SILENCE + Duration::from_secs(1), "{after:?}");
        assert_eq!(lease.next().await.unwrap().unwrap_err().code(), Code::Aborted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_waits_for_us_is_never_too_slow() {
        let (mut lease, token) = lease(stream::pending(), None);
        assert!(lease.next().now_or_never().is_none());
        tokio::time::advance(MAX_SILENCE * 10).await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&token), 2);
        drop(lease);
        assert_eq!(Arc::strong_count(&token), 1, "dropping the answer ends the work at once");
    }

    #[tokio::test(start_paused = true)]
    async fn news_that_nobody_fetches_counts_as_silence_even_after_a_poll_that_found_nothing() {
        let (news, receiver) = tokio::sync::oneshot::channel::<u32>();
        let (mut lease, token) = lease(stream::once(async move { Ok(receiver.await.unwrap_or(0)) }), None);
        assert!(lease.next().now_or_never().is_none());
        tokio::time::advance(MAX_SILENCE * 2).await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&token), 2, "there was nothing to fetch");
        news.send(1).unwrap();
        let after = released(&token).await;
        assert!(after >= MAX_SILENCE && after < MAX_SILENCE * 2 + Duration::from_secs(1), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ended_holds_nothing_while_its_end_is_unread() {
        let (mut lease, token) = lease(stream::iter([Ok(1), Err(Error::Cancelled)]), None);
        assert!(lease.next().await.unwrap().is_ok());
        assert_eq!(lease.next().await.unwrap().unwrap_err().code(), Code::Cancelled);
        assert_eq!(Arc::strong_count(&token), 1);
        assert!(lease.next().await.is_none());
    }
}
