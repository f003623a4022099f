//! What each kind of client asks of the daemon, and whether what it got can be explained.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::reloads::{KEPT, Packages};
use super::{Chance, Traffic};
use crate::cli::access::{Bearer, Channel};
use crate::cli::assembly::Assembly;
use crate::cli::client;
use crate::cli::failure::Failure;
use crate::rpc::proto::generation_service_client::GenerationServiceClient;
use crate::rpc::proto::scoring_service_client::ScoringServiceClient;
use crate::rpc::proto::stream_generate_images_response::Event;
use crate::rpc::proto::{
    Conditioning, GenerateImagesResponse, GenerationSpec, Image, ListModelsRequest, Model, Priority, SamplingParams,
    SchedulingParams, ScoreImagesRequest, ScoreItem, ScoringSpec, StreamGenerateImagesRequest,
};

/// How long a client waits for the end of anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// Images of one request at most.
const MOST_IMAGES: u32 = 4;
/// Longest deadline of those that set one, in milliseconds.
const MOST_MILLIS: u32 = 50;
/// How long a slow reader looks away, in milliseconds at most.
const MOST_AWAY: u32 = 40;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a request came to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// `OK`, a code and a reason, or what was wrong with the answer.
    pub(super) what: String,
    pub(super) explained: bool,
    /// Images asked for, to sample or to score, and those that came whole.
    pub(super) asked: u64,
    pub(super) received: u64,
}

/// The daemon as clients see it.
pub(super) struct Site {
    channel: Channel,
    /// A connection that takes next to nothing before it is read.
    narrow: Channel,
    address: String,
    models: Vec<Model>,
    /// Those that score without an image of low resolution.
    scoring: Vec<Model>,
    packages: Option<Packages>,
}

/// When to leave a stream, and how to read it.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    leave_at: Option<f64>,
    slowly: bool,
}

impl Site {
    /// # Errors
    /// There is no model that these clients can use.
    pub(super) fn new(
        [channel, narrow]: [Channel; 2],
        address: String,
        models: Vec<Model>,
        packages: Option<Packages>,
    ) -> Result<Self, Failure> {
        let scoring = models.iter().filter(|model| model.low_resolution_shape.is_none()).cloned().collect::<Vec<_>>();
        if scoring.is_empty() {
            return Err(Failure::Unavailable("no model serves that needs no low-resolution image".to_owned()));
        }
        Ok(Self { channel, narrow, address, models, scoring, packages })
    }

    /// Does what a client of this kind does, once.
    pub(super) async fn request(&self, kind: Traffic, chance: &mut Chance) -> Outcome {
        let refused = ["ResourceExhausted QUEUE_FULL"];
        match timeout(PATIENCE, self.one(kind, chance)).await {
            Ok((what, asked, received)) => {
                let explained =
                    what == "OK" || refused.contains(&what.as_str()) || expected(kind).contains(&what.as_str());
                Outcome { what, explained, asked, received }
            }
            // How many images it had asked for is unknown, but it is an error in any case.
            Err(_) => Outcome { what: "no end".to_owned(), explained: false, asked: 0, received: 0 },
        }
    }

    async fn one(&self, kind: Traffic, chance: &mut Chance) -> (String, u64, u64) {
        match kind {
            Traffic::Sample => self.sample(&self.channel, chance, Manner::default(), None).await,
            Traffic::Cancel => {
                let manner = Manner { leave_at: Some(chance.share()), ..Manner::default() };
                self.sample(&self.channel, chance, manner, None).await
            }
            Traffic::Slow => {
                self.sample(&self.narrow, chance, Manner { slowly: true, ..Manner::default() }, None).await
            }
            Traffic::Deadline => {
                let deadline = Duration::from_millis(1 + u64::from(chance.below(MOST_MILLIS)));
                self.sample(&self.channel, chance, Manner::default(), Some(deadline)).await
            }
            Traffic::Score => self.score(chance).await,
            Traffic::Malformed => (self.malformed(chance).await, 0, 0),
            Traffic::Connect => (self.connect(chance).await, 0, 0),
            Traffic::Reload => match &self.packages {
                Some(packages) => (packages.reload(&self.channel, chance).await, 0, 0),
                None => ("no packages".to_owned(), 0, 0),
            },
        }
    }

