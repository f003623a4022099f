//! The Open Inference Protocol, version 2: a front for clients that know no other. Requests are turned into those of the
//! project's own services, which check and answer them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use prost_types::Duration;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;
use tracing::field::Empty;

use super::budget::Evicted;
use super::call::Verdict;
use super::deadline::{self, Deadline};
use super::generation::Generations;
use super::lease::{Lease, Progress};
use super::proto::generation_service_server::GenerationService;
use super::proto::inference::grpc_inference_service_server::GrpcInferenceService;
use super::proto::inference::infer_parameter::ParameterChoice;
use super::proto::inference::model_metadata_response::TensorMetadata;
use super::proto::inference::repository_index_response::ModelIndex;
use super::proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use super::proto::scoring_service_server::ScoringService;
use super::proto::stream_generate_images_response::Event;
use super::proto::{
    Conditioning, FlushPolicy, GenerateImagesRequest, GenerationSpec, GenerationStarted, Granularity, Image,
    ImageEncoding, SamplingParams, SchedulingParams, ScoreDetail, ScoreImagesRequest, ScoreItem, ScoringSpec,
    StreamGenerateImagesRequest, StreamGenerateImagesResponse,
};
use super::scoring::Scorings;
use super::status::{cause, status};
use super::tensors::{self, Kind, Parameters, Tensor, little_endian, parameter};
use super::{answer, health, proto};
use crate::engine::Handle;
use crate::engine::catalogue::State;
use crate::error::{Error, Violations};
use crate::image::Shape;
use crate::spec::ModelSpec;

/// Requests of one stream that are answered at a time.
const AT_ONCE: usize = 16;
/// Longest id of a request, in bytes.
const MAX_ID: usize = 256;
/// What clients of Triton send with every request, or with every one of a stream, and means nothing here.
const PASSED_OVER: [&str; 4] = ["sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"];
const INPUTS: [&str; 4] = [IMAGES, CLASS_LABEL, PREFIX, LOW_RESOLUTION];
const IMAGES: &str = "images";
const CLASS_LABEL: &str = "class_label";
const PREFIX: &str = "prefix";
const LOW_RESOLUTION: &str = "low_resolution";
const VALUES: &str = "values";
const LOG_PROBS: &str = "log_probs";
const LOG_LIKELIHOOD: &str = "log_likelihood";
const BITS_PER_DIM: &str = "bits_per_dim";

/// Samples and scores as the protocol's clients ask for it.
#[derive(Clone, Debug)]
pub(super) struct Inference {
    pub(super) generations: Generations,
    pub(super) scorings: Scorings,
}

/// What a request asks for.
pub(super) enum Task {
    Sample { spec: Box<GenerationSpec>, granularity: Granularity },
    Score(ScoreImagesRequest),
}

impl Task {
    /// What can be asked for of its answer, or of the stream of them.
    fn outputs(&self, streamed: bool) -> &'static [&'static str] {
        match (self, streamed) {
            (Task::Sample { .. }, false) => &[IMAGES, LOG_LIKELIHOOD],
            (Task::Sample { .. }, true) => &[VALUES, LOG_PROBS, LOG_LIKELIHOOD],
            (Task::Score(_), _) => &[LOG_PROBS, LOG_LIKELIHOOD, BITS_PER_DIM],
        }
    }
}

