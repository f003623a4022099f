//! `model.toml`: what a package says about itself, read and checked; a `Manifest` that exists is consistent.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use toml::Table;

use super::fields::Fields;
use super::registry::Placement;
use super::weights::WeightsFormat;
use crate::error::Violations;
use crate::head::{Head, Layout, MAX_COMPONENTS};
use crate::image::{Blocks, MAX_VALUES, Order, Palette, Shape};
use crate::spec::{ConditionSpec, Execution, ModelSpec};

/// Version of the manifest's format that is read here.
pub const FORMAT: u32 = 1;
const MAX_NAME: usize = 64;
/// Parameters of a row at most: as many as a categorical head can have.
const MAX_PARAMETERS: usize = 1 << 16;

/// A parsed and checked manifest. The family's own table is checked by the family.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Name of the package: 1 to 64 of `a-z 0-9 . _ -`, not beginning with a dot.
    pub name: String,
    /// The first 16 hex digits of the SHA-256 over the manifest's bytes followed by the weights' SHA-256, if it names any.
    pub revision: String,
    /// Name of the family.
    pub family: String,
    /// One line for people; empty if it says none.
    pub description: String,
    /// Geometry of every image.
    pub shape: Shape,
    /// Colours of its levels, if levels are not brightness.
    pub palette: Option<Arc<Palette>>,
    /// Order of generation.
    pub order: Order,
    /// Values that a unit of widths along a row of blocks counts: 1, or the channels of a pixel.
    pub width_unit: u32,
    /// Output law.
    pub head: Head,
    /// Order in which the weights file holds the parameters of a mixture.
    pub layout: Layout,
    /// Conditioning.
    pub condition: ConditionSpec,
    /// The package that draws the low-resolution image of a request that brings none.
    pub low_model: Option<String>,
    /// The family's own table.
    pub architecture: Table,
    /// The weights file, for families that have weights.
    pub weights: Option<Weights>,
    /// What the weights were trained on.
    pub data: Data,
    /// How they were trained: `script`, `seed`, `seconds`, `parameters` and any further plain values.
    pub training: Table,
    /// What was measured.
    pub results: Results,
    /// Known answers, checked when the package is loaded.
    pub golden: Golden,
}

/// Where the weights are and what they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Plain name of a file in the package.
    pub file: String,
    /// Its format, from the name's ending: `.pt` or `.safetensors`.
    pub format: WeightsFormat,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
}

/// Provenance of the training data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// Where it came from.
    pub source: Option<String>,
    /// Under what licence.
    pub licence: Option<String>,
    /// How it was divided.
    pub split: Option<String>,
}

/// Measured quality.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Results {
    /// Images measured on.
    pub held_out_images: Option<u64>,
    /// Mean over them.
    pub held_out_bits_per_dim: Option<f64>,
}

/// Known answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// Images and their likelihoods.
    pub scores: Vec<GoldenScore>,
    /// Seeds and what they sample.
    pub samples: Vec<GoldenSample>,
}

/// An image of known likelihood.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenScore {
    /// Its values in raster order.
    pub values: Vec<u16>,
    /// Its class.
    pub class: Option<u32>,
    /// Its low-resolution image, values in raster order.
    pub low: Option<Arc<[u16]>>,
    /// Its total negative log-likelihood.
    pub nats: f64,
}

/// A seed of known outcome, at temperature 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldenSample {
    /// Seed of the noise.
    pub seed: u64,
    /// Index of the image in the noise key.
    pub image: u32,
    /// Its class.
    pub class: Option<u32>,
    /// Its low-resolution image, values in raster order.
    pub low: Option<Arc<[u16]>>,
    /// CRC-32C over the raw values in raster order.
    pub crc32c: u32,
}

