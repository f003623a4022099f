//! The law of a package, image by image, and what the original code says of the same images.

use std::fs;
use std::path::{Path, PathBuf};

use pixeld::head::Tuning;
use pixeld::image::Canvas;
use pixeld::import::package::{self, Draft};
use pixeld::model::{Condition, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow};
use pixeld::noise;
use pixeld::repository::{self, Limits, Source};
use pixeld::spec::Backend;
use serde::Deserialize;

/// How far a log-probability may be from that of the original code, in nats a value; and a parameter of the law, in its units.
const TOLERANCE: f64 = 1e-4;

/// What the original code gave, images in raster order.
#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) height: u32,
    pub(crate) width: u32,
    pub(crate) components: Option<usize>,
    pub(crate) num_heads: Option<u32>,
    pub(crate) block_length: Option<u32>,
    /// One for each image, where there are classes.
    pub(crate) classes: Option<Vec<u32>>,
    pub(crate) images: Vec<Vec<u16>>,
    /// In nats, by the exact law of its outputs.
    pub(crate) log_probs: Vec<Vec<f64>>,
    /// Its outputs, pixel after pixel, in its own order.
    pub(crate) parameters: Option<Vec<Vec<f64>>>,
}

pub(crate) fn folder(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/import").join(format)
}

pub(crate) fn golden(path: &Path) -> Golden {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(crate) fn write(draft: Draft) -> (tempfile::TempDir, Source) {
    pixeld::torch::limit_threads(1);
    let root = tempfile::tempdir().unwrap();
    let package = root.path().join("imported");
    package::write(&package, draft, Limits::default()).unwrap();
    (root, Source::Directory(package))
}

fn load(source: &Source, backend: Backend) -> Box<dyn PixelModel> {
    let placement = Placement { backend, ..Placement::new(1, 4) };
    repository::load(source, placement, Limits::default()).unwrap_or_else(|violations| panic!("{violations}"))
}

/// Parameters of every step and log-probabilities of every value of `raster`, both in raster order.
fn score(model: &mut dyn PixelModel, raster: &[u16], condition: &Condition) -> (Vec<f32>, Vec<f64>) {
    let spec = model.spec().clone();
    let canvas = Canvas::from_raster(spec.shape, spec.order, raster).unwrap();
    let mut out = ParamRows::new(spec.head.width(spec.shape));
    let (mut parameters, mut log_probs, mut from) = (Vec::new(), Vec::new(), 0);
    while from < spec.shape.values() {
        let row = ScoreRow { canvas: &canvas, condition };
        let reached = model.score(&[row], from, u32::MAX, &mut out).unwrap();
        for rank in from..reached {
            let row = out.row(((rank - from) / spec.values_per_step()) as usize);
            if rank % spec.values_per_step() == 0 {
                parameters.extend_from_slice(row);
            }
            log_probs.push(spec.head.log_prob(row, &canvas, rank).unwrap());
        }
        from = reached;
    }
    (parameters, log_probs)
}

/// Holds the package to `golden`; `place` says where a pixel's parameter of ours stands in a pixel's row of theirs.
pub(crate) fn expect(source: &Source, golden: &Golden, label: &str, place: impl Fn(usize) -> usize) {
    let mut model = load(source, Backend::default());
    let width = model.spec().head.width(model.spec().shape);
    let (mut worst, mut worst_parameter) = (0.0f64, 0.0f64);
    for (image, raster) in golden.images.iter().enumerate() {
        let class = golden.classes.as_ref().map(|classes| classes[image]);
        let (parameters, log_probs) = score(&mut *model, raster, &Condition { class, low: None });
        assert_eq!(log_probs.len(), golden.log_probs[image].len());
        for (ours, theirs) in log_probs.iter().zip(&golden.log_probs[image]) {
            worst = worst.max((ours - theirs).abs());
        }
        if let Some(theirs) = &golden.parameters {
            assert_eq!(parameters.len(), theirs[image].len());
            for (index, &ours) in parameters.iter().enumerate() {
                let theirs = theirs[image][index / width * width + place(index % width)];
                worst_parameter = worst_parameter.max((f64::from(ours) - theirs).abs());
            }
        }
    }
    println!("{label}: log-probabilities differ by at most {worst:.1e} nats, parameters by {worst_parameter:.1e}");
    assert!(worst <= TOLERANCE, "{label}: {worst} nats a value");
    assert!(worst_parameter <= TOLERANCE, "{label}: {worst_parameter} in a parameter");
    for backend in [Backend::Native, Backend::Torch] {
        sampled_as_scored(&mut *load(source, backend), label);
    }
}

/// What a step gives along a sampled image is what the teacher-forced pass gives of it.
fn sampled_as_scored(model: &mut dyn PixelModel, label: &str) {
    let spec = model.spec().clone();
    let mut out = ParamRows::new(spec.head.width(spec.shape));
    let condition = Condition::least(&spec.condition);
    for seed in 0..3 {
        let (mut canvas, mut drawn_with) = (Canvas::empty(spec.shape), Vec::new());
        model.open(Slot(0), &condition).unwrap();
        while !canvas.is_complete() {
            model.step(&[StepRow { slot: Slot(0), canvas: &canvas }], &mut out).unwrap();
            for _ in 0..spec.values_per_step() {
                let u = noise::uniform(seed, 0, canvas.known());
                let drawn = spec.head.draw(out.row(0), &canvas, &Tuning::default(), u).unwrap();
                drawn_with.push(drawn.log_prob);
                canvas.push(drawn.value);
            }
        }
        model.close(Slot(0));
        let (_, scored) = score(model, &canvas.to_raster(spec.order), &condition);
        for (rank, (drawn, scored)) in drawn_with.iter().zip(&scored).enumerate() {
            assert!((drawn - scored).abs() <= TOLERANCE, "{label}: seed {seed} rank {rank}: {drawn}, scored {scored}");
        }
    }
}
