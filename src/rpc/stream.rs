//! A sampling job as a stream of events: `started`, runs of values, `completed`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;

use super::convert::Generation;
use super::lease::Progress;
use super::proto::stream_generate_images_response::Event;
use super::proto::{ImageEncoding, StreamGenerateImagesResponse};
use super::running::Entry;
use super::{answer, meter, proto};
use crate::engine::event::Run;
use crate::engine::{SampleStream, SampleSummary};
use crate::error::Error;
use crate::image::{Shape, codec};
use crate::job::{Class, Granularity, SampleJob};
use crate::spec::ModelSpec;

/// Values one message holds at most. With log-probabilities and two bytes a value that is 1.5 MiB, well below the four
/// that clients accept by default.
const MAX_MESSAGE_VALUES: u32 = 1 << 18;

/// What the wire says of a job beside its values.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    request_id: String,
    spec: Arc<ModelSpec>,
    class: Class,
    started: proto::GenerationStarted,
    /// Of the prefix, where every image's checksum begins.
    prefix_crc: u32,
    /// Values that are not split over messages.
    unit: u32,
}

impl Facts {
    pub(super) fn of(generation: &Generation) -> Self {
        let (spec, job) = (Arc::clone(generation.handle.spec()), &generation.job);
        let lower = generation.lower.as_ref().map(|(lower, _)| lower);
        let request_id = generation.entry.id().to_owned();
        let started = proto::GenerationStarted {
            request_id: request_id.clone(),
            model_revision: spec.revision.clone(),
            seed: job.seed,
            reproducibility: answer::reproducibility(job.reproducibility).into(),
            shape: Some(answer::shape(spec.shape)),
            palette: answer::palette(spec.palette.as_deref()),
            image_count: job.images,
            order: answer::order(spec.order).into(),
            blocks: answer::blocks(spec.order),
            model: answer::model_name(&spec.name),
            noise_version: crate::noise::VERSION,
            low_resolution_model_revision: lower.map(|lower| lower.spec().revision.clone()).unwrap_or_default(),
        };
        let prefix_crc = crc32c::crc32c(&codec::values_to_raw(job.prefix.values(), spec.shape));
        let unit = unit(job, spec.shape);
        Self { request_id, spec, class: job.class, started, prefix_crc, unit }
    }

    pub(super) fn started(&self) -> proto::GenerationStarted {
        self.started.clone()
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Checksums of images of which nothing was sampled yet.
    pub(super) fn checksums(&self) -> Checksums {
        let images = self.started.image_count as usize;
        Checksums { spec: Arc::clone(&self.spec), class: self.class, crc32c: vec![self.prefix_crc; images] }
    }
}

fn unit(job: &SampleJob, shape: Shape) -> u32 {
    match job.granularity {
        Granularity::Value => 1,
        Granularity::Pixel => shape.channels(),
        Granularity::Row => shape.channels() * shape.width(),
    }
}

/// CRC-32C of each image's raw values so far.
#[derive(Clone, Debug)]
pub(super) struct Checksums {
    spec: Arc<ModelSpec>,
    class: Class,
    crc32c: Vec<u32>,
}

impl Checksums {
    /// Takes in a run; returns its raw form.
    pub(super) fn take_in(&mut self, run: &Run) -> Vec<u8> {
        let raw = codec::values_to_raw(&run.values, self.spec.shape);
        if let Some(crc) = self.crc32c.get_mut(run.image as usize) {
            *crc = crc32c::crc32c_append(*crc, &raw);
        }
        raw
    }

