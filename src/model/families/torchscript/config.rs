//! The `architecture` table: how an image goes into a module, and its parameters come out.

use super::pattern::{Axis, Pattern};
use crate::error::Violations;
use crate::head::{Head, Layout};
use crate::image::{Order, Shape};
use crate::model::fields::Fields;
use crate::model::manifest::Manifest;
use crate::spec::ConditionSpec;

/// Sizes of a batch that a manifest may list.
const MAX_BATCHES: usize = 32;
const MAX_BATCH: u32 = 1024;

/// What `forward` takes as one of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// The image.
    Image,
    /// Class labels: int64 [b].
    Class,
    /// Class labels as rows of zeros and a one: float32 [b, classes]; all zeros for an image without a class.
    ClassOneHot,
    /// The low-resolution image, in the form and scale of the image.
    Low,
}

/// How numbers stand for the levels of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// 0..=levels-1.
    Levels,
    /// 0..=1.
    Unit,
    /// -1..=1.
    Signed,
}

/// A checked table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub(super) shape: Shape,
    pub(super) order: Order,
    pub(super) head: Head,
    pub(super) layout: Layout,
    pub(super) condition: ConditionSpec,
    pub(super) input: Pattern,
    /// Whether the image goes in as int64 rather than float32.
    pub(super) integers: bool,
    /// Of each channel: what a level is multiplied with, and what is then added.
    pub(super) scale: Vec<(f64, f64)>,
    /// The number that goes in before the first value; the last value then does not.
    pub(super) start: Option<f64>,
    pub(super) arguments: Vec<Argument>,
    /// Label of images without a class.
    pub(super) null_class: Option<i64>,
    pub(super) output: Pattern,
    /// Which of several results holds the parameters.
    pub(super) output_item: usize,
    /// Batch sizes the module takes, ascending; empty: any.
    pub(super) batches: Vec<u32>,
    /// Whether it takes the first rows of an image alone.
    pub(super) prefix: bool,
    /// Whether it has `init_state` and `step`.
    pub(super) incremental: bool,
}

impl Config {
    /// Reads the table of `manifest`.
    ///
    /// # Errors
    /// Every fault, under its key.
    pub(super) fn read(manifest: &Manifest) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let mut fields = Fields::new("architecture", manifest.architecture.clone(), &mut violations);
        let config = Self::read_fields(manifest, &mut fields);
        fields.finish();
        if let Order::BlockRaster(blocks) = manifest.order
            && manifest.head != Head::Categorical
            && blocks.width() % manifest.shape.channels() != 0
        {
            violations.add("image.block_width", "must be whole pixels where a step decides a pixel");
        }
        match config {
            Some(config) => violations.into_result(config),
            None => Err(violations),
        }
    }

    fn read_fields(manifest: &Manifest, fields: &mut Fields<'_>) -> Option<Self> {
        let shape = manifest.shape;
        let input = pattern(fields, "input");
        let output = pattern(fields, "output");
        let integers = fields.word("input_type", &[("float32", false), ("int64", true)]);
        let scale = scale(fields, shape);
        let start: Option<f64> = fields.optional("start");
        let arguments = arguments(fields, manifest.condition);
        let null_class: Option<i64> = fields.optional("null_class");
        let output_item = fields.optional("output_item").unwrap_or(0);
        let batches = batches(fields);
        let prefix = fields.optional("prefix").unwrap_or(false);
        let incremental = fields.optional("incremental").unwrap_or(false);
        let (input, output, arguments) = (input?, output?, arguments?);
        for (key, pattern) in [("input", &input), ("output", &output)] {
            let long = [
                ("b", Axis::Image, true),
                ("h", Axis::Row, shape.height() > 1),
                ("w", Axis::Column, shape.width() > 1),
                ("c", Axis::Channel, shape.channels() > 1 && (key == "input" || !per_pixel(manifest.head))),
            ];
            for (name, axis, needed) in long {
                if needed && !pattern.has(axis) {
                    fields.refuse(key, format!("must name the axis {name}"));
                }
            }
        }
        if input.has(Axis::Parameter) {
            fields.refuse("input", "must not name the axis v");
        }
        if per_pixel(manifest.head) && output.has(Axis::Channel) && shape.channels() > 1 {
            fields.refuse("output", "must not name the axis c: a mixture is over all channels");
        }
        if !output.has(Axis::Parameter) && (shape.levels() != 2 || per_pixel(manifest.head)) {
            fields.refuse(
                "output",
                "must name the axis v; without it there is one logit a value, for images of 2 levels",
            );
        }
        if integers == Some(true)
            && scale.as_ref().is_some_and(|scale| scale.iter().any(|&channel| channel != (1.0, 0.0)))
        {
            fields.refuse("input_scale", "must be \"levels\", without mean and std, where integers go in");
        }
        if start.is_some() && manifest.order != Order::Raster {
            fields.refuse("start", "is for images in raster order");
        }
        if start.is_some() && !input.shape(&[1, 2, 3, 5, 1]).contains(&30) {
            fields.refuse("start", "is for an input with the axes (h w c) in one");
        }
        let labelled = arguments.contains(&Argument::Class);
        if labelled && !manifest.condition.class_required && null_class.is_none() {
            fields.refuse("null_class", "is required: a request may name no class (or set condition.required)");
        }
        Some(Self {
            shape,
            order: manifest.order,
            head: manifest.head,
            layout: manifest.layout,
            condition: manifest.condition,
            input,
            integers: integers?,
            scale: scale?,
            start,
            arguments,
            null_class,
            output,
            output_item,
            batches: batches?,
            prefix,
            incremental,
        })
    }
}

