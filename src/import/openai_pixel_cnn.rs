//! PixelCNN++ as OpenAI's code openai/pixel-cnn trains it: the variables of its template `model`, by their TensorFlow names.
//!
//! That code numbers its layers in the order in which it calls them (`conv2d_0`, `dense_0`, `deconv2d_0`, ...), so this goes
//! through the network as its `model_spec` does. Kernels have their outputs last, and weight norm is over all that belongs to
//! an output, of transposed convolutions too. Beside each variable there may be its moving average, with which the code evaluates
//! and samples: if there are averages, they are the model.

use super::package::{Draft, number};
use super::{Renaming, Tensor, Tensors};
use crate::error::Violations;

const SCOPE: &str = "model/";
const AVERAGE: &str = "/ExponentialMovingAverage";
/// What `tf.nn.l2_normalize` takes a smaller square of a norm for.
const LEAST_SQUARE: f64 = 1e-12;
/// Numbers of a pixel for each component of the mixture.
const NUMBERS: usize = 10;
const CHANNELS: usize = 3;

/// What the variables do not tell.
#[derive(Clone, Copy, Debug)]
pub struct OpenaiPixelCnn {
    /// Rows of the images.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl OpenaiPixelCnn {
    /// The package that `variables` make.
    ///
    /// # Errors
    /// Every variable by which they differ from those of such a model.
    pub fn draft(self, variables: Tensors) -> Result<Draft, Violations> {
        let variables = evaluated(variables);
        let missing = |name: &str| {
            let why = "is missing or of another rank: these are no variables of this model";
            Violations::one(format!("tensors.{SCOPE}{name}"), why)
        };
        let shape = |name: &str| variables.get(name).map(|tensor| tensor.shape.as_slice());
        let Some(&[2, 3, _, width]) = shape("conv2d_0/V") else { return Err(missing("conv2d_0/V")) };
        let count =
            |layer: &str| variables.keys().filter(|name| name.starts_with(layer) && name.ends_with("/V")).count();
        // Three at the input, four between scales, two in each of the 12 R + 4 blocks of both streams.
        let blocks = count("conv2d_").saturating_sub(15) / 24;
        let last = format!("dense_{}/b", 9 * blocks + 4);
        let Some(&[parameters]) = shape(&last) else { return Err(missing(&last)) };
        if parameters == 0 || parameters % NUMBERS != 0 {
            let why = format!("must have {NUMBERS} numbers for each component of the mixture, got {parameters}");
            return Err(Violations::one(format!("tensors.{SCOPE}{last}"), why));
        }
        let classes = match shape("conditional_weights_0/hw") {
            Some(&[classes, _]) => Some(classes),
            _ => None,
        };
        let mut layers = Layers { map: Renaming::new(variables), width, classes, counts: [0; 4] };
        layers.network(blocks, parameters);
        let tensors = layers.map.finish()?;
        let image = vec![
            ("height", self.height.into()),
            ("width", self.width.into()),
            ("channels", number(CHANNELS)),
            ("levels", 256.into()),
            ("order", "raster".into()),
        ];
        let head = vec![
            ("kind", "logistic_mixture".into()),
            ("components", number(parameters / NUMBERS)),
            ("layout", "oai".into()),
        ];
        let mut tables = vec![("image", image), ("head", head)];
        // It was never trained without one.
        let condition = |classes| ("condition", vec![("classes", number(classes)), ("required", true.into())]);
        tables.extend(classes.map(condition));
        tables.push(("architecture", vec![("stream_width", number(width)), ("blocks", number(blocks))]));
        let description = "PixelCNN++, from variables of openai/pixel-cnn".to_owned();
        Ok(Draft { family: "pixel_cnn_pp", description, tables, tensors })
    }
}

/// The variables of the model, without its scope: their averages if there are any. What training keeps beside the model is left
/// out.
fn evaluated(variables: Tensors) -> Tensors {
    let inside = |(name, tensor): (String, Tensor)| {
        let name = name.strip_suffix(":0").unwrap_or(&name).strip_prefix(SCOPE)?.to_owned();
        Some((name, tensor))
    };
    let all: Tensors = variables.into_iter().filter_map(inside).collect();
    if !all.keys().any(|name| name.ends_with(AVERAGE)) {
        return all;
    }
    all.into_iter().filter_map(|(name, tensor)| Some((name.strip_suffix(AVERAGE)?.to_owned(), tensor))).collect()
}

/// Kinds of layers, each of which is numbered by itself.
#[derive(Clone, Copy)]
enum Kind {
    Convolution,
    Transposed,
    Dense,
    Class,
}

/// A walk through the network.
struct Layers {
    map: Renaming,
    width: usize,
    classes: Option<usize>,
    counts: [usize; 4],
}

