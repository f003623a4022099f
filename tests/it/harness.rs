//! Starts the app on a free port and gives out clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pixeld::app::{App, AppError, Source};
use pixeld::config::{Admin, Config, Engine, Health, Log, Metrics, Models, Server, Trace};
use pixeld::engine::catalogue::{Catalogue, State};
use pixeld::engine::{EngineConfig, Handle};
use pixeld::image::Shape;
use pixeld::job::Limits;
use pixeld::rpc::proto::generation_service_client::GenerationServiceClient;
use pixeld::rpc::proto::model_service_client::ModelServiceClient;
use pixeld::rpc::proto::scoring_service_client::ScoringServiceClient;
use pixeld::rpc::proto::stream_generate_images_response::Event;
use pixeld::rpc::proto::{
    GenerationCompleted, GenerationSpec, GenerationStarted, SamplingParams, StreamGenerateImagesRequest,
    StreamGenerateImagesResponse,
};
use pixeld::rpc::{ConnectionLimits, Listener};
use pixeld::security::{Security, TokenFiles};
use pixeld::spec::{Backend, Precision};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::steady::{Gate, Steady};

/// Anything that takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The model's name.
pub(crate) const MODEL: &str = "steady";
/// Places in the queue beside the slots.
pub(crate) const QUEUE: u32 = 64;

/// 4x5 pixels of 3 values, 16 levels.
pub(crate) fn shape() -> Shape {
    Shape::new(4, 5, 3, 16).unwrap()
}

/// Limits small enough to run into.
pub(crate) fn config() -> Config {
    Config {
        server: Server {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            max_request_bytes: 64 << 10,
            max_upload_bytes: 1 << 20,
            connections: ConnectionLimits {
                most: 100,
                streams: 100,
                handshake_timeout: Duration::from_secs(10),
                keepalive_interval: Duration::from_secs(30),
                keepalive_timeout: Duration::from_secs(10),
                idle: None,
                age: None,
                age_grace: Duration::ZERO,
                unread_timeout: PATIENCE,
            },
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(20),
            tls: None,
        },
        auth: TokenFiles::new(),
        models: Models { root: None, embedded: false, max_weight_bytes: 0, aliases: BTreeMap::new() },
        engine: Engine {
            shards: Some(1),
            slots: Some(4),
            backend: Backend::default(),
            device: None,
            cuda_libraries: None,
            precision: Precision::default(),
            threads: Some(1),
            max_model_bytes: None,
            stall_exit: false,
            engine: EngineConfig { queue_images: QUEUE, score_share: 0.5, ..EngineConfig::default() },
        },
        limits: Limits {
            images_per_request: 16,
            items_per_request: 8,
            queue_timeout: Duration::from_secs(3600),
            unread_timeout: PATIENCE,
        },
        admin: Admin::default(),
        health: Health::default(),
        metrics: Metrics::default(),
        log: Log { filter: "off".into(), json: false },
        trace: Trace::default(),
    }
}

/// A running app.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    catalogue: Catalogue,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), AppError>>,
}

impl Daemon {
    /// One steady model with four slots.
    pub(crate) async fn steady() -> Self {
        Self::gated(4, config()).await.0
    }

    /// One steady model and the gate before its steps, open.
    pub(crate) async fn gated(slots: u32, config: Config) -> (Self, Gate) {
        let gate = Gate::default();
        let model = Steady::new(MODEL, shape(), slots, &gate);
        let source = Source::new(MODEL, move || Ok(Box::new(model)));
        (Self::start(config, vec![source]).await, gate)
    }

    /// Any models; returns when each has been loaded or refused.
    pub(crate) async fn start(config: Config, sources: Vec<Source>) -> Self {
        let (daemon, loaded) = Self::start_loading(config, sources).await;
        patiently(loaded).await;
        daemon
    }

    /// Any models, and what resolves when each has been loaded or refused.
    pub(crate) async fn start_loading(config: Config, sources: Vec<Source>) -> (Self, impl Future<Output = ()>) {
        Self::serve(App::start(config.clone(), sources), config).await
    }