impl Manifest {
    /// Reads and checks the text of a `model.toml`.
    ///
    /// # Errors
    /// Every fault, each under the path of its key; only what is not TOML at all hides the rest.
    pub fn parse(text: &[u8]) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let table = match parse_table(text) {
            Ok(table) => table,
            Err(why) => {
                violations.add("model.toml", why);
                return Err(violations);
            }
        };
        let mut fields = Fields::new("", table, &mut violations);
        let manifest = read(&mut fields);
        fields.finish();
        match manifest {
            Some(mut manifest) => {
                manifest.revision = revision(text, manifest.weights.as_ref());
                violations.into_result(manifest)
            }
            None => Err(violations),
        }
    }

    /// What a model of this package promises, built as `family` in `placement`.
    #[must_use]
    pub fn spec(&self, family: &'static str, placement: Placement, bytes_per_slot: u64) -> ModelSpec {
        ModelSpec {
            name: self.name.clone(),
            revision: self.revision.clone(),
            description: self.description.clone(),
            family,
            shape: self.shape,
            palette: self.palette.clone(),
            order: self.order,
            head: self.head,
            condition: self.condition,
            low_model: self.low_model.clone(),
            slots: placement.slots,
            bytes_per_slot,
            held_out_bits_per_dim: self.results.held_out_bits_per_dim,
            execution: Execution::default(),
        }
    }
}

fn parse_table(text: &[u8]) -> Result<Table, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("must be UTF-8: {error}"))?;
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count() + 1, error.message())
    })
}

fn revision(text: &[u8], weights: Option<&Weights>) -> String {
    let mut hash = Sha256::new();
    hash.update(text);
    hash.update(weights.map(|weights| weights.sha256).as_ref().map_or(&[][..], |digest| digest));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Every part is read before any missing one ends it, so that no fault hides another.
fn read(fields: &mut Fields<'_>) -> Option<Manifest> {
    fields.number("format", FORMAT..=FORMAT);
    let name = name(fields);
    let family = fields.required("family");
    let description = fields.optional("description").unwrap_or_default();
    let image = fields.required_table("image", image);
    let shape = image.as_ref().map(|image| image.shape);
    let head = fields.required_table("head", |fields| head(fields, shape));
    let condition = fields.table("condition", |fields| condition(fields, shape));
    let architecture = fields.required("architecture");
    let weights = fields.table("weights", weights);
    let data = fields.table("data", data).unwrap_or_default();
    let training = fields.table("training", training).unwrap_or_default();
    let results = fields.table("results", results).unwrap_or_default();
    let (condition, low_model) = condition.unwrap_or_default();
    let golden = fields.table("golden", |fields| match shape {
        Some(shape) => Some(golden(fields, shape, condition)),
        // Nothing to check the answers against.
        None => fields.rest().is_empty().then(Golden::default),
    });
    let (Image { shape, palette, order, width_unit }, (head, layout)) = (image?, head?);
    if palette.is_some() && condition.low.is_some() {
        fields.refuse("image.palette", "is not for images that are made from low-resolution ones");
    }
    Some(Manifest {
        name: name?,
        revision: String::new(),
        family: family?,
        description,
        shape,
        palette,
        order,
        width_unit,
        head,
        layout,
        condition,
        low_model,
        architecture: architecture?,
        weights,
        data,
        training,
        results,
        golden: golden.unwrap_or_default(),
    })
}

fn name(fields: &mut Fields<'_>) -> Option<String> {
    let name: String = fields.required("name")?;
    match check_name(&name) {
        Ok(()) => Some(name),
        Err(rule) => {
            fields.refuse("name", rule);
            None
        }
    }
}

/// Whether a package may be called `name`.
///
/// # Errors
/// The rule, if not.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') {
        return Ok(());
    }
    Err(format!("must be 1 to {MAX_NAME} of a-z 0-9 . _ - and not begin with a dot, got {name:?}"))
}

/// What the table of that name says; see [`Manifest`].
struct Image {
    shape: Shape,
    palette: Option<Arc<Palette>>,
    order: Order,
    width_unit: u32,
}

