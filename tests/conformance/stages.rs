//! Two stages, a model that draws a small image and one that is conditioned on it: the laws of one model, kept by the pair.
//!
//! The ranks of a pair are those of the small image and then those of the image: what the pair says of both together is the
//! product of what either model says, each given all that comes before.

use std::fs;
use std::path::Path;

use pixeld::engine::{Engine, EngineConfig, Handle, LowImage, SCORE_IMAGES};
use pixeld::head::Tuning;
use pixeld::image::{Canvas, Shape};
use pixeld::job::{Class, Granularity, Reproducibility, SampleJob, ScoreJob};
use pixeld::model::{Condition, PixelModel, Placement, Slot, StepRow};
use pixeld::noise;
use pixeld::repository::{self, Limits, Source};
use pixeld::spec::Backend;
use serde::Deserialize;

use super::package::{Init, Package, Size, drawing_alone, packages};
use super::{Rows, any_image, assert_close, bits, log_prob, params, perturbed, record, score};

/// The row of both in the table.
pub(crate) const PAIR: &str = "multi_scale";

/// A package that takes a low-resolution image, and one of the same family and backend that draws it.
fn pairs(size: Size, seed: u64) -> Vec<[Package; 2]> {
    let mut pairs = Vec::new();
    for upper in packages(size, Init::Random(seed)) {
        let Some(low) = upper.load(1, 1).spec().condition.low else { continue };
        let size = [low.height(), low.width(), low.channels(), low.levels()];
        let lower = drawing_alone(upper.family, size, Init::Random(seed + 1)).on(upper.backend);
        pairs.push([lower, upper]);
    }
    assert!(!pairs.is_empty());
    pairs
}

/// The condition of the larger image: the small one, and the class if there is one.
fn given(low: &Canvas, lower: &dyn PixelModel, class: Option<u32>) -> Condition {
    Condition { class, low: Some(low.to_raster(lower.spec().order).into()) }
}

fn by_class(class: Option<u32>) -> Condition {
    Condition { class, low: None }
}

/// An image drawn from a model alone, step by step, and the parameters it was drawn with.
fn drawn(model: &mut dyn PixelModel, condition: &Condition, seed: u64) -> (Canvas, Rows) {
    let spec = model.spec().clone();
    let (mut canvas, mut sampled, mut out) = (Canvas::empty(spec.shape), Rows::new(), params(&*model));
    model.open(Slot(0), condition).unwrap();
    while !canvas.is_complete() {
        model.step(&[StepRow { slot: Slot(0), canvas: &canvas }], &mut out).unwrap();
        for _ in 0..spec.values_per_step() {
            let u = noise::uniform(seed, 0, canvas.known());
            canvas.push(spec.head.draw(out.row(0), &canvas, &Tuning::default(), u).unwrap().value);
        }
        sampled.push(out.row(0).to_vec());
    }
    model.close(Slot(0));
    (canvas, sampled)
}

#[test]
fn both_stages_step_as_their_passes_do() {
    for [lower, upper] in pairs([4, 3, 3, 5], 1) {
        let [mut low_model, mut model] = [lower.load(1, 1), upper.load(1, 1)];
        for (class, seed) in [None, Some(0), Some(1)].into_iter().zip(10..) {
            let (low, low_steps) = drawn(&mut *low_model, &by_class(class), seed);
            let condition = given(&low, &*low_model, class);
            let (image, steps) = drawn(&mut *model, &condition, seed + 100);
            let low_pass = score(&mut *low_model, &[(low.clone(), by_class(class))], u32::MAX).remove(0);
            let pass = score(&mut *model, &[(image.clone(), condition)], u32::MAX).remove(0);
            let below = assert_close(&lower.label, &*low_model, &low, 0, &low_steps, &low_pass, 1e-4);
            let above = assert_close(&upper.label, &*model, &image, 0, &steps, &pass, 1e-4);
            record(PAIR, "step", below.max(above));
        }
    }
}

/// Every image there is of `shape`.
fn every(shape: Shape) -> Vec<Canvas> {
    let image = |index: u32| {
        let digit = |place| (index / shape.levels().pow(place) % shape.levels()) as u16;
        Canvas::with_prefix(shape, (0..shape.values()).map(digit).collect()).unwrap()
    };
    (0..shape.levels().pow(shape.values())).map(image).collect()
}

/// The log-likelihood of each image.
fn likelihoods(model: &mut dyn PixelModel, images: &[(Canvas, Condition)]) -> Vec<f64> {
    let each = model.spec().values_per_step() as usize;
    let mut found = Vec::new();
    for some in images.chunks(16) {
        for (rows, (image, _)) in score(model, some, u32::MAX).iter().zip(some) {
            let value = |rank: usize| log_prob(&*model, &rows[rank / each], image, rank);
            found.push((0..rows.len() * each).map(value).sum());
        }
    }
    found
}

