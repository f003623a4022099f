//! ImageGPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a decoder-only transformer over the values of an
//! image in raster order, each of which sees all before it.
//!
//! Value r is predicted from the token of value r - 1 (before the first, that of the start) and the position r. A layer
//! is x + attention(norm(x)) and then x + W_contract f(W_expand norm(x) + b) + b'; the norm divides by the root of the
//! mean square and does nothing else but scale. Keys and values of every value lie in a ring as long as the image.

use std::ops::Range;
use std::slice;

use tch::{TchError, Tensor};

use crate::decode::torch::Torch;
use crate::decode::{
    self, Activation, Attention, Builder, Decoder, Linear, Network, Normalisation, ProgramId, Register, Ring, Row,
    Rows, Sight,
};
use crate::error::Violations;
use crate::head::Head;
use crate::image::{Canvas, Order, Rank, Shape};
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;
use crate::model::{
    Condition, Family, ModelError, ParamRows, PixelModel, Placement, ScoreRow, Slot, StepRow, TensorSpec, WeightsFile,
};
use crate::spec::{Execution, ModelSpec};
use crate::torch::weights::Weights;

/// The family.
pub const FAMILY: Family = Family {
    name: "image_gpt",
    summary: "ImageGPT: full causal attention over a sequence of values (Chen et al. 2020)",
    tensors: |manifest| Ok(Config::read(manifest)?.tensors()),
    build: |manifest, file, placement| Ok(Box::new(ImageGpt::new(manifest, file, placement)?)),
};

const MAX_LAYERS: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 16;
/// Ranks of an image that libtorch takes at once.
const BLOCK: u32 = 128;
/// Floats that one intermediate tensor of such a block may hold.
const MAX_FLOATS: u32 = 1 << 24;

/// A checked configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Config {
    shape: Shape,
    layers: u32,
    model_width: u32,
    heads: u32,
    feed_forward_width: u32,
    activation: Activation,
    /// Added to the mean square in the norms.
    epsilon: f64,
    /// What attention divides its scores by.
    score_divisor: f64,
    /// Whether attention divides its scores by the number of the layer, too, counted from 1.
    scale_by_layer: bool,
}

impl Config {
    /// Reads the `architecture` table of `manifest`, and refuses what this family does not have.
    fn read(manifest: &Manifest) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
        let config = Self::read_fields(manifest, &mut fields);
        fields.finish();
        if manifest.order != Order::Raster {
            violations.add("image.order", "must be \"raster\" in this family");
        }
        if manifest.head != Head::Categorical {
            violations.add("head.kind", "must be \"categorical\" in this family");
        }
        if manifest.condition.classes > 0 || manifest.condition.low.is_some() {
            violations
                .add("condition", "is not for this family, which takes neither classes nor low-resolution images");
        }
        match config {
            Some(config) => violations.into_result(config),
            None => Err(violations),
        }
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Self> {
        let layers = fields.number("layers", 1..=MAX_LAYERS);
        let model_width = fields.number("model_width", 1..=MAX_WIDTH);
        let heads = fields.number("heads", 1..=MAX_WIDTH);
        let feed_forward_width = fields.number("feed_forward_width", 1..=MAX_WIDTH);
        let activations = [
            ("gelu", Activation::Gelu),
            ("gelu_sigmoid", Activation::GeluSigmoid),
            ("gelu_tanh", Activation::GeluTanh),
            ("relu", Activation::Relu),
        ];
        let activation = fields.word("activation", &activations);
        let epsilon: Option<f64> = fields.required("epsilon");
        let score_divisor: Option<f64> = fields.optional("score_divisor");
        let scale_by_layer = fields.required("scale_by_layer");
        if let (Some(width), Some(heads)) = (model_width, heads)
            && width % heads != 0
        {
            fields.refuse("model_width", format!("must be a multiple of the {heads} heads, got {width}"));
        }
        if let Some(epsilon) = epsilon.filter(|epsilon| !(0.0..=1.0).contains(epsilon)) {
            fields.refuse("epsilon", format!("must be 0..=1, got {epsilon}"));
        }
        if let Some(divisor) = score_divisor.filter(|divisor| !(1e-3..=1e3).contains(divisor)) {
            fields.refuse("score_divisor", format!("must be 0.001..=1000, got {divisor}"));
        }
        let (model_width, heads) = (model_width?, heads?);
        Some(Self {
            shape: manifest.shape,
            layers: layers?,
            model_width,
            heads,
            feed_forward_width: feed_forward_width?,
            activation: activation?,
            epsilon: epsilon?,
            score_divisor: score_divisor.unwrap_or(f64::from(model_width / heads).sqrt()),
            scale_by_layer: scale_by_layer?,
        })
    }

