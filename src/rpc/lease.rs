//! A response stream that gives its work back by itself when nobody reads it.
//!
//! The transport polls a response only while the client has room for more, so a stream whose client has stopped reading
//! never gets to look at its own clock. A lease looks from outside: past the deadline, or after a long silence, it drops
//! the stream, and with it the permits and the job. The client finds the reason when it reads on.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::status::status;
use crate::error::{DeadlineStage, Error};

/// How long an answer may wait to be read before its work is stopped.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Values handed out so far, for the report of a lease that ran out.
pub(super) type Progress = Arc<AtomicU64>;

/// A response stream under watch; see the module.
pub(super) struct Lease<T> {
    shared: Arc<Mutex<Shared<T>>>,
    watch: AbortHandle,
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

struct Shared<T> {
    /// `None` once it has ended or was dropped.
    stream: Option<Items<T>>,
    /// Since when the next move is the client's; `None` while it is ours.
    unread_since: Option<Instant>,
    /// Why it was dropped, until that is told.
    verdict: Option<Error>,
}

impl<T: Send + 'static> Lease<T> {
    /// Watches over `stream`.
    pub(super) fn new(
        stream: impl Stream<Item = Result<T, Error>> + Send + 'static,
        deadline: Option<std::time::Instant>,
        max_silence: Duration,
        progress: Progress,
    ) -> Self {
        let shared = Shared { stream: Some(Box::pin(stream)), unread_since: Some(Instant::now()), verdict: None };
        let shared = Arc::new(Mutex::new(shared));
        let watch = tokio::spawn(watch(Arc::clone(&shared), deadline.map(Instant::from), max_silence, progress));
        Self { shared, watch: watch.abort_handle() }
    }
}

fn lock<T>(shared: &Mutex<Shared<T>>) -> MutexGuard<'_, Shared<T>> {
    // A panic inside a stream leaves nothing half done that a later poll could trip over.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch<T>(shared: Arc<Mutex<Shared<T>>>, deadline: Option<Instant>, max_silence: Duration, progress: Progress) {
    let mut next = Instant::now() + max_silence;
    if let Some(deadline) = deadline {
        next = next.min(deadline);
    }
    loop {
        tokio::time::sleep_until(next).await;
        let now = Instant::now();
        let mut shared = lock(&shared);
        if shared.stream.is_none() {
            return;
        }
        let late = deadline.is_some_and(|deadline| deadline <= now);
        next = now + max_silence;
        if let Some(since) = shared.unread_since {
            let values = progress.load(Ordering::Relaxed);
            if late {
                shared.verdict = Some(Error::DeadlineExceeded { stage: DeadlineStage::MidStream, values });
            } else if since + max_silence <= now {
                shared.verdict = Some(Error::ClientTooSlow { values });
            } else {
                next = since + max_silence;
            }
            if shared.verdict.is_some() {
                shared.stream = None;
                return;
            }
        }
        if let (Some(deadline), false) = (deadline, late) {
            next = next.min(deadline);
        }
    }
}

impl<T> Stream for Lease<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = lock(&self.shared);
        let Some(stream) = shared.stream.as_mut() else {
            return Poll::Ready(shared.verdict.take().map(|error| Err(status(&error))));
        };
        let polled = stream.as_mut().poll_next(context);
        shared.unread_since = polled.is_ready().then(Instant::now);
        if !matches!(polled, Poll::Pending | Poll::Ready(Some(Ok(_)))) {
            // Ended: what it holds is free before the client has read to the end.
            shared.stream = None;
        }
        polled.map(|item| item.map(|item| item.map_err(|error| status(&error))))
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.watch.abort();
        // The watch may hold its share a moment longer; the work ends now.
        lock(&self.shared).stream = None;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};
    use tonic::Code;

    use super::*;

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
        (Lease::new(items, deadline, MAX_SILENCE, Arc::new(AtomicU64::new(5))), token)
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
    async fn a_stream_that_ended_holds_nothing_while_its_end_is_unread() {
        let (mut lease, token) = lease(stream::iter([Ok(1), Err(Error::Cancelled)]), None);
        assert!(lease.next().await.unwrap().is_ok());
        assert_eq!(lease.next().await.unwrap().unwrap_err().code(), Code::Cancelled);
        assert_eq!(Arc::strong_count(&token), 1);
        assert!(lease.next().await.is_none());
    }
}