#[test]
fn the_probabilities_of_all_pairs_of_a_small_and_a_larger_image_sum_to_one() {
    for [lower, upper] in pairs([2, 2, 1, 2], 2) {
        let [mut low_model, mut model] = [lower.load(1, 16), upper.load(1, 16)];
        let [lows, images] = [low_model.spec().shape, model.spec().shape].map(every);
        for class in [None, Some(0), Some(1)] {
            let smalls: Vec<_> = lows.iter().map(|low| (low.clone(), by_class(class))).collect();
            let mut total = 0.0;
            for ((low, _), below) in smalls.iter().zip(likelihoods(&mut *low_model, &smalls)) {
                let condition = given(low, &*low_model, class);
                let larger: Vec<_> = images.iter().map(|image| (image.clone(), condition.clone())).collect();
                total += likelihoods(&mut *model, &larger).into_iter().map(|above| (below + above).exp()).sum::<f64>();
            }
            assert!((total - 1.0).abs() < 1e-5, "{}: {class:?}: {total}", upper.label);
            record(PAIR, "sum", (total - 1.0).abs());
        }
    }
}

/// The parameters of every step of both stages.
fn passes(models: &mut [Box<dyn PixelModel>; 2], [low, image]: [&Canvas; 2]) -> Rows {
    let [lower, upper] = models;
    let condition = given(low, &**lower, None);
    let mut rows = score(&mut **lower, &[(low.clone(), by_class(None))], u32::MAX).remove(0);
    rows.extend(score(&mut **upper, &[(image.clone(), condition)], u32::MAX).remove(0));
    rows
}

#[test]
fn no_value_of_either_image_changes_a_bit_at_its_own_rank_or_before_and_every_small_one_some_after() {
    for [lower, upper] in pairs([4, 3, 3, 5], 3) {
        let mut models = [lower.load(1, 1), upper.load(1, 1)];
        let [low, image] = [30, 31].map(|seed| any_image(&*models[seed as usize - 30], seed));
        let [each_low, each] = [0, 1].map(|stage: usize| models[stage].spec().values_per_step() as usize);
        let before = passes(&mut models, [&low, &image]);
        let low_steps = low.values().len() / each_low;
        for changed in 0..low.values().len() + image.values().len() {
            let (after, own) = match changed.checked_sub(low.values().len()) {
                None => (passes(&mut models, [&perturbed(&low, changed), &image]), changed / each_low),
                Some(rank) => (passes(&mut models, [&low, &perturbed(&image, rank)]), low_steps + rank / each),
            };
            for step in 0..=own {
                assert_eq!(bits(&before[step]), bits(&after[step]), "{}: {changed} -> {step}", upper.label);
            }
            record(PAIR, "causal", 1.0 + own as f64);
            if own < low_steps {
                let differs = |step: usize| bits(&before[step]) != bits(&after[step]);
                assert!((low_steps..before.len()).any(differs), "{}: {changed} changes nothing above", upper.label);
            }
        }
    }
}

/// The engines of both models, each of two shards.
struct Engines([Engine; 2]);

impl Engines {
    fn start(models: [Box<dyn PixelModel>; 2]) -> Self {
        let config = || EngineConfig { queue_images: 256, score_share: 0.5, ..EngineConfig::default() };
        Self(models.map(|model| Engine::start(model, 2, config()).unwrap()))
    }

    fn handles(&self) -> [Handle; 2] {
        [0, 1].map(|stage: usize| self.0[stage].handle())
    }

    fn stop(self) {
        self.0.into_iter().for_each(Engine::stop);
    }
}

/// What one image of a request in two stages came to: the small image and the image in the order of ranks, and their
/// log-likelihoods.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    low: Canvas,
    image: Canvas,
    nats: [f64; 2],
}

fn job(shape: Shape, class: Option<u32>, images: u32, first_image: u32, seed: u64) -> SampleJob {
    SampleJob {
        images,
        first_image,
        condition: by_class(class),
        lows: Vec::new(),
        prefix: Canvas::empty(shape),
        tuning: Tuning::default(),
        seed,
        noise_from: 0,
        reproducibility: Reproducibility::BatchInvariant,
        class: Class::Interactive,
        granularity: Granularity::Row,
        queue_timeout: None,
    }
}

/// Both stages of `images` images, in one request.
async fn request([lower, upper]: [Handle; 2], class: Option<u32>, images: u32, first: u32, seed: u64) -> Vec<Answer> {
    let shape = upper.spec().shape;
    let mut stream = upper.sample_from(&lower, job(shape, class, images, first, seed), None).unwrap();
    let mut values = vec![Vec::new(); images as usize];
    while let Some(runs) = stream.next(None).await {
        runs.unwrap().into_iter().for_each(|run| values[run.image as usize].extend(run.values));
    }
    let summary = stream.summary().unwrap();
    let small = summary.low_images.iter().zip(&summary.log_likelihoods);
    let answer = |(values, (low, &nats)): (Vec<u16>, (&LowImage, &f64))| Answer {
        low: Canvas::from_raster(low.shape, lower.spec().order, &low.values).unwrap(),
        image: Canvas::with_prefix(shape, values).unwrap(),
        nats: [low.log_likelihood, nats],
    };
    values.into_iter().zip(small).map(answer).collect()
}

