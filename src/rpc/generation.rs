//! The generation service.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::call::Verdict;
use super::convert::{self, Desk, Generation, MAX_ANSWER_BYTES};
use super::lease::{Lease, Progress};
use super::proto::generation_service_server::GenerationService;
use super::proto::{
    CancelGenerationRequest, CancelGenerationResponse, GenerateImagesRequest, GenerateImagesResponse, ImageEncoding,
    StreamGenerateImagesRequest, StreamGenerateImagesResponse,
};
use super::running::Running;
use super::status::status;
use super::stream::{self, Facts};
use super::{answer, deadline};
use crate::engine::SampleStream;
use crate::engine::catalogue::Catalogue;
use crate::error::{Error, Violations};
use crate::image::{Canvas, Shape};
use crate::job::{Granularity, Limits};

/// Bytes of the low-resolution images that the last message of a stream brings: below what clients accept by default.
const MAX_DRAWN_BYTES: u64 = 2 << 20;

/// Samples images.
#[derive(Clone, Debug)]
pub(super) struct Generations {
    pub(super) catalogue: Catalogue,
    pub(super) limits: Limits,
    pub(super) running: Running,
}

impl Generations {
    pub(super) fn desk(&self) -> Desk<'_> {
        Desk { catalogue: &self.catalogue, limits: &self.limits, running: &self.running }
    }
}

#[tonic::async_trait]
impl GenerationService for Generations {
    async fn generate_images(
        &self,
        request: Request<GenerateImagesRequest>,
    ) -> Result<Response<GenerateImagesResponse>, Status> {
        let deadline = deadline::of(&request);
        let GenerateImagesRequest { spec, encoding } = request.into_inner();
        let mut violations = Violations::new();
        let encoding = convert::encoding(encoding, "encoding", &mut violations);
        // Nobody watches, so nothing needs to be woken more often than for a row.
        let checked = convert::generation(spec, Granularity::Row, self.desk(), deadline, violations);
        let answer = async {
            let generation = checked.and_then(must_fit_one_answer)?;
            let facts = Facts::of(&generation);
            let canvases = vec![generation.job.prefix.clone(); generation.job.images as usize];
            let (stream, entry) = generation.sample(deadline)?;
            tokio::select! {
                biased;
                answer = collect(stream, facts, canvases, encoding) => answer,
                () = entry.cancelled().cancelled_owned() => Err(Error::Cancelled),
            }
        };
        answer.await.map(Response::new).map_err(|error| status(&error))
    }

    type StreamGenerateImagesStream = Pin<Box<dyn Stream<Item = Result<StreamGenerateImagesResponse, Status>> + Send>>;

    async fn stream_generate_images(
        &self,
        request: Request<StreamGenerateImagesRequest>,
    ) -> Result<Response<Self::StreamGenerateImagesStream>, Status> {
        let (deadline, told) = (deadline::of(&request), Verdict::of(&request));
        let StreamGenerateImagesRequest { spec, flush, include_log_probs } = request.into_inner();
        let mut violations = Violations::new();
        let flush = convert::flush(flush, &mut violations);
        let checked = convert::generation(spec, flush.granularity, self.desk(), deadline, violations);
        let start = || {
            let generation = checked.and_then(must_fit_last_message)?;
            let facts = Facts::of(&generation);
            let progress = Arc::new(Progress::new(generation.job.images, generation.job.prefix.known()));
            let cancelled = generation.entry.cancelled();
            let cancelled = async move {
                cancelled.cancelled_owned().await;
                Error::Cancelled
            };
            let stream = generation.sample(deadline)?;
            let events = stream::events(stream, facts, include_log_probs, flush.max_delay, Arc::clone(&progress));
            Ok(Lease::new(events, deadline, self.limits.unread_timeout, progress, cancelled, told))
        };
        match start() {
            Ok(events) => Ok(Response::new(Box::pin(events))),
            Err(error) => Err(status(&error)),
        }
    }

    async fn cancel_generation(
        &self,
        request: Request<CancelGenerationRequest>,
    ) -> Result<Response<CancelGenerationResponse>, Status> {
        let id = request.into_inner().request_id;
        convert::running_id(&id).map_err(|faults| status(&faults.into()))?;
        Ok(Response::new(CancelGenerationResponse { was_running: self.running.cancel(&id) }))
    }
}

/// Refuses what would be sampled in full and then be too large to send.
fn must_fit_one_answer(generation: Generation) -> Result<Generation, Error> {
    let drawn = generation.drawn_shape().map_or(0, Shape::raw_bytes);
    let image_bytes = generation.handle.spec().shape.raw_bytes() + drawn;
    must_fit(generation, image_bytes, MAX_ANSWER_BYTES, "in one answer (stream them)")
}

/// Refuses a stream that could not say all at its end.
fn must_fit_last_message(generation: Generation) -> Result<Generation, Error> {
    match generation.drawn_shape() {
        Some(drawn) => must_fit(generation, drawn.raw_bytes(), MAX_DRAWN_BYTES, "with their low-resolution images"),
        None => Ok(generation),
    }
}

fn must_fit(generation: Generation, image_bytes: usize, limit: u64, place: &str) -> Result<Generation, Error> {
    let (images, most) = (u64::from(generation.job.images), limit / image_bytes as u64);
    if images <= most {
        return Ok(generation);
    }
    let rule = format!("must be at most {most} {place}, got {images}");
    Err(Violations::one("spec.image_count", rule).into())
}

async fn collect(
    mut stream: SampleStream,
    facts: Facts,
    mut canvases: Vec<Canvas>,
    encoding: ImageEncoding,
) -> Result<GenerateImagesResponse, Error> {
    let mut checksums = facts.checksums();
    while let Some(runs) = stream.next(None).await {
        for run in runs? {
            checksums.take_in(&run);
            if let Some(canvas) = canvases.get_mut(run.image as usize) {
                run.values.iter().for_each(|&value| {
                    canvas.push(value);
                });
            }
        }
    }
    let summary = stream.summary().ok_or_else(stream::no_summary)?;
    let spec = facts.spec();
    let images = canvases
        .iter()
        .map(|canvas| answer::image(&canvas.to_raster(spec.order), spec.shape, spec.palette.as_deref(), encoding));
    Ok(GenerateImagesResponse {
        images: images.collect::<Result<_, _>>().map_err(Error::EngineFault)?,
        started: Some(facts.started()),
        completed: Some(checksums.completed(summary, encoding)?),
    })
}
