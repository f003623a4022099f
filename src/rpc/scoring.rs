//! The scoring service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::budget::Evicted;
use super::call::Verdict;
use super::convert::{self, MAX_ANSWER_BYTES};
use super::lease::{Lease, Progress};
use super::proto::scoring_service_server::ScoringService;
use super::proto::{
    ScoreDetail, ScoreImagesRequest, ScoreImagesResponse, ScoringSpec, StreamScoreImagesRequest,
    StreamScoreImagesResponse,
};
use super::score_stream::ScoreStream;
use super::status::status;
use super::{answer, deadline, meter};
use crate::engine::catalogue::Catalogue;
use crate::engine::{Handle, Kind, Permit};
use crate::error::{Error, Violations};
use crate::job::{Limits, ScoreJob};

/// Scores images.
#[derive(Clone, Debug)]
pub(super) struct Scorings {
    pub(super) catalogue: Catalogue,
    pub(super) limits: Limits,
}

/// A scoring spec that fits its model.
#[derive(Debug)]
pub(super) struct Scoring {
    pub(super) handle: Handle,
    pub(super) per_value: bool,
    pub(super) scheduling: convert::Scheduling,
}

/// A scoring request that has its places in the queue.
pub(super) struct Admitted {
    scoring: Scoring,
    permit: Permit,
    /// Names of the items.
    ids: Vec<String>,
    pub(super) job: ScoreJob,
}

impl Scoring {
    /// Checks a spec, on top of what is in `violations` already, which comes back with what else may be wrong.
    pub(super) fn new(
        spec: Option<ScoringSpec>,
        (catalogue, limits): (&Catalogue, &Limits),
        mut violations: Violations,
    ) -> Result<(Self, Violations), Error> {
        let spec = spec.unwrap_or_default();
        let handle = convert::resolve(&spec.model, catalogue, &mut violations)?;
        let scheduling = convert::scheduling(spec.scheduling, limits, &mut violations);
        let detail: ScoreDetail = convert::known_enum(spec.detail, "spec.detail", &mut violations);
        match handle {
            Some(handle) => Ok((Self { handle, per_value: detail == ScoreDetail::PerValue, scheduling }, violations)),
            None => Err(violations.into()),
        }
    }

    /// The deadline of work that begins now.
    pub(super) fn deadline(&self, deadline: Option<Instant>) -> Option<Instant> {
        let queue = Instant::now().checked_add(self.scheduling.queue_timeout);
        deadline.into_iter().chain(queue).min()
    }

    /// Places for `items` items, before they are decoded.
    ///
    /// # Errors
    /// What [`Handle::admit`] says.
    pub(super) fn admit(&self, items: u32) -> Result<Permit, Error> {
        self.handle.admit(Kind::Scoring, items, self.scheduling.class)
    }
}

#[tonic::async_trait]
impl ScoringService for Scorings {
    async fn score_images(
        &self,
        request: Request<ScoreImagesRequest>,
    ) -> Result<Response<ScoreImagesResponse>, Status> {
        let deadline = deadline::of(&request);
        self.score(request.into_inner(), deadline).await.map(Response::new).map_err(|error| status(&error))
    }

    type StreamScoreImagesStream = Pin<Box<dyn Stream<Item = Result<StreamScoreImagesResponse, Status>> + Send>>;

    async fn stream_score_images(
        &self,
        request: Request<Streaming<StreamScoreImagesRequest>>,
    ) -> Result<Response<Self::StreamScoreImagesStream>, Status> {
        let (deadline, told, evicted) = (deadline::of(&request), Verdict::of(&request), Evicted::of(&request));
        let scores = ScoreStream::new(request.into_inner(), (self.catalogue.clone(), self.limits), deadline);
        let progress = Arc::new(Progress::default());
        let lease = Lease::new(scores.answers(), deadline, self.limits.unread_timeout, progress, evicted.rung(), told);
        Ok(Response::new(Box::pin(lease)))
    }
}

impl Scorings {
    /// Checks a request. Its items have their places before they are decoded.
    ///
    /// # Errors
    /// All that is wrong with it; what [`Scoring::admit`] says; [`Error::DeadlineInfeasible`].
    pub(super) fn read(&self, request: ScoreImagesRequest, deadline: Option<Instant>) -> Result<Admitted, Error> {
        let ScoreImagesRequest { spec, items } = request;
        let (scoring, mut violations) = Scoring::new(spec, (&self.catalogue, &self.limits), Violations::new())?;
        let spec = scoring.handle.spec();
        // A number that is out of range is named with all else that is wrong.
        let count = (items.len() as u32).clamp(1, self.limits.items_per_request);
        let estimate = scoring.handle.estimate(Kind::Scoring, count, scoring.scheduling.class, 0);
        let permit = scoring.admit(count)?;
        convert::check_deadline(deadline, estimate)?;
        self.check_count(&scoring, items.len(), &mut violations);
        let decoded = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| convert::score_item(item, &format!("items[{index}]"), spec, &mut violations));
        let decoded = decoded.collect();
        let images = violations.into_result(decoded)?;
        // The images may have come in much larger a form than they have now; what waits for its turn is the latter alone.
        let ids = items.into_iter().map(|item| item.item_id).collect::<Vec<_>>();
        let job = ScoreJob { items: images, per_value: scoring.per_value, class: scoring.scheduling.class };
        Ok(Admitted { scoring, permit, ids, job })
    }

    async fn score(
        &self,
        request: ScoreImagesRequest,
        deadline: Option<Instant>,
    ) -> Result<ScoreImagesResponse, Error> {
        let Admitted { scoring, permit, ids, job } = self.read(request, deadline)?;
        let (spec, class) = (scoring.handle.spec(), job.class);
        let (scores, timing) = scoring.handle.score_admitted(permit, job, scoring.deadline(deadline))?.scores().await?;
        meter::finished(&spec.name, class, timing);
        let scores = ids.into_iter().zip(scores).map(|(id, score)| answer::score(id, score, spec));
        Ok(ScoreImagesResponse {
            scores: scores.collect(),
            model_revision: spec.revision.clone(),
            timing: Some(answer::timing(timing)),
            model: answer::model_name(&spec.name),
        })
    }

    fn check_count(&self, scoring: &Scoring, count: usize, violations: &mut Violations) {
        let most = self.limits.items_per_request;
        if !(1..=most as usize).contains(&count) {
            violations.add("items", format!("must be 1..={most}, got {count}"));
        }
        let values = u64::from(scoring.handle.spec().shape.values());
        let largest = MAX_ANSWER_BYTES / (values * size_of::<f32>() as u64);
        if scoring.per_value && count as u64 > largest {
            violations.add("items", format!("must be at most {largest} with a number for each value, got {count}"));
        }
    }
}
