//! PixelCNN++ as the PyTorch port pclucas14/pixel-cnn-pp saves it: `model.state_dict()` of its class `PixelCNN`.
//!
//! The network is ours under other names. Its layers carry weight norm, which is folded; that of its transposed convolutions is
//! over the slices of their inputs, since that is their first dimension in PyTorch. Its 1 x 1 convolutions are linear maps. The
//! parameters of a pixel stand in the order of OpenAI's code; with one channel that order is ours.

use super::package::{Draft, number};
use super::{Renaming, Tensor, Tensors};
use crate::error::Violations;

/// The name of the last layer's bias, of which every checkpoint tells its mixture.
const HEAD: &str = "nin_out.lin_a";

/// What a state dict does not tell.
#[derive(Clone, Copy, Debug)]
pub struct PixelCnnPp {
    /// Rows of the images.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// What it tells.
struct Sizes {
    width: usize,
    channels: usize,
    blocks: usize,
    parameters: usize,
}

impl PixelCnnPp {
    /// The package that `tensors` make.
    ///
    /// # Errors
    /// Every tensor by which they differ from such a state dict.
    pub fn draft(self, tensors: Tensors) -> Result<Draft, Violations> {
        let sizes = sizes(&tensors)?;
        let (numbers, layout) = if sizes.channels == 1 { (3, "saha") } else { (10, "oai") };
        let components = sizes.parameters / numbers;
        if sizes.parameters == 0 || sizes.parameters % numbers != 0 {
            let why =
                format!("must have {numbers} numbers for each component of the mixture, got {}", sizes.parameters);
            return Err(Violations::one(format!("tensors.{HEAD}.bias"), why));
        }
        let tensors = rename(Renaming::new(tensors), &sizes)?;
        let image = vec![
            ("height", self.height.into()),
            ("width", self.width.into()),
            ("channels", number(sizes.channels)),
            ("levels", 256.into()),
            ("order", "raster".into()),
        ];
        let head =
            vec![("kind", "logistic_mixture".into()), ("components", number(components)), ("layout", layout.into())];
        let architecture = vec![("stream_width", number(sizes.width)), ("blocks", number(sizes.blocks))];
        Ok(Draft {
            family: "pixel_cnn_pp",
            description: "PixelCNN++, from a state dict of pclucas14/pixel-cnn-pp".to_owned(),
            tables: vec![("image", image), ("head", head), ("architecture", architecture)],
            tensors,
        })
    }
}

fn sizes(tensors: &Tensors) -> Result<Sizes, Violations> {
    let shape = |name: &str| tensors.get(name).map(|tensor| tensor.shape.as_slice());
    let missing = |name: &str| {
        let why = "is missing or of another rank: the checkpoint is no state dict of this format";
        Violations::one(format!("tensors.{name}"), why)
    };
    // With weight norm, or after it was removed.
    let first = ["u_init.conv.weight_v", "u_init.conv.weight"];
    let Some(&[width, inputs, 2, 3]) = first.into_iter().find_map(shape) else { return Err(missing(first[0])) };
    let bias = format!("{HEAD}.bias");
    let Some(&[parameters]) = shape(&bias) else { return Err(missing(&bias)) };
    let channels = inputs.saturating_sub(1);
    if ![1, 3].contains(&channels) {
        let why =
            format!("must be of images with 1 or 3 channels, for which the port has a likelihood, got {channels}");
        return Err(Violations::one(format!("tensors.{}", first[0]), why));
    }
    let has_block = |block: &usize| tensors.contains_key(&format!("up_layers.0.u_stream.{block}.conv_input.conv.bias"));
    let blocks = (0..tensors.len()).take_while(has_block).count();
    Ok(Sizes { width, channels, blocks, parameters })
}

fn rename(mut map: Renaming, sizes: &Sizes) -> Result<Tensors, Violations> {
    let (f, inputs) = (sizes.width, sizes.channels + 1);
    convolution(&mut map, "input.u", "u_init.conv", [f, inputs, 2, 3]);
    convolution(&mut map, "input.above", "ul_init.0.conv", [f, inputs, 1, 3]);
    convolution(&mut map, "input.left", "ul_init.1.conv", [f, inputs, 2, 1]);
    linear(&mut map, "head", HEAD, [sizes.parameters, f]);
    for (stream, columns) in [("u", 3), ("ul", 2)] {
        for i in 0..2 {
            let shape = [f, f, 2, columns];
            convolution(
                &mut map,
                &format!("shrink.{i}.{stream}"),
                &format!("downsize_{stream}_stream.{i}.conv"),
                shape,
            );
            convolution(&mut map, &format!("grow.{i}.{stream}"), &format!("upsize_{stream}_stream.{i}.deconv"), shape);
        }
        for (way, stage) in ["up", "down"].into_iter().flat_map(|way| (0..3).map(move |stage| (way, stage))) {
            let down = way == "down";
            let skips = usize::from(stream == "ul") + usize::from(down);
            for block in 0..sizes.blocks + usize::from(down && stage > 0) {
                let ours = format!("{way}.{stage}.{block}.{stream}");
                let theirs = format!("{way}_layers.{stage}.{stream}_stream.{block}");
                let mut layer = |to: &str, from: &str, outputs| {
                    let shape = [outputs, 2 * f, 2, columns];
                    convolution(&mut map, &format!("{ours}.{to}"), &format!("{theirs}.{from}.conv"), shape);
                };
                layer("first", "conv_input", f);
                layer("second", "conv_out", 2 * f);
                if skips > 0 {
                    let shape = [f, 2 * f * skips];
                    linear(&mut map, &format!("{ours}.skip"), &format!("{theirs}.nin_skip.lin_a"), shape);
                }
            }
        }
    }
    map.finish()
}

/// A convolution, transposed or not. All are square in their features but those whose first dimension is their outputs.
fn convolution(map: &mut Renaming, ours: &str, theirs: &str, shape: [usize; 4]) {
    let weight = map.take_normed(theirs, &shape);
    layer(map, ours, theirs, weight, shape[0]);
}

/// A linear map over the features of a pixel, as a convolution of 1 x 1.
fn linear(map: &mut Renaming, ours: &str, theirs: &str, [outputs, inputs]: [usize; 2]) {
    let weight = map.take_normed(theirs, &[outputs, inputs]);
    let weight = weight.and_then(|weight| weight.reshaped(&[outputs, inputs, 1, 1]));
    layer(map, ours, theirs, weight, outputs);
}

fn layer(map: &mut Renaming, ours: &str, theirs: &str, weight: Option<Tensor>, outputs: usize) {
    map.put(format!("{ours}.weight"), weight);
    let bias = map.take(&format!("{theirs}.bias"), &[outputs]);
    map.put(format!("{ours}.bias"), bias);
}
