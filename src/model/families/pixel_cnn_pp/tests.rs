//! Tests of what only this family has: its schedule over three scales, its cost, its configuration.

use tch::Tensor;

use super::super::raster::Raster;
use super::network::{KEPT, network};
use super::*;
use crate::decode::{Memory, Network};
use crate::head::{Head, Layout};
use crate::image::{Blocks, Canvas, Order, Shape};
use crate::model::families::raster::{Opening, Phase, Schedule};
use crate::model::{Condition, ParamRows, ScoreRow, Slot, StepRow, TensorSpec, WeightsFormat};
use crate::noise;
use crate::spec::Backend;
use crate::torch::weights::Weights;

const BACKENDS: [Backend; 2] = [Backend::Native, Backend::Torch];

fn manifest(size: [u32; 3], architecture: &str) -> Manifest {
    let [height, width, channels] = size;
    let text = format!(
        "format = 1\nname = \"t\"\nfamily = \"pixel_cnn_pp\"\n[image]\nheight = {height}\nwidth = {width}\n\
         channels = {channels}\nlevels = 5\norder = \"raster\"\n[head]\nkind = \"logistic_mixture\"\ncomponents = 2\n\
         layout = \"saha\"\n[condition]\nclasses = 2\n[architecture]\n{architecture}"
    );
    Manifest::parse(text.as_bytes()).unwrap()
}

fn weights(config: &Config) -> Weights {
    let tensors = config.tensors();
    let named: Vec<_> = tensors.iter().zip(0..).map(|(spec, index)| (spec.name.clone(), tensor(spec, index))).collect();
    let mut bytes = Vec::new();
    Tensor::save_multi_to_stream(&named, &mut bytes).unwrap();
    let file = WeightsFile {
        format: WeightsFormat::TorchScript,
        bytes: bytes.len() as u64,
        stream: &mut std::io::Cursor::new(bytes),
    };
    Weights::load(file, &tensors).unwrap()
}

fn tensor(spec: &TensorSpec, index: u32) -> Tensor {
    let number = |element| noise::uniform(9, index, element) as f32 - 0.5;
    let numbers: Vec<f32> = (0..spec.shape.iter().product::<u64>() as u32).map(number).collect();
    Tensor::from_slice(&numbers).view(spec.shape.iter().map(|&n| n as i64).collect::<Vec<_>>().as_slice())
}

/// Fills every memory with NaN when an image is opened.
fn poison(network: &mut Network, schedule: &mut Schedule) {
    let memories: Vec<(Memory, u32, u32)> = network.memories().collect();
    for (memory, width, places) in memories {
        let mut program = network.program();
        let taps = program.taps(1, places);
        let nan = program.embed(Tensor::full([1, i64::from(width)], f64::NAN, (tch::Kind::Float, tch::Device::Cpu)));
        program.remember(nan.unwrap(), memory, taps, 0).unwrap();
        let program = program.finish(None).unwrap();
        schedule.opening.push(Opening { program, rows: (0..places).map(|place| (0, place)).collect() });
    }
}

/// The parameters of every pixel of an image, by steps and by a teacher-forced pass.
fn parameters(model: &mut dyn PixelModel) -> [Vec<f32>; 2] {
    let spec = model.spec().clone();
    let value = |rank| (noise::uniform(3, 0, rank) * f64::from(spec.shape.levels())) as u16;
    let values: Vec<u16> = (0..spec.shape.values()).map(value).collect();
    let known = |count: u32| Canvas::with_prefix(spec.shape, values[..count as usize].to_vec()).unwrap();
    let (condition, mut out) = (Condition { class: Some(1), low: None }, ParamRows::new(spec.head.width(spec.shape)));
    let mut stepped = Vec::new();
    model.open(Slot(0), &condition).unwrap();
    for rank in (0..spec.shape.values()).step_by(spec.values_per_step() as usize) {
        model.step(&[StepRow { slot: Slot(0), canvas: &known(rank) }], &mut out).unwrap();
        stepped.extend_from_slice(out.row(0));
    }
    let (canvas, mut scored, mut from) = (known(spec.shape.values()), Vec::new(), 0);
    while from < spec.shape.values() {
        from = model.score(&[ScoreRow { canvas: &canvas, condition: &condition }], from, 3, &mut out).unwrap();
        scored.extend((0..out.len()).flat_map(|index| out.row(index).to_vec()));
    }
    [stepped, scored]
}

/// Where every node has a place of its own that holds NaN until the node is due, no NaN reaches a parameter; and keeping
/// the latest rows alone changes no bit.
#[test]
fn no_node_is_read_before_it_is_due_or_after_its_row_is_dropped() {
    crate::torch::limit_threads(1);
    for (size, blocks) in [([8, 12, 1], 1), ([12, 8, 2], 2)] {
        let manifest = manifest(size, &format!("stream_width = 3\nblocks = {blocks}"));
        let config = Config::read(&manifest).unwrap();
        let weights = weights(&config);
        for backend in BACKENDS {
            let placement = Placement { backend, ..Placement::new(1, 1) };
            let model = |kept: u32, poisoned: bool| {
                let (mut network, mut schedule) = network(&config, &weights, Placement::new(1, 1), kept).unwrap();
                if poisoned {
                    poison(&mut network, &mut schedule);
                }
                let spec = manifest.spec(FAMILY.name, placement, 0);
                parameters(&mut Raster::new(spec, &network, schedule, placement).unwrap())
            };
            let poisoned = model(u32::MAX, true);
            assert!(poisoned.iter().flatten().all(|number| number.is_finite()), "{size:?} on {}", backend.name());
            assert_eq!(poisoned, model(KEPT, false), "{size:?} on {}", backend.name());
        }
    }
}