/// Whether one row of parameters is over all channels together.
fn per_pixel(head: Head) -> bool {
    matches!(head, Head::LogisticMixture { .. })
}

fn pattern(fields: &mut Fields<'_>, key: &str) -> Option<Pattern> {
    let text: String = fields.required(key)?;
    match Pattern::parse(&text) {
        Ok(pattern) => Some(pattern),
        Err(why) => {
            fields.refuse(key, format!("{why}, in {text:?}"));
            None
        }
    }
}

fn scale(fields: &mut Fields<'_>, shape: Shape) -> Option<Vec<(f64, f64)>> {
    let words = [("levels", Scale::Levels), ("unit", Scale::Unit), ("signed", Scale::Signed)];
    let scale = fields.word("input_scale", &words);
    let [mean, std] = [("mean", 0.0), ("std", 1.0)].map(|(key, default)| {
        let given: Vec<f64> = fields.optional(key).unwrap_or_else(|| vec![default]);
        let one_each = given.len() == 1 || given.len() == shape.channels() as usize;
        if !one_each || given.iter().any(|number| !number.is_finite() || (key == "std" && *number == 0.0)) {
            fields.refuse(key, format!("must be 1 or {} numbers that can be divided by", shape.channels()));
            return None;
        }
        Some(given)
    });
    let (mean, std) = (mean?, std?);
    let (factor, offset) = scale?.affine(shape);
    let of_channel = |numbers: &[f64], channel: usize| numbers.get(channel).or(numbers.first()).copied();
    (0..shape.channels() as usize)
        .map(|channel| {
            let (mean, std) = (of_channel(&mean, channel)?, of_channel(&std, channel)?);
            Some((factor / std, (offset - mean) / std))
        })
        .collect()
}

impl Scale {
    /// What a level is multiplied with, and what is then added.
    fn affine(self, shape: Shape) -> (f64, f64) {
        let most = f64::from(shape.levels() - 1);
        match self {
            Scale::Levels => (1.0, 0.0),
            Scale::Unit => (1.0 / most, 0.0),
            Scale::Signed => (2.0 / most, -1.0),
        }
    }
}

