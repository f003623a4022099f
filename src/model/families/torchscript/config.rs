//! The `architecture` table: how an image goes into a module, and its parameters come out.

use toml::Table;

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
/// Values of images that may go in together, parameters that may come out, and numbers of `class_one_hot`: a module makes of
/// each what it likes, and of more than these nobody needs a pass.
const MAX_VALUES: u64 = 1 << 22;
const MAX_PARAMETERS: u64 = 1 << 28;
const MAX_ONE_HOT: u64 = 1 << 26;

/// The keys of the table, in the order in which people would write them.
pub(super) const KEYS: [&str; 13] = [
    "arguments",
    "null_class",
    "input",
    "input_type",
    "input_scale",
    "mean",
    "std",
    "start",
    "output",
    "output_item",
    "batches",
    "prefix",
    "incremental",
];

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
        let integers = integers(fields);
        let scale = scale(fields, shape);
        let start = start(fields);
        let arguments = arguments(fields, manifest.condition);
        let null_class: Option<i64> = fields.optional("null_class");
        let output_item = fields.optional("output_item").unwrap_or(0);
        let batches = batches(fields);
        let (prefix, incremental) = switches(fields);
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
        if start.is_some() && !input.is_sequence() {
            fields.refuse("start", "is for an input with the axes (h w c) in one");
        }
        if let Some(start) = start.filter(|start| integers == Some(true) && start.fract() != 0.0) {
            fields.refuse("start", format!("must be a whole number where integers go in, got {start}"));
        }
        let labelled = arguments.contains(&Argument::Class);
        if null_class.is_some() && !labelled {
            fields.refuse("null_class", "is for modules that take the argument class");
        }
        if labelled && !manifest.condition.class_required && null_class.is_none() {
            fields.refuse("null_class", "is required: a request may name no class (or set condition.required)");
        }
        let limits = limits(shape, manifest.head, manifest.condition, &arguments);
        let [_, (_, _, parameters), (_, _, classes)] = limits;
        if parameters > MAX_PARAMETERS {
            let rule = format!("must hold at most {MAX_PARAMETERS} parameters of an image, got {parameters}");
            fields.refuse("output", rule);
        }
        if classes > MAX_ONE_HOT {
            fields.refuse("arguments", format!("may hold class_one_hot for {MAX_ONE_HOT} classes, got {classes}"));
        }
        let too_large = |(what, most, each): (&str, u64, u64)| {
            let most_images = most / each.max(1);
            let size = batches.iter().flatten().find(|&&size| u64::from(size) > most_images)?;
            Some(format!("may hold sizes up to {most_images}, with which {most} {what} a pass are reached, got {size}"))
        };
        if let Some(rule) = limits.into_iter().find_map(too_large) {
            fields.refuse("batches", rule);
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

    /// Images that can go in together, at least 1.
    pub(super) fn most_images(&self) -> u32 {
        let limits = limits(self.shape, self.head, self.condition, &self.arguments);
        let most = limits.into_iter().map(|(_, most, each)| most / each.max(1)).min();
        most.and_then(|most| u32::try_from(most).ok()).unwrap_or(u32::MAX).max(1)
    }
}

