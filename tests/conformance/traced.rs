//! Modules for the family `torchscript`, traced here so that they can have any size.

use std::fs;

use pixeld::noise;
use tch::{CModule, Device, Kind, Tensor};

use super::package::{Init, Size};

/// Numbers that a step keeps before it gives its parameters.
const DEPTH: i64 = 5;
/// Classes of the packages, and the label of images without one.
const LABELS: i64 = 3;

/// How a traced module takes and gives images; what the manifest says of it stands in `package.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Unit values (h w c); (h w c) v; an index for the class.
    Sequence,
    /// Signed values, c h w; (c v) h w, all channels of a pixel at once; an index for the class.
    Planes,
    /// Integers, h w c; h w v, mixtures; a row of zeros and a one for the class.
    Mixtures,
}

fn numbers(init: Init, tensor: u32, shape: &[i64]) -> Tensor {
    let number = |element| match init {
        Init::Zero => 0.0,
        Init::Random(seed) => 1.2 * (noise::uniform(seed, tensor, element) as f32 - 0.5),
    };
    let count = shape.iter().product::<i64>();
    Tensor::from_slice(&(0..count as u32).map(number).collect::<Vec<_>>()).view(shape)
}

/// An archive of a module of `width` parameters a step: each step is a squashed sum of all values before it.
pub(crate) fn archive(form: Form, [height, width, channels, levels]: Size, parameters: i64, init: Init) -> Vec<u8> {
    let [h, w, c] = [height, width, channels].map(i64::from);
    let (values, group) = (h * w * c, if form == Form::Sequence { 1 } else { c });
    let steps = values / group;
    let before = Tensor::ones([steps, steps], (Kind::Float, Device::Cpu)).tril(-1);
    let before = before.repeat_interleave_self_int(DEPTH, 0, None).repeat_interleave_self_int(group, 1, None);
    let taken = numbers(init, 0, &[steps * DEPTH, values]) * before;
    let (offsets, labels) = (numbers(init, 1, &[steps * DEPTH]), numbers(init, 2, &[LABELS, steps * DEPTH]));
    let (given, bias) = (numbers(init, 3, &[DEPTH, parameters]), numbers(init, 4, &[parameters]));
    let mut forward = |inputs: &[Tensor]| {
        let flat = match form {
            Form::Planes => inputs[0].permute([0, 2, 3, 1]).reshape([-1, values]),
            Form::Sequence => inputs[0].shallow_clone(),
            Form::Mixtures => inputs[0].reshape([-1, values]).to_kind(Kind::Float) / f64::from(levels),
        };
        let label = match form {
            Form::Mixtures => inputs[1].matmul(&labels.narrow(0, 0, LABELS - 1)),
            _ => labels.index_select(0, &inputs[1]),
        };
        let kept = (flat.matmul(&taken.transpose(0, 1)) + &offsets + label).tanh().view([-1, steps, DEPTH]);
        let rows = kept.matmul(&given) + &bias;
        vec![match form {
            Form::Sequence => rows,
            Form::Planes => rows.view([-1, h, w, parameters]).permute([0, 3, 1, 2]),
            Form::Mixtures => rows.view([-1, h, w, parameters]),
        }]
    };
    let class = Tensor::from_slice(&[0i64, 1]);
    let inputs = match form {
        Form::Sequence => [Tensor::zeros([2, values], (Kind::Float, Device::Cpu)), class],
        Form::Planes => [Tensor::zeros([2, c, h, w], (Kind::Float, Device::Cpu)), class],
        Form::Mixtures => [
            Tensor::zeros([2, h, w, c], (Kind::Int64, Device::Cpu)),
            Tensor::zeros([2, LABELS - 1], (Kind::Float, Device::Cpu)),
        ],
    };
    let _guard = tch::no_grad_guard();
    let module = CModule::create_by_tracing("Traced", "forward", &inputs, &mut forward).expect("a module");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("module.pt");
    module.save(&path).expect("a module can be saved");
    fs::read(path).expect("a file just written")
}
