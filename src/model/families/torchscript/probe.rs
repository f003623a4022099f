//! Finds out how a module is to be called. Every reading of it is a manifest, and each is tried: whether the module takes the
//! image, whether what it gives has the shape, whether it looks at nothing that is still to come. What that cannot tell apart
//! is told by images: under the right reading they are likely.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use tch::CModule;

use super::check::{self, Buckets, Leak};
use super::config::Config;
use super::module::Module;
use super::pattern::{Axis, Pattern};
use crate::head::{Head, MAX_COMPONENTS};
use crate::image::{Canvas, Order, Shape};
use crate::model::manifest::Manifest;
use crate::model::{Condition, ModelError, WeightsFile};
use crate::torch::weights;

/// Sizes that are tried where none is given: those of the data sets that such models are trained on.
const SIZES: [u32; 6] = [28, 32, 64, 16, 8, 96];
/// Batches that a traced module may be bound to.
const BATCHES: [u32; 9] = [2, 1, 4, 8, 16, 32, 64, 128, 256];
/// Ways for an image to go in.
const INPUTS: [&str; 6] = ["b c h w", "b h w c", "b (h w c)", "b h (w c)", "b (c h w)", "(h w c) b"];
/// Ways for parameters to come out. Which is meant where several have the shape, only images can tell.
const OUTPUTS: [&str; 19] = [
    "b c v h w",
    "b v c h w",
    "b (c v) h w",
    "b (v c) h w",
    "b v h w",
    "b h w c v",
    "b h w (c v)",
    "b h w (v c)",
    "b h w v",
    "b (h w c) v",
    "b v (h w c)",
    "(h w c) b v",
    "b (h w) v",
    "b (h w) (c v)",
    "(h w) b v",
    "(b h w c) v",
    "(b h w) v",
    "b c h w",
    "b (h w c)",
];
/// Steps that are looked at for a leak.
const CUTS: u32 = 256;

/// What is known of a module before it is asked.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// Name of the package.
    pub name: String,
    /// Rows and columns; tried where none are given.
    pub size: Option<[u32; 2]>,
    /// Channels; 1 and 3 are tried where none are given.
    pub channels: Option<u32>,
    /// Levels of a value.
    pub levels: u32,
    /// Classes, if it takes a label.
    pub classes: u32,
    /// Rows and columns of a low-resolution image, if it takes one.
    pub low: Option<[u32; 2]>,
    /// Lines of the `architecture` table that are known: whatever says otherwise is not tried.
    pub fixed: Vec<String>,
    /// Layout of mixtures, if it is known.
    pub layout: Option<String>,
    /// Images it was trained for, in raster order, to tell readings apart.
    pub examples: Vec<Vec<u16>>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The manifest, but for the `weights` table.
    pub manifest: String,
    /// Other readings that the module's shapes allow, each with the bits/dim of the examples under it.
    pub others: Vec<String>,
}

/// Probes the module of `file`.
///
/// # Errors
/// Why it cannot be served, or what must be said of it.
pub fn probe(file: WeightsFile<'_>, hints: &Hints) -> Result<Found, String> {
    let _guard = tch::no_grad_guard();
    let module = Arc::new(weights::module(file).map_err(|violations| violations.to_string())?);
    Probe { module, hints, said: BTreeSet::new(), shapes: BTreeSet::new(), leak: None }.run()
}

/// A way to call a module, and how its results are read.
#[derive(Clone, Debug)]
struct Reading {
    shape: Shape,
    input: &'static str,
    integers: bool,
    start: Option<u32>,
    arguments: Vec<&'static str>,
    batch: u32,
    output: &'static str,
    output_item: usize,
    head: Head,
    layout: &'static str,
    scale: &'static str,
    batches: Vec<u32>,
    prefix: bool,
    incremental: bool,
}

struct Probe<'a> {
    module: Arc<CModule>,
    hints: &'a Hints,
    /// What the module said when it did not take an image.
    said: BTreeSet<String>,
    /// Shapes of what it gave.
    shapes: BTreeSet<String>,
    leak: Option<(Leak, &'static str)>,
}