/// The log-likelihoods that the two models score an answer with.
async fn scored([lower, upper]: &[Handle; 2], answer: &Answer, class: Option<u32>) -> [f64; 2] {
    let condition = Condition { class, low: Some(answer.low.to_raster(lower.spec().order).into()) };
    let mut nats = [0.0; 2];
    let items = [(lower, answer.low.clone(), by_class(class)), (upper, answer.image.clone(), condition)];
    for (nats, (handle, canvas, condition)) in nats.iter_mut().zip(items) {
        let job = ScoreJob { items: vec![(canvas, condition)], per_value: false, class: Class::Interactive };
        *nats = handle.score(job, None).unwrap().scores().await.unwrap().0[0].log_likelihood;
    }
    nats
}

#[tokio::test]
async fn a_request_of_both_stages_draws_the_same_alone_and_in_a_crowd_and_scores_as_it_said() {
    const SEED: u64 = 70;
    for [lower, upper] in pairs([4, 3, 3, 5], 4) {
        let engines = Engines::start([&lower, &upper].map(|package| package.load(2, SCORE_IMAGES)));
        let handles = engines.handles();
        let classes = [None, Some(0), Some(1)];
        let mut alone = Vec::new();
        for image in 0..6 {
            alone.extend(request(handles.clone(), classes[image as usize % 3], 1, image, SEED).await);
        }
        assert!(alone.iter().any(|other| other.low != alone[0].low), "{}", lower.label);

        // All at once, with others that draw in either model or both, and in an order that is not theirs.
        let crowd = (0..9).map(|seed| {
            let [lower, upper] = handles.clone();
            tokio::spawn(async move {
                let mut stream = match seed % 3 {
                    0 => lower.sample(job(lower.spec().shape, None, 2, 0, seed), None),
                    1 => {
                        let low = vec![1; lower.spec().shape.values() as usize];
                        let condition = Condition { class: None, low: Some(low.into()) };
                        upper.sample(SampleJob { condition, ..job(upper.spec().shape, None, 2, 0, seed) }, None)
                    }
                    _ => upper.sample_from(&lower, job(upper.spec().shape, Some(1), 3, 0, seed), None),
                }
                .unwrap();
                while stream.next(None).await.is_some() {}
            })
        });
        let crowd: Vec<_> = crowd.collect();
        let ours = (0..6).rev().map(|image| {
            let handles = handles.clone();
            tokio::spawn(async move { request(handles, classes[image as usize % 3], 1, image, SEED).await.remove(0) })
        });
        let ours: Vec<_> = ours.collect();
        for (image, crowded) in (0..6).rev().zip(ours) {
            let crowded = crowded.await.unwrap();
            assert_eq!(crowded, alone[image], "{}: image {image}", upper.label);
            let steps = |handle: &Handle| handle.spec().shape.values() / handle.spec().values_per_step();
            record(PAIR, "crowd", handles.iter().map(steps).map(f64::from).sum());
        }
        for other in crowd {
            other.await.unwrap();
        }
        for (image, answer) in alone.iter().enumerate() {
            for (said, nats) in answer.nats.iter().zip(scored(&handles, answer, classes[image % 3]).await) {
                assert!((said - nats).abs() < 1e-3, "{}: image {image}: {said} against {nats}", upper.label);
                record(PAIR, "score", (said - nats).abs());
            }
        }
        engines.stop();
    }
}

/// An image that the reference has drawn in two stages.
#[derive(Deserialize)]
struct Golden {
    seed: u64,
    image: u32,
    class: Option<u32>,
    low: Vec<u16>,
    low_log_likelihood: f64,
    values: Vec<u16>,
    log_likelihood: f64,
}

#[tokio::test]
async fn every_seed_draws_in_both_stages_what_the_reference_draws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let goldens: Vec<Golden> = serde_json::from_slice(&fs::read(root.join("two_stages.json")).unwrap()).unwrap();
    assert!(!goldens.is_empty());
    for backend in [Backend::Native, Backend::Torch] {
        pixeld::torch::limit_threads(1);
        let engines = Engines::start(["lower", "upper"].map(|name| {
            let placement = Placement { backend, ..Placement::new(2, SCORE_IMAGES) };
            let folder = root.join("two_stages").join(name);
            repository::load(&Source::Directory(folder), placement, Limits::default()).unwrap()
        }));
        for golden in &goldens {
            let label = format!("seed {} on {}", golden.seed, backend.name());
            let answer = request(engines.handles(), golden.class, 1, golden.image, golden.seed).await.remove(0);
            // Both are in raster order.
            assert_eq!((answer.low.values(), answer.image.values()), (&golden.low[..], &golden.values[..]), "{label}");
            for (said, known) in answer.nats.into_iter().zip([golden.low_log_likelihood, golden.log_likelihood]) {
                assert!((said - known).abs() < 1e-3, "{label}: {said} against {known}");
            }
            record(PAIR, "seeds", 1.0);
        }
        engines.stop();
    }
}