/// A request that was understood.
pub(super) struct Call {
    handle: Handle,
    id: String,
    /// Outputs asked for; empty for all that cost nothing more.
    wanted: Vec<String>,
    pub(super) task: Task,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ModelInferResponse, Status>> + Send>>;

impl Inference {
    /// What `request` asks for; whether it is answered by a stream decides which outputs there are.
    pub(super) fn read(&self, request: ModelInferRequest, streamed: bool) -> Result<Call, Error> {
        let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents } =
            request;
        let handle = self.generations.catalogue.resolve(&model_name)?;
        let spec = handle.spec();
        let mut violations = Violations::new();
        check_version(&model_version, &spec.revision, &mut violations);
        // Every answer repeats it, and a stream has one for each piece of an image.
        if id.len() > MAX_ID {
            violations.add("id", format!("must be at most {MAX_ID} bytes, got {}", id.len()));
        }
        let wanted: Vec<String> = outputs.into_iter().map(|output| output.name).collect();
        let mut tensors = tensors::read(inputs, raw_input_contents, &INPUTS, &mut violations);
        let mut parameters = Parameters::new(parameters);
        let scheduling = parameters.whole::<i64>("timeout", &mut violations).map(|microseconds| SchedulingParams {
            queue_timeout: Some(Duration {
                seconds: microseconds / 1_000_000,
                nanos: (microseconds % 1_000_000) as i32 * 1000,
            }),
            ..SchedulingParams::default()
        });
        let task = match tensors.remove(IMAGES) {
            Some(images) => {
                let items = self.items(&images, &tensors, spec, &mut violations);
                let detail = match wanted.iter().any(|name| name == LOG_PROBS) {
                    true => ScoreDetail::PerValue,
                    false => ScoreDetail::Total,
                };
                let spec = ScoringSpec { model: model_name, detail: detail.into(), scheduling };
                Task::Score(ScoreImagesRequest { spec: Some(spec), items })
            }
            None => {
                let granularity = granularity(parameters.text("granularity", &mut violations), &mut violations);
                let conditioning = conditioning(&tensors, spec, &mut parameters, &mut violations);
                let sampling = SamplingParams {
                    temperature: parameters.number("temperature", &mut violations),
                    top_k: parameters.whole("top_k", &mut violations),
                    top_p: parameters.number("top_p", &mut violations),
                    seed: parameters.whole("seed", &mut violations),
                    ..SamplingParams::default()
                };
                let spec = GenerationSpec {
                    model: model_name,
                    image_count: parameters.whole("image_count", &mut violations),
                    first_image_index: parameters.whole("first_image_index", &mut violations).unwrap_or_default(),
                    conditioning: Some(conditioning),
                    sampling: Some(sampling),
                    scheduling,
                    ..GenerationSpec::default()
                };
                Task::Sample { spec: Box::new(spec), granularity }
            }
        };
        check_outputs(&wanted, task.outputs(streamed), &mut violations);
        parameters.finish(&PASSED_OVER, &mut violations);
        violations.into_result(())?;
        Ok(Call { handle, id, wanted, task })
    }

    /// The images of a tensor, with what each is conditioned on.
    fn items(
        &self,
        images: &Tensor,
        others: &BTreeMap<String, Tensor>,
        spec: &ModelSpec,
        violations: &mut Violations,
    ) -> Vec<ScoreItem> {
        // Before as many items are made as the tensor says there are.
        let most = u64::from(self.scorings.limits.items_per_request);
        let Some(pieces) = images_of(images, IMAGES, spec.shape, most, violations) else { return Vec::new() };
        let count = pieces.len();
        let labels = others.get(CLASS_LABEL).map(|labels| labels.labels(violations)).unwrap_or_default();
        let low = match (others.get(LOW_RESOLUTION), spec.condition.low) {
            (Some(low), Some(shape)) => images_of(low, LOW_RESOLUTION, shape, most, violations).unwrap_or_default(),
            (Some(_), None) => {
                violations.add(LOW_RESOLUTION, "must not be there: the model takes none");
                Vec::new()
            }
            (None, _) => Vec::new(),
        };
        for (name, given) in [(CLASS_LABEL, labels.len()), (LOW_RESOLUTION, low.len())] {
            if ![0, count].contains(&given) {
                violations.add(name, format!("must be one for each of the {count} images, got {given}"));
            }
        }
        if others.contains_key(PREFIX) {
            violations.add(PREFIX, "must not be there when images are scored");
        }
        let item = |(index, data)| ScoreItem {
            image: Some(raw(data)),
            conditioning: Some(Conditioning {
                class_label: labels.get(index).copied(),
                low_resolution: low.get(index).cloned().map(raw),
                ..Conditioning::default()
            }),
            ..ScoreItem::default()
        };
        pieces.into_iter().enumerate().map(item).collect()
    }