/// Multiplications of one pixel in the mean, of the stream u (for a whole row at once) and of ul. In units of F^2: a block
/// of u has 2 x 6 for `first` and 4 x 6 for `second`, one of ul 2 x 4 and 4 x 4; a skip has 2 for each map. A stage of
/// scale s counts 1 / s^2, the strided and the transposed convolutions of both streams 6 and 4 at the coarser scale.
#[test]
fn a_step_costs_what_its_convolutions_cost_where_they_are_due() {
    let counted = |f: f64, channels: f64, parameters: f64| {
        let (quarter, sixteenth) = (1.0 / 4.0, 1.0 / 16.0);
        let [u, ul] = [(36.0, 38.0, 6.0), (26.0, 28.0, 4.0)].map(|(up, down, resize)| {
            let stages = (5.0 * up + 6.0 * down) * (1.0 + quarter) + (5.0 * up + 5.0 * down) * sixteenth;
            (stages + 2.0 * resize * (quarter + sixteenth)) * f * f
        });
        [u + 6.0 * (channels + 1.0) * f, ul + 4.0 * (channels + 1.0) * f + parameters * f]
    };
    let manifest = manifest([32, 32, 3], "stream_width = 16\nblocks = 5");
    let config = Config::read(&manifest).unwrap();
    let (network, schedule) = network(&config, &weights(&config), Placement::new(1, 1), KEPT).unwrap();
    let cost = |phases: &[Phase]| -> f64 {
        let cost = |phase: &Phase| network.cost(phase.program, 0.0).products / f64::from(phase.scale.pow(2));
        phases.iter().map(cost).sum()
    };
    let parts = [cost(&schedule.before_row), schedule.steps.iter().map(|phases| cost(phases)).sum()];
    assert_eq!(parts, counted(16.0, 3.0, 20.0));
    // A row of a coarser scale has fewer pixels to share its matrices.
    let row = |phase: &Phase| cost(std::slice::from_ref(phase)) / f64::from(32 / phase.scale);
    let shared: f64 = schedule.before_row.iter().map(row).sum();
    let placement = Placement::new(1, 1);
    let model = Raster::new(manifest.spec(FAMILY.name, placement, 0), &network, schedule, placement).unwrap();
    let cost = model.spec().execution.cost;
    assert_eq!(cost.products, parts.iter().sum::<f64>());
    assert!((cost.weights - (shared + parts[1])).abs() < 1e-6 * cost.products, "{} {shared}", cost.weights);
    assert_eq!(cost.resident * cost.bytes_per_number, network.weight_bytes());

    // The published size, F = 160 and 10 components: 23.8 million, of which 10.05 million wait for the pixel before.
    let published = counted(160.0, 3.0, 100.0);
    assert_eq!(published, [13_747_840.0, 10_050_560.0]);
}

#[test]
fn a_foreign_layout_is_permuted_when_weights_are_loaded() {
    let parameters = |layout: Layout| {
        let manifest = Manifest { layout, ..manifest([4, 4, 3], "stream_width = 3\nblocks = 1") };
        let config = Config::read(&manifest).unwrap();
        let (network, schedule) = network(&config, &weights(&config), Placement::new(1, 1), KEPT).unwrap();
        let placement = Placement::new(1, 1);
        let spec = manifest.spec(FAMILY.name, placement, 0);
        let [stepped, _] = parameters(&mut Raster::new(spec, &network, schedule, placement).unwrap());
        (stepped, config.parameters())
    };
    let (ours, width) = parameters(Layout::Saha);
    for layout in [Layout::Oai, Layout::T2t] {
        let places = layout.places(2, width);
        let read: Vec<f32> = ours.chunks(width).flat_map(|row| places.iter().map(|&place| row[place])).collect();
        assert_eq!(parameters(layout).0, read, "{layout:?}");
        assert_ne!(ours, read, "{layout:?}");
    }
}

#[test]
fn every_fault_of_the_configuration_is_named() {
    let fields = |manifest: &Manifest| -> Vec<String> {
        Config::read(manifest).unwrap_err().iter().map(|violation| violation.field.clone()).collect()
    };
    let mut foreign = manifest([4, 8, 1], "stream_width = 3\nblocks = 1");
    assert!(Config::read(&foreign).is_ok());
    foreign.shape = Shape::new(6, 9, 1, 5).unwrap();
    assert_eq!(fields(&foreign), ["image.height", "image.width"]);
    foreign.head = Head::Categorical;
    foreign.order = Order::BlockRaster(Blocks::new(foreign.shape, 2, 3).unwrap());
    foreign.condition.low = Some(foreign.shape);
    assert_eq!(fields(&foreign), ["head.kind", "image.order", "condition.low_height", "image.height", "image.width"]);
    assert_eq!(
        fields(&manifest([4, 4, 1], "stream_width = 0\nblocks = 65\ndropout = 0.5")),
        ["architecture.stream_width", "architecture.blocks", "architecture.dropout"]
    );
    assert_eq!(fields(&manifest([4, 4, 1], "")), ["architecture.stream_width", "architecture.blocks"]);
}
