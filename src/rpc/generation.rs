//! The generation service.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::convert::{self, Generation, MAX_ANSWER_BYTES};
use super::lease::{Lease, MAX_SILENCE, Progress};
use super::proto::generation_service_server::GenerationService;
use super::proto::{
    GenerateImagesRequest, GenerateImagesResponse, ImageEncoding, StreamGenerateImagesRequest,
    StreamGenerateImagesResponse,
};
use super::status::status;
use super::stream::{self, Facts};
use super::{answer, deadline};
use crate::engine::SampleStream;
use crate::engine::catalogue::Catalogue;
use crate::error::{Error, Violations};
use crate::image::Canvas;
use crate::job::{Granularity, Limits};

/// Samples images.
#[derive(Clone, Debug)]
pub(super) struct Generations {
    pub(super) catalogue: Catalogue,
    pub(super) limits: Limits,
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
        let checked = convert::generation(spec, Granularity::Row, (&self.catalogue, &self.limits), violations);
        let answer = async {
            let generation = checked.and_then(must_fit_one_answer)?;
            let facts = Facts::of(&generation);
            let Generation { handle, job, .. } = generation;
            let canvases = vec![job.prefix.clone(); job.images as usize];
            collect(handle.sample(job, deadline).map_err(convert::within_spec)?, facts, canvases, encoding).await
        };
        answer.await.map(Response::new).map_err(|error| status(&error))
    }

    type StreamGenerateImagesStream = Pin<Box<dyn Stream<Item = Result<StreamGenerateImagesResponse, Status>> + Send>>;

    async fn stream_generate_images(
        &self,
        request: Request<StreamGenerateImagesRequest>,
    ) -> Result<Response<Self::StreamGenerateImagesStream>, Status> {
        let deadline = deadline::of(&request);
        let StreamGenerateImagesRequest { spec, flush, include_log_probs } = request.into_inner();
        let mut violations = Violations::new();
        let flush = convert::flush(flush, &mut violations);
        let checked = convert::generation(spec, flush.granularity, (&self.catalogue, &self.limits), violations);
        let start = || {
            let generation = checked?;
            let facts = Facts::of(&generation);
            let stream = generation.handle.sample(generation.job, deadline).map_err(convert::within_spec)?;
            let progress = Progress::default();
            let events = stream::events(stream, facts, include_log_probs, flush.max_delay, Arc::clone(&progress));
            Ok(Lease::new(events, deadline, MAX_SILENCE, progress))
        };
        match start() {
            Ok(events) => Ok(Response::new(Box::pin(events))),
            Err(error) => Err(status(&error)),
        }
    }
}

/// Refuses what would be sampled in full and then be too large to send.
fn must_fit_one_answer(generation: Generation) -> Result<Generation, Error> {
    let image_bytes = generation.handle.spec().shape.raw_bytes() as u64;
    let images = u64::from(generation.job.images);
    if images * image_bytes <= MAX_ANSWER_BYTES {
        return Ok(generation);
    }
    let most = MAX_ANSWER_BYTES / image_bytes;
    let mut violations = Violations::new();
    violations.add("spec.image_count", format!("must be at most {most} in one answer (stream them), got {images}"));
    Err(violations.into())
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
    let images = canvases.iter().map(|canvas| answer::image(canvas, facts.spec(), encoding));
    Ok(GenerateImagesResponse {
        images: images.collect::<Result<_, _>>().map_err(Error::EngineFault)?,
        started: Some(facts.started()),
        completed: Some(checksums.completed(summary)),
    })
}