    /// Every tensor of the weights file. The last token is that of the start.
    fn tensors(&self) -> Vec<TensorSpec> {
        let (d, wide, levels) = (self.model_width, self.feed_forward_width, self.shape.levels());
        let tensor = |name: &str, shape: &[u32]| TensorSpec {
            name: name.to_owned(),
            shape: shape.iter().map(|&length| length.into()).collect(),
        };
        let mut tensors =
            vec![tensor("tokens.weight", &[levels + 1, d]), tensor("positions.weight", &[self.shape.values(), d])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[u32]| tensors.push(tensor(&format!("layers.{layer}.{name}"), shape));
            add("attention_norm.weight", &[d]);
            for part in ["query", "key", "value", "output"] {
                add(&format!("attention.{part}.weight"), &[d, d]);
                add(&format!("attention.{part}.bias"), &[d]);
            }
            add("feed_forward_norm.weight", &[d]);
            for (part, [outputs, inputs]) in [("expand", [wide, d]), ("contract", [d, wide])] {
                add(&format!("feed_forward.{part}.weight"), &[outputs, inputs]);
                add(&format!("feed_forward.{part}.bias"), &[outputs]);
            }
        }
        tensors.extend([tensor("norm.weight", &[d]), tensor("head.weight", &[levels, d])]);
        tensors
    }

    /// Where a block of ranks from `from` on ends, for `images` images and about `rows_wanted` rows.
    fn block_end(&self, images: usize, from: Rank, rows_wanted: u32) -> Rank {
        // Attention scores are what grows: for every row, one for each head and place.
        let row = self.heads.saturating_mul(self.shape.values()).max(self.feed_forward_width).max(self.shape.levels());
        let most = (MAX_FLOATS / row).min(rows_wanted) / (images as u32).max(1);
        from.saturating_add(most.clamp(1, BLOCK)).min(self.shape.values())
    }

    /// Adds a row for each of `ranks` of the image in `slot`. `values` are those before the last of them, at least.
    fn push(&self, rows: &mut Rows, slot: Slot, values: &[u16], ranks: Range<Rank>) {
        let levels = self.shape.levels();
        for rank in ranks {
            let before = rank.checked_sub(1).and_then(|before| values.get(before as usize));
            let token = before.map_or(levels, |&value| value.into());
            let (inputs, seen) = ([token, levels + 1 + rank], 0..rank + 1);
            rows.push(Row {
                slot: slot.0,
                inputs: &inputs,
                place: rank,
                seen: slice::from_ref(&seen),
                ..Row::default()
            });
        }
    }
}

/// The network as a program: one row is one rank of one image.
fn network(weights: &mut Weights, config: &Config, placement: Placement) -> Result<(Network, ProgramId), TchError> {
    let mut network = Network::new(placement.precision, placement.device);
    let head_width = config.model_width / config.heads;
    let attention = Attention { heads: config.heads, head_key: head_width, head_value: head_width };
    let rings: Vec<Ring> = (0..config.layers).map(|_| network.ring(attention, config.shape.values())).collect();
    let mut layers = Layers { program: network.program(), weights, config };
    let table = [layers.weights.take("tokens.weight")?, layers.weights.take("positions.weight")?];
    let mut x = layers.program.embed(Tensor::f_cat(&table, 0)?)?;
    for (layer, &ring) in (0..).zip(&rings) {
        x = layers.layer(layer, ring, x)?;
    }
    x = layers.normalise("norm", x)?;
    let weight = layers.weights.take("head.weight")?;
    let logits = layers.program.linear(x, Linear { weight, ..Linear::default() })?;
    let step = layers.program.finish(Some(logits))?;
    Ok((network, step))
}

/// A program in the making, with the weights it takes.
struct Layers<'n, 'w> {
    program: Builder<'n>,
    weights: &'w mut Weights,
    config: &'w Config,
}

impl Layers<'_, '_> {
    fn layer(&mut self, layer: u32, ring: Ring, x: Register) -> Result<Register, TchError> {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let normal = self.normalise(&name("attention_norm"), x)?;
        let [key, value] = ["key", "value"].map(|part| self.affine(&name(&format!("attention.{part}"))));
        let (key, value) = (key?, value?);
        let weight = Tensor::f_cat(&[key.weight, value.weight], 0)?;
        let bias = key.bias.zip(value.bias).map(|(key, value)| Tensor::f_cat(&[key, value], 0)).transpose()?;
        let remembered = self.program.linear(normal, Linear { weight, bias, ..Linear::default() })?;
        self.program.store(remembered, ring)?;
        let query = self.affine(&name("attention.query"))?;
        let Config { score_divisor, scale_by_layer, .. } = *self.config;
        let scale = 1.0 / (score_divisor * if scale_by_layer { f64::from(layer + 1) } else { 1.0 });
        let weight = query.weight.f_mul_scalar(scale)?;
        let bias = query.bias.map(|bias| bias.f_mul_scalar(scale)).transpose()?;
        let query = self.program.linear(normal, Linear { weight, bias, ..Linear::default() })?;
        let attended = self.program.look(query, ring, Sight::Seen)?;
        let output = self.affine(&name("attention.output"))?;
        let x = self.program.linear(attended, Linear { residual: Some(x), ..output })?;
        let normal = self.normalise(&name("feed_forward_norm"), x)?;
        let expand = self.affine(&name("feed_forward.expand"))?;
        let hidden = self.program.linear(normal, expand)?;
        let active = self.program.activate(hidden, self.config.activation)?;
        let contract = self.affine(&name("feed_forward.contract"))?;
        self.program.linear(active, Linear { residual: Some(x), ..contract })
    }