impl Probe<'_> {
    fn run(&mut self) -> Result<Found, String> {
        let mut readings = Vec::new();
        let channels = self.hints.channels.map_or(vec![3, 1], |channels| vec![channels]);
        let sizes = self.hints.size.map_or(SIZES.map(|side| [side; 2]).to_vec(), |size| vec![size]);
        for (&size, &channels) in sizes.iter().flat_map(|size| channels.iter().map(move |channels| (size, channels))) {
            let shape =
                Shape::new(size[0], size[1], channels, self.hints.levels).map_err(|faults| faults.to_string())?;
            readings.extend(self.of_shape(shape));
        }
        let shapes: BTreeSet<_> = readings.iter().map(|reading| size(reading.shape)).collect();
        if shapes.len() > 1 {
            let shapes = shapes.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "the module takes images of several sizes ({shapes}): say --height, --width and --channels"
            ));
        }
        self.choose(readings)
    }

    /// The readings for images of `shape` under which the module looks at nothing it must not.
    fn of_shape(&mut self, shape: Shape) -> Vec<Reading> {
        let mut good = Vec::new();
        for call in self.calls(shape) {
            for batch in BATCHES {
                let reading = Reading { batch, ..call.clone() };
                let results = self.call(&reading);
                let read = results.iter().enumerate().flat_map(|(output_item, given)| {
                    self.outputs(&reading, given).into_iter().map(move |read| Reading { output_item, ..read })
                });
                let read: Vec<_> = read.collect();
                let found: Vec<_> = read.into_iter().filter_map(|read| self.try_reading(read)).collect();
                // Who looks at no channel of a pixel for another gives all of them at once; it is the same law, in fewer steps.
                let by_pixel = found.iter().any(|read| read.head == Head::FactorisedCategorical);
                good.extend(found.into_iter().filter(|read| !by_pixel || read.head != Head::Categorical));
                // A module that takes the values as they are, and gives what comes next, shifts them itself.
                if !good.is_empty() {
                    return good;
                }
            }
        }
        good
    }

    /// Ways to call it, the usual first.
    fn calls(&self, shape: Shape) -> Vec<Reading> {
        let low: &[&'static str] = if self.hints.low.is_some() { &["low"] } else { &[] };
        let class: &[&'static str] = if self.hints.classes > 0 { &["class", "class_one_hot"] } else { &[] };
        let mut orders = vec![vec!["image"]];
        for kinds in [low, class].into_iter().filter(|kinds| !kinds.is_empty()) {
            let with = |order: &Vec<&'static str>, kind, at: usize| {
                let mut order = order.clone();
                order.insert(at, kind);
                order
            };
            let anywhere = |order: &Vec<&'static str>| -> Vec<_> {
                kinds.iter().flat_map(|kind| (0..=order.len()).rev().map(|at| with(order, *kind, at))).collect()
            };
            orders = orders.iter().flat_map(anywhere).collect();
        }
        let mut calls = Vec::new();
        for arguments in orders {
            for input in INPUTS {
                for (integers, start) in [(false, None), (true, None), (true, Some(shape.levels())), (true, Some(0))] {
                    let sequence = ["b (h w c)", "(h w c) b"].contains(&input);
                    if start.is_some() && !sequence {
                        continue;
                    }
                    calls.push(Reading {
                        shape,
                        input,
                        integers,
                        start,
                        arguments: arguments.clone(),
                        batch: 0,
                        output: "b h w c v",
                        output_item: 0,
                        head: Head::Categorical,
                        layout: "saha",
                        scale: if integers { "levels" } else { "signed" },
                        batches: Vec::new(),
                        prefix: false,
                        incremental: false,
                    });
                }
            }
        }
        calls
    }

    /// Calls the module as `reading` says; the shapes of its results, none if it does not take that.
    fn call(&mut self, reading: &Reading) -> Vec<Vec<i64>> {
        let given = self
            .build(reading)
            .and_then(|module| self.forward(&module, reading.batch).map_err(|error| error.to_string()));
        match given {
            Ok(shapes) => {
                self.shapes.extend(shapes.iter().map(|shape| format!("{shape:?}")));
                shapes
            }
            Err(why) => {
                self.said.insert(why);
                Vec::new()
            }
        }
    }

    fn forward(&self, module: &Module, batch: u32) -> Result<Vec<Vec<i64>>, ModelError> {
        let (image, condition) = (check::any_image(module.config.shape, 1), Condition::least(&module.config.condition));
        let results = module.forward(&vec![(&image, &condition); batch as usize], module.config.shape.height())?;
        Ok(results.iter().map(tch::Tensor::size).collect())
    }

    /// Readings of a result of shape `given`.
    fn outputs(&self, reading: &Reading, given: &[i64]) -> Vec<Reading> {
        let shape = reading.shape;
        let mut found = Vec::new();
        let mut tried = Vec::new();
        for output in OUTPUTS {
            let Ok(pattern) = Pattern::parse(output) else { continue };
            // With one channel, forms that name it and forms that do not are the same.
            let form = if shape.channels() == 1 { pattern.without(Axis::Channel) } else { pattern.clone() };
            if tried.contains(&form) {
                continue;
            }
            tried.push(form);
            let lengths = |channels: u32, parameters: i64| {
                [reading.batch.into(), shape.height().into(), shape.width().into(), channels.into(), parameters]
            };
            let mut add = |head: Head, layout: &'static str| {
                found.push(Reading { output, head, layout, ..reading.clone() });
            };
            let (by_channel, levels) = (pattern.has(Axis::Channel), i64::from(shape.levels()));
            let single = !pattern.has(Axis::Parameter);
            if by_channel || shape.channels() == 1 {
                let fits = pattern.shape(&lengths(shape.channels(), if single { 1 } else { levels })) == given;
                if fits && (!single || levels == 2) {
                    add(Head::Categorical, "saha");
                    if shape.channels() > 1 {
                        add(Head::FactorisedCategorical, "saha");
                    }
                }
            }
            if (!by_channel || shape.channels() == 1) && !single {
                for components in 1..=MAX_COMPONENTS {
                    let head = Head::LogisticMixture { components };
                    let width = head.width(shape) as i64;
                    if pattern.shape(&lengths(1, width)) == given && width != levels {
                        let layouts: &[&'static str] =
                            if shape.channels() == 3 { &["oai", "saha", "t2t"] } else { &["saha"] };
                        let known =
                            |layout: &&&'static str| self.hints.layout.as_ref().is_none_or(|known| known == **layout);
                        layouts.iter().filter(known).for_each(|layout| add(head, layout));
                    }
                }
            }
        }
        found
    }

    /// `reading`, if the module is causal under it, with what else it can do.
    fn try_reading(&mut self, mut reading: Reading) -> Option<Reading> {
        let module = match self.build(&reading) {
            Ok(module) => module,
            Err(error) => {
                self.said.insert(error);
                return None;
            }
        };
        let batch = reading.batch as usize;
        let buckets = Buckets::of(batch);
        let shape = reading.shape;
        // What takes the images for parts of one, or parts for images, could look causal otherwise.
        let mixed = |&size: &u32| self.fits(&module, size) && !check::apart(&module, size as usize).unwrap_or(false);
        if [reading.batch, 2].iter().any(mixed) {
            self.said.insert("images of a batch change each other".to_owned());
            return None;
        }
        let cuts = check::cuts(shape.values(), CUTS);
        match check::leak(&module, &buckets, &check::places(shape, Order::Raster), &cuts) {
            Ok(None) => {}
            Ok(Some(leak)) => {
                let orders = [
                    ("column by column", columns(shape)),
                    ("channel by channel", planes(shape)),
                    ("backwards", backwards(shape)),
                ];
                let other = orders
                    .into_iter()
                    .find(|(_, places)| matches!(check::leak(&module, &buckets, places, &cuts), Ok(None)));
                self.leak = Some((leak, other.map_or("", |(name, _)| name)));
                return None;
            }
            Err(error) => {
                self.said.insert(error.to_string());
                return None;
            }
        }
        let others =
            BATCHES.into_iter().filter(|&size| self.forward(&module, size).is_ok_and(|_| self.fits(&module, size)));
        let mut taken: Vec<u32> = others.collect();
        taken.sort_unstable();
        // Whoever takes three takes any.
        reading.batches = if self.fits(&module, 3) { Vec::new() } else { taken };
        reading.prefix = check::check_prefix(&module, &buckets).is_ok();
        let stepping = self.build(&Reading { incremental: true, ..reading.clone() }).ok()?;
        reading.incremental = check::check_steps(&stepping, &Buckets::of(1)).is_ok();
        reading.prefix &= !reading.incremental;
        Some(reading)
    }

    /// Whether a batch of `size` gives parameters as the manifest says.
    fn fits(&self, module: &Module, size: u32) -> bool {
        let (image, condition) = (check::any_image(module.config.shape, 1), Condition::least(&module.config.condition));
        module.pass(&vec![(&image, &condition); size as usize], module.config.shape.height()).is_ok()
    }

    fn build(&self, reading: &Reading) -> Result<Module, String> {
        let text = self.manifest(reading, "");
        let manifest = Manifest::parse(text.as_bytes()).map_err(|violations| violations.to_string())?;
        let config = Config::read(&manifest).map_err(|violations| violations.to_string())?;
        Ok(Module::new(Arc::clone(&self.module), config))
    }

    /// Of readings with other scales and layouts, the one under which the examples are likeliest; without examples the first.
    fn choose(&self, readings: Vec<Reading>) -> Result<Found, String> {
        let scales =
            |reading: &Reading| if reading.integers { vec!["levels"] } else { vec!["signed", "unit", "levels"] };
        let mut all: Vec<(Option<f64>, Reading)> = Vec::new();
        for reading in &readings {
            for scale in scales(reading) {
                let reading = Reading { scale, ..reading.clone() };
                // What was said of it beforehand stands, so some of these are the same.
                if !self.allowed(&reading) {
                    continue;
                }
                all.push((self.bits_per_dim(&reading), reading));
            }
        }
        if all.is_empty() {
            return Err(self.refusal());
        }
        all.sort_by(|a, b| a.0.unwrap_or(0.0).total_cmp(&b.0.unwrap_or(0.0)));
        let mut all = all.into_iter();
        let Some((bits, reading)) = all.next() else { return Err(self.refusal()) };
        let describe = |bits: Option<f64>| bits.map_or(String::new(), |bits| format!(": {bits:.4} bits/dim"));
        let others: Vec<String> =
            all.map(|(bits, other)| format!("{}{}", differences(&reading, &other), describe(bits))).collect();
        let mut notes = format!(
            "# Found by probing, with {} values changed in turn: no step sees what is still to come.\n",
            check::cuts(reading.shape.values(), CUTS).len()
        );
        match bits {
            Some(bits) => {
                let _ = writeln!(notes, "# The example images take {bits:.4} bits/dim.");
            }
            None if !others.is_empty() => {
                notes.push_str(
                    "# ASSUMED, since nothing but images can tell (see --examples); these would fit as well:\n",
                );
            }
            None => {}
        }
        for other in &others {
            let _ = writeln!(notes, "#   {other}");
        }
        if !reading.incremental {
            let part = if reading.prefix { "the rows so far of an image" } else { "the image" };
            let _ = writeln!(notes, "# It keeps no state: every step is a pass over {part}.");
        }
        Ok(Found { manifest: self.manifest(&reading, &notes), others })
    }

    /// Whether nothing that was said beforehand says otherwise.
    fn allowed(&self, reading: &Reading) -> bool {
        let lines = architecture(reading, self.hints);
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        self.hints.fixed.iter().all(|fixed| {
            let same = lines.iter().find(|line| key(line) == key(fixed));
            same.is_none_or(|line| line == fixed)
        })
    }

    fn refusal(&self) -> String {
        if let Some((leak, order)) = &self.leak {
            let known = if order.is_empty() {
                String::new()
            } else {
                format!("; it is causal {order}, an order that is not served")
            };
            return format!("{leak}{known}");
        }
        let list = |all: &BTreeSet<String>| all.iter().take(8).cloned().collect::<Vec<_>>().join("\n  ");
        if self.shapes.is_empty() {
            return format!(
                "the module took no image in any form that was tried. If it takes a label say --classes, if an image of low \
                 resolution --low-height and --low-width. It said:\n  {}",
                list(&self.said)
            );
        }
        format!(
            "what the module gives has no form that is known, for --levels {} and the sizes tried. Its shapes:\n  {}\nIt said:\n  {}",
            self.hints.levels,
            list(&self.shapes),
            list(&self.said)
        )
    }

    fn bits_per_dim(&self, reading: &Reading) -> Option<f64> {
        let module = self.build(reading).ok()?;
        let (shape, head) = (reading.shape, reading.head);
        let condition = Condition::least(&module.config.condition);
        let (mut nats, mut values) = (0.0, 0.0);
        for example in &self.hints.examples {
            let canvas = Canvas::from_raster(shape, Order::Raster, example)?;
            let rows = module.pass(&vec![(&canvas, &condition); reading.batch as usize], shape.height()).ok()?;
            let rows = rows.f_get(0).ok()?;
            for rank in 0..shape.values() {
                let row = rows.f_get(i64::from(rank / head.values_per_step(shape).max(1))).ok()?;
                nats -= head.log_prob(&Vec::<f32>::try_from(row).ok()?, &canvas, rank).ok()?;
                values += 1.0;
            }
        }
        (values > 0.0).then(|| nats / values / std::f64::consts::LN_2)
    }

    fn manifest(&self, reading: &Reading, notes: &str) -> String {
        let (shape, name) = (reading.shape, &self.hints.name);
        let head = match reading.head {
            Head::Categorical => "kind = \"categorical\"".to_owned(),
            Head::FactorisedCategorical => "kind = \"factorised_categorical\"".to_owned(),
            Head::LogisticMixture { components } => {
                let layout = reading.layout;
                format!("kind = \"logistic_mixture\"\ncomponents = {components}\nlayout = \"{layout}\"")
            }
        };
        let mut condition = String::new();
        if self.hints.classes > 0 {
            let _ = writeln!(condition, "classes = {}\nrequired = true", self.hints.classes);
        }
        if let Some([height, width]) = self.hints.low {
            let _ = writeln!(condition, "low_height = {height}\nlow_width = {width}");
        }
        if !condition.is_empty() {
            condition.insert_str(0, "\n[condition]\n");
        }
        format!(
            "format = 1\nname = \"{name}\"\nfamily = \"torchscript\"\ndescription = \"Imported TorchScript module\"\n\n[image]\n\
             height = {}\nwidth = {}\nchannels = {}\nlevels = {}\norder = \"raster\"\n\n[head]\n{head}\n{condition}\n\
             [architecture]\n{notes}{}\n",
            shape.height(),
            shape.width(),
            shape.channels(),
            shape.levels(),
            architecture(reading, self.hints).join("\n"),
        )
    }
}

