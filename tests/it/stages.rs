//! Requests in two stages: the low-resolution images that a request does not bring are drawn first, by another model.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pixeld::app::Source;
use pixeld::engine::SCORE_IMAGES;
use pixeld::error::Violations;
use pixeld::image::{Shape, codec};
use pixeld::model::Placement;
use pixeld::repository::{self, Limits};
use pixeld::rpc::proto::{
    Conditioning, GenerateImagesRequest, GenerationCompleted, GenerationSpec, GenerationStarted, GetModelRequest,
    Image, ImageEncoding, ImageShape, Model, ModelState, SchedulingParams, ScoreImagesRequest, ScoreItem, ScoringSpec,
    StreamGenerateImagesRequest,
};
use pixeld::spec::Backend;
use serde::Deserialize;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::{Daemon, config, next, patiently, read, refusal, shape, spec};
use crate::steady::{Gate, Steady};

const BACKENDS: [Backend; 2] = [Backend::Native, Backend::Torch];
const LOW: ImageShape = ImageShape { height: 2, width: 3, channels: 3, levels: 5 };

/// An image that the reference has drawn in two stages.
#[derive(Deserialize)]
struct Golden {
    seed: u64,
    image: u32,
    class: Option<u32>,
    low: Vec<u8>,
    low_log_likelihood: f64,
    values: Vec<u8>,
    log_likelihood: f64,
}

fn goldens() -> Vec<Golden> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/two_stages.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The two packages of the reference.
async fn reference(backend: Backend) -> Daemon {
    pixeld::torch::limit_threads(1);
    let source = |name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/two_stages").join(name);
        let placement = Placement { backend, ..Placement::new(4, SCORE_IMAGES) };
        Source::new(name, move || {
            repository::load(&repository::Source::Directory(folder), placement, Limits::default())
        })
    };
    let mut config = config();
    config.engine.engine.queue_images = 1000;
    config.engine.shards = Some(2);
    Daemon::start(config, vec![source("upper"), source("lower")]).await
}

fn of(model: &str, class_label: Option<u32>, low_resolution: Option<Image>, spec: GenerationSpec) -> GenerationSpec {
    let conditioning = Some(Conditioning { class_label, low_resolution, ..Conditioning::default() });
    GenerationSpec { model: model.into(), conditioning, ..spec }
}

/// What a request is answered.
#[derive(Debug)]
struct Answer {
    started: GenerationStarted,
    images: Vec<Vec<u8>>,
    completed: GenerationCompleted,
}

impl Answer {
    /// Everything that a seed decides, the likelihoods to the bit.
    fn decided(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<u64>) {
        let low = self.completed.low_resolution_images.iter().map(|low| low.data.to_vec());
        let likelihoods = self.completed.log_likelihoods.iter().chain(&self.completed.low_resolution_log_likelihoods);
        (self.images.clone(), low.collect(), likelihoods.map(|nats| nats.to_bits()).collect())
    }
}

async fn streamed(daemon: &Daemon, spec: GenerationSpec) -> Result<Answer, Status> {
    let request = StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
    let read = read(daemon.generation().stream_generate_images(request).await?.into_inner()).await?;
    Ok(Answer { started: read.started, images: read.values.into_values().collect(), completed: read.completed })
}

async fn whole(daemon: &Daemon, spec: GenerationSpec, encoding: ImageEncoding) -> Result<Answer, Status> {
    let request = GenerateImagesRequest { spec: Some(spec), encoding: encoding.into() };
    let answer = patiently(daemon.generation().generate_images(request)).await?.into_inner();
    let images = answer.images.into_iter().map(|image| image.data.to_vec()).collect();
    Ok(Answer { started: answer.started.unwrap(), images, completed: answer.completed.unwrap() })
}

async fn model(daemon: &Daemon, name: &str) -> Model {
    let request = GetModelRequest { name: format!("models/{name}") };
    daemon.models().get_model(request).await.unwrap().into_inner().model.unwrap()
}