    fn pick<'a>(models: &'a [Model], chance: &mut Chance) -> &'a Model {
        static NONE: std::sync::LazyLock<Model> = std::sync::LazyLock::new(Model::default);
        models.get(chance.below(models.len() as u32) as usize).unwrap_or(&NONE)
    }

    fn spec(&self, chance: &mut Chance) -> GenerationSpec {
        let model = Self::pick(&self.models, chance);
        let class_label = (model.class_count > 0).then(|| chance.below(model.class_count));
        let priority = if chance.below(2) == 0 { Priority::Interactive } else { Priority::Batch };
        GenerationSpec {
            model: model.name.clone(),
            image_count: Some(1 + chance.below(MOST_IMAGES)),
            conditioning: class_label.map(|_| Conditioning { class_label, ..Conditioning::default() }),
            sampling: Some(SamplingParams { seed: Some(chance.below(u32::MAX).into()), ..SamplingParams::default() }),
            scheduling: Some(SchedulingParams { priority: priority.into(), queue_timeout: None }),
            ..GenerationSpec::default()
        }
    }

    /// A stream, and how many images were asked for and came whole. One in two stages asks for two each.
    async fn sample(
        &self,
        channel: &Channel,
        chance: &mut Chance,
        manner: Manner,
        deadline: Option<Duration>,
    ) -> (String, u64, u64) {
        let spec = self.spec(chance);
        let stages = self.models.iter().find(|model| model.name == spec.model);
        let stages = if stages.is_some_and(|model| model.low_resolution_shape.is_some()) { 2 } else { 1 };
        let images = u64::from(spec.image_count());
        let most = spec.image_count();
        let mut request = Request::new(StreamGenerateImagesRequest {
            spec: Some(spec),
            include_log_probs: manner.slowly,
            ..StreamGenerateImagesRequest::default()
        });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let mut client = GenerationServiceClient::new(channel.clone()).max_decoding_message_size(client::MAX_ANSWER);
        let end = Self::read(&mut client, request, most, manner, chance).await;
        let received = if end == "OK" { images } else { 0 };
        (end, images * stages, received * stages)
    }

    async fn read(
        client: &mut GenerationServiceClient<Channel>,
        request: Request<StreamGenerateImagesRequest>,
        images: u32,
        manner: Manner,
        chance: &mut Chance,
    ) -> String {
        let mut events = match client.stream_generate_images(request).await {
            Ok(events) => events.into_inner(),
            Err(status) => return told(&status),
        };
        let (mut assembly, mut received): (Option<Assembly>, u64) = (None, 0);
        loop {
            let event = match events.message().await {
                Ok(Some(message)) => message.event,
                Ok(None) => return "cut without a status".to_owned(),
                Err(status) => return told(&status),
            };
            match (event, &mut assembly) {
                (Some(Event::Started(started)), None) => match Assembly::new(started, images, &[]) {
                    Ok(begun) => assembly = Some(begun),
                    Err(what) => return what,
                },
                (Some(Event::Sampled(sampled)), Some(assembly)) => {
                    for run in &sampled.runs {
                        match assembly.add(run) {
                            Ok(values) => received += values,
                            Err(what) => return what,
                        }
                    }
                }
                (Some(Event::Completed(completed)), Some(assembly)) => {
                    return assembly.finish(&completed).map_or_else(|what| what, |_| "OK".to_owned());
                }
                _ => return "events in an order that makes no sense".to_owned(),
            }
            if let (Some(share), Some(assembly)) = (manner.leave_at, &assembly)
                && received as f64 >= share * assembly.total() as f64 * 0.9
            {
                return "left".to_owned();
            }
            if manner.slowly {
                let away = Duration::from_millis(chance.below(MOST_AWAY).into());
                sleep_until((Instant::now() + away).into()).await;
            }
        }
    }

    /// Images of chance values; in every other request one cannot be read.
    async fn score(&self, chance: &mut Chance) -> (String, u64, u64) {
        let (model, images) = (Self::pick(&self.scoring, chance), 1 + chance.below(MOST_IMAGES));
        let Some(shape) = model.shape else { return ("a model without a shape".to_owned(), 0, 0) };
        let values = shape.height * shape.width * shape.channels;
        let wide = shape.levels > 256;
        let spoilt = chance.below(2) == 0;
        let mut item = |index: u32| {
            let mut data = Vec::with_capacity(2 * values as usize);
            for _ in 0..values {
                let value = chance.below(shape.levels) as u16;
                let bytes = value.to_le_bytes();
                data.extend_from_slice(if wide { &bytes } else { bytes.get(..1).unwrap_or_default() });
            }
            if spoilt && index == 0 {
                data.pop();
            }
            ScoreItem {
                item_id: index.to_string(),
                image: Some(Image { data: data.into(), ..Image::default() }),
                conditioning: (model.class_count > 0)
                    .then(|| Conditioning { class_label: Some(0), ..Conditioning::default() }),
            }
        };
        let items = (0..images).map(&mut item).collect();
        let spec = Some(ScoringSpec { model: model.name.clone(), ..ScoringSpec::default() });
        let mut client = ScoringServiceClient::new(self.channel.clone()).max_decoding_message_size(client::MAX_ANSWER);
        let scored = client.score_images(ScoreImagesRequest { spec, items }).await;
        match scored {
            Err(status) if spoilt => (told(&status), 0, 0),
            Err(status) => (told(&status), images.into(), 0),
            Ok(_) if spoilt => ("an image that cannot be read was scored".to_owned(), 0, 0),
            Ok(answer) => {
                let scores = answer.into_inner().scores;
                let finite =
                    scores.len() == images as usize && scores.iter().all(|score| score.bits_per_dim.is_finite());
                let what = if finite { "OK" } else { "scores that are none" };
                (what.to_owned(), images.into(), images.into())
            }
        }
    }

    async fn malformed(&self, chance: &mut Chance) -> String {
        let mut spec = self.spec(chance);
        let wanted = match chance.below(5) {
            0 => {
                spec.model = "models/nobody".to_owned();
                "NotFound MODEL_NOT_FOUND"
            }
            1 => {
                spec.sampling = Some(SamplingParams { top_p: Some(-1.0), ..SamplingParams::default() });
                "InvalidArgument INVALID_REQUEST"
            }
            2 => {
                spec.conditioning = Some(Conditioning { prefix: vec![255; 1 << 14].into(), ..Conditioning::default() });
                "InvalidArgument INVALID_REQUEST"
            }
            3 => return self.other_type().await,
            _ => return self.garbage(chance).await,
        };
        let request = StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
        match GenerationServiceClient::new(self.channel.clone()).stream_generate_images(request).await {
            Ok(_) => format!("taken instead of {wanted}"),
            Err(status) => told(&status),
        }
    }

    /// A number where a message must be.
    async fn other_type(&self) -> String {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        if let Err(error) = grpc.ready().await {
            return error.to_string();
        }
        let codec = tonic_prost::ProstCodec::<ListModelsRequest, GenerateImagesResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/pixeld.v1.GenerationService/GenerateImages");
        let request = Request::new(ListModelsRequest { page_size: 1, ..ListModelsRequest::default() });
        match grpc.unary(request, path, codec).await {
            Ok(_) => "a message of another type was taken".to_owned(),
            Err(status) => told(&status),
        }
    }

    /// Something that is no HTTP/2, to which the server must not listen.
    async fn garbage(&self, chance: &mut Chance) -> String {
        let ask = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            let bytes: Vec<u8> = (0..64).map(|_| chance.below(256) as u8).collect();
            socket.write_all(&bytes).await?;
            let mut answer = Vec::new();
            socket.take(1 << 16).read_to_end(&mut answer).await
        };
        // It may be closed with what we sent still unread.
        ask.await.map_or("hung up".to_owned(), |_| "hung up".to_owned())
    }

    async fn connect(&self, chance: &mut Chance) -> String {
        let said = match chance.below(3) {
            0 => {
                let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
                let connected = match endpoint {
                    Ok(endpoint) => endpoint.connect().await,
                    Err(error) => Err(error),
                };
                return match connected {
                    Ok(channel) => {
                        let channel = Channel::new(channel, Bearer::default());
                        client::list(&channel).await.map_or_else(|failure| format!("{failure:?}"), |_| "OK".into())
                    }
                    Err(error) => crate::cli::connect::innermost(&error),
                };
            }
            1 => 0,
            _ => 1 + chance.below(PREFACE.len() as u32) as usize,
        };
        let visit = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            socket.write_all(PREFACE.get(..said).unwrap_or_default()).await?;
            socket.shutdown().await
        };
        visit.await.map_or_else(|error: std::io::Error| error.to_string(), |()| "OK".to_owned())
    }
}