    fn affine(&mut self, name: &str) -> Result<Linear, TchError> {
        let weight = self.weights.take(&format!("{name}.weight"))?;
        let bias = Some(self.weights.take(&format!("{name}.bias"))?);
        Ok(Linear { weight, bias, ..Linear::default() })
    }

    fn normalise(&mut self, name: &str, from: Register) -> Result<Register, TchError> {
        let scale = self.weights.take(&format!("{name}.weight"))?;
        self.program.normalise(from, Normalisation { scale, shift: None, epsilon: self.config.epsilon })
    }
}

struct ImageGpt {
    spec: ModelSpec,
    config: Config,
    step: ProgramId,
    decoder: Box<dyn Decoder>,
    /// Kept from one evaluation to the next for their room.
    rows: Rows,
    pass: Pass,
}

/// The state of a scoring pass between its slices.
struct Pass {
    decoder: Box<dyn Decoder>,
    capacity: u32,
    images: usize,
    reached: Rank,
}

impl Pass {
    fn new(decoder: Box<dyn Decoder>, capacity: u32) -> Self {
        Self { decoder, capacity, images: 0, reached: 0 }
    }

    fn check(&self, shape: Shape, rows: &[ScoreRow<'_>], from: Rank) -> Result<(), ModelError> {
        let fault = if rows.is_empty() || rows.len() > self.capacity as usize {
            format!("a scoring pass takes 1 to {} images, got {}", self.capacity, rows.len())
        } else if from != 0 && (from != self.reached || rows.len() != self.images) {
            format!("no scoring pass of {} images stands at rank {from}", rows.len())
        } else if from >= shape.values() || !rows.iter().all(|row| row.canvas.is_complete()) {
            "only complete images can be scored, and only once".to_owned()
        } else {
            return Ok(());
        };
        Err(ModelError::Step(fault))
    }
}

impl ImageGpt {
    fn new(manifest: &Manifest, file: Option<WeightsFile<'_>>, placement: Placement) -> Result<Self, Violations> {
        let config = Config::read(manifest)?;
        let Some(file) = file else { return Err(Violations::one("weights", "are required")) };
        let mut weights = Weights::load(file, &config.tensors())?;
        let spec = manifest.spec(FAMILY.name, placement, 0);
        Self::assemble(spec, config, &mut weights, placement)
            .map_err(|error| Violations::one("architecture", error.to_string()))
    }

    fn assemble(
        mut spec: ModelSpec,
        config: Config,
        weights: &mut Weights,
        placement: Placement,
    ) -> Result<Self, ModelError> {
        let _guard = tch::no_grad_guard();
        let (network, step) = network(weights, &config, placement)?;
        let decoder = decode::decoder(&network, placement.backend, placement.slots)?;
        spec.bytes_per_slot = network.state_bytes();
        spec.execution = Execution {
            carries_state: false,
            recomputes: false,
            backend: placement.backend,
            device: placement.device,
            precision: placement.precision,
            absorbs_exactly: decoder.rows_are_invariant(),
            cost: network.cost(step, f64::from(config.shape.values() + 1) / 2.0),
            weight_bytes: network.weight_bytes(),
        };
        let capacity = placement.score_images.max(1);
        let pass = Pass::new(Box::new(Torch::parallel(&network, capacity)?), capacity);
        Ok(Self { spec, config, step, decoder, rows: Rows::default(), pass })
    }
}

impl PixelModel for ImageGpt {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn open(&mut self, slot: Slot, _condition: &Condition) -> Result<(), ModelError> {
        self.decoder.clear(slot)
    }