#[tokio::test]
async fn both_stages_draw_what_the_reference_draws_and_score_as_they_say() {
    for backend in BACKENDS {
        let daemon = reference(backend).await;
        let [upper, lower] = [model(&daemon, "upper").await, model(&daemon, "lower").await];
        assert_eq!((upper.low_resolution_model.as_str(), upper.low_resolution_shape), ("models/lower", Some(LOW)));
        assert_eq!((lower.low_resolution_model.as_str(), lower.low_resolution_shape), ("", None));
        for golden in goldens() {
            let spec = GenerationSpec { first_image_index: golden.image, ..spec(1, golden.seed) };
            let request = |low| of("upper", golden.class, low, spec.clone());
            let label = format!("seed {} on {}", golden.seed, backend.name());
            let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{label}: {a} against {b}");

            let Answer { started, images, completed } = streamed(&daemon, request(None)).await.unwrap();
            assert_eq!(images[0], golden.values, "{label}");
            let low = Image { data: golden.low.clone().into(), encoding: ImageEncoding::Raw.into(), shape: Some(LOW) };
            assert_eq!(completed.low_resolution_images[0], low, "{label}");
            near(completed.log_likelihoods[0], golden.log_likelihood);
            near(completed.low_resolution_log_likelihoods[0], golden.low_log_likelihood);
            let revisions = (started.model_revision, started.low_resolution_model_revision);
            assert_eq!(revisions, (upper.revision.clone(), lower.revision.clone()));

            // With the same image brought, the upper model does the same alone; and scores as it said.
            let brought = streamed(&daemon, request(Some(low.clone()))).await.unwrap();
            assert_eq!(brought.images, images, "{label}");
            assert_eq!(brought.completed.log_likelihoods, completed.log_likelihoods);
            assert_eq!(brought.completed.low_resolution_images, []);
            assert_eq!(brought.completed.low_resolution_log_likelihoods, [0.0; 0]);
            assert_eq!(brought.started.low_resolution_model_revision, "");
            near(-score(&daemon, "upper", golden.class, &golden.values, Some(low)).await, golden.log_likelihood);
            near(-score(&daemon, "lower", golden.class, &golden.low, None).await, golden.low_log_likelihood);

            let [low, large] = [(2, 3), (4, 6)].map(|(height, width)| Shape::new(height, width, 3, 5).unwrap());
            let pngs = whole(&daemon, request(None), ImageEncoding::Png).await.unwrap();
            let decoded =
                |png: &[u8], shape| codec::values_to_raw(&codec::decode_png(png, shape, None).unwrap(), shape);
            assert_eq!(decoded(&pngs.images[0], large), golden.values, "{label}");
            assert_eq!(decoded(&pngs.completed.low_resolution_images[0].data, low), golden.low, "{label}");
        }
    }
}

/// Negative log-likelihood.
async fn score(daemon: &Daemon, model: &str, class_label: Option<u32>, values: &[u8], low: Option<Image>) -> f64 {
    let image = Some(Image { data: values.to_vec().into(), ..Image::default() });
    let conditioning = Some(Conditioning { class_label, low_resolution: low, ..Conditioning::default() });
    let items = vec![ScoreItem { item_id: String::new(), image, conditioning }];
    let spec = Some(ScoringSpec { model: model.into(), ..ScoringSpec::default() });
    let answer = daemon.scoring().score_images(ScoreImagesRequest { spec, items }).await.unwrap();
    answer.into_inner().scores[0].nll_nats
}

/// Images whose bytes must never change.
const IMAGES: u32 = 3;

fn wanted() -> GenerationSpec {
    of("upper", Some(1), None, spec(IMAGES, 42))
}