fn image(fields: &mut Fields<'_>) -> Option<Image> {
    let sizes = ["height", "width", "channels", "levels"].map(|key| fields.required::<u32>(key));
    let in_blocks = fields.word("order", &[("raster", false), ("block_raster", true)]);
    let block = (in_blocks == Some(true)).then(|| {
        let sizes = ["block_height", "block_width"].map(|key| fields.number(key, 1..=MAX_VALUES));
        (sizes, fields.word("block_unit", &[("values", false), ("pixels", true)]))
    });
    let colours: Option<Vec<[f64; 3]>> = fields.optional("palette");
    let [height, width, channels, levels] = sizes;
    let shape = match Shape::new(height?, width?, channels?, levels?) {
        Ok(shape) => shape,
        Err(violations) => {
            fields.refuse_all(violations);
            return None;
        }
    };
    let palette = colours.map(|colours| Palette::new(colours, shape)).transpose();
    let palette = palette.map_err(|rule| fields.refuse("palette", rule)).unwrap_or_default().map(Arc::new);
    in_blocks?;
    let Some(([height, width], in_pixels)) = block else {
        return Some(Image { shape, palette, order: Order::Raster, width_unit: 1 });
    };
    let width_unit = if in_pixels? { shape.channels() } else { 1 };
    match Blocks::new(shape, height?, width?.saturating_mul(width_unit)) {
        Ok(blocks) => Some(Image { shape, palette, order: Order::BlockRaster(blocks), width_unit }),
        Err(violations) => {
            fields.refuse_all(violations);
            None
        }
    }
}

fn head(fields: &mut Fields<'_>, shape: Option<Shape>) -> Option<(Head, Layout)> {
    let mixture = Head::LogisticMixture { components: 1 };
    let kinds = [
        ("categorical", Head::Categorical),
        ("factorised_categorical", Head::FactorisedCategorical),
        ("logistic_mixture", mixture),
    ];
    let kind = fields.word("kind", &kinds)?;
    if kind != mixture {
        if let Some(width) = shape.map(|shape| kind.width(shape)).filter(|&width| width > MAX_PARAMETERS) {
            fields.refuse("kind", format!("may take {MAX_PARAMETERS} parameters a pixel; these are {width}"));
        }
        return Some((kind, Layout::default()));
    }
    let components = fields.number("components", 1..=MAX_COMPONENTS);
    let layouts = [("saha", Layout::Saha), ("oai", Layout::Oai), ("t2t", Layout::T2t)];
    let layout = fields.word("layout", &layouts);
    let (head, layout, shape) = (Head::LogisticMixture { components: components? }, layout?, shape?);
    if !layout.suits(shape) {
        fields.refuse("layout", format!("is only for 3 channels, the image has {}", shape.channels()));
    }
    if head.width(shape) > MAX_PARAMETERS {
        let (channels, width) = (shape.channels(), head.width(shape));
        fields.refuse(
            "components",
            format!("may take {MAX_PARAMETERS} parameters a pixel; with {channels} channels these take {width}"),
        );
    }
    Some((head, layout))
}

/// The conditioning, and the package that draws low-resolution images.
fn condition(fields: &mut Fields<'_>, shape: Option<Shape>) -> Option<(ConditionSpec, Option<String>)> {
    // Whoever names a package that draws the image must say how large it is.
    let has_low = ["low_height", "low_width", "low_model"].iter().any(|key| fields.has(key));
    let (mut spec, mut classes) = (ConditionSpec::default(), Some(0));
    // A table that says nothing at all is a mistake.
    if !has_low || fields.has("classes") || fields.has("required") {
        classes = fields.number("classes", 1..=u32::MAX);
        spec.class_required = fields.optional("required").unwrap_or(false);
    }
    let low_model: Option<String> = fields.optional("low_model");
    if let Some(Err(rule)) = low_model.as_deref().map(check_name) {
        fields.refuse("low_model", rule);
    }
    if has_low {
        let sizes = ["low_height", "low_width"].map(|key| fields.number(key, 1..=MAX_VALUES));
        let ([Some(height), Some(width)], Some(shape)) = (sizes, shape) else { return None };
        spec.low = Shape::new(height, width, shape.channels(), shape.levels()).ok();
        if spec.low.is_none() {
            let values = u128::from(height) * u128::from(width) * u128::from(shape.channels());
            fields.refuse("low_height", format!("x low_width x channels must be at most {MAX_VALUES}, got {values}"));
        }
    }
    spec.classes = classes?;
    Some((spec, low_model))
}