    fn absorb(
        &mut self,
        slot: Slot,
        canvas: &Canvas,
        known: Range<Rank>,
        out: &mut ParamRows,
    ) -> Result<(), ModelError> {
        if known.end > canvas.known() {
            return Err(ModelError::Step(format!("ranks {known:?} of {} are to be taken in", canvas.known())));
        }
        let (width, mut from) = (out.width(), known.start);
        let mut rest = out.resize(known.len());
        while from < known.end {
            let upto = self.config.block_end(1, from, u32::MAX).min(known.end);
            let (block, remaining) = rest.split_at_mut((upto - from) as usize * width);
            self.rows.clear();
            self.config.push(&mut self.rows, slot, canvas.values(), from..upto);
            self.decoder.run(self.step, &self.rows, block)?;
            (rest, from) = (remaining, upto);
        }
        Ok(())
    }

    fn step(&mut self, rows: &[StepRow<'_>], out: &mut ParamRows) -> Result<(), ModelError> {
        self.rows.clear();
        for StepRow { slot, canvas } in rows {
            if canvas.is_complete() {
                return Err(ModelError::Step(format!("the image in {slot:?} is complete")));
            }
            let rank = canvas.known();
            self.config.push(&mut self.rows, *slot, canvas.values(), rank..rank + 1);
        }
        self.decoder.run(self.step, &self.rows, out.resize(rows.len()))
    }

    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        from: Rank,
        rows_wanted: u32,
        out: &mut ParamRows,
    ) -> Result<Rank, ModelError> {
        let Self { config, step, pass, rows: batch, .. } = self;
        pass.check(config.shape, rows, from)?;
        if from == 0 {
            (0..rows.len() as u32).try_for_each(|slot| pass.decoder.clear(Slot(slot)))?;
            pass.images = rows.len();
        }
        // Whatever fails from here on, the pass cannot go on.
        pass.reached = Rank::MAX;
        let reached = config.block_end(rows.len(), from, rows_wanted);
        batch.clear();
        for (slot, row) in (0..).zip(rows) {
            config.push(batch, Slot(slot), row.canvas.values(), from..reached);
        }
        pass.decoder.run(*step, batch, out.resize(batch.len()))?;
        pass.reached = reached;
        Ok(reached)
    }

    fn close(&mut self, _slot: Slot) {}

    fn shard(&self, slots: u32) -> Result<Box<dyn PixelModel>, ModelError> {
        Ok(Box::new(Self {
            spec: ModelSpec { slots, ..self.spec.clone() },
            config: self.config,
            step: self.step,
            decoder: self.decoder.another(slots)?,
            rows: Rows::default(),
            pass: Pass::new(self.pass.decoder.another(self.pass.capacity)?, self.pass.capacity),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format = 1\nname = \"t\"\nfamily = \"image_gpt\"\n[image]\nheight = 2\nwidth = 2\nchannels = 1\n\
                        levels = 5\norder = \"raster\"\n[head]\nkind = \"categorical\"\n[architecture]\nlayers = 1\n\
                        model_width = 8\nheads = 2\nfeed_forward_width = 12\nactivation = \"gelu\"\nepsilon = 1e-5\n\
                        score_divisor = 1.5\nscale_by_layer = false\n";

    fn read(text: &str) -> Result<Config, Violations> {
        Config::read(&Manifest::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn every_fault_of_the_manifest_is_named() {
        assert_eq!(read(GOOD).unwrap().score_divisor, 1.5);
        assert_eq!(read(&GOOD.replace("score_divisor = 1.5\n", "")).unwrap().score_divisor, 2.0, "of heads 4 wide");
        let text = GOOD
            .replace("\"raster\"", "\"block_raster\"\nblock_height = 1\nblock_width = 1\nblock_unit = \"values\"")
            .replace(
                "\"categorical\"",
                "\"logistic_mixture\"\ncomponents = 1\nlayout = \"saha\"\n[condition]\nclasses = 2",
            )
            .replace("layers = 1", "layers = 0\ndepth = 1")
            .replace("heads = 2", "heads = 3")
            .replace("\"gelu\"", "\"swish\"")
            .replace("1e-5", "-1.0")
            .replace("1.5", "0")
            .replace("scale_by_layer = false\n", "");
        let mut found: Vec<_> = read(&text).unwrap_err().iter().map(|violation| violation.field.clone()).collect();
        found.sort();
        let architecture =
            ["activation", "depth", "epsilon", "layers", "model_width", "scale_by_layer", "score_divisor"]
                .map(|key| format!("architecture.{key}"));
        assert_eq!(found[..7], architecture);
        assert_eq!(found[7..], ["condition", "head.kind", "image.order"]);
    }

    #[test]
    fn a_block_is_never_all_queries_of_a_long_image() {
        let config = read(&GOOD.replace("height = 2", "height = 512"));
        let config = config.unwrap();
        assert_eq!(config.block_end(1, 0, u32::MAX), BLOCK);
        assert_eq!(config.block_end(4, 500, 256), 564);
        assert_eq!(config.block_end(1, 1020, u32::MAX), 1024);
        assert_eq!(config.block_end(1000, 0, 0), 1, "a slice has a rank at least");
    }
}
