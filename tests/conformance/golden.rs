//! Known answers of the PyTorch reference modules, one folder for each case.

use std::fs;
use std::path::{Path, PathBuf};

use pixeld::head::Tuning;
use pixeld::image::Canvas;
use pixeld::model::{Condition, FAMILIES, Family, PixelModel, Placement, ScoreRow, Slot, StepRow};
use pixeld::noise;
use pixeld::repository::{self, Limits, Source};
use pixeld::spec::Backend;
use serde::Deserialize;

const BACKENDS: [Backend; 2] = [Backend::Native, Backend::Torch];

/// The two models of the reference that draw together, each by itself.
const TWO_STAGES: [&str; 2] = ["two_stages/lower", "two_stages/upper"];

#[derive(Clone, Deserialize)]
struct Golden {
    images: Vec<Vec<u16>>,
    classes: Option<Vec<Option<u32>>>,
    low: Option<Vec<Vec<u16>>>,
    log_probs: Vec<Vec<f64>>,
    samples: Vec<Sample>,
}

/// `margin`: how far the closest uniform number is from the border between two values; kept well above rounding.
#[derive(Clone, Deserialize)]
struct Sample {
    seed: u64,
    image: u32,
    class: Option<u32>,
    low: Option<Vec<u16>>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    values: Vec<u16>,
    log_likelihood: f64,
}

fn cases() -> Vec<(PathBuf, Golden)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let variants = |family: &Family| fs::read_dir(root.join(family.name)).into_iter().flatten();
    let mut folders = Vec::new();
    for family in FAMILIES {
        let found: Vec<_> = variants(family).map(|entry| entry.unwrap().path()).collect();
        // The toy is its own oracle: its likelihood has a closed form.
        assert!(!found.is_empty() || family.name == "toy", "family {} has no goldens", family.name);
        folders.extend(found);
    }
    folders.extend(TWO_STAGES.map(|stage| root.join(stage)));
    folders.sort();
    let read = |folder: PathBuf| {
        let golden = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
        (folder, golden)
    };
    folders.into_iter().map(read).collect()
}

/// The row of the table that a case belongs to.
fn table_row(folder: &Path, family: &'static str) -> &'static str {
    if TWO_STAGES.iter().any(|stage| folder.ends_with(stage)) { super::stages::PAIR } else { family }
}

fn load(folder: &Path, backend: Backend) -> Box<dyn PixelModel> {
    pixeld::torch::limit_threads(1);
    let placement = Placement { backend, ..Placement::new(2, 8) };
    repository::load(&Source::Directory(folder.to_owned()), placement, Limits::default())
        .unwrap_or_else(|violations| panic!("{}: {violations}", folder.display()))
}

#[test]
fn every_package_that_ships_loads_and_gives_its_known_answers() {
    pixeld::torch::limit_threads(1);
    let packages = repository::scan(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models")).unwrap();
    assert!(!packages.is_empty());
    for (name, source) in packages {
        let golden = repository::manifest(&source).unwrap().golden;
        assert!(!golden.scores.is_empty() && !golden.samples.is_empty(), "{name} has no known answers");
        for backend in BACKENDS {
            let placement = Placement { backend, ..Placement::new(5, 1) };
            let model = repository::load(&source, placement, Limits::default());
            assert!(model.is_ok(), "{name} on {}: {}", backend.name(), model.err().unwrap());
        }
    }
}

#[test]
fn every_log_probability_is_that_of_the_reference() {
    for (folder, golden) in cases() {
        // Scoring is libtorch's, whatever computes the steps.
        let mut model = load(&folder, Backend::default());
        let spec = model.spec().clone();
        let per_step = spec.values_per_step();
        let classes = golden.classes.unwrap_or_else(|| vec![None; golden.images.len()]);
        let low = golden.low.map(|low| low.into_iter().map(|values| Some(values.into())).collect());
        let low: Vec<_> = low.unwrap_or_else(|| vec![None; golden.images.len()]);
        let conditions: Vec<_> = classes.into_iter().zip(low).map(|(class, low)| Condition { class, low }).collect();
        let canvases: Vec<_> =
            golden.images.iter().map(|raster| Canvas::from_raster(spec.shape, spec.order, raster).unwrap()).collect();
        let rows: Vec<_> =
            canvases.iter().zip(&conditions).map(|(canvas, condition)| ScoreRow { canvas, condition }).collect();
        let mut out = super::params(&*model);
        let mut from = 0;
        while from < spec.shape.values() {
            let reached = model.score(&rows, from, u32::MAX, &mut out).unwrap();
            let slice = ((reached - from) / per_step) as usize;
            for (image, (canvas, expected)) in canvases.iter().zip(&golden.log_probs).enumerate() {
                for rank in from..reached {
                    let row = out.row(image * slice + ((rank - from) / per_step) as usize);
                    let log_prob = spec.head.log_prob(row, canvas, rank).unwrap();
                    let expected = expected[spec.order.position(spec.shape, rank).raster(spec.shape) as usize];
                    let label = format!("{}: image {image} rank {rank}", folder.display());
                    assert!((log_prob - expected).abs() <= 1e-4, "{label}: {log_prob} against {expected}");
                    super::record(table_row(&folder, spec.family), "reference", (log_prob - expected).abs());
                }
            }
            from = reached;
        }
    }
}

#[test]
fn every_seed_samples_what_the_reference_samples() {
    let on = |(folder, golden): (PathBuf, Golden)| BACKENDS.map(|backend| (folder.clone(), golden.clone(), backend));
    for (folder, golden, backend) in cases().into_iter().flat_map(on) {
        let mut model = load(&folder, backend);
        let spec = model.spec().clone();
        let mut out = super::params(&*model);
        for (slot, sample) in [Slot(0), Slot(1)].into_iter().cycle().zip(golden.samples) {
            let tuning = Tuning::new(sample.temperature, sample.top_k, sample.top_p).unwrap();
            let mut canvas = Canvas::empty(spec.shape);
            let mut log_likelihood = 0.0;
            model.open(slot, &Condition { class: sample.class, low: sample.low.map(Into::into) }).unwrap();
            while !canvas.is_complete() {
                model.step(&[StepRow { slot, canvas: &canvas }], &mut out).unwrap();
                for _ in 0..spec.values_per_step() {
                    let u = noise::uniform(sample.seed, sample.image, canvas.known());
                    let drawn = spec.head.draw(out.row(0), &canvas, &tuning, u).unwrap();
                    canvas.push(drawn.value);
                    log_likelihood += drawn.log_prob;
                }
            }
            model.close(slot);
            let label = format!("{} on {}: seed {}", folder.display(), backend.name(), sample.seed);
            assert_eq!(canvas.to_raster(spec.order), sample.values, "{label}");
            assert!((log_likelihood - sample.log_likelihood).abs() < 1e-3, "{label}");
            super::record(table_row(&folder, spec.family), "seeds", 1.0);
        }
    }
}