    /// A request and its only answer.
    async fn infer(&self, call: Call, deadline: Option<Instant>) -> Result<ModelInferResponse, Status> {
        let Call { handle, id, wanted, task } = call;
        let spec = handle.spec();
        match task {
            Task::Sample { spec: asked, .. } => {
                let request = GenerateImagesRequest { spec: Some(*asked), encoding: ImageEncoding::Raw.into() };
                let sampled = self.generations.generate_images(timed(request, deadline)).await?.into_inner();
                let mut answer = begin(spec, id, sampled.started.as_ref());
                let [height, width, channels] = dimensions(spec.shape);
                let shape = [sampled.images.len() as u64, height, width, channels];
                let data: Vec<u8> = sampled.images.into_iter().flat_map(|image| image.data).collect();
                tensors::add(&mut answer, IMAGES, Kind::of_levels(spec.shape.levels()), &shape, data);
                let completed = sampled.completed.unwrap_or_default();
                add_likelihoods(&mut answer, completed.log_likelihoods);
                Ok(select(answer, &wanted))
            }
            Task::Score(request) => {
                let scored = self.scorings.score_images(timed(request, deadline)).await?.into_inner();
                let mut answer = ModelInferResponse { model_version: scored.model_revision, ..begin(spec, id, None) };
                let count = scored.scores.len() as u64;
                add_likelihoods(&mut answer, scored.scores.iter().map(|score| -score.nll_nats));
                let bits = little_endian(scored.scores.iter().map(|score| score.bits_per_dim), f64::to_le_bytes);
                tensors::add(&mut answer, BITS_PER_DIM, Kind::Fp64, &[count], bits);
                if wanted.iter().any(|name| name == LOG_PROBS) {
                    let all = scored.scores.iter().flat_map(|score| &score.value_nll_nats).map(|nll| -nll);
                    let [height, width, channels] = dimensions(spec.shape);
                    let data = little_endian(all, f32::to_le_bytes);
                    tensors::add(&mut answer, LOG_PROBS, Kind::Fp32, &[count, height, width, channels], data);
                }
                Ok(select(answer, &wanted))
            }
        }
    }

    /// A request and everything that answers it in a stream.
    async fn stream(self, request: ModelInferRequest, deadline: Option<Instant>) -> Result<Answers, Status> {
        let call = self.read(request, true).map_err(|error| status(&error))?;
        let (spec, granularity) = match call.task {
            Task::Sample { spec, granularity } => (spec, granularity),
            Task::Score(_) => {
                let mut answer = self.infer(call, deadline).await?;
                end(&mut answer);
                return Ok(stream::iter([Ok(answer)]).boxed());
            }
        };
        let request = StreamGenerateImagesRequest {
            spec: Some(*spec),
            flush: Some(FlushPolicy { granularity: granularity.into(), max_delay: None }),
            include_log_probs: call.wanted.iter().any(|name| name == LOG_PROBS),
        };
        let events = self.generations.stream_generate_images(timed(request, deadline)).await?.into_inner();
        let (handle, id, mut started) = (call.handle, call.id, None);
        let answers = move |event: Result<StreamGenerateImagesResponse, Status>| {
            let answers = match event.map(|event| event.event) {
                Err(status) => vec![Err(status)],
                Ok(None) => Vec::new(),
                Ok(Some(Event::Started(facts))) => {
                    started = Some(facts);
                    Vec::new()
                }
                Ok(Some(Event::Sampled(sampled))) => sampled
                    .runs
                    .into_iter()
                    .map(|run| Ok(part(begin(handle.spec(), id.clone(), started.as_ref()), run, handle.spec())))
                    .collect(),
                Ok(Some(Event::Completed(completed))) => {
                    let mut answer = begin(handle.spec(), id.clone(), started.as_ref());
                    add_likelihoods(&mut answer, completed.log_likelihoods);
                    end(&mut answer);
                    vec![Ok(answer)]
                }
            };
            stream::iter(answers)
        };
        Ok(events.flat_map(answers).boxed())
    }
}

