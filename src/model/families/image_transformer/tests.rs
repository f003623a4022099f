//! Tests of what only this family has: its masks, its pieces, its rings, its configuration.

use tch::Tensor;

use super::config::{Norm, Positions};
use super::scoring::MAX_FLOATS;
use super::*;
use crate::image::{Order, Shape};
use crate::model::manifest::Manifest;
use crate::model::{TensorSpec, WeightsFormat};
use crate::noise;

fn config(shape: Shape, query_block: u32) -> Config {
    Config {
        shape,
        order: Order::Raster,
        classes: 0,
        layers: 1,
        model_width: 8,
        heads: 2,
        key_width: 4,
        value_width: 4,
        feed_forward_width: 8,
        query_block,
        positions: Positions::Sinusoidal,
        norm: Norm::Post,
    }
}

fn manifest(architecture: &str) -> Manifest {
    let text = format!(
        "format = 1\nname = \"t\"\nfamily = \"image_transformer\"\n[image]\nheight = 2\nwidth = 3\nchannels = 2\nlevels = 3\n\
         order = \"raster\"\n[head]\nkind = \"categorical\"\n[architecture]\n{architecture}"
    );
    Manifest::parse(text.as_bytes()).unwrap()
}

fn model(slots: u32) -> ImageTransformer {
    let manifest = manifest(
        "layers = 2\nmodel_width = 8\nheads = 2\nkey_width = 4\nvalue_width = 6\nfeed_forward_width = 8\nquery_block = 4\n\
         positions = \"sinusoidal\"\nnorm = \"post\"",
    );
    let tensors = Config::read(&manifest).unwrap().tensors();
    let named: Vec<_> = tensors.iter().zip(0..).map(|(spec, index)| (spec.name.clone(), tensor(spec, index))).collect();
    let mut bytes = Vec::new();
    Tensor::save_multi_to_stream(&named, &mut bytes).unwrap();
    let file = WeightsFile {
        format: WeightsFormat::TorchScript,
        bytes: bytes.len() as u64,
        stream: &mut std::io::Cursor::new(bytes),
    };
    ImageTransformer::new(&manifest, Some(file), Placement::new(slots, 1)).unwrap()
}

fn tensor(spec: &TensorSpec, index: u32) -> Tensor {
    let numbers: Vec<f32> = (0..spec.shape.iter().product::<u64>() as u32)
        .map(|element| noise::uniform(9, index, element) as f32 - 0.5)
        .collect();
    Tensor::from_slice(&numbers).view(spec.shape.iter().map(|&n| n as i64).collect::<Vec<_>>().as_slice())
}

/// Section 3.3: rank i sees exactly the ranks max(0, (floor(i / l_q) - 1) l_q) ..= i. The ring holds at each place the
/// last rank that was written there.
#[test]
fn a_rank_sees_exactly_the_block_before_and_its_own_block_up_to_itself() {
    let shape = Shape::new(1, 23, 1, 2).unwrap();
    for query_block in [1, 2, 5, 11, 12, 22, 23, 24, 1 << 20] {
        let config = config(shape, query_block);
        let mut ring: Vec<Option<Rank>> = vec![None; config.places() as usize];
        let mut total = 0;
        for rank in 0..23 {
            ring[config.place(rank) as usize] = Some(rank);
            let ranges = config.seen(rank);
            assert!(ranges[1].is_empty() || ranges[0].end <= ranges[1].start, "ascending and disjoint");
            let places = ranges.into_iter().flatten();
            let mut seen: Vec<Rank> = places.map(|place| ring[place as usize].unwrap()).collect();
            seen.sort_unstable();
            let first = (rank / query_block).saturating_sub(1) * query_block;
            assert_eq!(seen, (first..=rank).collect::<Vec<_>>(), "l_q {query_block}");
            total += seen.len();
        }
        assert!((config.mean_seen() - total as f64 / 23.0).abs() < 1e-9);
    }
}

#[test]
fn pieces_stay_within_a_block_and_within_memory() {
    let tall = config(Shape::new(64, 64, 3, 65_536).unwrap(), 4096);
    for (images, rows_wanted) in [(1, u32::MAX), (7, 1000), (64, 3), (1000, u32::MAX)] {
        let mut from = 0;
        while from < tall.shape.values() {
            let upto = scoring::piece_end(&tall, images, from, rows_wanted);
            assert!(upto > from && upto <= tall.shape.values());
            assert_eq!(from / 4096, (upto - 1) / 4096, "a piece crosses a border");
            let ranks = u64::from(upto - from);
            assert!(ranks == 1 || ranks * u64::from(images) * 65_536 <= u64::from(MAX_FLOATS));
            assert!(ranks == 1 || ranks * u64::from(images) <= u64::from(rows_wanted));
            from = upto;
        }
    }
}

#[test]
fn misuse_is_refused_without_a_panic() {
    let mut model = model(1);
    let shape = model.spec.shape;
    let mut out = ParamRows::new(3);
    let (empty, full) = (Canvas::empty(shape), Canvas::with_prefix(shape, vec![0; 12]).unwrap());
    assert!(model.open(Slot(u32::MAX), &Condition::default()).is_err());
    assert!(model.step(&[], &mut out).is_ok());
    assert!(model.step(&[StepRow { slot: Slot(0), canvas: &full }], &mut out).is_err());
    assert!(model.absorb(Slot(0), &empty, 0..1, &mut out).is_err());
    let score = |canvas| ScoreRow { canvas, condition: Condition::default() };
    assert!(model.score(&[score(&empty)], 0, 1, &mut out).is_err());
    assert!(model.score(&[], 0, 1, &mut out).is_err());
    assert!(model.score(&[score(&full); 2], 0, 1, &mut out).is_err());
    assert!(model.score(&[score(&full)], 3, 1, &mut out).is_err());
    assert_eq!(model.score(&[score(&full)], 0, 3, &mut out), Ok(3));
    assert!(model.score(&[score(&full)], 4, 1, &mut out).is_err());
}

#[test]
fn every_fault_of_the_architecture_is_named() {
    let faults = |architecture: &str| -> Vec<String> {
        Config::read(&manifest(architecture)).unwrap_err().iter().map(|violation| violation.field.clone()).collect()
    };
    let all = [
        "layers",
        "model_width",
        "heads",
        "key_width",
        "value_width",
        "feed_forward_width",
        "query_block",
        "positions",
        "norm",
    ];
    assert_eq!(faults(""), all.map(|key| format!("architecture.{key}")));
    let wrong = "layers = 0\nmodel_width = 6\nheads = 4\nkey_width = 6\nvalue_width = 7\nfeed_forward_width = -1\n\
                 query_block = 0\npositions = \"sinusoidal\"\nnorm = \"none\"\ndropout = 0.1";
    let mut found = faults(wrong);
    found.sort();
    let mut expected =
        ["layers", "model_width", "key_width", "value_width", "feed_forward_width", "query_block", "norm", "dropout"]
            .map(|key| format!("architecture.{key}"));
    expected.sort();
    assert_eq!(found, expected);
}