/// The lines of the `architecture` table.
fn architecture(reading: &Reading, hints: &Hints) -> Vec<String> {
    let arguments: Vec<_> = reading.arguments.iter().map(|argument| format!("\"{argument}\"")).collect();
    let mut lines = vec![
        format!("arguments = [{}]", arguments.join(", ")),
        format!("input = \"{}\"", reading.input),
        format!("input_type = \"{}\"", if reading.integers { "int64" } else { "float32" }),
        format!("input_scale = \"{}\"", reading.scale),
        format!("output = \"{}\"", reading.output),
    ];
    lines.extend(reading.start.map(|start| format!("start = {start}")));
    if reading.output_item > 0 {
        lines.push(format!("output_item = {}", reading.output_item));
    }
    if !reading.batches.is_empty() {
        lines.push(format!("batches = {:?}", reading.batches));
    }
    for (key, set) in [("prefix", reading.prefix), ("incremental", reading.incremental)] {
        if set {
            lines.push(format!("{key} = true"));
        }
    }
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let new = hints.fixed.iter().filter(|fixed| lines.iter().all(|line| key(line) != key(fixed))).cloned();
    let new: Vec<_> = new.collect();
    lines.extend(new);
    lines
}

/// How `other` differs from `reading`.
fn differences(reading: &Reading, other: &Reading) -> String {
    let lines = |reading: &Reading| {
        let mut lines = architecture(reading, &Hints::default());
        lines.push(format!("head.kind {:?}", reading.head));
        lines.push(format!("layout = \"{}\"", reading.layout));
        lines
    };
    let own = lines(reading);
    lines(other).into_iter().filter(|line| !own.contains(line)).collect::<Vec<_>>().join(", ")
}

fn size(shape: Shape) -> String {
    format!("{}x{}x{}", shape.height(), shape.width(), shape.channels())
}

/// Raster places of the values of `shape`, column after column.
fn columns(shape: Shape) -> Vec<u32> {
    let (h, w, c) = (shape.height(), shape.width(), shape.channels());
    (0..w * h * c).map(|rank| (rank / c % h * w + rank / c / h) * c + rank % c).collect()
}

/// Channel after channel.
fn planes(shape: Shape) -> Vec<u32> {
    let (pixels, c) = (shape.height() * shape.width(), shape.channels());
    (0..pixels * c).map(|rank| rank % pixels * c + rank / pixels).collect()
}

/// The last first.
fn backwards(shape: Shape) -> Vec<u32> {
    (0..shape.values()).rev().collect()
}