/// A request to one of the project's own services, with the deadline of the call it comes from.
fn timed<T>(message: T, deadline: Option<Instant>) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Deadline(deadline));
    request
}

fn check_version(version: &str, revision: &str, violations: &mut Violations) {
    if ![revision, ""].contains(&version) {
        let given: String = version.chars().take(100).collect();
        violations.add("model_version", format!("must be empty or {revision:?}, the only one, got {given:?}"));
    }
}

fn check_outputs(wanted: &[String], given: &[&str], violations: &mut Violations) {
    let known = wanted.iter().enumerate().map(|(index, name)| {
        // Once each: an answer holds a copy of a tensor for every time that it is asked for.
        given.contains(&name.as_str()) && !wanted.iter().take(index).any(|before| before == name)
    });
    if let Some(wrong) = known.zip(wanted).find_map(|(known, name)| (!known).then_some(name)) {
        let wrong: String = wrong.chars().take(100).collect();
        violations.add("outputs", format!("must be some of {}, each once, got {wrong:?}", given.join(", ")));
    }
}

fn granularity(given: Option<String>, violations: &mut Violations) -> Granularity {
    match given.as_deref() {
        None | Some("value") => Granularity::Value,
        Some("pixel") => Granularity::Pixel,
        Some("row") => Granularity::Row,
        Some(other) => {
            let given: String = other.chars().take(100).collect();
            violations.add("parameters.granularity", format!("must be value, pixel or row, got {given:?}"));
            Granularity::Value
        }
    }
}

/// What images to be sampled are conditioned on.
fn conditioning(
    tensors: &BTreeMap<String, Tensor>,
    spec: &ModelSpec,
    parameters: &mut Parameters,
    violations: &mut Violations,
) -> Conditioning {
    let label = parameters.whole(CLASS_LABEL, violations);
    let given = tensors.get(CLASS_LABEL).map(|labels| labels.labels(violations)).unwrap_or_default();
    let class_label = match (label, given.as_slice()) {
        (label, []) => label,
        (None, &[label]) => Some(label),
        (_, several) => {
            let rule = format!("must be one label, as an input or as a parameter, got {} more", several.len());
            violations.add(CLASS_LABEL, rule);
            None
        }
    };
    let levels = spec.shape.levels();
    let prefix = tensors.get(PREFIX).map(|prefix| prefix.values(levels, violations)).unwrap_or_default();
    let low_levels = spec.condition.low.map_or(levels, Shape::levels);
    let low_resolution = tensors.get(LOW_RESOLUTION).map(|low| raw(low.values(low_levels, violations)));
    Conditioning { class_label, prefix, low_resolution }
}

fn raw(data: Bytes) -> Image {
    Image { data, encoding: ImageEncoding::Raw.into(), shape: None }
}

fn dimensions(shape: Shape) -> [u64; 3] {
    [shape.height(), shape.width(), shape.channels()].map(u64::from)
}

/// The images of `shape` in a tensor, which has them one behind the other.
fn images_of(tensor: &Tensor, name: &str, shape: Shape, most: u64, violations: &mut Violations) -> Option<Vec<Bytes>> {
    let wanted = dimensions(shape);
    let count = match tensor.shape.as_slice() {
        [count, rest @ ..] if *rest == wanted && (1..=most).contains(count) => *count,
        rest if *rest == wanted => 1,
        other => {
            let rule = format!("must be 1..={most} images of {wanted:?}, got {other:?}");
            violations.add(format!("{name}.shape"), rule);
            return None;
        }
    };
    let data = tensor.values(shape.levels(), violations);
    let size = data.len() / count as usize;
    Some((0..count as usize).map(|index| data.slice(index * size..(index + 1) * size)).collect())
}

