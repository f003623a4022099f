//! Tests of what only this family has: its masks, its pieces, its rings, its configuration.

use tch::Tensor;

use super::config::{Input, Norm, Positions};
use super::grid::{Grid, Local};
use super::scoring::MAX_FLOATS;
use super::*;
use crate::head::{Head, Layout};
use crate::image::{Blocks, Order, Position, Shape};
use crate::model::manifest::Manifest;
use crate::model::{TensorSpec, WeightsFormat};
use crate::noise;

fn one_d(shape: Shape, query_block: u32) -> Grid {
    let columns = shape.width() * shape.channels();
    Grid { height: shape.height(), columns, local: Local::OneD { query_block } }
}

fn config(shape: Shape, query_block: u32) -> Config {
    Config {
        shape,
        head: Head::Categorical,
        layout: Layout::default(),
        classes: 0,
        input: Input::Embedding,
        grid: one_d(shape, query_block),
        encoder: None,
        layers: 1,
        model_width: 8,
        heads: 2,
        key_width: 4,
        value_width: 4,
        feed_forward_width: 8,
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
    let mut index = 0;
    load(&manifest, slots, |spec| {
        index += 1;
        let numbers = 0..spec.shape.iter().product::<u64>() as u32;
        let numbers: Vec<f32> = numbers.map(|element| noise::uniform(9, index, element) as f32 - 0.5).collect();
        shaped(&numbers, spec)
    })
}

fn load(manifest: &Manifest, slots: u32, mut tensor: impl FnMut(&TensorSpec) -> Tensor) -> ImageTransformer {
    let tensors = Config::read(manifest).unwrap().tensors();
    let named: Vec<_> = tensors.iter().map(|spec| (spec.name.clone(), tensor(spec))).collect();
    let mut bytes = Vec::new();
    Tensor::save_multi_to_stream(&named, &mut bytes).unwrap();
    let file = WeightsFile {
        format: WeightsFormat::TorchScript,
        bytes: bytes.len() as u64,
        stream: &mut std::io::Cursor::new(bytes),
    };
    ImageTransformer::new(manifest, Some(file), Placement::new(slots, 1)).unwrap()
}

fn shaped(numbers: &[f32], spec: &TensorSpec) -> Tensor {
    Tensor::from_slice(numbers).view(spec.shape.iter().map(|&n| n as i64).collect::<Vec<_>>().as_slice())
}

/// Section 3.3: rank i sees exactly the ranks max(0, (floor(i / l_q) - 1) l_q) ..= i. The ring holds at each place the
/// last rank that was written there.
#[test]
fn a_rank_sees_exactly_the_block_before_and_its_own_block_up_to_itself() {
    let shape = Shape::new(1, 23, 1, 2).unwrap();
    for query_block in [1, 2, 5, 11, 12, 22, 23, 24, 1 << 20] {
        let grid = one_d(shape, query_block);
        check_sight(&grid, |cell, other| {
            let first = (cell / query_block).saturating_sub(1) * query_block;
            (first..=cell).contains(&other)
        });
    }
}

/// The published sizes of section 3.3 in small, and blocks that reach over every border of the image.
#[test]
fn a_cell_of_a_block_sees_what_has_been_generated_above_it_and_on_its_left() {
    let grids =
        [([8, 12], [2, 4], [2, 8]), ([8, 12], [2, 4], [1, 3]), ([6, 6], [3, 2], [6, 6]), ([4, 4], [4, 4], [1, 1])];
    for ([height, columns], block, memory) in
        grids.into_iter().chain([([6, 4], [1, 1], [2, 1]), ([5, 4], [1, 2], [0, 0])])
    {
        let shape = Shape::new(height, columns, 1, 2).unwrap();
        let order = Order::BlockRaster(Blocks::new(shape, block[0], block[1]).unwrap());
        let grid = Grid { height, columns, local: Local::TwoD { block, memory, shift_per_block: false } };
        let place = |cell: Rank| {
            let Position { row, column, .. } = order.position(shape, cell);
            assert_eq!(grid.position(cell), [row, column]);
            [row, column].map(i64::from)
        };
        check_sight(&grid, |cell, other| {
            let [[row, column], [r, c]] = [place(cell), place(other)];
            let [rows, columns, above, beside] = [block[0], block[1], memory[0], memory[1]].map(i64::from);
            let (top, left) = (row - row % rows, column - column % columns);
            let own_rows = (top..top + rows).contains(&r);
            (top - above..top).contains(&r) && (left - beside..left + columns + beside).contains(&c)
                || own_rows && (left - beside..left).contains(&c)
                || own_rows && (left..left + columns).contains(&c) && other <= cell
        });
    }
}

/// Runs through an image, one cell after the other and run by run: in the ring a cell finds exactly the cells that it may
/// see by `visible`, and all of them have been generated.
fn check_sight(grid: &Grid, visible: impl Fn(Rank, Rank) -> bool) {
    let cells = grid.cells();
    let mut total = 0;
    for together in [false, true] {
        let mut ring: Vec<Option<Rank>> = vec![None; grid.places() as usize];
        let mut from = 0;
        while from < cells {
            let upto = if together { grid.run_end(from) } else { from + 1 };
            assert!(upto > from && upto <= cells);
            (from..upto).for_each(|cell| ring[grid.place(cell) as usize] = Some(cell));
            for cell in from..upto {
                let mut ranges = Vec::new();
                grid.see(cell, &mut ranges);
                ranges.retain(|range| !range.is_empty());
                assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "ascending and disjoint");
                let places = ranges.into_iter().flatten();
                let mut seen: Vec<Rank> = places.map(|place| ring[place as usize].unwrap()).collect();
                seen.sort_unstable();
                let wanted: Vec<Rank> = (0..cells).filter(|&other| visible(cell, other)).collect();
                assert_eq!(seen, wanted, "{grid:?}: cell {cell}, together: {together}");
                assert_eq!(seen.last(), Some(&cell));
                total += seen.len();
            }
            from = upto;
        }
    }
    assert!((grid.mean_seen() - total as f64 / 2.0 / f64::from(cells)).abs() < 1e-9, "{grid:?}");
}

