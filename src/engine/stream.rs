//! What a request holds while the engine works for it: its values as they come, its deadlines, and its permits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time;

use super::event::{ENGINE_GONE, Run, SampleBuffer};
use super::live::unit;
use super::shared::Claim;
use super::stages::{Drawn, FirstStage, LowImage};
use crate::error::{DeadlineStage, Error};
use crate::image::Rank;
use crate::job::SampleJob;

/// Finest delay that tokio's timers tell apart; a shorter one would make a waiting reader spin.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

/// What one request consumed, in both stages where it has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Values sampled.
    pub sampled_values: u64,
    /// Values that came as prefixes.
    pub prefix_values: u64,
    /// Largest number of images in one step with one of this job's.
    pub peak_batch: u32,
}

/// Where one request's time went. The first of two stages belongs to what comes before the first value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the first slot, in whichever model.
    pub queue: Duration,
    /// From there to the end of the first prefix.
    pub prefill: Duration,
    /// From submission to the first value.
    pub first_value: Duration,
    /// From the first value to the last.
    pub decode: Duration,
}

/// The end of a sampling job.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSummary {
    /// Log-likelihood of each image in nats, prefix included.
    pub log_likelihoods: Vec<f64>,
    /// The low-resolution image of each image, where they were drawn for it; otherwise empty.
    pub low_images: Vec<LowImage>,
    /// What it consumed.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Complete,
    Failed,
}

/// A sampling job under way. Owns its permits: dropping it frees them and cancels the job within one step.
///
/// Its deadlines are kept while [`next`](Self::next) is being awaited, by timers of its own: they pass on time even if the
/// engine is in the middle of a long step.
#[derive(Debug)]
pub struct SampleStream {
    pub(super) buffer: Arc<SampleBuffer>,
    /// What the job waits for before it is sent, where it has two stages.
    pub(super) first: Option<Box<FirstStage>>,
    /// What that has left; nothing where there is one stage.
    drawn: Drawn,
    /// On the job, once it was sent.
    pub(super) claim: Option<Claim>,
    /// Known values each image starts with.
    prefix: Rank,
    unit: u32,
    /// Values handed out, by image.
    taken: Vec<u32>,
    state: State,
    submitted: Instant,
    deadline: Option<time::Instant>,
    /// When waiting for the first value ends, whatever is waited for; `None` once it is there.
    queue_deadline: Option<time::Instant>,
}

impl SampleStream {
    /// The stream of a job that is about to be sent.
    pub(super) fn new(job: &SampleJob, deadline: Option<Instant>) -> Self {
        Self {
            buffer: Arc::new(SampleBuffer::new(job)),
            first: None,
            drawn: Drawn::default(),
            claim: None,
            prefix: job.prefix.known(),
            unit: unit(job.granularity, job.prefix.shape()),
            taken: vec![0; job.images as usize],
            state: State::Open,
            submitted: Instant::now(),
            deadline: deadline.map(time::Instant::from_std),
            queue_deadline: job.queue_timeout.and_then(|timeout| time::Instant::now().checked_add(timeout)),
        }
    }

    /// Whatever waits to be read, whole units of the job's granularity only; waits if nothing does. `None` once every
    /// value of every image has been handed out. `partial_after`: hand out incomplete units too, once this much time has
    /// passed since the call with something waiting; and from then on as often again (in whole milliseconds, at least 1).
    ///
    /// A job that failed hands out everything it had before it says so, since an image can be resumed from its values.
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    /// Why the job ended early; the stream is over then.
    pub async fn next(&mut self, partial_after: Option<Duration>) -> Option<Result<Vec<Run>, Error>> {
        if self.state != State::Open {
            return None;
        }
        let delay = partial_after.map(|delay| delay.max(SHORTEST_DELAY));
        let later = |now: time::Instant| delay.and_then(|delay| now.checked_add(delay));
        let mut partial_at = later(time::Instant::now());
        loop {
            let now = time::Instant::now();
            let late = self.expired(now);
            if let Err(error) = late.map_or_else(|| self.go_on(), Err) {
                self.state = State::Failed;
                self.first = None;
                self.claim.iter().for_each(Claim::recall);
                return Some(Err(error));
            }
            // The end is looked at before the values: those it comes after are all there then.
            let failure = self.buffer.failure.get().cloned();
            let finished = self.buffer.milestones.finished.get().is_some();
            let impatient = partial_at.is_some_and(|at| at <= now);
            let runs = self.take(impatient || failure.is_some());
            if !runs.is_empty() {
                return Some(Ok(runs));
            }
            if failure.is_some() || finished {
                self.state = if finished { State::Complete } else { State::Failed };
                return failure.map(Err);
            }
            if impatient {
                partial_at = later(now);
            }
            self.wait([self.deadline, self.queue_deadline, partial_at].into_iter().flatten().min()).await;
        }
    }

    /// Until the engine has news, or `until`.
    ///
    /// No wake-up is lost between looking at the buffer and getting here: the engine notifies after it has stored, and
    /// `notify_one` without a waiter leaves a permit that makes the next `notified` ready at once. There is one reader, as
    /// `next` borrows the stream mutably, so nobody else can take it; and a `Notified` that is dropped after it was
    /// notified passes the permit on. A permit left over from values already taken costs one more look.
    async fn wait(&self, until: Option<time::Instant>) {
        let news = self.first.as_ref().map_or(&self.buffer.wake, |first| first.wake()).notified();
        match until {
            // That it timed out is found out by looking at the clock, like every other reason to wake up.
            Some(until) => _ = time::timeout_at(until, news).await,
            None => news.await,
        }
    }