    /// The end of the generation, with the low-resolution images that were drawn in `encoding`.
    ///
    /// # Errors
    /// [`Error::EngineFault`] with what the codec has against one of them.
    pub(super) fn completed(
        self,
        summary: SampleSummary,
        encoding: ImageEncoding,
    ) -> Result<proto::GenerationCompleted, Error> {
        meter::finished(&self.spec.name, self.class, summary.timing);
        let low = &summary.low_images;
        let images = low.iter().map(|low| answer::image(&low.values, low.shape, None, encoding));
        Ok(proto::GenerationCompleted {
            usage: Some(answer::usage(summary.usage)),
            timing: Some(answer::timing(summary.timing)),
            crc32c: self.crc32c,
            low_resolution_images: images.collect::<Result<_, _>>().map_err(Error::EngineFault)?,
            low_resolution_log_likelihoods: low.iter().map(|low| low.log_likelihood).collect(),
            log_likelihoods: summary.log_likelihoods,
        })
    }
}

/// Why a stream that has handed out every value says nothing more.
pub(super) fn no_summary() -> Error {
    Error::EngineFault("the job ended without its totals".to_owned())
}

struct Events {
    stream: SampleStream,
    /// No other request has this one's id while this stream is there.
    _entry: Entry,
    facts: Facts,
    checksums: Checksums,
    include_log_probs: bool,
    max_delay: Option<Duration>,
    progress: Arc<Progress>,
    /// Runs that did not fit into the last message.
    waiting: VecDeque<Run>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Sampling,
    Ended,
}

/// The events of `stream`, which is dropped, and thereby cancelled, with what is returned.
pub(super) fn events(
    (stream, _entry): (SampleStream, Entry),
    facts: Facts,
    include_log_probs: bool,
    max_delay: Option<Duration>,
    progress: Arc<Progress>,
) -> impl Stream<Item = Result<StreamGenerateImagesResponse, Error>> + Send + 'static {
    let checksums = facts.checksums();
    let waiting = VecDeque::new();
    let stage = Stage::Starting;
    let events = Events { stream, _entry, facts, checksums, include_log_probs, max_delay, progress, waiting, stage };
    futures_util::stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((event.map(|event| StreamGenerateImagesResponse { event: Some(event) }), events))
    })
}

impl Events {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        match self.stage {
            Stage::Ended => return None,
            Stage::Starting => {
                self.stage = Stage::Sampling;
                return Some(Ok(Event::Started(self.facts.started())));
            }
            Stage::Sampling if !self.waiting.is_empty() => return Some(Ok(self.message())),
            Stage::Sampling => {}
        }
        match self.stream.next(self.max_delay).await {
            Some(Ok(runs)) => {
                self.waiting.extend(runs);
                Some(Ok(self.message()))
            }
            Some(Err(error)) => {
                self.stage = Stage::Ended;
                tracing::debug!(request_id = self.facts.request_id, %error, "generation ended early");
                Some(Err(error))
            }
            None => {
                self.stage = Stage::Ended;
                let summary = self.stream.summary().ok_or_else(no_summary);
                let completed = |all| self.checksums.clone().completed(all, ImageEncoding::Raw);
                Some(summary.and_then(completed).map(Event::Completed))
            }
        }
    }

    /// As much of what waits as one message may hold.
    fn message(&mut self) -> Event {
        let mut room = MAX_MESSAGE_VALUES;
        let mut runs = Vec::with_capacity(self.waiting.len());
        while let Some(mut run) = self.waiting.pop_front() {
            if let Some(rest) = split(&mut run, room, self.facts.unit) {
                self.waiting.push_front(rest);
                // The first run of a message is never empty, or there would be no end of messages.
                if run.values.is_empty() {
                    break;
                }
            }
            let count = run.values.len() as u32;
            room = room.saturating_sub(count);
            self.progress.handed_out(run.image, count);
            let values = self.checksums.take_in(&run).into();
            let log_probs = if self.include_log_probs { run.log_probs } else { Vec::new() };
            runs.push(proto::ValueRun { image_index: run.image, first_rank: run.first, values, log_probs });
        }
        Event::Sampled(proto::SampledValues { runs })
    }
}

