//! Scoring a data set: items in, scores out in the same order, a bounded window of them in the engine at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Instant;

use futures_util::Stream;
use tonic::Streaming;

use super::proto::stream_score_images_request::Part;
use super::proto::stream_score_images_response::Event;
use super::proto::{ScoreItem, ScoringCompleted, ScoringSpec, StreamScoreImagesRequest, StreamScoreImagesResponse};
use super::scoring::Scoring;
use super::status::cause;
use super::{answer, convert, meter};
use crate::engine::catalogue::Catalogue;
use crate::engine::{Kind, Score, Timing};
use crate::error::{Error, Violations};
use crate::job::{Limits, ScoreJob};

/// Items of one stream in the engine at once: enough to fill scoring passes, little enough to leave room for others.
const WINDOW: usize = 32;

type Scores = Pin<Box<dyn Future<Output = Result<(Vec<Score>, Timing), Error>> + Send>>;

/// One call under way.
pub(super) struct ScoreStream {
    items: Streaming<StreamScoreImagesRequest>,
    catalogue: Catalogue,
    limits: Limits,
    deadline: Option<Instant>,
    /// Known from the first message on.
    scoring: Option<Scoring>,
    /// Items that were looked at.
    taken: u64,
    /// In the engine, oldest first.
    in_flight: VecDeque<(String, Scores)>,
    /// Refused because the queue was full, and therefore not looked at; goes in when one of ours has come out.
    refused: Option<ScoreItem>,
    /// Why nothing more is taken in: what comes now would be late. Told after the scores that can be in time.
    infeasible: Option<Error>,
    /// The client will send no more.
    closed: bool,
    done: bool,
    statistics: Statistics,
    /// Summed over the items.
    timing: Timing,
}