impl Layers {
    fn network(&mut self, blocks: usize, parameters: usize) {
        let (f, inputs) = (self.width, CHANNELS + 1);
        self.convolution("input.u", [2, 3, inputs, f]);
        self.convolution("input.above", [1, 3, inputs, f]);
        self.convolution("input.left", [2, 1, inputs, f]);
        for stage in 0..3 {
            for block in 0..blocks {
                self.block(&format!("up.{stage}.{block}.u"), 3, 0);
                self.block(&format!("up.{stage}.{block}.ul"), 2, 1);
            }
            if stage < 2 {
                self.convolution(&format!("shrink.{stage}.u"), [2, 3, f, f]);
                self.convolution(&format!("shrink.{stage}.ul"), [2, 2, f, f]);
            }
        }
        for stage in 0..3 {
            for block in 0..blocks + usize::from(stage > 0) {
                self.block(&format!("down.{stage}.{block}.u"), 3, 1);
                self.block(&format!("down.{stage}.{block}.ul"), 2, 2);
            }
            if stage < 2 {
                self.transposed(&format!("grow.{stage}.u"), [2, 3, f, f]);
                self.transposed(&format!("grow.{stage}.ul"), [2, 2, f, f]);
            }
        }
        self.dense("head", [f, parameters]);
    }

    /// A gated block, with kernels of `columns` columns and so many maps from elsewhere.
    fn block(&mut self, ours: &str, columns: usize, skips: usize) {
        let f = self.width;
        self.convolution(&format!("{ours}.first"), [2, columns, 2 * f, f]);
        if skips > 0 {
            self.dense(&format!("{ours}.skip"), [2 * f * skips, f]);
        }
        self.convolution(&format!("{ours}.second"), [2, columns, 2 * f, 2 * f]);
        if let Some(classes) = self.classes {
            let theirs = self.next(Kind::Class);
            let weight = self.map.take(&format!("{theirs}/hw"), &[classes, 2 * f]);
            self.map.put(format!("{ours}.classes.weight"), weight);
        }
    }

    /// Rows, columns, inputs, outputs.
    fn convolution(&mut self, ours: &str, shape: [usize; 4]) {
        let theirs = self.next(Kind::Convolution);
        let weight = self.normed(&theirs, &shape, &[3, 2, 0, 1], LEAST_SQUARE);
        self.layer(ours, &theirs, weight, shape[3]);
    }

    /// Rows, columns, outputs, inputs.
    fn transposed(&mut self, ours: &str, shape: [usize; 4]) {
        let theirs = self.next(Kind::Transposed);
        let weight = self.normed(&theirs, &shape, &[2, 3, 0, 1], LEAST_SQUARE);
        // Ours are stored with their inputs first.
        let weight = weight.and_then(|weight| weight.permuted(&[1, 0, 2, 3]));
        self.layer(ours, &theirs, weight, shape[2]);
    }

    /// A linear map over the features of a pixel, as a convolution of 1 x 1.
    fn dense(&mut self, ours: &str, [inputs, outputs]: [usize; 2]) {
        let theirs = self.next(Kind::Dense);
        let weight = self.normed(&theirs, &[inputs, outputs], &[1, 0], 0.0);
        let weight = weight.and_then(|weight| weight.reshaped(&[outputs, inputs, 1, 1]));
        self.layer(ours, &theirs, weight, outputs);
    }

    /// The name of the next layer of `kind`.
    fn next(&mut self, kind: Kind) -> String {
        let name = match kind {
            Kind::Convolution => "conv2d",
            Kind::Transposed => "deconv2d",
            Kind::Dense => "dense",
            Kind::Class => "conditional_weights",
        };
        let Some(count) = self.counts.get_mut(kind as usize) else { return String::new() };
        *count += 1;
        format!("{name}_{}", *count - 1)
    }

    /// The weights of `theirs` in the order of dimensions that has their outputs first, weight norm folded.
    fn normed(&mut self, theirs: &str, shape: &[usize], order: &[usize], least_square: f64) -> Option<Tensor> {
        let outputs = *shape.get(*order.first()?)?;
        let (v, g) = (self.map.take(&format!("{theirs}/V"), shape), self.map.take(&format!("{theirs}/g"), &[outputs]));
        v?.permuted(order)?.normed(&g?, least_square)
    }

    fn layer(&mut self, ours: &str, theirs: &str, weight: Option<Tensor>, outputs: usize) {
        self.map.put(format!("{ours}.weight"), weight);
        let bias = self.map.take(&format!("{theirs}/b"), &[outputs]);
        self.map.put(format!("{ours}.bias"), bias);
    }
}