/// An answer without its tensors. A reload may have come between looking at the request and answering it, so the revision is
/// the one that answered.
fn begin(spec: &ModelSpec, id: String, started: Option<&GenerationStarted>) -> ModelInferResponse {
    let seed = started.map(|started| ("seed".to_owned(), parameter(ParameterChoice::Uint64Param(started.seed))));
    ModelInferResponse {
        model_name: spec.name.clone(),
        model_version: started.map_or(&spec.revision, |started| &started.model_revision).clone(),
        id,
        parameters: seed.into_iter().collect(),
        ..ModelInferResponse::default()
    }
}

/// An answer that brings some values of one image.
fn part(mut answer: ModelInferResponse, run: proto::ValueRun, spec: &ModelSpec) -> ModelInferResponse {
    let kind = Kind::of_levels(spec.shape.levels());
    let count = run.values.len() as u64 / if kind == Kind::Uint8 { 1 } else { 2 };
    for (name, place) in [("image_index", run.image_index), ("first_rank", run.first_rank)] {
        answer.parameters.insert(name.to_owned(), parameter(ParameterChoice::Int64Param(place.into())));
    }
    tensors::add(&mut answer, VALUES, kind, &[count], run.values);
    if !run.log_probs.is_empty() {
        let data = little_endian(run.log_probs, f32::to_le_bytes);
        tensors::add(&mut answer, LOG_PROBS, Kind::Fp32, &[count], data);
    }
    answer
}

fn add_likelihoods(answer: &mut ModelInferResponse, nats: impl IntoIterator<Item = f64>) {
    let data = little_endian(nats, f64::to_le_bytes);
    let count = data.len() as u64 / 8;
    tensors::add(answer, LOG_LIKELIHOOD, Kind::Fp64, &[count], data);
}

/// Says that no more answers a request, as Triton does.
fn end(answer: &mut ModelInferResponse) {
    answer.parameters.insert("triton_final_response".to_owned(), parameter(ParameterChoice::BoolParam(true)));
}

/// The tensors that were asked for, in that order.
fn select(mut answer: ModelInferResponse, wanted: &[String]) -> ModelInferResponse {
    if !wanted.is_empty() {
        let all: Vec<_> = answer.outputs.drain(..).zip(answer.raw_output_contents.drain(..)).collect();
        let chosen = wanted.iter().filter_map(|name| all.iter().find(|(tensor, _)| tensor.name == *name).cloned());
        (answer.outputs, answer.raw_output_contents) = chosen.unzip();
    }
    answer
}

fn tensor(name: &str, kind: Kind, shape: &[i64]) -> TensorMetadata {
    TensorMetadata { name: name.to_owned(), datatype: kind.name().to_owned(), shape: shape.to_vec() }
}