    /// An app, and what resolves when each of its models has been loaded or refused.
    pub(crate) async fn serve(app: App, config: Config) -> (Self, impl Future<Output = ()>) {
        let listener = Listener::bind(config.server.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let security = Security::load(config.server.tls.as_ref(), &config.auth).unwrap();
        let app = app.guarded(security);
        let loaded = app.loaded();
        let catalogue = app.catalogue().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { _ = stopped.await };
        let served = tokio::spawn(app.serve(listener, shutdown));
        let channel = connect(address);
        (Self { address, channel, catalogue, stop: Some(stop), served }, loaded)
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel.clone())
    }

    pub(crate) fn scoring(&self) -> ScoringServiceClient<Channel> {
        ScoringServiceClient::new(self.channel.clone())
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    /// The engine of a model that serves, to look at from behind.
    pub(crate) fn handle(&self, model: &str) -> Handle {
        match self.catalogue.get(model).unwrap().1 {
            State::Serving { handle, .. } => handle,
            other => panic!("{model} does not serve: {other:?}"),
        }
    }

    /// Sends the signal to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take();
    }

    /// How serving ended.
    pub(crate) async fn ended(self) -> Result<(), AppError> {
        tokio::time::timeout(PATIENCE, self.served).await.expect("the app ends").unwrap()
    }
}

/// A connection of its own, made when it is first used.
pub(crate) fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// A connection whose client takes no more than a few bytes of a stream before it is read.
pub(crate) fn connect_deaf(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().initial_stream_window_size(64).connect_lazy()
}

/// What comes of `work`, which must not take for ever.
pub(crate) async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it ends")
}

/// A request for `images` images from `seed`.
pub(crate) fn spec(images: u32, seed: u64) -> GenerationSpec {
    let sampling = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    GenerationSpec { image_count: Some(images), sampling: Some(sampling), ..GenerationSpec::default() }
}

/// The same, streamed.
pub(crate) fn stream(images: u32, seed: u64) -> StreamGenerateImagesRequest {
    StreamGenerateImagesRequest { spec: Some(spec(images, seed)), ..StreamGenerateImagesRequest::default() }
}

/// A stream read to its end.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) started: GenerationStarted,
    pub(crate) completed: GenerationCompleted,
    /// Values by image, in rank order.
    pub(crate) values: BTreeMap<u32, Vec<u8>>,
    /// Log-probabilities beside them.
    pub(crate) log_probs: BTreeMap<u32, Vec<f32>>,
    /// First rank and length of every run.
    pub(crate) runs: Vec<(u32, u32)>,
}

/// Reads a stream, checking the order of its events and that runs follow each other without a gap.
pub(crate) async fn read(mut events: Streaming<StreamGenerateImagesResponse>) -> Result<Read, Status> {
    let Some(Event::Started(started)) = next(&mut events).await? else { panic!("started comes first") };
    let prefix = |values: &Vec<u8>| values.len() as u32;
    let (mut values, mut log_probs, mut runs) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new(), Vec::new());
    let mut first_rank = None;
    loop {
        match next(&mut events).await? {
            Some(Event::Sampled(sampled)) => {
                for run in sampled.runs {
                    let first = *first_rank.get_or_insert(run.first_rank);
                    let image: &mut Vec<u8> = values.entry(run.image_index).or_default();
                    assert_eq!(run.first_rank, first + prefix(image), "runs follow each other");
                    image.extend_from_slice(&run.values);
                    runs.push((run.first_rank, run.values.len() as u32));
                    log_probs.entry(run.image_index).or_default().extend(run.log_probs);
                }
            }
            Some(Event::Completed(completed)) => {
                assert!(next(&mut events).await?.is_none(), "completed comes last");
                return Ok(Read { started, completed, values, log_probs, runs });
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// The next event, or the end.
pub(crate) async fn next(events: &mut Streaming<StreamGenerateImagesResponse>) -> Result<Option<Event>, Status> {
    let message = tokio::time::timeout(PATIENCE, events.message()).await.expect("the stream goes on");
    message.map(|message| message.and_then(|message| message.event))
}

/// Code, reason and violated fields of a refusal; checks that the reason is there and from us.
pub(crate) fn refusal(status: &Status) -> (Code, String, Vec<String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, pixeld::rpc::DOMAIN);
    let fields = details.bad_request().map_or_else(Vec::new, |bad| {
        assert!(bad.field_violations.iter().all(|violation| !violation.description.is_empty()));
        bad.field_violations.iter().map(|violation| violation.field.clone()).collect()
    });
    (status.code(), info.reason.clone(), fields)
}