/// Whoever else there is, in either model or both; some leave early.
async fn crowd(daemon: Arc<Daemon>, number: u64) {
    for seed in (0..12).map(|round| 100 * number + round) {
        let low = Some(Image { data: vec![seed as u8 % 5; 18].into(), ..Image::default() });
        let (model, low) = [("upper", None), ("upper", low), ("lower", None)][(seed % 3) as usize].clone();
        let spec = of(model, None, low, spec(1 + (seed % 4) as u32, seed));
        if !seed.is_multiple_of(4) {
            streamed(&daemon, spec).await.unwrap();
            continue;
        }
        let request = StreamGenerateImagesRequest { spec: Some(spec), ..StreamGenerateImagesRequest::default() };
        let mut events = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
        for _ in 0..seed % 9 {
            next(&mut events).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_seed_gives_the_same_bytes_in_both_stages_alone_in_a_crowd_by_every_way_and_after_a_restart() {
    for backend in BACKENDS {
        let mut daemon = reference(backend).await;
        let expected = streamed(&daemon, wanted()).await.unwrap().decided();
        assert!(expected.1[0] != expected.1[1] && expected.1[1] != expected.1[2], "a low-resolution image for each");
        for index in 0..IMAGES as usize {
            let spec = GenerationSpec { first_image_index: index as u32, image_count: Some(1), ..wanted() };
            let alone = whole(&daemon, spec, ImageEncoding::Raw).await.unwrap().decided();
            assert_eq!((&alone.0[0], &alone.1[0]), (&expected.0[index], &expected.1[index]), "image {index}");
        }
        // The image goes on from where it was cut, the first stage being drawn again.
        let mut resumed = GenerationSpec { image_count: Some(1), ..wanted() };
        resumed.conditioning.as_mut().unwrap().prefix = expected.0[0][..31].to_vec().into();
        let resumed = streamed(&daemon, resumed).await.unwrap().decided();
        assert_eq!((&resumed.0[0][..], &resumed.1[0]), (&expected.0[0][31..], &expected.1[0]));

        let crowded = Arc::new(daemon);
        let mut others = JoinSet::new();
        (0..6).for_each(|number| _ = others.spawn(crowd(Arc::clone(&crowded), number)));
        let mut fullest = 0;
        while !others.is_empty() {
            let streamed = streamed(&crowded, wanted()).await.unwrap();
            let whole = whole(&crowded, wanted(), ImageEncoding::Raw).await.unwrap();
            for answer in [streamed, whole] {
                assert_eq!(answer.decided(), expected, "in a crowd on {}", backend.name());
                fullest = fullest.max(answer.completed.usage.unwrap().peak_batch_size);
            }
            while let Some(ended) = others.try_join_next() {
                ended.unwrap();
            }
        }
        assert!(fullest > IMAGES.div_ceil(2), "nobody else was in a step with them: {fullest}");
        daemon = Arc::into_inner(crowded).unwrap();
        daemon.stop();
        daemon.ended().await.unwrap();

        let daemon = reference(backend).await;
        assert_eq!(streamed(&daemon, wanted()).await.unwrap().decided(), expected, "after a restart");
        assert_eq!(whole(&daemon, wanted(), ImageEncoding::Raw).await.unwrap().decided(), expected, "after a restart");
    }
}

fn source(model: Steady) -> Source {
    Source::new(model.name().to_owned(), move || Ok(Box::new(model)))
}

#[tokio::test]
async fn a_package_is_refused_if_the_one_it_names_cannot_draw_what_it_needs_and_the_others_go_on() {
    const NONE: (u32, bool) = (0, false);
    let low = |height, channels, levels| Shape::new(height, 3, channels, levels).unwrap();
    let plain = |name: &str, shape, (classes, required)| {
        Steady::new(name, shape, 1, &Gate::default()).of_classes(classes, required)
    };
    let upper = |name: &str, classes, drawn_by| plain(name, shape(), classes).enlarging(low(2, 3, 16), drawn_by);
    let models = [
        // Some come before what they name.
        upper("bad0", NONE, "nobody"),
        upper("bad1", NONE, "taller"),
        upper("bad2", NONE, "finer"),
        upper("bad3", NONE, "grey"),
        upper("bad4", NONE, "linked"),
        upper("bad5", NONE, "bad5"),
        upper("bad6", (6, true), "seven"),
        upper("bad7", NONE, "strict"),
        upper("bad8", (7, false), "strict"),
        plain("plain", low(2, 3, 16), NONE),
        plain("taller", low(3, 3, 16), NONE),
        plain("finer", low(2, 3, 17), NONE),
        plain("grey", low(2, 1, 16), NONE),
        plain("linked", low(2, 3, 16), NONE).enlarging(low(2, 3, 16), "plain"),
        plain("seven", low(2, 3, 16), (7, false)),
        plain("strict", low(2, 3, 16), (7, true)),
        upper("good0", NONE, "plain"),
        upper("good1", (7, true), "plain"),
        upper("good2", NONE, "seven"),
        upper("good3", (7, false), "seven"),
        upper("good4", (7, true), "strict"),
    ];
    let daemon = Daemon::start(config(), models.into_iter().map(source).collect()).await;
    let rules = [
        "got \"nobody\"",
        "must draw images of 2 x 3 x 3 with 16 levels, \"taller\" draws 3 x 3 x 3 with 16 levels",
        "\"finer\" draws 2 x 3 x 3 with 17 levels",
        "\"grey\" draws 2 x 3 x 1 with 16 levels",
        "must need no low-resolution image itself, \"linked\" needs one of 2 x 3 x 3 with 16 levels",
        "must need no low-resolution image itself, \"bad5\" needs one",
        "must take 6 classes or none, \"seven\" takes 7",
        "must not need a class, \"strict\" does",
        "must not need a class, \"strict\" does",
    ];
    for (index, rule) in rules.into_iter().enumerate() {
        let refused = model(&daemon, &format!("bad{index}")).await;
        let why = &refused.state_message;
        assert_eq!(refused.state(), ModelState::Failed, "bad{index}");
        assert!(why.contains("condition.low_model: ") && why.contains(rule), "bad{index}: {why}");
    }
    // A class is passed on to those that take one.
    let good = [("plain", None, None), ("plain", Some(3), None), ("seven", None, None)];
    let good = good.into_iter().chain([("seven", Some(3), Some(3)), ("strict", Some(3), Some(3))]);
    for (index, (lower, class, passed_on)) in good.enumerate() {
        let Answer { images, completed, .. } =
            streamed(&daemon, of(&format!("good{index}"), class, None, spec(1, 1))).await.unwrap();
        let low = &completed.low_resolution_images[0].data;
        assert_eq!((low.len(), images[0].len()), (18, shape().values() as usize), "good{index}");
        let (said, nats) =
            (completed.low_resolution_log_likelihoods[0], score(&daemon, lower, passed_on, low, None).await);
        assert!((said + nats).abs() < 1e-3, "good{index}: {said} against {}", -nats);
    }
}

/// Two models in closed form, with the gates before their steps: of the images and of the low-resolution ones.
async fn steady() -> (Daemon, [Gate; 2]) {
    let gates = [Gate::default(), Gate::default()];
    let low = Shape::new(2, 2, 3, 16).unwrap();
    let upper = Steady::new("upper", shape(), 1, &gates[0]).enlarging(low, "lower");
    let lower = Steady::new("lower", low, 1, &gates[1]);
    let sources = [upper, lower].map(source);
    (Daemon::start(config(), sources.into()).await, gates)
}

fn two_stages(images: u32) -> StreamGenerateImagesRequest {
    let spec = Some(of("upper", None, None, spec(images, 1)));
    StreamGenerateImagesRequest { spec, ..StreamGenerateImagesRequest::default() }
}

/// Resolves once every place of both models is free.
async fn free(daemon: &Daemon) {
    let [upper, lower] = ["upper", "lower"].map(|model| daemon.handle(model));
    patiently(async { tokio::join!(upper.drained(), lower.drained()) }).await;
}

#[tokio::test]
async fn who_leaves_or_comes_too_late_in_the_first_stage_frees_the_places_of_both_models() {
    let (daemon, [_upper, lower]) = steady().await;
    lower.allow(3);
    let events = daemon.generation().stream_generate_images(two_stages(2)).await.unwrap().into_inner();
    lower.blocked().await;
    drop(events);
    free(&daemon).await;

    let mut late = Request::new(two_stages(2));
    late.set_timeout(Duration::from_millis(300));
    let mut patient = two_stages(2);
    let queue_timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    patient.spec.as_mut().unwrap().scheduling = Some(SchedulingParams { priority: 0, queue_timeout });
    for request in [late, Request::new(patient)] {
        let events = daemon.generation().stream_generate_images(request).await.unwrap().into_inner();
        let status = read(events).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::DeadlineExceeded, "QUEUE_TIMEOUT".into(), vec![]));
        free(&daemon).await;
    }
    lower.open();
    let events = daemon.generation().stream_generate_images(two_stages(2)).await.unwrap().into_inner();
    assert_eq!(read(events).await.unwrap().values.len(), 2);
}

#[tokio::test]
async fn a_daemon_that_is_stopped_between_the_stages_finishes_the_request() {
    let (mut daemon, [_upper, lower]) = steady().await;
    lower.allow(3);
    let events = daemon.generation().stream_generate_images(two_stages(2)).await.unwrap().into_inner();
    lower.blocked().await;
    daemon.stop();
    patiently(async {
        while model(&daemon, "upper").await.state() != ModelState::Draining {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = daemon.generation().stream_generate_images(two_stages(1)).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "SERVER_DRAINING");
    lower.open();
    let read = read(events).await.unwrap();
    assert_eq!((read.values.len(), read.completed.low_resolution_images.len()), (2, 2));
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn a_first_stage_that_is_not_to_be_had_is_named_and_who_brings_the_image_is_served() {
    let low = Shape::new(2, 2, 3, 16).unwrap();
    let upper = || source(Steady::new("upper", shape(), 1, &Gate::default()).enlarging(low, "lower"));
    let gate = Gate::default();
    gate.allow(0);
    let slow = source(Steady::new("lower", low, 1, &gate));
    let broken = Source::new("lower", || Err(Violations::one("weights.file", "is not there")));
    for (lower, code, reason) in
        [(slow, Code::Unavailable, "MODEL_NOT_READY"), (broken, Code::FailedPrecondition, "MODEL_FAILED")]
    {
        let (daemon, _loaded) = Daemon::start_loading(config(), vec![upper(), lower]).await;
        patiently(async {
            while model(&daemon, "upper").await.state() != ModelState::Ready {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let request = of("upper", None, None, spec(1, 1));
        for status in [
            streamed(&daemon, request.clone()).await.unwrap_err(),
            whole(&daemon, request.clone(), ImageEncoding::Raw).await.unwrap_err(),
        ] {
            assert_eq!(refusal(&status), (code, reason.to_owned(), vec![]));
            assert_eq!(status.get_error_details().error_info().unwrap().metadata["model"], "lower");
            assert!(status.message().contains("\"lower\""), "{}", status.message());
        }
        let low = Some(Image { data: vec![0; 12].into(), ..Image::default() });
        streamed(&daemon, of("upper", None, low, spec(1, 1))).await.unwrap();
        // What is wrong with the request itself is said first.
        let request = GenerationSpec { request_id: "/".into(), ..request };
        assert_eq!(refusal(&streamed(&daemon, request).await.unwrap_err()).2, ["spec.request_id"]);
        gate.open();
    }
}

#[tokio::test]
async fn more_low_resolution_images_than_one_message_can_tell_are_refused() {
    let [image, low] = [4, 512].map(|side| Shape::new(side, side, 1, 2).unwrap());
    let upper = Steady::new("upper", image, 1, &Gate::default()).enlarging(low, "lower");
    let lower = Steady::new("lower", low, 1, &Gate::default());
    let sources = [upper, lower].map(source);
    let mut config = config();
    config.limits.images_per_request = 100;
    let daemon = Daemon::start(config, sources.into()).await;
    let request = |images| of("upper", None, None, spec(images, 1));
    for (status, rule) in [
        (streamed(&daemon, request(9)).await.unwrap_err(), "at most 8 with their low-resolution images, got 9"),
        (whole(&daemon, request(64), ImageEncoding::Raw).await.unwrap_err(), "at most 63 in one answer"),
    ] {
        assert_eq!(refusal(&status).2, ["spec.image_count"]);
        assert!(status.message().contains(rule), "{}", status.message());
    }
}