/// Cuts `run` to at most `room` values, in whole units where a message can hold one; returns the rest.
fn split(run: &mut Run, room: u32, unit: u32) -> Option<Run> {
    if run.values.len() <= room as usize {
        return None;
    }
    // Units count from rank 0, not from the start of the run.
    let whole = (run.first + room) / unit * unit;
    let keep = if unit > MAX_MESSAGE_VALUES { room } else { whole.saturating_sub(run.first) };
    let values = run.values.split_off(keep as usize);
    let log_probs = run.log_probs.split_off((keep as usize).min(run.log_probs.len()));
    Some(Run { image: run.image, first: run.first + keep, values, log_probs })
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use tokio::time;

    use super::*;
    use crate::engine::health::Health;
    use crate::engine::{Engine, EngineConfig, Kind};
    use crate::job::{Class, Limits, SampleRequest};
    use crate::model::PixelModel;
    use crate::model::scripted::Scripted;
    use crate::rpc::call::Verdict;
    use crate::rpc::lease::Lease;
    use crate::rpc::running::Running;

    const MAX_SILENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_the_first_of_two_stages_is_not_taken_for_one_that_does_not_read() {
        let config = EngineConfig { queue_images: 1, ..EngineConfig::default() };
        let (upper, _) = Scripted::new(1);
        let (lower, script) = Scripted::with_shape(1, Shape::new(2, 1, 2, 5).unwrap());
        let timeout = Duration::from_secs(3600);
        let limits =
            Limits { images_per_request: 1, items_per_request: 1, queue_timeout: timeout, unread_timeout: MAX_SILENCE };
        let job = SampleJob::new(SampleRequest::default(), upper.spec(), &limits, || 1).unwrap();
        let [handle, lower] = [upper, lower].map(|model| Engine::start(Box::new(model), 1, config).unwrap().handle());
        while *lower.health().borrow() == Health::Warming {
            std::thread::yield_now();
        }
        script.shut();
        let admit = |handle: &crate::engine::Handle| handle.admit(Kind::Sampling, 1, Class::Interactive).unwrap();
        let (permit, first) = (admit(&handle), admit(&lower));
        let entry = Running::default().enter(String::new()).unwrap();
        let generation = Generation { handle, permit, lower: Some((lower, first)), job, entry };
        let (facts, progress) = (Facts::of(&generation), Arc::new(Progress::new(1, 0)));
        let events = events(generation.sample(None).unwrap(), facts, false, None, Arc::clone(&progress));
        let mut lease = Lease::new(events, None, MAX_SILENCE, progress, std::future::pending(), Verdict::default());
        assert!(matches!(lease.next().await.unwrap().unwrap().event, Some(Event::Started(_))));
        // Rows of the low-resolution image come, of which there is nothing to tell.
        for _ in 0..3 {
            script.wait_until_held();
            assert!(lease.next().now_or_never().is_none());
            time::advance(MAX_SILENCE * 2).await;
            tokio::task::yield_now().await;
            script.let_through(1);
        }
        // Paused time would run on ahead of the engines.
        time::resume();
        script.open_gate();
        let mut last = None;
        while let Some(event) = lease.next().await {
            last = event.unwrap().event;
        }
        let Some(Event::Completed(completed)) = last else { panic!("it ends well") };
        assert_eq!(completed.low_resolution_images[0].data.len(), 4);
    }

    fn run(first: u32, count: u32) -> Run {
        let values: Vec<u16> = (first..first + count).map(|rank| rank as u16).collect();
        let log_probs = values.iter().map(|value| f32::from(*value)).collect();
        Run { image: 3, first, values, log_probs }
    }

    #[test]
    fn a_run_that_does_not_fit_is_cut_between_units() {
        let mut fits = run(5, 10);
        assert_eq!(split(&mut fits, 10, 4), None);
        let mut head = run(5, 10);
        let tail = split(&mut head, 9, 4).unwrap();
        assert_eq!((head.clone(), tail.clone()), (run(5, 7), run(12, 3)), "rank 12 begins a unit of 4");
        let mut head = run(4, 10);
        assert_eq!(split(&mut head, 3, 4), Some(run(4, 10)), "no whole unit fits: all of it waits");
        let mut head = run(0, 10);
        assert_eq!(split(&mut head, 6, MAX_MESSAGE_VALUES + 1), Some(run(6, 4)), "a unit larger than a message is cut");
    }
}