fn arguments(fields: &mut Fields<'_>, condition: ConditionSpec) -> Option<Vec<Argument>> {
    let words = [
        ("image", Argument::Image),
        ("class", Argument::Class),
        ("class_one_hot", Argument::ClassOneHot),
        ("low", Argument::Low),
    ];
    let given: Vec<String> = fields.optional("arguments").unwrap_or_else(|| vec!["image".to_owned()]);
    let found = |name: &String| words.iter().find(|(word, _)| word == name).map(|&(_, argument)| argument);
    let arguments: Option<Vec<Argument>> = given.iter().map(found).collect();
    let Some(arguments) = arguments else {
        fields.refuse("arguments", format!("may be image, class, class_one_hot and low, got {given:?}"));
        return None;
    };
    let count = |argument: Argument| arguments.iter().filter(|&&own| own == argument).count();
    let by_class = count(Argument::Class) + count(Argument::ClassOneHot);
    if count(Argument::Image) != 1
        || count(Argument::Low) != usize::from(condition.low.is_some())
        || by_class != usize::from(condition.classes > 0)
    {
        fields.refuse(
            "arguments",
            "must hold the image once, the class once if condition.classes is given, and low once if \
             condition.low_height is",
        );
        return None;
    }
    Some(arguments)
}

fn batches(fields: &mut Fields<'_>) -> Option<Vec<u32>> {
    let mut batches: Vec<u32> = fields.optional("batches").unwrap_or_default();
    batches.sort_unstable();
    batches.dedup();
    if batches.len() > MAX_BATCHES || batches.iter().any(|size| !(1..=MAX_BATCH).contains(size)) {
        fields.refuse("batches", format!("may hold {MAX_BATCHES} sizes of 1..={MAX_BATCH}"));
        return None;
    }
    Some(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "input = \"b c h w\"\ninput_type = \"float32\"\ninput_scale = \"unit\"\noutput = \"b (c v) h w\"\n";

    fn read(channels: u32, condition: &str, architecture: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "format = 1\nname = \"m\"\nfamily = \"torchscript\"\n[image]\nheight = 2\nwidth = 4\nchannels = {channels}\n\
             levels = 5\norder = \"raster\"\n[head]\nkind = \"categorical\"\n{condition}\n[architecture]\n{architecture}"
        );
        let fields = |faults: Violations| faults.iter().map(|fault| fault.field.clone()).collect();
        Config::read(&Manifest::parse(text.as_bytes()).unwrap()).map_err(fields)
    }

    #[test]
    fn every_fault_is_found_under_its_key() {
        assert!(read(3, "", GOOD).is_ok());
        for (given, wanted, key) in [
            ("b c h w", "b h w", "input"),
            ("b c h w", "b c h w v", "input"),
            ("b (c v) h w", "b v h w", "output"),
            ("b (c v) h w", "b c h w", "output"),
            ("float32", "int64", "input_scale"),
            ("\"unit\"", "\"unit\"\nmean = [1, 2]", "mean"),
            ("\"unit\"", "\"unit\"\nstd = [0.0]", "std"),
            ("\"unit\"", "\"unit\"\nstart = 5", "start"),
            ("\"unit\"", "\"unit\"\nbatches = [0]", "batches"),
            ("\"unit\"", "\"unit\"\narguments = [\"image\", \"class\"]", "arguments"),
            ("\"unit\"", "\"unit\"\nbatchs = [1]", "batchs"),
        ] {
            let faults = read(3, "", &GOOD.replace(given, wanted)).unwrap_err();
            assert_eq!(faults, [format!("architecture.{key}")], "{wanted}");
        }
        let labelled = format!("{GOOD}arguments = [\"image\", \"class\"]");
        let faults = read(3, "[condition]\nclasses = 2", &labelled).unwrap_err();
        assert_eq!(faults, ["architecture.null_class"], "an image without a class has no label");
        assert!(read(3, "[condition]\nclasses = 2\nrequired = true", &labelled).is_ok());
    }

    #[test]
    fn a_level_goes_in_as_the_manifest_says() {
        let numbers = |lines: &str| {
            let config = read(3, "", &GOOD.replace("input_scale = \"unit\"", lines)).unwrap();
            config.scale.iter().map(|&(factor, offset)| 3.0 * factor + offset).collect::<Vec<_>>()
        };
        assert_eq!(numbers("input_scale = \"levels\""), [3.0; 3]);
        assert_eq!(numbers("input_scale = \"unit\""), [0.75; 3]);
        assert_eq!(numbers("input_scale = \"signed\""), [0.5; 3]);
        let standard = "input_scale = \"unit\"\nmean = [0.25, 0.5, 0.75]\nstd = [0.5, 0.25, 1]";
        assert_eq!(numbers(standard), [1.0, 1.0, 0.0]);
    }
}