/// What a pass may hold at most, and what of it one image takes.
fn limits(shape: Shape, head: Head, condition: ConditionSpec, arguments: &[Argument]) -> [(&'static str, u64, u64); 3] {
    let values = shape.values().max(condition.low.map_or(0, Shape::values));
    let steps = shape.values() / head.values_per_step(shape).max(1);
    let parameters = u64::from(steps).saturating_mul(head.width(shape) as u64);
    let one_hot = if arguments.contains(&Argument::ClassOneHot) { condition.classes } else { 0 };
    [
        ("values", MAX_VALUES, values.into()),
        ("parameters", MAX_PARAMETERS, parameters),
        ("numbers of class_one_hot", MAX_ONE_HOT, one_hot.into()),
    ]
}

/// Entries of the table that are known beforehand, from lines `KEY = VALUE`.
///
/// # Errors
/// Under the line, whatever no table may hold.
pub fn entries(lines: &[String]) -> Result<Table, Violations> {
    let (mut all, mut violations) = (Table::new(), Violations::new());
    for line in lines {
        match toml::from_str::<Table>(line) {
            Ok(entry) if entry.is_empty() => violations.add(line, "must be KEY = VALUE"),
            Ok(entry) => {
                if let Some(key) = entry.keys().find(|key| all.contains_key(*key)) {
                    violations.add(line, format!("gives {key} a second time"));
                }
                if let Err(faults) = check_entries(entry.clone()) {
                    faults
                        .iter()
                        .for_each(|fault| violations.add(line, format!("{} {}", fault.field, fault.description)));
                }
                all.extend(entry);
            }
            Err(error) => violations.add(line, format!("must be KEY = VALUE, in TOML: {}", error.message().trim())),
        }
    }
    violations.into_result(all)
}

/// What is wrong with entries of a table whatever the others are.
fn check_entries(table: Table) -> Result<(), Violations> {
    let mut violations = Violations::new();
    let mut fields = Fields::new("", table, &mut violations);
    for key in ["input", "output"] {
        if fields.has(key) {
            pattern(&mut fields, key);
        }
    }
    if fields.has("input_type") {
        integers(&mut fields);
    }
    if fields.has("input_scale") {
        input_scale(&mut fields);
    }
    for key in ["mean", "std"] {
        fields.optional::<Vec<f64>>(key);
    }
    start(&mut fields);
    words(&mut fields);
    fields.optional::<i64>("null_class");
    fields.optional::<usize>("output_item");
    batches(&mut fields);
    switches(&mut fields);
    fields.finish();
    violations.into_result(())
}

/// Whether the image goes in as int64.
fn integers(fields: &mut Fields<'_>) -> Option<bool> {
    fields.word("input_type", &[("float32", false), ("int64", true)])
}

fn input_scale(fields: &mut Fields<'_>) -> Option<Scale> {
    fields.word("input_scale", &[("levels", Scale::Levels), ("unit", Scale::Unit), ("signed", Scale::Signed)])
}

fn start(fields: &mut Fields<'_>) -> Option<f64> {
    let start: f64 = fields.optional("start")?;
    if !start.is_finite() {
        fields.refuse("start", format!("must be a finite number, got {start}"));
        return None;
    }
    Some(start)
}

/// `prefix` and `incremental`.
fn switches(fields: &mut Fields<'_>) -> (bool, bool) {
    let mut switch = |key| fields.optional(key).unwrap_or(false);
    (switch("prefix"), switch("incremental"))
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
    let scale = input_scale(fields);
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

/// What `arguments` names, the image alone where it is absent.
fn words(fields: &mut Fields<'_>) -> Option<Vec<Argument>> {
    let words = [
        ("image", Argument::Image),
        ("class", Argument::Class),
        ("class_one_hot", Argument::ClassOneHot),
        ("low", Argument::Low),
    ];
    if !fields.has("arguments") {
        return Some(vec![Argument::Image]);
    }
    let given: Vec<String> = fields.optional("arguments")?;
    let found = |name: &String| words.iter().find(|(word, _)| word == name).map(|&(_, argument)| argument);
    let arguments: Option<Vec<Argument>> = given.iter().map(found).collect();
    if arguments.is_none() {
        fields.refuse("arguments", format!("may be image, class, class_one_hot and low, got {given:?}"));
    }
    arguments
}

fn arguments(fields: &mut Fields<'_>, condition: ConditionSpec) -> Option<Vec<Argument>> {
    let arguments = words(fields)?;
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
            ("\"unit\"", "\"unit\"\nstart = inf", "start"),
            ("\"unit\"", "\"unit\"\nnull_class = 1", "null_class"),
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
    fn what_goes_in_and_comes_out_together_is_bounded() {
        let one_hot = format!("{GOOD}arguments = [\"image\", \"class_one_hot\"]\nbatches = [");
        let most = |classes: u32, batch: u32| {
            read(3, &format!("[condition]\nclasses = {classes}"), &format!("{one_hot}{batch}]"))
                .map(|it| it.most_images())
        };
        assert_eq!(most(1 << 16, 1024), Ok(1024));
        assert_eq!(most(1 << 17, 1024).unwrap_err(), ["architecture.batches"]);
        assert_eq!(most(1 << 26, 1), Ok(1));
        assert_eq!(most(u32::MAX, 1).unwrap_err(), ["architecture.arguments", "architecture.batches"]);
        // A label takes one number, however many there are.
        let label = format!("{GOOD}arguments = [\"image\", \"class\"]\nnull_class = 0");
        assert_eq!(
            read(3, &format!("[condition]\nclasses = {}", u32::MAX), &label).unwrap().most_images(),
            (1 << 22) / 24
        );
        let of = |shape: &str, levels: u32, batch: u32| {
            let text = format!(
                "format = 1\nname = \"m\"\nfamily = \"torchscript\"\n[image]\n{shape}\nlevels = {levels}\norder = \"raster\"\n\
                 [head]\nkind = \"categorical\"\n[architecture]\n{GOOD}batches = [{batch}]\n"
            );
            let faults = |faults: Violations| faults.to_string();
            Config::read(&Manifest::parse(text.as_bytes()).unwrap()).map(|_| ()).map_err(faults)
        };
        let grey = "height = 256\nwidth = 256\nchannels = 1";
        assert_eq!(of(grey, 2, 64), Ok(()));
        let why =
            "architecture.batches: may hold sizes up to 64, with which 4194304 values a pass are reached, got 1024";
        assert_eq!(of(grey, 2, 1024), Err(why.to_owned()));
        let why =
            "architecture.batches: may hold sizes up to 16, with which 268435456 parameters a pass are reached, got 17";
        assert_eq!(of(grey, 256, 17), Err(why.to_owned()));
        let why = of("height = 1024\nwidth = 1024\nchannels = 1", 1 << 16, 1).unwrap_err();
        assert!(
            why.contains("architecture.output: must hold at most 268435456 parameters of an image, got 68719476736"),
            "{why}"
        );
    }

    #[test]
    fn a_first_number_is_one_of_those_that_go_in() {
        let sequence =
            "input = \"b (h w c)\"\ninput_type = \"int64\"\ninput_scale = \"levels\"\noutput = \"b (h w c) v\"\n";
        assert_eq!(read(3, "", &format!("{sequence}start = 0.5")).unwrap_err(), ["architecture.start"]);
        assert_eq!(read(3, "", &format!("{sequence}start = nan")).unwrap_err(), ["architecture.start"]);
        let planes = sequence.replacen("h w c", "c h w", 1);
        assert_eq!(read(3, "", &format!("{planes}start = 5")).unwrap_err(), ["architecture.start"], "no first value");
        assert_eq!(read(3, "", &format!("{sequence}start = 5")).unwrap().start, Some(5.0));
    }

    #[test]
    fn lines_that_are_known_are_checked_one_by_one() {
        let faults = |lines: &[&str]| {
            let faults = entries(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>()).unwrap_err();
            faults.iter().map(|fault| format!("{}: {}", fault.field, fault.description)).collect::<Vec<_>>()
        };
        for (line, why) in [
            ("inptu = \"b c h w\"", "inptu is not a known key"),
            ("input = \"b c h x\"", "input may hold b, h, w, c, v and ( ), got 'x', in \"b c h x\""),
            ("input = b c h w", "must be KEY = VALUE, in TOML: "),
            ("input_scale = \"sined\"", "input_scale must be \"levels\" or \"unit\" or \"signed\", got \"sined\""),
            ("input_type = \"int32\"", "input_type must be \"float32\" or \"int64\""),
            ("start = inf", "start must be a finite number, got inf"),
            ("arguments = [\"picture\"]", "arguments may be image, class"),
            ("batches = [0]", "batches may hold 32 sizes"),
            ("prefix = 1", "prefix invalid type"),
            ("", "must be KEY = VALUE"),
        ] {
            let found = faults(&[line]);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{line}: {why}")), "{found:?}");
        }
        assert_eq!(faults(&["prefix = true", "prefix = true"]), ["prefix = true: gives prefix a second time"]);
        let good =
            ["start = 5", "std = [2]", "null_class = -1", "output_item = 1", "input = \"(h w c) b\""].map(String::from);
        assert_eq!(entries(&good).unwrap().len(), 5);
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