    /// Sends the job if it has waited for its first stage, and that is over.
    fn go_on(&mut self) -> Result<(), Error> {
        if let Some(first) = self.first.take_if(|first| first.is_over()) {
            let (claim, drawn) = first.finish(&self.buffer)?;
            (self.claim, self.drawn) = (Some(claim), drawn);
        }
        Ok(())
    }

    /// Totals, once `next` has returned `None`.
    #[must_use]
    pub fn summary(&self) -> Option<SampleSummary> {
        if self.state != State::Complete {
            return None;
        }
        let milestones = &self.buffer.milestones;
        let [admitted, prefilled, first_value, finished] =
            [&milestones.admitted, &milestones.prefilled, &milestones.first_value, &milestones.finished]
                .map(|at| at.get().copied().unwrap_or(self.submitted));
        let admitted = self.drawn.admitted.unwrap_or(admitted);
        Some(SampleSummary {
            log_likelihoods: self.buffer.images.iter().map(|image| image.log_likelihood()).collect::<Option<_>>()?,
            low_images: self.drawn.images.clone(),
            usage: Usage {
                sampled_values: self.buffer.sampled() + self.drawn.values,
                prefix_values: u64::from(self.prefix) * self.taken.len() as u64,
                peak_batch: self.buffer.peak_batch.load(Ordering::Relaxed).max(self.drawn.peak_batch),
            },
            timing: Timing {
                queue: admitted.saturating_duration_since(self.submitted),
                prefill: prefilled.saturating_duration_since(admitted),
                first_value: first_value.saturating_duration_since(self.submitted),
                decode: finished.saturating_duration_since(first_value),
            },
        })
    }

    /// What is there and was not handed out, of whole units or of all values.
    fn take(&mut self, partial: bool) -> Vec<Run> {
        let mut runs = Vec::new();
        for (index, (image, taken)) in self.buffer.images.iter().zip(&mut self.taken).enumerate() {
            let stored = image.stored();
            // Units count from rank 0, so the end of a prefix may lie within one.
            let rest = if partial { 0 } else { (self.prefix + stored) % self.unit };
            let upto = stored.saturating_sub(rest);
            if upto > *taken {
                runs.push(image.run(index as u32, *taken, upto));
                *taken = upto;
            }
        }
        runs
    }

    /// The deadline that has passed, if one has.
    fn expired(&mut self, now: time::Instant) -> Option<Error> {
        let passed = |at: &time::Instant| *at <= now;
        let waited = self.queue_deadline.as_ref().is_some_and(passed);
        if !waited && !self.deadline.as_ref().is_some_and(passed) {
            return None;
        }
        let milestones = &self.buffer.milestones;
        let begun = milestones.first_value.get().is_some() || (self.prefix > 0 && milestones.admitted.get().is_some());
        if begun {
            self.queue_deadline = None;
            if !self.deadline.as_ref().is_some_and(passed) {
                return None;
            }
        }
        let stage = if begun { DeadlineStage::MidStream } else { DeadlineStage::Queue };
        Some(Error::DeadlineExceeded { stage, values: self.buffer.sampled() })
    }
}

/// One scored image.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Log-likelihood of the image in nats.
    pub log_likelihood: f64,
    /// Log-probability of each value in rank order, in nats, if asked for.
    pub log_probs: Option<Vec<f32>>,
}

/// A scoring job under way. Owns its permits: dropping it frees them and cancels the job.
#[derive(Debug)]
pub struct ScoreTicket {
    _claim: Claim,
    result: oneshot::Receiver<Result<(Vec<Score>, Instant), Error>>,
    started: Arc<OnceLock<Instant>>,
    submitted: Instant,
    deadline: Option<time::Instant>,
}

impl ScoreTicket {
    pub(super) fn new(
        claim: Claim,
        result: oneshot::Receiver<Result<(Vec<Score>, Instant), Error>>,
        started: Arc<OnceLock<Instant>>,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            _claim: claim,
            result,
            started,
            submitted: Instant::now(),
            deadline: deadline.map(time::Instant::from_std),
        }
    }

    /// The scores in the order of the job's items, and where the time went: `queue` until the first pass, `decode` from
    /// there; the others are zero.
    ///
    /// # Errors
    /// Why the job ended early.
    pub async fn scores(mut self) -> Result<(Vec<Score>, Timing), Error> {
        let answer = match self.deadline {
            Some(at) => time::timeout_at(at, &mut self.result).await.map_err(|_| self.expired())?,
            None => (&mut self.result).await,
        };
        let (scores, finished) = answer.unwrap_or_else(|_| Err(Error::EngineFault(ENGINE_GONE.into())))?;
        let started = self.started.get().copied().unwrap_or(finished);
        let timing = Timing {
            queue: started.saturating_duration_since(self.submitted),
            decode: finished.saturating_duration_since(started),
            ..Timing::default()
        };
        Ok((scores, timing))
    }

    fn expired(&self) -> Error {
        let stage = if self.started.get().is_some() { DeadlineStage::MidStream } else { DeadlineStage::Queue };
        Error::DeadlineExceeded { stage, values: 0 }
    }
}