/// Outcomes that a client of this kind may meet beside being served, or refused for want of room.
fn expected(kind: Traffic) -> &'static [&'static str] {
    match kind {
        Traffic::Sample | Traffic::Connect => &[],
        Traffic::Cancel => &["left"],
        Traffic::Slow => &["Aborted CLIENT_TOO_SLOW"],
        // The transport of the client has a clock of its own, and no details.
        Traffic::Deadline => &[
            "DeadlineExceeded DEADLINE_INFEASIBLE",
            "DeadlineExceeded QUEUE_TIMEOUT",
            "DeadlineExceeded DEADLINE_MID_STREAM",
            "DeadlineExceeded",
            "Cancelled",
        ],
        Traffic::Score => &["InvalidArgument INVALID_REQUEST"],
        Traffic::Malformed => &["NotFound MODEL_NOT_FOUND", "InvalidArgument INVALID_REQUEST", "hung up"],
        Traffic::Reload => &[KEPT],
    }
}

/// The code and the reason of a status.
pub(super) fn told(status: &Status) -> String {
    let details = status.get_error_details();
    match details.error_info() {
        Some(info) => format!("{:?} {}", status.code(), info.reason),
        None if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) => format!("{:?}", status.code()),
        None => format!("{:?} without a reason: {}", status.code(), status.message()),
    }
}