impl ScoreStream {
    pub(super) fn new(
        items: Streaming<StreamScoreImagesRequest>,
        (catalogue, limits): (Catalogue, Limits),
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            items,
            catalogue,
            limits,
            deadline,
            scoring: None,
            taken: 0,
            in_flight: VecDeque::new(),
            refused: None,
            infeasible: None,
            closed: false,
            done: false,
            statistics: Statistics::default(),
            timing: Timing::default(),
        }
    }

    /// The scores, then their aggregate; ends with the first error.
    pub(super) fn answers(self) -> impl Stream<Item = Result<StreamScoreImagesResponse, Error>> + Send + 'static {
        futures_util::stream::unfold(self, |mut stream| async move {
            if stream.done {
                return None;
            }
            let event = stream.next().await;
            stream.done = !matches!(event, Ok(Event::Score(_)));
            if stream.done {
                stream.in_flight.clear();
            }
            Some((event.map(|event| StreamScoreImagesResponse { event: Some(event) }), stream))
        })
    }

    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            self.submit_refused()?;
            let idle = self.in_flight.is_empty();
            match self.infeasible.take_if(|_| idle) {
                Some(error) => return Err(error),
                None if idle && self.closed => return Ok(Event::Completed(self.completed()?)),
                None => {}
            }
            let waits = self.refused.is_some() || self.infeasible.is_some();
            let wants_item = !self.closed && !waits && self.in_flight.len() < WINDOW;
            let mut server = self.catalogue.watch();
            let front = async {
                match self.in_flight.front_mut() {
                    Some((_, scores)) => scores.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                scored = front => return self.score(scored?).map(Event::Score),
                part = self.items.message(), if wants_item => match part {
                    Ok(Some(part)) => self.take(part.part)?,
                    Ok(None) => self.closed = true,
                    // Refused on its way in, or no message, or the client is gone.
                    Err(broken) => return Err(cause(&broken).cloned().unwrap_or_else(|| bad("part", broken.message()))),
                },
                // A client that pauses must not hold up a shutdown.
                Ok(_) = server.wait_for(|draining| *draining), if idle => return Err(Error::Draining),
            }
        }
    }

    /// Takes in one message.
    fn take(&mut self, part: Option<Part>) -> Result<(), Error> {
        match (part, &self.scoring) {
            (Some(Part::Spec(spec)), None) => self.begin(spec),
            (Some(Part::Item(item)), Some(_)) => {
                self.refused = Some(item);
                self.submit_refused()
            }
            (Some(Part::Item(_)), None) => Err(bad("part", "must be the spec in the first message, got an item")),
            (Some(Part::Spec(_)), Some(_)) => {
                Err(bad("part", "must be an item after the first message, got another spec"))
            }
            (None, _) => Err(bad("part", "must be there")),
        }
    }

    fn begin(&mut self, spec: ScoringSpec) -> Result<(), Error> {
        let (scoring, violations) = Scoring::new(Some(spec), (&self.catalogue, &self.limits), Violations::new())?;
        self.scoring = Some(violations.into_result(scoring)?);
        Ok(())
    }

    /// Tries to hand the waiting item to the engine; it is decoded once it has its place. A full queue is no error while items
    /// of our own are in it: one of them coming out makes room.
    fn submit_refused(&mut self) -> Result<(), Error> {
        let (Some(item), Some(scoring)) = (self.refused.take(), &self.scoring) else { return Ok(()) };
        let estimate = scoring.handle.estimate(Kind::Scoring, 1, scoring.scheduling.class, 0);
        let permit = match scoring.admit(1) {
            Ok(permit) => permit,
            Err(Error::QueueFull { .. }) if !self.in_flight.is_empty() => {
                self.refused = Some(item);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Err(late) = convert::check_deadline(self.deadline, estimate) {
            self.infeasible = Some(late);
            return Ok(());
        }
        let path = format!("item[{}]", self.taken);
        self.taken += 1;
        let mut violations = Violations::new();
        let image = convert::score_item(&item, &path, scoring.handle.spec(), &mut violations);
        violations.into_result(())?;
        let items = image.into_iter().collect();
        let job = ScoreJob { items, per_value: scoring.per_value, class: scoring.scheduling.class };
        let ticket = scoring.handle.score_admitted(permit, job, scoring.deadline(self.deadline))?;
        self.in_flight.push_back((item.item_id, Box::pin(ticket.scores())));
        Ok(())
    }

    /// Turns the oldest item's result into its answer.
    fn score(&mut self, (scores, timing): (Vec<Score>, Timing)) -> Result<super::proto::ImageScore, Error> {
        let oldest = self.in_flight.pop_front().zip(scores.into_iter().next()).zip(self.scoring.as_ref());
        let Some((((item_id, _), score), scoring)) = oldest else {
            return Err(Error::EngineFault("an item was scored without a score".to_owned()));
        };
        let score = answer::score(item_id, score, scoring.handle.spec());
        self.statistics.add(score.bits_per_dim);
        meter::finished(&scoring.handle.spec().name, scoring.scheduling.class, timing);
        self.timing.queue += timing.queue;
        self.timing.decode += timing.decode;
        Ok(score)
    }

    fn completed(&self) -> Result<ScoringCompleted, Error> {
        let Some(scoring) = &self.scoring else {
            return Err(bad("part", "must be the spec in the first message, got the end of the stream"));
        };
        Ok(ScoringCompleted {
            item_count: self.statistics.count,
            mean_bits_per_dim: self.statistics.mean,
            bits_per_dim_standard_error: self.statistics.standard_error(),
            model_revision: scoring.handle.spec().revision.clone(),
            model: answer::model_name(&scoring.handle.spec().name),
            timing: Some(answer::timing(self.timing)),
        })
    }
}

fn bad(field: &str, description: &str) -> Error {
    let mut violations = Violations::new();
    violations.add(field, description);
    Error::Invalid(violations)
}

/// Running mean and spread (Welford), which stays exact over millions of items.
#[derive(Clone, Copy, Debug, Default)]
struct Statistics {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Statistics {
    fn add(&mut self, sample: f64) {
        self.count += 1;
        let before = sample - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (sample - self.mean);
    }

    /// Of the mean; 0 below two samples.
    fn standard_error(&self) -> f64 {
        let count = self.count as f64;
        if self.count < 2 { 0.0 } else { (self.squares / (count - 1.0) / count).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_statistics_are_those_of_the_textbook() {
        let samples = [1.0, 4.0, 2.5, 8.0, 1e6];
        let mut running = Statistics::default();
        assert_eq!(running.standard_error(), 0.0);
        samples.iter().for_each(|sample| running.add(*sample));
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (n - 1.0);
        assert!((running.mean - mean).abs() < 1e-9 * mean);
        assert!((running.standard_error() - (variance / n).sqrt()).abs() < 1e-9 * mean);
    }
}