#[test]
fn a_block_begins_without_a_cell_before_it_only_where_blocks_are_shifted_alone() {
    let grid = |shift_per_block| Grid {
        height: 4,
        columns: 6,
        local: Local::TwoD { block: [2, 3], memory: [1, 1], shift_per_block },
    };
    let alone: Vec<_> = (0..24).filter(|&cell| grid(true).before(cell).is_none()).collect();
    assert_eq!(alone, [0, 6, 12, 18]);
    let together: Vec<_> = (0..24).filter(|&cell| grid(false).before(cell).is_none()).collect();
    assert_eq!(together, [0]);
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
    let condition = Condition::default();
    let score = |canvas| ScoreRow { canvas, condition: &condition };
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

/// A manifest of 2-D blocks of pixels with a mixture and an encoder, and what one change of it comes to.
#[test]
fn what_does_not_go_together_is_named() {
    const TEXT: &str = "format = 1\nname = \"t\"\nfamily = \"image_transformer\"\n[image]\nheight = 4\nwidth = 6\n\
        channels = 3\nlevels = 3\norder = \"block_raster\"\nblock_height = 2\nblock_width = 3\nblock_unit = \"pixels\"\n\
        [head]\nkind = \"logistic_mixture\"\ncomponents = 2\nlayout = \"t2t\"\n\
        [condition]\nlow_height = 2\nlow_width = 3\n\
        [architecture]\nlayers = 2\nmodel_width = 8\nheads = 2\nkey_width = 4\nvalue_width = 6\nfeed_forward_width = 8\n\
        positions = \"learned\"\nnorm = \"pre\"\ninput = \"ordinal\"\nattention = \"local_2d\"\nmemory_height = 9\n\
        memory_width = 2\nshift = \"per_block\"\nencoder_layers = 1\n";
    let read = |from: &str, to: &str| {
        assert!(TEXT.contains(from));
        Config::read(&Manifest::parse(TEXT.replace(from, to).as_bytes()).unwrap())
    };
    let config = read("", "").unwrap();
    let local = Local::TwoD { block: [2, 3], memory: [4, 2], shift_per_block: true };
    assert_eq!((config.grid, config.cell_values()), (Grid { height: 4, columns: 6, local }, 3));
    let faults = |from: &str, to: &str| -> Vec<String> {
        read(from, to).unwrap_err().iter().map(|violation| violation.field.replace("architecture.", "")).collect()
    };
    assert_eq!(faults("input = \"ordinal\"", "input = \"embedding\""), ["input"]);
    assert_eq!(faults("input = \"ordinal\"\n", ""), ["input"]);
    let categorical = "kind = \"categorical\"";
    assert_eq!(faults("kind = \"logistic_mixture\"\ncomponents = 2\nlayout = \"t2t\"", categorical), ["input"]);
    assert_eq!(faults("\"pixels\"", "\"values\""), ["input"]);
    assert_eq!(faults("\"local_2d\"", "\"local_1d\""), ["attention", "memory_height", "memory_width", "shift"]);
    assert_eq!(faults("\"local_2d\"", "\"global\""), ["attention", "memory_height", "memory_width", "shift"]);
    assert_eq!(faults("shift = \"per_block\"\n", "query_block = 3\n"), ["shift", "query_block"]);
    assert_eq!(faults("encoder_layers = 1\n", ""), ["encoder_layers"]);
    assert_eq!(faults("[condition]\nlow_height = 2\nlow_width = 3\n", ""), ["encoder_layers"]);
    assert_eq!(faults("low_height = 2\nlow_width = 3", "low_height = 100\nlow_width = 100"), ["encoder_layers"]);
}

/// Weights that say of every parameter which it is must come out in the order the head reads.
#[test]
fn a_foreign_layout_is_permuted_when_weights_are_loaded() {
    let text = |layout: &str| {
        format!(
            "format = 1\nname = \"t\"\nfamily = \"image_transformer\"\n[image]\nheight = 1\nwidth = 1\nchannels = 3\n\
             levels = 3\norder = \"raster\"\n[head]\nkind = \"logistic_mixture\"\ncomponents = 2\nlayout = \"{layout}\"\n\
             [architecture]\nlayers = 1\nmodel_width = 4\nheads = 1\nkey_width = 4\nvalue_width = 4\nfeed_forward_width = 4\n\
             query_block = 1\npositions = \"learned\"\nnorm = \"post\"\ninput = \"ordinal\"\n"
        )
    };
    let parameters = |layout: &str| {
        let manifest = Manifest::parse(text(layout).as_bytes()).unwrap();
        let mut model = load(&manifest, 1, |spec| {
            // The last norm gives ones; row r of the head then gives r.
            let count = spec.shape.iter().product::<u64>() as usize;
            let numbers: Vec<f32> = match spec.name.as_str() {
                "head.weight" => (0..count).map(|index| (index / 4) as f32 / 4.0).collect(),
                "layers.0.feed_forward_norm.bias" => vec![1.0; count],
                _ => vec![0.0; count],
            };
            shaped(&numbers, spec)
        });
        let mut out = ParamRows::new(20);
        let canvas = Canvas::empty(model.spec.shape);
        model.step(&[StepRow { slot: Slot(0), canvas: &canvas }], &mut out).unwrap();
        out.row(0).iter().map(|&number| number as usize).collect::<Vec<_>>()
    };
    assert_eq!(parameters("saha"), (0..20).collect::<Vec<_>>());
    // The means of the second channel follow those of the first; oai has a whole channel between them.
    assert_eq!(parameters("oai")[..8], [0, 1, 2, 3, 8, 9, 14, 15]);
    assert_eq!(parameters("t2t")[..8], [0, 1, 2, 5, 3, 6, 4, 7]);
}

/// More positions than the native backend evaluates together where rows are independent.
#[test]
fn every_position_of_a_large_low_resolution_image_sees_all_others_on_both_backends() {
    let text = "format = 1\nname = \"t\"\nfamily = \"image_transformer\"\n[image]\nheight = 2\nwidth = 2\nchannels = 1\n\
        levels = 5\norder = \"raster\"\n[head]\nkind = \"categorical\"\n[condition]\nlow_height = 9\nlow_width = 11\n\
        [architecture]\nlayers = 1\nmodel_width = 8\nheads = 2\nkey_width = 4\nvalue_width = 6\nfeed_forward_width = 8\n\
        query_block = 2\npositions = \"sinusoidal\"\nnorm = \"post\"\nencoder_layers = 2\n";
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    let mut index = 0;
    let mut model = load(&manifest, 1, |spec| {
        index += 1;
        let numbers = 0..spec.shape.iter().product::<u64>() as u32;
        let numbers: Vec<f32> = numbers.map(|element| 3.0 * (noise::uniform(9, index, element) as f32 - 0.5)).collect();
        shaped(&numbers, spec)
    });
    let low: Vec<u16> = (0..99).map(|place| (noise::uniform(3, 0, place) * 5.0) as u16).collect();
    let condition = Condition { low: Some(low.into()), ..Condition::default() };
    let canvas = Canvas::with_prefix(model.spec.shape, vec![0; 4]).unwrap();
    let (mut stepped, mut scored) = (ParamRows::new(5), ParamRows::new(5));
    model.open(Slot(0), &condition).unwrap();
    model.step(&[StepRow { slot: Slot(0), canvas: &Canvas::empty(model.spec.shape) }], &mut stepped).unwrap();
    model.score(&[ScoreRow { canvas: &canvas, condition: &condition }], 0, 1, &mut scored).unwrap();
    for (stepped, scored) in stepped.row(0).iter().zip(scored.row(0)) {
        assert!((stepped - scored).abs() < 1e-4, "{stepped} against {scored}");
    }
    assert!(model.open(Slot(0), &Condition::default()).is_err(), "the low-resolution image is missing");
    let short = Condition { low: Some(vec![0; 98].into()), ..Condition::default() };
    assert!(model.open(Slot(0), &short).is_err(), "it is too short");
    let beyond = Condition { low: Some(vec![5; 99].into()), ..Condition::default() };
    assert!(model.open(Slot(0), &beyond).is_err(), "it holds what is no level");
}