fn weights(fields: &mut Fields<'_>) -> Option<Weights> {
    let file: Option<String> = fields.required("file");
    let digest: Option<String> = fields.required("sha256");
    let sha256 = digest.and_then(|digest| {
        let sha256 = parse_digest(&digest);
        if sha256.is_none() {
            fields.refuse("sha256", format!("must be 64 hex digits, got {digest:?}"));
        }
        sha256
    });
    let file = file?;
    // A separator would let a manifest reach outside its package.
    let plain = !file.is_empty() && !file.contains(['/', '\\', '\0']) && !file.starts_with('.');
    let format = match file.rsplit_once('.') {
        Some((_, "pt")) => Some(WeightsFormat::TorchScript),
        Some((_, "safetensors")) => Some(WeightsFormat::Safetensors),
        _ => None,
    };
    if !plain || format.is_none() {
        fields.refuse("file", format!("must be a plain file name ending in .pt or .safetensors, got {file:?}"));
        return None;
    }
    Some(Weights { file, format: format?, sha256: sha256? })
}

fn parse_digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..32).map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()).collect::<Option<_>>();
    bytes?.try_into().ok()
}

fn data(fields: &mut Fields<'_>) -> Option<Data> {
    let [source, licence, split] = ["source", "licence", "split"].map(|key| fields.optional(key));
    Some(Data { source, licence, split })
}

fn training(fields: &mut Fields<'_>) -> Option<Table> {
    let mut training = Table::new();
    for (key, value) in fields.rest() {
        let fits = match key.as_str() {
            "script" => value.is_str(),
            "seed" | "parameters" => value.is_integer(),
            "seconds" => value.is_integer() || value.is_float(),
            _ => !value.is_table() && !value.is_array(),
        };
        if fits {
            training.insert(key, value);
        } else {
            fields.refuse(&key, format!("must not be of type {} here", value.type_str()));
        }
    }
    Some(training)
}

fn results(fields: &mut Fields<'_>) -> Option<Results> {
    let held_out_images = fields.optional("held_out_images");
    let held_out_bits_per_dim = fields.optional("held_out_bits_per_dim");
    if held_out_bits_per_dim.is_some_and(|bits: f64| !bits.is_finite() || bits < 0.0) {
        fields.refuse("held_out_bits_per_dim", "must be a finite number that is not negative");
    }
    Some(Results { held_out_images, held_out_bits_per_dim })
}

fn golden(fields: &mut Fields<'_>, shape: Shape, condition: ConditionSpec) -> Golden {
    let scores = fields.tables("score", |fields| {
        let values: Option<Vec<u16>> = fields.required("values");
        let nats: Option<f64> = fields.required("nats");
        let (class, low) = (class(fields, condition), low(fields, condition));
        if let Some(values) = &values {
            fit(fields, "values", values, shape);
        }
        if nats.is_some_and(|nats| !nats.is_finite()) {
            fields.refuse("nats", "must be finite");
        }
        Some(GoldenScore { values: values?, class, low, nats: nats? })
    });
    let samples = fields.tables("sample", |fields| {
        let (seed, image) = (fields.required("seed"), fields.required("image"));
        let (class, low, crc32c) = (class(fields, condition), low(fields, condition), fields.required("crc32c"));
        Some(GoldenSample { seed: seed?, image: image?, class, low, crc32c: crc32c? })
    });
    Golden { scores, samples }
}

/// Refuses values at `key` that do not make an image of `shape`.
fn fit(fields: &mut Fields<'_>, key: &str, values: &[u16], shape: Shape) {
    if values.len() != shape.values() as usize || values.iter().any(|&value| u32::from(value) >= shape.levels()) {
        fields.refuse(key, format!("must be {} values of 0..={}", shape.values(), shape.levels() - 1));
    }
}

fn low(fields: &mut Fields<'_>, condition: ConditionSpec) -> Option<Arc<[u16]>> {
    let shape = condition.low?;
    let values: Vec<u16> = fields.required("low")?;
    fit(fields, "low", &values, shape);
    Some(values.into())
}

fn class(fields: &mut Fields<'_>, condition: ConditionSpec) -> Option<u32> {
    let class = fields.optional("class");
    if class.is_none() && condition.class_required {
        fields.refuse("class", "is required");
    }
    if let Some(given) = class.filter(|&class| class >= condition.classes) {
        fields.refuse("class", format!("must be below the {} classes, got {given}", condition.classes));
    }
    class
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