/// What a model takes and gives.
fn metadata(spec: &ModelSpec) -> ModelMetadataResponse {
    let sized = |shape: Shape| {
        let [height, width, channels] = dimensions(shape).map(|size| size as i64);
        [-1, height, width, channels]
    };
    let values = Kind::of_levels(spec.shape.levels());
    let mut inputs = vec![tensor(IMAGES, values, &sized(spec.shape)), tensor(PREFIX, values, &[-1])];
    if spec.condition.classes > 0 {
        inputs.push(tensor(CLASS_LABEL, Kind::Int64, &[-1]));
    }
    if let Some(low) = spec.condition.low {
        inputs.push(tensor(LOW_RESOLUTION, Kind::of_levels(low.levels()), &sized(low)));
    }
    ModelMetadataResponse {
        name: spec.name.clone(),
        versions: vec![spec.revision.clone()],
        platform: format!("pixeld_{}", spec.family),
        inputs,
        outputs: vec![
            tensor(IMAGES, values, &sized(spec.shape)),
            tensor(VALUES, values, &[-1]),
            tensor(LOG_PROBS, Kind::Fp32, &sized(spec.shape)),
            tensor(LOG_LIKELIHOOD, Kind::Fp64, &[-1]),
            tensor(BITS_PER_DIM, Kind::Fp64, &[-1]),
        ],
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        let live = health::serves(&self.generations.catalogue, "liveness");
        Ok(Response::new(ServerLiveResponse { live }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = health::serves(&self.generations.catalogue, "readiness");
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let catalogue = &self.generations.catalogue;
        let (name, state) = catalogue.get(&name).map_err(|error| status(&error))?;
        let fits = |handle: &Handle| version.is_empty() || version == handle.spec().revision;
        let serving = matches!(&state, State::Serving { handle, .. } if fits(handle));
        let ready = serving && health::serves(catalogue, &answer::model_name(&name));
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: ["model_repository"].map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let find = || {
            let handle = self.generations.catalogue.resolve(&name)?;
            let mut violations = Violations::new();
            check_version(&version, &handle.spec().revision, &mut violations);
            Ok(metadata(violations.into_result(&handle)?.spec()))
        };
        find().map(Response::new).map_err(|error: Error| status(&error))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let deadline = deadline::of(&request);
        let call = self.read(request.into_inner(), false).map_err(|error| status(&error))?;
        self.infer(call, deadline).await.map(Response::new)
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (deadline, told, service) = (deadline::of(&request), Verdict::of(&request), self.clone());
        let evicted = Evicted::of(&request);
        let unread = self.scorings.limits.unread_timeout;
        let answers = request.into_inner().flat_map_unordered(AT_ONCE, move |request| match request {
            // Refused on its way in, no message, or the client is gone: the end of the stream.
            Err(broken) => {
                let bad = || Violations::one("request", broken.message()).into();
                stream::iter([Err(cause(&broken).cloned().unwrap_or_else(bad))]).boxed()
            }
            Ok(request) => {
                let id = super::status::cut(&request.id, MAX_ID);
                // The call's own span would gather the names of all its requests.
                let span = tracing::info_span!("request", request_id = Empty, model = Empty);
                let begun = service.clone().stream(request, deadline).instrument(span);
                let answers = stream::once(begun).flat_map(|begun| match begun {
                    Ok(answers) => answers,
                    Err(status) => stream::iter([Err(status)]).boxed(),
                });
                answers.map(move |answer| Ok(in_band(answer, &id))).boxed()
            }
        });
        // Without it, requests of a client that stopped reading would keep their places.
        // What samples is a stream of its own below, which ends when it is cancelled.
        let lease = Lease::new(answers, deadline, unread, Arc::new(Progress::default()), evicted.rung(), told);
        Ok(Response::new(lease.boxed()))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let catalogue = &self.generations.catalogue;
        let index = |(name, state): (String, State)| match state {
            State::Serving { ref handle, .. } | State::Draining { ref handle, .. } => {
                let ready = matches!(state, State::Serving { .. }) && !catalogue.is_draining();
                let state = if ready { "READY" } else { "UNAVAILABLE" };
                let version = handle.spec().revision.clone();
                ModelIndex { name, version, state: state.to_owned(), reason: String::new() }
            }
            State::Failed { why } => ModelIndex {
                name,
                state: "UNAVAILABLE".to_owned(),
                reason: super::status::cut(&why, answer::MAX_WORDS),
                ..ModelIndex::default()
            },
            _ => ModelIndex { name, state: "LOADING".to_owned(), ..ModelIndex::default() },
        };
        let models = catalogue.list().into_iter().map(index);
        let models = models.filter(|model| !only_ready || model.state == "READY").collect();
        Ok(Response::new(RepositoryIndexResponse { models }))
    }
}

/// An answer of a stream; the protocol has what failed in it beside what did not, since the stream goes on.
fn in_band(answer: Result<ModelInferResponse, Status>, id: &str) -> ModelStreamInferResponse {
    match answer {
        Ok(answer) => ModelStreamInferResponse { infer_response: Some(answer), error_message: String::new() },
        Err(status) => ModelStreamInferResponse {
            error_message: format!("{:?}: {}", status.code(), status.message()),
            infer_response: Some(ModelInferResponse { id: id.to_owned(), ..ModelInferResponse::default() }),
        },
    }
}
